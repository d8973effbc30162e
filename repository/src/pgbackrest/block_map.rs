//! The map of a file that is stored block by block: which superblock of which backup holds each of its blocks
//! (`command/backup/blockMap.c` of pgBackRest). Maps are compact, because a large cluster has hundreds of megabytes of them.

/// What is known of a file before its map is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockLayout {
    /// Size of the file.
    pub size_bytes: u64,
    /// Size of its blocks.
    pub block_bytes: u32,
    /// How many bytes of each block's checksum the map has, 1 to 16.
    pub checksum_bytes: u8,
    /// How many backups can be referred to.
    pub reference_count: u16,
}

/// Compressed and encrypted blocks that are stored together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superblock {
    /// Which backup holds it: index into the manifest's list.
    pub reference: u16,
    /// The bundle that it is in; 0: the file's own.
    pub bundle: u32,
    /// Where it begins there.
    pub offset: u64,
    /// How many bytes it has there.
    pub stored_bytes: u32,
    /// How many bytes it has when decoded.
    pub decoded_bytes: u32,
}

/// Where one block is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Block<'a> {
    /// The superblock's number in the map, and itself.
    pub superblock: Superblock,
    /// Which of its blocks it is, from 0.
    pub number: u32,
    /// First bytes of its XXH3 of 128 bits, big-endian.
    pub checksum: &'a [u8],
}

/// A map, read.
#[derive(Debug, PartialEq, Eq)]
pub struct BlockMap {
    layout: BlockLayout,
    superblocks: Vec<Superblock>,
    /// Superblock and number in it, by block.
    blocks: Vec<(u32, u32)>,
    checksums: Vec<u8>,
}

/// Largest superblock, in bytes: pgBackRest allows 16 MiB, and what does not shrink grows a little.
const SUPERBLOCK_BYTES_MAX: u64 = 64 << 20;

impl BlockLayout {
    /// How many blocks the file has.
    pub fn block_count(&self) -> u64 {
        self.size_bytes.div_ceil(u64::from(self.block_bytes).max(1))
    }
}

impl BlockMap {
    /// What is known of the file.
    pub fn layout(&self) -> &BlockLayout {
        &self.layout
    }

    /// The block of this number, from 0.
    pub fn block(&self, number: u64) -> Option<Block<'_>> {
        let at = usize::try_from(number).ok()?;
        let (superblock, inside) = *self.blocks.get(at)?;
        let width = usize::from(self.layout.checksum_bytes);
        Some(Block {
            superblock: *self.superblocks.get(superblock as usize)?,
            number: inside,
            checksum: self.checksums.get(at * width..(at + 1) * width)?,
        })
    }

    /// How many bytes it takes in memory.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.superblocks.capacity() * size_of::<Superblock>()
            + self.blocks.capacity() * size_of::<(u32, u32)>()
            + self.checksums.capacity()
    }
}

/// Reads a map that must describe the whole file; the error says what is wrong with it.
pub fn parse_block_map(bytes: &[u8], layout: BlockLayout) -> Result<BlockMap, String> {
    let mut parser = Parser {
        bytes,
        previous_stored_bytes: 0,
        states: vec![None; usize::from(layout.reference_count)],
        map: BlockMap {
            layout,
            superblocks: Vec::new(),
            blocks: Vec::new(),
            checksums: Vec::new(),
        },
    };
    parser.read().ok_or_else(|| {
        let at = bytes.len() - parser.bytes.len();
        format!("the block map is damaged at byte {at} of {}", bytes.len())
    })?;
    let map = parser.map;
    match map.blocks.len() as u64 == layout.block_count() {
        true => Ok(map),
        false => {
            let (found, wanted) = (map.blocks.len(), layout.block_count());
            Err(format!(
                "the block map has {found} blocks, and the file {wanted}"
            ))
        }
    }
}

/// Where reading has arrived in a backup that was referred to.
#[derive(Debug, Clone, Copy)]
struct ReferenceState {
    decoded_bytes: u64,
    bundle: u32,
    offset: u64,
    stored_bytes: u64,
    block: u64,
}

struct Parser<'a> {
    bytes: &'a [u8],
    /// Of the last superblock of any backup: sizes are written as differences.
    previous_stored_bytes: u64,
    states: Vec<Option<ReferenceState>>,
    map: BlockMap,
}

// The meaning of the bits of a run of superblocks from one backup.
const RUN_LAST: u64 = 1;
const RUN_HAS_BUNDLE: u64 = 2;
const RUN_HAS_OFFSET: u64 = 4;
// The same two bits when the backup was referred to before.
const RUN_CONTINUES: u64 = 2;
const RUN_HAS_GAP: u64 = 4;
// And the bits of one superblock.
const SUPERBLOCK_LAST: u64 = 1;
const SUPERBLOCK_HAS_DECODED_BYTES: u64 = 2;
const SUPERBLOCK_HAS_BLOCKS: u64 = 4;

