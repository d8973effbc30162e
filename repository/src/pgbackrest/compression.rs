//! Decompression of what lies in a repository.

use std::io::{BufReader, Read};

use lzma_rust2::XzReader;

use super::Framing;
use crate::Codec;

/// How files are compressed (`option-compress-type`), those of other tools too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gz,
    Lz4,
    Zst,
    Bz2,
    /// Not by pgBackRest: WAL of Barman, and in plain archives.
    Xz,
}

/// Most memory for the dictionary of one stream, in KiB: 64 MiB is that of the highest level.
const XZ_MEMORY_KIB_MAX: u32 = 80 << 10;

/// Stored bytes read at a time.
const STORED_BYTES: usize = 1 << 18;

/// Those of pgBackRest.
const ALL: [Compression; 5] = [
    Compression::None,
    Compression::Gz,
    Compression::Lz4,
    Compression::Zst,
    Compression::Bz2,
];

impl Compression {
    pub(crate) fn from_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|known| known.name() == name)
    }

    /// The compression of a file's extension, which may be none.
    pub(crate) fn from_extension(extension: &str) -> Option<Self> {
        ALL.into_iter().find(|known| known.extension() == extension)
    }

    /// Its name in pgBackRest's configuration.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Gz => "gz",
            Self::Lz4 => "lz4",
            Self::Zst => "zst",
            Self::Bz2 => "bz2",
            Self::Xz => "xz",
        }
    }

    /// What it adds to a file's name.
    pub(crate) fn extension(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gz => ".gz",
            Self::Lz4 => ".lz4",
            Self::Zst => ".zst",
            Self::Bz2 => ".bz2",
            Self::Xz => ".xz",
        }
    }

    /// The codec, if its decoder can begin in the middle.
    pub(crate) fn seekable_codec(self, framing: Framing) -> Option<Codec> {
        match (self, framing) {
            (Self::Gz, Framing::Standard) => Some(Codec::Gzip),
            (Self::Lz4, _) => Some(Codec::Lz4),
            (Self::Bz2, _) => Some(Codec::Bzip2),
            (Self::None | Self::Zst | Self::Xz, _) | (Self::Gz, Framing::Raw) => None,
        }
    }

    /// A reader of what `source` is compressed from. Raw framing differs for gz only (zlib's header instead of gzip's);
    /// LZ4 frames say themselves whether they have a checksum.
    pub(crate) fn decoder(
        self,
        framing: Framing,
        source: Box<dyn Read + Send>,
    ) -> std::io::Result<Box<dyn Read + Send>> {
        let large = |source| BufReader::with_capacity(STORED_BYTES, source);
        Ok(match (self, framing) {
            (Self::None, _) => source,
            (Self::Gz, Framing::Standard) => {
                Box::new(flate2::bufread::MultiGzDecoder::new(large(source)))
            }
            (Self::Gz, Framing::Raw) => Box::new(flate2::bufread::ZlibDecoder::new(large(source))),
            (Self::Lz4, _) => Box::new(lz4_flex::frame::FrameDecoder::new(large(source))),
            (Self::Zst, _) => Box::new(zstd::stream::read::Decoder::with_buffer(large(source))?),
            (Self::Bz2, _) => Box::new(bzip2::bufread::MultiBzDecoder::new(large(source))),
            (Self::Xz, _) => {
                let source = BufReader::new(source);
                Box::new(XzReader::new_mem_limit(source, true, XZ_MEMORY_KIB_MAX))
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::process::{Command, Stdio};

    use super::*;

    fn xz(arguments: &[&str], content: &[u8]) -> Vec<u8> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut file, content).unwrap();
        let output = Command::new("xz")
            .args(["--compress", "--stdout"])
            .args(arguments)
            .arg(file.path())
            .stderr(Stdio::inherit())
            .output()
            .unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn decode(stored: Vec<u8>) -> std::io::Result<Vec<u8>> {
        let source = Box::new(Cursor::new(stored));
        let mut decoder = Compression::Xz.decoder(Framing::Standard, source)?;
        let mut content = Vec::new();
        decoder.read_to_end(&mut content)?;
        Ok(content)
    }

    #[test]
    fn what_xz_compresses_is_decoded_and_what_is_damaged_or_takes_too_much_memory_is_refused() {
        let content: Vec<u8> = (0..300_000_u32)
            .flat_map(|n| (n / 7).to_le_bytes())
            .collect();
        for arguments in [
            &["-1"][..],
            &["-9"],
            &["--check=crc32"],
            &["--block-size=100000"],
        ] {
            let stored = xz(arguments, &content);
            assert!(decode(stored.clone()).unwrap() == content, "{arguments:?}");
            let twice = [stored.clone(), stored.clone()].concat();
            assert_eq!(decode(twice).unwrap().len(), 2 * content.len());
            for at in (0..stored.len()).step_by(stored.len() / 40) {
                let mut damaged = stored.clone();
                damaged[at] ^= 4;
                assert!(decode(damaged).is_err(), "{arguments:?} {at}");
                assert!(decode(stored[..at].to_vec()).is_err(), "{arguments:?} {at}");
            }
        }
        let greedy = xz(&["--lzma2=dict=512MiB"], &content);
        assert!(decode(greedy).is_err());
    }
}
