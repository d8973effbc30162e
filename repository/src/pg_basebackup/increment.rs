//! `INCREMENTAL.<file>` of incremental backups (PostgreSQL 17 and later): the blocks of a file that have changed since the
//! parent, and how long it may be. Numbers are in the byte order of the machine that wrote them, which has to be ours.

/// Size of a block, in bytes (`BLCKSZ` as PostgreSQL is built everywhere).
pub(crate) const BLOCK_BYTES: u64 = 8192;
/// What precedes the name of the file.
const PREFIX: &str = "INCREMENTAL.";
const MAGIC: u32 = 0xd3ae_1f0d;
/// Blocks of a segment of 1 GiB.
const BLOCK_COUNT_MAX: u32 = 131_072;
/// Size of the head: magic, number of blocks, truncation length.
pub const INCREMENT_HEAD_BYTES: usize = 12;

/// The file that a path of an incremental backup holds blocks of; none if it is a file like any other. PostgreSQL writes them in
/// directories of databases, in `global` and in tablespaces, and nowhere else.
pub(crate) fn file_of_increment(path: &str) -> Option<String> {
    let (directory, name) = path.rsplit_once('/')?;
    let has_increments = directory == "global"
        || directory.starts_with("base/")
        || directory.starts_with("pg_tblspc/");
    let name = name.strip_prefix(PREFIX).filter(|_| has_increments)?;
    Some(format!("{directory}/{name}"))
}

/// Where the blocks of a file would be, if its backup has some.
pub(crate) fn increment_of_file(path: &str) -> String {
    match path.rsplit_once('/') {
        Some((directory, name)) => format!("{directory}/{PREFIX}{name}"),
        None => format!("{PREFIX}{path}"),
    }
}

/// The beginning of an increment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IncrementHead {
    /// How many blocks it has.
    pub block_count: u32,
    /// Blocks from this one on are not taken from older backups.
    pub truncation_block_count: u32,
}

/// Which blocks an increment has, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    head: IncrementHead,
    /// In ascending order, as the blocks are stored.
    numbers: Vec<u32>,
}

/// Reads the first [`INCREMENT_HEAD_BYTES`] of an increment that has `stored_bytes`; what is wrong, else.
pub fn parse_increment_head(bytes: &[u8], stored_bytes: u64) -> Result<IncrementHead, String> {
    let [magic, block_count, truncation_block_count] = bytes
        .first_chunk::<INCREMENT_HEAD_BYTES>()
        .map(numbers_of)
        .ok_or("is too short for an increment")?;
    if magic == MAGIC.swap_bytes() {
        return Err("was written by a machine of the other byte order".into());
    }
    if magic != MAGIC {
        return Err("does not begin as an increment does".into());
    }
    for count in [block_count, truncation_block_count] {
        if count > BLOCK_COUNT_MAX {
            return Err(format!(
                "says {count} blocks, and a file has at most {BLOCK_COUNT_MAX}"
            ));
        }
    }
    let head = IncrementHead {
        block_count,
        truncation_block_count,
    };
    match head.stored_bytes() == stored_bytes {
        true => Ok(head),
        false => Err(format!(
            "has {stored_bytes} bytes, and with {block_count} blocks it would have {}",
            head.stored_bytes()
        )),
    }
}

fn numbers_of(bytes: &[u8; INCREMENT_HEAD_BYTES]) -> [u32; 3] {
    let (numbers, _) = bytes.as_chunks::<4>();
    let mut found = [0; 3];
    for (to, from) in found.iter_mut().zip(numbers) {
        *to = u32::from_ne_bytes(*from);
    }
    found
}

impl IncrementHead {
    /// Bytes up to the end of the block numbers.
    pub fn map_bytes(&self) -> u64 {
        INCREMENT_HEAD_BYTES as u64 + 4 * u64::from(self.block_count)
    }

    /// Where its blocks begin: padded, but only if there are any.
    fn blocks_at(&self) -> u64 {
        match self.block_count {
            0 => self.map_bytes(),
            _ => self.map_bytes().next_multiple_of(BLOCK_BYTES),
        }
    }

    fn stored_bytes(&self) -> u64 {
        self.blocks_at() + u64::from(self.block_count) * BLOCK_BYTES
    }

    /// Where the number of its last block is, if it has one.
    pub(crate) fn last_number_at(&self) -> Option<u64> {
        (self.block_count > 0).then(|| self.map_bytes() - 4)
    }

    /// How many blocks the file has that the increment stands for, if this is its last block.
    pub(crate) fn shown_block_count(&self, last_block: Option<u32>) -> Result<u32, String> {
        let behind_last = last_block.map_or(0, |last| last.saturating_add(1));
        match behind_last <= BLOCK_COUNT_MAX {
            true => Ok(self.truncation_block_count.max(behind_last)),
            false => Err(format!("has block {}, which is too far", behind_last - 1)),
        }
    }

