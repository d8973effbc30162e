//! Encrypted bytes read at random: what a block of CBC is decrypted with is the block before it.
//!
//! Nothing is checked by it but the padding at the end: what is read is checked by whoever has a checksum for it.

use std::io;
use std::sync::Arc;

use aes::Aes256;
use cbc::Decryptor;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};

use super::Framing;
use super::cipher::{
    BLOCK_BYTES, MAGIC, SALT_BYTES, derive, not_encrypted, odd_length, other_passphrase, unpadded,
};
use super::passphrase::Passphrase;
use crate::seekable::Stored;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// What it takes to read one encrypted file or member of a bundle; where it is stored is for its reader to say.
pub(super) struct Encryption {
    key: [u8; 32],
    first: [u8; BLOCK_BYTES],
    /// Where the encrypted bytes begin.
    header_bytes: u64,
    /// How many bytes they stand for.
    plain_bytes: u64,
}

/// Stored bytes from an offset on, so many of them.
#[derive(Clone)]
pub(super) struct Extent {
    pub(super) file: Arc<dyn Stored>,
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Extent {
    /// Reads until the buffer is full; what ends before that is an error.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            match self.read_at(offset + done as u64, rest) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

impl Stored for Extent {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.length.saturating_sub(offset);
        let wanted = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let buffer = buffer.get_mut(..wanted).unwrap_or_default();
        match buffer.is_empty() {
            true => Ok(0),
            false => self.file.read_at(self.offset + offset, buffer),
        }
    }
}

impl Encryption {
    /// Reads the beginning and the end.
    pub(super) fn of(
        extent: &Extent,
        passphrase: &Passphrase,
        framing: Framing,
    ) -> io::Result<Self> {
        let magic_bytes = match framing {
            Framing::Standard => MAGIC.len(),
            Framing::Raw => 0,
        };
        let mut header = [0; MAGIC.len() + SALT_BYTES];
        let header = header.get_mut(..magic_bytes + SALT_BYTES);
        let header = header.unwrap_or_default();
        extent.read_exact_at(0, header)?;
        let (magic, salt) = header.split_at_checked(magic_bytes).unwrap_or_default();
        if magic_bytes > 0 && magic != MAGIC {
            return Err(not_encrypted());
        }
        let salt = salt.first_chunk().copied().unwrap_or_default();
        let (key, first) = derive(passphrase.expose(), &salt);
        let header_bytes = header.len() as u64;
        let stored_bytes = extent.length.saturating_sub(header_bytes);
        if stored_bytes == 0 || !stored_bytes.is_multiple_of(BLOCK) {
            return Err(odd_length());
        }
        let mut encryption = Self {
            key,
            first,
            header_bytes,
            plain_bytes: stored_bytes,
        };
        let last = encryption.decrypt(extent, stored_bytes - BLOCK, BLOCK_BYTES)?;
        let left = unpadded(&last).ok_or_else(other_passphrase)?;
        encryption.plain_bytes = stored_bytes - BLOCK + left as u64;
        Ok(encryption)
    }

    /// How many bytes there are.
    pub(super) fn plain_bytes(&self) -> u64 {
        self.plain_bytes
    }

    /// Reads bytes; fewer than the buffer takes only at the end.
    pub(super) fn read_at(
        &self,
        extent: &Extent,
        offset: u64,
        buffer: &mut [u8],
    ) -> io::Result<usize> {
        let left = self.plain_bytes.saturating_sub(offset);
        let count = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if count == 0 {
            return Ok(0);
        }
        let from = offset / BLOCK * BLOCK;
        let before = usize::try_from(offset - from).unwrap_or_default();
        let length = (before + count).next_multiple_of(BLOCK_BYTES);
        let plain = self.decrypt(extent, from, length)?;
        let plain = plain.get(before..before + count);
        if let (Some(to), Some(from)) = (buffer.get_mut(..count), plain) {
            to.copy_from_slice(from);
        }
        Ok(count)
    }

    /// Decrypts whole blocks.
    fn decrypt(&self, extent: &Extent, from: u64, length: usize) -> io::Result<Vec<u8>> {
        let mut before = self.first;
        let at = self.header_bytes + from;
        if from > 0 {
            extent.read_exact_at(at - BLOCK, &mut before)?;
        }
        let mut bytes = vec![0; length];
        extent.read_exact_at(at, &mut bytes)?;
        let mut decryptor = Decryptor::<Aes256>::new(&self.key.into(), &before.into());
        let (blocks, _) = aes::Block::slice_as_chunks_mut(&mut bytes);
        decryptor.decrypt_blocks(blocks);
        Ok(bytes)
    }
}

/// What encrypted bytes stand for, read at random.
pub(super) struct Decrypted {
    pub(super) encryption: Arc<Encryption>,
    pub(super) extent: Extent,
}

impl Stored for Decrypted {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.encryption.read_at(&self.extent, offset, buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::super::cipher::tests::encrypted;
    use super::*;

    fn extent(stored: Vec<u8>) -> Extent {
        Extent {
            length: stored.len() as u64,
            file: Arc::new(stored),
            offset: 0,
        }
    }

    #[test]
    fn what_openssl_encrypts_is_read_at_any_place_in_both_framings() {
        let passphrase = Passphrase::new("secret");
        for length in [0_usize, 1, 15, 16, 17, 1000, 70_000] {
            let plain: Vec<u8> = (0..=250_u8).cycle().take(length).collect();
            let standard = encrypted(&plain);
            let mut bundle = vec![7; 100];
            bundle.extend(&standard[8..]);
            bundle.extend([9; 50]);
            let member = Extent {
                file: Arc::new(bundle),
                offset: 100,
                length: standard.len() as u64 - 8,
            };
            for (extent, framing) in [
                (extent(standard), Framing::Standard),
                (member, Framing::Raw),
            ] {
                let encryption = Encryption::of(&extent, &passphrase, framing).unwrap();
                assert_eq!(encryption.plain_bytes(), length as u64);
                for (offset, wanted) in [(0, length + 1), (1, 20), (15, 2), (16, 16), (900, 70)] {
                    let mut buffer = vec![0; wanted];
                    let count = encryption.read_at(&extent, offset as u64, &mut buffer);
                    let rest = plain.get(offset..).unwrap_or_default();
                    let expected = &rest[..wanted.min(rest.len())];
                    assert_eq!(&buffer[..count.unwrap()], expected, "{length} {offset}");
                }
            }
        }
    }

    #[test]
    fn what_is_cut_or_has_another_passphrase_is_refused() {
        let stored = encrypted(&[7; 1000]);
        let open = |stored: &[u8], passphrase| {
            let passphrase = Passphrase::new(passphrase);
            Encryption::of(&extent(stored.to_vec()), &passphrase, Framing::Standard).map(drop)
        };
        open(&stored, "secret").unwrap();
        for bad in [
            &b""[..],
            b"Salted_",
            &[0; 100],
            &stored[..16],
            &stored[..17],
        ] {
            assert!(open(bad, "secret").is_err(), "{}", bad.len());
        }
        // By chance one of 256 would have a padding that is sound.
        let refused = ["a", "b", "c", "d"].map(|passphrase| open(&stored, passphrase).is_err());
        assert!(refused.contains(&true));
    }
}
