//! Decryption: AES-256-CBC as `openssl enc -md sha1` writes it (`common/crypto/cipherBlock.c` of pgBackRest).

use std::io::{self, Read};

use aes::Aes256;
use cbc::Decryptor;
use cbc::cipher::{BlockModeDecrypt, KeyIvInit};
use sha1::{Digest, Sha1};

use super::Framing;
use super::passphrase::Passphrase;

/// First bytes of an encrypted file in standard framing.
pub(crate) const MAGIC: &[u8; 8] = b"Salted__";
pub(super) const SALT_BYTES: usize = 8;
pub(super) const BLOCK_BYTES: usize = 16;
/// Bytes decrypted at a time.
const CHUNK_BYTES: usize = 1 << 16;

/// Decrypts what it reads.
pub(crate) struct DecryptReader<R> {
    inner: R,
    passphrase: Passphrase,
    framing: Framing,
    decryptor: Option<Decryptor<Aes256>>,
    /// Ciphertext not decrypted yet. The last block waits for the end, where it has the padding.
    input: Vec<u8>,
    output: Vec<u8>,
    output_at: usize,
    ended: bool,
}

impl<R: Read> DecryptReader<R> {
    pub(crate) fn new(inner: R, passphrase: &Passphrase, framing: Framing) -> Self {
        Self {
            inner,
            passphrase: passphrase.clone(),
            framing,
            decryptor: None,
            input: Vec::new(),
            output: Vec::new(),
            output_at: 0,
            ended: false,
        }
    }

    fn begin(&mut self) -> io::Result<Decryptor<Aes256>> {
        if self.framing == Framing::Standard {
            let mut magic = [0; MAGIC.len()];
            self.inner.read_exact(&mut magic)?;
            if &magic != MAGIC {
                return Err(not_encrypted());
            }
        }
        let mut salt = [0; SALT_BYTES];
        self.inner.read_exact(&mut salt)?;
        let (key, iv) = derive(self.passphrase.expose(), &salt);
        Ok(Decryptor::new(&key.into(), &iv.into()))
    }

    fn fill(&mut self) -> io::Result<()> {
        let mut decryptor = match self.decryptor.take() {
            Some(decryptor) => decryptor,
            None => self.begin()?,
        };
        let before = self.input.len();
        let mut chunk = (&mut self.inner).take(CHUNK_BYTES as u64);
        chunk.read_to_end(&mut self.input)?;
        self.ended = self.input.len() - before < CHUNK_BYTES;
        let length = if self.ended {
            self.input.len()
        } else {
            self.input.len().saturating_sub(1) / BLOCK_BYTES * BLOCK_BYTES
        };
        let rest = self.input.split_off(length);
        self.output = std::mem::replace(&mut self.input, rest);
        self.output_at = 0;
        let (blocks, odd) = aes::Block::slice_as_chunks_mut(&mut self.output);
        if !odd.is_empty() || (self.ended && blocks.is_empty()) {
            return Err(odd_length());
        }
        decryptor.decrypt_blocks(blocks);
        if self.ended {
            let length = unpadded(&self.output).ok_or_else(other_passphrase)?;
            self.output.truncate(length);
        }
        self.decryptor = Some(decryptor);
        Ok(())
    }
}

impl<R: Read> Read for DecryptReader<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.output_at == self.output.len() {
            if self.ended {
                return Ok(0);
            }
            self.fill()?;
        }
        let mut ready = self.output.get(self.output_at..).unwrap_or_default();
        let count = ready.read(buffer)?;
        self.output_at += count;
        Ok(count)
    }
}

fn invalid(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}

pub(super) fn not_encrypted() -> io::Error {
    invalid("it does not begin as an encrypted file does")
}

pub(super) fn odd_length() -> io::Error {
    invalid("its encrypted length is no multiple of 16 bytes")
}

pub(super) fn other_passphrase() -> io::Error {
    invalid("it cannot be decrypted: the passphrase is another, or it is damaged")
}

/// Length without the padding of PKCS#7, if that is sound.
pub(super) fn unpadded(bytes: &[u8]) -> Option<usize> {
    let count = *bytes.last()?;
    let sound = (1..=BLOCK_BYTES).contains(&usize::from(count));
    let length = bytes.len().checked_sub(usize::from(count))?;
    let padding = bytes.get(length..)?;
    (sound && padding.iter().all(|byte| *byte == count)).then_some(length)
}

/// Key and initialisation vector, as OpenSSL's `EVP_BytesToKey` derives them with SHA-1 and one iteration.
pub(super) fn derive(passphrase: &[u8], salt: &[u8; SALT_BYTES]) -> ([u8; 32], [u8; BLOCK_BYTES]) {
    let mut material = Vec::with_capacity(60);
    let mut last: Vec<u8> = Vec::new();
    while material.len() < 48 {
        let mut hasher = Sha1::new();
        hasher.update(&last);
        hasher.update(passphrase);
        hasher.update(salt);
        last = hasher.finalize().to_vec();
        material.extend_from_slice(&last);
    }
    let mut key = [0; 32];
    let mut iv = [0; BLOCK_BYTES];
    for (to, from) in key.iter_mut().chain(&mut iv).zip(&material) {
        *to = *from;
    }
    (key, iv)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::io::Write;
    use std::process::{Command, Stdio};

    /// What `openssl enc` makes of these bytes.
    pub(in crate::pgbackrest) fn encrypted(plain: &[u8]) -> Vec<u8> {
        let arguments = "enc -aes-256-cbc -md sha1 -pass pass:secret";
        let mut openssl = Command::new("openssl")
            .args(arguments.split(' '))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let mut input = openssl.stdin.take().unwrap();
        let plain = plain.to_vec();
        let writer = std::thread::spawn(move || input.write_all(&plain).unwrap());
        let output = openssl.wait_with_output().unwrap();
        writer.join().unwrap();
        assert!(output.status.success());
        output.stdout
    }

    fn decrypt(bytes: &[u8], passphrase: &str, framing: Framing) -> io::Result<Vec<u8>> {
        let mut plain = Vec::new();
        let passphrase = Passphrase::new(passphrase);
        DecryptReader::new(bytes, &passphrase, framing).read_to_end(&mut plain)?;
        Ok(plain)
    }

    #[test]
    fn what_openssl_encrypts_is_decrypted_in_both_framings() {
        for length in [0, 1, 15, 16, 17, 65_519, 65_520, 65_535, 65_536, 200_000] {
            let plain: Vec<u8> = (0..length).map(|i| (i % 251) as u8).collect();
            let secret = encrypted(&plain);
            let found = decrypt(&secret, "secret", Framing::Standard).unwrap();
            assert!(found == plain, "{length}");
            let found = decrypt(&secret[8..], "secret", Framing::Raw).unwrap();
            assert!(found == plain, "{length}");
        }
    }

    #[test]
    fn what_is_cut_or_has_another_passphrase_is_refused_or_differs() {
        let plain = vec![7; 1000];
        let secret = encrypted(&plain);
        assert_ne!(
            decrypt(&secret, "Secret", Framing::Standard).unwrap_or_default(),
            plain
        );
        assert!(decrypt(b"Salted_", "secret", Framing::Standard).is_err());
        assert!(decrypt(b"unsalted plain text", "secret", Framing::Standard).is_err());
        for cut in [8, 16, 17, secret.len() - 1] {
            assert!(decrypt(&secret[..cut], "secret", Framing::Standard).is_err());
        }
    }
}
