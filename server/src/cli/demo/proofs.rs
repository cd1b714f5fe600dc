//! The demo's proofs: what the store answers against what is known otherwise.

use std::{collections::HashMap, time::Instant};

use anyhow::Context;
use galoo_proto::value::{Value, value::Kind};
use galoo_workload::{StateTally, Tally};

use super::{
    ASK_EVERY, CATCH_UP_MAX, ROLLUP, ROLLUP_SELECT,
    answers::{BY_TYPE, DAILY_ACTIVE, MOST_ACTIVE, Sql},
    cluster::Cluster,
    loader::Loaded,
    tell::{Tell, grouped, seconds},
};
use crate::cli::{Failure, output};

/// Proves that the rollup says what the same aggregate over the raw events says.
pub(super) async fn rollup_is_raw(sql: &mut Sql, tell: &mut Tell) -> Result<(), Failure> {
    let asked = Instant::now();
    let kept = sql.rows(&format!("SELECT bucket, event_type, events, players FROM {ROLLUP} ORDER BY 1, 2")).await?;
    let kept_in = asked.elapsed();
    sql.rows("SET galoo.rewrite = off").await?;
    let asked = Instant::now();
    let raw = sql.rows(&format!("{ROLLUP_SELECT} ORDER BY 1, 2")).await?;
    let raw_in = asked.elapsed();
    sql.rows("SET galoo.rewrite = on").await?;
    let differing = kept.iter().zip(&raw).filter(|(one, other)| one != other).count() + kept.len().abs_diff(raw.len());
    let found = if differing == 0 {
        format!(
            "{} rows of {ROLLUP} ({}) are those of the raw events ({})",
            grouped(kept.len() as u64),
            seconds(kept_in),
            seconds(raw_in)
        )
    } else {
        format!("{differing} rows differ, of {} and {}", kept.len(), raw.len())
    };
    tell.proof("rollup = raw", differing == 0 && !kept.is_empty(), &found)
}

/// Proves that everything acknowledged is there, once, and nothing else.
pub(super) async fn acknowledged_is_stored(sql: &mut Sql, loaded: &Loaded, tell: &mut Tell) -> Result<(), Failure> {
    let mut differences = Vec::new();
    let mut compare = |what: &str, expected: String, stored: String| {
        if expected != stored {
            differences.push(format!("{what}: acknowledged {expected}, stored {stored}"));
        }
    };
    let stored = sql.number("SELECT count(*) FROM events").await?;
    compare("events", loaded.events.to_string(), stored.to_string());
    let mut found = format!("{} events", grouped(loaded.events));
    if let Some((tally, state)) = &loaded.tally {
        let mut by_type: Vec<_> =
            tally.by_type().iter().map(|(name, count)| vec![name.clone(), count.to_string()]).collect();
        by_type.sort_by_key(|row| std::cmp::Reverse(row[1].parse::<u64>().unwrap_or(0)));
        compare("by type", format!("{by_type:?}"), format!("{:?}", sql.rows(BY_TYPE).await?));
        compare("most active", most_active(tally), format!("{:?}", sql.rows(MOST_ACTIVE).await?));
        let days = sql.rows(DAILY_ACTIVE).await?;
        let days: Vec<_> = days.iter().map(|row| row[1].clone()).collect();
        let expected: Vec<_> = tally.daily_active().iter().map(|(_, players)| players.to_string()).collect();
        compare("daily active", expected.join(" "), days.join(" "));
        let stored = sql.rows("SELECT player_id, family, qualifier, value FROM state").await?;
        let wrong = differing_cells(state, &stored);
        compare("cells of state that differ", "0".to_owned(), wrong.to_string());
        found = format!(
            "{found} by type, player and day, {} cells of {} players",
            grouped(state.cells()),
            grouped(state.players())
        );
    }
    let holds = differences.is_empty();
    tell.proof("acknowledged = stored", holds, if holds { &found } else { &differences[0] })
}

fn most_active(tally: &Tally) -> String {
    let rows: Vec<_> =
        tally.most_active(5).iter().map(|(player, count)| vec![(*player).to_owned(), count.to_string()]).collect();
    format!("{rows:?}")
}

/// A cell's value as SQL shows it.
fn text(value: &Value) -> String {
    match &value.kind {
        Some(Kind::String(text) | Kind::Json(text)) => text.clone(),
        _ => output::value_json(value).to_string(),
    }
}

/// Counts the cells that are missing, too many, or of another value.
fn differing_cells(state: &StateTally, stored: &[Vec<String>]) -> u64 {
    let by_name = |row: &'_ Vec<String>| ((row[0].clone(), row[1].clone(), row[2].clone()), row[3].clone());
    let mut stored: HashMap<_, _> = stored.iter().map(by_name).collect();
    let mut wrong = 0;
    for (player, cells) in state.iter() {
        for ((family, qualifier), value) in cells {
            let found = stored.remove(&(player.to_owned(), family.clone(), qualifier.clone()));
            wrong += u64::from(found.as_deref() != Some(text(value).as_str()));
        }
    }
    wrong + stored.len() as u64
}

/// Proves that every node holds the same: the replicas of each shard have applied the same commands to the same content.
pub(super) async fn same_everywhere(cluster: &Cluster, loaded: &Loaded, tell: &mut Tell) -> Result<(), Failure> {
    let since = Instant::now();
    loop {
        let nodes = cluster.checksums().await?;
        let (first, others) = nodes.split_first().context("no nodes")?;
        let same = others.iter().all(|other| other == first);
        let counted =
            nodes.iter().all(|node| node.values().map(|replica| replica.events).sum::<u64>() == loaded.events);
        if same && counted {
            let found = format!("{} shards have equal checksums on {} nodes", first.len(), nodes.len());
            return tell.proof("same everywhere", true, &found);
        }
        // Replicas that have applied as much and differ will never be the same.
        let differ = others.iter().flatten().find(|(shard, replica)| {
            first.get(shard).is_some_and(|one| one.applied == replica.applied && one != *replica)
        });
        if differ.is_some() || since.elapsed() > CATCH_UP_MAX {
            let found = match differ {
                Some((shard, replica)) => format!("the replicas of s{shard} differ at index {}", replica.applied),
                None => format!("the nodes hold {nodes:?}, after {}", seconds(since.elapsed())),
            };
            return tell.proof("same everywhere", false, &found);
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}
