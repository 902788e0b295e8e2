//! How often an answer says that tools of the provider were called.
//!
//! It tells so in two ways, of which the larger counts: by numbers in a report of usage, and by the calls that stand
//! in it themselves. A number is read as strictly as a count of tokens: where something else stands in its place, how
//! often is not known. Not here: what a call costs, and whether anybody asked for the tool.

use std::collections::{BTreeMap, BTreeSet};

use seatbelt_schemas::{amount::TOOL_CALLS_MAX, json};
use serde_json::{Value, value::RawValue};

/// Most calls that are told apart in an answer; more than may be asked for.
const SEEN_MAX: usize = 4096;
/// Most tools whose counts are kept.
const TOOLS_MAX: usize = 32;
/// Most characters of a name that are kept.
const NAME_CHARS_MAX: usize = 256;

/// Calls of the provider's tools that have a fee, as an answer tells them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CallsTold {
    /// As many at least.
    pub least: u64,
    /// Something stands in the place of a count: it may have been any number.
    pub is_odd: bool,
}

/// Calls as an answer tells them, of all tools.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Called {
    /// As reports count them, by the tool's name.
    counted: BTreeMap<String, u64>,
    /// Those that stand in the answer, each once.
    seen: BTreeSet<Call>,
    /// Calls that found nothing but an error, by what they call themselves: no provider charges for these.
    failed: BTreeSet<String>,
    odd: bool,
}

/// One that stands in an answer.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Call {
    tool: String,
    /// As it calls itself, or its place where it does not.
    name: String,
    /// Which of those in one list that call themselves the same.
    nth: usize,
}

/// What calls of one list call themselves.
#[derive(Debug, Default)]
pub(super) struct Names(BTreeMap<String, usize>);

impl Called {
    /// Takes a count of a report in.
    pub(super) fn count(&mut self, tool: &str, raw: &RawValue) {
        match raw.get().parse::<u64>() {
            Ok(0) => {}
            Ok(calls) if calls <= TOOL_CALLS_MAX => {
                let tool = kept(tool);
                let has_room = self.counted.len() < TOOLS_MAX || self.counted.contains_key(&tool);
                self.odd |= !has_room;
                if has_room {
                    let most = self.counted.entry(tool).or_default();
                    *most = calls.max(*most);
                }
            }
            _ => self.odd = true,
        }
    }

    /// Something stands where counts should.
    pub(super) fn odd(&mut self) {
        self.odd = true;
    }

    /// Takes a call in that stands in the answer, in its place among others.
    pub(super) fn see(&mut self, tool: &str, id: Option<&RawValue>, place: u64, among: &mut Names) {
        let name = named(id).unwrap_or_else(|| format!("#{place}"));
        let same = among.0.entry(name.clone()).or_default();
        let call = Call {
            tool: kept(tool),
            name,
            nth: *same,
        };
        *same += 1;
        let has_room = self.seen.len() < SEEN_MAX;
        self.odd |= !has_room && !self.seen.contains(&call);
        if has_room {
            self.seen.insert(call);
        }
    }

    /// The call of that name found nothing but an error.
    pub(super) fn fail(&mut self, id: Option<&RawValue>) {
        if let Some(name) = named(id).filter(|_| self.failed.len() < SEEN_MAX) {
            self.failed.insert(name);
        }
    }

    /// How often tools were called that have a fee.
    pub(super) fn told(&self, is_charged: impl Fn(&str) -> bool) -> CallsTold {
        let counted = self.counted.iter().filter(|(tool, _)| is_charged(tool));
        let counted = counted.fold(0u64, |sum, (_, calls)| sum.saturating_add(*calls));
        let seen = self.seen.iter().filter(|call| {
            let has_failed = self.failed.contains(&call.name);
            is_charged(&call.tool) && !has_failed
        });
        CallsTold {
            least: counted.max(seen.count() as u64),
            is_odd: self.odd,
        }
    }
}

/// What a call calls itself; nothing where that is empty.
fn named(id: Option<&RawValue>) -> Option<String> {
    let id = id?.get();
    let name = match json::from_str(id) {
        Ok(Value::String(name)) => name,
        _ => id.to_owned(),
    };
    Some(kept(&name)).filter(|name| !name.is_empty())
}

fn kept(name: &str) -> String {
    name.chars().take(NAME_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    fn told(called: &Called) -> (u64, bool) {
        let told = called.told(|tool| tool == "web_search");
        (told.least, told.is_odd)
    }

    #[test]
    fn a_count_is_a_whole_number_that_can_be_or_none() {
        for (count, expected) in [
            ("0", (0, false)),
            ("3", (3, false)),
            ("1048576", (1 << 20, false)),
            ("1048577", (0, true)),
            ("2199023255552", (0, true)),
            ("\"3\"", (0, true)),
            ("3.0", (0, true)),
            ("3.5", (0, true)),
            ("-1", (0, true)),
            ("1e20", (0, true)),
            ("true", (0, true)),
            ("[3]", (0, true)),
            ("{}", (0, true)),
        ] {
            let mut called = Called::default();
            called.count("web_search", raw(count));
            assert_eq!(told(&called), expected, "{count}");
        }
    }

    #[test]
    fn a_call_counts_once_and_one_without_a_name_by_its_place() {
        let mut called = Called::default();
        let list = |ids: &[&'static str], called: &mut Called| {
            let mut names = Names::default();
            for (id, place) in ids.iter().zip(0..) {
                called.see("web_search", Some(raw(id)), place, &mut names);
            }
        };
        list(&["\"a\"", "\"b\""], &mut called);
        list(&["\"a\""], &mut called);
        assert_eq!(told(&called), (2, false));
        let mut called = Called::default();
        list(&["\"\"", "\"\"", "\"\""], &mut called);
        list(&["\"\""], &mut called);
        assert_eq!(told(&called), (3, false));
        let mut called = Called::default();
        list(&["\"x\"", "\"x\"", "7", "7"], &mut called);
        assert_eq!(told(&called), (4, false), "one name for several");
        called.fail(Some(raw("7")));
        called.fail(None);
        assert_eq!(told(&called), (2, false));
    }

    #[test]
    fn what_is_kept_is_bounded_and_says_so() {
        let mut called = Called::default();
        let mut names = Names::default();
        for place in 0..=SEEN_MAX as u64 {
            assert!(!called.odd);
            called.see("web_search", None, place, &mut names);
        }
        assert_eq!(told(&called), (SEEN_MAX as u64, true));
        let mut called = Called::default();
        for n in 0..=TOOLS_MAX {
            assert!(!called.odd);
            called.count(&format!("{n}"), raw("1"));
        }
        assert!(called.odd);
    }
}
