//! The data service: appends, state, scans.

mod calls;
mod filter;

use std::{pin::Pin, sync::Arc};

use futures::{Stream, StreamExt};
use galoo_proto::{
    Seq,
    data::{
        AnswerBatch, AppendPart, AppendRequest, AppendResponse, CallBatch, CallError, ExportPlayerRequest,
        GetManyRequest, GetManyResponse, GetRequest, GetResponse, ListProducersRequest, ListProducersResponse,
        MutateRequest, MutateResponse, PartError, PlayerCells, RegisterProducerRequest, RegisterProducerResponse,
        ScanGameRequest, ScanPlayerRequest, ScanResponse, TailRequest, append_part, data_client::DataClient,
        data_server::Data, mutate_response, part_error,
    },
    validate,
    value::StoredEvent,
};
use galoo_storage::{
    engine::Direction,
    key::Selection,
    view::{self, CellQuery, Column, View},
};
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, transport::Channel};

use self::filter::scanned;
use crate::{
    door::Door,
    node::{NodeError, PartResult, check_answer},
    transport::{Peer, is_handed_on},
};

#[derive(Clone)]
pub(super) struct DataService(pub(super) Arc<Door>);

impl DataService {
    /// The node to ask instead of this one, which has no replica of what holds a player.
    ///
    /// A call that was handed on once is not handed on again: who did it knows too little.
    async fn elsewhere<T>(
        &self,
        game: &str,
        player: &str,
        request: &Request<T>,
    ) -> Result<Option<(Arc<Peer>, DataClient<Channel>)>, Status> {
        let Some(peer) = self.0.node()?.elsewhere_of(game, player).await? else { return Ok(None) };
        if is_handed_on(request.metadata()) {
            return Err(not_here_yet());
        }
        let client = peer.data().map_err(|error| Status::unavailable(error.to_string()))?;
        Ok(Some((peer, client)))
    }

    async fn append_batch(&self, request: AppendRequest) -> Result<AppendResponse, Status> {
        let parts = self.0.node()?.append(request).await?;
        Ok(AppendResponse { parts: parts.into_iter().map(part).collect(), error: None })
    }

    async fn mutate_player(&self, request: MutateRequest) -> Result<MutateResponse, Status> {
        let result = match self.0.node()?.mutate(request).await? {
            Ok(mutated) => mutate_response::Result::Mutated(mutated),
            Err(rejection) => mutate_response::Result::Rejected(rejection),
        };
        Ok(MutateResponse { result: Some(result) })
    }

    async fn get_cells(&self, request: Request<GetRequest>) -> Result<GetResponse, Status> {
        let asked = request.get_ref();
        if let Some((peer, mut client)) = self.elsewhere(&asked.game, &asked.player_id, &request).await? {
            return Ok(client.get(peer.request(request.into_inner())).await?.into_inner());
        }
        let cells = self.0.node()?.get(asked).await?;
        Ok(GetResponse { cells })
    }

    /// Reads many players, those of each shard together and where the shard is.
    async fn get_players(&self, request: GetManyRequest, is_handed_on: bool) -> Result<GetManyResponse, Status> {
        let node = self.0.node()?;
        let of_each = validate::get_many(&request).map_err(NodeError::from)?;
        let parts = node.shards_of(&of_each.game, &request.player_ids).await?;
        let read = parts.into_iter().map(|(shard, places)| {
            let player_ids: Vec<_> = places.iter().map(|place| request.player_ids[*place].clone()).collect();
            async move {
                let players = match node.elsewhere(shard)? {
                    None => node.get_many(shard, of_each.clone(), player_ids).await?,
                    Some(_) if is_handed_on => return Err(not_here_yet()),
                    Some(peer) => {
                        let asked = GetManyRequest { of_each: Some(of_each.clone()), player_ids };
                        let mut client = peer.data().map_err(|error| Status::unavailable(error.to_string()))?;
                        client.get_many(peer.request(asked)).await?.into_inner().players
                    }
                };
                if players.len() != places.len() {
                    return Err(Status::internal(format!("{shard} answered {} of {}", players.len(), places.len())));
                }
                Ok((places, players))
            }
        });
        let (mut all, mut bytes) = (vec![PlayerCells::default(); request.player_ids.len()], 0);
        let mut answers = futures::stream::iter(read).buffer_unordered(SHARDS_READ_MAX);
        while let Some(answer) = answers.next().await {
            let (places, players) = answer?;
            bytes += players.iter().map(Message::encoded_len).sum::<usize>();
            check_answer(bytes)?;
            places.into_iter().zip(players).for_each(|(place, player)| all[place] = player);
        }
        Ok(GetManyResponse { players: all })
    }
}

/// Shards that one call reads at once.
const SHARDS_READ_MAX: usize = 8;

