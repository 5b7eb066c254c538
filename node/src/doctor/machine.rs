use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use super::{Finding, Verdict};
use crate::cli::human_bytes;
use crate::profile::usable_cores;

/// A small model trains in this much memory; below it a node is of little use.
const MEMORY_BYTES_MIN: u64 = 512 << 20;

/// The processor's name as it gives it.
pub(crate) fn cpu_name() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let field = |name: &str| {
        let line = info.lines().find(|line| line.starts_with(name))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

pub(super) fn processor() -> Finding {
    let cores = usable_cores();
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let installed = info.lines().filter(|line| line.starts_with("processor")).count().max(cores);
    let features = features();
    let data = json!({
        "name": cpu_name(), "cores": cores, "cores_installed": installed, "features": features,
    });
    let limited = if cores < installed {
        format!(" of {installed} (a quota or an affinity limits this process)")
    } else {
        String::new()
    };
    let list = if features.is_empty() { "none known".to_owned() } else { features.join(" ") };
    let cores = if cores == 1 { "1 core".to_owned() } else { format!("{cores} cores") };
    let text = format!("{}: {cores}{limited}; vector instructions: {list}", cpu_name());
    let slow =
        cfg!(target_arch = "x86_64") && !(features.contains(&"avx2") && features.contains(&"fma"));
    if slow {
        Finding::new("processor", Verdict::Warn, text)
            .advice("this machine works, several times slower than one with AVX2 and FMA")
    } else {
        Finding::new("processor", Verdict::Good, text)
    }
    .data(data)
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    [
        ("avx2", is_x86_feature_detected!("avx2")),
        ("fma", is_x86_feature_detected!("fma")),
        ("avx512f", is_x86_feature_detected!("avx512f")),
        ("avx512bf16", is_x86_feature_detected!("avx512bf16")),
        ("avx512fp16", is_x86_feature_detected!("avx512fp16")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(target_arch = "aarch64")]
fn features() -> Vec<&'static str> {
    [
        ("neon", std::arch::is_aarch64_feature_detected!("neon")),
        ("bf16", std::arch::is_aarch64_feature_detected!("bf16")),
        ("sve", std::arch::is_aarch64_feature_detected!("sve")),
    ]
    .into_iter()
    .filter_map(|(name, present)| present.then_some(name))
    .collect()
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn features() -> Vec<&'static str> {
    Vec::new()
}

/// Memory of the machine and of the control group that this process is in.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    total_bytes: u64,
    available_bytes: u64,
    /// Limit of the control group and what is left of it.
    group: Option<(u64, u64)>,
}

impl Memory {
    /// Reads the present state.
    pub(crate) fn read() -> Self {
        let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let (total_bytes, available_bytes) = meminfo(&info);
        let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let group = group_folders(&membership)
            .iter()
            .filter_map(|folder| group_limit(folder))
            // A limit beyond the machine's memory is none.
            .filter(|(limit, _)| *limit < total_bytes)
            .min_by_key(|(_, left)| *left);
        Self { total_bytes, available_bytes, group }
    }

    /// What this process can take without pushing others out or being killed.
    pub(crate) fn usable_bytes(&self) -> u64 {
        self.group.map_or(self.available_bytes, |(_, left)| left.min(self.available_bytes))
    }
}

pub(super) fn memory() -> Finding {
    let memory = Memory::read();
    let usable = memory.usable_bytes();
    let mut text = format!("{} usable of {}", human_bytes(usable), human_bytes(memory.total_bytes));
    if let Some((limit, _)) = memory.group {
        text += &format!("; a control group limits this process to {}", human_bytes(limit));
    }
    let data = json!({
        "usable_bytes": usable,
        "total_bytes": memory.total_bytes,
        "group_limit_bytes": memory.group.map(|(limit, _)| limit),
    });
    if usable < MEMORY_BYTES_MIN {
        Finding::new("memory", Verdict::Warn, text)
            .advice("end other programs, or give the container more; only tiny models fit")
    } else {
        Finding::new("memory", Verdict::Good, text)
    }
    .data(data)
}

pub(super) fn graphics() -> Finding {
    let nvidia = Path::new("/proc/driver/nvidia/version").exists();
    let amd = Path::new("/dev/kfd").exists();
    let text = match (nvidia, amd) {
        (true, _) => "an NVIDIA processor and driver are here; this version trains on the CPU only",
        (_, true) => "an AMD processor and driver are here; this version trains on the CPU only",
        _ => "none with a driver; this version trains on the CPU only",
    };
    let verdict = if nvidia || amd { Verdict::Note } else { Verdict::Good };
    Finding::new("graphics", verdict, text).data(json!({ "nvidia": nvidia, "amd": amd }))
}

/// Total and available bytes.
fn meminfo(text: &str) -> (u64, u64) {
    let bytes = |name: &str| -> Option<u64> {
        let line = text.lines().find(|line| line.starts_with(name))?;
        let kib: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
        kib.checked_mul(1024)
    };
    let total = bytes("MemTotal:").unwrap_or(0);
    (total, bytes("MemAvailable:").or_else(|| bytes("MemFree:")).unwrap_or(total))
}

/// Folders of the memory control groups that this process is in, innermost first, for both versions
/// of control groups. Inside a container the path may not exist; its ancestors do.
fn group_folders(membership: &str) -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for line in membership.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(controllers), Some(path)) = (parts.next(), parts.next(), parts.next())
        else {
            continue;
        };
        let root = if controllers.is_empty() {
            Path::new("/sys/fs/cgroup")
        } else if controllers.split(',').any(|name| name == "memory") {
            Path::new("/sys/fs/cgroup/memory")
        } else {
            continue;
        };
        let folder = root.join(path.trim_start_matches('/'));
        folders.extend(folder.ancestors().take_while(|f| f.starts_with(root)).map(Path::to_owned));
    }
    folders
}

