//! Things are found where they are: nodes that moved, shards that only some nodes hold, changes that a node missed.

use galoo_proto::data::{GetManyRequest, GetRequest};
use serde_json::Value;

use crate::{
    Nodes, galoo, init, leader_of, rows, status,
    support::{self, done},
    wait_until,
};

/// What a node shows of each one: its address, when it is up and has applied everything.
fn reached(addr: &str) -> Vec<Option<String>> {
    let status = status(addr);
    let of = |node: &Value| {
        let up = node["reachable"] == true && node["lag"] == 0;
        up.then(|| node["grpc"].as_str().map(str::to_owned)).flatten()
    };
    rows(&status, "nodes").map(of).collect()
}

/// Every node shows every other one where it is.
fn wait_until_all_are_found(addrs: &[String]) {
    let wanted: Vec<_> = addrs.iter().cloned().map(Some).collect();
    wait_until("all nodes are found", || addrs.iter().all(|addr| reached(addr) == wanted).then_some(()));
}

fn append(player: usize, addr: &str) {
    galoo(&["append", &format!("p{player}"), "login", "--game", "g", "--addr", addr]).expect("stored");
}

/// Asks a node for a cell of many players: each one's name and how many cells were found.
fn gold(game: &str, addr: &str, players: &[&str]) -> Vec<String> {
    let (game, family, qualifier) = (game.to_owned(), "s".to_owned(), "gold".to_owned());
    let of_each = Some(GetRequest { game, family, qualifier, ..GetRequest::default() });
    let player_ids = players.iter().map(|player| (*player).to_owned()).collect();
    let read = done(async {
        let client = galoo_client::Client::connect(addr).await?;
        Ok(client.get_many(GetManyRequest { of_each, player_ids }).await?)
    });
    read.iter().map(|player| format!("{} {}", player.player_id, player.cells.len())).collect()
}

/// One node moves and is found by itself; when all move at once, `--join` says where.
#[test]
fn nodes_are_found_where_they_moved() {
    let mut nodes = Nodes::formed(3);
    galoo(&["game", "create", "g", "--shards", "3", "--addr", &nodes.grpc(0)]).expect("created");
    (0..3).for_each(|player| append(player, &nodes.grpc(player)));
    let (formed_of, cluster) = (nodes.addresses(), init(&nodes.grpc(0)).expect("formed")["cluster_id"].clone());
    nodes.kill9(2);
    (3..6).for_each(|player| append(player, &nodes.grpc(player % 2)));
    nodes.relocate(2).expect("free ports");
    nodes.launch_to_join(2, &formed_of);
    done(nodes.ready(2));
    wait_until_all_are_found(&nodes.addrs());
    append(6, &nodes.grpc(2));
    assert!((0..3).all(|node| nodes.events(node, "g").as_deref() == Ok("7")));

    done(nodes.kill(&[0, 1, 2]));
    (0..3).for_each(|node| nodes.relocate(node).expect("free ports"));
    done(nodes.start_again(&[0, 1, 2]));
    wait_until_all_are_found(&nodes.addrs());
    append(7, &nodes.grpc(1));
    for node in 0..3 {
        assert_eq!(wait_until("SQL is answered", || nodes.events(node, "g").ok()), "8");
    }
    let formed = init(&nodes.grpc(0)).expect("formed");
    assert_eq!((&formed["cluster_id"], &formed["formed"]), (&cluster, &Value::from(false)));
    let told: Vec<_> = rows(&formed, "nodes").map(|node| node["addr"].as_str().expect("an address")).collect();
    assert_eq!(told, nodes.addrs());
}

