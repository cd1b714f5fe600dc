//! Keys of cancel requests.
//!
//! Each connection has a process id and a secret, told to its client once. A `CancelRequest` comes on a connection of its
//! own and names both. The right pair moves the connection's counter; a statement that began before the move stops. A
//! request that comes between two statements stops nothing: a statement looks only at moves after its own beginning. A
//! wrong pair does nothing, and its sender cannot tell.

use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// The keys of all open connections.
#[derive(Default)]
pub(super) struct Cancels {
    last_pid: AtomicI32,
    slots: Arc<Mutex<HashMap<i32, Slot>>>,
}

struct Slot {
    secret: i32,
    requests: watch::Sender<u64>,
}

/// A connection's own key. It is forgotten when this is dropped.
pub(super) struct Key {
    pub(super) pid: i32,
    pub(super) secret: i32,
    slots: Arc<Mutex<HashMap<i32, Slot>>>,
}

impl Cancels {
    /// Makes a key, and the counter that its cancel requests move.
    pub(super) fn register(&self) -> (Key, watch::Receiver<u64>) {
        // Positive and never 0; after 2^31 connections ids come again, long after their first holders are gone.
        let pid = self.last_pid.fetch_add(1, Ordering::Relaxed).rem_euclid(i32::MAX) + 1;
        let secret = random_secret();
        let (requests, receiver) = watch::channel(0);
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).insert(pid, Slot { secret, requests });
        (Key { pid, secret, slots: self.slots.clone() }, receiver)
    }

    /// Asks the connection with this key to stop its statement. A wrong key does nothing.
    pub(super) fn request(&self, pid: i32, secret: i32) {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(slot) = slots.get(&pid)
            && slot.secret == secret
        {
            slot.requests.send_modify(|count| *count = count.wrapping_add(1));
        }
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.pid);
    }
}

/// Draws 32 bits that a stranger cannot guess: SipHash under keys that the operating system gave this process.
fn random_secret() -> i32 {
    let bytes = RandomState::new().build_hasher().finish().to_be_bytes();
    i32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_right_key_moves_the_counter_and_a_dropped_key_is_forgotten() {
        let cancels = Cancels::default();
        let (key, receiver) = cancels.register();
        cancels.request(key.pid, key.secret.wrapping_add(1));
        cancels.request(key.pid + 1, key.secret);
        assert!(!receiver.has_changed().unwrap());
        cancels.request(key.pid, key.secret);
        assert!(receiver.has_changed().unwrap());
        drop(key);
        assert!(cancels.slots.lock().unwrap().is_empty());
    }
}
