//! LZ4 frames with places: each block is one, with the last 64 KiB before it where blocks look back.

use std::hash::Hasher;
use std::io::{self, BufRead, Read};

use twox_hash::XxHash32;

use super::codec::{Decoder, Resume, ResumeState, Step, damaged};
use super::input::Input;

const MAGIC: u32 = 0x184D_2204;
const MAGIC_LEGACY: u32 = 0x184C_2102;
/// With any value of the lowest four bits.
const MAGIC_SKIPPABLE: u32 = 0x184D_2A50;
/// How far back a block looks.
const WINDOW_BYTES: usize = 64 << 10;
/// Set in a block's length where it is not compressed.
const PLAIN: u32 = 1 << 31;

const HAS_DICTIONARY: u8 = 1;
const HAS_CHECKSUM: u8 = 1 << 2;
const HAS_SIZE: u8 = 1 << 3;
const HAS_BLOCK_CHECKSUMS: u8 = 1 << 4;
const IS_INDEPENDENT: u8 = 1 << 5;

/// How many bytes before a block are needed to decode it.
pub(super) fn window_bytes(flags: u8) -> usize {
    match flags & IS_INDEPENDENT {
        0 => WINDOW_BYTES,
        _ => 0,
    }
}

pub(super) struct Lz4Decoder {
    input: Input,
    state: State,
    /// What the block in hand may look back on.
    window: Vec<u8>,
    block: Vec<u8>,
    /// What of the block has been handed out.
    handed: usize,
    stored: Vec<u8>,
}

enum State {
    Header { first: bool },
    Frame { frame: Frame, is_told: bool },
    Ended,
}

/// A frame of a kind, and the checksum of its content so far; none where it began before us.
#[derive(Clone)]
struct Frame {
    flags: u8,
    block_descriptor: u8,
    block_bytes_max: usize,
    hasher: Option<XxHash32>,
}

impl Frame {
    fn new(flags: u8, block_descriptor: u8) -> io::Result<Self> {
        if flags >> 6 != 1 || flags & 2 != 0 || block_descriptor & 0x8f != 0 {
            return Err(damaged("a header is of no known kind"));
        }
        let block_bytes_max = match block_descriptor >> 4 {
            4 => 64 << 10,
            5 => 256 << 10,
            6 => 1 << 20,
            7 => 4 << 20,
            _ => return Err(damaged("a header has a block size that is none")),
        };
        Ok(Self {
            flags,
            block_descriptor,
            block_bytes_max,
            hasher: None,
        })
    }

    fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }
}

impl Lz4Decoder {
    pub(super) fn new(input: Input, resume: ResumeState, window: &[u8]) -> io::Result<Self> {
        let state = match resume {
            ResumeState::Lz4 {
                flags,
                block_descriptor,
            } => State::Frame {
                frame: Frame::new(flags, block_descriptor)?,
                is_told: true,
            },
            ResumeState::Start | ResumeState::Deflate { .. } | ResumeState::Bzip2 { .. } => {
                State::Header { first: true }
            }
        };
        Ok(Self {
            input,
            state,
            window: window.to_vec(),
            block: Vec::new(),
            handed: 0,
            stored: Vec::new(),
        })
    }

    /// Takes a frame's header; none at the end of the stream.
    fn header(&mut self, mut first: bool) -> io::Result<Option<Frame>> {
        loop {
            if !first && self.input.fill_buf()?.is_empty() {
                return Ok(None);
            }
            match u32::from_le_bytes(self.input.array()?) {
                MAGIC => break,
                MAGIC_LEGACY => return Err(damaged("it is of the legacy format of LZ4")),
                magic if magic & !0xf == MAGIC_SKIPPABLE => {
                    let length = u32::from_le_bytes(self.input.array()?);
                    self.input.skip(u64::from(length))?;
                    first = false;
                }
                _ if first => return Err(damaged("it is not LZ4")),
                _ => return Err(damaged("what follows a frame is not LZ4")),
            }
        }
        let [flags, block_descriptor] = self.input.array()?;
        let mut frame = Frame::new(flags, block_descriptor)?;
        if frame.has(HAS_DICTIONARY) {
            return Err(damaged("it needs a dictionary"));
        }
        let mut header = vec![flags, block_descriptor];
        if frame.has(HAS_SIZE) {
            header.extend_from_slice(&self.input.array::<8>()?);
        }
        let [wanted] = self.input.array()?;
        if XxHash32::oneshot(0, &header).to_le_bytes().get(1) != Some(&wanted) {
            return Err(damaged("the checksum of a header is wrong"));
        }
        if frame.has(HAS_CHECKSUM) {
            frame.hasher = Some(XxHash32::with_seed(0));
        }
        self.window.clear();
        Ok(Some(frame))
    }

