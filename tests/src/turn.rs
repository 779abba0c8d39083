//! Turns: tests that load the machine run one at a time, whichever process they are in.

use std::fs::{File, OpenOptions};

/// Held by the one test whose turn it is.
pub struct Turn {
    _lock: File,
}

impl Turn {
    /// Waits for this test's turn. The lock is a file in the temporary directory, and ends with the process at the latest.
    pub async fn wait() -> Self {
        let path = std::env::temp_dir().join("triggers-tests.turn");
        let locked = tokio::task::spawn_blocking(move || {
            let file = OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)?;
            file.lock()?;
            std::io::Result::Ok(file)
        });
        let lock = locked
            .await
            .expect("waiting for a lock does not panic")
            .expect("the temporary directory holds a lock file");
        Self { _lock: lock }
    }
}
