//! How streams are compressed, and what their decoders have in common.

use std::fmt;
use std::io::{self, Read};
use std::sync::Arc;

use super::bzip2::Bzip2Decoder;
use super::gzip::GzipDecoder;
use super::input::{Input, Stored};
use super::lz4::Lz4Decoder;

/// How a stream is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Codec {
    /// gzip, of one member or more.
    Gzip,
    /// LZ4 frames.
    Lz4,
    /// Zstandard frames.
    Zstd,
    /// bzip2, of one stream or more.
    Bzip2,
}

impl fmt::Display for Codec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Zstd => "zstd",
            Self::Bzip2 => "bzip2",
        })
    }
}

/// What a decoder did.
#[derive(Debug)]
pub(super) enum Step {
    /// It wrote so many bytes.
    Bytes(usize),
    /// It stands where decoding could begin.
    Place(Resume),
    /// That was all, and it is sound as far as the format can tell.
    End,
}

/// Where decoding can begin, and what the decoder must know there beside the bytes decoded before.
#[derive(Debug, Clone, Copy)]
pub(super) struct Resume {
    /// The place in the compressed stream.
    pub(super) encoded_at: u64,
    pub(super) state: ResumeState,
}

/// What a decoder must know at a place.
#[derive(Debug, Clone, Copy)]
pub(super) enum ResumeState {
    /// Nothing: a frame or member begins.
    Start,
    /// A block of deflate begins, with so many bits of the byte before.
    Deflate { bit_count: u8, bits: u8 },
    /// A block of LZ4 begins, in a frame of this kind.
    Lz4 { flags: u8, block_descriptor: u8 },
    /// A block of bzip2 begins, at this bit of the byte, in a stream of this level.
    Bzip2 { level: u8, bit: u8 },
}

impl Resume {
    pub(super) const BEGINNING: Self = Self {
        encoded_at: 0,
        state: ResumeState::Start,
    };

    /// How many of the bytes decoded before the decoder needs.
    pub(super) fn window_bytes(&self) -> usize {
        match self.state {
            ResumeState::Start | ResumeState::Bzip2 { .. } => 0,
            ResumeState::Deflate { .. } => super::gzip::WINDOW_BYTES,
            ResumeState::Lz4 { flags, .. } => super::lz4::window_bytes(flags),
        }
    }
}

/// A decoder that goes forwards. Its errors are the system's where they have a number, else they are of the stream.
pub(super) trait Decoder: Send {
    /// Goes on a step; the buffer is not empty.
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Step>;
}

impl Codec {
    /// Whether decoding can begin elsewhere than at the beginning.
    pub(super) fn has_places(self) -> bool {
        match self {
            Self::Gzip | Self::Lz4 | Self::Bzip2 => true,
            Self::Zstd => false,
        }
    }

    /// Whether to find the places, and to keep what is looked back on there, costs little beside decoding. With gzip, whose decoder must
    /// be another then, and with lz4 it costs half as much again.
    pub(crate) fn has_cheap_places(self) -> bool {
        match self {
            Self::Bzip2 => true,
            Self::Gzip | Self::Lz4 | Self::Zstd => false,
        }
    }

    /// A decoder that begins there, given the bytes before.
    pub(super) fn decoder(
        self,
        stored: Arc<dyn Stored>,
        resume: Resume,
        window: &[u8],
    ) -> io::Result<Box<dyn Decoder>> {
        let input = Input::new(stored, resume.encoded_at);
        Ok(match self {
            Self::Gzip => Box::new(GzipDecoder::new(input, resume.state, window)),
            Self::Lz4 => Box::new(Lz4Decoder::new(input, resume.state, window)?),
            Self::Bzip2 => Box::new(Bzip2Decoder::new(input, resume.state)),
            Self::Zstd => Box::new(Forward(zstd::stream::read::Decoder::with_buffer(input)?)),
        })
    }
}

/// A decoder without places.
struct Forward<R>(R);

impl<R: Read + Send> Decoder for Forward<R> {
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Step> {
        Ok(match self.0.read(buffer)? {
            0 => Step::End,
            count => Step::Bytes(count),
        })
    }
}

/// An error of the stream.
pub(super) fn damaged(reason: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
