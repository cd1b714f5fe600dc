//! What a session changed in a player's state, gathered until the backend saves it.
//!
//! Numbers that others may change too (gold, items) are increments; what the session alone decides is put.

use galoo_proto::value::{Mutation, Null, Value, mutation::Change, value::Kind};

use crate::world::{ITEMS, guild_name};

/// Changes since the last save.
#[derive(Default)]
pub(crate) struct Changes {
    /// Set at the first login.
    pub(crate) born: Option<Born>,
    pub(crate) last_login_ms: Option<i64>,
    pub(crate) level: Option<u32>,
    pub(crate) rating: Option<i64>,
    /// The guild, or none after leaving it.
    pub(crate) guild: Option<Option<u32>>,
    pub(crate) xp: i64,
    pub(crate) gold: i64,
    pub(crate) spent_cents: i64,
    pub(crate) matches: i64,
    pub(crate) wins: i64,
    pub(crate) kills: i64,
    pub(crate) sessions: i64,
    pub(crate) items: [i64; ITEMS.len()],
}

/// What stands of a player from the first login on.
pub(crate) struct Born {
    pub(crate) region: &'static str,
    pub(crate) language: &'static str,
    pub(crate) platform: &'static str,
}

impl Changes {
    /// Takes all changes out, as mutations of cells in a fixed order.
    pub(crate) fn take(&mut self) -> Vec<Mutation> {
        let taken = std::mem::take(self);
        let mut mutations = Vec::with_capacity(16);
        let mut change = |family: &str, qualifier: &str, change| {
            let (family, qualifier) = (family.to_owned(), qualifier.to_owned());
            mutations.push(Mutation { family, qualifier, change: Some(change), ..Mutation::default() });
        };
        let put = |kind| Change::Put(Value { kind: Some(kind) });
        if let Some(born) = taken.born {
            change("profile", "region", put(Kind::String(born.region.to_owned())));
            change("profile", "language", put(Kind::String(born.language.to_owned())));
            let settings = format!(r#"{{"platform":"{}","crossplay":true,"volume":0.8}}"#, born.platform);
            change("profile", "settings", put(Kind::Json(settings)));
        }
        if let Some(at) = taken.last_login_ms {
            change("profile", "last_login_ms", put(Kind::Int(at)));
        }
        if let Some(level) = taken.level {
            change("profile", "level", put(Kind::Int(i64::from(level))));
        }
        if let Some(rating) = taken.rating {
            change("profile", "rating", put(Kind::Int(rating)));
        }
        match taken.guild {
            None => {}
            Some(Some(guild)) => change("guild", "name", put(Kind::String(guild_name(guild)))),
            Some(None) => change("guild", "name", Change::Delete(Null::Null.into())),
        }
        let added = [
            ("profile", "xp", taken.xp),
            ("wallet", "gold", taken.gold),
            ("wallet", "spent_cents", taken.spent_cents),
            ("stats", "matches", taken.matches),
            ("stats", "wins", taken.wins),
            ("stats", "kills", taken.kills),
            ("stats", "sessions", taken.sessions),
        ];
        let items = ITEMS.iter().zip(taken.items).map(|(item, by)| ("inventory", item.name, by));
        for (family, qualifier, by) in added.into_iter().chain(items) {
            if by != 0 {
                change(family, qualifier, Change::Increment(by));
            }
        }
        mutations
    }
}