    /// Decodes the next block; false at the frame's end.
    fn next_block(&mut self, frame: &mut Frame) -> io::Result<bool> {
        let length = u32::from_le_bytes(self.input.array()?);
        if length == 0 {
            if frame.has(HAS_CHECKSUM) {
                let wanted = u32::from_le_bytes(self.input.array()?);
                let found = frame.hasher.take().map(|hasher| hasher.finish_32());
                if found.is_some_and(|found| found != wanted) {
                    return Err(damaged("its content does not have its checksum"));
                }
            }
            return Ok(false);
        }
        let stored_bytes = (length & !PLAIN) as usize;
        if stored_bytes > frame.block_bytes_max {
            return Err(damaged("a block is larger than it may be"));
        }
        self.stored.resize(stored_bytes, 0);
        self.input.read_exact(&mut self.stored)?;
        if frame.has(HAS_BLOCK_CHECKSUMS) {
            let wanted = u32::from_le_bytes(self.input.array()?);
            if XxHash32::oneshot(0, &self.stored) != wanted {
                return Err(damaged("a block does not have its checksum"));
            }
        }
        self.remember(frame);
        if length & PLAIN != 0 {
            std::mem::swap(&mut self.block, &mut self.stored);
        } else {
            self.block.resize(frame.block_bytes_max, 0);
            let decoded = lz4_flex::block::decompress_into_with_dict(
                &self.stored,
                &mut self.block,
                &self.window,
            );
            let count = decoded.map_err(|_| damaged("a block is invalid"))?;
            self.block.truncate(count);
        }
        self.handed = 0;
        if let Some(hasher) = &mut frame.hasher {
            hasher.write(&self.block);
        }
        Ok(true)
    }

    /// Keeps of the block in hand what the next may look back on.
    fn remember(&mut self, frame: &Frame) {
        let kept = window_bytes(frame.flags);
        if self.block.len() >= kept {
            self.window.clear();
        }
        let fresh = self.block.len().saturating_sub(kept);
        let fresh = self.block.get(fresh..).unwrap_or_default();
        self.window.extend_from_slice(fresh);
        let surplus = self.window.len().saturating_sub(kept);
        self.window.drain(..surplus);
        self.block.clear();
    }

    fn hand_out(&mut self, buffer: &mut [u8]) -> usize {
        let rest = self.block.get(self.handed..).unwrap_or_default();
        let count = rest.len().min(buffer.len());
        if let (Some(place), Some(bytes)) = (buffer.get_mut(..count), rest.get(..count)) {
            place.copy_from_slice(bytes);
        }
        self.handed += count;
        count
    }
}

impl Decoder for Lz4Decoder {
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Step> {
        loop {
            let count = self.hand_out(buffer);
            if count > 0 {
                return Ok(Step::Bytes(count));
            }
            match std::mem::replace(&mut self.state, State::Ended) {
                State::Header { first } => {
                    if let Some(frame) = self.header(first)? {
                        let is_told = false;
                        self.state = State::Frame { frame, is_told };
                    }
                }
                State::Frame { frame, is_told } if !is_told => {
                    let place = Resume {
                        encoded_at: self.input.position(),
                        state: ResumeState::Lz4 {
                            flags: frame.flags,
                            block_descriptor: frame.block_descriptor,
                        },
                    };
                    let is_told = true;
                    self.state = State::Frame { frame, is_told };
                    return Ok(Step::Place(place));
                }
                State::Frame { mut frame, .. } => {
                    self.state = match self.next_block(&mut frame)? {
                        true => State::Frame {
                            frame,
                            is_told: false,
                        },
                        false => {
                            self.block.clear();
                            State::Header { first: false }
                        }
                    };
                }
                State::Ended => return Ok(Step::End),
            }
        }
    }
}
