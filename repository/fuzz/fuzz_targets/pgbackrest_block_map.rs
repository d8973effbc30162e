#![no_main]
//! No bytes may panic the reader of block maps, and a map that passes has every block of its file.

use libfuzzer_sys::fuzz_target;
use repository::pgbackrest::{BlockLayout, parse_block_map};

fuzz_target!(|data: &[u8]| {
    let Some((&[blocks, checksum_bytes, references], map)) = data.split_first_chunk::<3>() else {
        return;
    };
    let layout = BlockLayout {
        size_bytes: u64::from(blocks) * 8192 + 1,
        block_bytes: 8192,
        checksum_bytes: checksum_bytes % 16 + 1,
        reference_count: u16::from(references),
    };
    if let Ok(map) = parse_block_map(map, layout) {
        for number in 0..layout.block_count() {
            let block = map.block(number).expect("every block is there");
            assert!(block.superblock.stored_bytes > 0);
            assert!(block.superblock.reference < layout.reference_count);
        }
    }
});
