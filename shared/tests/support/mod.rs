//! What several tests need.

use std::path::{Path, PathBuf};

/// A directory that is removed when it is dropped.
pub(crate) struct Directory(PathBuf);

impl Directory {
    /// A new, empty one.
    pub(crate) fn new() -> Self {
        let path = std::env::temp_dir().join(format!("triggers-test-{}", uuid::Uuid::now_v7()));
        std::fs::create_dir(&path).expect("a new directory");
        Self(path)
    }

    /// A copy of the files that a process killed right now would leave.
    pub(crate) fn as_after_a_crash(&self) -> Self {
        let copy = Self::new();
        let files = std::fs::read_dir(&self.0).expect("the directory");
        let mut files: Vec<PathBuf> = files.map(|entry| entry.expect("an entry").path()).collect();
        // The shared memory of the write-ahead log is rebuilt from the log.
        files.retain(|file| file.extension().is_none_or(|extension| extension != "db-shm"));
        // The log first: what is carried over from it meanwhile is in both.
        files.sort_by_key(|file| file.extension().is_none_or(|extension| extension != "db-wal"));
        for file in files {
            std::fs::copy(&file, copy.path().join(file.file_name().expect("a name"))).expect("a copy");
        }
        copy
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
