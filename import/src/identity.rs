//! Who an input is, so that a second import of it continues the first instead of doubling it.
//!
//! A file is known by its base name and its first MiB *after* decompression: packing it again does not make it another
//! file, and moving it to another folder does not either. A file that is smaller than that may be appended to later,
//! and then its first MiB differs. So an identity says over how many bytes it was taken, and an input is compared with
//! earlier identities over *their* bytes: see [`matches()`] and [`choose`].
//!
//! It promises no more than that the beginnings are equal. That the rest is, is proved run by run by the store, which
//! refuses other content under a number that it knows.
//!
//! ```text
//! file:{base name}:{prefix bytes, decimal}:{xxh3-64 of the prefix, 16 hex digits}
//! source:{name given by --source}
//! ```

use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

/// Decompressed bytes that an identity is taken over at most.
pub const PREFIX_BYTES_MAX: usize = 1 << 20;

/// What a file is known by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The file's base name; bytes that are not UTF-8 stand as U+FFFD.
    pub name: String,
    /// Decompressed bytes that the hash covers: the first MiB, or all that could be decompressed.
    pub prefix_bytes: u64,
    /// xxh3-64 of these bytes.
    pub prefix_hash: u64,
}

impl Identity {
    /// Takes the identity of a file whose decompressed content begins with `prefix`.
    pub fn of(name: &str, prefix: &[u8]) -> Identity {
        let prefix = &prefix[..prefix.len().min(PREFIX_BYTES_MAX)];
        Identity { name: name.to_owned(), prefix_bytes: prefix.len() as u64, prefix_hash: xxh3_64(prefix) }
    }

    /// Writes the identity as the key under which progress is kept.
    pub fn source_key(&self) -> String {
        format!("file:{}:{}:{:016x}", self.name, self.prefix_bytes, self.prefix_hash)
    }

    /// Reads a key that [`Identity::source_key`] wrote; `None` for anything else, `source:` keys among it.
    pub fn parse(key: &str) -> Option<Identity> {
        // A name may hold colons; the two fields after it cannot.
        let (rest, hash) = key.strip_prefix("file:")?.rsplit_once(':')?;
        let (name, bytes) = rest.rsplit_once(':')?;
        let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        if bytes.is_empty() || !digits(bytes) || hash.len() != 16 || !hash.bytes().all(hex) {
            return None;
        }
        Some(Identity {
            name: name.to_owned(),
            prefix_bytes: bytes.parse().ok()?,
            prefix_hash: u64::from_str_radix(hash, 16).ok()?,
        })
    }

    /// Says whether an input that begins with `prefix` begins with what this identity was taken over.
    fn begins(&self, prefix: &[u8]) -> bool {
        match usize::try_from(self.prefix_bytes) {
            Ok(bytes) if bytes <= prefix.len() => xxh3_64(&prefix[..bytes]) == self.prefix_hash,
            _ => false,
        }
    }
}

/// Says whether the input that begins with `prefix` (its first MiB, or all of it) is the one of an earlier `key`,
/// perhaps grown since. Names are not compared; a key that is not a file's matches nothing.
pub fn matches(prefix: &[u8], key: &str) -> bool {
    Identity::parse(key).is_some_and(|earlier| earlier.begins(prefix))
}

/// Chooses the earlier key that the input continues: of those with its name that match, the one over most bytes.
///
/// `None` means an input never seen before; its own [`Identity::source_key`] names it.
pub fn choose(keys: &[String], name: &str, prefix: &[u8]) -> Option<String> {
    keys.iter()
        .filter_map(|key| Some((key, Identity::parse(key)?)))
        .filter(|(_, earlier)| earlier.name == name && earlier.begins(prefix))
        .max_by_key(|(_, earlier)| earlier.prefix_bytes)
        .map(|(key, _)| key.clone())
}

/// Returns the base name of `path`, which a file is known by.
pub fn base_name(path: &Path) -> String {
    match path.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => path.to_string_lossy().into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_grown_file_is_recognised_and_the_longest_earlier_identity_wins() {
        let whole = b"{\"a\":1}\n{\"a\":2}\n{\"a\":3}\n";
        let short = Identity::of("e.ndjson", &whole[..8]).source_key();
        let longer = Identity::of("e.ndjson", &whole[..16]).source_key();
        let renamed = Identity::of("f.ndjson", &whole[..20]).source_key();
        let changed = Identity::of("e.ndjson", b"{\"a\":9}\n{\"a\":2}\n").source_key();
        let keys = vec![short.clone(), longer.clone(), renamed.clone(), changed.clone(), "source:e.ndjson".to_owned()];

        assert!(matches(whole, &short) && matches(whole, &longer) && matches(whole, &renamed));
        assert!(!matches(whole, &changed) && !matches(whole, "source:e.ndjson"));
        assert!(!matches(&whole[..8], &longer), "a shorter input cannot continue a longer one");
        assert_eq!(choose(&keys, "e.ndjson", whole), Some(longer));
        assert_eq!(choose(&keys, "g.ndjson", whole), None);
        assert_eq!(choose(&keys, "e.ndjson", &whole[..9]), Some(short));
    }

    #[test]
    fn keys_that_nobody_wrote_are_no_identity() {
        for key in [
            "",
            "file:",
            "file:a:1",
            "file:a:x:0000000000000000",
            "file:a:1:00",
            "file:a::0000000000000000",
            "file:a:+1:0000000000000000",
            "file:a:1:00000000000000FF",
            "file:a:1:+000000000000001",
            "file:a:99999999999999999999:0000000000000000",
            "source:x:1:0000000000000000",
        ] {
            assert_eq!(Identity::parse(key), None, "{key}");
        }
    }

    #[test]
    fn a_path_is_known_by_its_last_part() {
        assert_eq!(base_name(Path::new("/data/x/events.ndjson.zst")), "events.ndjson.zst");
        assert_eq!(base_name(Path::new("events")), "events");
    }

    proptest! {
        #[test]
        fn a_key_reads_back(name in ".{0,20}", prefix in proptest::collection::vec(any::<u8>(), 0..200)) {
            let identity = Identity::of(&name, &prefix);
            prop_assert_eq!(Identity::parse(&identity.source_key()), Some(identity));
        }
    }
}
