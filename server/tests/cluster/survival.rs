//! What was acknowledged survives: every node is killed in turn under load, one is away for long, all die at once.

use std::{fs, path::Path};

use serde_json::Value;

use crate::{
    Nodes, galoo, leader_of, rows, status,
    support::{self, done, import, report},
    wait_until,
};

const LINES: u64 = 60_000;

/// Writes events of 500 players: a function of `lines`.
fn write_events(path: &Path, lines: u64) {
    let mut state = 7u64;
    let mut next = |n: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % n
    };
    let line = |line| {
        format!(
            "{{\"player\":\"p{}\",\"ts_ms\":{},\"event\":\"e{}\",\"gold\":{}}}\n",
            next(500),
            1_700_000_000_000u64 + line * 10,
            next(4),
            next(1_000)
        )
    };
    fs::write(path, (0..lines).map(line).collect::<String>()).expect("writes");
}

fn stored(addr: &str) -> u64 {
    rows(&status(addr), "shards").filter_map(|shard| shard["events"].as_u64()).sum()
}

/// The node (from 0) that leads most shards, as a node tells.
fn leader(addr: &str) -> usize {
    let status = status(addr);
    let most = rows(&status, "nodes").max_by_key(|node| node["leads"].as_u64()).expect("nodes");
    usize::try_from(most["id"].as_u64().expect("an id") - 1).expect("small")
}

/// (shard, applied, checksum) of a node's own replicas.
fn replicas(addr: &str) -> Vec<(u64, u64, String)> {
    let shards = galoo(&["checksum", "--addr", addr, "--game", "g", "--local"]).unwrap_or_default();
    let of = |shard: &Value| (shard["shard"].as_u64(), shard["applied"].as_u64(), shard["checksum"].to_string());
    let shards = shards.as_array().cloned().unwrap_or_default();
    shards.iter().map(of).map(|(shard, applied, sum)| (shard.unwrap_or(0), applied.unwrap_or(0), sum)).collect()
}

/// How many events there are, and the gold in them.
fn totals(nodes: &Nodes, node: usize) -> Result<(String, String), String> {
    let rows = support::psql(nodes.pg(node), "g", "select count(*), sum(gold) from events")?;
    Ok((rows[0][0].clone().unwrap_or_default(), rows[0][1].clone().unwrap_or_default()))
}

#[test]
fn an_import_survives_the_death_of_every_node_in_turn() {
    let mut nodes = Nodes::formed(3);
    let addrs = nodes.addrs();
    let events = nodes.folder.path().join("events.ndjson");
    write_events(&events, LINES);
    let created = galoo(&["game", "create", "g", "--shards", "3", "--replicas", "3", "--addr", &addrs[1]]);
    assert_eq!(created.expect("created")["replicas"], 3);

    // Each node is killed once while the import runs; the next one dies when it is back.
    let running = import(&nodes.addresses(), &events);
    let mut victim = leader(&addrs[0]);
    for part in [6, 3, 2] {
        let witness = &addrs[(victim + 1) % 3];
        wait_until("events are stored", || (stored(witness) >= LINES / part).then_some(()));
        nodes.kill9(victim);
        nodes.restart(victim);
        victim = (victim + 1) % 3;
    }
    assert_eq!(report(running)["lines"], LINES);
    let again = report(import(&addrs[2], &events));
    assert_eq!((again["events_stored"].as_u64(), again["duplicates"].as_u64()), (Some(0), Some(LINES)));

    // Every node answers all of it, whoever leads.
    let text = fs::read_to_string(&events).expect("reads");
    let gold = |line: &str| serde_json::from_str::<Value>(line).expect("JSON")["gold"].as_u64().expect("gold");
    let expected = (LINES.to_string(), text.lines().map(gold).sum::<u64>().to_string());
    for node in 0..3 {
        assert_eq!(totals(&nodes, node).as_ref(), Ok(&expected));
    }
    let value =
        |addr: &str| galoo(&["get", "ann", "s:gold", "--game", "g", "--addr", addr]).expect("gets")["value"].clone();
    for (at, addr) in addrs.iter().enumerate() {
        galoo(&["put", "ann", "s:gold", "--increment", "5", "--game", "g", "--addr", addr]).expect("puts");
        assert_eq!(value(&addrs[(at + 1) % 3]), 5 * (at + 1), "a read at another node sees the write");
    }

    // Replicas that applied the same hold the same.
    wait_until("replicas agree", || {
        let all: Vec<_> = addrs.iter().map(|addr| replicas(addr)).collect();
        let applied = |of: &[(u64, u64, String)]| of.iter().map(|(shard, at, _)| (*shard, *at)).collect::<Vec<_>>();
        let same = all.iter().all(|one| one.len() == 3 && applied(one) == applied(&all[0]));
        same.then(|| assert!(all.iter().all(|one| *one == all[0]), "replicas differ: {all:?}"))
    });

    // All die at once, and come back.
    done(nodes.kill(&[0, 1, 2]));
    done(nodes.start_again(&[0, 1, 2]));
    for node in 0..3 {
        assert_eq!(wait_until("SQL is answered", || totals(&nodes, node).ok()), expected);
    }
    for node in 0..3 {
        assert!(done(nodes.stop(node)).success());
    }
}

