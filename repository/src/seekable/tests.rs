use std::io::{Read, Write};

use proptest::prelude::*;

use super::*;
use crate::decoded::DecodedLimits;
use crate::pg_basebackup::ReadAt;
use crate::storage::StorageFile;

const CODECS: [Codec; 4] = [Codec::Gzip, Codec::Lz4, Codec::Bzip2, Codec::Zstd];
/// Those that can begin elsewhere than at the beginning.
const WITH_PLACES: [Codec; 3] = [Codec::Gzip, Codec::Lz4, Codec::Bzip2];

/// Bytes that compress to about a third, and look back far and near.
fn content(size: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes: Vec<u8> = Vec::with_capacity(size + 300);
    while bytes.len() < size {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let length = (state >> 8) as usize % 300;
        match state % 3 {
            0 => bytes.extend(state.to_le_bytes()),
            1 => bytes.resize(bytes.len() + length, state.to_le_bytes()[2]),
            _ => {
                let back = ((state >> 24) as usize % 60_000).min(bytes.len());
                let start = bytes.len() - back;
                let end = (start + length).min(bytes.len());
                bytes.extend_from_within(start..end);
            }
        }
    }
    bytes.truncate(size);
    bytes
}

fn compress(codec: Codec, content: &[u8]) -> Vec<u8> {
    match codec {
        Codec::Gzip => {
            let level = flate2::Compression::new(4);
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), level);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Lz4 => lz4(content, lz4_flex::frame::BlockMode::Linked),
        Codec::Bzip2 => {
            let level = ::bzip2::Compression::new(1);
            let mut encoder = ::bzip2::write::BzEncoder::new(Vec::new(), level);
            encoder.write_all(content).unwrap();
            encoder.finish().unwrap()
        }
        Codec::Zstd => zstd::stream::encode_all(content, 1).unwrap(),
    }
}

fn lz4(content: &[u8], mode: lz4_flex::frame::BlockMode) -> Vec<u8> {
    let info = lz4_flex::frame::FrameInfo::new()
        .block_mode(mode)
        .block_size(lz4_flex::frame::BlockSize::Max256KB)
        .block_checksums(true)
        .content_checksum(true);
    let mut encoder = lz4_flex::frame::FrameEncoder::with_frame_info(info, Vec::new());
    encoder.write_all(content).unwrap();
    encoder.finish().unwrap()
}

fn store(disk_bytes_max: u64, memory_bytes_max: usize) -> Arc<DecodedStore> {
    Arc::new(DecodedStore::new(DecodedLimits {
        disk_bytes_max,
        memory_bytes_max,
        ..DecodedLimits::default()
    }))
}

struct Opened {
    seekable: Seekable,
    file: Arc<dyn Stored>,
    store: Arc<DecodedStore>,
}

fn file_of(bytes: &[u8]) -> Arc<dyn Stored> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Arc::new(StorageFile::Local(file))
}

fn pass(
    codec: Codec,
    stored: &[u8],
    store: &Arc<DecodedStore>,
) -> Result<FirstPass, RepositoryError> {
    let stream = Stream {
        name: "base.tar.x".into(),
        codec,
        store: Arc::clone(store),
        owner: store.new_owner(),
        number: 0,
    };
    FirstPass::new(stream, Arc::new(stored.to_vec()), stored.len() as u64)
}

/// Opens a stream; the error is also one that is told as damage.
fn open(codec: Codec, stored: &[u8], store: &Arc<DecodedStore>) -> Result<Opened, RepositoryError> {
    let (seekable, damage) = pass(codec, stored, store)?.finish()?;
    match damage {
        Some(reason) => Err(RepositoryError::corrupt("base.tar.x", reason)),
        None => Ok(Opened {
            seekable,
            file: file_of(stored),
            store: Arc::clone(store),
        }),
    }
}

impl Opened {
    fn read(&self, offset: u64, length: usize) -> Result<Vec<u8>, RepositoryError> {
        let mut buffer = vec![0; length];
        let count = self
            .seekable
            .read_at(&self.file, "base/1/1", offset, &mut buffer)?;
        buffer.truncate(count);
        Ok(buffer)
    }
}

#[test]
fn any_bytes_of_a_stream_are_read_whatever_its_codec() {
    let content = content(9_000_000, 7);
    // Several members or frames, with an empty one and, in LZ4, one of independent blocks and a frame to be skipped.
    let (first, rest) = content.split_at(4_300_000);
    for codec in CODECS {
        let mut stored = compress(codec, first);
        stored.extend(compress(codec, &[]));
        if codec == Codec::Lz4 {
            stored.extend([0x5a, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3]);
            stored.extend(lz4(rest, lz4_flex::frame::BlockMode::Independent));
        } else {
            stored.extend(compress(codec, rest));
        }
        let opened = open(codec, &stored, &store(1 << 30, 1 << 20)).unwrap();
        assert_eq!(opened.seekable.size_bytes, content.len() as u64);
        let mut at = 3_u64;
        for turn in 0..200 {
            at = at.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(11);
            let (offset, length) = ((at >> 20) % 9_100_000, turn * 37);
            let start = usize::try_from(offset).unwrap().min(content.len());
            let end = (start + length).min(content.len());
            assert_eq!(
                opened.read(offset, length).unwrap(),
                &content[start..end],
                "{codec} {offset}"
            );
        }
        assert_eq!(
            opened.read(0, content.len() + 1).unwrap(),
            content,
            "{codec}"
        );
    }
}

