#![no_main]
//! No bytes may panic the reader of `tablespace_map`.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _any = repository::pg_basebackup::parse_tablespace_map(data);
});
