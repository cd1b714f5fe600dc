//! gRPC: the data, admin and peer services, reflection and health.
//!
//! All are served from the first moment; health says `SERVING` once clients are let through. Connections that bring Raft's
//! messages share the port ([`super::raft`]).

mod admin;
mod data;
mod peer;

use std::{future::Future, sync::Arc, time::Duration};

use galoo_proto::{FILE_DESCRIPTORS, limits::GRPC_MESSAGE_BYTES_MAX};
use tokio::net::TcpListener;
use tonic::{
    Code, Status,
    body::Body,
    codegen::http::{self, HeaderValue},
    metadata::MetadataValue,
    transport::{Server, server::TcpIncoming},
};
use tonic_health::ServingStatus;
use tower::util::MapResponseLayer;

use super::raft;
use crate::{door::Door, node::NodeError, room::NoRoom};

/// HTTP/2 flow-control window of a stream: the protocol's default of 64 KiB throttles batches.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// HTTP/2 flow-control window of a connection.
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// Calls of one connection that run at once; further ones wait at the client.
const STREAMS_MAX: u32 = 256;
/// A connection from which nothing came for so long is asked whether it stands.
const KEEP_ALIVE: Duration = Duration::from_secs(30);

/// Serves until `stopped` resolves, then lets running calls end.
pub async fn serve(
    door: Arc<Door>,
    listener: TcpListener,
    stopped: impl Future<Output = ()> + Send,
) -> anyhow::Result<()> {
    use galoo_proto::{admin::admin_server::AdminServer, data::data_server::DataServer, peer::peer_server::PeerServer};
    let data = DataServer::new(data::DataService(door.clone()))
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
    let peer = PeerServer::new(peer::PeerService(door.clone()))
        .max_decoding_message_size(GRPC_MESSAGE_BYTES_MAX)
        .max_encoding_message_size(GRPC_MESSAGE_BYTES_MAX);
    let admin = AdminServer::new(admin::AdminService(door.clone()));
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let (reporter, health) = tonic_health::server::health_reporter();
    let report = move |status| {
        let reporter = reporter.clone();
        async move {
            for service in ["", "galoo.data.v1.Data", "galoo.admin.v1.Admin"] {
                reporter.set_service_status(service, status).await;
            }
        }
    };
    report(ServingStatus::NotServing).await;
    let (mut serving, serves) = (door.serving(), report.clone());
    tokio::spawn(async move {
        if serving.wait_for(|serving| *serving).await.is_ok() {
            serves(ServingStatus::Serving).await;
        }
    });
    let connections = TcpIncoming::from(listener).with_nodelay(Some(true)).with_keepalive(Some(KEEP_ALIVE));
    Server::builder()
        .layer(MapResponseLayer::new(blames_caller))
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .max_concurrent_streams(STREAMS_MAX)
        .http2_keepalive_interval(Some(KEEP_ALIVE))
        .add_service(health)
        .add_service(reflection().build_v1()?)
        .add_service(reflection().build_v1alpha()?)
        .add_service(data)
        .add_service(admin)
        .add_service(peer)
        .serve_with_incoming_shutdown(raft::taken_out(door, connections), async {
            stopped.await;
            report(ServingStatus::NotServing).await;
        })
        .await?;
    Ok(())
}

/// What tonic says of a request that does not decode, and of one over [`GRPC_MESSAGE_BYTES_MAX`], as it stands in a header.
const UNDECODABLE: &str = "failed%20to%20decode%20Protobuf%20message";
const TOO_LARGE: &str = "Error,%20decoded%20message%20length%20too%20large:";

/// A request that does not decode (a text that is not UTF-8) is `INVALID_ARGUMENT`: tonic calls it `INTERNAL`, which
/// clients try again. One that is too large is so too, and is called what it is.
fn blames_caller(mut response: http::Response<Body>) -> http::Response<Body> {
    let headers = response.headers_mut();
    let Some(said) = headers.get(Status::GRPC_MESSAGE).and_then(|message| message.to_str().ok()) else {
        return response;
    };
    let named = said.strip_prefix(TOO_LARGE).map(|sizes| format!("request%20is%20too%20large:{sizes}"));
    if said.starts_with(UNDECODABLE) || named.is_some() {
        headers.insert(Status::GRPC_STATUS, HeaderValue::from(Code::InvalidArgument as i32));
    }
    if let Some(named) = named.and_then(|named| HeaderValue::try_from(named).ok()) {
        headers.insert(Status::GRPC_MESSAGE, named);
    }
    response
}

/// Metadata key of the delay after which a refused call may be tried again, in milliseconds.
const RETRY_AFTER: &str = "galoo-retry-after-ms";

/// When a write that met a full disk may be tried again.
const DISK_RETRY_AFTER: Duration = Duration::from_secs(5);
/// The same of one that met full memtables.
const MEMTABLES_RETRY_AFTER: Duration = Duration::from_secs(1);

fn refused_for(retry_after: Duration, message: String) -> Status {
    let mut status = Status::new(Code::ResourceExhausted, message);
    let delay = u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX);
    status.metadata_mut().insert(RETRY_AFTER, MetadataValue::from(delay));
    status
}

impl From<NodeError> for Status {
    fn from(error: NodeError) -> Self {
        let message = error.to_string();
        match error {
            NodeError::Invalid(_) => Self::invalid_argument(message),
            NodeError::UnknownGame(_)
            | NodeError::UnknownRollup(_)
            | NodeError::UnknownFamily(_)
            | NodeError::UnknownProperty(_) => Self::not_found(message),
            NodeError::GameExists(_) | NodeError::RollupExists(_) | NodeError::TableExists(_) => {
                Self::already_exists(message)
            }
            NodeError::Refused(_) | NodeError::NotHere { .. } => Self::failed_precondition(message),
            NodeError::NoRoom(NoRoom::Disk(_)) => refused_for(DISK_RETRY_AFTER, message),
            NodeError::NoRoom(NoRoom::Memtables(_)) => refused_for(MEMTABLES_RETRY_AFTER, message),
            NodeError::Busy { retry_after } | NodeError::Surveying { retry_after } => refused_for(retry_after, message),
            NodeError::Unavailable { .. } | NodeError::Stopping => Self::unavailable(message),
            NodeError::OutcomeUnknown { .. } => Self::unknown(message),
            NodeError::Storage(galoo_storage::Error::Cursor) => Self::invalid_argument(message),
            NodeError::Storage(
                galoo_storage::Error::HistoryGone { .. } | galoo_storage::Error::TooManyCells { .. },
            ) => Self::out_of_range(message),
            NodeError::Storage(galoo_storage::Error::SnapshotTooOld { .. }) => Self::aborted(message),
            NodeError::Storage(_) => Self::data_loss(message),
        }
    }
}
