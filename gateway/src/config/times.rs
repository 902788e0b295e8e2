//! Every time bound of the gateway, and how they stand to each other. Pauses between tries stand with what
//! is tried.

use std::time::Duration;

/// How long a request may take from reserve to last byte, where not configured.
pub const REQUEST_TIMEOUT_DEFAULT: Duration = Duration::from_secs(600);
/// How much longer than the request its hold lives, so that the settle arrives in time.
pub const HOLD_GRACE: Duration = Duration::from_secs(30);
/// How long a request waits for open holds to resolve, where not configured.
pub const BUDGET_WAIT_DEFAULT: Duration = Duration::from_secs(2);
/// The longest that may be configured, or asked for by a request.
pub(crate) const BUDGET_WAIT_MAX: Duration = Duration::from_secs(60);
/// How long the ledger may take to answer, waiting for budget not counted, where not configured.
pub const LEDGER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(5);
/// How long an orderly stop may take, where not configured: below the 30 s after which many a supervisor kills.
pub const DRAIN_DEFAULT: Duration = Duration::from_secs(25);
/// How long a pooled connection to an upstream may lie idle. Below the 5 s after which common Python
/// servers close theirs, so that a request is never written into a closing connection.
pub const POOL_IDLE_DEFAULT: Duration = Duration::from_secs(4);
/// How long connecting to an upstream may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the head of a request may be on its way, and a connection without one stay open, where not
/// configured. Above the 5 s for which common clients keep an idle connection.
pub const HEADER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);
/// How long a client may take nothing of what is written to it, where not configured.
pub const CLIENT_STALL_DEFAULT: Duration = Duration::from_secs(60);
/// Pause before connections are accepted again where the machine has no room for one.
pub(crate) const ACCEPT_AGAIN: Duration = Duration::from_secs(1);
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

// a hold outlives its request by a settle that is sent twice
const _: () = assert!(HOLD_GRACE.as_secs() >= 2 * LEDGER_TIMEOUT_DEFAULT.as_secs());
// ... and by the wait for what its neuron reports, and the settle after it
const _: () =
    assert!(HOLD_GRACE.as_secs() >= USAGE_EVENT_WAIT.as_secs() + LEDGER_TIMEOUT_DEFAULT.as_secs());
// what is cut short hears of its settle before it is dropped
const _: () = assert!(LAST_WORD.as_millis() < CUT_MIN.as_millis());
// what is cut short still waits for its neuron's report
const _: () = assert!(CUT_MAX.as_secs() > USAGE_EVENT_WAIT.as_secs());
// a caller waits for its own writes at least as often as it looks
const _: () = assert!(OWN_WRITES_WAIT.as_millis() > LOOK_AGAIN.as_millis());
// a reserve that may yet turn up is waited for less long than one that is known to be there
const _: () = assert!(UNKNOWN_MAX.as_secs() < FOLLOW_UP_MAX.as_secs());
// a stop that waits for nobody's partition is one that drains in time
const _: () =
    assert!(STOPPING_MAX.as_secs() + LEDGER_TIMEOUT_DEFAULT.as_secs() < DRAIN_DEFAULT.as_secs());
