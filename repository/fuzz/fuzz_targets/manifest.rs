#![no_main]
//! No bytes may panic the manifest's reader, or make it hand on more than it was given.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let mut count = 0;
    let _any = repository::pg_basebackup::read_manifest(std::io::Cursor::new(data), &mut |_| {
        count += 1;
        Ok(())
    });
    assert!(count <= data.len());
});
