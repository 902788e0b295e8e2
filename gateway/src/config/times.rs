//! Every time bound of the gateway, and how they stand to each other. Pauses between tries stand with what
//! is tried. Those in milliseconds may be set.

use std::time::Duration;

use seatbelt_schemas::setting::Setting;

/// How long a request may take from reserve to last byte.
pub const REQUEST_TIMEOUT_MS: Setting = Setting::new(10, 24 * 3_600_000, 600_000);
/// How long an upstream may send nothing once its answer has begun.
pub const UPSTREAM_IDLE_MS: Setting = Setting::new(10, 24 * 3_600_000, 300_000);
/// How much longer than the request its hold lives, so that the settle arrives in time.
pub const HOLD_GRACE: Duration = Duration::from_secs(30);
/// How long a request waits for open holds to resolve. A request may ask for another wait within the same bounds.
pub const BUDGET_WAIT_MS: Setting = Setting::new(0, 60_000, 2000);
pub(crate) const BUDGET_WAIT_MAX: Duration = Duration::from_millis(BUDGET_WAIT_MS.bounds().1);
/// How long the ledger may take to answer, waiting for budget not counted.
pub const LEDGER_TIMEOUT_MS: Setting = Setting::new(10, 60_000, 5000);
/// How long an orderly stop may take. The default is below the 30 s after which many a supervisor kills.
pub const DRAIN_MS: Setting = Setting::new(0, 600_000, 25_000);
/// How long a pooled connection to an upstream may lie idle. The default is below the 2 s after which gunicorn
/// closes its own, and the 5 s of other Python servers, so that a request is never written into a closing connection.
pub const POOL_IDLE_MS: Setting = Setting::new(0, 3_600_000, 1500);
/// How long connecting to an upstream may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head of a request may be on its way, and a connection without one stay open. The default is
/// above the 5 s for which common clients keep an idle connection.
pub const HEADER_TIMEOUT_MS: Setting = Setting::new(10, 600_000, 10_000);
/// How long a client may take nothing of what is written to it.
pub const CLIENT_STALL_MS: Setting = Setting::new(10, 3_600_000, 60_000);
/// How long a stream may be silent before its client is told that it goes on: many proxies and clients give a
/// silent connection up after 15 s or more.
pub const PING_DEFAULT: Duration = Duration::from_secs(10);
/// How long a client may take to send its body.
pub(crate) const BODY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a body that is refused is read all the same.
pub(crate) const DISCARD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a neuron may take to count a prompt.
pub(crate) const TOKENIZE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a neuron may take to hand out a tokenizer.
pub(crate) const RECIPE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a request waits for one that is being fetched.
pub(crate) const RECIPE_WAIT: Duration = Duration::from_secs(5);
/// How long a neuron's usage event is waited for once its connection ended early.
pub(crate) const USAGE_EVENT_WAIT: Duration = Duration::from_secs(5);
/// How long the bytes after the end of a stream are waited for, so that the connection can be used
/// again. The client has its whole answer by then.
pub(crate) const TRAILER_WAIT: Duration = Duration::from_millis(250);
/// How long a read waits for the snapshot to have what the caller was told before.
pub(crate) const OWN_WRITES_WAIT: Duration = Duration::from_secs(1);
/// Pause between two looks at the snapshot.
pub(crate) const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Longest any one look may take.
pub(crate) const LOOK_MAX: Duration = Duration::from_secs(3);
/// How long before the end of an orderly stop what is still in progress is cut short: time for a neuron's last
/// report and a settle. Half of the stop, where that is less, and no less than [`CUT_MIN`].
pub(crate) const CUT_MAX: Duration = Duration::from_secs(10);
pub(crate) const CUT_MIN: Duration = Duration::from_secs(2);
/// How long a stop waits, once it cuts requests short, for the word that their settles last.
pub(crate) const LAST_WORD: Duration = Duration::from_millis(1500);
/// How long a release is sent again in the background before the hold is left to expiry.
pub(crate) const FOLLOW_UP_MAX: Duration = Duration::from_secs(120);
/// How long the release of a reserve that nobody answered waits for that reserve to turn up.
pub(crate) const UNKNOWN_MAX: Duration = Duration::from_secs(5);
/// How long such a release is still sent again once the gateway stops.
pub(crate) const STOPPING_MAX: Duration = Duration::from_secs(3);

const LEDGER_S: u64 = LEDGER_TIMEOUT_MS.default_ms().as_secs();

// a hold outlives its request by a settle that is sent twice
const _: () = assert!(HOLD_GRACE.as_secs() >= 2 * LEDGER_S);
// ... and by the wait for what its neuron reports, and the settle after it
const _: () = assert!(HOLD_GRACE.as_secs() >= USAGE_EVENT_WAIT.as_secs() + LEDGER_S);
// what is cut short hears of its settle before it is dropped
const _: () = assert!(LAST_WORD.as_millis() < CUT_MIN.as_millis());
// what is cut short still waits for its neuron's report
const _: () = assert!(CUT_MAX.as_secs() > USAGE_EVENT_WAIT.as_secs());
// a caller waits for its own writes at least as often as it looks
const _: () = assert!(OWN_WRITES_WAIT.as_millis() > LOOK_AGAIN.as_millis());
// a reserve that may yet turn up is waited for less long than one that is known to be there
const _: () = assert!(UNKNOWN_MAX.as_secs() < FOLLOW_UP_MAX.as_secs());
// a stop that waits for nobody's partition is one that drains in time
const _: () = assert!(STOPPING_MAX.as_secs() + LEDGER_S < DRAIN_MS.default_ms().as_secs());
