use super::*;
use proptest::prelude::*;

const LAYOUT: BlockLayout = BlockLayout {
    size_bytes: 4 * 8192,
    block_bytes: 8192,
    checksum_bytes: 2,
    reference_count: 3,
};

/// Bytes of a map from numbers, and checksums from `Err`.
fn encoded(parts: &[Result<u64, u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for part in parts {
        match *part {
            Ok(mut number) => loop {
                let more = number > 0x7f;
                bytes.push((number & 0x7f) as u8 | if more { 0x80 } else { 0 });
                number >>= 7;
                if !more {
                    break;
                }
            },
            Err(checksum) => bytes.extend([checksum, checksum]),
        }
    }
    bytes
}

/// Reference, bundle, offset, stored and decoded bytes, number in the superblock, and the checksum's first byte, by block.
type Seen = (u16, u32, u64, u32, u32, u32, u8);

fn seen(map: &BlockMap) -> Vec<Seen> {
    let count = map.layout().block_count();
    (0..count)
        .map(|number| {
            let block = map.block(number).unwrap();
            let of = block.superblock;
            (
                of.reference,
                of.bundle,
                of.offset,
                of.stored_bytes,
                of.decoded_bytes,
                block.number,
                block.checksum[0],
            )
        })
        .collect()
}

#[test]
fn one_superblock_with_all_blocks_is_read() {
    let map = encoded(&[
        Ok(0),
        Ok(7), // reference 0, bundle, offset, last
        Ok(3),
        Ok(1000),
        Ok(500 << 3 | 3), // 500 bytes, decoded size follows, last
        Ok(4 << 1),
        Err(1),
        Err(2),
        Err(3),
        Err(4),
    ]);
    let map = parse_block_map(&map, LAYOUT).unwrap();
    let wanted = |number, sum| (0, 3, 1000, 500, 32768, number, sum);
    assert_eq!(
        seen(&map),
        [wanted(0, 1), wanted(1, 2), wanted(2, 3), wanted(3, 4)]
    );
}

#[test]
fn a_superblock_that_a_newer_backup_interrupts_is_continued() {
    let map = encoded(&[
        Ok(0),
        Ok(0),            // reference 0, in the file's own place, not the last run
        Ok(500 << 3 | 7), // 500 bytes, decoded size and blocks are listed, last of the run
        Ok(4 << 1),       // four blocks
        Ok(0),            // the first of them
        Err(1),
        Ok(2 << 3 | 4), // reference 2 at an offset
        Ok(64),
        Ok(((2 * 400 - 1) << 3) | 1), // 400 bytes less than the one before: 100
        Err(9),
        Ok(2 | 4 | 1),        // reference 0 continues, last there, last run
        Ok((2 - 1) << 1 | 1), // two blocks after one that is skipped
        Ok(1),
        Err(3),
        Err(4),
    ]);
    let map = parse_block_map(&map, LAYOUT).unwrap();
    assert_eq!(
        seen(&map),
        [
            (0, 0, 0, 500, 32768, 0, 1),
            (2, 0, 64, 100, 8192, 0, 9),
            (0, 0, 0, 500, 32768, 2, 3),
            (0, 0, 0, 500, 32768, 3, 4),
        ]
    );
}

#[test]
fn a_map_that_is_cut_extended_or_of_another_file_is_refused() {
    let good = encoded(&[
        Ok(0),
        Ok(1),
        Ok(500 << 3 | 3),
        Ok(4 << 1),
        Err(1),
        Err(2),
        Err(3),
        Err(4),
    ]);
    assert!(parse_block_map(&good, LAYOUT).is_ok());
    for length in 0..good.len() {
        assert!(parse_block_map(&good[..length], LAYOUT).is_err());
    }
    let longer = [good.as_slice(), &[0]].concat();
    assert!(parse_block_map(&longer, LAYOUT).is_err());
    for (size_bytes, reference_count) in [(5 * 8192, 3), (3 * 8192, 3), (4 * 8192, 0)] {
        let other = BlockLayout {
            size_bytes,
            reference_count,
            ..LAYOUT
        };
        assert!(parse_block_map(&good, other).is_err());
    }
}

proptest! {
    #[test]
    fn no_bytes_make_more_blocks_than_the_file_has(
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        if let Ok(map) = parse_block_map(&bytes, LAYOUT) {
            prop_assert_eq!(seen(&map).len(), 4);
        }
    }
}