/// A node that was away while the others cut their logs pulls their state.
#[test]
fn a_node_that_was_long_away_catches_up_from_a_snapshot() {
    let mut nodes = Nodes::formed(3);
    let addrs = nodes.addrs();
    let events = nodes.folder.path().join("events.ndjson");
    write_events(&events, 4 * LINES);
    galoo(&["game", "create", "g", "--shards", "1", "--replicas", "3", "--addr", &addrs[0]]).expect("created");
    let applied = wait_until("replicas agree", || {
        let one = replicas(&addrs[0]).into_iter().next()?;
        addrs.iter().all(|addr| replicas(addr).contains(&one)).then_some(one.1)
    });
    let away = (leader_of("g", &addrs[0]) + 1) % 3;
    nodes.kill9(away);
    let (one, other) = ((away + 1) % 3, (away + 2) % 3);
    let others = format!("{},{}", addrs[one], addrs[other]);
    assert_eq!(report(import(&others, &events))["events_stored"], 4 * LINES);
    // Group 1 is the meta group.
    let cut = |node| done(nodes.metric(node, "galoo_log_cut_index{group=\"2\"}")) > applied as f64;
    wait_until("the others have cut what it would need", || (cut(one) && cut(other)).then_some(()));
    nodes.restart(away);
    wait_until("the replica has everything", || {
        let all: Vec<_> = addrs.iter().map(|addr| replicas(addr)).collect();
        (all[away].len() == 1 && all.iter().all(|replica| *replica == all[0])).then_some(())
    });
    let log = nodes.log(away);
    assert!(log.contains("pulled a snapshot") && log.contains("goes on from a snapshot"), "it needed no snapshot");
    let expected = totals(&nodes, one).expect("answers");
    assert_eq!(wait_until("SQL is answered", || totals(&nodes, away).ok()), expected);
    // It is whole on disk too.
    nodes.kill9(away);
    nodes.restart(away);
    assert_eq!(wait_until("SQL is answered", || totals(&nodes, away).ok()), expected);
    assert!(done(nodes.stop(away)).success());
}

