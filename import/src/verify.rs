//! Decodes a compressed file to its end before anything of it is taken, to know how much of its text is sure.
//!
//! A decompressor gives out text before it has read the sum over it, so what a flipped bit did may show only at the end
//! of a frame, far behind the wrong text. What is sure:
//!
//! | what is wrong | what is sure |
//! |---|---|
//! | the end is cut off | all text before it |
//! | a zstd block cannot be decoded | all text before it: nothing of a bad block is given out |
//! | the sum or the length of a zstd frame, or anything in gzip | the text before the damaged frame or member |
//!
//! It does not see what the formats do not show: a wrong text in a zstd frame that has no sum, and a damage behind
//! which the decompressor runs over the end of the file, which looks like a cut. Memory: the decompressor and two
//! buffers.

use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};

use flate2::bufread::GzDecoder;
use zstd::{stream::read::Decoder, zstd_safe};

use crate::compression::{Compression, READ_BYTES};

/// Bytes of text that are decoded at once. What zstd has of them when it meets a bad block is lost with that block.
const ROOM_BYTES: usize = 64 << 10;

/// Longest header of a zstd frame (RFC 8878, 3.1.1.1).
const FRAME_HEADER_BYTES_MAX: u64 = 18;

/// A zstd frame whose length is wrong says so at its end: a damaged block moves the end by less than this.
const LENGTH_DOUBT_BYTES: u64 = 1 << 20;

/// What zstd returns when the sum over a frame is wrong: minus `ZSTD_error_checksum_wrong`, a number that it keeps.
const ZSTD_CHECKSUM_WRONG: usize = 22_usize.wrapping_neg();

/// A damage that was found by decoding a file to its end.
#[derive(Debug)]
pub(super) struct Damage {
    /// Bytes of text before it that are as they were written.
    pub(super) sure_bytes: u64,
    /// What the decompressor said.
    pub(super) error: io::Error,
}

/// Looks for a damage in a compressed file, from its beginning; `None` when it is whole, or not compressed.
///
/// # Errors
/// What the system said when the file could not be read.
pub(super) fn find_damage<R: Read + Seek>(file: R) -> io::Result<Option<Damage>> {
    let mut packed = BufReader::with_capacity(READ_BYTES, file);
    let compression = Compression::of(packed.fill_buf()?);
    let mut room = vec![0; ROOM_BYTES];
    let mut whole_bytes = 0;
    while compression != Compression::Plain && !packed.fill_buf()?.is_empty() {
        let start = packed.stream_position()?;
        let (bytes, ended) = match compression {
            Compression::Zstd => decode(Decoder::with_buffer(&mut packed)?.single_frame(), &mut room),
            Compression::Gzip | Compression::Plain => decode(GzDecoder::new(&mut packed), &mut room),
        };
        let Err(error) = ended else {
            whole_bytes += bytes;
            continue;
        };
        if error.raw_os_error().is_some() {
            return Err(error);
        }
        let is_sure = match compression {
            _ if error.kind() == io::ErrorKind::UnexpectedEof => true,
            Compression::Zstd => is_of_a_block(&error, bytes, frame_length(&mut packed, start)?),
            Compression::Gzip | Compression::Plain => false,
        };
        let sure_bytes = if is_sure { whole_bytes + bytes } else { whole_bytes };
        return Ok(Some(Damage { sure_bytes, error }));
    }
    Ok(None)
}

/// Decodes to the end of a frame or member; returns the bytes of its text and how it ended.
fn decode(mut frame: impl Read, room: &mut [u8]) -> (u64, io::Result<()>) {
    let mut bytes = 0;
    loop {
        match frame.read(room) {
            Ok(0) => return (bytes, Ok(())),
            Ok(count) => bytes += count as u64,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (bytes, Err(error)),
        }
    }
}

/// Returns the bytes of text that the zstd frame at `start` says it has, if it does.
fn frame_length<R: Read + Seek>(packed: &mut BufReader<R>, start: u64) -> io::Result<Option<u64>> {
    packed.seek(SeekFrom::Start(start))?;
    let mut header = Vec::new();
    packed.take(FRAME_HEADER_BYTES_MAX).read_to_end(&mut header)?;
    Ok(zstd_safe::get_frame_content_size(&header).unwrap_or(None))
}

/// Says whether an error behind `bytes` bytes of a zstd frame is about the block there, and not about the whole frame.
fn is_of_a_block(error: &io::Error, bytes: u64, frame_length: Option<u64>) -> bool {
    let is_at_end = frame_length.is_some_and(|length| length.abs_diff(bytes) <= LENGTH_DOUBT_BYTES);
    !is_at_end && error.to_string() != zstd_safe::get_error_name(ZSTD_CHECKSUM_WRONG)
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