#[test]
fn decoding_begins_at_every_block_as_if_it_had_begun_before() {
    let content = content(3_000_000, 8);
    for (codec, place_count) in [
        (Codec::Gzip, 8),
        (Codec::Lz4, 12),
        (Codec::Bzip2, 4),
        (Codec::Zstd, 0),
    ] {
        let agreed = places_that_agree(codec, compress(codec, &content), content.len());
        assert!(agreed.unwrap() >= place_count, "{codec}: {agreed:?}");
    }
    let independent = lz4(&content, lz4_flex::frame::BlockMode::Independent);
    assert_eq!(
        places_that_agree(Codec::Lz4, independent, content.len()),
        Some(12)
    );
}

#[test]
fn a_far_page_costs_few_decoded_bytes() {
    let content = content(18_000_000, 1);
    for codec in CODECS {
        let opened = open(codec, &compress(codec, &content), &store(1 << 30, 1 << 26)).unwrap();
        assert_eq!(opened.store.decoded_bytes(), 0, "the first pass reads");
        opened.read(16_000_000, 8192).unwrap();
        let decoded = opened.store.decoded_bytes();
        assert!((8192..3 << 20).contains(&decoded), "{codec}: {decoded}");
        opened.read(16_000_000, 8192).unwrap();
        assert_eq!(opened.store.decoded_bytes(), decoded, "{codec}: it is kept");
    }
}

#[test]
fn what_is_kept_of_a_stream_takes_few_bytes_on_disk() {
    let content = content(20_000_000, 3);
    for codec in CODECS {
        let stored = compress(codec, &content);
        let opened = open(codec, &stored, &store(1 << 30, 1 << 20)).unwrap();
        let kept = opened.seekable.spill.kept_bytes();
        let most = match codec {
            Codec::Gzip => content.len() / 32,
            Codec::Lz4 => content.len() / 16,
            Codec::Bzip2 => 0,
            Codec::Zstd => content.len() / 2,
        };
        assert!(kept <= most as u64, "{codec}: {kept}");
    }
}

#[test]
fn a_stream_of_which_too_much_must_be_kept_is_refused_with_the_setting() {
    let stored = compress(Codec::Zstd, &content(20_000_000, 5));
    let error = open(Codec::Zstd, &stored, &store(1 << 20, 1 << 20))
        .map(drop)
        .unwrap_err();
    assert_eq!(error.file(), "base.tar.x");
    assert_eq!(error.kind(), crate::RepositoryErrorKind::Unsupported);
    assert!(error.remedy().contains("decoded_bytes_max"), "{error}");
    // The room that it took is free again.
    let store = store(20 << 20, 1 << 20);
    for _ in 0..10 {
        open(Codec::Zstd, &stored, &store).unwrap();
    }
}

#[test]
fn content_without_end_is_bounded() {
    // 100 MB of zeros are 100 KB of gzip, and still no stretch is longer than is wanted.
    let zeros = vec![0; 100 << 20];
    for codec in CODECS {
        let opened = open(codec, &compress(codec, &zeros), &store(1 << 30, 1 << 20)).unwrap();
        let starts = opened
            .seekable
            .stretches
            .iter()
            .map(|stretch| stretch.start);
        let starts: Vec<_> = starts.chain([opened.seekable.size_bytes]).collect();
        // A block of bzip2 may be 45 MB of zeros.
        let most = if codec == Codec::Bzip2 { 46 } else { 21 };
        assert!(
            starts
                .windows(2)
                .all(|pair| pair[1] - pair[0] <= most << 20),
            "{codec}"
        );
        assert_eq!(opened.read((100 << 20) - 5, 10).unwrap(), [0; 5]);
    }
}

#[test]
fn a_stream_that_changes_under_an_open_backup_is_not_read() {
    let content = content(5_000_000, 9);
    for codec in WITH_PLACES {
        let stored = compress(codec, &content);
        let mut opened = open(codec, &stored, &store(1 << 30, 1 << 20)).unwrap();
        opened.file = file_of(&compress(codec, &content[1..]));
        let error = opened.read(4_000_000, 100).unwrap_err();
        assert_eq!(error.file(), "base/1/1", "{error}");
        assert!(error.to_string().contains("base.tar.x"), "{error}");
        assert!(error.is_permanent());
    }
}

