//! Prompts that begin like what slots hold, on a decoder that says what its slots really hold.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};

use proptest::prelude::*;
use seatbelt_schemas::ids::AccountId;

use super::*;

pub(super) const CONTEXT: usize = 160;
/// Bytes of a token.
const EACH: usize = 1 << 10;
const PADDING: u32 = 7;

/// Says a letter by all that its slot holds up to the row; slots hold what was written there, by whomever.
struct Remembering {
    slots: Vec<[u32; CONTEXT]>,
    /// Tokens of a slot that can be shifted.
    movable: usize,
    /// How many tokens prompts had read.
    reads: Sender<usize>,
    breaks_shifts: bool,
    together: Together,
    /// No run begins while this is held.
    door: Arc<Mutex<()>>,
}

impl Remembering {
    fn row(&self, slot: usize, position: usize) -> Vec<f32> {
        let mut hasher = DefaultHasher::new();
        self.slots[slot][..=position].hash(&mut hasher);
        Gated::row(usize::try_from(hasher.finish() % 26).unwrap())
    }
}

impl Decoder for Remembering {
    fn slots(&self) -> usize {
        self.slots.len()
    }

    fn vocab(&self) -> usize {
        VOCAB
    }

    fn prefill(
        &mut self,
        slot: usize,
        position: usize,
        tokens: &[u32],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        assert!(!tokens.is_empty());
        drop(self.door.lock());
        let _ = self.reads.send(tokens.len());
        self.slots[slot][position..position + tokens.len()].copy_from_slice(tokens);
        *logits = self.row(slot, position + tokens.len() - 1);
        Ok(())
    }

    fn reach(&self) -> Reach {
        Reach {
            together: self.together,
            spare: 20,
            ..Reach::PIECE
        }
    }

    fn prefill_together(
        &mut self,
        first: usize,
        prompts: &[&[u32]],
        logits: &mut Vec<f32>,
    ) -> Result<(), StepError> {
        let width = prompts.iter().map(|prompt| prompt.len()).max().unwrap();
        let alike = prompts.iter().all(|prompt| prompt.len() == width);
        assert!(alike || self.together == Together::Padded);
        logits.clear();
        for (slot, prompt) in (first..).zip(prompts) {
            let _ = self.reads.send(prompt.len());
            self.slots[slot][..prompt.len()].copy_from_slice(prompt);
            self.slots[slot][prompt.len()..width].fill(PADDING);
            logits.extend(self.row(slot, prompt.len() - 1));
        }
        Ok(())
    }

    fn decode(&mut self, rows: &[Row], logits: &mut Vec<f32>) -> Result<(), StepError> {
        logits.clear();
        for (slot, row) in rows.iter().enumerate() {
            self.slots[slot][row.position] = row.token;
            logits.extend(self.row(slot, row.position));
        }
        Ok(())
    }

    fn movable(&self, bytes: usize) -> usize {
        self.movable.min(bytes / EACH)
    }

    fn shift(&mut self, shift: Shift) -> Result<(), StepError> {
        if self.breaks_shifts {
            return Err(StepError("broken".to_owned()));
        }
        match shift {
            Shift::Copy { from, to, tokens } => {
                let held = self.slots[from];
                self.slots[to][..tokens].copy_from_slice(&held[..tokens]);
            }
            Shift::Swap { slots, tokens } => {
                let [a, b] = slots.map(|slot| self.slots[slot]);
                self.slots[slots[0]][..tokens].copy_from_slice(&b[..tokens]);
                self.slots[slots[1]][..tokens].copy_from_slice(&a[..tokens]);
            }
        }
        Ok(())
    }
}

pub(super) struct Memory {
    pub(super) engine: Engine,
    pub(super) office: Office,
    reads: Receiver<usize>,
    door: Arc<Mutex<()>>,
}

impl Memory {
    pub(super) fn new(slots: usize, movable: usize) -> Self {
        Self::with(|decoder| {
            decoder.slots = vec![[0; CONTEXT]; slots];
            decoder.movable = movable;
        })
    }

    fn with(change: impl FnOnce(&mut Remembering)) -> Self {
        let (reads_tx, reads) = channel();
        let door = Arc::default();
        let mut decoder = Remembering {
            slots: vec![[0; CONTEXT]],
            movable: 0,
            reads: reads_tx,
            breaks_shifts: false,
            together: Together::Never,
            door: Arc::clone(&door),
        };
        change(&mut decoder);
        let office = Office::new();
        let metrics = office
            .office
            .metrics
            .of_engine(&ModelId::new("tiny").unwrap());
        let engine = Engine::start(Box::new(decoder), voice(), 64, metrics).unwrap();
        Self {
            engine,
            office,
            reads,
            door,
        }
    }

    fn submit(&self, account: Option<&str>, prompt: &[u32], max_output: usize) -> Generation {
        let account = account.map(|name| AccountId::new(name).unwrap());
        let caller = Caller {
            account,
            ..Caller::default()
        };
        let mut ticket = self.office.office.open(caller);
        ticket.begin(prompt.len(), max_output);
        let job = Job {
            prompt: prompt.to_vec(),
            ticket: Part::only(ticket),
            ..job(&self.office.office, 1, max_output)
        };
        taken(self.engine.submit(job))
    }

    /// The text, and how many tokens were not read again.
    fn says(&self, account: Option<&str>, prompt: &[u32], max_output: usize) -> (String, usize) {
        ended(&mut self.submit(account, prompt, max_output))
    }

    pub(super) fn read(&self) -> usize {
        self.reads.try_iter().sum()
    }
}

