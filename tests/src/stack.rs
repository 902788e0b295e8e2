//! A whole Seatbelt in real processes: `seatbelt up` with its embedded server, on free ports, in a
//! temporary folder that survives crashes and restarts.

use std::{
    fmt::Write as _,
    path::PathBuf,
    process::Command,
    sync::Arc,
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Answer, Foreign,
    foreign::MODEL,
    process::{self, Process},
    until,
    wait::PATIENCE,
};

/// A declared key.
#[derive(Debug, Clone)]
pub struct Key {
    secret: String,
    account: String,
    id: String,
    lines: String,
}

impl Key {
    /// A key without caps, of account `acct-<name>`; its secret is `sk-<name>`.
    pub fn new(name: &str) -> Self {
        Self {
            secret: format!("sk-{name}"),
            account: format!("acct-{name}"),
            id: format!("key-{name}"),
            lines: String::new(),
        }
    }

    /// In another account.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self
    }

    /// With so many tokens in all.
    #[must_use]
    pub fn hard_cap(self, tokens: u64) -> Self {
        self.line(&format!("hard_cap = {tokens}"))
    }

    /// With its hard cap over the last so many seconds.
    #[must_use]
    pub fn rolling(self, seconds: u64) -> Self {
        self.line(&format!(
            "window = {{ kind = \"rolling\", seconds = {seconds} }}"
        ))
    }

    /// With another line of configuration.
    #[must_use]
    pub fn line(mut self, line: &str) -> Self {
        self.lines.push_str(line);
        self.lines.push('\n');
        self
    }

    fn toml(&self) -> String {
        format!(
            "[[entitlements.keys]]\nkey = {:?}\naccount_id = {:?}\nkey_id = {:?}\n{}\n",
            self.secret, self.account, self.id, self.lines
        )
    }
}

/// What is to be started.
#[derive(Debug, Default)]
pub struct Stack {
    keys: Vec<Key>,
    upstreams: String,
    neuron: Option<String>,
    nats: String,
    gateway: String,
    ledger: String,
    quiet: bool,
    environment: Vec<(String, String)>,
}

impl Stack {
    /// Nothing but the gateway, the ledger and the projector.
    pub fn new() -> Self {
        Self::default()
    }

    /// With a key.
    #[must_use]
    pub fn key(mut self, key: Key) -> Self {
        self.keys.push(key);
        self
    }

    /// With a foreign upstream.
    #[must_use]
    pub fn upstream(self, foreign: &Foreign) -> Self {
        self.upstream_at(&foreign.base_url())
    }

    /// With an upstream at an address.
    #[must_use]
    pub fn upstream_at(self, base_url: &str) -> Self {
        self.another_upstream("mock", MODEL, base_url)
    }

    /// With an upstream of another name, for another model.
    #[must_use]
    pub fn another_upstream(mut self, name: &str, model: &str, base_url: &str) -> Self {
        let _ = writeln!(
            self.upstreams,
            "[[upstreams]]\nname = {name:?}\nkind = \"openai\"\nbase_url = {base_url:?}\n\
             models = [{{ id = {model:?}, context = 8192, output = 4096, request_allowance = 8, price = {{ input = \"0.15\", output = \"0.60\" }} }}]\n",
        );
        self
    }

    /// With an upstream that speaks Anthropic's API.
    #[must_use]
    pub fn anthropic(mut self, foreign: &Foreign) -> Self {
        let _ = writeln!(
            self.upstreams,
            "[[upstreams]]\nname = \"anthropic\"\nkind = \"anthropic\"\nbase_url = {:?}\n\
             models = [{{ id = {MODEL:?}, context = 8192, output = 4096, price = {{ input = \"3\", output = \"15\" }} }}]\n",
            foreign.anthropic_url(),
        );
        self
    }

    /// With a neuron that serves the tiny model.
    #[must_use]
    pub fn neuron(mut self) -> Self {
        let model = crate::repository().join("models/tiny");
        self.neuron = Some(format!(
            "[neuron]\nlisten = \"127.0.0.1:0\"\n\
             models = [{{ id = \"tiny\", path = {model:?}, device = \"cpu\", slots = 8 }}]\n"
        ));
        self
    }

