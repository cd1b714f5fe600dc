//! What the Postgres front asks of the node: a DataFusion session over one cut of a game.

use std::sync::Arc;

use async_trait::async_trait;
use datafusion::prelude::SessionContext;
use galoo_pg::{SqlBackend, SqlError};
use galoo_query::Engine;

use crate::node::{Node, NodeError};

/// The node's SQL.
pub struct NodeSql {
    node: Arc<Node>,
    engine: Engine,
}

impl NodeSql {
    /// Takes the node and what its queries share.
    pub fn new(node: Arc<Node>, engine: Engine) -> Self {
        Self { node, engine }
    }
}

fn sql_error(error: &NodeError) -> SqlError {
    let code = match error {
        NodeError::UnknownGame(_) => "3D000",
        NodeError::Invalid(_) | NodeError::Refused(_) | NodeError::GameExists(_) => "22023",
        NodeError::Busy { .. } => "53200",
        NodeError::Unavailable { .. } | NodeError::Stopping => "57P03",
        NodeError::OutcomeUnknown { .. } => "40003",
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

    async fn define(&self, _game: &str, _sql: &str) -> Result<Option<String>, SqlError> {
        Ok(None)
    }
}
