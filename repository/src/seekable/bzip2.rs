//! bzip2 with places: each block is one. Blocks stand by themselves and have checksums of their own, but begin at any bit, and
//! nothing says where: the next is found by the 48 bits that it begins with.
//!
//! A block is decoded as a stream of its own, made of its bits. The checksum over all blocks of a stream is compared by a decoder
//! that began before the stream did.

use std::io::{self, BufRead};

use bzip2::{Decompress, Status};

use super::codec::{Decoder, Resume, ResumeState, Step, damaged};
use super::input::Input;

/// What a block begins with, and what stands behind the last.
const BLOCK: u64 = 0x3141_5926_5359;
const END: u64 = 0x1772_4538_5090;
const MAGIC_BITS: usize = 48;
const SUM_BITS: usize = 32;
/// Most that is stored of one block: it holds 900,000 bytes, which its code cannot make more than a little longer.
const STORED_BYTES_MAX: usize = 2 << 20;
/// In how many places a block's end is looked for: that what looks like one is none happens once in 32 TiB.
const ENDS_TRIED_MAX: usize = 4;
/// Bytes read at a time.
const READ_BYTES: usize = 1 << 16;

pub(super) struct Bzip2Decoder {
    bits: Bits,
    state: State,
    /// The digit behind `BZh`.
    level: u8,
    /// The checksums of the blocks so far; none where the stream began before us.
    sum: Option<u32>,
}

enum State {
    Header { first: bool },
    BeforeBlock { is_told: bool },
    Block(Block),
    Ended,
}

impl Bzip2Decoder {
    pub(super) fn new(input: Input, resume: ResumeState) -> Self {
        let (state, level, bit) = match resume {
            ResumeState::Bzip2 { level, bit } => (State::BeforeBlock { is_told: true }, level, bit),
            ResumeState::Start | ResumeState::Deflate { .. } | ResumeState::Lz4 { .. } => {
                (State::Header { first: true }, 0, 0)
            }
        };
        Self {
            bits: Bits {
                input,
                held: Vec::new(),
                at: usize::from(bit),
            },
            state,
            level,
            sum: None,
        }
    }

    /// Takes a stream's header; false at the end of the last.
    fn header(&mut self, first: bool) -> io::Result<bool> {
        if !first && self.bits.is_at_end()? {
            return Ok(false);
        }
        match self.bits.take(32)?.to_be_bytes() {
            [.., b'B', b'Z', b'h', level @ b'1'..=b'9'] => self.level = level,
            _ if first => return Err(damaged("it is not bzip2")),
            _ => return Err(damaged("what follows a stream is not bzip2")),
        }
        self.sum = Some(0);
        Ok(true)
    }

    /// The block that begins here; none at the stream's end.
    fn next_block(&mut self) -> io::Result<Option<Block>> {
        match self.bits.peek(0, MAGIC_BITS)? {
            BLOCK => {}
            END => {
                self.bits.pass(MAGIC_BITS);
                let wanted = self.bits.take(SUM_BITS)?;
                self.bits.pass_to_byte();
                return match self.sum.take() {
                    Some(sum) if u64::from(sum) != wanted => {
                        Err(damaged("its content does not have its checksum"))
                    }
                    _ => Ok(None),
                };
            }
            _ => return Err(damaged("a block does not begin where it should")),
        }
        let sum = self.bits.peek(MAGIC_BITS, SUM_BITS)?;
        let mut end = MAGIC_BITS + SUM_BITS;
        for turn in 0..ENDS_TRIED_MAX {
            end = match self.bits.find_magic(end) {
                Err(error) if turn > 0 && error.kind() == io::ErrorKind::UnexpectedEof => break,
                found => found?,
            };
            if let Some(block) = Block::begin(self.level, &self.bits, end, sum) {
                self.bits.pass(end);
                let own = u32::try_from(sum).unwrap_or_default();
                self.sum = self.sum.map(|sum| sum.rotate_left(1) ^ own);
                return Ok(Some(block));
            }
            // What looked like the next block was in the middle of this one by chance, or this one is damaged.
            end += 1;
        }
        Err(damaged("a block is invalid"))
    }

    fn place(&self) -> Resume {
        let (encoded_at, bit) = self.bits.position();
        let level = self.level;
        Resume {
            encoded_at,
            state: ResumeState::Bzip2 { level, bit },
        }
    }
}

impl Decoder for Bzip2Decoder {
    fn step(&mut self, buffer: &mut [u8]) -> io::Result<Step> {
        loop {
            match &mut self.state {
                State::Header { first } => {
                    let first = *first;
                    self.state = match self.header(first)? {
                        true => State::BeforeBlock { is_told: false },
                        false => State::Ended,
                    };
                }
                State::BeforeBlock { is_told } if !*is_told => {
                    *is_told = true;
                    return Ok(Step::Place(self.place()));
                }
                State::BeforeBlock { .. } => match self.next_block()? {
                    Some(block) => self.state = State::Block(block),
                    None => {
                        self.state = State::Header { first: false };
                        let (encoded_at, _) = self.bits.position();
                        let state = ResumeState::Start;
                        return Ok(Step::Place(Resume { encoded_at, state }));
                    }
                },
                State::Block(block) => match block.read(buffer)? {
                    0 => self.state = State::BeforeBlock { is_told: false },
                    count => return Ok(Step::Bytes(count)),
                },
                State::Ended => return Ok(Step::End),
            }
        }
    }
}

/// A block, made a stream of its own.
struct Block {
    decompress: Decompress,
    stream: Vec<u8>,
    taken: usize,
    is_at_end: bool,
}

