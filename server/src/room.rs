//! Room for more data: on the disk and in memory.

use crate::{disk::DiskFull, memory::MemtablesFull};

/// Why nothing more is stored at the moment. Whatever frees space is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoRoom {
    /// On the disk.
    #[error(transparent)]
    Disk(#[from] DiskFull),
    /// In the engine's memory.
    #[error(transparent)]
    Memtables(#[from] MemtablesFull),
}