/// Files that rot or vanish are found, and the shards that they belong to are rebuilt from the other replicas.
#[test]
fn damaged_segments_are_replaced_from_the_other_nodes() {
    let mut nodes = Nodes::formed(3);
    let addrs = nodes.addrs();
    let events = nodes.folder.path().join("events.ndjson");
    write_events(&events, LINES);
    galoo(&["game", "create", "g", "--shards", "3", "--replicas", "3", "--addr", &addrs[0]]).expect("created");
    assert_eq!(report(import(&nodes.addresses(), &events))["events_stored"], LINES);
    addrs.iter().for_each(|addr| drop(galoo(&["compact", "--game", "g", "--addr", addr]).expect("compacts")));
    let expected = totals(&nodes, 0).expect("answers");
    let agree = || {
        let all: Vec<_> = addrs.iter().map(|addr| replicas(addr)).collect();
        (all[0].len() == 3 && all.iter().all(|replica| *replica == all[0])).then_some(())
    };
    wait_until("replicas agree", agree);

    // One file goes, a bit of each other one flips. What was read before the restart counts as checked; stopped, the node
    // leaves nothing that only the log knows, and when it starts files that it does not use any more go.
    let hurt = 1;
    assert!(done(nodes.stop(hurt)).success());
    nodes.restart(hurt);
    assert!(done(nodes.stop(hurt)).success());
    let folder = nodes.nodes()[hurt].data.join("segments");
    let keyspaces = fs::read_dir(folder).expect("lists").map(|entry| entry.expect("lists").path());
    let files: Vec<_> = keyspaces
        .flat_map(|folder| fs::read_dir(folder).expect("lists"))
        .map(|file| file.expect("lists").path())
        .collect();
    assert!(files.len() >= 3, "each shard has a segment: {files:?}");
    for (at, file) in files.iter().enumerate() {
        let mut bytes = fs::read(file).expect("reads");
        let place = bytes.len() * (at + 1) / (files.len() + 2);
        bytes[place] ^= 1 << (at % 8);
        if at == 0 { fs::remove_file(file) } else { fs::write(file, bytes) }.expect("changes");
    }
    nodes.restart(hurt);
    let damaged = || rows(&status(&addrs[hurt]), "damaged").count();
    wait_until("whoever reads finds it, and nobody is told anything wrong", || {
        let found = totals(&nodes, hurt);
        assert!(found.is_err() || found.as_ref() == Ok(&expected), "{found:?}");
        (agree().is_some() && found.is_ok() && damaged() == 0).then_some(())
    });
    let log = nodes.log(hurt);
    assert!(log.contains("the file is missing") && log.contains("CRC"), "{log}");
    assert!(log.matches("goes on from a snapshot").count() >= 3, "{log}");
    assert_eq!(totals(&nodes, hurt).as_ref(), Ok(&expected));
    assert!(done(nodes.stop(hurt)).success());
}

