//! Raft's messages between nodes, in frames of their own on the port of gRPC: there are thousands in a second, most of
//! them small, and a call of HTTP/2 for each costs more than the messages themselves.
//!
//! ```text
//! connection   PREFACE | Caller ->   <- Welcome   RaftBatch -> ...
//! frame        length u32 (big-endian) | protobuf, see peer.proto
//! ```

use std::{io, time::Duration};

use bytes::{BufMut, Bytes};
use futures::StreamExt;
use galoo_proto::{
    limits::GRPC_MESSAGE_BYTES_MAX,
    peer::{Caller, RaftBatch, Welcome},
};
use prost::Message;
use socket2::{SockRef, TcpKeepalive};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::codec::{FramedRead, LengthDelimitedCodec};
use tonic::Status;

use super::CONNECT_TIMEOUT;

/// How a connection begins. No request of HTTP and no hello of TLS begins with the same byte.
const PREFACE: &[u8] = b"\x01galoo.raft.v1\n";
/// The length of a frame.
const HEAD_BYTES: usize = size_of::<u32>();
/// A connection on which nothing moved for so long is asked whether it stands, and given up after as long again. The one
/// of gRPC may stand although this one does not.
const IDLE_MAX: Duration = Duration::from_secs(5);
/// A connection's first byte, and the other side's part of getting acquainted, come in this time. A node that starts
/// takes a while to answer.
const ACQUAINTED_WITHIN: Duration = Duration::from_secs(20);

/// A message as a frame.
pub(super) fn frame(message: &impl Message) -> Bytes {
    let bytes = message.encoded_len();
    let mut frame = Vec::with_capacity(HEAD_BYTES + bytes);
    frame.put_u32(u32::try_from(bytes).unwrap_or(u32::MAX));
    // Memory has room: encoding into it does not fail.
    message.encode(&mut frame).expect("a message can be written to memory");
    frame.into()
}

/// Bytes of a frame: messages up to their limit, and a command more, which weighs at most twice what a call may bring:
/// the names of its events' properties stand in it once more.
const FRAME_BYTES_MAX: usize = 4 * GRPC_MESSAGE_BYTES_MAX;

fn codec() -> LengthDelimitedCodec {
    LengthDelimitedCodec::builder().length_field_length(HEAD_BYTES).max_frame_length(FRAME_BYTES_MAX).new_codec()
}

type Frames = FramedRead<TcpStream, LengthDelimitedCodec>;

/// The message of the next frame; `None` at the end of the connection.
async fn next<M: Message + Default>(frames: &mut Frames) -> io::Result<Option<M>> {
    let Some(frame) = frames.next().await.transpose()? else { return Ok(None) };
    M::decode(frame.freeze()).map(Some).map_err(io::Error::other)
}

fn late(_: tokio::time::error::Elapsed) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, "the other side says nothing")
}

/// Whether a connection that somebody made begins with these frames; nothing is taken from it.
pub async fn begins(stream: &TcpStream) -> io::Result<bool> {
    let mut first = [0];
    let bytes = timeout(ACQUAINTED_WITHIN, stream.peek(&mut first)).await.map_err(late)??;
    Ok(bytes == first.len() && PREFACE.starts_with(&first))
}

/// Connects to a node, which lets this one in.
pub(super) async fn connect(addr: &str, caller: &Caller) -> Result<TcpStream, Status> {
    let mut stream = timeout(CONNECT_TIMEOUT, TcpStream::connect(addr)).await.map_err(late)??;
    keep_alive(&stream)?;
    stream.write_all(&[PREFACE, &frame(caller)].concat()).await?;
    let mut frames = FramedRead::new(stream, codec());
    let welcome = timeout(ACQUAINTED_WITHIN, next(&mut frames)).await.map_err(late)??;
    let Welcome { refused } = welcome.ok_or_else(|| Status::unavailable("the other node hung up"))?;
    // Behind it nothing comes.
    if refused.is_empty() { Ok(frames.into_inner()) } else { Err(Status::failed_precondition(refused)) }
}

fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(IDLE_MAX).with_interval(IDLE_MAX))?;
    // Also for what was sent and never arrived.
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(2 * IDLE_MAX))?;
    Ok(())
}

