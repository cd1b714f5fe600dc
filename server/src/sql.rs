//! What the Postgres front asks of the node: a DataFusion session over one cut of a game.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use galoo_pg::{SqlBackend, SqlError};
use galoo_query::{
    Engine,
    rollup::{
        define::{self, DefineError},
        statement::Statement,
    },
};

use crate::{
    node::{Node, NodeError},
    room::NoRoom,
};

/// The node's SQL.
pub struct NodeSql {
    node: Arc<Node>,
    engine: Arc<Engine>,
}

impl NodeSql {
    /// Takes the node and what its queries share.
    pub fn new(node: Arc<Node>, engine: Arc<Engine>) -> Self {
        Self { node, engine }
    }
}

fn sql_error(error: &NodeError) -> SqlError {
    let code = match error {
        NodeError::UnknownGame(_) => "3D000",
        NodeError::RollupExists(_) | NodeError::TableExists(_) => "42P07",
        NodeError::UnknownRollup(_) | NodeError::UnknownFamily(_) | NodeError::UnknownProperty(_) => "42P01",
        NodeError::Invalid(_) | NodeError::Refused(_) | NodeError::GameExists(_) => "22023",
        NodeError::NoRoom(NoRoom::Disk(_)) => "53100",
        NodeError::NoRoom(NoRoom::Memtables(_)) => "53200",
        NodeError::Busy { .. } | NodeError::Surveying { .. } => "53200",
        NodeError::Unavailable { .. } | NodeError::Stopping => "57P03",
        NodeError::OutcomeUnknown { .. } => "40003",
        NodeError::NotHere { .. } => "0A000",
        NodeError::Storage(galoo_storage::Error::SnapshotTooOld { .. }) => "72000",
        NodeError::Storage(_) => "XX001",
    };
    SqlError { code, message: error.to_string(), hint: None }
}

#[async_trait]
impl SqlBackend for NodeSql {
    fn games(&self) -> Vec<String> {
        self.node.router().names()
    }

    async fn context(&self, game: &str) -> Result<SessionContext, SqlError> {
        let views = match self.games().iter().any(|known| known == game) {
            true => self.node.game_views(game).await.map_err(|error| sql_error(&error))?,
            false => Vec::new(),
        };
        let context = self.engine.context(game, &views);
        context.map_err(|error| SqlError { code: "XX000", message: error.to_string(), hint: None })
    }

    async fn define(&self, game: &str, sql: &str) -> Result<Option<String>, SqlError> {
        let Some(statement) = Statement::parse(sql).map_err(define_error)? else { return Ok(None) };
        let done = match statement {
            Statement::Create { name, if_not_exists, select, options } => {
                let context = self.context(game).await?;
                let planned = define::plan(&context, &name, &select, &options).await;
                let rollup = planned.map_err(define_error)?;
                match self.node.create_rollup(game, rollup).await {
                    Err(NodeError::RollupExists(_)) if if_not_exists => {}
                    created => created.map_err(|error| sql_error(&error))?,
                }
                "CREATE ROLLUP"
            }
            Statement::Drop { name, if_exists } => {
                match self.node.drop_rollup(game, &name).await {
                    Err(NodeError::UnknownRollup(_)) if if_exists => {}
                    dropped => dropped.map_err(|error| sql_error(&error))?,
                }
                "DROP ROLLUP"
            }
        };
        Ok(Some(done.to_owned()))
    }
}

fn define_error(error: DefineError) -> SqlError {
    let code = match error {
        DefineError::Plan(failure) => return failure.into(),
        DefineError::Syntax(_) => "42601",
        DefineError::Name(_) => "42602",
        DefineError::Unkept(_) | DefineError::Invalid(_) => "0A000",
    };
    SqlError { code, message: error.to_string(), hint: None }
}