fn not_here_yet() -> Status {
    Status::unavailable("the replica that was asked for is not here yet")
}

fn call_error(status: &Status) -> CallError {
    CallError { code: status.code().into(), message: status.message().to_owned() }
}

/// Events of one answer of a scan.
const PAGE_EVENTS_MAX: usize = 1_000;
/// Bytes of events of one answer of a scan, but for the last event.
const PAGE_BYTES_MAX: usize = 1 << 20;
/// Answers that wait to be sent; a scan that is further ahead pauses.
const PAGES_AHEAD_MAX: usize = 2;
/// How often a tail looks for new events.
const TAIL_INTERVAL: std::time::Duration = std::time::Duration::from_millis(100);

/// Batches of one stream that are on their way; a further one waits in the network's window.
const STREAM_BATCHES_MAX: usize = 64;

type Pages = Pin<Box<dyn Stream<Item = Result<ScanResponse, Status>> + Send>>;
type Sink = mpsc::Sender<Result<ScanResponse, Status>>;

/// Two numbers, big-endian: of a player scan event_time and seq, of a game scan shard and seq.
fn cursor(first: u64, second: u64) -> Vec<u8> {
    [first.to_be_bytes(), second.to_be_bytes()].concat()
}

fn parse_cursor(bytes: &[u8]) -> Result<Option<(u64, u64)>, NodeError> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let bytes: &[u8; 16] = bytes.try_into().map_err(|_| NodeError::Storage(galoo_storage::Error::Cursor))?;
    let (first, second) = (u128::from_be_bytes(*bytes) >> 64, u128::from_be_bytes(*bytes));
    Ok(Some((first as u64, second as u64)))
}

fn part(result: PartResult) -> AppendPart {
    let PartResult { shard, events, result } = result;
    let result = match result {
        Ok(Ok(appended)) => append_part::Result::Appended(appended),
        Ok(Err(rejection)) => {
            use galoo_proto::command::rejection::Reason;
            let code = if rejection.reason() == Reason::Reroute {
                part_error::Code::Retry
            } else {
                part_error::Code::Rejected
            };
            let message = rejection.detail.clone();
            append_part::Result::Error(PartError { code: code.into(), message, rejection: Some(rejection) })
        }
        Err(error) => {
            let code = match error {
                NodeError::OutcomeUnknown { .. } => part_error::Code::OutcomeUnknown,
                _ => part_error::Code::Retry,
            };
            append_part::Result::Error(PartError { code: code.into(), message: error.to_string(), rejection: None })
        }
    };
    AppendPart { shard: shard.0, result: Some(result), events: u32::try_from(events).unwrap_or(u32::MAX) }
}

fn scan(work: impl FnOnce(&Sink) -> Result<(), NodeError> + Send + 'static) -> Response<Pages> {
    let (sink, pages) = mpsc::channel(PAGES_AHEAD_MAX);
    tokio::task::spawn_blocking(move || {
        if let Err(error) = work(&sink) {
            let _ = sink.blocking_send(Err(error.into()));
        }
    });
    Response::new(Box::pin(ReceiverStream::new(pages)))
}

/// Collects events into answers of bounded size.
struct Pager<'s> {
    sink: &'s Sink,
    page: Vec<StoredEvent>,
    bytes: usize,
    left: u64,
}

impl<'s> Pager<'s> {
    fn new(sink: &'s Sink, limit: u64) -> Self {
        Self { sink, page: Vec::new(), bytes: 0, left: if limit == 0 { u64::MAX } else { limit } }
    }

    /// Takes an event; returns false when nobody wants more.
    fn push(&mut self, event: StoredEvent, cursor: impl FnOnce(&StoredEvent) -> Vec<u8>) -> bool {
        self.bytes += event.event.as_ref().map_or(0, validate::event_bytes);
        self.left -= 1;
        let full = self.page.len() + 1 >= PAGE_EVENTS_MAX || self.bytes >= PAGE_BYTES_MAX || self.left == 0;
        let cursor = if full { cursor(&event) } else { Vec::new() };
        self.page.push(event);
        !full || (self.flush(cursor) && self.left > 0)
    }

    fn flush(&mut self, cursor: Vec<u8>) -> bool {
        self.bytes = 0;
        let events = std::mem::take(&mut self.page);
        self.sink.blocking_send(Ok(ScanResponse { events, cursor, ..Default::default() })).is_ok()
    }
}

fn game_cursor(event: &StoredEvent) -> Vec<u8> {
    cursor(event.shard, event.seq)
}

