//! What a file's bytes are under: plain, gzip or zstd, told by their first bytes and never by the file's name.
//!
//! A gzip file may have many members and a zstd file many frames (`pigz`, `pzstd`, `cat a.gz b.gz`); both are read to
//! their end. What follows the last member or frame must be another one: garbage there is damage, not an end.
//!
//! Two limits of the formats to know. The checksum of gzip stands at the end of a member and the one of zstd (which is
//! optional) at the end of a frame, so bytes are given out before the sum over them is checked; for a file that can be
//! read twice `verify` says beforehand how many of them are sure. And zstd needs the window that the writer chose, at
//! most 128 MiB (the library refuses more); `zstd -19` and below choose 8 MiB or less.

use std::fmt;
use std::io::{self, BufRead, BufReader, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::verify::Damage;

/// Bytes of the file as it lies on the disk that are read at once.
pub(super) const READ_BYTES: usize = 128 << 10;

/// First bytes that are enough to tell the formats apart.
const MAGIC_BYTES: usize = 4;

/// How the input is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// The bytes are the text itself.
    Plain,
    /// RFC 1952, one or many members.
    Gzip,
    /// RFC 8878, one or many frames, skippable ones among them.
    Zstd,
}

impl Compression {
    /// Tells the format by the first bytes of a file; fewer than four bytes are welcome.
    pub fn of(head: &[u8]) -> Compression {
        match head {
            [0x1f, 0x8b, 0x08, ..] => Compression::Gzip,
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Compression::Zstd,
            // A skippable frame: pzstd and seekable zstd begin with one.
            [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Compression::Zstd,
            _ => Compression::Plain,
        }
    }
}

impl fmt::Display for Compression {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Compression::Plain => "plain",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        })
    }
}

/// Counts what is read of the input as it lies on the disk; one thread reads, any thread looks.
#[derive(Debug, Default)]
pub struct Meter {
    bytes_read: AtomicU64,
    failed: AtomicBool,
}

impl Meter {
    /// Bytes read so far, before decompression.
    pub fn bytes_read(&self) -> u64 {
        self.bytes_read.load(Ordering::Relaxed)
    }

    /// Whether the file itself could not be read, as opposed to its content being damaged.
    pub fn failed(&self) -> bool {
        self.failed.load(Ordering::Relaxed)
    }
}

/// Passes reads on and counts them in a [`Meter`].
struct Metered<R> {
    inner: R,
    meter: Arc<Meter>,
}

impl<R: Read> Read for Metered<R> {
    fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(room) {
            Ok(count) => {
                self.meter.bytes_read.fetch_add(count as u64, Ordering::Relaxed);
                Ok(count)
            }
            Err(error) => {
                if error.kind() != io::ErrorKind::Interrupted {
                    self.meter.failed.store(true, Ordering::Relaxed);
                }
                Err(error)
            }
        }
    }
}

/// The text of an input, decompressed as it is read.
pub struct Decoded {
    /// What the first bytes said.
    pub compression: Compression,
    /// How far the input is read.
    pub meter: Arc<Meter>,
    reader: Box<dyn Read + Send>,
    /// The damage before which reading ends, with the sure bytes that are left.
    damage: Option<Damage>,
}

impl Decoded {
    /// Looks at the first bytes of `input` and sets up the right reader.
    ///
    /// # Errors
    /// What reading those bytes said, or that the decompressor could not be made.
    pub fn new(input: Box<dyn Read + Send>) -> io::Result<Decoded> {
        let meter = Arc::new(Meter::default());
        let mut metered = Metered { inner: input, meter: Arc::clone(&meter) };
        let mut head = Vec::with_capacity(MAGIC_BYTES);
        (&mut metered).take(MAGIC_BYTES as u64).read_to_end(&mut head)?;
        let compression = Compression::of(&head);
        let whole = io::Cursor::new(head).chain(metered);
        let reader: Box<dyn Read + Send> = match compression {
            Compression::Plain => Box::new(whole),
            Compression::Gzip => {
                Box::new(flate2::bufread::MultiGzDecoder::new(BufReader::with_capacity(READ_BYTES, whole)))
            }
            Compression::Zstd => Box::new(zstd_reader(BufReader::with_capacity(READ_BYTES, whole))?),
        };
        Ok(Decoded { compression, meter, reader, damage: None })
    }

    /// Lets an input of which nothing was read end before a damage, with its error.
    pub(super) fn end_before(&mut self, damage: Damage) {
        self.damage = Some(damage);
    }

    /// Reads decompressed bytes into `room`; 0 only at the end of the input.
    pub fn read(&mut self, room: &mut [u8]) -> io::Result<usize> {
        let Some(Damage { sure_bytes, error }) = &mut self.damage else {
            return read_some(&mut self.reader, room);
        };
        if *sure_bytes == 0 {
            return Err(std::mem::replace(error, io::ErrorKind::InvalidData.into()));
        }
        let length = usize::try_from(*sure_bytes).map_or(room.len(), |sure| sure.min(room.len()));
        let count = read_some(&mut self.reader, &mut room[..length])?;
        *sure_bytes -= count as u64;
        Ok(count)
    }
}

/// Reads what there is, also after an interruption.
fn read_some(reader: &mut impl Read, room: &mut [u8]) -> io::Result<usize> {
    loop {
        match reader.read(room) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

/// Makes the zstd reader, which reads frame after frame.
fn zstd_reader<R: BufRead + Send + 'static>(input: R) -> io::Result<impl Read + Send> {
    zstd::stream::read::Decoder::with_buffer(input)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_format_is_told_by_its_first_bytes() {
        let table: [(&[u8], Compression); 7] = [
            (b"", Compression::Plain),
            (b"{", Compression::Plain),
            (b"\x1f\x8b", Compression::Plain),
            (b"\x1f\x8b\x08\x00", Compression::Gzip),
            (b"\x28\xb5\x2f\xfd", Compression::Zstd),
            (b"\x53\x2a\x4d\x18", Compression::Zstd),
            (b"\x28\xb5\x2f", Compression::Plain),
        ];
        for (head, expected) in table {
            assert_eq!(Compression::of(head), expected, "{head:02x?}");
        }
    }

    #[test]
    fn the_meter_counts_the_bytes_on_the_disk() {
        let packed = zstd::encode_all(&vec![b'a'; 1 << 20][..], 3).unwrap();
        let length = packed.len() as u64;
        let mut decoded = Decoded::new(Box::new(io::Cursor::new(packed))).unwrap();
        let mut room = vec![0; 1 << 16];
        let mut total = 0;
        loop {
            match decoded.read(&mut room).unwrap() {
                0 => break,
                count => total += count,
            }
        }
        assert_eq!((total, decoded.meter.bytes_read()), (1 << 20, length));
    }
}
