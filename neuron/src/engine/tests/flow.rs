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
    /// How long pieces were, several prompts at once with what pads them.
    pieces: Sender<usize>,
    /// The first piece waits for this.
    gate: Option<Receiver<()>>,
    /// No piece begins while this is held.
    door: Arc<Mutex<()>>,
    device: Device,
}

/// How fast it reads, and how much at once.
#[derive(Clone, Copy)]
struct Device {
    fixed: u64,
    each: u64,
    reach: Reach,
    /// More tokens at once fail.
    memory: usize,
}

const CPU: Device = Device {
    fixed: FIXED,
    each: EACH,
    reach: Reach::PIECE,
    memory: usize::MAX,
};
/// Takes as long for a token as for hundreds.
const GPU: Device = Device {
    fixed: 3_000,
    each: 3,
    reach: Reach {
        tokens_max: 2_048,
        together: Together::Padded,
        spare: 1_000,
    },
    memory: usize::MAX,
};

impl Timed {
    fn reads(&mut self, tokens: usize) -> Result<(), StepError> {
        if let Some(gate) = self.gate.take() {
            let _ = gate.recv();
        }
        drop(self.door.lock());
        let took = self.device.fixed + self.device.each * tokens as u64;
        self.now.fetch_add(took, Ordering::AcqRel);
        if tokens > self.device.memory {
            return Err(StepError("no memory".to_owned()));
        }
        let _ = self.pieces.send(tokens);
        Ok(())
    }
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
        self.reads(tokens.len())?;
        *logits = Gated::row(position + tokens.len());
        Ok(())
    }

    fn reach(&self) -> Reach {
        self.device.reach
    }

    fn prefill_together(
        &mut self,
        _first: usize,
        prompts: &[&[u32]],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        let width = prompts.iter().map(|prompt| prompt.len()).max();
        self.reads(width.unwrap() * prompts.len())?;
        *logits = (prompts.iter())
            .flat_map(|prompt| Gated::row(prompt.len()))
            .collect();
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
    door: Arc<Mutex<()>>,
}

impl Flow {
    fn new(slots: usize, device: Device) -> Self {
        let (gate, gated) = channel();
        let (steps_tx, steps) = channel();
        let (pieces_tx, pieces) = channel();
        let now = Arc::new(AtomicU64::new(0));
        let door = Arc::default();
        let decoder = Timed {
            slots,
            now: Arc::clone(&now),
            steps: steps_tx,
            pieces: pieces_tx,
            gate: Some(gated),
            door: Arc::clone(&door),
            device,
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
            door,
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
    let flow = Flow::new(2, CPU);
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
    let flow = Flow::new(3, CPU);
    let mut together: Vec<Generation> = (0..3).map(|_| flow.submit(200, 5)).collect();
    flow.gate.send(()).unwrap();
    for generation in &mut together {
        assert_eq!(read(generation).1, EndReason::Length);
    }
    let pieces: Vec<usize> = flow.pieces.try_iter().collect();
    assert_eq!(pieces, [200, 200, 200]);
}

#[test]
fn prompts_that_come_together_take_fewer_runs_than_they_are() {
    let flow = Flow::new(16, GPU);
    flow.gate.send(()).unwrap();
    // What a run takes has to be known before one is longer than a piece.
    assert_eq!(read(&mut flow.submit(256, 1)).1, EndReason::Length);
    let door = flow.door.lock().unwrap();
    let mut together: Vec<Generation> = (0..16).map(|n| flow.submit(20 + n, 5)).collect();
    drop(door);
    for (n, generation) in together.iter_mut().enumerate() {
        let expected = (Gated::letters(20 + n, 5), EndReason::Length);
        assert_eq!(read(generation), expected);
    }
    // The first may be read before the others are there.
    let runs: Vec<usize> = flow.pieces.try_iter().skip(1).collect();
    assert!(runs.len() <= 2, "{runs:?}");
    assert_eq!(flow.steps.try_iter().count(), 4, "all steps together");
}

#[test]
fn a_fast_device_reads_a_long_prompt_in_one_or_two_runs() {
    let flow = Flow::new(2, GPU);
    flow.gate.send(()).unwrap();
    for expected in [&[256, 1_644][..], &[1_900]] {
        assert_eq!(read(&mut flow.submit(1_900, 1)).1, EndReason::Length);
        let pieces: Vec<usize> = flow.pieces.try_iter().collect();
        assert_eq!(pieces, expected);
    }
    // Beside an answer, as much as fits between its tokens.
    let mut answer = flow.submit(2, ENDLESS);
    assert!(matches!(answer.0.blocking_recv(), Some(Event::Text(_))));
    assert_eq!(read(&mut flow.submit(1_900, 1)).1, EndReason::Length);
    drop(answer);
    let steps: Vec<u64> = flow.steps.try_iter().collect();
    let longest = steps.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(longest.unwrap_or_default() <= 3 * STEP, "{longest:?}");
    let pieces = flow.pieces.try_iter().skip(1).count();
    assert!(pieces <= 2, "{pieces}");
}

#[test]
fn runs_that_no_memory_is_there_for_are_made_shorter_and_fail_nobody() {
    let device = Device { memory: 300, ..GPU };
    let flow = Flow::new(8, device);
    flow.gate.send(()).unwrap();
    assert_eq!(read(&mut flow.submit(256, 1)).1, EndReason::Length);
    let door = flow.door.lock().unwrap();
    let mut together: Vec<Generation> = (0..8).map(|_| flow.submit(100, 3)).collect();
    drop(door);
    for generation in &mut together {
        let expected = (Gated::letters(100, 3), EndReason::Length);
        assert_eq!(read(generation), expected);
    }
    assert_eq!(read(&mut flow.submit(1_000, 1)).1, EndReason::Length);
    let longest = flow.pieces.try_iter().max();
    assert!(longest <= Some(300), "{longest:?}");
}

#[test]
fn answers_wait_with_their_next_step_for_prompts_that_came_with_theirs_but_not_long() {
    let device = Device {
        fixed: 10_000,
        each: 1_000,
        ..CPU
    };
    let flow = Flow::new(16, device);
    let mut together: Vec<Generation> = (0..16).map(|_| flow.submit(20, 8)).collect();
    flow.gate.send(()).unwrap();
    for generation in &mut together {
        assert_eq!(read(generation).1, EndReason::Length);
    }
    // 30 ms a prompt: four and the step after them, and so on.
    let steps: Vec<u64> = flow.steps.try_iter().collect();
    assert_eq!(flow.pieces.try_iter().count(), 16);
    assert!(steps.len() <= 7 + 4, "{} steps", steps.len());
    let longest = steps.windows(2).map(|pair| pair[1] - pair[0]).max();
    assert!(longest.unwrap() <= 130_000 + STEP, "{longest:?}");
}
