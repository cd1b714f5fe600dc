//! Raft messages as bytes between nodes.
//!
//! ```text
//! crc u32 of the rest (little-endian, CRC-32) | raft-rs's eraftpb.Message, protobuf
//! ```

use bytes::Bytes;
use protobuf::Message as _;
pub use raft::eraftpb::Message;
use raft::eraftpb::MessageType;

const CRC_BYTES: usize = 4;

/// Encodes a message.
pub fn encode(message: &Message) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(CRC_BYTES + message.compute_size() as usize);
    bytes.extend_from_slice(&[0; CRC_BYTES]);
    // Writing to memory does not fail: a message has no required fields.
    message.write_to_vec(&mut bytes).expect("a message can be written to memory");
    let crc = crc(&bytes[CRC_BYTES..]);
    bytes[..CRC_BYTES].copy_from_slice(&crc.to_le_bytes());
    bytes
}

/// CRC-32 of bytes that travel between nodes.
pub fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

/// Decodes a message, whose entries share the bytes; `None` when it is damaged.
pub fn decode(bytes: &Bytes) -> Option<Message> {
    let (stated, body) = bytes.split_first_chunk::<CRC_BYTES>()?;
    let parse = || Message::parse_from_carllerche_bytes(&bytes.slice(CRC_BYTES..)).ok();
    (crc(body) == u32::from_le_bytes(*stated)).then(parse).flatten()
}

/// Whether a message is of a leader's log: it brings entries, or tells behind those before it what is committed. One that
/// overtakes another is refused, and the leader sends everything since again.
pub fn is_append(message: &Message) -> bool {
    message.get_msg_type() == MessageType::MsgAppend
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_comes_back_and_a_damaged_one_does_not() {
        let message = Message { from: 1, to: 2, term: 7, context: vec![9; 100].into(), ..Default::default() };
        let mut bytes = encode(&message);
        let decode = |bytes: &[u8]| decode(&Bytes::copy_from_slice(bytes));
        assert_eq!(decode(&bytes), Some(message));
        for at in 0..bytes.len() {
            bytes[at] ^= 0x10;
            assert_eq!(decode(&bytes), None, "byte {at} changed");
            bytes[at] ^= 0x10;
        }
        assert_eq!(decode(&bytes[..bytes.len() - 1]), None);
    }
}
