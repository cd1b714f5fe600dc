//! The reading half of `galoo import FILE`: from bytes on a disk or a pipe to events that a batch can carry.
//!
//! ```text
//! compression -> source -> runs -> mapping -> (batches: not here)
//!   bytes         lines    runs    events
//!      |           |                  \-> dead_letter (lines that are no event)
//!    verify    identity
//! ```
//!
//! Promises: the same content gives the same lines, runs and events, whatever the compression, the buffer sizes and
//! the machine; memory is bounded by constants of these files; nothing is dropped without a count and a reason. These
//! rooms know no cluster, no client and no clock: sending, retrying and resuming belong to their caller
//! (`server/src/cli/load.rs`).

pub mod compression;
pub mod dead_letter;
pub mod detect;
pub mod fields;
pub mod identity;
pub mod instant;
pub mod json;
pub mod mapping;
pub mod runs;
mod scanner;
pub mod source;
mod verify;

/// Returns a file of the shared data (`GALOO_SHARED`, by default beside the clone); prints why a test is skipped without.
#[cfg(test)]
fn shared_data(name: &str) -> Option<std::path::PathBuf> {
    let beside = concat!(env!("CARGO_MANIFEST_DIR"), "/../../shared");
    let folder = std::env::var_os("GALOO_SHARED").unwrap_or_else(|| beside.into());
    let path = std::path::Path::new(&folder).join("data").join(name);
    if path.exists() {
        return Some(path);
    }
    println!("SKIPPED: no shared data {} (GALOO_SHARED)", path.display());
    None
}
