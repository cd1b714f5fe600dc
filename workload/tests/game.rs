//! What the simulation promises: the same bytes from the same seed, valid events in the number asked for, a game that
//! looks like one, and a state that adds up.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use galoo_proto::{data::MutateRequest, validate, value::Event};
use galoo_workload::{Config, EVENT_TYPES, Simulation, StateTally, Step, Tally, ndjson};
use prost::Message;
use serde_json::Value;
use xxhash_rust::xxh3::Xxh3;

fn run(config: Config) -> Vec<Step> {
    Simulation::new(config).expect("a valid configuration").collect()
}

fn events(steps: &[Step]) -> impl Iterator<Item = &Event> {
    steps.iter().filter_map(|step| match step {
        Step::Event(event) => Some(event),
        Step::State(_) => None,
    })
}

fn hash(steps: &[Step]) -> String {
    let mut hash = Xxh3::new();
    for step in steps {
        match step {
            Step::Event(event) => hash.update(&event.encode_length_delimited_to_vec()),
            Step::State(change) => {
                hash.update(change.player_id.as_bytes());
                change.mutations.iter().for_each(|one| hash.update(&one.encode_length_delimited_to_vec()));
            }
        }
    }
    format!("{:016x}", hash.digest())
}

/// Whoever changes what a seed gives changes every answer that was written down for it.
#[test]
fn a_seed_gives_the_same_bytes_for_ever() {
    let config = Config::new(42, 50_000);
    let steps = run(config);
    assert_eq!(hash(&steps), "81ab0ba0df078f97");
    assert_eq!(hash(&run(config)), hash(&steps));
    assert_ne!(hash(&run(Config { seed: 43, ..config })), hash(&steps));
}

#[test]
fn every_event_is_valid_and_exactly_so_many_come() {
    let many = Config::new(7, 40_000);
    let odd = Config { players: 3, days: 1, end_ms: 1_700_000_012_345, ..Config::new(7, 5_000) };
    let alone = Config { players: 1, ..Config::new(1, 2_000) };
    let one = Config::new(1, 1);
    let none = Config::new(1, 0);
    for config in [many, odd, alone, one, none] {
        let steps = run(config);
        assert_eq!(events(&steps).count() as u64, config.events, "{config:?}");
        for event in events(&steps) {
            validate::event(event).expect("valid");
            assert!((config.start_ms()..config.end_ms).contains(&event.event_time_ms), "{event:?}");
            let properties: Value = serde_json::from_str(&event.properties).expect("JSON");
            assert!(properties.is_object() && EVENT_TYPES.contains(&event.event_type.as_str()), "{event:?}");
        }
        for step in &steps {
            if let Step::State(change) = step {
                let (player_id, mutations) = (change.player_id.clone(), change.mutations.clone());
                let request = MutateRequest { player_id, mutations, ..MutateRequest::default() };
                validate::change(&request).expect("valid");
            }
        }
    }
    assert!(Simulation::new(Config { players: 0, ..many }).is_err());
    assert!(Simulation::new(Config { end_ms: 0, ..many }).is_err());
}

#[test]
fn the_game_looks_like_one() {
    let config = Config::new(3, 200_000);
    let steps = run(config);
    let (tally, _): (Tally, StateTally) = steps.iter().collect();
    let bytes: usize = events(&steps).map(validate::event_bytes).sum();
    assert!((150..=250).contains(&(bytes / 200_000)), "{} bytes an event", bytes / 200_000);
    assert_eq!(tally.by_type().keys().map(String::as_str).collect::<Vec<_>>(), EVENT_TYPES);
    // Few play much: the first hundredth of the players has a tenth of the events, and most days see most regulars.
    let first: u64 = tally.most_active(20).iter().map(|(_, events)| events).sum();
    assert!(first > 15_000 && first < 100_000, "{first}");
    assert_eq!(tally.daily_active().len(), 14);
    // A day has lively and quiet hours.
    let hours: Vec<u64> = tally.by_hour().values().map(|types| types.values().sum()).collect();
    let (most, least) = (hours.iter().max().expect("hours"), hours[1..].iter().min().expect("hours"));
    assert!(hours.len() == 14 * 24 && most > &(2 * least), "{most} and {least} of {} hours", hours.len());
    // Events come in the order of time but for the late ones.
    let times: Vec<i64> = events(&steps).map(|event| event.event_time_ms).collect();
    let late = times.windows(2).filter(|pair| pair[1] < pair[0]).count();
    assert!(late > 0 && late < 2_000, "{late} late events");
}

