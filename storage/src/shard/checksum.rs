//! The checksum of a shard's logical content: equal on replicas at the same applied index (P5).
//!
//! Events are added up by a commutative hash of what they say, so that it is the same whether they are in chunks or in
//! segments; state that can be read and the producer table hash as rows in order. Which chunk or file an event is in does
//! not count.

use std::sync::Arc;

use arrow::{
    array::AsArray,
    datatypes::{Int64Type, TimestampMillisecondType, UInt64Type},
};
use galoo_proto::Hlc;
use xxhash_rust::xxh3::Xxh3;

use crate::{
    Result, cell,
    engine::{Direction, Family},
    key,
    properties::{self, Property},
    view::{Column, EventFilter, View},
};

/// A shard's checksum at one applied index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Log index of the last command in it.
    pub applied: u64,
    /// Events in it.
    pub events: u64,
    /// The sum.
    pub sum: u64,
}

impl Checksum {
    /// Reads the whole shard.
    pub fn of(view: &View) -> Result<Self> {
        let columns = Column::event(None);
        let filter = Arc::new(EventFilter::default());
        let (mut events, mut sum) = (0, 0u64);
        for source in view.sources()? {
            let before = events;
            for batch in view.source_batches(source, &columns, &filter)? {
                let batch = batch?;
                let text = |column: usize| batch.column(column).as_string_view();
                let (players, types, objects) = (text(0), text(2), text(5));
                let times = batch.column(1).as_primitive::<TimestampMillisecondType>();
                let seqs = batch.column(3).as_primitive::<Int64Type>();
                let hlcs = batch.column(4).as_primitive::<UInt64Type>();
                for row in 0..batch.num_rows() {
                    let mut hash = Xxh3::new();
                    hash.update(&seqs.value(row).to_le_bytes());
                    hash.update(&times.value(row).to_le_bytes());
                    hash.update(&hlcs.value(row).to_le_bytes());
                    hash_text(&mut hash, players.value(row));
                    hash_text(&mut hash, types.value(row));
                    let object = object_hash(objects.value(row))?;
                    hash.update(&object.to_le_bytes());
                    sum = sum.wrapping_add(hash.digest());
                }
                events += batch.num_rows() as u64;
            }
            let (read, rows) = (events - before, source.rows());
            assert!(
                read == rows || (read < rows && !view.reads_all_of(source)?),
                "INV-S4: {read} events read of a source of {rows}"
            );
        }
        let mut rows_hash = Xxh3::new();
        let gc = Hlc(view.state().gc_hlc);
        for family in [Family::Cells, Family::History, Family::Producers] {
            let range = key::keyspace_range(view.keyspace());
            let mut rows = view.reader().rows(family, &range.start..&range.end, Direction::Forward)?;
            while let Some((key, value)) = rows.next()? {
                // Each replica drops what cannot be read any more at a moment of its own.
                if !cell::is_readable(family, value, gc) {
                    continue;
                }
                // The keyspace is local to the node.
                rows_hash.update(&key[8..]);
                rows_hash.update(&(value.len() as u64).to_le_bytes());
                rows_hash.update(value);
            }
        }
        let sum = sum.wrapping_add(rows_hash.digest()).wrapping_add(view.state().last_seq);
        Ok(Self { applied: view.state().applied, events, sum })
    }
}

fn hash_text(hash: &mut Xxh3, text: &str) {
    hash.update(&(text.len() as u64).to_le_bytes());
    hash.update(text.as_bytes());
}

/// Hashes what a JSON object says, whatever the order of its members and the spelling of its numbers and strings.
fn object_hash(json: &str) -> Result<u64> {
    let mut sum = 0u64;
    for member in properties::members(json) {
        let (name, raw) = member?;
        let Some(value) = Property::parse(raw) else { continue };
        let mut hash = Xxh3::new();
        hash_text(&mut hash, &name);
        hash.update(&[value.kind().0]);
        hash_text(&mut hash, &value.text());
        sum = sum.wrapping_add(hash.digest());
    }
    Ok(sum)
}
