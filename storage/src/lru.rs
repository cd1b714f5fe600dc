//! What was used lately, within a bound.

use std::{collections::HashMap, hash::Hash};

/// Values by key, each with a size. While they are larger than the bound together, the one goes that was used longest
/// ago; finding it looks at all of them.
pub(crate) struct Lru<K, V> {
    entries: HashMap<K, Entry<V>>,
    size: usize,
    size_max: usize,
    uses: u64,
}

struct Entry<V> {
    value: V,
    size: usize,
    used: u64,
}

impl<K: Clone + Eq + Hash, V> Lru<K, V> {
    /// Holds nothing, and at most `size_max`.
    pub(crate) fn new(size_max: usize) -> Self {
        Self { entries: HashMap::new(), size: 0, size_max, uses: 0 }
    }

    /// Sizes of all values together.
    pub(crate) fn size(&self) -> usize {
        self.size
    }

    /// What the sizes may be.
    pub(crate) fn size_max(&self) -> usize {
        self.size_max
    }

    /// Uses a value.
    pub(crate) fn get(&mut self, key: &K) -> Option<&V> {
        self.uses += 1;
        let entry = self.entries.get_mut(key)?;
        entry.used = self.uses;
        Some(&entry.value)
    }

    /// Keeps a value in the place of what its key had. One that is larger than the bound goes at once, and all others with it.
    pub(crate) fn put(&mut self, key: K, value: V, size: usize) {
        self.uses += 1;
        self.size += size;
        let old = self.entries.insert(key, Entry { value, size, used: self.uses });
        self.size -= old.map_or(0, |old| old.size);
        while self.size > self.size_max {
            let oldest = self.entries.iter().min_by_key(|(_, entry)| entry.used).map(|(key, _)| key.clone());
            let Some(old) = oldest.and_then(|oldest| self.entries.remove(&oldest)) else { return };
            self.size -= old.size;
        }
    }

    /// Lets go of the values whose keys are not wanted.
    pub(crate) fn retain(&mut self, wanted: impl Fn(&K) -> bool) {
        self.entries.retain(|key, _| wanted(key));
        self.size = self.entries.values().map(|entry| entry.size).sum();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_longest_ago_goes() {
        let mut lru = Lru::new(10);
        (0..5).for_each(|key| lru.put(key, key, 2));
        assert_eq!((lru.get(&0).copied(), lru.size()), (Some(0), 10));
        lru.put(5, 5, 4);
        assert_eq!([0, 1, 2, 3].map(|key| lru.get(&key).copied()), [Some(0), None, None, Some(3)]);
        lru.put(3, 33, 1);
        assert_eq!((lru.get(&3).copied(), lru.size()), (Some(33), 9));
        lru.retain(|key| *key != 5);
        assert_eq!((lru.get(&5).copied(), lru.size()), (None, 5));
        lru.put(6, 6, 11);
        assert_eq!((lru.get(&6).copied(), lru.size()), (None, 0));
    }
}
