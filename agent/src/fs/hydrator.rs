//! Copies files from the backup behind everybody's back: those in use first, then, if wanted, all others.
//!
//! One thread, with a bounded rate, that steps back whenever somebody waits for the backup, stops when space gets short and
//! goes on when there is room again. It also keeps the space within its limits.

use std::collections::HashMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use common::agent::hand::Hydrate;

use super::pool::stand_behind;
use super::room::Room;
use super::transfer::Transfer;
use crate::cache::Ino;
use crate::cache::ROOT;
use crate::cache::node::Node;
use crate::cache::store::Store;
use crate::cache::tree::TreeNodeKind;

/// How often it looks whether there is something to do.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// How long it steps back at most while somebody waits for the backup: it must get on under a steady load too.
const STEP_BACK_MAX: Duration = Duration::from_millis(250);
const STEP_BACK: Duration = Duration::from_millis(3);
/// How often a file that is whole but was written while it was made complete is tried again.
const TRY_COMPLETE_EVERY: Duration = Duration::from_secs(2);
/// How often a file that cannot be copied is tried again.
const TRY_FAILED_EVERY: Duration = Duration::from_secs(300);
/// Most files that are remembered as in use; beyond them a file waits for its next use.
const TOUCHED_MAX: usize = 16_384;

/// How it works.
#[derive(Debug, Clone, Copy)]
pub struct HydratorOptions {
    /// What is copied.
    pub hydrate: Hydrate,
    /// Most bytes in a second.
    pub bytes_per_s: u64,
}

/// The list of what is to be copied, and what was done.
#[derive(Debug)]
pub struct Hydrator {
    store: Arc<Store>,
    transfer: Arc<Transfer>,
    room: Arc<Room>,
    options: HydratorOptions,
    touched: Mutex<HashMap<Ino, Touched>>,
    clock: AtomicU64,
    /// Bytes copied in the background.
    pub copied_bytes: AtomicU64,
}

// Nothing of it is to be copied any more.
fn is_done(node: &Node) -> bool {
    let state = node.lock();
    state.base.is_none() || state.is_gone()
}

#[derive(Debug, Clone)]
struct Touched {
    node: Arc<Node>,
    uses: u64,
    // Everything before this granule is here.
    next: u64,
    // When it is looked at again, if nothing can be done for it now.
    not_before: Option<Instant>,
}

