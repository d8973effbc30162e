//! gzip (RFC 1952) with places: each block of deflate is one, with the last 32 KiB before it.
//!
//! The checksum of a member is compared by a decoder that began before the member did.

use std::io::{self, BufRead};

use flate2::Crc;
use miniz_oxide::inflate::TINFLStatus;
use miniz_oxide::inflate::core::inflate_flags::{
    TINFL_FLAG_HAS_MORE_INPUT, TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY,
};
use miniz_oxide::inflate::core::{BlockBoundaryState, DecompressorOxide, decompress_with_limit};

use super::codec::{Decoder, Resume, ResumeState, Step, damaged};
use super::input::Input;

/// How far back deflate looks.
pub(super) const WINDOW_BYTES: usize = 32 << 10;
/// Decoded bytes held for that, a power of two.
const RING_BYTES: usize = 1 << 18;
/// Longest name or comment in a header.
const TEXT_BYTES_MAX: usize = 1 << 16;

pub(super) struct GzipDecoder {
    input: Input,
    state: State,
    inflate: Box<DecompressorOxide>,
    ring: Vec<u8>,
    /// Where in the ring the next byte goes.
    at: usize,
    /// Of the member so far; none where it began before us.
    crc: Option<Crc>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    /// Before a member's header; `first` if none may be missing.
    Header {
        first: bool,
    },
    Body,
    /// In the body, where a block begins that has not been told yet.
    Boundary,
    Trailer,
    Ended,
}

impl GzipDecoder {
    pub(super) fn new(input: Input, resume: ResumeState, window: &[u8]) -> Self {
        let mut ring = vec![0; RING_BYTES];
        let window = window.last_chunk::<WINDOW_BYTES>().map_or(window, |w| w);
        if let Some(place) = ring.get_mut(..window.len()) {
            place.copy_from_slice(window);
        }
        let (state, inflate) = match resume {
            ResumeState::Deflate { bit_count, bits } => {
                let boundary = BlockBoundaryState {
                    num_bits: bit_count,
                    bit_buf: bits,
                    ..BlockBoundaryState::default()
                };
                let inflate = DecompressorOxide::from_block_boundary_state(&boundary);
                (State::Body, inflate)
            }
            ResumeState::Start | ResumeState::Lz4 { .. } | ResumeState::Bzip2 { .. } => {
                (State::Header { first: true }, DecompressorOxide::new())
            }
        };
        Self {
            input,
            state,
            inflate: Box::new(inflate),
            ring,
            at: window.len(),
            crc: None,
        }
    }

    /// Takes a member's header; false at the end of the stream.
    fn header(&mut self, first: bool) -> io::Result<bool> {
        if !first && self.only_zeros_are_left()? {
            return Ok(false);
        }
        let [magic @ .., method, flags] = self.input.array::<4>()?;
        if magic != [0x1f, 0x8b] {
            return Err(damaged(match first {
                true => "it is not gzip",
                false => "what follows a member is not gzip",
            }));
        }
        if method != 8 || flags & 0xe0 != 0 {
            return Err(damaged("a header is of no known kind"));
        }
        // Time, flags of the compressor, system.
        self.input.skip(6)?;
        if flags & 4 != 0 {
            let length = u16::from_le_bytes(self.input.array()?);
            self.input.skip(u64::from(length))?;
        }
        for flag in [8, 16] {
            if flags & flag != 0 {
                self.skip_text()?;
            }
        }
        if flags & 2 != 0 {
            self.input.skip(2)?;
        }
        self.inflate.init();
        self.crc = Some(Crc::new());
        Ok(true)
    }

    /// Whether nothing follows but the zeros with which some programs fill up.
    fn only_zeros_are_left(&mut self) -> io::Result<bool> {
        loop {
            let rest = self.input.fill_buf()?;
            let zeros = rest.iter().take_while(|byte| **byte == 0).count();
            let (is_end, is_other) = (rest.is_empty(), zeros < rest.len());
            self.input.consume(zeros);
            if is_end || is_other {
                return Ok(is_end);
            }
        }
    }

    fn skip_text(&mut self) -> io::Result<()> {
        for _ in 0..TEXT_BYTES_MAX {
            if self.input.array()? == [0] {
                return Ok(());
            }
        }
        Err(damaged("a name in a header does not end"))
    }

    fn body(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.input.fill_buf()?;
        let is_end = rest.is_empty();
        let flags = TINFL_FLAG_HAS_MORE_INPUT | TINFL_FLAG_STOP_ON_BLOCK_BOUNDARY;
        let limit = buffer.len().min(RING_BYTES - self.at);
        let (status, taken, count) = decompress_with_limit(
            &mut self.inflate,
            rest,
            &mut self.ring,
            self.at,
            limit,
            flags,
        );
        self.input.consume(taken);
        match status {
            TINFLStatus::Done => self.state = State::Trailer,
            TINFLStatus::BlockBoundary => self.state = State::Boundary,
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput if is_end && count == 0 => {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            TINFLStatus::NeedsMoreInput | TINFLStatus::HasMoreOutput => {}
            // Failures of all kinds.
            _ => return Err(damaged("a block of deflate is invalid")),
        }
        let decoded = self.ring.get(self.at..self.at + count).unwrap_or_default();
        if let Some(place) = buffer.get_mut(..count) {
            place.copy_from_slice(decoded);
        }
        if let Some(crc) = &mut self.crc {
            crc.update(decoded);
        }
        self.at = (self.at + count) % RING_BYTES;
        Ok(count)
    }

    fn place(&self) -> Option<Resume> {
        let boundary = self.inflate.block_boundary_state()?;
        Some(Resume {
            encoded_at: self.input.position(),
            state: ResumeState::Deflate {
                bit_count: boundary.num_bits,
                bits: boundary.bit_buf,
            },
        })
    }

    fn trailer(&mut self) -> io::Result<()> {
        let (sum, size) = (self.input.array()?, self.input.array()?);
        let wanted = (u32::from_le_bytes(sum), u32::from_le_bytes(size));
        match self.crc.take() {
            Some(crc) if (crc.sum(), crc.amount()) != wanted => {
                Err(damaged("its content does not have its checksum"))
            }
            _ => Ok(()),
        }
    }
}

impl Decoder for GzipDecoder {
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Step> {
        loop {
            match self.state {
                State::Header { first } => {
                    self.state = match self.header(first)? {
                        true => State::Body,
                        false => State::Ended,
                    };
                }
                State::Body => match self.body(buffer)? {
                    0 => {}
                    count => return Ok(Step::Bytes(count)),
                },
                State::Boundary => {
                    self.state = State::Body;
                    if let Some(place) = self.place() {
                        return Ok(Step::Place(place));
                    }
                }
                State::Trailer => {
                    self.trailer()?;
                    self.state = State::Header { first: false };
                    return Ok(Step::Place(Resume {
                        encoded_at: self.input.position(),
                        state: ResumeState::Start,
                    }));
                }
                State::Ended => return Ok(Step::End),
            }
        }
    }
}
