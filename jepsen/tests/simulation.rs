//! The simulator's seeds. A failure prints the command that runs its seed alone.
//!
//! `GALOO_SIM_SEED=7` runs one seed, `GALOO_SIM_SEEDS=5000` so many; `GALOO_SIM_VERBOSE=1` prints what happens.

use std::panic::{AssertUnwindSafe, catch_unwind};

use galoo_jepsen::sim::{Bug, Report, Violation, run};

/// Seeds that a run takes.
const SEEDS: u64 = 200;
/// Seeds that once failed, and why: they run first.
const REGRESSIONS: &[(u64, &str)] = &[];
/// Seeds within which a deliberate bug must be found.
const SEEDS_TO_FIND_MAX: u64 = 60;

/// A run, with an assertion of the product that fails as a violation.
fn attempt(seed: u64, bug: Bug) -> Result<Report, Violation> {
    catch_unwind(AssertUnwindSafe(|| run(seed, bug))).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Err(Violation(text.unwrap_or_else(|| "a panic".to_owned())))
    })
}

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect("a number"))
}

/// Runs seeds on all cores and returns their reports.
fn run_all(seeds: &[u64]) -> Vec<Report> {
    let threads = std::thread::available_parallelism().map_or(2, usize::from);
    let results: Vec<(u64, Result<Report, Violation>)> = std::thread::scope(|scope| {
        let share = |thread: usize| {
            let seeds: Vec<u64> = seeds.iter().copied().skip(thread).step_by(threads).collect();
            scope.spawn(move || seeds.into_iter().map(|seed| (seed, attempt(seed, Bug::None))).collect::<Vec<_>>())
        };
        let running: Vec<_> = (0..threads).map(share).collect();
        running.into_iter().flat_map(|thread| thread.join().expect("a thread of the test")).collect()
    });
    let failed: Vec<_> = results.iter().filter_map(|(seed, result)| Some((seed, result.as_ref().err()?))).collect();
    for (seed, violation) in &failed {
        println!("seed {seed}: {violation}");
        println!("  GALOO_SIM_SEED={seed} cargo test --release --workspace --test simulation seeds -- --nocapture");
    }
    assert!(failed.is_empty(), "{} seeds broke promises, see above", failed.len());
    results.into_iter().filter_map(|(_, result)| result.ok()).collect()
}

#[test]
fn seeds_keep_all_promises() {
    let seeds: Vec<u64> = match number("GALOO_SIM_SEED") {
        Some(seed) => vec![seed],
        None => {
            let count = number("GALOO_SIM_SEEDS").unwrap_or(SEEDS);
            REGRESSIONS.iter().map(|(seed, _)| *seed).chain(0..count).collect()
        }
    };
    let reports = run_all(&seeds);
    let sum = |count: fn(&Report) -> u64| reports.iter().map(count).sum::<u64>();
    let [acknowledged, reads] = [sum(|report| report.acknowledged), sum(|report| report.reads)];
    let [terms, snapshots, crashes] = [sum(|one| one.terms), sum(|one| one.snapshots), sum(|one| one.crashes)];
    let rebuilds = sum(|report| report.rebuilds);
    let (seeds, games) = (reports.len() as u64, sum(|report| report.games));
    println!(
        "{seeds} seeds: {games} games, {acknowledged} commands, {reads} reads, {terms} terms, {snapshots} snapshots, \
         {rebuilds} rebuilds, {crashes} crashes"
    );
    if seeds >= 100 {
        // A simulation in which nothing happens proves nothing.
        assert!(acknowledged > 50 * seeds && reads > 10 * seeds && crashes > 3 * seeds, "too little happens");
        assert!(games > seeds, "too few games");
        assert!(terms > 3 * seeds && snapshots > seeds, "too few leaders or snapshots");
        assert!(rebuilds > seeds, "too few states are replaced");
    }
}

#[test]
fn a_seed_is_a_run() {
    for seed in 1_000..1_006 {
        assert_eq!(attempt(seed, Bug::None), attempt(seed, Bug::None), "seed {seed} differs from itself");
    }
}

/// The oracle finds each deliberate bug.
#[test]
fn bugs_are_found() {
    let bugs = [
        Bug::LogForgetsLastWrite,
        Bug::BatchIsAppliedAgain,
        Bug::ReadWithoutAsking,
        Bug::SnapshotWithoutProducers,
        Bug::CommandIsSkipped,
        Bug::MetaCommandIsSkipped,
        Bug::FirstShardTakesAll,
    ];
    for bug in bugs {
        let found = (0..SEEDS_TO_FIND_MAX).find_map(|seed| attempt(seed, bug).err().map(|violation| (seed, violation)));
        let (seed, violation) = found.unwrap_or_else(|| panic!("{bug:?} is not found in {SEEDS_TO_FIND_MAX} seeds"));
        println!("{bug:?} is found with seed {seed}: {violation}");
    }
}
