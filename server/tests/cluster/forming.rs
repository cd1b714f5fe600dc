//! A cluster is formed once, of the nodes that were meant, whoever crashes or asks meanwhile.

use std::{collections::BTreeSet, fs, thread};

use serde_json::Value;

use crate::{
    Nodes, galoo, init,
    support::{self, Server, done},
    wait_until,
};

/// Whose a node's data folder is: cluster and node.
fn whose(nodes: &Nodes, node: usize) -> Option<(String, u64)> {
    let bytes = fs::read(nodes.nodes()[node].data.join("node.json")).ok()?;
    let identity: Value = serde_json::from_slice(&bytes).expect("a whole file");
    Some((identity["cluster_id"].as_str()?.to_owned(), identity["node_id"].as_u64()?))
}

/// All nodes become ones of one cluster, by their places, and store what they are given.
fn assert_one_cluster(nodes: &mut Nodes) {
    nodes.all_ready();
    let all: Vec<_> = (0..nodes.count()).map(|node| whose(nodes, node).expect("a member")).collect();
    assert_eq!(all.iter().map(|(cluster, _)| cluster).collect::<BTreeSet<_>>().len(), 1, "{all:?}");
    assert_eq!(all.iter().map(|(_, node)| *node).collect::<Vec<_>>(), [1, 2, 3]);
    galoo(&["game", "create", "g", "--addr", &nodes.grpc(1)]).expect("created");
    for addr in nodes.addrs() {
        galoo(&["append", "ann", "login", "--game", "g", "--addr", &addr]).expect("stored");
    }
    assert!((0..3).all(|node| nodes.events(node, "g").as_deref() == Ok("3")));
}

/// Whenever a node dies, the asked one among them, asking again at another one goes on.
#[test]
fn forming_goes_on_where_a_crash_ended_it() {
    // Who dies as soon as who has become a member; the last one is asked for the cluster.
    for (victim, member, asked) in [(0, 0, 0), (1, 0, 2), (0, 2, 1)] {
        let mut nodes = Nodes::new(3);
        nodes.wait_for_cluster();
        let addr = nodes.grpc(asked);
        let first = thread::spawn(move || init(&addr));
        wait_until("a node is a member", || whose(&nodes, member));
        nodes.kill9(victim);
        let first = first.join().expect("ends");
        nodes.launch(victim);
        let again = wait_until("the cluster forms", || init(&nodes.grpc((asked + 1) % 3)).ok());
        assert!(first.is_err() || first.is_ok_and(|first| first["cluster_id"] == again["cluster_id"]));
        assert_one_cluster(&mut nodes);
    }
}

#[test]
fn nodes_that_are_asked_at_once_form_one_cluster() {
    let mut nodes = Nodes::new(3);
    nodes.wait_for_cluster();
    let asked: Vec<_> = nodes.addrs().into_iter().map(|addr| thread::spawn(move || init(&addr))).collect();
    let formed = asked.into_iter().map(|one| one.join().expect("ends").expect("formed")["cluster_id"].to_string());
    assert_eq!(formed.collect::<BTreeSet<_>>().len(), 1);
    assert_one_cluster(&mut nodes);
}

/// What it acknowledged is on one other node of three: with its vote for the third one that would be lost (P1).
#[test]
fn a_member_that_lost_its_data_is_not_let_in_again() {
    let mut nodes = Nodes::formed(3);
    nodes.kill9(1);
    fs::remove_dir_all(&nodes.nodes()[1].data).expect("removes");
    nodes.launch(1);
    let (code, said) = wait_until("it is refused", || init(&nodes.grpc(1)).err().filter(|(code, _)| *code == Some(3)));
    assert!(said.contains("is n2 of cluster") && said.contains("has lost its data"), "{code:?} {said}");
    // The others are a cluster without it.
    assert_eq!(init(&nodes.grpc(0)).expect("formed")["formed"], false);
    assert_eq!(whose(&nodes, 1), None);
    galoo(&["game", "create", "g", "--addr", &nodes.grpc(2)]).expect("created");
}

#[test]
fn clusters_do_not_mix() {
    let mut nodes = Nodes::new(3);
    let addrs = nodes.addrs();
    let refused = |words: &str| {
        let (code, said) = wait_until("it is refused", || init(&addrs[0]).err().filter(|(code, _)| *code == Some(3)));
        assert!(said.contains(words), "{code:?} {said}");
    };
    // Alone in a cluster: nobody's node and no member of another one's.
    let alone = nodes.folder.path().join("alone");
    let server = Server::start(&alone, &[]);
    nodes.launch_to_join(0, &[addrs[0].clone(), server.grpc().to_string()].join(","));
    refused("by itself");
    let (code, said) = init(&server.grpc().to_string()).expect_err("refused");
    assert!(code == Some(3) && said.contains("without --join"), "{said}");
    let (code, said) = galoo(&["game", "create", "g", "--addr", &addrs[0]]).expect_err("refused");
    assert!(code == Some(4) && said.contains("belongs to no cluster yet"), "{said}");
    nodes.kill9(0);

    // One that is not there, then another list.
    nodes.launch(0);
    let (code, said) = wait_until("it answers", || init(&addrs[0]).err().filter(|(_, said)| said.contains("does not")));
    assert!(code == Some(4) && addrs[1..].iter().any(|addr| said.contains(addr)), "{said}");
    let turned = [&addrs[1], &addrs[0], &addrs[2]].map(String::as_str).join(",");
    nodes.launch_to_join(1, &turned);
    nodes.launch(2);
    refused(&format!("names the nodes {turned}"));
    done(nodes.kill(&[0, 1, 2]));

    // Asking again, at any node, changes nothing, also when another one is down.
    done(nodes.form());
    let first = init(&addrs[0]).expect("formed");
    assert_eq!(init(&addrs[2]).expect("formed"), first);
    assert_eq!(first["formed"], false);
    nodes.kill9(1);
    assert_eq!(init(&addrs[2]).expect("formed"), first);

    // A data folder of one cluster is not started among the nodes of another, and by no two processes at once.
    assert!(server.stop().success());
    let list = nodes.addresses();
    for (folder, words) in [(&alone, "belongs to cluster"), (&nodes.nodes()[0].data, "in use by another process")] {
        let arguments = ["server", "--data-dir", folder.to_str().expect("UTF-8"), "--join", &list];
        let ports = ["--grpc", "127.0.0.1:0", "--pg", "127.0.0.1:0", "--http", "127.0.0.1:0"];
        let output = support::galoo(&[&arguments[..], &ports[..]].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(3) && said.contains(words), "{said}");
    }
}
