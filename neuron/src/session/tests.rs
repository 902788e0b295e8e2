//! The decoder on the committed tiny model.

use super::library::tests::fetched;
use super::*;

use crate::model::tests::tiny_config;

fn decoder(slots: usize) -> OnnxDecoder {
    let config = tiny_config(slots);
    let model = Model::load(&config).unwrap();
    OnnxDecoder::load(&fetched(), &config, &model, 1).unwrap()
}

/// On the CPU what a GPU would do.
fn decoder_as_on_a_gpu(slots: usize) -> OnnxDecoder {
    let config = tiny_config(slots);
    let model = Model::load(&config).unwrap();
    let environment = library::runtime(&fetched()).unwrap();
    let session = open::session(&environment, &config, &model.graph.file, 1).unwrap();
    let given = open::check(&session, &model.graph).unwrap();
    let ways = Ways {
        rows_apart: true,
        replayed: true,
    };
    let room = room(&session, &config, &model).unwrap();
    OnnxDecoder::bind(session, &config, &model.graph, room, &given, ways).unwrap()
}

fn best(logits: &[f32]) -> u32 {
    let best = (0u32..).zip(logits).max_by(|a, b| a.1.total_cmp(b.1));
    best.map(|(token, _)| token).unwrap()
}

/// Greedy, reading everything again for every token.
fn recomputed(decoder: &mut OnnxDecoder, prompt: &[u32], count: usize) -> Vec<u32> {
    let mut all = prompt.to_vec();
    let mut logits = Vec::new();
    for _ in 0..count {
        decoder.prefill(0, 0, &all, &mut logits).unwrap();
        all.push(best(&logits));
    }
    all.split_off(prompt.len())
}

/// Greedy in `slot`, on the cache, the prompt in pieces; the slots below take idle part in it.
fn stepped(
    decoder: &mut OnnxDecoder,
    slot: usize,
    prompt: &[u32],
    piece: usize,
    count: usize,
) -> Vec<u32> {
    let mut logits = Vec::new();
    let mut position = 0;
    for piece in prompt.chunks(piece) {
        decoder.prefill(slot, position, piece, &mut logits).unwrap();
        position += piece.len();
    }
    let mut out = vec![best(&logits)];
    while out.len() < count {
        let mut rows = vec![
            Row {
                token: 0,
                position: 0
            };
            slot + 1
        ];
        rows[slot] = Row {
            token: out[out.len() - 1],
            position,
        };
        decoder.decode(&rows, &mut logits).unwrap();
        assert_eq!(logits.len(), rows.len() * decoder.vocab());
        out.push(best(&logits[slot * decoder.vocab()..]));
        position += 1;
    }
    out
}

#[test]
fn steps_on_the_cache_give_what_reading_everything_again_gives() {
    let mut decoder = decoder(3);
    let prompt: Vec<u32> = (0..37).map(|n| 97 + n * 7 % 26).collect();
    let expected = recomputed(&mut decoder, &prompt, 48);
    for (slot, piece) in [(0, 64), (1, 64), (2, 5), (1, 1)] {
        assert_eq!(
            stepped(&mut decoder, slot, &prompt, piece, 48),
            expected,
            "slot {slot}, pieces of {piece}"
        );
    }
}

#[test]
fn a_slot_keeps_nothing_of_who_had_it_before() {
    let mut decoder = decoder(2);
    let expected = stepped(&mut decoder, 1, &[100, 101, 102], 64, 20);
    stepped(&mut decoder, 1, &[65; 300], 64, 100);
    assert_eq!(stepped(&mut decoder, 1, &[100, 101, 102], 64, 20), expected);
}

#[test]
fn the_whole_context_can_be_used() {
    let mut decoder = decoder(2);
    let mut logits = Vec::new();
    decoder.prefill(1, 0, &[97; 1023], &mut logits).unwrap();
    let rows = [
        Row {
            token: 0,
            position: 0,
        },
        Row {
            token: 98,
            position: 1023,
        },
    ];
    decoder.decode(&rows, &mut logits).unwrap();
    assert!(logits.iter().all(|logit| logit.is_finite()));
}

#[test]
fn the_ways_of_a_gpu_give_what_the_ways_of_the_cpu_give() {
    let prompt: Vec<u32> = (0..300).map(|n| 97 + n * 7 % 26).collect();
    let expected = stepped(&mut decoder(3), 1, &prompt, 64, 48);
    let mut decoder = decoder_as_on_a_gpu(3);
    self_check::check(&mut decoder, 1024, None).unwrap();
    self_check::together(&mut decoder, 1024).unwrap();
    for (slot, piece) in [(0, 64), (2, 256), (1, 1), (1, 300)] {
        assert_eq!(
            stepped(&mut decoder, slot, &prompt, piece, 48),
            expected,
            "slot {slot}, pieces of {piece}"
        );
    }
}

/// Greedy, each prompt in a slot of its own from `first` on, all read in one run and stepped together.
fn read_at_once(
    decoder: &mut OnnxDecoder,
    first: usize,
    prompts: &[&[u32]],
    count: usize,
) -> Vec<Vec<u32>> {
    let vocab = decoder.vocab();
    let mut logits = Vec::new();
    (decoder.prefill_together(first, prompts, &mut logits)).unwrap();
    assert_eq!(logits.len(), prompts.len() * vocab);
    let mut out: Vec<Vec<u32>> = logits.chunks(vocab).map(|row| vec![best(row)]).collect();
    while out[0].len() < count {
        let idle = Row {
            token: 0,
            position: 0,
        };
        let mut rows = vec![idle; first];
        rows.extend(prompts.iter().zip(&out).map(|(prompt, said)| Row {
            token: said[said.len() - 1],
            position: prompt.len() + said.len() - 1,
        }));
        decoder.decode(&rows, &mut logits).unwrap();
        for (row, said) in logits.chunks(vocab).skip(first).zip(&mut out) {
            said.push(best(row));
        }
    }
    out
}

#[test]
fn prompts_of_any_lengths_read_in_one_run_give_what_each_gives_alone() {
    let all: Vec<u32> = (0..300).map(|n| 97 + n * 7 % 26).collect();
    let lengths = [37, 2, 90, 41];
    let prompts: Vec<&[u32]> = lengths
        .iter()
        .map(|length| &all[*length..2 * length])
        .collect();
    let mut decoder = decoder(6);
    assert_eq!(decoder.reach().together, Together::Padded);
    let alone: Vec<Vec<u32>> = (prompts.iter())
        .map(|prompt| stepped(&mut decoder, 0, prompt, 300, 30))
        .collect();
    for first in [0, 2, 1] {
        assert_eq!(read_at_once(&mut decoder, first, &prompts, 30), alone);
    }
    let mut decoder = decoder_as_on_a_gpu(6);
    assert_eq!(read_at_once(&mut decoder, 1, &prompts, 30), alone);
}
