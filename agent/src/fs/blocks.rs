//! Pieces of the backup in memory: coming, or here until they are kept in the cache or pushed out by newer ones.
//!
//! The backup never changes, so that a piece is right for ever; what must stay true is that nobody who waits for a piece is left
//! waiting: each that is coming arrives, fails, or is given up by its readers when they have waited for too long.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::agent::buffers::Buffer;

use crate::base::{Base, BaseError, Range, Refused};
use crate::cache::content::Fetched;

/// Largest piece, in bytes.
pub(super) const PIECE_BYTES_MAX: u64 = 1024 * 1024;
/// Pieces that are here may take so much memory, in bytes.
const HERE_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// Most entries in the list of their order.
const ORDER_MAX: usize = 8192;
/// How long the hydrator waits for a piece.
const HYDRATOR_WAITS: Duration = Duration::from_secs(5);
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Bytes of one file of the backup: from the first to before the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Span {
    /// Number of the file.
    pub(super) file: u32,
    /// First byte.
    pub(super) start: u64,
    /// Behind the last byte.
    pub(super) end: u64,
}

/// The pieces and the way to more of them.
#[derive(Debug)]
pub(super) struct Blocks {
    base: Arc<Base>,
    state: Mutex<State>,
    changed: Condvar,
}

/// Who waits for a piece.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// Somebody who reads or writes a file.
    Reader,
    /// Whoever copies in the background, who has other things to do too.
    Hydrator,
}

type Key = (u32, u64);

#[derive(Debug, Default)]
struct State {
    // By file and first byte; they do not overlap.
    pieces: BTreeMap<Key, Piece>,
    here_bytes: u64,
    // Those that have come or failed, oldest first; some may have been taken out.
    order: VecDeque<(Key, u64)>,
    next_claim: u64,
    // Since when readers wait.
    waiting: BTreeMap<u64, Instant>,
}

#[derive(Debug)]
struct Piece {
    end: u64,
    claim: u64,
    // How many bytes of it readers have had.
    served_bytes: u64,
    standing: Standing,
}

#[derive(Debug)]
enum Standing {
    Coming,
    Here(Arc<Fetched>),
    Failed(Refused),
}

/// What is done with a piece that has come, on a thread that must not wait.
pub(super) type Arrived = Arc<dyn Fn(Arc<Fetched>) + Send + Sync>;

enum Look {
    All(Vec<Arc<Fetched>>),
    Failed(Key, Refused),
    // What nobody has asked for yet, and what is here.
    Lacks(Vec<(u64, u64)>, Vec<Arc<Fetched>>),
}

