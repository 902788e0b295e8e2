//! One connection to NATS, shared by all that a process does there.
//!
//! It reconnects by itself, without end, and tells its users at once when it was lost and when the
//! server denied something, so that nobody waits out a timeout for an answer that cannot come.
//! Credentials are taken out of the address before anything else sees it.

use std::{sync::Arc, time::Duration};

use async_nats::{Client, ConnectErrorKind, ConnectOptions, ServerAddr, jetstream};
use bytes::Bytes;
use futures::{FutureExt, StreamExt, future::BoxFuture};
use thiserror::Error;
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout, timeout_at},
};
use tracing::debug;

mod identity;
mod troubles;

use identity::Login;
pub use identity::{Identity, InvalidLogin};
pub use troubles::Denied;
pub use troubles::{NoAnswer, Troubles};
use troubles::{Signals, note};

/// How long the server may take to accept a connection.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// How long any request may wait for its reply, unless it says otherwise.
const REQUEST_MAX: Duration = Duration::from_secs(5);
/// Longest pause between two attempts to reconnect. Short, for a gateway serves nothing meanwhile.
const RECONNECT_PAUSE_MAX: Duration = Duration::from_millis(500);
/// First pause between two attempts to reconnect.
const RECONNECT_PAUSE_MIN: Duration = Duration::from_millis(20);
/// Pause between two attempts of the first connection.
const CONNECT_PAUSE: Duration = Duration::from_millis(100);
/// Messages that a subscription holds for a reader that lags; more are dropped by the client.
const SUBSCRIPTION_MESSAGES_MAX: usize = 16 * 1024;
/// How often the server is asked whether it is still there; two missed answers end the connection.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Why there is no connection, by what to do next.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// The address is not one: correct it.
    #[error(
        "nats url is not valid: {detail}; write nats://user:password@host:port, more servers separated by commas"
    )]
    InvalidUrl {
        /// What is wrong, without the address itself: it may hold a password.
        detail: String,
    },
    /// The server does not let us in: correct the credentials.
    #[error(
        "{servers} refused the credentials: check user and password in nats.url, or the role's own in nats.users"
    )]
    Denied {
        /// The servers, without credentials.
        servers: String,
    },
    /// The server has no JetStream for us: enable it.
    #[error(
        "{servers} has no jetstream for this account: enable jetstream in the server's configuration"
    )]
    NoJetStream {
        /// The servers, without credentials.
        servers: String,
    },
    /// The server lets us in, and not do what everybody does: grant it.
    #[error("{servers} lets this user in, but not ask for its jetstream: check its permissions")]
    NotPermitted {
        /// The servers, without credentials.
        servers: String,
        /// What it does not let us do.
        #[source]
        denied: Denied,
    },
    /// Nobody answers: start the server, or try again.
    #[error("cannot reach nats at {servers}: start it, or correct nats.url")]
    Unreachable {
        /// The servers, without credentials.
        servers: String,
        /// What went wrong last.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A connection to NATS; clones share it.
#[derive(Debug, Clone)]
pub struct Nats {
    client: Client,
    jetstream: jetstream::Context,
    signals: watch::Receiver<Signals>,
    servers: Arc<str>,
}

impl Nats {
    /// The plain client.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// JetStream, with a bound on every request.
    pub fn jetstream(&self) -> &jetstream::Context {
        &self.jetstream
    }

    /// The servers it was pointed at, without credentials.
    pub fn servers(&self) -> &str {
        &self.servers
    }

    /// Whether the connection stands right now.
    pub fn is_connected(&self) -> bool {
        self.client.connection_state() == async_nats::connection::State::Connected
    }

    /// Waits until the server has processed all that was sent before, subscriptions too. Whether it
    /// did within a few seconds.
    pub async fn settled(&self) -> bool {
        timeout(REQUEST_MAX, self.round_trip())
            .await
            .is_ok_and(|there| there)
    }

    /// As [`Nats::settled`], for a process that ends: a connection that is gone has nothing to flush.
    pub async fn flush(&self) {
        if !self.settled().await {
            debug!("nats connection not flushed");
        }
    }

    async fn round_trip(&self) -> bool {
        let inbox = self.client.new_inbox();
        let Ok(mut echo) = self.client.subscribe(inbox.clone()).await else {
            return false;
        };
        let sent = self.client.publish(inbox, Bytes::new()).await;
        sent.is_ok() && echo.next().await.is_some()
    }

    /// What comes of asking something by publishing to `subject`, unless the server denies it: whose
    /// answer would never come. On the heap, for it is awaited within much else.
    pub fn unless_denied<'a, T>(
        &self,
        subject: &str,
        asking: impl Future<Output = T> + Send + 'a,
    ) -> BoxFuture<'a, Result<T, Denied>> {
        let (mut troubles, subject) = (self.troubles(), subject.to_owned());
        let asked = async move {
            tokio::select! {
                biased;
                answer = asking => Ok(answer),
                denied = troubles.denied(|denied| denied.is_about("publish", &subject)) => Err(denied),
            }
        };
        asked.boxed()
    }

    /// From now on.
    pub fn troubles(&self) -> Troubles {
        Troubles::from_now_on(&self.signals)
    }
}

