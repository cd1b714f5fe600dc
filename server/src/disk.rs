//! Room on the disk: writes are refused before there is none.
//!
//! A full disk would end the shared log in the middle of a write, and with it all that the node can promise. So a part is kept
//! in reserve: when less is free, commands that bring data are refused, and taken again as soon as there is more. What
//! waits already, flushes, segments and whatever frees space (a game that is dropped) live on the reserve.

use std::{
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tracing::{info, warn};

/// How often the file system is asked.
pub const ASK_EVERY: Duration = Duration::from_millis(200);

/// Less is free than the reserve.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the data folder's file system has {free_bytes} bytes free; below {reserve_bytes} nothing more is stored")]
pub struct DiskFull {
    /// Bytes that are free.
    pub free_bytes: u64,
    /// Bytes that must be.
    pub reserve_bytes: u64,
}

/// The file system of the data folder.
pub struct Disk {
    folder: PathBuf,
    reserve_bytes: u64,
    free_bytes: AtomicU64,
}

impl Disk {
    /// Looks at the file system of a folder.
    pub fn new(folder: &Path, reserve_bytes: u64) -> Self {
        let disk = Self { folder: folder.to_owned(), reserve_bytes, free_bytes: AtomicU64::new(u64::MAX) };
        disk.ask();
        disk
    }

    /// Asks the file system again. What it does not answer changes nothing: a write will tell.
    pub fn ask(&self) {
        let Ok(found) = rustix::fs::statvfs(&self.folder) else { return };
        let free_bytes = found.f_bavail.saturating_mul(found.f_frsize);
        let before = self.free_bytes.swap(free_bytes, Ordering::Relaxed);
        #[expect(clippy::cast_precision_loss, reason = "a gauge is a float")]
        let gauge = free_bytes as f64;
        metrics::gauge!("galoo_disk_free_bytes").set(gauge);
        let reserve_bytes = self.reserve_bytes;
        match (before < reserve_bytes, free_bytes < reserve_bytes) {
            (false, true) => warn!(free_bytes, reserve_bytes, "the disk is full: writes are refused"),
            (true, false) => info!(free_bytes, reserve_bytes, "there is room on the disk again"),
            _ => {}
        }
    }

    /// Returns whether there is room for more data.
    pub fn room(&self) -> Result<(), DiskFull> {
        let (free_bytes, reserve_bytes) = (self.free_bytes.load(Ordering::Relaxed), self.reserve_bytes);
        if free_bytes < reserve_bytes { Err(DiskFull { free_bytes, reserve_bytes }) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_room_until_the_reserve_is_touched() {
        let folder = tempfile::tempdir().expect("folder");
        Disk::new(folder.path(), 0).room().expect("nothing is kept in reserve");
        let refused = Disk::new(folder.path(), u64::MAX).room().expect_err("everything is");
        assert!(refused.free_bytes > 0 && refused.to_string().contains("bytes free"), "{refused}");
    }
}
