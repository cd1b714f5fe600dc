//! The bytes of a log entry: the commands that were proposed together.
//!
//! ```text
//! version u8 = 1 | (length u32 (little-endian) | command) ...
//! ```
//!
//! Proposals of a group that wait at the same time travel, are written and are applied as one entry: the price of an
//! entry is paid once for all of them. A new leader's first entry is empty and holds no command.

const VERSION: u8 = 1;
/// Bytes in front of each command.
const LENGTH_BYTES: usize = 4;

/// An entry while commands are added to it.
#[derive(Debug, Default)]
pub(crate) struct Packer {
    bytes: Vec<u8>,
}

impl Packer {
    /// Adds a command behind the others.
    pub(crate) fn push(&mut self, command: &[u8]) {
        if self.bytes.is_empty() {
            self.bytes.push(VERSION);
        }
        let length = u32::try_from(command.len()).expect("a command is bounded far below 4 GiB before it comes here");
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(command);
    }

    /// Bytes of the entry so far.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.bytes
    }
}

/// Returns an entry's commands in order; `None` when the bytes are no entry, or one of a newer version.
pub fn commands(entry: &[u8]) -> Option<Vec<&[u8]>> {
    let Some((version, mut rest)) = entry.split_first() else { return Some(Vec::new()) };
    if *version != VERSION {
        return None;
    }
    let mut commands = Vec::new();
    while !rest.is_empty() {
        let (length, behind) = rest.split_first_chunk::<LENGTH_BYTES>()?;
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (command, behind) = behind.split_at_checked(length)?;
        commands.push(command);
        rest = behind;
    }
    Some(commands)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn commands_come_back_and_cut_entries_do_not(all in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..20), 1..8)) {
            let all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
            let mut packer = Packer::default();
            all.iter().for_each(|command| packer.push(command));
            let entry = packer.finish();
            prop_assert_eq!(commands(&entry), Some(all.clone()));
            for end in 1..entry.len() {
                prop_assert_ne!(commands(&entry[..end]), Some(all.clone()));
            }
        }
    }

    #[test]
    fn an_empty_entry_has_no_command_and_another_version_is_none() {
        assert_eq!(commands(&[]), Some(vec![]));
        assert_eq!(commands(&[2, 0, 0, 0, 0]), None);
        assert_eq!(commands(&[VERSION, 9, 0, 0, 0, 1]), None, "longer than the entry");
    }
}