    /// With another line in `[gateway]`.
    #[must_use]
    pub fn gateway(mut self, line: &str) -> Self {
        self.gateway.push_str(line);
        self.gateway.push('\n');
        self
    }

    /// With another line in `[ledger]`.
    #[must_use]
    pub fn ledger(mut self, line: &str) -> Self {
        self.ledger.push_str(line);
        self.ledger.push('\n');
        self
    }

    /// With another line in `[nats]`.
    #[must_use]
    pub fn nats(mut self, line: &str) -> Self {
        self.nats.push_str(line);
        self.nats.push('\n');
        self
    }

    /// Logging nothing but trouble, as a service under load would.
    #[must_use]
    pub fn quiet(mut self) -> Self {
        self.quiet = true;
        self
    }

    /// With a variable in the environment of its processes.
    #[must_use]
    pub fn environment(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// Writes it into a new folder, started nowhere yet.
    pub fn write(self) -> Stopped {
        let folder = tempfile::Builder::new().prefix("seatbelt-").tempdir();
        let folder = folder.unwrap();
        let keys: String = self.keys.iter().map(Key::toml).collect();
        let text = format!(
            "[nats]\ndata_dir = \"data\"\n{}\n[ledger]\n{}\n\
             [gateway]\nlisten = \"127.0.0.1:0\"\nmetrics_listen = \"127.0.0.1:0\"\n{}\n{keys}{}{}",
            self.nats,
            self.ledger,
            self.gateway,
            self.upstreams,
            self.neuron.unwrap_or_default()
        );
        std::fs::write(folder.path().join("seatbelt.toml"), text).unwrap();
        Stopped {
            home: Arc::new(folder),
            quiet: self.quiet,
            environment: self.environment,
        }
    }

    /// Writes and starts it.
    pub async fn start(self) -> Running {
        self.write().start().await
    }
}

/// The binary `seatbelt` that everything here runs.
pub fn program() -> PathBuf {
    process::seatbelt()
}

/// A stack's folder, with nothing running on it.
#[derive(Debug, Clone)]
pub struct Stopped {
    home: Arc<TempDir>,
    quiet: bool,
    environment: Vec<(String, String)>,
}

impl Stopped {
    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.home.path().join("seatbelt.toml")
    }

    /// Where the embedded server keeps everything; made by its first start.
    pub fn data(&self) -> PathBuf {
        self.home.path().join("data")
    }

    /// Replaces a part of the configuration's text.
    #[track_caller]
    pub fn edit(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        assert!(text.contains(from), "no {from:?} in {text}");
        std::fs::write(self.config(), text.replace(from, to)).unwrap();
    }

    /// `seatbelt` with arguments on this configuration, not started yet; killed when dropped.
    pub fn command(&self, arguments: &[&str]) -> tokio::process::Command {
        let mut command = tokio::process::Command::new(process::seatbelt());
        command.current_dir(crate::repository());
        command.args(arguments).arg("--config").arg(self.config());
        if self.quiet && std::env::var_os("SEATBELT_LOG").is_none() {
            command.env("SEATBELT_LOG", "warn");
        }
        command
            .stdin(std::process::Stdio::null())
            .kill_on_drop(true);
        command
    }

    /// Runs `seatbelt` with arguments on this configuration to its end.
    pub async fn run(&self, arguments: &[&str]) -> std::process::Output {
        let mut command = self.command(arguments);
        let output = tokio::time::timeout(PATIENCE * 2, command.output()).await;
        output
            .unwrap_or_else(|_| panic!("seatbelt {arguments:?} does not end"))
            .unwrap()
    }

