#![no_main]
//! No bytes may panic the tar index, and what it finds lies within the archive. Checksums of headers are set right first,
//! or the fuzzer would never get past them.

use libfuzzer_sys::fuzz_target;
use repository::Limits;
use repository::pg_basebackup::{MemberKind, read_tar_index};

fuzz_target!(|data: &[u8]| {
    let mut archive = data.to_vec();
    for block in archive.chunks_exact_mut(512) {
        if block.iter().any(|byte| *byte != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
    let length = archive.len() as u64;
    let mut source = archive.as_slice();
    let _any = read_tar_index(&mut source, "base.tar", &Limits::default(), &mut |member| {
        if let MemberKind::File(size_bytes) = member.kind {
            assert!(member.offset + size_bytes <= length);
        }
        Ok(())
    });
});