/// Events that are too old are not read any more on any node and their files go, once rollups hold them; rollups keep them.
#[test]
fn events_are_dropped_everywhere_after_their_retention() {
    let mut nodes = Nodes::formed(3);
    let addrs = nodes.addrs();
    let events = nodes.folder.path().join("events.ndjson");
    write_events(&events, LINES);
    galoo(&["game", "create", "g", "--shards", "2", "--replicas", "3", "--addr", &addrs[0]]).expect("created");
    let rollup = "create rollup daily as select time_bucket('1 minute', event_time) as minute, count(*) as events, \
                  approx_quantile(gold, 0.5) as median from events group by 1 with (tiers = '1 minute, 1 day')";
    assert_eq!(report(import(&nodes.addresses(), &events))["events_stored"], LINES);
    support::psql(nodes.pg(1), "g", rollup).expect("created");
    let verify = |node: usize, table: &str| galoo(&["rollup", "verify", table, "--game", "g", "--addr", &addrs[node]]);
    for (node, table) in [(0, "daily"), (1, "daily_1d"), (2, "daily")] {
        let verified = verify(node, table).expect("the rollup is what the events give");
        assert_eq!((verified["events"].as_u64(), verified["different"].as_u64()), (Some(LINES), Some(0)), "{table}");
    }
    assert!(verify(0, "nothing").expect_err("no such rollup").1.contains("nothing"));
    let listed = wait_until("every node has covered what is sealed", || {
        let listed = addrs.iter().map(|addr| galoo(&["rollup", "list", "--game", "g", "--addr", addr]).ok());
        let listed: Vec<_> = listed.collect::<Option<_>>()?;
        let is_covered = |told: &serde_json::Value| told["rollups"][0]["covered"].as_u64().is_some_and(|seq| seq > 0);
        listed.iter().all(is_covered).then_some(listed)
    });
    assert_eq!(listed[1]["rollups"][0]["tables"], serde_json::json!(["daily", "daily_1d"]));
    assert_eq!(listed[2]["rollups"][0]["events"].as_u64(), Some(LINES));
    let refused = galoo(&["game", "alter", "g", "--retention", "5ms", "--addr", &addrs[0]]).expect_err("too short");
    assert!(refused.1.contains("events_retention_ms") && refused.1.contains("at least 1000"), "{refused:?}");
    // Half of them are older. Events that are told of now are not.
    let now_ms = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let middle_ms = 1_700_000_000_000 + u128::from(LINES) * 10 / 2;
    let retention = format!("{}ms", now_ms - middle_ms);
    let altered = galoo(&["game", "alter", "g", "--retention", &retention, "--addr", &addrs[2]]).expect("altered");
    assert_eq!(altered["events_retention_ms"].as_u64().map(u128::from), Some(now_ms - middle_ms));
    append_now(&addrs[0]);
    let left = |node| support::psql(nodes.pg(node), "g", "select count(*), min(event_time) from events");
    let half = wait_until("half of them are dropped", || {
        let rows = left(0).ok()?;
        let count: u64 = rows[0][0].as_ref()?.parse().ok()?;
        (count <= LINES / 2 + 1).then_some(count)
    });
    assert!(half > 1, "no more than what is too old");
    galoo(&["game", "alter", "g", "--retention", "1h", "--addr", &addrs[1]]).expect("altered");
    for node in 0..3 {
        wait_until("all but the new one are dropped", || {
            (left(node).ok()?[0][0].as_deref() == Some("1")).then_some(())
        });
        let kept = support::psql(nodes.pg(node), "g", "select sum(events) from daily").expect("answers");
        assert_eq!(kept[0][0], Some((LINES + 1).to_string()), "the rollup keeps what it holds");
    }
    wait_until("files go", || {
        let of =
            |addr: &String| rows(&status(addr), "shards").filter_map(|shard| shard["segments"].as_u64()).sum::<u64>();
        addrs.iter().all(|addr| of(addr) <= 2).then_some(())
    });
    wait_until("replicas agree", || {
        let all: Vec<_> = addrs.iter().map(|addr| replicas(addr)).collect();
        (all[0].len() == 2 && all.iter().all(|replica| *replica == all[0])).then_some(())
    });
    // A restart finds it so.
    done(nodes.kill(&[0, 1, 2]));
    done(nodes.start_again(&[0, 1, 2]));
    assert_eq!(wait_until("SQL is answered", || nodes.events(2, "g").ok()), "1");
    (0..3).for_each(|node| assert!(done(nodes.stop(node)).success()));
}

