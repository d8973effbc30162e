//! A file that is decoded forwards for those who read it forwards: from a few pieces of memory, with nothing written to disk.
//!
//! Who reads ahead of the pass takes it with him, a little way; who is behind its window, or far ahead, is not served here.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::pieces::{Piece, Pieces};
use super::window::{Found, Window};
use super::{ByteSource, DecodedRead};
use crate::RepositoryError;

/// How far ahead of what is decoded a reader may be: as far as several at a time read ahead.
pub(super) const REACH_BYTES: u64 = 2 << 20;

/// A file in decoding, and its last bytes.
pub(super) struct Pass {
    pub(super) used_at: AtomicU64,
    pieces: Arc<Pieces>,
    window: Mutex<Window>,
    progress: Mutex<Progress>,
    is_over: AtomicBool,
}

enum Progress {
    Running(Box<dyn ByteSource>),
    /// What could be decoded has been handed on; who wants more gets this.
    Failing(RepositoryError),
    Over,
}

impl std::fmt::Debug for Pass {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Pass({} bytes)", self.window().end())
    }
}

impl Pass {
    pub(super) fn new(source: Box<dyn ByteSource>, pieces: &Arc<Pieces>) -> Self {
        Self {
            used_at: AtomicU64::new(0),
            pieces: Arc::clone(pieces),
            window: Mutex::default(),
            progress: Mutex::new(Progress::Running(source)),
            is_over: AtomicBool::new(false),
        }
    }

    /// What is under the lock is never left half done, so one poisoned elsewhere is as good.
    fn window(&self) -> MutexGuard<'_, Window> {
        self.window.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether nothing will be decoded any more.
    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// Whether a read that begins there can be served.
    pub(super) fn reaches(&self, at: u64) -> bool {
        match self.window().find(at) {
            Found::Here(..) => true,
            Found::Behind => false,
            Found::Ahead(bytes) => bytes <= REACH_BYTES && !self.is_over(),
        }
    }

    /// Fills the buffer, which does not reach behind the file's end; false if what it wants is out of reach.
    pub(super) fn read(
        &self,
        read: DecodedRead<'_>,
        buffer: &mut [u8],
    ) -> Result<bool, RepositoryError> {
        let mut done = 0;
        while let Some(rest) = buffer.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let at = read.offset + done as u64;
            let Some((piece, within)) = self.piece_at(read, at)? else {
                return Ok(false);
            };
            let here = piece.bytes().get(within..).unwrap_or_default();
            let count = here.len().min(rest.len());
            if let (Some(to), Some(from)) = (rest.get_mut(..count), here.get(..count)) {
                to.copy_from_slice(from);
            }
            drop(piece);
            self.window().had(at, count);
            done += count;
        }
        Ok(true)
    }

    /// The piece with this byte, decoded now if need be; none if it is out of reach.
    fn piece_at(
        &self,
        read: DecodedRead<'_>,
        at: u64,
    ) -> Result<Option<(Arc<Piece>, usize)>, RepositoryError> {
        let find = || match self.window().find(at) {
            Found::Here(piece, within) => Found::Here(piece, within),
            Found::Ahead(bytes) if bytes > REACH_BYTES => Found::Behind,
            other => other,
        };
        match find() {
            Found::Here(piece, within) => return Ok(Some((piece, within))),
            Found::Behind => return Ok(None),
            Found::Ahead(_) => {}
        }
        // A decoder that panicked is in no state to go on.
        let Ok(mut progress) = self.progress.lock() else {
            return Ok(None);
        };
        loop {
            match find() {
                Found::Here(piece, within) => return Ok(Some((piece, within))),
                Found::Behind => return Ok(None),
                Found::Ahead(_) => {}
            }
            let Some(piece) = self.decode_piece(&mut progress, read)? else {
                return Ok(None);
            };
            let gone = self.window().push(piece);
            drop(gone);
        }
    }

    /// Decodes the next piece; none if nothing more is to come.
    fn decode_piece(
        &self,
        progress: &mut Progress,
        read: DecodedRead<'_>,
    ) -> Result<Option<Piece>, RepositoryError> {
        let before = std::mem::replace(progress, Progress::Over);
        let mut source = match before {
            Progress::Running(source) => source,
            Progress::Failing(error) => {
                self.is_over.store(true, Ordering::Release);
                return Err(error);
            }
            Progress::Over => return Ok(None),
        };
        let at = self.window().end();
        let mut left = read.size_bytes.saturating_sub(at);
        let mut piece = self.pieces.take();
        let failure = loop {
            let rest = piece.rest(left);
            if rest.is_empty() {
                break None;
            }
            match source.read(rest) {
                Ok(0) => break Some(RepositoryError::corrupt(read.path, "ends too early")),
                Ok(count) => {
                    piece.fill(count);
                    left = left.saturating_sub(count as u64);
                }
                Err(error) => break Some(error),
            }
        };
        match failure {
            Some(error) if piece.bytes().is_empty() => {
                self.is_over.store(true, Ordering::Release);
                return Err(error);
            }
            Some(error) => *progress = Progress::Failing(error),
            None if left == 0 => self.is_over.store(true, Ordering::Release),
            None => *progress = Progress::Running(source),
        }
        Ok(Some(piece))
    }
}
