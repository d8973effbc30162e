#![no_main]
//! No bytes may panic the reader of pgBackRest's manifests, and what passes makes a tree. The checksum is set right first,
//! or the fuzzer would never get past it.

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _any = repository::pgbackrest::manifest_is_sound(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let sealed = repository::pgbackrest::sealed_again(text);
        let _any = repository::pgbackrest::manifest_is_sound(sealed.as_bytes());
    }
});