impl Blocks {
    pub(super) fn new(base: Arc<Base>) -> Self {
        Self {
            base,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The pieces that cover the span, if all of it is here.
    pub(super) fn find(&self, span: Span) -> Option<Vec<Arc<Fetched>>> {
        match self.lock().look(span) {
            Look::All(pieces) => Some(pieces),
            Look::Failed(..) | Look::Lacks(..) => None,
        }
    }

    /// Since when the oldest waiting reader waits.
    pub(super) fn waiting_for(&self) -> Option<Duration> {
        let state = self.lock();
        state.waiting.values().map(Instant::elapsed).max()
    }

    /// Asks for what of the span is neither here nor coming, and does not wait.
    pub(super) fn want(self: &Arc<Self>, span: Span, arrived: &Arrived) {
        let mut state = self.lock();
        let Look::Lacks(gaps, _) = state.look(span) else {
            return;
        };
        let claims = state.claim(span.file, &gaps);
        drop(state);
        self.ask(span.file, claims, arrived);
    }

    /// The pieces that cover the span, as far as nobody has kept them in the cache or pushed them out while we waited; what else
    /// of `around` lacks is asked for too.
    pub(super) fn get(
        self: &Arc<Self>,
        span: Span,
        around: Span,
        arrived: &Arrived,
        who: Who,
    ) -> Result<Vec<Arc<Fetched>>, BaseError> {
        let waiter = (who == Who::Reader).then(|| Waiter::enter(self));
        let since = Instant::now();
        let limit = match who {
            Who::Reader => self.base.wait_limit(),
            Who::Hydrator => self.base.wait_limit().min(HYDRATOR_WAITS),
        };
        let mut has_waited = false;
        let mut state = self.lock();
        loop {
            match state.look(span) {
                Look::All(pieces) => return Ok(pieces),
                Look::Failed(key, refused) => {
                    state.pieces.remove(&key);
                    drop(state);
                    if refused.permanent {
                        return Err(BaseError::Permanent(refused.message));
                    }
                    tracing::warn!(refused.message, "the mount server failed to read");
                    if since.elapsed() + RETRY_AFTER > limit {
                        return Err(BaseError::TimedOut(limit));
                    }
                    std::thread::sleep(RETRY_AFTER);
                    has_waited = false;
                    state = self.lock();
                }
                // They came and are gone: the cache has them, or the caller asks again.
                Look::Lacks(gaps, here) if !gaps.is_empty() && has_waited => return Ok(here),
                Look::Lacks(gaps, _) if !gaps.is_empty() => {
                    let claims = match state.look(around) {
                        Look::Lacks(wider, _) => state.claim(span.file, &wider),
                        Look::All(_) | Look::Failed(..) => state.claim(span.file, &gaps),
                    };
                    drop(state);
                    self.ask(span.file, claims, arrived);
                    state = self.lock();
                }
                Look::Lacks(..) => {
                    has_waited = true;
                    let Some(left) = limit.checked_sub(since.elapsed()) else {
                        state.give_up(span);
                        drop(state);
                        drop(waiter);
                        return Err(BaseError::TimedOut(limit));
                    };
                    let waited = self.changed.wait_timeout(state, left);
                    state = waited.unwrap_or_else(PoisonError::into_inner).0;
                }
            }
        }
    }

    /// A reader has had these bytes: the kernel keeps them, and a piece that was had whole need not be kept here.
    pub(super) fn note_served(&self, span: Span) {
        let mut state = self.lock();
        let first = state
            .pieces
            .range(..=(span.file, span.start))
            .next_back()
            .filter(|((file, _), _)| *file == span.file)
            .map_or(span.start, |((_, start), _)| *start);
        let mut whole = Vec::new();
        let touched = state
            .pieces
            .range_mut((span.file, first)..(span.file, span.end));
        for (key, piece) in touched {
            let had = piece
                .end
                .min(span.end)
                .saturating_sub(key.1.max(span.start));
            piece.served_bytes += had;
            if piece.served_bytes >= piece.end - key.1
                && matches!(piece.standing, Standing::Here(_))
            {
                whole.push(*key);
            }
        }
        for key in whole {
            state.take_out(key);
        }
    }

    /// A piece is in the cache now: it need not be kept here.
    pub(super) fn forget(&self, file: u32, piece: &Arc<Fetched>) {
        let mut state = self.lock();
        let key = (file, piece.offset);
        let same = state.pieces.get(&key).is_some_and(
            |found| matches!(&found.standing, Standing::Here(here) if Arc::ptr_eq(here, piece)),
        );
        if same {
            state.take_out(key);
        }
    }

    fn ask(self: &Arc<Self>, file: u32, claims: Vec<(u64, u64, u64)>, arrived: &Arrived) {
        for (start, end, claim) in claims {
            let (blocks, arrived) = (self.clone(), arrived.clone());
            let range = Range {
                file,
                offset: start,
                length: u32::try_from(end - start).unwrap_or(u32::MAX),
            };
            self.base.ask(range, move |answer| {
                if let Some(piece) = blocks.arrive((file, start), claim, answer) {
                    arrived(piece);
                }
            });
        }
    }

    fn arrive(
        &self,
        key: Key,
        claim: u64,
        answer: Result<Buffer, Refused>,
    ) -> Option<Arc<Fetched>> {
        let mut state = self.lock();
        // Given up meanwhile: whoever wants it has asked again.
        let piece = state
            .pieces
            .get_mut(&key)
            .filter(|piece| piece.claim == claim)?;
        let wanted = piece.end - key.1;
        let mut here = None;
        piece.standing = match answer {
            Ok(bytes) if bytes.len() as u64 >= wanted => {
                let offset = key.1;
                let fetched = Arc::new(Fetched { offset, bytes });
                here = Some(fetched.clone());
                Standing::Here(fetched)
            }
            Ok(_) => Standing::Failed(Refused {
                permanent: true,
                message: "the backup's file is shorter than its tree says".to_owned(),
            }),
            Err(refused) => Standing::Failed(refused),
        };
        if here.is_some() {
            state.here_bytes += wanted;
        }
        state.order.push_back((key, claim));
        state.push_out();
        drop(state);
        self.changed.notify_all();
        here
    }
}

impl State {
    fn look(&self, span: Span) -> Look {
        let before = self
            .pieces
            .range(..(span.file, span.start))
            .next_back()
            .filter(|((file, _), piece)| *file == span.file && piece.end > span.start);
        let within = self
            .pieces
            .range((span.file, span.start)..(span.file, span.end));
        let (mut at, mut gaps, mut here, mut is_coming) =
            (span.start, Vec::new(), Vec::new(), false);
        for (key, piece) in before.into_iter().chain(within) {
            if key.1 > at {
                gaps.push((at, key.1));
            }
            at = piece.end;
            match &piece.standing {
                Standing::Here(fetched) => here.push(fetched.clone()),
                Standing::Coming => is_coming = true,
                Standing::Failed(refused) => return Look::Failed(*key, refused.clone()),
            }
        }
        if at < span.end {
            gaps.push((at, span.end));
        }
        if gaps.is_empty() && !is_coming {
            return Look::All(here);
        }
        Look::Lacks(gaps, here)
    }

    // Notes gaps as coming; says what is to be asked for, with the number of each claim.
    fn claim(&mut self, file: u32, gaps: &[(u64, u64)]) -> Vec<(u64, u64, u64)> {
        let mut claims = Vec::new();
        for &(from, to) in gaps {
            let mut start = from;
            while start < to {
                let end = (start / PIECE_BYTES_MAX * PIECE_BYTES_MAX + PIECE_BYTES_MAX).min(to);
                self.next_claim += 1;
                let piece = Piece {
                    end,
                    claim: self.next_claim,
                    served_bytes: 0,
                    standing: Standing::Coming,
                };
                self.pieces.insert((file, start), piece);
                claims.push((start, end, self.next_claim));
                start = end;
            }
        }
        claims
    }

    // Nobody waits any longer for what is coming here: the next reader asks anew.
    fn give_up(&mut self, span: Span) {
        self.pieces.retain(|(file, start), piece| {
            let touches = *file == span.file && *start < span.end && piece.end > span.start;
            !(touches && matches!(piece.standing, Standing::Coming))
        });
    }

    fn take_out(&mut self, key: Key) {
        if let Some(piece) = self.pieces.remove(&key)
            && matches!(piece.standing, Standing::Here(_))
        {
            self.here_bytes -= (piece.end - key.1).min(self.here_bytes);
        }
    }

    fn push_out(&mut self) {
        while self.here_bytes > HERE_BYTES_MAX || self.order.len() > ORDER_MAX {
            let Some((key, claim)) = self.order.pop_front() else {
                return;
            };
            let is_same = self
                .pieces
                .get(&key)
                .is_some_and(|piece| piece.claim == claim);
            if is_same {
                self.take_out(key);
            }
        }
    }
}

// One reader's entry in the list of those who wait.
struct Waiter<'a> {
    blocks: &'a Blocks,
    number: u64,
}

impl<'a> Waiter<'a> {
    fn enter(blocks: &'a Blocks) -> Self {
        let mut state = blocks.lock();
        state.next_claim += 1;
        let number = state.next_claim;
        state.waiting.insert(number, Instant::now());
        Self { blocks, number }
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.blocks.lock().waiting.remove(&self.number);
    }
}

#[cfg(test)]
#[path = "blocks/tests.rs"]
mod tests;