impl Block {
    /// Takes in the block of so many bits; none if it does not end there.
    fn begin(level: u8, bits: &Bits, bit_count: usize, sum: u64) -> Option<Self> {
        let mut stream = vec![b'B', b'Z', b'h', level];
        bits.copy(bit_count, &mut stream);
        // The checksum of one block is that of the whole stream.
        for (value, count) in [(END, MAGIC_BITS), (sum, SUM_BITS)] {
            push(&mut stream, bit_count % 8, value, count);
        }
        let mut block = Self {
            decompress: Decompress::new(false),
            stream,
            taken: 0,
            is_at_end: false,
        };
        // Nothing comes out before all of a block has gone in, and then there is no need yet of what follows it.
        block.go_on(&mut []).ok()?;
        (block.taken < block.stream.len()).then_some(block)
    }

    fn go_on(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let before = (self.decompress.total_in(), self.decompress.total_out());
        let rest = self.stream.get(self.taken..).unwrap_or_default();
        let status = self.decompress.decompress(rest, buffer);
        let status = status.map_err(|_| damaged("a block is invalid"))?;
        self.is_at_end = status == Status::StreamEnd;
        let taken = self.decompress.total_in() - before.0;
        self.taken += usize::try_from(taken).unwrap_or_default();
        let count = self.decompress.total_out() - before.1;
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// The next bytes, none only at its end, where its checksum has been compared.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.is_at_end {
            return Ok(0);
        }
        match self.go_on(buffer)? {
            0 if !self.is_at_end => Err(damaged("a block is invalid")),
            count => Ok(count),
        }
    }
}

/// Adds bits to bytes whose last has so many bits already, or none that are free.
fn push(bytes: &mut Vec<u8>, used: usize, value: u64, count: usize) {
    for (place, bit) in (used..).zip((0..count).rev()) {
        if place % 8 == 0 {
            bytes.push(0);
        }
        if value >> bit & 1 == 1
            && let Some(last) = bytes.last_mut()
        {
            *last |= 0x80 >> (place % 8);
        }
    }
}

/// A position in bits that moves forwards.
struct Bits {
    input: Input,
    /// What of the input is looked at.
    held: Vec<u8>,
    /// The next bit, in the first byte of it.
    at: usize,
}

impl Bits {
    /// The byte of the next bit in the stream, and the bit in it.
    fn position(&self) -> (u64, u8) {
        let byte = self.input.position() - self.held.len() as u64;
        (byte, u8::try_from(self.at).unwrap_or_default())
    }

    /// Holds more of the input.
    fn fill(&mut self) -> io::Result<()> {
        let more = self.input.fill_buf()?;
        let count = more.len().min(READ_BYTES);
        self.held
            .extend_from_slice(more.get(..count).unwrap_or_default());
        self.input.consume(count);
        match count {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(()),
        }
    }

    fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(self.held.is_empty() && self.input.fill_buf()?.is_empty())
    }

    /// So many bits, 56 at most, behind so many others.
    fn peek(&mut self, behind: usize, count: usize) -> io::Result<u64> {
        let start = self.at + behind;
        let end = start + count;
        while self.held.len() * 8 < end {
            self.fill()?;
        }
        let bytes = self.held.get(start / 8..end.div_ceil(8));
        let bytes = bytes.unwrap_or_default().iter();
        let found = bytes.fold(0_u64, |found, byte| found << 8 | u64::from(*byte));
        let surplus = end.div_ceil(8) * 8 - end;
        Ok(found >> surplus & ((1 << count) - 1))
    }

    /// Passes over bits that are held.
    fn pass(&mut self, count: usize) {
        let at = self.at + count;
        self.held.drain(..self.held.len().min(at / 8));
        self.at = at % 8;
    }

    fn take(&mut self, count: usize) -> io::Result<u64> {
        let found = self.peek(0, count)?;
        self.pass(count);
        Ok(found)
    }

    fn pass_to_byte(&mut self) {
        self.pass((8 - self.at) % 8);
    }

    /// How many bits from here the next block or the stream's end begins, from so many on.
    fn find_magic(&mut self, from: usize) -> io::Result<usize> {
        let from = self.at + from;
        let mut index = from / 8;
        let mut last_bytes = 0_u64;
        while index < STORED_BYTES_MAX {
            let Some(byte) = self.held.get(index) else {
                self.fill()?;
                continue;
            };
            last_bytes = last_bytes << 8 | u64::from(*byte);
            index += 1;
            for surplus in (0..8).rev() {
                let bits = last_bytes >> surplus & ((1 << MAGIC_BITS) - 1);
                if bits == BLOCK || bits == END {
                    let start = (index * 8).checked_sub(surplus + MAGIC_BITS);
                    if let Some(start) = start.filter(|start| *start >= from) {
                        return Ok(start - self.at);
                    }
                }
            }
        }
        Err(damaged("a block is invalid, or longer than it may be"))
    }

    /// Adds so many bits to whole bytes, filled up with zeros to whole ones.
    fn copy(&self, bit_count: usize, bytes: &mut Vec<u8>) {
        let held = self.held.get(..(self.at + bit_count).div_ceil(8));
        let held = held.unwrap_or_default();
        let start = bytes.len();
        let next = held.iter().skip(1).chain(&[0]);
        let shifted = held.iter().zip(next).map(|(byte, next)| {
            let both = u16::from_be_bytes([*byte, *next]) << self.at;
            both.to_be_bytes()[0]
        });
        bytes.extend(shifted);
        bytes.truncate(start + bit_count.div_ceil(8));
        if let Some(last) = bytes.last_mut().filter(|_| !bit_count.is_multiple_of(8)) {
            *last &= 0xff_u8 << (8 - bit_count % 8);
        }
    }
}
