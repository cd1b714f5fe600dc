//! The demo's load: events in numbered batches over one stream, changes of state in lanes, each counted when it is
//! acknowledged.
//!
//! A player's changes keep their order, because a player has one lane and a lane one unanswered change. Everything carries
//! a producer's number, so that the outage in the middle loses nothing and stores nothing twice.

use std::{
    collections::VecDeque,
    hash::{DefaultHasher, Hash, Hasher},
    io::IsTerminal,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context, anyhow};
use futures::future::try_join_all;
use galoo_client::{Answer, AppendStream, Client, Producer};
use galoo_proto::{data::MutateRequest, value::Event};
use galoo_workload::{Config, Simulation, StateChange, StateTally, Step, Tally};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    GAME,
    tell::{Tell, grouped},
};
use crate::cli::{
    Connection, Failure,
    load::{Import, ImportArgs},
};

/// Events of a batch.
const BATCH_EVENTS: usize = 1_000;
/// Batches on their way at once.
const WINDOW: usize = 32;
/// More events than this are never unanswered at a time.
pub(super) const ON_THE_WAY_MAX: u64 = (BATCH_EVENTS * WINDOW * 2) as u64;
/// Batches and changes that wait to be sent.
const PIECES_AHEAD_MAX: usize = 64;
/// Changes of state on their way at once.
const LANES: usize = 64;
/// Changes that wait in a lane.
const LANE_CHANGES_MAX: usize = 16;

/// What the demo loads.
#[derive(Clone)]
pub(super) enum Source {
    /// A simulated game.
    Game(Config),
    /// A file, through the import.
    File(PathBuf),
}

impl Source {
    pub(super) fn title(&self) -> String {
        match self {
            Self::Game(config) => format!(
                "three nodes, {} events of {} players of an invented game (seed {}), one kill -9",
                grouped(config.events),
                grouped(u64::from(config.players)),
                config.seed
            ),
            Self::File(file) => format!("three nodes, the events of {}, one kill -9", file.display()),
        }
    }
}

/// How far the load is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    /// Acknowledged events.
    pub(super) events: u64,
    /// Of the whole, in thousandths.
    pub(super) permille: u64,
}

/// Tells how far the load is: to the bar, and to whoever waits for a part of it.
pub(super) struct Meter {
    progress: watch::Sender<Progress>,
    bar: ProgressBar,
    total: u64,
    started: Instant,
}

impl Meter {
    /// So many events are acknowledged; `position` is events of a game or bytes of a file.
    fn reached(&self, events: u64, position: u64) {
        self.bar.set_position(position);
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a rate"
        )]
        let rate = (events as f64 / self.started.elapsed().as_secs_f64()) as u64;
        self.bar.set_message(format!("{} events, {} events/s", grouped(events), grouped(rate)));
        let permille = (position.min(self.total) * 1_000).checked_div(self.total).unwrap_or(1_000);
        self.progress.send_replace(Progress { events, permille });
    }
}

/// Makes the meter of a load, with a bar where people watch a terminal.
pub(super) fn meter(source: &Source, tell: &mut Tell) -> anyhow::Result<(Meter, watch::Receiver<Progress>)> {
    let total = match source {
        Source::Game(config) => config.events,
        Source::File(file) => std::fs::metadata(file).with_context(|| format!("cannot read {}", file.display()))?.len(),
    };
    let bar = if tell.to_people() && std::io::stderr().is_terminal() {
        let style = ProgressStyle::with_template("{bar:40} {percent}% {msg}, {eta} left");
        let bar = ProgressBar::new(total);
        if let Ok(style) = style { bar.with_style(style) } else { bar }
    } else {
        ProgressBar::hidden()
    };
    tell.show(&bar);
    let (progress, watched) = watch::channel(Progress::default());
    Ok((Meter { progress, bar, total, started: Instant::now() }, watched))
}

/// What was acknowledged.
pub(super) struct Loaded {
    pub(super) events: u64,
    /// Changes of players' state.
    pub(super) changes: u64,
    /// The counts and the state of a simulated game.
    pub(super) tally: Option<(Tally, StateTally)>,
}

/// Loads everything; `folder` takes the bad lines of a file.
pub(super) async fn load(source: Source, client: Client, folder: PathBuf, meter: Meter) -> Result<Loaded, Failure> {
    match source {
        Source::Game(config) => simulated(config, client, meter).await,
        Source::File(file) => {
            // The connection is the client's; only the options are asked of it.
            let connection = Connection { addr: String::new(), json: true };
            let args = ImportArgs::detecting(file, GAME.to_owned(), folder.join("rejected.ndjson"), connection);
            let import = tokio::task::spawn_blocking(|| Import::open(args)).await.context("the file")??;
            let imported = import.send(&client, |progress| meter.reached(progress.events, progress.bytes)).await?;
            let report = imported.whole()?;
            Ok(Loaded { events: report.stored + report.duplicates, changes: 0, tally: None })
        }
    }
}

