#![no_main]
//! No bytes may panic the reader of increments, and each block of one that passes lies within it.

use libfuzzer_sys::fuzz_target;
use repository::pg_basebackup::parse_increment_head;

fuzz_target!(|data: &[u8]| {
    let stored_bytes = data.len() as u64;
    let Ok(head) = parse_increment_head(data, stored_bytes) else {
        return;
    };
    let map = usize::try_from(head.map_bytes()).expect("a map is small");
    if let Ok(increment) = head.with_numbers(data.get(..map).unwrap_or_default()) {
        for block in 0..=head.truncation_block_count {
            if let Some(at) = increment.block_at(block) {
                assert!(at + 8192 <= stored_bytes);
            }
        }
    }
});