/// Connects to the servers of `url`, trying for `patience` while nobody answers. `name` is how the
/// server's own tools list this connection.
pub async fn connect(url: &str, name: &str, patience: Duration) -> Result<Nats, ConnectError> {
    connect_as(url, &Identity::default(), name, patience).await
}

/// As [`connect`], as somebody: a login of `who` comes before the one in the address.
pub async fn connect_as(
    url: &str,
    who: &Identity,
    name: &str,
    patience: Duration,
) -> Result<Nats, ConnectError> {
    let target = Target::parse(url)?.with(who);
    let deadline = Instant::now() + patience;
    let (sender, signals) = watch::channel(Signals::default());
    let sender = Arc::new(sender);
    loop {
        let error = match target.try_connect(name, &sender, &signals, deadline).await {
            Ok(nats) => return Ok(nats),
            Err(error) => error,
        };
        let again = matches!(error, ConnectError::Unreachable { .. });
        if !again || Instant::now() + CONNECT_PAUSE >= deadline {
            return Err(error);
        }
        sleep(CONNECT_PAUSE).await;
    }
}

/// Whether a server is there that lets `who` in and has JetStream for it, asked once. Nothing of it is
/// logged, for one that is only coming up is asked again and again.
pub async fn is_ready(url: &str, who: &Identity, within: Duration) -> bool {
    let asked = ConnectOptions::new().request_timeout(Some(within));
    let target = Target::parse(url).map(|target| target.with(who));
    let Ok((target, options)) = target.and_then(|target| {
        let options = target.introduced(asked)?;
        Ok((target, options))
    }) else {
        return false;
    };
    match options.connect(target.addresses).await {
        Ok(client) => jetstream::new(client).query_account().await.is_ok(),
        Err(_) => false,
    }
}

/// Addresses and credentials, apart.
struct Target {
    addresses: Vec<ServerAddr>,
    servers: Arc<str>,
    login: Login,
    /// What answers are sent to, where it is not what the client uses by itself.
    inbox: Option<String>,
}

impl Target {
    fn parse(url: &str) -> Result<Self, ConnectError> {
        let mut addresses = Vec::new();
        let mut login = Login::None;
        for part in url
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            let (address, found) = split_login(part)?;
            addresses.push(address);
            if found != Login::None && login == Login::None {
                login = found;
            }
        }
        if addresses.is_empty() {
            return Err(invalid_url("it is empty"));
        }
        let shown: Vec<String> = addresses
            .iter()
            .map(|address| format!("{}:{}", address.host(), address.port()))
            .collect();
        Ok(Self {
            addresses,
            servers: shown.join(",").into(),
            login,
            inbox: None,
        })
    }

    fn with(mut self, who: &Identity) -> Self {
        if who.login != Login::None {
            self.login = who.login.clone();
        }
        self.inbox.clone_from(&who.inbox);
        self
    }

    async fn try_connect(
        &self,
        name: &str,
        sender: &Arc<watch::Sender<Signals>>,
        signals: &watch::Receiver<Signals>,
        deadline: Instant,
    ) -> Result<Nats, ConnectError> {
        let options = self.introduced(options(name, Arc::clone(sender)))?;
        let dialled = timeout_at(deadline, options.connect(self.addresses.clone())).await;
        let client = dialled
            .map_err(|elapsed| self.unreachable(elapsed))?
            .map_err(|error| match error.kind() {
                ConnectErrorKind::AuthorizationViolation | ConnectErrorKind::Authentication => {
                    let servers = self.servers.to_string();
                    ConnectError::Denied { servers }
                }
                _ => self.unreachable(error),
            })?;
        let mut jetstream = jetstream::new(client.clone());
        jetstream.set_timeout(REQUEST_MAX);
        self.check_jetstream(&jetstream, signals, deadline).await?;
        Ok(Nats {
            client,
            jetstream,
            signals: signals.clone(),
            servers: Arc::clone(&self.servers),
        })
    }

    async fn check_jetstream(
        &self,
        jetstream: &jetstream::Context,
        signals: &watch::Receiver<Signals>,
        deadline: Instant,
    ) -> Result<(), ConnectError> {
        use jetstream::{ErrorCode, context::AccountErrorKind};
        let mut troubles = Troubles::from_now_on(signals);
        let asked = tokio::select! {
            biased;
            asked = timeout_at(deadline, jetstream.query_account()) => asked,
            denied = troubles.denied(|_| true) => {
                let servers = self.servers.to_string();
                return Err(ConnectError::NotPermitted { servers, denied });
            }
        };
        let Err(error) = asked.map_err(|elapsed| self.unreachable(elapsed))? else {
            return Ok(());
        };
        let disabled = match error.kind() {
            AccountErrorKind::JetStream(error) => {
                let code = error.error_code();
                code == ErrorCode::JETSTREAM_NOT_ENABLED
                    || code == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT
            }
            _ => false,
        };
        if disabled {
            let servers = self.servers.to_string();
            return Err(ConnectError::NoJetStream { servers });
        }
        Err(self.unreachable(error))
    }

    /// With who it is.
    fn introduced(&self, options: ConnectOptions) -> Result<ConnectOptions, ConnectError> {
        let options = match &self.inbox {
            Some(prefix) => options.custom_inbox_prefix(prefix),
            None => options,
        };
        Ok(match &self.login {
            Login::None => options,
            Login::Token(token) => options.token(token.clone()),
            Login::User(user, password) => {
                options.user_and_password(user.clone(), password.clone())
            }
            Login::Nkey(seed) => options.nkey(seed.clone()),
            Login::Credentials(text) => options
                .credentials(text)
                .map_err(|_| invalid_url("its credentials file does not parse"))?,
        })
    }

    fn unreachable(
        &self,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> ConnectError {
        ConnectError::Unreachable {
            servers: self.servers.to_string(),
            source: source.into(),
        }
    }
}