/// The oracle against a count of its own, and the properties against the state.
#[test]
fn the_tally_and_the_state_add_up() {
    let steps = run(Config::new(11, 60_000));
    let (tally, state): (Tally, StateTally) = steps.iter().collect();
    let mut players: HashMap<&str, u64> = HashMap::new();
    let mut days: BTreeMap<i64, BTreeSet<&str>> = BTreeMap::new();
    let (mut items, mut spent, mut trades) = (0, 0, BTreeMap::<i64, Vec<Value>>::new());
    for event in events(&steps) {
        *players.entry(&event.player_id).or_default() += 1;
        days.entry(event.event_time_ms / 86_400_000 * 86_400_000).or_default().insert(&event.player_id);
        let properties: Value = serde_json::from_str(&event.properties).expect("JSON");
        match event.event_type.as_str() {
            "purchase" => {
                spent += properties["price_cents"].as_i64().expect("cents");
                items += properties["quantity"].as_i64().expect("quantity");
            }
            "loot" => items += properties["quantity"].as_i64().expect("quantity"),
            "trade" => trades.entry(properties["trade"].as_i64().expect("trade")).or_default().push(properties),
            _ => {}
        }
    }
    assert_eq!((tally.events(), tally.players()), (60_000, players.len() as u64));
    assert_eq!(tally.by_type().values().sum::<u64>(), 60_000);
    assert_eq!(tally.by_hour().values().flat_map(BTreeMap::values).sum::<u64>(), 60_000);
    assert!(players.iter().all(|(player, count)| tally.of_player(player) == *count));
    let most = tally.most_active(5);
    assert!(most.windows(2).all(|pair| pair[0].1 >= pair[1].1) && most[0].1 == *players.values().max().expect("one"));
    assert_eq!(tally.daily_active(), days.iter().map(|(day, who)| (*day, who.len() as u64)).collect::<Vec<_>>());
    // Both sides of a trade are there and say the same; no item and no cent is made or lost on the way to the state.
    assert!(!trades.is_empty());
    for sides in trades.values() {
        let [one, other] = sides.as_slice() else { panic!("a trade with {} sides", sides.len()) };
        assert!(one["gold"] == other["gold"] && one["role"] != other["role"]);
    }
    let inventory: i64 = {
        let names = ["healing_potion", "iron_ore", "silk_cloth", "arrow_bundle", "moonstone", "rune_of_haste"];
        let more = ["scroll_of_return", "steel_halberd", "frost_staff", "ember_cloak", "phoenix_banner"];
        let rare = ["dragon_scale", "season_pass", "gem_chest_small", "gem_chest_large", "crown_of_tides"];
        names.iter().chain(&more).chain(&rare).map(|name| state.sum("inventory", name)).sum()
    };
    assert_eq!((inventory, state.sum("wallet", "spent_cents")), (items, spent));
    assert_eq!(state.sum("stats", "kills"), tally.by_type()["kill"].cast_signed());
    assert_eq!(state.sum("stats", "sessions"), tally.by_type()["login"].cast_signed());
    assert_eq!(state.players(), tally.players());
}

#[test]
fn a_line_is_the_event() {
    for event in events(&run(Config::new(5, 2_000))) {
        let mut text = String::new();
        ndjson::push_line(&mut text, event);
        assert!(text.ends_with("}\n") && text.matches('\n').count() == 1);
        let mut line: Value = serde_json::from_str(&text).expect("JSON");
        let object = line.as_object_mut().expect("an object");
        assert_eq!(object.remove("player_id"), Some(event.player_id.as_str().into()));
        assert_eq!(object.remove("ts_ms"), Some(event.event_time_ms.into()));
        assert_eq!(object.remove("event_type"), Some(event.event_type.as_str().into()));
        assert_eq!(line, serde_json::from_str::<Value>(&event.properties).expect("JSON"));
    }
    let mut text = String::new();
    let bare = Event {
        player_id: "a\"b".into(),
        event_time_ms: 1,
        event_type: "t".into(),
        properties: String::new(),
        ..Default::default()
    };
    ndjson::push_line(&mut text, &bare);
    assert_eq!(text, "{\"player_id\":\"a\\\"b\",\"ts_ms\":1,\"event_type\":\"t\"}\n");
}
