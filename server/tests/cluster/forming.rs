//! A cluster is formed once, of the nodes that were meant, whoever crashes or asks meanwhile.

use std::{collections::BTreeSet, fs, thread};

use serde_json::Value;

use crate::{
    Plan, count, galoo, init, status,
    support::{self, Server},
    wait_until,
};

/// Whose a node's data folder is: cluster and node.
fn whose(plan: &Plan, node: usize) -> Option<(String, u64)> {
    let bytes = fs::read(plan.data(node).join("node.json")).ok()?;
    let identity: Value = serde_json::from_slice(&bytes).expect("a whole file");
    Some((identity["cluster_id"].as_str()?.to_owned(), identity["node_id"].as_u64()?))
}

/// All nodes are of one cluster, by their places, and store what they are given.
fn assert_one_cluster(plan: &Plan, nodes: &[Server]) {
    let all: Vec<_> = (0..nodes.len()).map(|node| whose(plan, node).expect("a member")).collect();
    assert_eq!(all.iter().map(|(cluster, _)| cluster).collect::<BTreeSet<_>>().len(), 1, "{all:?}");
    assert_eq!(all.iter().map(|(_, node)| *node).collect::<Vec<_>>(), [1, 2, 3]);
    galoo(&["game", "create", "g", "--addr", &plan.addrs[1]]).expect("created");
    for addr in &plan.addrs {
        galoo(&["append", "ann", "login", "--game", "g", "--addr", addr]).expect("stored");
    }
    assert!(nodes.iter().all(|node| count(node, "g").as_deref() == Ok("3")));
}

/// Whenever a node dies, the asked one among them, asking again at another one goes on.
#[test]
fn forming_goes_on_where_a_crash_ended_it() {
    // Who dies as soon as who has become a member; the last one is asked for the cluster.
    for (victim, member, asked) in [(0, 0, 0), (1, 0, 2), (0, 2, 1)] {
        let plan = Plan::new(3);
        let mut launched: Vec<_> = plan.launch_all().into_iter().map(Some).collect();
        wait_until("the nodes wait", || plan.addrs.iter().all(|addr| status(addr)["node_id"] == 0).then_some(()));
        let addr = plan.addrs[asked].clone();
        let first = thread::spawn(move || init(&addr));
        wait_until("a node is a member", || whose(&plan, member));
        launched[victim].take().expect("runs").kill9();
        let first = first.join().expect("ends");
        launched[victim] = Some(plan.launch(victim));
        let again = wait_until("the cluster forms", || init(&plan.addrs[(asked + 1) % 3]).ok());
        assert!(first.is_err() || first.is_ok_and(|first| first["cluster_id"] == again["cluster_id"]));
        let nodes: Vec<_> = launched.into_iter().flatten().map(|node| node.wait()).collect();
        assert_one_cluster(&plan, &nodes);
    }
}

#[test]
fn nodes_that_are_asked_at_once_form_one_cluster() {
    let plan = Plan::new(3);
    let launched = plan.launch_all();
    wait_until("the nodes wait", || plan.addrs.iter().all(|addr| status(addr)["node_id"] == 0).then_some(()));
    let asked: Vec<_> = plan.addrs.iter().cloned().map(|addr| thread::spawn(move || init(&addr))).collect();
    let formed = asked.into_iter().map(|one| one.join().expect("ends").expect("formed")["cluster_id"].to_string());
    assert_eq!(formed.collect::<BTreeSet<_>>().len(), 1);
    let nodes: Vec<_> = launched.into_iter().map(|node| node.wait()).collect();
    assert_one_cluster(&plan, &nodes);
}

/// What it acknowledged is on one other node of three: with its vote for the third one that would be lost (P1).
#[test]
fn a_member_that_lost_its_data_is_not_let_in_again() {
    let plan = Plan::new(3);
    let mut nodes = plan.form();
    nodes[1].take().expect("runs").kill9();
    fs::remove_dir_all(plan.data(1)).expect("removes");
    let lost = plan.launch(1);
    let (code, said) = wait_until("it is refused", || init(&plan.addrs[1]).err().filter(|(code, _)| *code == Some(3)));
    assert!(said.contains("is n2 of cluster") && said.contains("has lost its data"), "{code:?} {said}");
    // The others are a cluster without it.
    assert_eq!(init(&plan.addrs[0]).expect("formed")["formed"], false);
    assert_eq!(whose(&plan, 1), None);
    galoo(&["game", "create", "g", "--addr", &plan.addrs[2]]).expect("created");
    lost.kill9();
}

#[test]
fn clusters_do_not_mix() {
    let plan = Plan::new(3);
    // Alone in a cluster: nobody's node and no member of another one's.
    let alone = Server::start(&plan.folder.path().join("alone"), &[]);
    let mixed = [plan.addrs[0].clone(), alone.grpc().to_string()].join(",");
    let waiting = plan.launch_to_join(0, &mixed);
    let (code, said) = wait_until("it is refused", || init(&plan.addrs[0]).err().filter(|(code, _)| *code == Some(3)));
    assert!(said.contains("by itself"), "{code:?} {said}");
    let (code, said) = init(&alone.grpc().to_string()).expect_err("refused");
    assert!(code == Some(3) && said.contains("without --join"), "{said}");
    let (code, said) = galoo(&["game", "create", "g", "--addr", &plan.addrs[0]]).expect_err("refused");
    assert!(code == Some(4) && said.contains("belongs to no cluster yet"), "{said}");
    waiting.kill9();

    // One that is not there, then another list.
    let waiting = plan.launch(0);
    let (code, said) =
        wait_until("it answers", || init(&plan.addrs[0]).err().filter(|(_, said)| said.contains("does not")));
    assert!(code == Some(4) && plan.addrs[1..].iter().any(|addr| said.contains(addr)), "{said}");
    waiting.kill9();
    let turned = [&plan.addrs[1], &plan.addrs[0], &plan.addrs[2]].map(String::as_str).join(",");
    let launched = [plan.launch(0), plan.launch_to_join(1, &turned), plan.launch(2)];
    let (code, said) = wait_until("it is refused", || init(&plan.addrs[0]).err().filter(|(code, _)| *code == Some(3)));
    assert!(said.contains(&format!("names the nodes {turned}")), "{code:?} {said}");
    launched.into_iter().for_each(support::Launched::kill9);

    // Asking again, at any node, changes nothing, also when another one is down.
    let mut nodes = plan.form();
    let first = init(&plan.addrs[0]).expect("formed");
    assert_eq!(init(&plan.addrs[2]).expect("formed"), first);
    assert_eq!(first["formed"], false);
    nodes[1].take().expect("runs").kill9();
    assert_eq!(init(&plan.addrs[2]).expect("formed"), first);

    // A data folder of one cluster is not started among the nodes of another.
    let (folder, list) = (plan.folder.path().join("alone"), plan.list());
    assert!(alone.stop().success());
    let arguments = ["server", "--data-dir", folder.to_str().expect("UTF-8"), "--join", &list];
    let ports = ["--grpc", "127.0.0.1:0", "--pg", "127.0.0.1:0", "--http", "127.0.0.1:0"];
    let output = support::galoo(&[&arguments[..], &ports[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(3) && said.contains("belongs to cluster"), "{said}");
    // Nor by two processes at once.
    let held = plan.data(0);
    let arguments = ["server", "--data-dir", held.to_str().expect("UTF-8"), "--join", &list];
    let output = support::galoo(&[&arguments[..], &ports[..]].concat());
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(3) && said.contains("in use by another process"), "{said}");
}
