//! What each process holds, sampled while faults are injected: memory, file descriptors, threads.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use harness::Node;
use tokio::task::JoinHandle;

/// What a process may hold at most, in MiB: the 280 MiB that payloads can take of a worker (`docs/architecture.md`), and what
/// it is beside them, unoptimized.
pub const MOST_MEBIBYTES: u64 = 400;
/// How many files it may have open at most: connections of a load like this one's, and of a thousand subscribers.
pub const MOST_FILES: u64 = 2_500;

/// The most that a process has held.
#[derive(Debug, Clone, Copy, Default)]
pub struct Peak {
    pub mebibytes: u64,
    pub files: u64,
    pub threads: u64,
}

type Peaks = Arc<Mutex<BTreeMap<&'static str, Peak>>>;

/// Samples until it is dropped.
pub struct Sampler {
    peaks: Peaks,
    task: JoinHandle<()>,
}

impl Sampler {
    pub fn start(nodes: Vec<(&'static str, Arc<Node>)>) -> Self {
        let peaks = Peaks::default();
        let kept = Arc::clone(&peaks);
        let task = tokio::spawn(async move {
            loop {
                for (name, node) in &nodes {
                    // Between two runs it holds nothing.
                    let Some(now) = node.id().and_then(held) else {
                        continue;
                    };
                    let mut peaks = kept.lock().unwrap();
                    let peak = peaks.entry(name).or_default();
                    peak.mebibytes = peak.mebibytes.max(now.mebibytes);
                    peak.files = peak.files.max(now.files);
                    peak.threads = peak.threads.max(now.threads);
                }
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        });
        Self { peaks, task }
    }

    pub fn peaks(&self) -> BTreeMap<&'static str, Peak> {
        self.peaks.lock().unwrap().clone()
    }
}

impl Drop for Sampler {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn held(id: u32) -> Option<Peak> {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).ok()?;
    let number = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    Some(Peak {
        // The kernel's own high-water mark, so that no peak between two samples is missed.
        mebibytes: number("VmHWM:")? / 1024,
        files: std::fs::read_dir(format!("/proc/{id}/fd")).ok()?.count() as u64,
        threads: number("Threads:")?,
    })
}