impl Parser<'_> {
    /// None where the map is not what it should be; `bytes` then begins there.
    fn read(&mut self) -> Option<()> {
        let version = self.varint()?;
        if version & 1 != 0 {
            return None;
        }
        loop {
            let head = self.varint()?;
            self.run(head)?;
            if head & RUN_LAST != 0 {
                return self.bytes.is_empty().then_some(());
            }
        }
    }

    /// Reads superblocks that lie one behind the other in one backup.
    fn run(&mut self, head: u64) -> Option<()> {
        let reference = usize::try_from(head >> 3).ok()?;
        let block_bytes = u64::from(self.map.layout.block_bytes);
        let known = *self.states.get(reference)?;
        let mut continues = false;
        let mut state = match known {
            None => ReferenceState {
                decoded_bytes: block_bytes,
                bundle: match head & RUN_HAS_BUNDLE {
                    0 => 0,
                    _ => u32::try_from(self.varint()?).ok()?,
                },
                offset: match head & RUN_HAS_OFFSET {
                    0 => 0,
                    _ => self.varint()?,
                },
                stored_bytes: 0,
                block: 0,
            },
            Some(state) if head & RUN_CONTINUES != 0 => {
                continues = true;
                state
            }
            Some(state) => {
                let gap = match head & RUN_HAS_GAP {
                    0 => 0,
                    _ => self.varint()?,
                };
                let end = state.offset.checked_add(state.stored_bytes)?;
                ReferenceState {
                    offset: end.checked_add(gap)?,
                    ..state
                }
            }
        };
        let mut first = true;
        loop {
            let head = if continues {
                continues = false;
                // What continues has no size of its own; whether it is the run's last stands in the run's head.
                let last = if head & RUN_HAS_GAP != 0 {
                    SUPERBLOCK_LAST
                } else {
                    0
                };
                SUPERBLOCK_HAS_BLOCKS | last
            } else {
                self.superblock(&mut state, first)?
            };
            self.previous_stored_bytes = state.stored_bytes;
            first = false;
            self.blocks(reference, &mut state, head & SUPERBLOCK_HAS_BLOCKS != 0)?;
            if head & SUPERBLOCK_LAST != 0 {
                break;
            }
        }
        *self.states.get_mut(reference)? = Some(state);
        Some(())
    }

    /// Reads the head of a new superblock.
    fn superblock(&mut self, state: &mut ReferenceState, first: bool) -> Option<u64> {
        let head = self.varint()?;
        let size = head >> 3;
        state.stored_bytes = match self.previous_stored_bytes {
            0 => size,
            previous => previous.checked_add_signed(zigzag(size))?,
        };
        if head & SUPERBLOCK_HAS_DECODED_BYTES != 0 {
            let blocks = self.varint()?;
            let whole = (blocks >> 1).checked_mul(u64::from(self.map.layout.block_bytes))?;
            let rest = if blocks & 1 != 0 { self.varint()? } else { 0 };
            state.decoded_bytes = whole.checked_add(rest)?;
        }
        if !first {
            state.offset = state.offset.checked_add(self.previous_stored_bytes)?;
        }
        state.block = 0;
        Some(head)
    }

    /// Reads which blocks of a superblock the file has.
    fn blocks(
        &mut self,
        reference: usize,
        state: &mut ReferenceState,
        is_listed: bool,
    ) -> Option<()> {
        let count = if is_listed {
            let head = self.varint()?;
            if head & 1 != 0 {
                let skipped = self.varint()?;
                state.block = state.block.checked_add(skipped)?;
            }
            (head >> 1).checked_add(1)?
        } else {
            let block_bytes = u64::from(self.map.layout.block_bytes).max(1);
            state.decoded_bytes.div_ceil(block_bytes)
        };
        let fits = |bytes: u64| (1..=SUPERBLOCK_BYTES_MAX).contains(&bytes);
        let blocks_after = self.map.blocks.len() as u64 + count;
        if !fits(state.stored_bytes)
            || !fits(state.decoded_bytes)
            || blocks_after > self.map.layout.block_count()
        {
            return None;
        }
        let number = u32::try_from(self.map.superblocks.len()).ok()?;
        self.map.superblocks.push(Superblock {
            reference: u16::try_from(reference).ok()?,
            bundle: state.bundle,
            offset: state.offset,
            stored_bytes: u32::try_from(state.stored_bytes).ok()?,
            decoded_bytes: u32::try_from(state.decoded_bytes).ok()?,
        });
        for _ in 0..count {
            let width = usize::from(self.map.layout.checksum_bytes);
            let (checksum, rest) = self.bytes.split_at_checked(width)?;
            self.map.checksums.extend_from_slice(checksum);
            self.bytes = rest;
            let inside = u32::try_from(state.block).ok()?;
            self.map.blocks.push((number, inside));
            state.block += 1;
        }
        Some(())
    }

    /// Seven bits a byte, the lowest first.
    fn varint(&mut self) -> Option<u64> {
        let mut value = 0_u64;
        for index in 0..10_u32 {
            let (byte, rest) = self.bytes.split_first()?;
            let bits = u64::from(byte & 0x7f);
            let shifted = bits.checked_shl(7 * index)?;
            if shifted >> (7 * index) != bits {
                return None;
            }
            value |= shifted;
            self.bytes = rest;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }
}

/// A signed number, of one with its sign in the lowest bit.
fn zigzag(value: u64) -> i64 {
    (value >> 1).cast_signed() ^ -(value & 1).cast_signed()
}

#[cfg(test)]
#[path = "block_map/tests.rs"]
mod tests;
