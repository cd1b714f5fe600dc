//! Players who are forgotten.

use std::sync::Arc;

use galoo_proto::{
    GameId, ShardId, Token,
    admin::{Erasure, ForgetPlayerResponse, ListErasuresResponse},
    command::{self, Command, command::Body, outcome},
    limits::{ERASURE_TIMES_MAX, ERASURES_MAX, PLAYER_ID_BYTES_MAX},
    rollup::Erasure as Policy,
    validate,
};
use galoo_storage::rollup::Definition;
use prost::Message;

use super::{Node, NodeError, unexpected};
use crate::driver::DriveError;

/// Bytes of a command that forgets a player, at most: its id, a range, a stamp and their tags.
const FORGET_BYTES_MAX: usize = PLAYER_ID_BYTES_MAX + 64;

impl Node {
    /// Forgets a player; returns when nobody reads anything of what was there.
    pub async fn forget_player(self: &Arc<Self>, game: &str, player: &str) -> Result<ForgetPlayerResponse, NodeError> {
        validate::player_id(player)?;
        let routed = self.game(game).await?;
        let (shard, range) = routed.shards.find(Token::of(player));
        self.may_forget(shard, player).map_err(|reason| NodeError::Unavailable { shard, reason })?;
        let forget = command::ForgetPlayer { range: Some(range.into()), player_id: player.to_owned() };
        let outcome = self.propose(shard, Body::ForgetPlayer(forget)).await?;
        let forgotten = match &outcome.result {
            Some(outcome::Result::PlayerForgotten(forgotten)) => forgotten,
            _ => return Err(unexpected(shard, &outcome)),
        };
        let mut receipt = ForgetPlayerResponse {
            shard: shard.0,
            hlc: forgotten.hlc,
            through_seq: forgotten.through_seq,
            ..Default::default()
        };
        let meta = self.meta.borrow().clone();
        let id = meta.game(game).map_or(GameId(0), |game| GameId(game.id));
        for rollup in meta.rollups(id) {
            let names_players = Definition::parse(rollup).is_ok_and(|definition| definition.groups_by_player());
            let list = match rollup.erasure() {
                _ if names_players => &mut receipt.rollups_cleaned,
                Policy::Keep => &mut receipt.rollups_kept,
                Policy::Subtract | Policy::Recompute => &mut receipt.rollups_settled,
            };
            list.push(rollup.name.clone());
        }
        Ok(receipt)
    }

    /// Whether a shard's replica here has room for one more player to forget; whoever leads the shard has one.
    fn may_forget(&self, shard: ShardId, player: &str) -> Result<(), DriveError> {
        let Ok(erasures) = self.stale_view(shard).and_then(|view| Ok(view.erasures()?)) else { return Ok(()) };
        match (erasures.len() >= ERASURES_MAX, erasures.times(player) >= ERASURE_TIMES_MAX) {
            (true, _) => Err(DriveError::NotReady("it still removes the events of too many players")),
            (_, true) => Err(DriveError::NotReady("it still removes what it was told to forget of the player before")),
            _ => Ok(()),
        }
    }

    /// Refuses a command that another node was asked for when there is no room for what it forgets.
    pub(super) fn check_forwarded(&self, shard: ShardId, command: &[u8]) -> Result<(), DriveError> {
        // Larger ones forget nobody, and are not read twice.
        let small = Some(command).filter(|command| command.len() <= FORGET_BYTES_MAX);
        match small.and_then(|command| Command::decode(command).ok()?.body) {
            Some(Body::ForgetPlayer(forget)) => self.may_forget(shard, &forget.player_id),
            _ => Ok(()),
        }
    }

    /// Forgotten players of whom this node's replicas of a game may still hold events.
    pub async fn erasures(&self, game: &str) -> Result<ListErasuresResponse, NodeError> {
        let mut told = ListErasuresResponse { node: self.identity.node().0, ..Default::default() };
        for view in self.replicas(game).await? {
            let erasures = view.erasures()?;
            let shard = view.shard().0;
            let players = erasures.players();
            told.erasures.extend(players.map(|(player, hlc)| Erasure {
                shard,
                player_id: player.to_owned(),
                hlc: hlc.0,
            }));
        }
        told.erasures.sort_by(|one, other| (one.hlc, &one.player_id).cmp(&(other.hlc, &other.player_id)));
        Ok(told)
    }
}
