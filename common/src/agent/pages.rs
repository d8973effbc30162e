//! The page channel: a mount's worker asks, the mount server answers, on one connection, many requests at a time.
//!
//! A frame is a little-endian `u32` length of what follows, a kind byte, a little-endian `u64` request number, and the rest by kind.
//! The mount server speaks first ([`PageFrame::Hello`]); the worker ends the connection if the tree is not the one it shows.

use std::sync::Arc;

use super::buffers::{Buffer, Buffers};

/// Longest frame, in bytes after the length.
pub const FRAME_BYTES_MAX: usize = 5 * 1024 * 1024;

/// Most bytes in one read.
pub const READ_BYTES_MAX: u32 = 4 * 1024 * 1024;

/// One frame of the page channel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PageFrame {
    /// Mount server to worker, first: which tree is served.
    Hello {
        /// [`super::hand::PROTOCOL_VERSION`].
        protocol: u32,
        /// [`super::hand::TreeFinish::hash`] of the served tree.
        tree_hash: u32,
    },
    /// Worker to mount server: bytes of a file are wanted.
    Read {
        /// Chosen by the worker, echoed in the answer.
        request: u64,
        /// Number of the file in the tree.
        file: u32,
        /// First byte.
        offset: u64,
        /// How many; at most [`READ_BYTES_MAX`].
        length: u32,
    },
    /// Mount server to worker: the bytes. Fewer than asked for only at the end of the file.
    Data {
        /// The read's number.
        request: u64,
        /// The bytes.
        bytes: Buffer,
    },
    /// Mount server to worker: the bytes cannot be had.
    Failed {
        /// The read's number.
        request: u64,
        /// Whether asking again is useless (a corrupt backup): the reader gets EIO.
        permanent: bool,
        /// Why, for the log.
        message: String,
    },
}

/// Bytes of a frame from its length to where its kind's own part begins: length, kind, number.
pub const HEAD_BYTES: usize = 13;

/// A [`PageFrame::Data`] whose bytes are read straight into their place in the frame.
#[derive(Debug)]
pub struct DataFrame {
    frame: Buffer,
}

impl DataFrame {
    /// A frame with room for so many bytes.
    pub fn with_room(buffers: &Arc<Buffers>, length: u32) -> Self {
        Self {
            frame: buffers.take(HEAD_BYTES + length as usize),
        }
    }

    /// Where the bytes go.
    pub fn room(&mut self) -> &mut [u8] {
        self.frame.get_mut(HEAD_BYTES..).unwrap_or_default()
    }

    /// The whole frame, of the first `count` bytes.
    pub fn finish(mut self, request: u64, count: usize) -> Buffer {
        self.frame.truncate(HEAD_BYTES + count);
        let length = u32::try_from(self.frame.len() - 4).unwrap_or(u32::MAX);
        let head = length
            .to_le_bytes()
            .into_iter()
            .chain([3])
            .chain(request.to_le_bytes());
        for (place, byte) in self.frame.iter_mut().zip(head) {
            *place = byte;
        }
        self.frame
    }
}

/// A frame that is not one of the protocol's.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("malformed frame on the page channel: {0}")]
pub struct MalformedFrame(pub String);

impl PageFrame {
    /// The frame with its length in front.
    pub fn encode(&self) -> Vec<u8> {
        let mut frame = vec![0; 4];
        match self {
            PageFrame::Hello {
                protocol,
                tree_hash,
            } => {
                frame.push(1);
                frame.extend_from_slice(&u64::from(*protocol).to_le_bytes());
                frame.extend_from_slice(&tree_hash.to_le_bytes());
            }
            PageFrame::Read {
                request,
                file,
                offset,
                length,
            } => {
                frame.push(2);
                frame.extend_from_slice(&request.to_le_bytes());
                frame.extend_from_slice(&file.to_le_bytes());
                frame.extend_from_slice(&offset.to_le_bytes());
                frame.extend_from_slice(&length.to_le_bytes());
            }
            PageFrame::Data { request, bytes } => {
                frame.reserve(9 + bytes.len());
                frame.push(3);
                frame.extend_from_slice(&request.to_le_bytes());
                frame.extend_from_slice(bytes);
            }
            PageFrame::Failed {
                request,
                permanent,
                message,
            } => {
                frame.push(if *permanent { 5 } else { 4 });
                frame.extend_from_slice(&request.to_le_bytes());
                frame.extend_from_slice(message.as_bytes());
            }
        }
        let length = u32::try_from(frame.len() - 4).expect("frames are far below 4 GiB");
        if let Some(head) = frame.first_chunk_mut::<4>() {
            *head = length.to_le_bytes();
        }
        frame
    }