fn ended(generation: &mut Generation) -> (String, usize) {
    let mut whole = String::new();
    loop {
        match generation.0.blocking_recv().expect("the engine lives") {
            Event::Text(piece) => whole.push_str(&piece.text),
            Event::End(ending) => {
                let cached = usize::try_from(ending.used.cached_input_tokens).unwrap();
                return (whole, cached);
            }
        }
    }
}

/// What is said to a prompt that nothing is held of.
fn alone(prompt: &[u32], max_output: usize) -> String {
    let mut slot = Remembering {
        slots: vec![[0; CONTEXT]],
        movable: 0,
        reads: channel().0,
        breaks_shifts: false,
        together: Together::Never,
        door: Arc::default(),
    };
    let mut logits = Vec::new();
    slot.prefill(0, 0, prompt, &mut logits).unwrap();
    let mut text = String::new();
    loop {
        let token = logits.iter().position(|logit| *logit == 1.0).unwrap();
        let token = u32::try_from(token).unwrap();
        text.push(char::from_u32(token).unwrap());
        if text.len() == max_output {
            return text;
        }
        let position = prompt.len() + text.len() - 1;
        slot.decode(&[Row { token, position }], &mut logits)
            .unwrap();
    }
}

pub(super) fn letters(text: &str) -> Vec<u32> {
    text.bytes().map(u32::from).collect()
}

#[test]
fn the_next_turn_of_a_chat_reads_only_what_is_new() {
    let mut memory = Memory::new(2, CONTEXT);
    let mut chat = letters("a question that is long enough to be kept");
    let (answer, cached) = memory.says(Some("ann"), &chat, 9);
    assert_eq!((answer.len(), cached, memory.read()), (9, 0, chat.len()));
    // The last token was never put into the cache.
    let held = chat.len() + 8;
    chat.extend(letters(&answer));
    chat.extend(letters("and another one"));
    let (_, cached) = memory.says(Some("ann"), &chat, 9);
    assert_eq!((cached, memory.read()), (held, chat.len() - held));
    drop(memory.engine);
    let reports: Vec<UsageEvent> = std::iter::from_fn(|| Some(memory.office.next()))
        .filter(|event| event.account.is_some())
        .take(2)
        .collect();
    let usage = reports[1].usage;
    let counted = (usage.input_tokens, usage.cached_input_tokens);
    assert_eq!(counted, (chat.len() as u64, held as u64));
}

#[test]
fn nothing_is_shared_between_accounts_or_by_those_without_one() {
    let memory = Memory::new(4, CONTEXT);
    let prompt = letters("a question that is long enough to be kept");
    for account in [Some("ann"), Some("bob"), None, None] {
        assert_eq!(memory.says(account, &prompt, 3).1, 0, "{account:?}");
        assert_eq!(memory.read(), prompt.len());
    }
    assert_eq!(memory.says(Some("ann"), &prompt, 3).1, prompt.len() - 2);
}

#[test]
fn what_could_not_be_moved_is_read_again() {
    let memory = Memory::with(|decoder| {
        decoder.slots = vec![[0; CONTEXT]; 2];
        decoder.movable = CONTEXT;
        decoder.breaks_shifts = true;
    });
    let prompt = letters("a question that is long enough to be kept");
    let alone = memory.says(Some("ann"), &prompt, 9);
    memory.says(Some("bob"), &letters("another thing that is asked here"), 9);
    assert_eq!(memory.says(Some("ann"), &prompt, 9), (alone.0, 0));
}

/// Chats of few beginnings, so that many begin alike.
#[derive(Debug, Clone)]
struct Asked {
    account: Option<&'static str>,
    prompt: Vec<u32>,
    max_output: usize,
    leaves: bool,
}

fn asked() -> impl Strategy<Value = Asked> {
    let account = prop_oneof![Just(None), Just(Some("ann")), Just(Some("bob"))];
    let begin = (97u32..99, 0usize..60);
    let end = (97u32..99, 1usize..40);
    (account, begin, end, 1usize..50, prop::bool::weighted(0.2)).prop_map(
        |(account, begin, end, max_output, leaves)| {
            let mut prompt = vec![begin.0; begin.1];
            prompt.extend(vec![end.0; end.1]);
            Asked {
                account,
                prompt,
                max_output,
                leaves,
            }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever slots hold, whoever left, wherever it was moved: each answer is the one it is alone.
    #[test]
    fn no_answer_depends_on_what_slots_hold(
        all in proptest::collection::vec(asked(), 1..20),
        slots in 1usize..6,
        movable in prop_oneof![Just(0usize), Just(30), Just(CONTEXT)],
        at_once in 1usize..8,
        together in prop_oneof![Just(Together::Never), Just(Together::OfOneLength), Just(Together::Padded)],
    ) {
        let memory = Memory::with(|decoder| {
            decoder.slots = vec![[0; CONTEXT]; slots];
            decoder.movable = movable;
            decoder.together = together;
        });
        for group in all.chunks(at_once) {
            let door = memory.door.lock().unwrap();
            let running: Vec<Generation> = group.iter()
                .map(|asked| memory.submit(asked.account, &asked.prompt, asked.max_output))
                .collect();
            drop(door);
            for (asked, mut generation) in group.iter().zip(running) {
                if asked.leaves {
                    continue;
                }
                let (text, cached) = ended(&mut generation);
                prop_assert_eq!(text, alone(&asked.prompt, asked.max_output), "{:?}", asked);
                prop_assert!(asked.account.is_some() || cached == 0);
            }
        }
    }
}
