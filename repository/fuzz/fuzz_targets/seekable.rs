#![no_main]
//! No bytes may panic the decoders of compressed archives, and what comes out is the same from wherever decoding begins.

use libfuzzer_sys::fuzz_target;
use repository::{Codec, places_that_agree};

fuzz_target!(|data: &[u8]| {
    let Some((codec, stored)) = data.split_first() else {
        return;
    };
    let codec = match codec % 3 {
        0 => Codec::Gzip,
        1 => Codec::Lz4,
        _ => Codec::Bzip2,
    };
    assert!(places_that_agree(codec, stored.to_vec(), 1 << 20).is_some());
});