#[test]
fn what_a_first_pass_has_seen_so_far_is_read_at_random() {
    let content = content(7_000_000, 11);
    for codec in WITH_PLACES {
        let store = store(1 << 30, 1 << 20);
        let stored = compress(codec, &content);
        let mut pass = pass(codec, &stored, &store).unwrap();
        assert!(pass.reaches(4_000_000).unwrap());
        let seekable = pass.so_far().unwrap();
        let reached = usize::try_from(seekable.size_bytes()).unwrap();
        assert!((4_000_000..6_000_000).contains(&reached), "{codec}");
        let file = file_of(&stored);
        for (offset, length) in [(0, 100), (3_100_000, 9000), (reached - 50, 100)] {
            let mut buffer = vec![0; length];
            let count = seekable
                .read_at(&file, "base/1/1", offset as u64, &mut buffer)
                .unwrap();
            let end = reached.min(offset + length);
            assert_eq!(&buffer[..count], &content[offset..end], "{codec} {offset}");
        }
        assert!(seekable.decoded_again_bytes() > 0, "{codec}");
    }
}

#[test]
fn a_first_pass_that_may_keep_nothing_goes_on_without() {
    let content = content(6_000_000, 12);
    let stored = compress(Codec::Gzip, &content);
    let store = store(2_000, 1 << 20);
    let refused = open(Codec::Gzip, &stored, &store).map(drop).unwrap_err();
    assert!(refused.remedy().contains("decoded_bytes_max"), "{refused}");
    let mut pass = pass(Codec::Gzip, &stored, &store).unwrap().optional();
    let mut found = vec![0; content.len() + 1];
    assert_eq!(pass.read_at(0, &mut found).unwrap(), content.len());
    assert_eq!(found[..content.len()], content);
    assert!(pass.so_far().unwrap().size_bytes() < 4_000_000);
}

#[test]
fn a_first_pass_goes_forwards_and_tells_where_it_ends() {
    let content = content(3_000_000, 2);
    for codec in CODECS {
        let store = store(1 << 30, 1 << 20);
        let mut pass = pass(codec, &compress(codec, &content), &store).unwrap();
        let mut buffer = [0; 700];
        assert_eq!(pass.read_at(0, &mut buffer).unwrap(), 700);
        assert!(pass.reaches(2_000_000).unwrap());
        assert_eq!(pass.read_at(2_000_000, &mut buffer).unwrap(), 700);
        assert_eq!(buffer, content[2_000_000..2_000_700]);
        assert!(pass.read_at(0, &mut buffer).is_err());
        assert_eq!(pass.read_at(2_999_900, &mut buffer).unwrap(), 100);
        assert!(pass.reaches(3_000_000).unwrap() && !pass.reaches(3_000_001).unwrap());
    }
}

#[test]
fn a_stream_that_is_cut_off_anywhere_is_called_truncated() {
    let content = content(300_000, 4);
    for codec in CODECS {
        let stored = compress(codec, &content);
        let cuts = (0..60).chain((60..stored.len()).step_by(991));
        for length in cuts.chain(stored.len() - 12..stored.len()) {
            let error = open(codec, &stored[..length], &store(1 << 30, 1 << 20)).map(drop);
            let error = error.expect_err(&format!("{codec} of {length} bytes"));
            assert!(
                error.to_string().contains("truncated"),
                "{codec} {length}: {error}"
            );
            assert!(error.is_permanent());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_flipped_bit_is_an_error_or_changes_nothing(
        seed in any::<u64>(),
        codec in prop::sample::select(&WITH_PLACES[..]),
        at in any::<prop::sample::Index>(),
        bit in 0_u32..8,
    ) {
        let content = content(200_000, seed);
        let mut stored = compress(codec, &content);
        let at = at.index(stored.len());
        stored[at] ^= 1_u8 << bit;
        if let Ok(opened) = open(codec, &stored, &store(1 << 30, 1 << 22)) {
            prop_assert_eq!(opened.read(0, content.len() + 1).unwrap(), content);
        }
        prop_assert!(places_that_agree(codec, stored, 1 << 20).is_some());
    }

    #[test]
    fn what_other_decoders_make_of_garbage_so_do_we(
        codec in prop::sample::select(&WITH_PLACES[..]),
        garbage in proptest::collection::vec(any::<u8>(), 0..400),
        start in 0_usize..40,
    ) {
        let mut stored = compress(codec, b"a beginning that is sound");
        stored.truncate(start);
        stored.extend(garbage);
        let mut theirs = Vec::new();
        let is_sound = match codec {
            Codec::Gzip => flate2::read::MultiGzDecoder::new(&stored[..]).read_to_end(&mut theirs),
            Codec::Bzip2 => ::bzip2::read::MultiBzDecoder::new(&stored[..]).read_to_end(&mut theirs),
            _ => lz4_flex::frame::FrameDecoder::new(&stored[..]).read_to_end(&mut theirs),
        };
        if let Ok(opened) = open(codec, &stored, &store(1 << 30, 1 << 22)) {
            prop_assert!(is_sound.is_ok());
            prop_assert_eq!(opened.read(0, theirs.len() + 1).unwrap(), theirs);
        }
    }
}
