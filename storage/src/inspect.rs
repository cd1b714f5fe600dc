//! Looking into an engine without a shard: what each row says, and whether all rows and files fit together.
//!
//! Nothing is changed. A row that does not decode is a finding and not the end of it.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Debug,
    sync::Arc,
};

use galoo_proto::{
    Keyspace, RollupId, SegmentId, command, record,
    rollup::Rollup,
    value::{FamilyDefinition, PropertyDeclarations},
};
use prost::Message;

use crate::{
    Error, Result,
    cell::{Current, Header, Past},
    chunk::Run,
    engine::{Direction, Engine, Family},
    key::{self, take_text, take_u64},
    properties::Kinds,
    rollup::{Definition, cell},
    segment::{SegmentFiles, Step, has_file},
    shard,
    view::{read_chunks, read_segments},
};

/// A row as people read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Whose it is.
    pub keyspace: Keyspace,
    /// What it is, such as `chunk`.
    pub kind: &'static str,
    /// What its key names, in order.
    pub key: Vec<(&'static str, String)>,
    /// What it holds.
    pub value: String,
}

/// Reads the rows of an engine's shards.
pub struct Inspector {
    engine: Arc<dyn Engine>,
    shards: BTreeMap<Keyspace, record::ShardState>,
    rollups: HashMap<(Keyspace, RollupId), Definition>,
    /// Keyspaces whose shard's state does not read, and why.
    unreadable: Vec<(Keyspace, Error)>,
}

/// What was read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Rows of the engine.
    pub rows: u64,
    /// Files of segments.
    pub files: u64,
    /// What was found wrong.
    pub findings: u64,
}

impl Inspector {
    /// Finds the shards of some keyspaces; one without a shard's state is none.
    pub fn open(engine: Arc<dyn Engine>, keyspaces: impl IntoIterator<Item = Keyspace>) -> Result<Self> {
        let (mut shards, mut unreadable) = (BTreeMap::new(), Vec::new());
        for keyspace in keyspaces {
            match shard::read_state(engine.as_ref(), keyspace) {
                Ok(state) => shards.extend(state.map(|state| (keyspace, state))),
                Err(error) => unreadable.push((keyspace, error)),
            }
        }
        let mut inspector = Self { engine, shards, rollups: HashMap::new(), unreadable };
        for keyspace in inspector.shards.keys().copied().collect::<Vec<_>>() {
            let range = key::rollups(keyspace);
            let mut rows = inspector.engine.rows(Family::Meta, &range.start..&range.end, Direction::Forward)?;
            while let Some((_, value)) = rows.next()? {
                // One that does not read is found where it stands.
                if let Some(definition) = Rollup::decode(value).ok().and_then(|one| Definition::parse(&one).ok()) {
                    inspector.rollups.insert((keyspace, definition.id), definition);
                }
            }
        }
        Ok(inspector)
    }

    /// The shards, by keyspace.
    pub fn shards(&self) -> &BTreeMap<Keyspace, record::ShardState> {
        &self.shards
    }

    /// Gives a shard's rows in a family to `take`, in order of key, each with what it says or why it cannot be read; until
    /// `take` returns false.
    pub fn rows(
        &self,
        keyspace: Keyspace,
        family: Family,
        take: &mut dyn FnMut(&[u8], Result<Row>) -> bool,
    ) -> Result<()> {
        let range = key::keyspace_range(keyspace);
        let mut rows = self.engine.rows(family, &range.start..&range.end, Direction::Forward)?;
        while let Some((key, value)) = rows.next()? {
            if !take(key, self.row(family, key, value)) {
                break;
            }
        }
        Ok(())
    }

    /// Reads a row.
    pub fn row(&self, family: Family, key: &[u8], value: &[u8]) -> Result<Row> {
        let mut rest = key;
        let keyspace = take_u64(&mut rest).map(Keyspace).ok_or_else(|| Error::row("key", "without a keyspace"))?;
        let (kind, fields, value) = match family {
            Family::Meta => meta(&mut rest, value)?,
            Family::Cells => cells(&mut rest, value)?,
            Family::History => history(&mut rest, value)?,
            Family::Chunks => run(key, &mut rest, value)?,
            Family::Producers => producers(&mut rest, value)?,
            Family::Rollups => self.rollups(keyspace, &mut rest, value)?,
        };
        if !rest.is_empty() {
            return Err(Error::row("key", format!("{} bytes too long for a {kind}", rest.len())));
        }
        Ok(Row { keyspace, kind, key: fields, value })
    }

