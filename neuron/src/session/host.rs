//! How much memory is free where the caches of a model lie, as far as anybody says.

use std::fs;

use crate::config::{Device, ModelConfig};

/// What the machine says of its memory.
const MACHINE: &str = "/proc/meminfo";
/// Which group this process belongs to, whose limit is the one that kills it.
const GROUP: &str = "/proc/self/cgroup";
const GROUPS: &str = "/sys/fs/cgroup";

/// Bytes that are free on the host; on a GPU, what the model may take there. Nothing where nobody says.
pub(super) fn free(config: &ModelConfig) -> Option<usize> {
    match config.device {
        Device::Cuda => config.cuda.memory_bytes_max,
        Device::Cpu => {
            let machine = fs::read_to_string(MACHINE).ok();
            let available = machine.and_then(|text| available(&text));
            available.into_iter().chain(left_in_group()).min()
        }
    }
}

fn available(meminfo: &str) -> Option<usize> {
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kilobytes: usize = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kilobytes.checked_mul(1024)
}

/// What is left in the group with the narrowest limit, of this process's and those around it.
fn left_in_group() -> Option<usize> {
    let told = fs::read_to_string(GROUP).ok()?;
    let path = told.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let folders = std::path::Path::new(path).ancestors();
    let left = folders.filter_map(|folder| {
        let read = |name| fs::read_to_string(std::path::Path::new(GROUPS).join(folder).join(name));
        left(
            &read("memory.max").ok()?,
            &read("memory.current").ok()?,
            &read("memory.stat").unwrap_or_default(),
        )
    });
    left.min()
}

/// What a group may still take. Its pages of files that nobody uses now give way.
fn left(most: &str, now: &str, stat: &str) -> Option<usize> {
    let most: usize = most.trim().parse().ok()?;
    let now: usize = now.trim().parse().ok()?;
    let idle = stat
        .lines()
        .find_map(|line| line.strip_prefix("inactive_file "));
    let idle: usize = idle.and_then(|idle| idle.trim().parse().ok()).unwrap_or(0);
    Some(most.saturating_sub(now.saturating_sub(idle)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_machine_says_is_understood() {
        let text =
            "MemTotal:       24689764 kB\nMemFree:         1 kB\nMemAvailable:   16000000 kB\n";
        assert_eq!(available(text), Some(16_384_000_000));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: many kB\n"), None);
    }

    #[test]
    fn a_group_without_a_limit_says_nothing() {
        assert_eq!(left("max\n", "5\n", ""), None);
        assert_eq!(
            left("100\n", "70\n", "anon 1\ninactive_file 20\n"),
            Some(50)
        );
        assert_eq!(left("100\n", "170\n", ""), Some(0));
    }
}