    /// Takes the bytes from the beginning to the end of the block numbers; what is wrong, else.
    pub fn with_numbers(self, map: &[u8]) -> Result<Increment, String> {
        let numbers = map.get(INCREMENT_HEAD_BYTES..).unwrap_or_default();
        let (numbers, _) = numbers.as_chunks::<4>();
        let numbers: Vec<u32> = numbers
            .iter()
            .map(|number| u32::from_ne_bytes(*number))
            .collect();
        if numbers.len() != self.block_count as usize {
            return Err("ends in its block numbers".into());
        }
        if !numbers.is_sorted_by(|a, b| a < b) {
            return Err("has block numbers that are not in order".into());
        }
        self.shown_block_count(numbers.last().copied())?;
        Ok(Increment {
            head: self,
            numbers,
        })
    }
}

impl Increment {
    /// Where a block is stored, if it is here.
    pub fn block_at(&self, block: u32) -> Option<u64> {
        let place = self.numbers.binary_search(&block).ok()?;
        Some(self.head.blocks_at() + place as u64 * BLOCK_BYTES)
    }

    /// Blocks from this one on are not taken from older backups.
    pub(crate) fn truncation_block_count(&self) -> u32 {
        self.head.truncation_block_count
    }

    /// What it takes in memory, in bytes.
    pub(crate) fn memory_bytes(&self) -> usize {
        size_of::<Self>() + self.numbers.capacity() * size_of::<u32>()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An increment with these blocks, for other tests.
    pub(crate) fn increment(truncation: u32, numbers: &[u32]) -> Increment {
        let stored_bytes = BLOCK_BYTES * (numbers.len() as u64 + 1);
        read(&map(MAGIC, truncation, numbers), stored_bytes).unwrap()
    }

    fn map(magic: u32, truncation: u32, numbers: &[u32]) -> Vec<u8> {
        let count = u32::try_from(numbers.len()).unwrap();
        let head = [magic, count, truncation];
        let all = head.iter().chain(numbers);
        all.flat_map(|number| number.to_ne_bytes()).collect()
    }

    fn read(map: &[u8], stored_bytes: u64) -> Result<Increment, String> {
        parse_increment_head(map, stored_bytes)?.with_numbers(map)
    }

    #[test]
    fn an_increment_says_where_its_blocks_are() {
        let increment = read(&map(MAGIC, 10, &[2, 7, 11]), 4 * BLOCK_BYTES).unwrap();
        let places: Vec<_> = [0, 2, 7, 11, 12]
            .map(|block| increment.block_at(block))
            .into();
        assert_eq!(places, [None, Some(8192), Some(16384), Some(24576), None]);
        assert_eq!(increment.head.shown_block_count(Some(11)), Ok(12));
        assert_eq!(increment.head.shown_block_count(Some(3)), Ok(10));
        // Without blocks there is no padding either.
        assert_eq!(read(&map(MAGIC, 3, &[]), 12).unwrap().block_at(0), None);
    }

    #[test]
    fn what_is_no_increment_is_refused() {
        let sound = map(MAGIC, 10, &[2, 7]);
        let whole = 3 * BLOCK_BYTES;
        let table: &[(&[u8], u64, &str)] = &[
            (&[], 0, "too short"),
            (&sound[..11], 11, "too short"),
            (&sound, whole - 1, "it would have"),
            (&sound, u64::MAX, "it would have"),
            (&sound[..16], whole, "ends in its block numbers"),
            (&map(1, 10, &[2, 7]), whole, "does not begin"),
            (&map(MAGIC.swap_bytes(), 10, &[]), 12, "byte order"),
            (&map(MAGIC, u32::MAX, &[]), 12, "at most"),
            (&map(MAGIC, 1, &[7, 2]), whole, "not in order"),
            (&map(MAGIC, 1, &[7, 7]), whole, "not in order"),
            (&map(MAGIC, 1, &[7, u32::MAX]), whole, "too far"),
        ];
        for (bytes, stored_bytes, reason) in table {
            let error = read(bytes, *stored_bytes).unwrap_err();
            assert!(error.contains(reason), "{error}, and not: {reason}");
        }
        let mut absurd = map(MAGIC, 1, &[]);
        absurd[4..8].fill(0xFF);
        assert!(read(&absurd, 12).unwrap_err().contains("at most"));
    }

    #[test]
    fn increments_are_files_of_relations_only() {
        for (path, file) in [
            ("base/5/INCREMENTAL.1259", Some("base/5/1259")),
            ("global/INCREMENTAL.1262_vm", Some("global/1262_vm")),
            (
                "pg_tblspc/1/PG_18_1/5/INCREMENTAL.7.1",
                Some("pg_tblspc/1/PG_18_1/5/7.1"),
            ),
            ("base/5/1259", None),
            ("base/INCREMENTAL.1", None),
            ("pg_wal/INCREMENTAL.1", None),
            ("INCREMENTAL.config", None),
        ] {
            assert_eq!(file_of_increment(path).as_deref(), file, "{path}");
            if let Some(file) = file {
                assert_eq!(increment_of_file(file), path);
            }
        }
    }
}