    fn rollups(&self, keyspace: Keyspace, rest: &mut &[u8], value: &[u8]) -> Result<Said> {
        let (tag, id) = (tag(rest)?, number(rest)?);
        let rollup = ("rollup", id.to_string());
        if tag == key::MARK {
            return Ok(("rollup mark", vec![rollup], message::<record::RollupMark>(value)?));
        }
        let known = self.rollups.get(&(keyspace, RollupId(id)));
        let definition = known.ok_or_else(|| Error::row("rollup cell", "of a rollup that is not there"))?;
        let tier = self::tag(rest)?;
        if usize::from(tier) >= definition.tiers.len() {
            return Err(Error::row("rollup cell", format!("of tier {tier}; there are {}", definition.tiers.len())));
        }
        let place = std::mem::take(rest);
        let said = cell::describe(definition, place, value)?;
        Ok(("rollup cell", [vec![rollup, ("tier", tier.to_string())], said.0].concat(), said.1))
    }

    /// Reads every row and every segment file of all shards, and looks whether they fit together. What is wrong is given to
    /// `finding`, in words.
    ///
    /// # Errors
    /// What keeps it from reading on.
    pub fn check(&self, files: &SegmentFiles, finding: &mut dyn FnMut(String)) -> Result<Checked> {
        let mut checked = Checked::default();
        let mut findings = 0;
        let mut found = |keyspace: Keyspace, what: String| {
            findings += 1;
            finding(format!("{keyspace}: {what}"));
        };
        for (keyspace, error) in &self.unreadable {
            found(*keyspace, error.to_string());
        }
        for (keyspace, state) in &self.shards {
            for family in Family::ALL {
                let read = self.rows(*keyspace, family, &mut |key, row| {
                    checked.rows += 1;
                    if let Err(error) = row {
                        let key: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
                        found(*keyspace, format!("{error} (family {}, key {key})", family.name()));
                    }
                    true
                });
                if let Err(error) = read {
                    found(*keyspace, format!("family {} cannot be read on: {error}", family.name()));
                }
            }
            match self.seqs(*keyspace, state) {
                Ok(None) => {}
                Ok(Some(gap)) => found(*keyspace, gap),
                Err(error) => found(*keyspace, error.to_string()),
            }
            for segment in
                read_segments(self.engine.as_ref(), *keyspace).unwrap_or_default().iter().filter(|one| has_file(one))
            {
                checked.files += 1;
                if let Err(error) = files.scrub(*keyspace, segment, &mut |_| Step::On) {
                    found(*keyspace, format!("segment {}: {error}", SegmentId(segment.id)));
                }
            }
        }
        Ok(Checked { findings, ..checked })
    }

    /// Whether a shard's chunks and segments hold each of its sequence numbers once.
    fn seqs(&self, keyspace: Keyspace, state: &record::ShardState) -> Result<Option<String>> {
        let chunks = read_chunks(self.engine.as_ref(), keyspace)?.into_iter().chain(state.open);
        let mut spans: Vec<_> = chunks
            .filter(|chunk| chunk.first_seq <= chunk.last_seq)
            .map(|chunk| (chunk.first_seq, chunk.last_seq, (chunk.last_seq - chunk.first_seq).saturating_add(1)))
            .collect();
        let segments = read_segments(self.engine.as_ref(), keyspace)?;
        spans.extend(segments.iter().map(|one| (one.first_seq, one.last_seq, one.rows.saturating_add(one.gone))));
        spans.sort_unstable();
        let mut before = 0;
        for (first, last, events) in spans {
            if last < first || first.checked_sub(1) != Some(before) || events != last - before {
                return Ok(Some(format!("INV-S4: #{first} to #{last} with {events} events come behind #{before}")));
            }
            before = last;
        }
        let last = state.last_seq;
        Ok((before != last).then(|| format!("INV-S4: sources end at #{before}, the shard at #{last}")))
    }
}

/// What a row is, what its key names, and what it holds.
type Said = (&'static str, Vec<(&'static str, String)>, String);

fn tag(rest: &mut &[u8]) -> Result<u8> {
    rest.split_off_first().copied().ok_or_else(|| Error::row("key", "too short"))
}

fn number(rest: &mut &[u8]) -> Result<u64> {
    take_u64(rest).ok_or_else(|| Error::row("key", "too short"))
}

fn text(rest: &mut &[u8]) -> Result<String> {
    take_text(rest).ok_or_else(|| Error::row("key", "holds no text where one belongs"))
}

/// The rest of a key as a name that is not escaped.
fn name(rest: &mut &[u8]) -> Result<String> {
    let bytes = std::mem::take(rest);
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|error| Error::row("key", error))
}

fn message<M: Message + Default + Debug>(value: &[u8]) -> Result<String> {
    let message = M::decode(value).map_err(|error| Error::row(std::any::type_name::<M>(), error))?;
    Ok(format!("{message:?}"))
}

fn kinds(value: &[u8]) -> Result<String> {
    match value {
        [kinds] => Ok(format!("{:?}", Kinds(*kinds))),
        _ => Err(Error::row("kinds", "not one byte")),
    }
}