/// A player who is forgotten is read on no node any more, and then in no file; the others are.
#[test]
fn a_forgotten_player_is_gone_from_every_node() {
    let mut nodes = Nodes::formed(3);
    let addrs = nodes.addrs();
    let events = nodes.folder.path().join("events.ndjson");
    write_events(&events, LINES);
    galoo(&["game", "create", "g", "--shards", "1", "--replicas", "3", "--addr", &addrs[0]]).expect("created");
    let rollup = |name: &str, group: &str, erasure: &str| {
        let select =
            format!("select time_bucket('1 day', event_time) as day, {group}, count(*) as n from events group by 1, 2");
        let with = format!("with (tiers = '1 day, 7 days', erasure = '{erasure}')");
        support::psql(nodes.pg(1), "g", &format!("create rollup {name} as {select} {with}")).expect("created");
    };
    rollup("by_type", "event_type", "keep");
    rollup("by_player", "player_id", "keep");
    rollup("taken_out", "event_type", "subtract");
    rollup("made_anew", "event_type", "recompute");
    assert_eq!(report(import(&nodes.addresses(), &events))["events_stored"], LINES);
    galoo(&["append", "somebody-to-forget", "login", "--game", "g", "--addr", &addrs[0]]).expect("stored");
    galoo(&["put", "somebody-to-forget", "s:gold", "5", "--game", "g", "--addr", &addrs[0]]).expect("put");
    addrs.iter().for_each(|addr| drop(galoo(&["compact", "--game", "g", "--addr", addr]).expect("compacts")));
    let exported = |addr: &str, player: &str| {
        let printed = support::galoo(&["export", player, "--game", "g", "--addr", addr]);
        assert!(printed.status.success(), "{printed:?}");
        String::from_utf8(printed.stdout).expect("UTF-8").lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let before = exported(&addrs[2], "somebody-to-forget");
    assert!(before.len() == 2 && before[0].contains(r#""cell":{"#) && before[1].contains(r#""event":{"#), "{before:?}");
    let others = exported(&addrs[1], "p7");

    let receipt = galoo(&["forget", "somebody-to-forget", "--game", "g", "--addr", &addrs[1]]).expect("forgotten");
    let place = |name: &str| receipt["places"][name].as_str().unwrap_or_default().to_owned();
    assert!(place("rollups that name players").contains("by_player"), "{receipt}");
    assert!(place("other rollups").contains("by_type"), "{receipt}");
    assert_eq!(place("rollups that let go"), "taken out before the events go: taken_out, made_anew");
    for (node, addr) in addrs.iter().enumerate() {
        assert_eq!(exported(addr, "somebody-to-forget"), Vec::<String>::new());
        assert_eq!(exported(addr, "p7"), others);
        let count = |table: &str, what: &str, player: &str| {
            let ask = format!("select {what} from {table} where player_id = '{player}'");
            support::psql(nodes.pg(node), "g", &ask).expect("answers")[0][0].clone()
        };
        assert_eq!(count("by_player", "count(*)", "somebody-to-forget").as_deref(), Some("0"));
        assert_eq!(count("by_player", "sum(n)", "p7"), count("events", "count(*)", "p7"));
        let all = support::psql(nodes.pg(node), "g", "select sum(n) from by_type").expect("answers");
        assert_eq!(all[0][0], Some((LINES + 1).to_string()), "it names nobody");
    }
    wait_until("nothing is left to remove", || {
        let pending = galoo(&["forget", "--pending", "--game", "g", "--addr", &addrs[0]]).ok()?;
        pending.as_array()?.is_empty().then_some(())
    });
    for (node, addr) in addrs.iter().enumerate() {
        for table in ["taken_out", "made_anew", "taken_out_7d", "made_anew_7d"] {
            let all = support::psql(nodes.pg(node), "g", &format!("select sum(n) from {table}")).expect("answers");
            assert_eq!(all[0][0], Some(LINES.to_string()), "{table} of node {node}");
            let verified = galoo(&["rollup", "verify", "--game", "g", "--addr", addr, table]).expect("is right");
            assert_eq!(verified["events"], LINES, "{verified}");
        }
    }
    // The files that were written anew go at the latest a minute after a flush, or when the node starts.
    for node in 0..3 {
        assert!(done(nodes.stop(node)).success());
        nodes.restart(node);
        let keyspaces = fs::read_dir(nodes.nodes()[node].data.join("segments")).expect("lists");
        let files = keyspaces.flat_map(|folder| fs::read_dir(folder.expect("lists").path()).expect("lists"));
        let read: Vec<_> = files.map(|file| fs::read(file.expect("lists").path()).expect("reads")).collect();
        let names = |bytes: &Vec<u8>| bytes.windows(18).any(|window| window == b"somebody-to-forget");
        assert!(!read.is_empty() && !read.iter().any(names), "a file names the player");
    }
    wait_until("replicas agree", || {
        let all: Vec<_> = addrs.iter().map(|addr| replicas(addr)).collect();
        (all[0].len() == 1 && all.iter().all(|replica| *replica == all[0])).then_some(())
    });
    (0..3).for_each(|node| assert!(done(nodes.stop(node)).success()));
}

fn append_now(addr: &str) {
    galoo(&["append", "ann", "login", "--game", "g", "--addr", addr]).expect("stored");
}
