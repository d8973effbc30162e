//! What a worker's runtime journal makes of the names and maps that the catalog gave.

use super::Ino;
use super::namespace::Namespace;
use super::node::{NodeState, Opens};
use super::record::RuntimeRecord;

/// Applies one record, in the journal's order.
pub(super) fn replay(names: &mut Namespace, record: &RuntimeRecord) {
    match record {
        RuntimeRecord::Present {
            ino,
            first,
            count,
            size,
            modified_at,
        } => {
            if let Some(node) = names.node(*ino) {
                let mut state = node.lock();
                // Whoever wrote has made the data file agree with the catalog before.
                state.settled = true;
                if state.base.is_some() {
                    match modified_at {
                        0 => state.mark_copied(*first, *count),
                        _ => state.mark_written(*first, *count),
                    }
                    state.size = *size;
                    if *modified_at != 0 {
                        state.attributes.modified_at = *modified_at;
                    }
                }
            }
        }
        RuntimeRecord::Cut { ino: 0, .. } => {}
        RuntimeRecord::Cut { ino, size } => {
            if let Some(node) = names.node(*ino) {
                let mut state = node.lock();
                state.settled = true;
                if state.base.is_some() {
                    // The catalog knows better what a power cut leaves: it may have been told more since.
                    let durable = (state.size_in_catalog, state.cut);
                    state.resize(*size);
                    (state.size_in_catalog, state.cut) = durable;
                }
            }
        }
        RuntimeRecord::Opens {
            ino,
            cached,
            passthrough,
            backing,
            ..
        } => {
            if let Some(node) = names.node(*ino) {
                let mut state = node.lock();
                state.opens = Opens {
                    cached: *cached,
                    passthrough: *passthrough,
                    backing: *backing,
                };
                state.was_passthrough |= *passthrough > 0;
            }
        }
        RuntimeRecord::Copied { ino, first, count } => with_base(names, *ino, |state| {
            state.mark_copied(*first, *count);
        }),
        RuntimeRecord::Rewritten { ino, first, count } => with_base(names, *ino, |state| {
            state.mark_rewritten(*first, *count);
        }),
        RuntimeRecord::Absent { ino, first, count } => with_base(names, *ino, |state| {
            state.mark_absent(*first, *count);
        }),
        RuntimeRecord::Answered { .. } => {}
        RuntimeRecord::Failed { ino } => {
            if let Some(node) = names.node(*ino) {
                node.lock().failed = true;
            }
        }
    }
}

fn with_base(names: &mut Namespace, ino: Ino, change: impl FnOnce(&mut NodeState)) {
    if let Some(node) = names.node(ino) {
        let mut state = node.lock();
        state.settled = true;
        if state.base.is_some() {
            change(&mut state);
        }
    }
}