    /// What `seatbelt --version` prints.
    pub async fn version(&self) -> String {
        let mut command = tokio::process::Command::new(process::seatbelt());
        let output = command.arg("--version").output().await.unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    /// Starts it and waits until it serves.
    pub async fn start(&self) -> Running {
        match self.try_start().await {
            Ok(running) => running,
            Err(log) => panic!("seatbelt up did not come up:\n{log}"),
        }
    }

    /// Starts it; the log where it refuses.
    pub async fn try_start(&self) -> Result<Running, String> {
        self.try_start_role("up").await
    }

    /// Starts one role alone; what does not listen has an empty address.
    pub async fn start_role(&self, role: &str) -> Running {
        match self.try_start_role(role).await {
            Ok(running) => running,
            Err(log) => panic!("seatbelt {role} did not come up:\n{log}"),
        }
    }

    /// As [`Stopped::start_role`]; the log where it refuses.
    pub async fn try_start_role(&self, role: &str) -> Result<Running, String> {
        let mut command = Command::new(process::seatbelt());
        command.args([role, "--config"]).arg(self.config());
        command.current_dir(crate::repository());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        if self.quiet && std::env::var_os("SEATBELT_LOG").is_none() {
            command.env("SEATBELT_LOG", "warn");
        }
        let mut process = Process::spawn(&mut command);
        let line = process.line().await?;
        let ready: Value = serde_json::from_str(&line).unwrap();
        assert_eq!(ready["ready"], true, "{line}");
        let field = |name: &str| ready[name].as_str().unwrap_or_default().to_owned();
        Ok(Running {
            gateway: field("gateway"),
            metrics: field("metrics"),
            nats: field("nats"),
            http: crate::http_client(),
            stopped: self.clone(),
            process,
        })
    }

    /// `seatbelt audit verify` must pass.
    pub async fn verify(&self) {
        let output = self.run(&["audit", "verify"]).await;
        assert!(
            output.status.success(),
            "audit verify: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }

    /// Every event of the journal, as `seatbelt audit replay --json` prints them.
    pub async fn events(&self) -> Vec<Value> {
        let output = self.run(&["audit", "replay", "--json"]).await;
        assert!(
            output.status.success(),
            "audit replay: {}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = String::from_utf8(output.stdout).unwrap();
        let lines = lines
            .lines()
            .map(|line| serde_json::from_str(line).unwrap());
        lines.collect()
    }

    /// Events of one account and kind.
    pub async fn events_of(&self, account: &str, kind: &str) -> Vec<Value> {
        let mut events = self.events().await;
        events.retain(|event| event["account"] == account && event["kind"] == kind);
        events
    }

    fn server_pid(&self) -> Option<nix::unistd::Pid> {
        process::alive(&self.home.path().join("data/nats-server.pid"))
    }
}

/// A running stack; killed when dropped.
pub struct Running {
    /// The gateway's address.
    pub gateway: String,
    /// The metrics' address.
    pub metrics: String,
    /// The NATS server's address, without credentials.
    pub nats: String,
    http: reqwest::Client,
    stopped: Stopped,
    process: Process,
}

impl Running {
    /// Its folder and its tools, which work while it runs.
    pub fn home(&self) -> &Stopped {
        &self.stopped
    }

    /// Everything logged so far.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// The process id of `seatbelt`.
    pub fn pid(&self) -> u32 {
        self.process.pid().as_raw().unsigned_abs()
    }

    /// The process id of its `nats-server`.
    pub fn server_pid(&self) -> u32 {
        let pid = self.stopped.server_pid();
        pid.unwrap().as_raw().unsigned_abs()
    }

    /// Posts a body as it is, with a key's secret.
    pub async fn post(&self, path: &str, secret: &str, body: impl Into<reqwest::Body>) -> Answer {
        self.try_post(path, secret, body).await.unwrap()
    }

    /// Posts a body as it is; an error where the connection broke.
    pub async fn try_post(
        &self,
        path: &str,
        secret: &str,
        body: impl Into<reqwest::Body>,
    ) -> Result<Answer, reqwest::Error> {
        let request = self.http.post(format!("{}{path}", self.gateway));
        let request = request
            .bearer_auth(secret)
            .header("content-type", "application/json")
            .body(body);
        Answer::read(request.send().await?).await
    }

    /// A chat request to the foreign upstream's model.
    pub async fn chat(&self, secret: &str, max_tokens: u64) -> Answer {
        let body = chat_body(MODEL, max_tokens).to_string();
        self.post("/v1/chat/completions", secret, body).await
    }

    /// As [`Running::chat`]; an error where the connection broke.
    pub async fn try_chat(&self, secret: &str, max_tokens: u64) -> Result<Answer, reqwest::Error> {
        let body = chat_body(MODEL, max_tokens).to_string();
        self.try_post("/v1/chat/completions", secret, body).await
    }

    /// A GET with a key's secret.
    pub async fn get(&self, path: &str, secret: &str) -> Answer {
        let request = self.http.get(format!("{}{path}", self.gateway));
        let response = request.bearer_auth(secret).send().await.unwrap();
        Answer::read(response).await.unwrap()
    }

    pub async fn metrics_page(&self) -> String {
        let request = self.http.get(format!("{}/metrics", self.metrics));
        request.send().await.unwrap().text().await.unwrap()
    }

    /// The first cap in `/v1/key`, once `done` holds for it: the snapshot follows the journal.
    #[track_caller]
    pub fn cap<'a>(
        &'a self,
        secret: &'a str,
        what: &'a str,
        done: impl Fn(&Value) -> bool + 'a,
    ) -> impl Future<Output = Value> + 'a {
        let done = Arc::new(done);
        until(what, move || {
            let done = Arc::clone(&done);
            async move {
                let answer = self.get("/v1/key", secret).await;
                let cap = answer.is_ok().then(|| answer.json()["caps"][0].clone())?;
                done(&cap).then_some(cap)
            }
        })
    }

    /// A NATS client with the embedded server's own credentials.
    pub async fn nats_client(&self) -> async_nats::Client {
        let nats = seatbelt_bus::connect(&self.nats_url(), "test", PATIENCE).await;
        nats.unwrap().client().clone()
    }

    /// The embedded server's password.
    pub fn nats_password(&self) -> String {
        let url = self.nats_url();
        let login = url.split(['@', '/']).nth(2).unwrap();
        login.split(':').nth(1).unwrap().to_owned()
    }

    fn nats_url(&self) -> String {
        let text = std::fs::read(self.stopped.home.path().join("data/nats.json")).unwrap();
        let found: Value = serde_json::from_slice(&text).unwrap();
        found["url"].as_str().unwrap().to_owned()
    }

    /// Kills everything at once, as a power failure of the machine would.
    pub async fn kill_all(mut self) -> Stopped {
        let server = self.stopped.server_pid();
        self.process.signal(Signal::SIGKILL);
        if let Some(server) = server {
            // it may have ended in between, with its owner
            let _ = kill(server, Signal::SIGKILL);
        }
        self.process.ended().await;
        let stopped = self.stopped.clone();
        until("nats-server is gone", || async {
            stopped.server_pid().is_none().then_some(())
        })
        .await;
        stopped
    }

    /// Asks it to stop, without waiting.
    pub fn ask_to_stop(&self) {
        self.process.signal(Signal::SIGTERM);
    }

    /// Waits until it has ended by itself, whatever it says of it, with no process left.
    pub async fn ended(mut self, within: Duration) -> Stopped {
        self.process.ended_within(within).await;
        let stopped = self.stopped.clone();
        until("nats-server is gone", || async {
            stopped.server_pid().is_none().then_some(())
        })
        .await;
        stopped
    }

    /// Waits until it has ended in order, with no process left.
    pub async fn ended_in_order(mut self) -> Stopped {
        let server = self.stopped.server_pid();
        let status = self.process.ended().await;
        assert!(status.success(), "{status}:\n{}", self.log());
        let left = server.filter(|server| process::is_alive(server.as_raw()));
        assert_eq!(left, None, "nats-server is left");
        self.stopped.clone()
    }

    /// Stops it in order.
    pub async fn stop(self) -> Stopped {
        self.ask_to_stop();
        self.ended_in_order().await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.process.status().is_none() {
            let server = self.stopped.server_pid();
            self.process.signal(Signal::SIGKILL);
            server.map(|server| kill(server, Signal::SIGKILL));
            // its folder is removed next: let it be gone before
            let begun = Instant::now();
            while self.stopped.server_pid().is_some() && begun.elapsed().as_secs() < 5 {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

/// A chat request's body.
pub fn chat_body(model: &str, max_tokens: u64) -> Value {
    json!({
        "model": model,
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": max_tokens,
    })
}
