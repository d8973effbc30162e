//! Decompression of what lies in a repository.

use std::io::{BufReader, Read};

use super::Framing;

/// How files are compressed (`option-compress-type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gz,
    Lz4,
    Zst,
    Bz2,
}

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
        }
    }

    /// A reader of what `source` is compressed from. Raw framing differs for gz only (zlib's header instead of gzip's);
    /// LZ4 frames say themselves whether they have a checksum.
    pub(crate) fn decoder(
        self,
        framing: Framing,
        source: Box<dyn Read + Send>,
    ) -> std::io::Result<Box<dyn Read + Send>> {
        Ok(match (self, framing) {
            (Self::None, _) => source,
            (Self::Gz, Framing::Standard) => Box::new(flate2::read::MultiGzDecoder::new(source)),
            (Self::Gz, Framing::Raw) => Box::new(flate2::read::ZlibDecoder::new(source)),
            (Self::Lz4, _) => Box::new(lz4_flex::frame::FrameDecoder::new(BufReader::new(source))),
            (Self::Zst, _) => Box::new(zstd::stream::read::Decoder::new(source)?),
            (Self::Bz2, _) => Box::new(bzip2::read::MultiBzDecoder::new(source)),
        })
    }
}
