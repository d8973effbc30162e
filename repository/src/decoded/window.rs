//! The last bytes of a file that is decoded forwards. Its readers come a little out of order: what they have not had yet stays as long
//! as there is room, what they have had goes soon.

use std::collections::VecDeque;
use std::sync::Arc;

use super::pieces::{PIECE_BYTES, Piece};

/// Most pieces of one window.
pub(super) const PIECE_COUNT_MAX: usize = 16;
/// So many of the last stay although somebody has had them.
const PIECE_COUNT_KEPT: usize = 2;

/// Pieces one behind the other; each is full but the file's last.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Where the first begins.
    start: u64,
    /// Where the last ends.
    end: u64,
    held: VecDeque<Held>,
}

#[derive(Debug)]
struct Held {
    piece: Arc<Piece>,
    /// How much of it readers have had. Who reads something twice counts twice: it is a guess at what will be wanted.
    had_bytes: usize,
}

/// Where a byte is.
#[derive(Debug)]
pub(super) enum Found {
    /// In a piece, behind so many of its bytes.
    Here(Arc<Piece>, usize),
    /// It has been there, and is gone.
    Behind,
    /// So many bytes behind the last.
    Ahead(u64),
}

impl Window {
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    pub(super) fn find(&self, at: u64) -> Found {
        if let Some(ahead) = at.checked_sub(self.end) {
            return Found::Ahead(ahead);
        }
        let Some((index, within)) = self.place_of(at) else {
            return Found::Behind;
        };
        match self.held.get(index) {
            Some(held) => Found::Here(Arc::clone(&held.piece), within),
            None => Found::Behind,
        }
    }

    fn place_of(&self, at: u64) -> Option<(usize, usize)> {
        let behind = usize::try_from(at.checked_sub(self.start)?).ok()?;
        Some((behind / PIECE_BYTES, behind % PIECE_BYTES))
    }

    /// Notes that a reader has had bytes of one piece.
    pub(super) fn had(&mut self, at: u64, count: usize) {
        if let Some((index, _)) = self.place_of(at)
            && let Some(held) = self.held.get_mut(index)
        {
            held.had_bytes += count;
        }
    }

    /// Adds the next bytes. What is let go for them is given back, to be dropped without a lock.
    pub(super) fn push(&mut self, piece: Piece) -> Vec<Arc<Piece>> {
        self.end += piece.bytes().len() as u64;
        self.held.push_back(Held {
            piece: Arc::new(piece),
            had_bytes: 0,
        });
        let mut gone = Vec::new();
        while let Some(first) = self.held.front() {
            let size = first.piece.bytes().len();
            let is_had = first.had_bytes >= size && self.held.len() > PIECE_COUNT_KEPT;
            if !is_had && self.held.len() <= PIECE_COUNT_MAX {
                break;
            }
            self.start += size as u64;
            gone.extend(self.held.pop_front().map(|held| held.piece));
        }
        gone
    }
}
