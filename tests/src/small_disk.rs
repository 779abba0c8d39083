//! A disk of the test's own, small enough to be filled.

use std::{
    fs::{File, Permissions},
    io::{ErrorKind, Write},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use crate::Scratch;

/// A filesystem in memory, of a fixed size. Gone when dropped.
pub struct SmallDisk {
    // Where it is mounted; removed after it is unmounted.
    scratch: Scratch,
}

impl SmallDisk {
    /// Makes one of so many mebibytes. Only root can.
    pub fn of_mebibytes(size: u32) -> Self {
        let scratch = Scratch::new();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}m"), "tmpfs"])
            .arg(scratch.path())
            .output()
            .expect("mount can be run");
        assert!(
            mounted.status.success(),
            "a disk that can be filled needs a tmpfs of the test's own, and mounting one was refused: run the fault suite \
             as root, in a container with the capability SYS_ADMIN ({})",
            String::from_utf8_lossy(&mounted.stderr).trim()
        );
        let disk = Self { scratch };
        std::fs::set_permissions(disk.path(), Permissions::from_mode(0o777))
            .expect("root can open a directory to others");
        disk
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        self.scratch.path()
    }

    fn ballast(&self) -> PathBuf {
        self.path().join("ballast")
    }

    /// Fills it to the last byte.
    pub fn fill(&self) {
        let mut ballast = File::options()
            .create(true)
            .append(true)
            .open(self.ballast())
            .expect("a file can be made");
        for piece in [1 << 20, 1 << 12, 1] {
            let zeros = vec![0; piece];
            loop {
                match ballast.write(&zeros) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::StorageFull => break,
                    Err(error) => panic!("the disk cannot be filled: {error}"),
                }
            }
        }
    }

    /// Frees what [`SmallDisk::fill`] took.
    pub fn free(&self) {
        std::fs::remove_file(self.ballast()).expect("the ballast is there");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Lazily: what still has files open there ends in a moment.
        let _ = Command::new("umount").arg("--lazy").arg(self.path()).status();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_full_and_then_is_not() {
        let disk = SmallDisk::of_mebibytes(2);
        let file = disk.path().join("file");
        disk.fill();
        let full = std::fs::write(&file, "text").unwrap_err();
        assert_eq!(full.kind(), ErrorKind::StorageFull);
        disk.free();
        std::fs::write(&file, "text").unwrap();
    }
}
