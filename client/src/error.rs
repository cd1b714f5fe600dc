//! What a call can fail with, by what the caller does next.

use galoo_proto::command::Rejection;
use tonic::{Code, Status};

/// Shorthand for results of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// A failed call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No node answers at the address.
    #[error("cannot connect to {addr}: {reason}")]
    Unreachable {
        /// The address.
        addr: String,
        /// What the system said.
        reason: String,
    },
    /// The node answered with an error.
    #[error("{message}")]
    Status {
        /// Its kind.
        code: Code,
        /// Its words.
        message: String,
    },
    /// A part of a batch was not stored and can be sent again.
    #[error("{message}")]
    PartRetry {
        /// The shard.
        shard: u64,
        /// Why; it names the shard.
        message: String,
    },
    /// A part of a batch may or may not be stored: send it again under the same number, or look.
    #[error("{message}")]
    OutcomeUnknown {
        /// The shard.
        shard: u64,
        /// Why; it names the shard.
        message: String,
    },
    /// A part of a batch will never be stored.
    #[error("s{shard}: {message}")]
    Rejected {
        /// The shard.
        shard: u64,
        /// Why, in words.
        message: String,
        /// Why.
        rejection: Box<Rejection>,
    },
    /// The node's answer lacks something that it must have.
    #[error("malformed answer: {0}")]
    Malformed(&'static str),
    /// The stream that the call was sent on ended: it may or may not be done.
    #[error("the connection ended before the call was answered; its outcome is unknown")]
    StreamEnded,
}

impl Error {
    /// Whether the same request, if it is safe to repeat, may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            // Cancelled and Internal are what the HTTP/2 library makes of a connection that dies under a call.
            Self::Status { code, .. } => {
                matches!(
                    code,
                    Code::Cancelled
                        | Code::Internal
                        | Code::Unavailable
                        | Code::ResourceExhausted
                        | Code::DeadlineExceeded
                        | Code::Unknown
                        | Code::Aborted
                )
            }
            Self::Unreachable { .. } | Self::PartRetry { .. } | Self::OutcomeUnknown { .. } | Self::StreamEnded => true,
            Self::Rejected { .. } | Self::Malformed(_) => false,
        }
    }
}

impl Error {
    /// Whether the request surely had no effect: nodes say `UNAVAILABLE` and `RESOURCE_EXHAUSTED` of nothing else, and
    /// the HTTP/2 library says it of a request that never left.
    pub fn is_surely_not_done(&self) -> bool {
        match self {
            Self::Status { code, .. } => matches!(code, Code::Unavailable | Code::ResourceExhausted),
            Self::Unreachable { .. } => true,
            _ => false,
        }
    }

    /// Whether the node, or the way to it, is better left for another one.
    pub(crate) fn is_of_connection(&self) -> bool {
        match self {
            Self::Status { code, .. } => {
                matches!(code, Code::Unavailable | Code::Cancelled | Code::Internal | Code::DeadlineExceeded)
            }
            Self::Unreachable { .. } | Self::StreamEnded => true,
            _ => false,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Status { code: status.code(), message: status.message().to_owned() }
    }
}