/// Limit and what is left, where the group has a limit. File cache that can be dropped counts as
/// left.
fn group_limit(folder: &Path) -> Option<(u64, u64)> {
    let number = |names: [&str; 2]| -> Option<u64> {
        let text = names.iter().find_map(|name| fs::read_to_string(folder.join(name)).ok())?;
        text.trim().parse().ok()
    };
    let limit = number(["memory.max", "memory.limit_in_bytes"])?;
    let used = number(["memory.current", "memory.usage_in_bytes"])?;
    let stat = fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
    let cache = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(name, _)| matches!(*name, "inactive_file" | "total_inactive_file"))
        .and_then(|(_, value)| value.parse().ok())
        .unwrap_or(0);
    Some((limit, limit.saturating_sub(used.saturating_sub(cache))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_as_the_system_writes_it() {
        let text = "MemTotal:       16384 kB\nMemFree: 100 kB\nMemAvailable:    8192 kB\n";
        assert_eq!(meminfo(text), (16 << 20, 8 << 20));
        assert_eq!(meminfo(""), (0, 0));
        assert_eq!(meminfo("MemTotal: x kB"), (0, 0));
    }

    #[test]
    fn the_group_with_the_least_left_counts() {
        let folders = group_folders("0::/a/b\n4:cpu,memory:/c\n5:cpuset:/d\n");
        let folders: Vec<_> = folders.iter().map(|f| f.display().to_string()).collect();
        assert_eq!(
            folders,
            [
                "/sys/fs/cgroup/a/b",
                "/sys/fs/cgroup/a",
                "/sys/fs/cgroup",
                "/sys/fs/cgroup/memory/c",
                "/sys/fs/cgroup/memory",
            ]
        );

        let dir = tempfile::tempdir().expect("temporary folder is writable");
        let write = |name: &str, text: &str| {
            fs::write(dir.path().join(name), text).expect("folder is writable");
        };
        write("memory.max", "max\n");
        write("memory.current", "600\n");
        assert_eq!(group_limit(dir.path()), None);
        write("memory.max", "1000\n");
        write("memory.stat", "anon 500\ninactive_file 100\n");
        assert_eq!(group_limit(dir.path()), Some((1000, 500)));

        let memory = Memory { total_bytes: 9, available_bytes: 8, group: Some((5, 3)) };
        assert_eq!(memory.usable_bytes(), 3);
    }
}
