//! What the kernel knows of this process and machine: metrics with the names that Prometheus's own clients use, and facts for a bug report.
//!
//! Reads `/proc/self`, `/proc` and `/etc/os-release`; what cannot be read is left out.

use crate::metrics::{Exposition, Metric};
use crate::os::process::Stat;
use serde_json::{Value, json};
use std::fs;

/// Adds this process's metrics.
pub(super) fn add(out: &mut Exposition) {
    if let Some(stat) = fs::read_to_string("/proc/self/stat")
        .ok()
        .and_then(|text| Usage::parse(&text))
    {
        let ticks = rustix::param::clock_ticks_per_second() as f64;
        out.add(Metric::ProcessCpu, &[], stat.cpu as f64 / ticks);
        out.add(
            Metric::ProcessMemory,
            &[],
            stat.resident.saturating_mul(rustix::param::page_size() as u64),
        );
        out.add(Metric::ProcessThreads, &[], stat.threads);
        if let Some(boot) = boot_time() {
            out.add(Metric::ProcessStart, &[], boot as f64 + stat.start as f64 / ticks);
        }
    }
    if let Ok(open) = fs::read_dir("/proc/self/fd") {
        // One of them is this look's own.
        out.add(Metric::ProcessFds, &[], open.count().saturating_sub(1));
    }
    if let Some(most) = rustix::process::getrlimit(rustix::process::Resource::Nofile).current {
        out.add(Metric::ProcessMaxFds, &[], most);
    }
}

/// What is taken from `/proc/self/stat`.
#[derive(Debug, PartialEq, Eq)]
struct Usage {
    /// Clock ticks of user and system time.
    cpu: u64,
    threads: u64,
    /// Clock ticks after the boot.
    start: u64,
    /// Pages.
    resident: u64,
}

impl Usage {
    fn parse(text: &str) -> Option<Self> {
        let stat = Stat::of(text)?;
        Some(Self {
            cpu: stat.field(14)? + stat.field(15)?,
            threads: stat.field(20)?,
            start: stat.started()?,
            resident: stat.field(24)?,
        })
    }
}

/// Seconds of Unix time.
fn boot_time() -> Option<u64> {
    let text = fs::read_to_string("/proc/stat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("btime "))?;
    line.trim().parse().ok()
}

/// The machine: kernel, distribution, processors, memory.
pub(super) fn machine() -> Value {
    let kernel = rustix::system::uname();
    let word = |text: &std::ffi::CStr| text.to_string_lossy().into_owned();
    let first = |file: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let field = |file: &str, name: &str| {
        let text = fs::read_to_string(file).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|rest| rest.trim_matches([':', ' ', '\t', '"', '=']).to_owned())
    };
    json!({
        "kernel": format!("{} {}", word(kernel.sysname()), word(kernel.release())),
        "kernelVersion": word(kernel.version()),
        "architecture": word(kernel.machine()),
        "distribution": field("/etc/os-release", "PRETTY_NAME"),
        "processors": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "memoryTotal": field("/proc/meminfo", "MemTotal"),
        "memoryAvailable": field("/proc/meminfo", "MemAvailable"),
        "uptimeSeconds": first("/proc/uptime").split(' ').next(),
        "load": first("/proc/loadavg"),
        "fuse": std::path::Path::new("/dev/fuse").exists(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_is_read_whatever_the_name() {
        let line =
            "7 (a) b (c) S 1 7 7 0 -1 4194560 1 2 3 4 500 60 0 0 20 0 9 0 12345 1000000 321 18446744073709551615 1";
        let stat = Usage::parse(line);
        let expected = Usage {
            cpu: 560,
            threads: 9,
            start: 12345,
            resident: 321,
        };
        assert_eq!(stat, Some(expected));
        assert_eq!(Usage::parse("7 (a"), None);
        assert_eq!(Usage::parse("7 (a) S 1"), None);
    }

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let mut out = Exposition::default();
        add(&mut out);
        let text = out.text();
        for name in [
            "process_resident_memory_bytes",
            "process_threads",
            "process_open_fds",
            "process_start_time_seconds",
        ] {
            let line = text.lines().find(|line| line.starts_with(&format!("{name} ")));
            let value: f64 = line.and_then(|line| line.split(' ').nth(1)?.parse().ok()).unwrap();
            assert!(value > 0.0, "{name}");
        }
        assert!(machine()["kernel"].as_str().unwrap().starts_with("Linux"));
    }
}