fn meta(rest: &mut &[u8], value: &[u8]) -> Result<Said> {
    Ok(match tag(rest)? {
        key::STATE => ("shard state", vec![], message::<record::ShardState>(value)?),
        key::CHUNK => ("chunk", vec![("chunk", number(rest)?.to_string())], message::<record::Chunk>(value)?),
        key::SEGMENT => {
            let mut segment = record::Segment::decode(value).map_err(|error| Error::row("segment", error))?;
            // Thousands of numbers that nobody reads.
            segment.block_crcs.clear();
            ("segment", vec![("segment", number(rest)?.to_string())], format!("{segment:?}"))
        }
        key::PROPERTY => ("property", vec![("property", name(rest)?)], message::<record::Property>(value)?),
        key::QUALIFIER => ("qualifier", vec![("family", text(rest)?), ("qualifier", text(rest)?)], kinds(value)?),
        key::ROLLUP => {
            let rollup = Rollup::decode(value).map_err(|error| Error::row("rollup", error))?;
            Definition::of_row(&rollup)?;
            ("rollup", vec![("rollup", number(rest)?.to_string())], format!("{rollup:?}"))
        }
        key::FAMILY => ("family", vec![("family", text(rest)?)], message::<FamilyDefinition>(value)?),
        key::DECLARED => ("declared properties", vec![], message::<PropertyDeclarations>(value)?),
        key::ERASURE => ("erasure", vec![("player", text(rest)?)], message::<record::Erasure>(value)?),
        other => return Err(Error::row("meta key", format!("tag {other}"))),
    })
}

fn cells(rest: &mut &[u8], value: &[u8]) -> Result<Said> {
    let (token, player) = (number(rest)?, text(rest)?);
    let mut fields = vec![("token", format!("{token:016x}")), ("player", player)];
    if tag(rest)? == key::ROW {
        return Ok(("row", fields, format!("{:?}", Header::decode(value)?)));
    }
    fields.extend([("family", text(rest)?), ("qualifier", text(rest)?)]);
    Ok(("cell", fields, format!("{:?}", Current::decode(value)?)))
}

fn history(rest: &mut &[u8], value: &[u8]) -> Result<Said> {
    let (token, player) = (number(rest)?, text(rest)?);
    tag(rest)?;
    let (family, qualifier, version) = (text(rest)?, text(rest)?, !number(rest)?);
    let fields = vec![
        ("token", format!("{token:016x}")),
        ("player", player),
        ("family", family),
        ("qualifier", qualifier),
        ("version", version.to_string()),
    ];
    Ok(("past value", fields, format!("{:?}", Past::decode(value)?)))
}

fn run(key: &[u8], rest: &mut &[u8], value: &[u8]) -> Result<Said> {
    let (chunk, first) = (number(rest)?, number(rest)?);
    let mut run = Run::of(key, value)?;
    let mut events = Vec::new();
    for event in &mut run {
        let event = event?;
        events.push(format!("#{} {} {} {}", event.seq.0, event.player, event.time_ms, event.event_type));
    }
    Ok(("run", vec![("chunk", chunk.to_string()), ("first seq", first.to_string())], events.join(", ")))
}

fn producers(rest: &mut &[u8], value: &[u8]) -> Result<Said> {
    let empty = |value: &[u8]| value.is_empty().then(String::new).ok_or_else(|| Error::row("eviction", "not empty"));
    Ok(match tag(rest)? {
        key::PRODUCER => ("producer", vec![("producer", text(rest)?)], message::<record::Producer>(value)?),
        key::OUTCOME => {
            let fields = vec![("producer", text(rest)?), ("number", number(rest)?.to_string())];
            let outcome = record::BatchOutcome::decode(value).map_err(|error| Error::row("outcome", error))?;
            let _known: Option<command::Outcome> = outcome.outcome.clone();
            ("outcome", fields, format!("{outcome:?}"))
        }
        key::EVICTION => {
            let fields = vec![("log index", number(rest)?.to_string()), ("producer", text(rest)?)];
            ("eviction", fields, empty(value)?)
        }
        key::SOURCE => {
            let fields = vec![("group", text(rest)?), ("producer", text(rest)?)];
            let registered = value.try_into().map(u64::from_be_bytes);
            ("source", fields, registered.map_err(|_| Error::row("source", "not 8 bytes"))?.to_string())
        }
        key::EVENT_ID => {
            let (slice, token) = (number(rest)?.to_string(), format!("{:016x}", number(rest)?));
            let hash = format!("{:016x}{:016x}", number(rest)?, number(rest)?);
            let stored = value.try_into().map(u64::from_be_bytes);
            let stored = stored.map_err(|_| Error::row("event id", "not 8 bytes"))?.to_string();
            ("event id", vec![("slice", slice), ("token", token), ("hash", hash)], stored)
        }
        other => return Err(Error::row("producers key", format!("tag {other}"))),
    })
}
