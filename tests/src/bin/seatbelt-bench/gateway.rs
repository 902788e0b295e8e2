//! The gateway's price: direct, cap off, cap on, in turns, so that all meet the same machine.

use std::time::Duration;

use seatbelt_tests::{Key, Stack};

use crate::{
    load::{Load, Seen, Target},
    millis, resident_mib, upstream,
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
    let chat = |base: &str, secret| Target {
        url: format!("{base}/v1/chat/completions"),
        secret,
    };
    let targets = [
        ("direct", chat(&format!("http://{address}"), None)),
        ("gateway, cap off", chat(&stack.gateway, None)),
        ("gateway, cap on", chat(&stack.gateway, Some("sk-bench"))),
    ];
    println!("\ngateway, durable (fsync before every answer of the ledger)");
    println!(
        "{:<18} {:>5} {:>9} {:>9} {:>9} {:>9} {:>9} {:>7} {:>9}",
        "path", "conns", "p50 ms", "p99 ms", "req/s", "+p50 ms", "p50 x", "req/s x", "rss MiB"
    );
    for connections in CONNECTIONS {
        let load = Load::new(connections);
        let mut seen: Vec<Seen> = targets.iter().map(|_| Seen::none()).collect();
        let mut resident = vec![0.0; targets.len()];
        for _ in 0..ROUNDS {
            for (n, (_, target)) in targets.iter().enumerate() {
                load.burst(target, WARM_UP).await;
                seen[n].add(&load.burst(target, BURST).await);
                resident[n] = resident_mib(stack.pid());
            }
        }
        for (n, (name, _)) in targets.iter().enumerate() {
            row(name, connections, &seen[n], &seen[0], resident[n]);
        }
    }
    println!(
        "nats-server: {:.0} MiB resident",
        resident_mib(stack.server_pid())
    );
    stack.stop().await;
}

fn row(name: &str, connections: usize, seen: &Seen, direct: &Seen, resident: f64) {
    let p50 = millis(&seen.latencies, 0.5);
    let base = millis(&direct.latencies, 0.5);
    println!(
        "{name:<18} {connections:>5} {p50:>9.3} {:>9.3} {:>9.0} {:>9.3} {:>9.2} {:>7.2} {:>9}",
        millis(&seen.latencies, 0.99),
        seen.per_second(),
        p50 - base,
        p50 / base,
        seen.per_second() / direct.per_second(),
        if name == "direct" {
            "-".to_owned()
        } else {
            format!("{resident:.0}")
        },
    );
}
