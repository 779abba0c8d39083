//! Filters while there is no thread to be had on which they could be read. Alone in its process, for it takes memory from all of it.

#![cfg(target_os = "linux")]

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use shared::{
    Filter,
    filter::{Filters, Refused, Subject, Verdict},
};

/// The address space that this process has, in bytes.
fn taken() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let size = status.lines().find_map(|line| line.strip_prefix("VmSize:"));
    let kilobytes: u64 = size.unwrap().trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes * 1024
}

#[test]
fn that_there_is_no_thread_says_nothing_of_a_filter() {
    let subject = Subject::new("order.placed", None, None, "{}");
    let asked = [Filter::from_trusted("type == 'order.placed'")];
    let filters = Filters::default();
    // No filter was read yet: the stack of a thread that has ended would be used again.
    let (soft, hard) = getrlimit(Resource::RLIMIT_AS).unwrap();
    setrlimit(Resource::RLIMIT_AS, taken() + 16 * 1024 * 1024, hard).unwrap();
    let refused = Filter::parse("type == 'order.placed'");
    let not_ready = filters.ready(&asked).map(|ready| ready.compiled());
    setrlimit(Resource::RLIMIT_AS, soft, hard).unwrap();

    assert!(matches!(refused, Err(Refused::NotNow(_))), "{refused:?}");
    assert!(not_ready.is_err(), "{not_ready:?}");
    // Nothing of it is remembered.
    let ready = filters.ready(&asked).unwrap();
    assert_eq!(ready.compiled(), 1);
    assert_eq!(ready.judge(0, &subject, 100), Verdict::Matches);
    assert!(Filter::parse("type == 'order.placed'").is_ok());
}
