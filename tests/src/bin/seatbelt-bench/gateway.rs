//! The gateway's price: direct, cap off, cap on, in turns, so that all meet the same machine.

use std::time::Duration;

use seatbelt_tests::{Key, Running, Stack};

use crate::{
    load::{Load, Seen, Target},
    millis, processor_time, resident_mib, upstream,
};

const CONNECTIONS: [usize; 2] = [1, 16];
const ROUNDS: u32 = 3;
const BURST: Duration = Duration::from_secs(2);
const WARM_UP: Duration = Duration::from_millis(500);

pub(crate) async fn measure() {
    let address = upstream::start();
    let stack = Stack::new()
        .upstream_at(&format!("http://{address}/v1"))
        .key(Key::new("bench").hard_cap(1 << 60))
        .gateway("require_auth = false")
        .quiet()
        .start()
        .await;
    let chat = |base: &str, secret: Option<&str>| Target {
        url: format!("{base}/v1/chat/completions"),
        secret: secret.map(str::to_owned),
    };
    let targets = [
        ("direct", chat(&format!("http://{address}"), None)),
        ("gateway, cap off", chat(&stack.gateway, None)),
        ("gateway, cap on", chat(&stack.gateway, Some("sk-bench"))),
    ];
    println!("\ngateway, durable (fsync before every answer of the ledger)");
    println!(
        "{:<18} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9} {:>8} {:>8}",
        "path",
        "conns",
        "p50 ms",
        "p99 ms",
        "req/s",
        "+p50 ms",
        "p50 x",
        "req/s x",
        "rss MiB",
        "cpu us",
        "nats us"
    );
    for connections in CONNECTIONS {
        let load = Load::new(connections);
        let mut seen: Vec<Seen> = targets.iter().map(|_| Seen::none()).collect();
        let mut cost = vec![Cost::default(); targets.len()];
        for _ in 0..ROUNDS {
            for (n, (_, target)) in targets.iter().enumerate() {
                load.burst(target, WARM_UP).await;
                let began = Cost::so_far(&stack);
                seen[n].add(&load.burst(target, BURST).await);
                cost[n].add(&Cost::so_far(&stack), &began);
            }
        }
        for (n, (name, _)) in targets.iter().enumerate() {
            row(name, connections, &seen[n], &seen[0], &cost[n]);
        }
    }
    println!(
        "nats-server: {:.0} MiB resident",
        resident_mib(stack.server_pid())
    );
    stack.stop().await;
}

/// What the processes used: the gateway with all that is in its process, and its nats-server.
#[derive(Clone, Default)]
struct Cost {
    resident_mib: f64,
    gateway: Duration,
    server: Duration,
}

impl Cost {
    fn so_far(stack: &Running) -> Self {
        Self {
            resident_mib: resident_mib(stack.pid()),
            gateway: processor_time(stack.pid()),
            server: processor_time(stack.server_pid()),
        }
    }

    fn add(&mut self, now: &Self, began: &Self) {
        self.resident_mib = now.resident_mib;
        self.gateway += now.gateway - began.gateway;
        self.server += now.server - began.server;
    }
}

fn row(name: &str, connections: usize, seen: &Seen, direct: &Seen, cost: &Cost) {
    let p50 = millis(&seen.latencies, 0.5);
    let base = millis(&direct.latencies, 0.5);
    let told = |what: f64| match name {
        "direct" => "-".to_owned(),
        _ => format!("{what:.0}"),
    };
    // what follows a request, the projector's part above all, is counted with the next ones
    let each = |used: Duration| used.as_secs_f64() * 1e6 / seen.latencies.len() as f64;
    println!(
        "{name:<18} {connections:>5} {p50:>9.3} {:>9.3} {:>9.0} {:>9.3} {:>9.2} {:>7.2} {:>9} {:>8} {:>8}",
        millis(&seen.latencies, 0.99),
        seen.per_second(),
        p50 - base,
        p50 / base,
        seen.per_second() / direct.per_second(),
        told(cost.resident_mib),
        told(each(cost.gateway)),
        told(each(cost.server)),
    );
}