    /// Puts a frame together from its head and what follows it; bytes are taken over, not copied.
    pub fn from_parts(head: [u8; HEAD_BYTES], rest: Buffer) -> Result<Self, MalformedFrame> {
        let [_, _, _, _, kind, number @ ..] = head;
        if kind == 3 {
            let request = u64::from_le_bytes(number);
            return Ok(PageFrame::Data {
                request,
                bytes: rest,
            });
        }
        let mut frame = vec![kind];
        frame.extend_from_slice(&number);
        frame.extend_from_slice(&rest);
        Self::decode(&frame)
    }

    /// How many bytes follow a head, if it is one.
    pub fn rest_length(head: &[u8; HEAD_BYTES]) -> Result<usize, MalformedFrame> {
        let [a, b, c, d, ..] = *head;
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(MalformedFrame(format!("a frame of {length} bytes")));
        }
        length
            .checked_sub(HEAD_BYTES - 4)
            .ok_or_else(|| MalformedFrame(format!("a frame of {length} bytes")))
    }

    /// Reads what follows the length.
    pub fn decode(frame: &[u8]) -> Result<Self, MalformedFrame> {
        let malformed =
            || MalformedFrame(format!("{} bytes of kind {:?}", frame.len(), frame.first()));
        let (&kind, rest) = frame.split_first().ok_or_else(malformed)?;
        let (number, rest) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
        let request = u64::from_le_bytes(*number);
        match kind {
            1 => Ok(PageFrame::Hello {
                protocol: u32::try_from(request).map_err(|_| malformed())?,
                tree_hash: u32::from_le_bytes(rest.try_into().map_err(|_| malformed())?),
            }),
            2 => {
                let (file, rest) = rest.split_first_chunk::<4>().ok_or_else(malformed)?;
                let (offset, rest) = rest.split_first_chunk::<8>().ok_or_else(malformed)?;
                let length = u32::from_le_bytes(rest.try_into().map_err(|_| malformed())?);
                if length > READ_BYTES_MAX {
                    return Err(MalformedFrame(format!("a read of {length} bytes")));
                }
                Ok(PageFrame::Read {
                    request,
                    file: u32::from_le_bytes(*file),
                    offset: u64::from_le_bytes(*offset),
                    length,
                })
            }
            3 => Ok(PageFrame::Data {
                request,
                bytes: rest.to_vec().into(),
            }),
            4 | 5 => Ok(PageFrame::Failed {
                request,
                permanent: kind == 5,
                message: String::from_utf8_lossy(rest).into_owned(),
            }),
            _ => Err(malformed()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_frame() -> impl Strategy<Value = PageFrame> {
        prop_oneof![
            (any::<u32>(), any::<u32>()).prop_map(|(protocol, tree_hash)| PageFrame::Hello {
                protocol,
                tree_hash
            }),
            (any::<u64>(), any::<u32>(), any::<u64>(), 0..=READ_BYTES_MAX).prop_map(
                |(request, file, offset, length)| PageFrame::Read {
                    request,
                    file,
                    offset,
                    length
                }
            ),
            (any::<u64>(), any::<Vec<u8>>()).prop_map(|(request, bytes)| PageFrame::Data {
                request,
                bytes: bytes.into()
            }),
            (any::<u64>(), any::<bool>(), any::<String>()).prop_map(
                |(request, permanent, message)| PageFrame::Failed {
                    request,
                    permanent,
                    message
                }
            ),
        ]
    }

    proptest! {
        #[test]
        fn every_frame_comes_back_as_it_was_sent(frame in any_frame()) {
            let bytes = frame.encode();
            let length = u32::from_le_bytes(*bytes.first_chunk::<4>().unwrap()) as usize;
            prop_assert_eq!(length, bytes.len() - 4);
            prop_assert_eq!(PageFrame::decode(&bytes[4..]).unwrap(), frame.clone());
            let (head, rest) = bytes.split_first_chunk().unwrap();
            prop_assert_eq!(PageFrame::rest_length(head).unwrap(), rest.len());
            prop_assert_eq!(PageFrame::from_parts(*head, rest.to_vec().into()).unwrap(), frame.clone());
            if let PageFrame::Data { request, bytes: content } = frame {
                let room = u32::try_from(content.len()).unwrap() + 3;
                let mut in_place = DataFrame::with_room(&Buffers::new(1), room);
                in_place.room()[..content.len()].copy_from_slice(&content);
                prop_assert_eq!(&*in_place.finish(request, content.len()), &*bytes);
            }
        }

        #[test]
        fn no_bytes_from_the_wire_panic_the_decoder(bytes in any::<Vec<u8>>()) {
            let _answer = PageFrame::decode(&bytes);
        }
    }
}
