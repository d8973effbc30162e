//! Reads over the backup: bytes from the data file where they are here, from pieces of the backup where they are not.

use std::io;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::GRANULE_BYTES;
use super::content::{Fetched, Outcome, granule_in};
use super::node::{Node, NodeState};
use super::store::Store;

/// What a read brought.
#[derive(Debug)]
pub enum Content {
    /// Put together, or from the data file.
    Own(Vec<u8>),
    /// Bytes of one piece of the backup as they lie there.
    Piece(Arc<Fetched>, Range<usize>),
}

impl Deref for Content {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Content::Own(bytes) => bytes,
            Content::Piece(piece, range) => piece.bytes.get(range.clone()).unwrap_or_default(),
        }
    }
}

impl Store {
    /// Reads up to `length` bytes; `pieces` stand in for granules that are not here.
    pub fn read(
        &self,
        node: &Node,
        offset: u64,
        length: u32,
        pieces: &[Arc<Fetched>],
    ) -> io::Result<Outcome<Content>> {
        let mut state = node.lock();
        if state.base.is_none() {
            let file = self.data_file(node, &mut state)?;
            drop(state);
            let mut bytes = vec![0; length as usize];
            let count = file.read_at(&mut bytes, offset)?;
            bytes.truncate(count);
            return Ok(Outcome::Done(Content::Own(bytes)));
        }
        let end = (offset + u64::from(length)).min(state.size);
        if offset >= end {
            return Ok(Outcome::Done(Content::Own(Vec::new())));
        }
        if let Some(need) = self.lacks(&state, offset, end, pieces) {
            return Ok(Outcome::Needs(need));
        }
        if let Some(content) = in_one_piece(&state, offset, end, pieces) {
            return Ok(Outcome::Done(content));
        }
        let mut bytes = vec![0; usize::try_from(end - offset).map_err(io::Error::other)?];
        let mut at = offset;
        while at < end {
            let granule = at / GRANULE_BYTES;
            let mut run_end = granule + 1;
            let is_here = state.is_here(granule);
            while is_here && run_end * GRANULE_BYTES < end && state.is_here(run_end) {
                run_end += 1;
            }
            let until = (run_end * GRANULE_BYTES).min(end);
            let place = usize::try_from(at - offset).map_err(io::Error::other)?;
            let length = usize::try_from(until - at).map_err(io::Error::other)?;
            let target = bytes.get_mut(place..place + length).unwrap_or_default();
            if is_here {
                let file = self.data_file(node, &mut state)?;
                file.read_at(target, at)?;
            } else {
                let content = base_part(&state, granule, pieces).unwrap_or_default();
                let from = usize::try_from(at % GRANULE_BYTES).map_err(io::Error::other)?;
                // Behind the backup's part there are zeros.
                let content = content.get(from..).unwrap_or_default();
                for (place, byte) in target.iter_mut().zip(content) {
                    *place = *byte;
                }
            }
            at = until;
        }
        Ok(Outcome::Done(Content::Own(bytes)))
    }

    fn lacks(
        &self,
        state: &NodeState,
        offset: u64,
        end: u64,
        pieces: &[Arc<Fetched>],
    ) -> Option<super::content::Need> {
        let (first, last) = (offset / GRANULE_BYTES, (end - 1) / GRANULE_BYTES);
        let is_lacking =
            |granule| !state.is_here(granule) && base_part(state, granule, pieces).is_none();
        match (first..=last).any(is_lacking) {
            true => self.need(state, first, last),
            false => None,
        }
    }
}

// What the backup has of a granule.
fn base_part<'a>(state: &NodeState, granule: u64, pieces: &'a [Arc<Fetched>]) -> Option<&'a [u8]> {
    let base = state.base?.length;
    let length = GRANULE_BYTES.min(base.checked_sub(granule * GRANULE_BYTES)?);
    granule_in(pieces, granule, length)
}

// The whole read as it lies in one piece, where nothing of it is in the data file.
fn in_one_piece(
    state: &NodeState,
    offset: u64,
    end: u64,
    pieces: &[Arc<Fetched>],
) -> Option<Content> {
    if end > state.base?.length {
        return None;
    }
    let mut granules = offset / GRANULE_BYTES..end.div_ceil(GRANULE_BYTES);
    if granules.any(|granule| state.is_here(granule)) {
        return None;
    }
    pieces.iter().find_map(|piece| {
        let start = usize::try_from(offset.checked_sub(piece.offset)?).ok()?;
        let range = start..start + usize::try_from(end - offset).ok()?;
        piece.bytes.get(range.clone())?;
        Some(Content::Piece(piece.clone(), range))
    })
}
