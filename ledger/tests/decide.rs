//! The ledger's decisions as stories: given commands, when one more comes, then these events.
//!
//! Every story runs through the partition writer without I/O, and at its end its whole journal is
//! proved by the audit. Events are told in short lines, see `story::tell`.
#![allow(clippy::unwrap_used)]

#[path = "simulation/oracle.rs"]
mod oracle;
#[path = "decide/story.rs"]
mod story;

#[path = "decide/audit.rs"]
mod audit;
#[path = "decide/caps.rs"]
mod caps;
#[path = "decide/exchange.rs"]
mod exchange;
#[path = "decide/idempotency.rs"]
mod idempotency;
#[path = "decide/life.rs"]
mod life;
#[path = "decide/lowered.rs"]
mod lowered;
#[path = "decide/many_runs.rs"]
mod many_runs;
#[path = "decide/multiplier.rs"]
mod multiplier;
#[path = "decide/mutants.rs"]
mod mutants;
#[path = "decide/nested_runs.rs"]
mod nested_runs;
#[path = "decide/rests.rs"]
mod rests;
#[path = "decide/runs.rs"]
mod runs;
#[path = "decide/strays.rs"]
mod strays;
#[path = "decide/teams.rs"]
mod teams;
#[path = "decide/tool_calls.rs"]
mod tool_calls;
#[path = "decide/waiting.rs"]
mod waiting;
#[path = "decide/windows.rs"]
mod windows;
