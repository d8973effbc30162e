#![no_main]
//! No bytes may panic the readers of pgBackRest's `backup.info` and `archive.info`. The checksum is set right first, or the fuzzer
//! would never get past it.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _any = repository::pgbackrest::info_files_are_sound(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let sealed = repository::pgbackrest::sealed_again(text);
        let _any = repository::pgbackrest::info_files_are_sound(sealed.as_bytes());
    }
});