/// Sends a player's events behind `after` until nobody wants more.
fn scan_player(
    mut pager: Pager<'_>,
    view: &View,
    filter: &view::EventFilter,
    columns: &Arc<[Column]>,
    direction: Direction,
    mut after: Option<(i64, Seq)>,
) -> Result<(), NodeError> {
    loop {
        let wanted = usize::try_from(pager.left).unwrap_or(usize::MAX).min(PAGE_EVENTS_MAX);
        let page = view.player_page(filter, columns, direction, after, wanted)?;
        for event in page.events {
            let time_ms = event.event.as_ref().map_or(0, |event| event.event_time_ms);
            after = Some((time_ms, Seq(event.seq)));
            if !pager.push(event, |event| cursor(time_ms.cast_unsigned(), event.seq)) {
                return Ok(());
            }
        }
        if !page.more {
            pager.flush(Vec::new());
            return Ok(());
        }
    }
}

/// Sends the events of one shard behind `after`; returns false when nobody wants more.
fn scan_shard(
    pager: &mut Pager<'_>,
    view: &View,
    after: Seq,
    filter: &view::EventFilter,
    columns: &Arc<[Column]>,
) -> Result<bool, NodeError> {
    for event in view.events_after(after, filter.clone()).with_columns(columns.clone()) {
        if !pager.push(event?, game_cursor) {
            return Ok(false);
        }
    }
    Ok(true)
}

#[tonic::async_trait]
impl Data for DataService {
    async fn append(&self, request: Request<AppendRequest>) -> Result<Response<AppendResponse>, Status> {
        Ok(Response::new(self.append_batch(request.into_inner()).await?))
    }

    type AppendStreamStream = Pin<Box<dyn Stream<Item = Result<AppendResponse, Status>> + Send>>;

    async fn append_stream(
        &self,
        request: Request<Streaming<AppendRequest>>,
    ) -> Result<Response<Self::AppendStreamStream>, Status> {
        let node = self.0.node()?.clone();
        let mut stopping = self.0.stopping();
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        let requests = request.into_inner().take_until(Box::pin(stopped));
        // `then` hands batches over one after the other; `buffered` awaits their answers in the same order.
        let begun = requests.then(move |request| {
            let node = node.clone();
            async move { Ok::<_, Status>(node.begin_append(request?).await) }
        });
        let answers = begun.map(|begun| async move {
            Ok(match begun? {
                Ok(answer) => AppendResponse { parts: answer.await.into_iter().map(part).collect(), error: None },
                Err(error) => AppendResponse { parts: Vec::new(), error: Some(call_error(&error.into())) },
            })
        });
        Ok(Response::new(Box::pin(answers.buffered(STREAM_BATCHES_MAX))))
    }

    type CallsStream = Pin<Box<dyn Stream<Item = Result<AnswerBatch, Status>> + Send>>;

    async fn calls(&self, request: Request<Streaming<CallBatch>>) -> Result<Response<Self::CallsStream>, Status> {
        self.0.node()?;
        let answers = calls::serve(self.clone(), request.into_inner(), self.0.stopping());
        Ok(Response::new(Box::pin(answers)))
    }

    async fn mutate(&self, request: Request<MutateRequest>) -> Result<Response<MutateResponse>, Status> {
        Ok(Response::new(self.mutate_player(request.into_inner()).await?))
    }

    async fn get(&self, request: Request<GetRequest>) -> Result<Response<GetResponse>, Status> {
        Ok(Response::new(self.get_cells(request).await?))
    }

    async fn get_many(&self, request: Request<GetManyRequest>) -> Result<Response<GetManyResponse>, Status> {
        let is_handed_on = is_handed_on(request.metadata());
        Ok(Response::new(self.get_players(request.into_inner(), is_handed_on).await?))
    }

    type ScanPlayerStream = Pages;

    async fn scan_player(&self, request: Request<ScanPlayerRequest>) -> Result<Response<Pages>, Status> {
        let asked = request.get_ref();
        if let Some((peer, mut client)) = self.elsewhere(&asked.game, &asked.player_id, &request).await? {
            let pages = client.scan_player(peer.request(request.into_inner())).await?;
            return Ok(Response::new(Box::pin(pages.into_inner())));
        }
        let request = request.into_inner();
        let view = self.0.node()?.player_view(&request.game, &request.player_id).await?;
        let direction = if request.newest_first { Direction::Backward } else { Direction::Forward };
        let after = parse_cursor(&request.cursor)?.map(|(time, seq)| (time.cast_signed(), Seq(seq)));
        let (filter, columns) = scanned(request.filter, request.projection.as_ref())?;
        let filter = view::EventFilter { players: Some(vec![request.player_id]), ..filter };
        Ok(scan(move |sink| scan_player(Pager::new(sink, request.limit), &view, &filter, &columns, direction, after)))
    }

    type ExportPlayerStream = Pages;

