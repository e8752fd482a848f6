//! What the system gives this process: descriptors and memory.

use std::fs;
use std::path::{Path, PathBuf};

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

/// Returns the memory that the control groups of this process allow, in bytes; `None` where they say
/// nothing.
pub fn memory_allowed() -> Option<u64> {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    memory_allowed_in(Path::new("/sys/fs/cgroup"), &membership)
}

/// Returns the lowest limit among the groups that `membership` names (cgroups(7): in each line a number,
/// controllers and a path) and all above them, up to `root`. A container sees its own group as the root
/// and may be told a path that it does not see; a service of systemd has its limit in a group below.
fn memory_allowed_in(root: &Path, membership: &str) -> Option<u64> {
    let limits = membership.lines().filter_map(|line| {
        let (_, line) = line.split_once(':')?;
        let (controllers, path) = line.split_once(':')?;
        let (root, file) = if controllers.is_empty() {
            (root.to_owned(), "memory.max")
        } else if controllers.split(',').any(|name| name == "memory") {
            (root.join("memory"), "memory.limit_in_bytes")
        } else {
            return None;
        };
        let group = root.join(path.trim_start_matches('/'));
        let groups = group.ancestors().take_while(|it| it.starts_with(&root));
        Some(groups.map(|it| it.join(file)).collect::<Vec<PathBuf>>())
    });
    let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // In version 1 "nothing" is a number near the largest.
    limits
        .flatten()
        .filter_map(number)
        .filter(|bytes| *bytes < 1 << 60)
        .min()
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

    #[test]
    fn the_lowest_limit_of_all_groups_above_counts() {
        let name = format!("tidegate-groups-{}", std::process::id());
        let root = std::env::temp_dir().join(name);
        let write = |file: &str, text: &str| {
            let path = root.join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let allowed = |membership| memory_allowed_in(&root, membership);
        let service = "0::/system.slice/tidegate.service\n";
        assert_eq!(allowed(service), None, "nobody says anything");
        write("system.slice/tidegate.service/memory.max", "max\n");
        assert_eq!(allowed(service), None);
        write("system.slice/tidegate.service/memory.max", "2147483648\n");
        assert_eq!(allowed(service), Some(2 << 30));
        write("system.slice/memory.max", "1073741824\n");
        assert_eq!(allowed(service), Some(1 << 30), "that of all services");
        // A container: its own group is the root, whatever path the host calls it by.
        write("memory.max", "134217728\n");
        assert_eq!(allowed("0::/\n"), Some(128 << 20));
        assert_eq!(allowed("0::/docker/0123abcd\n"), Some(128 << 20));
        // Version 1, beside other controllers.
        let first = "5:cpu,cpuacct:/a\n4:memory:/a\n";
        write("memory/memory.limit_in_bytes", "9223372036854771712\n");
        assert_eq!(allowed(first), None);
        write("memory/a/memory.limit_in_bytes", "67108864\n");
        assert_eq!(allowed(first), Some(64 << 20));
        fs::remove_dir_all(&root).unwrap();
    }
}
