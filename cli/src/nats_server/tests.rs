//! With the real program, each test in a folder of its own.

use std::error::Error;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_nats::jetstream;
use async_nats::jetstream::stream::{Config, Stream};
use futures::StreamExt as _;
use seatbelt_schemas::{names::Names, position::Partitions};
use serde_json::Value;
use tempfile::TempDir;

use super::orphan_guard::OrphanGuard;
use super::{
    ClusterOptions, LedgerOf, NatsServer, NatsServerError, NatsServerOptions, Password, command,
    find_nats_server,
};

type Outcome = Result<(), Box<dyn Error>>;

const PATIENCE: Duration = Duration::from_secs(30);

fn program() -> PathBuf {
    let set_up = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.deps/nats-server/nats-server");
    if set_up.is_file() {
        set_up
    } else {
        find_nats_server().unwrap()
    }
}

fn options(folder: &TempDir) -> NatsServerOptions {
    NatsServerOptions::new(program(), folder.path().join("data"))
}

/// What an earlier run on the folder started its server with: its configuration, and the lock.
fn as_started(folder: &TempDir) -> Result<(PathBuf, fs::File), Box<dyn Error>> {
    let data = folder.path().canonicalize()?.join("data");
    let alive = fs::File::open(data.join("nats-server.lock"))?;
    alive.lock()?;
    Ok((data.join("nats-server.conf"), alive))
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

/// As a tool would that has read the URL in `nats.json`.
async fn connect(url: &str) -> Result<async_nats::Client, Box<dyn Error>> {
    let address: async_nats::ServerAddr = url.parse()?;
    let (user, password) = address
        .username()
        .zip(address.password())
        .ok_or("no credentials")?;
    let options = async_nats::ConnectOptions::with_user_and_password(user.into(), password.into());
    Ok(options.connect(address).await?)
}

async fn one_message_stream(url: &str, replicas: usize) -> Result<Stream, Box<dyn Error>> {
    let context = jetstream::new(connect(url).await?);
    let config = Config {
        name: "KEPT".into(),
        subjects: vec!["kept".into()],
        num_replicas: replicas,
        ..Config::default()
    };
    let stream = context.create_stream(config).await?;
    context
        .publish("kept", "once acknowledged".into())
        .await?
        .await?;
    Ok(stream)
}

#[tokio::test]
async fn a_running_server_is_found_by_its_address_file() -> Outcome {
    let folder = TempDir::new()?;
    let data_dir = folder.path().join("with \"quotes\" and spaces");
    let server = NatsServer::start(NatsServerOptions::new(program(), data_dir.clone())).await?;

    let address = data_dir.join("nats.json");
    let told: Value = serde_json::from_slice(&fs::read(&address)?)?;
    assert_eq!(told["url"], server.url());
    connect(&server.url()).await?;
    assert!(
        async_nats::connect(server.host_url()).await.is_err(),
        "the password must be needed"
    );

    server.stop().await;
    assert!(!address.exists());
    Ok(())
}

#[tokio::test]
async fn secrets_are_private_and_stay_the_same() -> Outcome {
    let folder = TempDir::new()?;
    let server = NatsServer::start(options(&folder)).await?;
    let data_dir = folder.path().join("data");
    for file in ["nats.json", "nats.password", "nats-server.conf", "lock"] {
        assert_eq!(mode(&data_dir.join(file)), 0o600, "{file}");
    }
    let password = server.users.password.expose().to_owned();
    assert!(!format!("{server:?} {}", server.host_url()).contains(&password));
    assert!(!fs::read_to_string(server.log_path())?.contains(&password));
    server.stop().await;

    let again = NatsServer::start(options(&folder)).await?;
    assert_eq!(again.users.password.expose(), password);
    again.stop().await;
    Ok(())
}

#[tokio::test]
async fn acknowledged_messages_survive_a_kill() -> Outcome {
    let folder = TempDir::new()?;
    let mut server = NatsServer::start(options(&folder)).await?;
    one_message_stream(&server.url(), 1).await?;
    let url = server.url();
    server.kill().await;
    assert_eq!(server.pid(), None);

    server.restart().await?;
    assert_eq!(server.url(), url, "clients reconnect to the same address");
    let context = jetstream::new(connect(&server.url()).await?);
    let message = context.get_stream("KEPT").await?.get_raw_message(1).await?;
    assert_eq!(message.payload, "once acknowledged");
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_second_server_on_the_folder_is_refused_by_name() -> Outcome {
    let folder = TempDir::new()?;
    let first = NatsServer::start(options(&folder)).await?;
    let refused = NatsServer::start(options(&folder)).await.unwrap_err();
    assert!(
        matches!(refused, NatsServerError::InUse { .. }),
        "{refused}"
    );
    assert!(
        refused
            .to_string()
            .contains(&std::process::id().to_string()),
        "{refused}"
    );

    connect(&first.url()).await?;
    first.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_server_left_over_on_the_folder_is_stopped_first() -> Outcome {
    let folder = TempDir::new()?;
    NatsServer::start(options(&folder)).await?.stop().await;
    let (config, alive) = as_started(&folder)?;
    let mut left_over = command(&program(), &config, alive).spawn()?;

    let server = NatsServer::start(options(&folder)).await?;
    let ended = tokio::time::timeout(PATIENCE, left_over.wait()).await?;
    assert!(ended.is_ok());
    connect(&server.url()).await?;
    server.stop().await;
    Ok(())
}

/// A process that is only just becoming a server does not show its command line yet.
#[tokio::test]
async fn a_left_over_server_that_cannot_be_seen_yet_is_stopped_too() -> Outcome {
    let folder = TempDir::new()?;
    NatsServer::start(options(&folder)).await?.stop().await;
    let (config, alive) = as_started(&folder)?;
    let mut left_over = tokio::process::Command::new("/bin/sh")
        .args(["-c", "sleep 1; exec \"$0\" -c \"$1\""])
        .args([&program(), &config])
        .stdin(alive)
        .kill_on_drop(true)
        .spawn()?;

    let server = NatsServer::start(options(&folder)).await?;
    let ended = left_over.try_wait()?;
    assert!(
        ended.is_some(),
        "two servers ran on one folder at the same time"
    );
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_server_ends_when_its_owner_is_gone() -> Outcome {
    let folder = TempDir::new()?;
    NatsServer::start(options(&folder)).await?.stop().await;
    let (config, alive) = as_started(&folder)?;
    let mut server = command(&program(), &config, alive).spawn()?;
    let mut guard = OrphanGuard::over(server.id(), &config);

    guard.lose_owner();
    tokio::time::timeout(PATIENCE, server.wait()).await??;
    guard.dismiss();
    Ok(())
}

/// What a process of ours was started with; it is there from the first moment.
fn environment(pid: Option<u32>) -> String {
    let path = format!("/proc/{}/environ", pid.unwrap());
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

#[tokio::test]
async fn the_server_and_its_guard_know_nothing_of_our_environment_but_the_servers_memory() -> Outcome
{
    let folder = TempDir::new()?;
    let server = NatsServer::start(options(&folder)).await?;
    assert!(
        std::env::vars_os().count() > 1,
        "there is something to know"
    );
    assert_eq!(
        environment(server.pid()),
        format!("GOMEMLIMIT={}\0", super::MEMORY_BYTES)
    );
    let guard = environment(server.guard.pid());
    assert!(
        guard.starts_with("PATH=/usr/local/bin:") && !guard.contains("HOME="),
        "{guard:?}"
    );
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn what_lies_in_the_folder_is_for_its_owner_alone_also_from_before() -> Outcome {
    let folder = TempDir::new()?;
    NatsServer::start(options(&folder)).await?.stop().await;
    let data = folder.path().join("data");
    let ours = [
        "lock",
        "nats-server.lock",
        "nats-server.conf",
        "nats-server.log",
        "nats.password",
    ];
    for name in ours {
        fs::set_permissions(data.join(name), fs::Permissions::from_mode(0o644))?;
    }
    fs::write(data.join("theirs"), "")?;
    fs::set_permissions(data.join("theirs"), fs::Permissions::from_mode(0o644))?;
    let server = NatsServer::start(options(&folder)).await?;
    for name in ours.into_iter().chain(["nats.json"]) {
        assert_eq!(mode(&data.join(name)), 0o600, "{name}");
    }
    assert_eq!(mode(&data.join("theirs")), 0o644);
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_client_can_see_whether_writes_go_through_to_the_disk() -> Outcome {
    for sync_always in [true, false] {
        let folder = TempDir::new()?;
        let server = NatsServer::start(NatsServerOptions {
            sync_always,
            ..options(&folder)
        })
        .await?;
        let client = connect(&server.url()).await?;
        for service in ["JSZ", "VARZ"] {
            let reply = client
                .request(format!("$SYS.REQ.SERVER.PING.{service}"), "".into())
                .await?;
            let reply: Value = serde_json::from_slice(&reply.payload)?;
            let data = &reply["data"];
            let config = if service == "JSZ" {
                &data["config"]
            } else {
                &data["jetstream"]["config"]
            };
            assert_eq!(
                config["sync_always"].as_bool().unwrap_or(false),
                sync_always,
                "{service}"
            );
        }
        server.stop().await;
    }
    Ok(())
}

#[tokio::test]
async fn no_client_can_delete_a_protected_stream() -> Outcome {
    let folder = TempDir::new()?;
    let protected_streams = vec!["KEPT".to_owned()];
    let server = NatsServer::start(NatsServerOptions {
        protected_streams,
        ..options(&folder)
    })
    .await?;
    let mut stream = one_message_stream(&server.url(), 1).await?;

    let mut context = jetstream::new(connect(&server.url()).await?);
    context.set_timeout(Duration::from_secs(1));
    assert!(context.delete_stream("KEPT").await.is_err());
    assert!(context.get_stream("KEPT").await?.purge().await.is_err());
    assert!(
        context
            .get_stream("KEPT")
            .await?
            .delete_message(1)
            .await
            .is_err()
    );
    assert_eq!(stream.info().await?.state.messages, 1);
    server.stop().await;
    Ok(())
}

#[tokio::test]
async fn a_start_that_fails_shows_the_end_of_the_log() -> Outcome {
    let folder = TempDir::new()?;
    let taken = TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let failed = NatsServer::start(NatsServerOptions {
        port,
        ..options(&folder)
    })
    .await
    .unwrap_err();
    assert!(
        failed.to_string().contains("address already in use"),
        "{failed}"
    );
    assert!(!folder.path().join("data/nats.json").exists());
    Ok(())
}

/// A server as one whose leases are damaged: it never gets through them.
fn stuck_on_leases(folder: &TempDir) -> Result<PathBuf, Box<dyn Error>> {
    let (path, data) = (
        folder.path().join("stuck-server"),
        folder.path().join("data"),
    );
    let text = format!(
        "#!/bin/sh\n\
         if [ -d '{data}/jetstream/SEATBELT/streams/KV_SEATBELT_LEASES' ]; then\n\
         echo \"[1] [INF]   Starting restore for stream 'SEATBELT > KV_SEATBELT_LEASES'\" >> '{data}/nats-server.log'\n\
         exec sleep 600\n\
         fi\n\
         exec '{program}' \"$@\"\n",
        data = data.display(),
        program = program().display(),
    );
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o700))?;
    Ok(path)
}

#[tokio::test]
async fn a_server_that_never_gets_through_its_leases_begins_without_them() -> Outcome {
    let folder = TempDir::new()?;
    let damaged = folder
        .path()
        .join("data/jetstream/SEATBELT/streams/KV_SEATBELT_LEASES");
    fs::create_dir_all(damaged.join("msgs"))?;
    let server = NatsServer::start(NatsServerOptions {
        binary: stuck_on_leases(&folder)?,
        ledger: Some(LedgerOf {
            names: Names::default(),
            partitions: Partitions::try_from(1)?,
        }),
        ..options(&folder)
    })
    .await?;
    connect(&server.url()).await?;
    assert!(!damaged.exists());
    assert!(
        folder
            .path()
            .join("data/damaged/KV_SEATBELT_LEASES/msgs")
            .is_dir()
    );
    Ok(())
}

#[tokio::test]
async fn an_end_by_itself_is_noticed() -> Outcome {
    let folder = TempDir::new()?;
    let mut server = NatsServer::start(options(&folder)).await?;
    let pid = nix::unistd::Pid::from_raw(i32::try_from(server.pid().unwrap())?);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
    let status = tokio::time::timeout(PATIENCE, server.ended()).await?;
    assert!(!status.unwrap().success());
    Ok(())
}

#[tokio::test]
async fn three_nodes_keep_a_message_three_times() -> Outcome {
    let folder = TempDir::new()?;
    let ports = free_ports(3)?;
    let secret = Password::new("sharedbythree").unwrap();
    let mut nodes = Vec::new();
    for (index, cluster_port) in ports.iter().copied().enumerate() {
        let cluster = ClusterOptions {
            name: "three".into(),
            server_name: format!("node-{index}"),
            cluster_port,
            told_port: None,
            routes: ports
                .iter()
                .copied()
                .filter(|port| *port != cluster_port)
                .collect(),
            secret: secret.clone(),
        };
        let data_dir = folder.path().join(format!("node-{index}"));
        let options = NatsServerOptions::new(program(), data_dir);
        nodes.push(
            NatsServer::start(NatsServerOptions {
                cluster: Some(cluster),
                ..options
            })
            .await?,
        );
    }
    for node in &mut nodes {
        node.jetstream_ready(PATIENCE).await?;
    }
    assert_eq!(
        nodes_that_sync(&nodes[0].url(), 3).await?,
        ["node-0", "node-1", "node-2"]
    );
    let mut stream = one_message_stream(&nodes[0].url(), 3).await?;
    let cluster = stream.info().await?.cluster.clone().unwrap();
    assert_eq!(cluster.replicas.len(), 2, "a leader and two followers");

    nodes.remove(0).stop().await;
    let context = jetstream::new(connect(&nodes[0].url()).await?);
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            if let Ok(stream) = context.get_stream("KEPT").await
                && let Ok(message) = stream.get_raw_message(1).await
            {
                return message;
            }
            tokio::task::yield_now().await;
        }
    });
    assert_eq!(found.await?.payload, "once acknowledged");
    for node in nodes {
        node.stop().await;
    }
    Ok(())
}

/// Asks every node at once, as a client of one of them.
async fn nodes_that_sync(url: &str, nodes: usize) -> Result<Vec<String>, Box<dyn Error>> {
    let client = connect(url).await?;
    let inbox = client.new_inbox();
    let mut replies = client.subscribe(inbox.clone()).await?;
    client
        .publish_with_reply("$SYS.REQ.SERVER.PING.JSZ", inbox, "".into())
        .await?;
    let mut names = Vec::new();
    for _ in 0..nodes {
        let reply = tokio::time::timeout(PATIENCE, replies.next())
            .await?
            .ok_or("no reply")?;
        let reply: Value = serde_json::from_slice(&reply.payload)?;
        assert_eq!(reply["data"]["config"]["sync_always"], true, "{reply}");
        names.push(
            reply["server"]["name"]
                .as_str()
                .ok_or("no name")?
                .to_owned(),
        );
    }
    names.sort();
    Ok(names)
}

fn free_ports(count: usize) -> std::io::Result<Vec<u16>> {
    let held: Vec<TcpListener> = (0..count)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    held.iter()
        .map(|listener| Ok(listener.local_addr()?.port()))
        .collect()
}

#[test]
fn a_missing_program_is_an_error_with_the_remedy() {
    let missing =
        super::locate::first_file([PathBuf::from("/nowhere/nats-server")], []).unwrap_err();
    assert!(missing.to_string().contains("/nowhere/nats-server"));
    assert!(missing.to_string().contains("make setup"));
    let folder = super::nats_server_at(Path::new("/")).unwrap_err();
    assert!(folder.to_string().contains("nats.server"));
}

#[test]
fn a_secret_is_letters_and_digits() {
    assert!(Password::new("abc123").is_some());
    for text in ["", "a b", "a@b", "a\"b"] {
        assert!(Password::new(text).is_none(), "{text:?}");
    }
}