fn invalid_url(detail: &str) -> ConnectError {
    ConnectError::InvalidUrl {
        detail: detail.to_owned(),
    }
}

fn split_login(part: &str) -> Result<(ServerAddr, Login), ConnectError> {
    let parsed: ServerAddr = part
        .parse()
        // the parser's own words may quote the address
        .map_err(|_| invalid_url("it does not parse as an address of a nats server"))?;
    let login = match (parsed.username(), parsed.password()) {
        (None, _) => Login::None,
        (Some(token), None) => Login::Token(percent_decoded(token)?),
        (Some(user), Some(password)) => {
            Login::User(percent_decoded(user)?, percent_decoded(password)?)
        }
    };
    let mut bare = parsed.into_inner();
    let cleared = bare.set_username("").and_then(|()| bare.set_password(None));
    cleared.map_err(|()| invalid_url("it has no host"))?;
    let address =
        ServerAddr::from_url(bare).map_err(|_| invalid_url("its scheme is not nats or tls"))?;
    Ok((address, login))
}

fn percent_decoded(text: &str) -> Result<String, ConnectError> {
    let broken = || invalid_url("user or password has a broken %-escape");
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        let (high, low) = (digit().ok_or_else(broken)?, digit().ok_or_else(broken)?);
        bytes.push(u8::try_from(high * 16 + low).map_err(|_| broken())?);
    }
    String::from_utf8(bytes).map_err(|_| broken())
}

fn options(name: &str, signals: Arc<watch::Sender<Signals>>) -> ConnectOptions {
    ConnectOptions::new()
        .name(name)
        .connection_timeout(HANDSHAKE_MAX)
        .request_timeout(Some(REQUEST_MAX))
        .subscription_capacity(SUBSCRIPTION_MESSAGES_MAX)
        .ping_interval(PING_EVERY)
        .reconnect_delay_callback(reconnect_pause)
        .event_callback(move |event| {
            note(&signals, &event);
            async {}
        })
}

fn reconnect_pause(attempt: usize) -> Duration {
    if attempt <= 1 {
        return Duration::ZERO;
    }
    let doublings = u32::try_from(attempt - 2).unwrap_or(u32::MAX).min(10);
    (RECONNECT_PAUSE_MIN * 2_u32.pow(doublings)).min(RECONNECT_PAUSE_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error_of(url: &str) -> String {
        match Target::parse(url) {
            Ok(_) => panic!("{url} must not parse"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn credentials_leave_the_address_and_every_message() {
        let target = Target::parse("nats://me:p%40ss@127.0.0.1:4333, nats://other:4222").unwrap();
        assert_eq!(&*target.servers, "127.0.0.1:4333,other:4222");
        assert!(target.login == Login::User("me".to_owned(), "p@ss".to_owned()));
        for address in &target.addresses {
            assert_eq!(address.username(), None);
            assert_eq!(address.password(), None);
        }
        for bad in [
            "nats://me:secret@",
            "ftp://me:secret@host",
            "nats://me:secret%zz@host",
        ] {
            assert!(!error_of(bad).contains("secret"), "{bad}");
        }
        assert!(error_of(" , ").contains("empty"));
    }

    #[test]
    fn a_user_without_password_is_a_token() {
        let target = Target::parse("nats://t0ken@127.0.0.1").unwrap();
        assert!(target.login == Login::Token("t0ken".to_owned()));
    }

    #[test]
    fn pauses_between_attempts_grow_to_a_bound() {
        assert_eq!(reconnect_pause(1), Duration::ZERO);
        assert_eq!(reconnect_pause(2), RECONNECT_PAUSE_MIN);
        assert_eq!(reconnect_pause(usize::MAX), RECONNECT_PAUSE_MAX);
    }
}