    async fn export_player(&self, request: Request<ExportPlayerRequest>) -> Result<Response<Pages>, Status> {
        let asked = request.get_ref();
        if let Some((peer, mut client)) = self.elsewhere(&asked.game, &asked.player_id, &request).await? {
            let pages = client.export_player(peer.request(request.into_inner())).await?;
            return Ok(Response::new(Box::pin(pages.into_inner())));
        }
        let ExportPlayerRequest { game, player_id } = request.into_inner();
        let view = self.0.node()?.player_view(&game, &player_id).await?;
        Ok(scan(move |sink| {
            let query = CellQuery { versions: usize::MAX, ..Selection::Row.into() };
            let mut cells = view.cells(&player_id, &query)?.into_iter().peekable();
            while cells.peek().is_some() {
                let (mut page, mut bytes) = (Vec::new(), 0);
                while let Some(cell) = cells.next_if(|_| bytes < PAGE_BYTES_MAX) {
                    bytes += cell.encoded_len();
                    page.push(cell);
                }
                if sink.blocking_send(Ok(ScanResponse { cells: page, ..Default::default() })).is_err() {
                    return Ok(());
                }
            }
            let (filter, columns) = (view::EventFilter::player(&player_id), Column::event(None));
            scan_player(Pager::new(sink, 0), &view, &filter, &columns, Direction::Forward, None)
        }))
    }

    type ScanGameStream = Pages;

    async fn scan_game(&self, request: Request<ScanGameRequest>) -> Result<Response<Pages>, Status> {
        let request = request.into_inner();
        let (filter, columns) = scanned(request.filter, request.projection.as_ref())?;
        let views = self.0.node()?.game_views(&request.game).await?;
        let from = parse_cursor(&request.cursor)?;
        Ok(scan(move |sink| {
            let mut pager = Pager::new(sink, request.limit);
            let mut views = views;
            views.sort_by_key(View::shard);
            for view in &views {
                let after = match from {
                    Some((shard, _)) if view.shard().0 < shard => continue,
                    Some((shard, seq)) if view.shard().0 == shard => Seq(seq),
                    _ => Seq(0),
                };
                if !scan_shard(&mut pager, view, after, &filter, &columns)? {
                    return Ok(());
                }
            }
            pager.flush(Vec::new());
            Ok(())
        }))
    }

    type TailStream = Pages;

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<Pages>, Status> {
        let request = request.into_inner();
        let mut positions = std::collections::HashMap::new();
        let node = self.0.node()?.clone();
        for view in node.game_views(&request.game).await? {
            let named = request.after.iter().find(|position| position.shard == view.shard().0);
            let end = if request.from_start { 0 } else { view.state().last_seq };
            positions.insert(view.shard(), Seq(named.map_or(end, |position| position.seq)));
        }
        let (sink, pages) = mpsc::channel(PAGES_AHEAD_MAX);
        let stopping = self.0.stopping();
        tokio::spawn(async move {
            while !sink.is_closed() && !*stopping.borrow() {
                for (shard, after) in &mut positions {
                    let view = match node.view(*shard).await {
                        Ok(view) if view.state().last_seq > after.0 => view,
                        Ok(_) => continue,
                        Err(error) => {
                            let _ = sink.send(Err(error.into())).await;
                            return;
                        }
                    };
                    let (from, last) = (*after, Seq(view.state().last_seq));
                    let to = sink.clone();
                    let sent = tokio::task::spawn_blocking(move || {
                        let mut pager = Pager::new(&to, 0);
                        let all =
                            scan_shard(&mut pager, &view, from, &view::EventFilter::default(), &Column::event(None))?;
                        Ok::<_, NodeError>(all && (pager.page.is_empty() || pager.flush(Vec::new())))
                    });
                    match sent.await {
                        Ok(Ok(true)) => *after = last,
                        Ok(Err(error)) => {
                            let _ = sink.send(Err(error.into())).await;
                            return;
                        }
                        Ok(Ok(false)) | Err(_) => return,
                    }
                }
                tokio::time::sleep(TAIL_INTERVAL).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(pages))))
    }

    async fn register_producer(
        &self,
        request: Request<RegisterProducerRequest>,
    ) -> Result<Response<RegisterProducerResponse>, Status> {
        let request = request.into_inner();
        let registered_at = self.0.node()?.register_producer(&request.game, &request.producer_id).await?.0;
        Ok(Response::new(RegisterProducerResponse { registered_at }))
    }

    async fn list_producers(
        &self,
        request: Request<ListProducersRequest>,
    ) -> Result<Response<ListProducersResponse>, Status> {
        let asked = request.get_ref();
        if let Some((peer, mut client)) = self.elsewhere(&asked.game, &asked.group, &request).await? {
            return client.list_producers(peer.request(request.into_inner())).await;
        }
        let request = request.into_inner();
        let producer_ids = self.0.node()?.list_producers(&request.game, &request.group).await?;
        Ok(Response::new(ListProducersResponse { producer_ids }))
    }
}