/// Players are read and written at any node; a read of a whole game names the node that holds all of it, if there is one.
#[test]
fn games_are_served_by_nodes_that_do_not_hold_them() {
    let mut nodes = Nodes::formed(5);
    let addrs = nodes.addrs();
    let create = |game: &str, shards: &str, replicas: &str| {
        galoo(&["game", "create", game, "--shards", shards, "--replicas", replicas, "--addr", &addrs[4]])
    };
    let (code, said) = create("all", "1", "7").expect_err("refused");
    assert!(code == Some(3) && said.contains("1, 3 or 5"), "{said}");
    for (game, shards, replicas) in [("one", "5", "1"), ("three", "1", "3")] {
        create(game, shards, replicas).expect("created");
        for (node, addr) in addrs.iter().enumerate() {
            let player = format!("p{node}");
            for player in [player.as_str(), "ann"] {
                galoo(&["append", player, "login", "--game", game, "--addr", addr]).expect("stored");
            }
            galoo(&["put", &player, "s:gold", "7", "--game", game, "--addr", addr]).expect("put");
            let next = &addrs[(node + 1) % 5];
            assert_eq!(galoo(&["get", &player, "s:gold", "--game", game, "--addr", next]).expect("gets")["value"], 7);
        }
        for addr in &addrs {
            let scanned = support::galoo(&["scan", "--game", game, "--player", "ann", "--json", "--addr", addr]);
            assert_eq!(String::from_utf8_lossy(&scanned.stdout).lines().count(), 5, "{scanned:?}");
            assert_eq!(
                gold(game, addr, &["p3", "nobody", "p0", "p4", "p0"]),
                ["p3 1", "nobody 0", "p0 1", "p4 1", "p0 1"]
            );
        }
    }
    let held = |game: &str| {
        let status = status(&addrs[0]);
        let of = |shard: &Value| shard["voters"].as_array().expect("voters").clone();
        rows(&status, "shards").filter(|shard| shard["game"] == game).map(of).collect::<Vec<_>>()
    };
    assert!(held("one").iter().all(|voters| voters.len() == 1) && held("one").len() == 5);
    let holders: Vec<_> = held("three")[0].iter().map(|node| node.as_u64().expect("a number") as usize - 1).collect();
    for (node, addr) in addrs.iter().enumerate() {
        let checksum = galoo(&["checksum", "--game", "three", "--addr", addr]);
        if holders.contains(&node) {
            assert_eq!(nodes.events(node, "three").as_deref(), Ok("10"));
            assert_eq!(checksum.expect("a sum")[0]["events"], 10);
        } else {
            let names_one = |said: &str| holders.iter().any(|holder| said.contains(&addrs[*holder]));
            assert!(nodes.events(node, "three").is_err_and(|said| names_one(&said)));
            assert!(checksum.is_err_and(|(code, said)| code == Some(3) && names_one(&said)));
        }
        assert!(nodes.events(node, "one").is_err_and(|said| said.contains("no node has every shard")));
    }

    // Without the leader the others of its group go on, for whoever asks whom.
    let leader = leader_of("three", &addrs[0]);
    let elsewhere = (0..5).find(|node| !holders.contains(node)).expect("a node without it");
    nodes.kill9(leader);
    galoo(&["append", "ann", "logout", "--game", "three", "--addr", &addrs[elsewhere]]).expect("stored");
    nodes.restart(leader);
    assert_eq!(nodes.events(leader, "three").as_deref(), Ok("11"));
    for game in ["one", "three"] {
        galoo(&["game", "drop", game, "--addr", &addrs[elsewhere]]).expect("dropped");
    }
    wait_until("no node knows a game", || {
        addrs.iter().all(|addr| galoo(&["game", "list", "--addr", addr]) == Ok(Value::Array(vec![]))).then_some(())
    });
    // A name is free again, and nothing of the old game is in the new one.
    create("three", "1", "3").expect("created");
    assert_eq!(galoo(&["get", "p1", "s:gold", "--game", "three", "--addr", &addrs[0]]), Ok(Value::Null));
}

/// Rollups, and event types that each one names: more log of the meta group than is kept for a node that is away.
const ROLLUPS: usize = 20;
const EVENT_TYPES: usize = 1_200;

/// A node that was away while games and rollups came and went, and the log of that was cut, pulls what is left of them.
#[test]
fn a_node_that_missed_many_changes_of_games_hears_of_them_from_a_snapshot() {
    let mut nodes = Nodes::formed(3);
    let addrs = nodes.addrs();
    let addr = &addrs[0];
    let create = |name: &str| {
        galoo(&["game", "create", name, "--shards", "1", "--replicas", "1", "--addr", addr]).expect("created")
    };
    let known = |node: usize| {
        let games = galoo(&["game", "list", "--addr", &addrs[node]]).unwrap_or_default();
        let names = games.as_array().into_iter().flatten().filter_map(|game| game["name"].as_str());
        names.map(str::to_owned).collect::<Vec<_>>()
    };
    let types: Vec<_> =
        (0..EVENT_TYPES).map(|number| format!("'an event type with a rather long name {number}'")).collect();
    let select = format!(
        "SELECT time_bucket('1 minute', event_time) AS bucket, count(*) AS events FROM events WHERE event_type IN ({}) \
         GROUP BY 1",
        types.join(", ")
    );
    let pg = nodes.pg(0);
    ["a", "b", "g"].iter().for_each(|name| _ = create(name));
    append(0, addr);
    // How soon the log is cut is the compactor's business.
    wait_until("a snapshot was needed", || {
        nodes.kill9(2);
        for rollup in 0..ROLLUPS {
            let made = format!("CREATE ROLLUP r{rollup} AS {select}");
            support::psql(pg, "g", &made).expect("made");
            support::psql(pg, "g", &format!("DROP ROLLUP r{rollup}")).expect("dropped");
        }
        galoo(&["game", "drop", "a", "--addr", addr]).expect("dropped");
        create("c");
        nodes.restart(2);
        wait_until("the node knows the games", || (known(2) == ["b", "c", "g"]).then_some(()));
        let log = nodes.log(2);
        let of_meta = |words: &str| log.lines().any(|line| line.contains(words) && line.contains("group=group 1 "));
        let pulled = of_meta("pulled a snapshot") && of_meta("goes on from a snapshot");
        galoo(&["game", "drop", "c", "--addr", addr]).expect("dropped");
        create("a");
        pulled.then_some(())
    });
    // It takes part in what comes, and is whole on disk too.
    nodes.kill9(1);
    create("d");
    nodes.kill9(2);
    nodes.restart(2);
    wait_until("the node knows the games", || (known(2) == ["a", "b", "d", "g"]).then_some(()));
}
