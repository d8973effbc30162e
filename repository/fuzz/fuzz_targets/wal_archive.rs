#![no_main]
//! No bytes may panic what reads the names and histories of a WAL archive, and what is chosen of one fits together. The first page of
//! a segment and the way it is compressed are taken from the same bytes.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _any = repository::wal_head_is_sound(data);
    if let Ok(text) = std::str::from_utf8(data) {
        assert!(repository::archive_is_consistent(text));
    }
});
