//! Several answers of one request.

use super::{
    reuse::{CONTEXT, Memory, letters},
    *,
};

/// Jobs of one request: so many answers to each prompt.
fn jobs(
    office: &TicketOffice,
    account: Option<&str>,
    prompts: &[Vec<u32>],
    choices: usize,
) -> Vec<Job> {
    let account = account.map(|name| seatbelt_schemas::ids::AccountId::new(name).unwrap());
    let mut ticket = office.open(Caller {
        account,
        ..Caller::default()
    });
    let input = prompts.iter().map(Vec::len).sum();
    ticket.begin(input, 5 * prompts.len() * choices);
    let parts = Part::of(ticket, prompts.len(), choices)
        .into_iter()
        .enumerate();
    parts
        .map(|(n, ticket)| Job {
            prompt: prompts[n / choices].clone(),
            max_output: 5,
            allowance: None,
            sampling: Sampling::greedy(),
            eos: vec![257],
            stops: Vec::new(),
            guide: None,
            continues: false,
            deadline: None,
            ticket,
        })
        .collect()
}

#[test]
fn all_answers_of_a_request_are_taken_or_none() {
    let mut rig = Rig::new(1, 2);
    let mut first = taken(rig.submit(rig.job(1, ENDLESS)));
    let office = &rig.office.office;
    let three = jobs(office, None, &[vec![1; 4]], 3);
    let Err(NotQueued::QueueFull(refused)) = rig.engine.submit_all(three) else {
        panic!("there is room for two")
    };
    assert_eq!((refused.len(), rig.engine.room()), (3, 3));
    drop(parts::reject(refused));
    assert_eq!(
        rig.report().outcome,
        seatbelt_schemas::usage::NeuronOutcome::Rejected
    );
    let two = jobs(&rig.office.office, None, &[vec![1; 4], vec![1; 7]], 1);
    let Ok(two) = rig.engine.submit_all(two) else {
        panic!("there is room for two")
    };
    rig.open();
    drop(first.0.blocking_recv());
    drop(first);
    for (mut generation, prompt) in two.into_iter().zip([4, 7]) {
        assert_eq!(
            read(&mut generation),
            (Gated::letters(prompt, 5), EndReason::Length)
        );
    }
    assert!(rig.report().usage.output_tokens > 0, "of the first");
    let usage = rig.report().usage;
    assert_eq!((usage.input_tokens, usage.output_tokens), (11, 10));
}

#[test]
fn several_answers_to_one_prompt_read_it_once() {
    for (account, movable, read) in [
        (Some("ann"), CONTEXT, 40 + 2 + 2),
        // Short against what a run costs, or out of reach, or nobody's: each reads it.
        (Some("ann"), 0, 3 * 40),
        (None, CONTEXT, 3 * 40),
    ] {
        let mut memory = Memory::new(4, movable);
        let prompt: Vec<u32> = letters(&"a long prompt ".repeat(3))[..40].to_vec();
        let jobs = jobs(&memory.office.office, account, &[prompt], 3);
        let Ok(all) = memory.engine.submit_all(jobs) else {
            panic!("there is room")
        };
        let texts: Vec<String> = (all.into_iter())
            .map(|mut generation| super::read(&mut generation).0)
            .collect();
        assert!(texts.iter().all(|text| *text == texts[0]), "{texts:?}");
        assert_eq!(memory.read(), read, "{account:?} {movable}");
        let usage = memory.office.next().usage;
        let counted = (
            usage.input_tokens,
            usage.cached_input_tokens,
            usage.output_tokens,
        );
        assert_eq!(counted, (40, 0, 15));
    }
}
