//! What the system gives this process: descriptors and memory.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Where nothing bounds the descriptors, as many as count in a plan.
const DESCRIPTORS_PLENTY: u64 = 1 << 20;

/// Raises the soft limit of descriptors to the hard one and returns it: the soft one is there for
/// programs that use `select`, which this one does not.
pub fn raise_descriptors() -> usize {
    let limits = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limits.maximum,
        maximum: limits.maximum,
    };
    let current = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => limits.maximum,
        Err(error) => {
            tracing::debug!(%error, "the soft limit of descriptors stays");
            limits.current
        }
    };
    current
        .unwrap_or(DESCRIPTORS_PLENTY)
        .min(DESCRIPTORS_PLENTY) as usize
}

/// Returns the memory that the control group allows, in bytes; `None` where it says nothing.
pub fn memory_allowed() -> Option<u64> {
    // Version 2 of control groups, as a container sees its own; then version 1, whose "nothing" is a
    // number near the largest.
    let paths = [
        "/sys/fs/cgroup/memory.max",
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
    ];
    let number = |path| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    paths
        .into_iter()
        .find_map(number)
        .filter(|bytes| *bytes < 1 << 60)
}

/// Returns the resident memory, in bytes; `None` where the system does not say.
pub fn memory_resident() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split_ascii_whitespace().nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// Returns how many descriptors are open; `None` where the system does not say.
pub fn descriptors_open() -> Option<usize> {
    Some(fs::read_dir("/proc/self/fd").ok()?.count())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn the_system_says_what_is_used() {
        let before = memory_resident().unwrap();
        let taken = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = memory_resident().unwrap();
        assert!(after >= before + (32 << 20), "{before} {after}");
        drop(taken);
        assert!(descriptors_open().unwrap() >= 3);
        assert!(raise_descriptors() >= 64);
    }
}
