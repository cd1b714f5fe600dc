//! Tests of [`super`]: no text that a damage changed is sure, and what stands before it is.

use super::*;
use crate::compression::Decoded;
use crate::identity::PREFIX_BYTES_MAX;
use crate::source::{Source, SourceError};
use flate2::Compression as Level;
use flate2::write::GzEncoder;
use std::io::{Cursor, Write};

/// So many lines with matches and with digits, about 60 bytes each.
fn lines(count: usize) -> Vec<u8> {
    let line = |n: usize| format!("{{\"player\":\"p{}\",\"x\":{},\"n\":{n}}}\n", n % 97, n.wrapping_mul(2_654_435_761));
    (0..count).flat_map(|n| line(n).into_bytes()).collect()
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Level::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// A frame as `zstd FILE` writes it: with its length and a sum.
fn zstd_frame(text: &[u8]) -> Vec<u8> {
    let mut encoder = zstd::stream::Encoder::new(Vec::new(), 3).unwrap();
    encoder.include_checksum(true).unwrap();
    encoder.set_pledged_src_size(Some(text.len() as u64)).unwrap();
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn damage(packed: &[u8]) -> Option<Damage> {
    find_damage(Cursor::new(packed)).unwrap()
}

fn flip(packed: &[u8], bit: usize) -> Vec<u8> {
    let mut flipped = packed.to_vec();
    flipped[bit / 8] ^= 1 << (bit % 8);
    flipped
}

/// Flips the first bit behind byte `from` that nothing but a checksum shows.
fn flip_unnoticed(packed: &[u8], from: usize) -> Vec<u8> {
    let unnoticed =
        |flipped: &Vec<u8>| damage(flipped).is_some_and(|found| found.error.to_string().contains("checksum"));
    let mut all = (from * 8..packed.len() * 8).map(|bit| flip(packed, bit));
    all.find(unnoticed).expect("a bit that only a checksum shows")
}

#[test]
fn a_whole_file_has_no_damage() {
    let text = lines(20_000);
    let skippable = [&[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0][..], b"abc"].concat();
    let files = [
        vec![],
        text.clone(),
        [gzip(&text), gzip(b""), gzip(&text)].concat(),
        [skippable, zstd_frame(&text), zstd_frame(b""), zstd_frame(&text)].concat(),
    ];
    for file in files {
        assert!(damage(&file).is_none());
    }
}

#[test]
fn a_wrong_sum_leaves_the_frames_before_it_sure_and_a_cut_all_that_was_decoded() {
    let (first, second) = (lines(30_000), lines(40_000));
    for (first_packed, second_packed) in [(gzip(&first), gzip(&second)), (zstd_frame(&first), zstd_frame(&second))] {
        let whole = [&first_packed[..], &second_packed].concat();
        let within = |found: Option<Damage>| found.expect("a damage").sure_bytes;
        assert_eq!(within(damage(&flip_unnoticed(&whole, first_packed.len() / 2))), 0);
        let middle = first_packed.len() + second_packed.len() / 2;
        assert_eq!(within(damage(&flip_unnoticed(&whole, middle))), first.len() as u64);
        let garbage = [&whole[..], b"garbage"].concat();
        assert_eq!(within(damage(&garbage)), (first.len() + second.len()) as u64);
        let cut = within(damage(&whole[..middle]));
        assert!(cut > (first.len() + second.len() / 4) as u64, "{cut} bytes are sure");
    }
}

#[test]
fn no_flipped_bit_makes_wrong_text_sure() {
    let text = lines(50_000);
    let packed = zstd_frame(&text);
    let mut some_is_sure = false;
    for bit in (packed.len() * 2..packed.len() * 8).step_by(packed.len() / 50) {
        let flipped = flip(&packed, bit);
        // Without a damage the bit chose an equal text.
        let found = damage(&flipped);
        let mut decoded = Decoded::new(Box::new(Cursor::new(flipped))).unwrap();
        if let Some(found) = found {
            some_is_sure |= found.sure_bytes > 0;
            decoded.end_before(found);
        }
        let (mut sure, mut room) = (Vec::new(), vec![0; 100_000]);
        while let Ok(count) = decoded.read(&mut room)
            && count > 0
        {
            sure.extend_from_slice(&room[..count]);
        }
        assert!(text.starts_with(&sure), "with bit {bit} flipped {} bytes are not as written", sure.len());
    }
    assert!(some_is_sure);
}

#[test]
fn lines_before_the_damaged_frame_are_given_out_and_nothing_of_a_file_that_is_not_sure_of_its_first_mib() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second) = (lines(30_000), lines(40_000));
    assert!(first.len() > PREFIX_BYTES_MAX);
    let (members, frames) = ([gzip(&first), gzip(&second)], [zstd_frame(&first), zstd_frame(&second)]);
    for (name, packed) in [("e.gz", members), ("e.zst", frames)] {
        let path = folder.path().join(name);
        let [first_packed, second_packed] = &packed;
        let behind = first_packed.len() + second_packed.len() / 2;
        std::fs::write(&path, flip_unnoticed(&packed.concat(), behind)).unwrap();
        let mut source = Source::open(&path, None).unwrap();
        let error = loop {
            match source.next_line() {
                Ok(line) => assert!(line.is_some(), "an error comes before the end"),
                Err(error) => break error,
            }
        };
        assert_eq!(source.line_last(), 30_000);
        assert!(error.to_string().starts_with(&format!("{name} is damaged after line 30000: ")), "{error}");

        std::fs::write(&path, flip_unnoticed(&packed.concat(), first_packed.len() / 2)).unwrap();
        let error = Source::open(&path, None).err().expect("a damage");
        assert!(matches!(&error, SourceError::DamagedBeginning { sure_bytes: 0, .. }), "{error}");
        let cut = &first_packed[..first_packed.len() / 4];
        std::fs::write(&path, cut).unwrap();
        let error = Source::open(&path, None).err().expect("a damage");
        assert!(matches!(&error, SourceError::DamagedBeginning { sure_bytes, .. } if *sure_bytes > 0), "{error}");
        // A name that is given does not depend on the content.
        let mut named = Source::open(&path, Some("season 4")).unwrap();
        assert!(named.next_line().unwrap().is_some());
    }
}
