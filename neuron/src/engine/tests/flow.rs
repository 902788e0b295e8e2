//! How answers flow while prompts are read, on a clock that only the decoder moves on.

use std::sync::atomic::AtomicU64;

use super::*;

/// What a step takes, in microseconds; a piece of a prompt takes `FIXED` and `EACH` for every token.
const STEP: u64 = 7_000;
const FIXED: u64 = 4_000;
const EACH: u64 = 500;

/// Takes its time, on a clock of its own.
struct Timed {
    slots: usize,
    now: Arc<AtomicU64>,
    /// When steps ended.
    steps: Sender<u64>,
    /// How long pieces were.
    pieces: Sender<usize>,
    /// The first piece waits for this.
    gate: Option<Receiver<()>>,
}

impl Decoder for Timed {
    fn slots(&self) -> usize {
        self.slots
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn prefill(
        &mut self,
        _slot: usize,
        position: usize,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        if let Some(gate) = self.gate.take() {
            let _ = gate.recv();
        }
        let took = FIXED + EACH * tokens.len() as u64;
        self.now.fetch_add(took, Ordering::AcqRel);
        let _ = self.pieces.send(tokens.len());
        *logits = Gated::row(position + tokens.len());
        Ok(())
    }

    fn decode(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> Result<(), StepError> {
        let before = self.now.fetch_add(STEP, Ordering::AcqRel);
        let _ = self.steps.send(before + STEP);
        logits.clear();
        for row in rows {
            logits.extend(Gated::row(row.position + 1));
        }
        Ok(())
    }
}

struct Flow {
    engine: Engine,
    office: Office,
    steps: Receiver<u64>,
    pieces: Receiver<usize>,
    gate: Sender<()>,
}

impl Flow {
    fn new(slots: usize) -> Self {
        let (gate, gated) = channel();
        let (steps_tx, steps) = channel();
        let (pieces_tx, pieces) = channel();
        let now = Arc::new(AtomicU64::new(0));
        let decoder = Timed {
            slots,
            now: Arc::clone(&now),
            steps: steps_tx,
            pieces: pieces_tx,
            gate: Some(gated),
        };
        let start = Instant::now();
        let clock = Clock::of(move || start + Duration::from_micros(now.load(Ordering::Acquire)));
        let office = Office::new();
        let metrics = office
            .office
            .metrics
            .of_engine(&ModelId::new("tiny").unwrap());
        let engine = Engine::start_at(clock, Box::new(decoder), voice(), slots, metrics).unwrap();
        Self {
            engine,
            office,
            steps,
            pieces,
            gate,
        }
    }

    fn submit(&self, prompt: usize, max_output: usize) -> Generation {
        taken(
            self.engine
                .submit(job(&self.office.office, prompt, max_output)),
        )
    }
}

#[test]
fn a_long_prompt_keeps_no_answer_waiting_for_more_than_three_steps() {
    let flow = Flow::new(2);
    flow.gate.send(()).unwrap();
    let mut answer = flow.submit(1, ENDLESS);
    assert!(matches!(answer.0.blocking_recv(), Some(Event::Text(_))));
    assert_eq!(read(&mut flow.submit(2_000, 1)).1, EndReason::Length);
    drop(answer);
    let steps: Vec<u64> = flow.steps.try_iter().collect();
    let longest = steps.windows(2).map(|pair| pair[1] - pair[0]).max();
    let longest = longest.expect("there were many steps");
    assert!(longest <= 3 * STEP, "{longest} us between two tokens");
    let pieces: Vec<usize> = flow.pieces.try_iter().collect();
    assert!(pieces.len() < 250, "{} pieces", pieces.len());
}

#[test]
fn short_prompts_that_come_together_are_read_whole() {
    let flow = Flow::new(3);
    let mut together: Vec<Generation> = (0..3).map(|_| flow.submit(200, 5)).collect();
    flow.gate.send(()).unwrap();
    for generation in &mut together {
        assert_eq!(read(generation).1, EndReason::Length);
    }
    let pieces: Vec<usize> = flow.pieces.try_iter().collect();
    assert_eq!(pieces, [200, 200, 200]);
}