impl Hydrator {
    /// Starts the thread.
    pub fn start(
        store: Arc<Store>,
        transfer: Arc<Transfer>,
        room: Arc<Room>,
        options: HydratorOptions,
    ) -> io::Result<Arc<Self>> {
        let hydrator = Arc::new(Self {
            store,
            transfer,
            room,
            options,
            touched: Mutex::default(),
            clock: AtomicU64::new(1),
            copied_bytes: AtomicU64::new(0),
        });
        let worker = hydrator.clone();
        std::thread::Builder::new()
            .name("hydrate".to_owned())
            .spawn(move || {
                stand_behind();
                worker.run();
            })?;
        Ok(hydrator)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Ino, Touched>> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is copied.
    pub fn policy(&self) -> Hydrate {
        self.options.hydrate
    }

    /// Notes that a file that the backup has a part in is read or written.
    pub fn touch(&self, node: &Arc<Node>) {
        if self.store.tree.is_wal(node.ino) {
            return;
        }
        let now = self.clock.fetch_add(1, Ordering::Relaxed);
        {
            let mut state = node.lock();
            state.used_at = now;
            if state.base.is_none() || state.is_gone() {
                return;
            }
        }
        if self.options.hydrate == Hydrate::None {
            return;
        }
        let mut touched = self.lock();
        if let Some(known) = touched.get_mut(&node.ino) {
            known.uses += 1;
        } else if touched.len() < TOUCHED_MAX {
            let new = Touched {
                node: node.clone(),
                uses: 1,
                next: 0,
                not_before: None,
            };
            touched.insert(node.ino, new);
        }
    }

    fn run(&self) {
        // What a predecessor had begun.
        for node in self.store.partly_here() {
            self.touch(&node);
        }
        let mut next_in_tree = ROOT + 1;
        let mut told = None;
        loop {
            match self.step(&mut next_in_tree) {
                Ok(true) => told = None,
                Ok(false) => std::thread::sleep(LOOK_EVERY),
                Err(error) => {
                    // What goes on failing is said once.
                    let error = error.to_string();
                    if told.as_ref() != Some(&error) {
                        tracing::warn!(error, "copy from the backup");
                    }
                    told = Some(error);
                    std::thread::sleep(LOOK_EVERY * 5);
                }
            }
        }
    }

    // Does one thing; says whether there was one.
    fn step(&self, next_in_tree: &mut Ino) -> io::Result<bool> {
        let shortage = self.room.shortage();
        if shortage > 0 {
            // None is left: then writers are told when the volume is full.
            return Ok(self.room.make(&self.transfer, shortage)? > 0);
        }
        let may_copy = self.options.hydrate != Hydrate::None && self.transfer.is_attached();
        if !may_copy || !self.room.has_room_for_copies() {
            return Ok(false);
        }
        let next = match self.next_touched() {
            Some(next) => next,
            None if self.options.hydrate == Hydrate::All && self.is_idle() => {
                match self.next_of_tree(next_in_tree) {
                    Some(node) => {
                        self.touch(&node);
                        return Ok(true);
                    }
                    None => return Ok(false),
                }
            }
            None => return Ok(false),
        };
        self.step_back();
        let began_at = Instant::now();
        let copied = match self.transfer.copy_next(&next.node, next.next) {
            Ok(copied) => copied,
            Err(error) => {
                // Other files may be sound.
                self.put_off(&next, next.next, TRY_FAILED_EVERY);
                return Err(error);
            }
        };
        match copied {
            Some((end, bytes)) => {
                self.copied_bytes.fetch_add(bytes, Ordering::Relaxed);
                if let Some(touched) = self.lock().get_mut(&next.node.ino) {
                    touched.next = end;
                }
                let pace = Duration::from_secs(bytes)
                    / u32::try_from(self.options.bytes_per_s.max(1)).unwrap_or(u32::MAX);
                std::thread::sleep(pace.saturating_sub(began_at.elapsed()));
            }
            None if is_done(&next.node) => {
                self.lock().remove(&next.node.ino);
            }
            None => {
                self.store.note_whole(&next.node);
                self.put_off(&next, 0, TRY_COMPLETE_EVERY);
            }
        }
        Ok(true)
    }

    fn put_off(&self, touched: &Touched, next: u64, time: Duration) {
        if let Some(known) = self.lock().get_mut(&touched.node.ino) {
            known.next = next;
            known.not_before = Some(Instant::now() + time);
        }
    }

    // By use.
    fn next_touched(&self) -> Option<Touched> {
        let now = Instant::now();
        let touched = self.lock();
        let due = touched
            .values()
            .filter(|touched| touched.not_before.is_none_or(|at| at <= now));
        due.max_by_key(|touched| touched.uses).cloned()
    }

    fn is_idle(&self) -> bool {
        self.lock().len() < TOUCHED_MAX / 2
    }

    fn next_of_tree(&self, next: &mut Ino) -> Option<Arc<Node>> {
        loop {
            let node = self.store.tree.node(*next)?;
            *next += 1;
            if matches!(node.kind, TreeNodeKind::File { size_bytes, .. } if size_bytes > 0)
                && let Ok(node) = self.store.node(node.ino)
                && node.lock().links > 0
            {
                return Some(node);
            }
        }
    }

    fn step_back(&self) {
        let since = Instant::now();
        while self.transfer.is_waited_for() && since.elapsed() < STEP_BACK_MAX {
            std::thread::sleep(STEP_BACK);
        }
    }
}
