//! What the roles are told behind their backs: another time, another address of a host, or none that ever comes. See `told.c`.

use std::{fs::File, os::unix::fs::FileExt, process::Command, time::Duration};

use crate::{Node, Scratch};

/// The host whose address can be changed.
pub const MOVING_HOST: &str = "moving.test";
/// Hosts under this domain are looked up for ever.
pub const HANGING_HOSTS: &str = "hangs.test";

/// The library that is loaded into the roles, and the files that it reads.
pub struct Told {
    directory: Scratch,
}

impl Told {
    /// Compiles it.
    #[must_use]
    pub fn compile() -> Self {
        let directory = Scratch::new();
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/src/told.c");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O2", "-o"])
            .arg(directory.path().join("told.so"))
            .args([source, "-ldl"])
            .output()
            .expect("a C compiler is needed, to step the clock of a process: install gcc and libc6-dev");
        assert!(
            compiled.status.success(),
            "{}",
            String::from_utf8_lossy(&compiled.stderr)
        );
        Self { directory }
    }

    /// The settings that load it.
    #[must_use]
    pub fn settings(&self) -> [(&'static str, String); 2] {
        let path = self.directory.path();
        [
            ("LD_PRELOAD", path.join("told.so").display().to_string()),
            ("FAULTS_TOLD", path.display().to_string()),
        ]
    }

    /// Steps a process's clock to so far from the true time.
    pub fn step_clock(&self, node: &Node, ahead: bool, by: Duration) {
        let seconds = i64::try_from(by.as_secs()).expect("a step that fits");
        self.tell(node, 0, if ahead { seconds } else { -seconds });
    }

    /// Lets [`MOVING_HOST`] be `127.0.0.host` for a process.
    pub fn move_host(&self, node: &Node, host: u8) {
        self.tell(node, 8, host.into());
    }

    /// Whether a process's look-ups of [`MOVING_HOST`] hang. Those that do go on once none are to.
    pub fn let_lookups_hang(&self, node: &Node, hang: bool) {
        self.tell(node, 16, hang.into());
    }

    fn tell(&self, node: &Node, offset: u64, what: i64) {
        let id = node.id().expect("the node runs").to_string();
        File::options()
            .write(true)
            .open(self.directory.path().join(id))
            .and_then(|file| file.write_all_at(&what.to_ne_bytes(), offset))
            .expect("the node has made its file");
    }
}
