//! Whether a paying request would be let through now, and if not, why: shown in `/health/ready` and,
//! by cause, in the metrics. What it is found out from is not known here.

use std::fmt::{self, Write};

/// What a reason is about: a label of the metrics, so there are few.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// NATS is not reached.
    Nats,
    /// What keeps the journal is full, frozen, or does not answer.
    Store,
    /// The server takes no message as large as a commit.
    Payload,
    /// A partition without a writer that serves: no lease, or a journal in doubt.
    Partition,
}

impl Cause {
    const ALL: [Self; 4] = [Self::Nats, Self::Store, Self::Payload, Self::Partition];

    fn as_str(self) -> &'static str {
        match self {
            Self::Nats => "nats",
            Self::Store => "store",
            Self::Payload => "payload",
            Self::Partition => "partition",
        }
    }
}

/// Why some paying requests would be turned away.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reason {
    /// What it is about.
    pub cause: Cause,
    /// For people, with the remedy.
    pub text: String,
}

/// How full the store is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Bytes kept.
    pub used: u64,
    /// Bytes that it may keep.
    pub max: u64,
}

/// How it stands now.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Readiness {
    /// Why paying requests would be turned away; empty where none would.
    pub reasons: Vec<Reason>,
    /// What will be a reason soon unless somebody acts.
    pub warnings: Vec<String>,
    /// How full the store is, where that is known.
    pub room: Option<Room>,
    /// How far the clock of this process is ahead of the server's, ms, by partition, where it is known.
    pub clock_offsets_ms: Vec<(String, i64)>,
    /// How many partitions have a projection of each kind that stands still.
    pub stalled: Vec<(&'static str, usize)>,
}

impl Readiness {
    /// The reasons, for people.
    pub fn texts(&self) -> Vec<&str> {
        self.reasons.iter().map(|reason| &*reason.text).collect()
    }

    /// As Prometheus text.
    pub(crate) fn write_metrics(&self, out: &mut String) -> fmt::Result {
        let name = "seatbelt_gateway_not_ready_reasons";
        writeln!(
            out,
            "# HELP {name} Reasons why paying requests would be turned away now, by cause.\n# TYPE {name} gauge"
        )?;
        for cause in Cause::ALL {
            let count = self.reasons.iter().filter(|one| one.cause == cause).count();
            writeln!(out, "{name}{{cause=\"{}\"}} {count}", cause.as_str())?;
        }
        let name = "seatbelt_gateway_clock_offset_ms";
        writeln!(
            out,
            "# HELP {name} How far this clock is ahead of the server's, by partition.\n# TYPE {name} gauge"
        )?;
        for (partition, offset_ms) in &self.clock_offsets_ms {
            writeln!(out, "{name}{{partition=\"{partition}\"}} {offset_ms}")?;
        }
        let name = "seatbelt_gateway_projections_stalled";
        writeln!(
            out,
            "# HELP {name} Partitions whose feed or snapshots stand still.\n# TYPE {name} gauge"
        )?;
        for (component, count) in &self.stalled {
            writeln!(out, "{name}{{component=\"{component}\"}} {count}")?;
        }
        let Some(room) = self.room else {
            return Ok(());
        };
        for (what, help, bytes) in [
            ("used", "Bytes that the store keeps.", room.used),
            ("max", "Bytes that the store may keep.", room.max),
        ] {
            let name = format!("seatbelt_gateway_store_bytes_{what}");
            writeln!(
                out,
                "# HELP {name} {help}\n# TYPE {name} gauge\n{name} {bytes}"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_metrics_tell_the_causes_apart() {
        let reason = |cause| Reason {
            cause,
            text: "x".to_owned(),
        };
        let readiness = Readiness {
            reasons: vec![
                reason(Cause::Partition),
                reason(Cause::Store),
                reason(Cause::Partition),
            ],
            warnings: Vec::new(),
            room: Some(Room { used: 7, max: 9 }),
            clock_offsets_ms: vec![("01".to_owned(), -3)],
            stalled: vec![("feed", 2), ("snapshots", 0)],
        };
        let mut text = String::new();
        readiness.write_metrics(&mut text).unwrap();
        for line in [
            "seatbelt_gateway_not_ready_reasons{cause=\"partition\"} 2",
            "seatbelt_gateway_not_ready_reasons{cause=\"store\"} 1",
            "seatbelt_gateway_not_ready_reasons{cause=\"nats\"} 0",
            "seatbelt_gateway_clock_offset_ms{partition=\"01\"} -3",
            "seatbelt_gateway_projections_stalled{component=\"feed\"} 2",
            "seatbelt_gateway_store_bytes_used 7",
            "seatbelt_gateway_store_bytes_max 9",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