/// Waits until the other node ends a connection that was let in: it says nothing more on it.
pub(super) async fn ended(stream: &TcpStream) -> Status {
    loop {
        let read = match stream.readable().await {
            Ok(()) => stream.try_read(&mut [0]),
            Err(error) => Err(error),
        };
        match read {
            Ok(0) => return Status::ok("closed by the other node"),
            Ok(_) => return Status::internal("the other node speaks where it should listen"),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return error.into(),
        }
    }
}

/// A connection that another node made.
pub struct Incoming(Frames);

impl Incoming {
    /// Takes what the other node states.
    pub async fn accept(mut stream: TcpStream) -> io::Result<(Self, Caller)> {
        let begin = async {
            let mut preface = [0; PREFACE.len()];
            stream.read_exact(&mut preface).await?;
            if preface != PREFACE {
                return Err(io::Error::other("not a version of Raft's frames that is known here"));
            }
            let mut frames = FramedRead::new(stream, codec());
            let caller = next(&mut frames).await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            Ok((Self(frames), caller))
        };
        timeout(ACQUAINTED_WITHIN, begin).await.map_err(late)?
    }

    /// Lets the other node in, or tells why not.
    pub async fn answer(&mut self, refused: String) -> io::Result<()> {
        self.0.get_mut().write_all(&frame(&Welcome { refused })).await
    }

    /// The next messages that came together; `None` when the other node ended the connection.
    pub async fn batch(&mut self) -> io::Result<Option<RaftBatch>> {
        next(&mut self.0).await
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("binds");
        let addr = listener.local_addr().expect("bound").to_string();
        (listener, addr)
    }

    #[tokio::test]
    async fn a_node_is_let_in_or_told_why_not() {
        let (listener, addr) = listener().await;
        let caller = Caller { cluster_id: "aa".to_owned(), from: 1, to: 2, addr: "127.0.0.1:1".to_owned() };
        for refused in ["", "another cluster"] {
            let accept = async {
                let (stream, _) = listener.accept().await?;
                assert!(begins(&stream).await?);
                let (mut incoming, stated) = Incoming::accept(stream).await?;
                assert_eq!(stated, caller);
                incoming.answer(refused.to_owned()).await.map(|()| incoming)
            };
            let (incoming, connected) = tokio::join!(accept, connect(&addr, &caller));
            let mut incoming = incoming.expect("accepts");
            if !refused.is_empty() {
                assert_eq!(connected.expect_err("refused").message(), refused);
                continue;
            }
            let mut connected = connected.expect("let in");
            let batch = |bytes| RaftBatch {
                messages: vec![galoo_proto::peer::RaftMessage { group: 7, message: vec![1; bytes].into() }],
            };
            let sent = [frame(&batch(10)), frame(&batch(100_000))].concat();
            connected.write_all(&sent).await.expect("sends");
            assert_eq!(incoming.batch().await.expect("comes"), Some(batch(10)));
            assert_eq!(incoming.batch().await.expect("comes"), Some(batch(100_000)));
            drop(incoming);
            assert_eq!(ended(&connected).await.code(), tonic::Code::Ok);
        }
    }

    #[tokio::test]
    async fn what_is_not_of_a_node_ends_the_connection() {
        let (listener, addr) = listener().await;
        let large = [PREFACE, &u32::MAX.to_be_bytes()].concat();
        let garbage = [PREFACE, &[0, 0, 0, 2, 0xff, 0xff]].concat();
        let cut = PREFACE[..4].to_vec();
        for (sent, starts) in [
            (b"PRI * HTTP/2.0".to_vec(), false),
            (b"\x01other\n".to_vec(), true),
            (large, true),
            (garbage, true),
            (cut, true),
        ] {
            let mut stranger = TcpStream::connect(&addr).await.expect("connects");
            let (stream, _) = listener.accept().await.expect("accepts");
            stranger.write_all(&sent).await.expect("sends");
            assert_eq!(begins(&stream).await.expect("says something"), starts, "{sent:?}");
            drop(stranger);
            assert!(!starts || Incoming::accept(stream).await.is_err(), "{sent:?}");
        }
    }
}