/// What the simulation's thread hands over.
enum Piece {
    Events(Vec<Event>),
    State(StateChange),
}

/// Plays the game on a thread of its own.
fn play(config: Config, pieces: &mpsc::Sender<Piece>) -> anyhow::Result<()> {
    let mut events = Vec::with_capacity(BATCH_EVENTS);
    for step in Simulation::new(config)? {
        let piece = match step {
            Step::State(change) => Piece::State(change),
            Step::Event(event) => {
                events.push(event);
                if events.len() < BATCH_EVENTS {
                    continue;
                }
                Piece::Events(std::mem::replace(&mut events, Vec::with_capacity(BATCH_EVENTS)))
            }
        };
        if pieces.blocking_send(piece).is_err() {
            return Ok(());
        }
    }
    if !events.is_empty() {
        // Nobody takes it only when the load has failed already.
        let _ = pieces.blocking_send(Piece::Events(events));
    }
    Ok(())
}

/// Numbered batches on their way, counted when they are acknowledged.
struct Batches {
    next: u64,
    waiting: VecDeque<Vec<Event>>,
    tally: Tally,
    meter: Meter,
}

impl Batches {
    async fn send(&mut self, stream: &mut AppendStream, events: Vec<Event>) -> Result<(), Failure> {
        self.waiting.push_back(events.clone());
        let answers = stream.send(self.next, events, false).await?;
        self.next += 1;
        self.acknowledged(answers)
    }

    fn acknowledged(&mut self, answers: Vec<Answer>) -> Result<(), Failure> {
        for answer in answers {
            let batch = self.waiting.pop_front().context("an answer to no batch")?;
            let stored = answer.stored.stored + answer.stored.duplicates;
            if stored != batch.len() as u64 {
                return Err(anyhow!("batch {} of {} events: {stored} stored", answer.number, batch.len()).into());
            }
            batch.iter().for_each(|event| self.tally.fold(event));
            self.meter.reached(self.tally.events(), self.tally.events());
        }
        Ok(())
    }
}

/// The state as it is acknowledged.
type Acknowledged = Arc<Mutex<(u64, StateTally)>>;

/// One lane: its changes, one after the other.
async fn lane(
    client: Client,
    producer: Producer,
    mut changes: mpsc::Receiver<StateChange>,
    acknowledged: Acknowledged,
) -> Result<(), Failure> {
    let mut number = 0;
    while let Some(change) = changes.recv().await {
        let stamp = producer.stamp(number, number);
        let request = MutateRequest {
            game: GAME.to_owned(),
            producer: Some(stamp),
            player_id: change.player_id.clone(),
            mutations: change.mutations.clone(),
            ..Default::default()
        };
        let mutated = client.mutate(request).await?;
        if let Err(rejection) = mutated {
            return Err(anyhow!("a change of {} was refused: {}", change.player_id, rejection.detail).into());
        }
        number += 1;
        let mut state = acknowledged.lock().unwrap_or_else(PoisonError::into_inner);
        state.0 += 1;
        state.1.fold(&change);
    }
    Ok(())
}

async fn simulated(config: Config, client: Client, meter: Meter) -> Result<Loaded, Failure> {
    let (sender, mut pieces) = mpsc::channel(PIECES_AHEAD_MAX);
    let played = tokio::task::spawn_blocking(move || play(config, &sender));
    let producer = Producer::register(&client, GAME, "demo:events").await?;
    let mut stream = producer.stream(WINDOW).await?;
    let mut batches = Batches { next: 0, waiting: VecDeque::new(), tally: Tally::default(), meter };
    let state = Acknowledged::default();
    let (mut lanes, mut running) = (Vec::new(), JoinSet::new());
    let names: Vec<_> = (0..LANES).map(|number| format!("demo:state:{number}")).collect();
    for producer in try_join_all(names.iter().map(|name| Producer::register(&client, GAME, name))).await? {
        let (sender, changes) = mpsc::channel(LANE_CHANGES_MAX);
        running.spawn(lane(client.clone(), producer, changes, state.clone()));
        lanes.push(sender);
    }
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Events(events) => batches.send(&mut stream, events).await?,
            Piece::State(change) => {
                let mut hash = DefaultHasher::new();
                change.player_id.hash(&mut hash);
                let lane = usize::try_from(hash.finish() % LANES as u64).unwrap_or(0);
                if lanes[lane].send(change).await.is_err() {
                    // The lane has failed: its error is taken below.
                    break;
                }
            }
        }
    }
    batches.acknowledged(stream.finish().await?)?;
    drop((lanes, pieces));
    while let Some(ended) = running.join_next().await {
        ended.context("a lane")??;
    }
    played.await.context("the simulation")??;
    let (changes, state) = std::mem::take(&mut *state.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(Loaded { events: batches.tally.events(), changes, tally: Some((batches.tally, state)) })
}
