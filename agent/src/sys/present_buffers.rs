//! Has the buffers for the kernel's requests in memory before the first request is read into them.
//!
//! A worker that is killed while the kernel copies a request to it loses that request only if the kernel has to wait for a page of the
//! buffer: then it gives up, and the request's sender gets an I/O error (`fuse_dev_do_read`, seen on Linux 6.18). fuser allocates these
//! buffers itself, zeroed and far larger than a request is, so they are known by their size.

use std::alloc::{GlobalAlloc, Layout, System};

use crate::fs::WRITE_BYTES_MAX;

/// Smallest allocation that is taken for a buffer of requests; nothing else of ours is that large.
const BUFFER_BYTES_MIN: usize = 16 << 20;
const PAGE_BYTES: usize = 4096;
/// The largest request: a write, its header, and what aligns them.
const REQUEST_BYTES_MAX: usize = WRITE_BYTES_MAX as usize + 2 * PAGE_BYTES;

/// The system's allocator, which touches the part of such buffers that requests fill.
#[derive(Debug, Clone, Copy)]
pub struct PresentBuffers;

// SAFETY: everything is the system's allocator's, but for zeros that are written over zeros of a fresh allocation.
unsafe impl GlobalAlloc for PresentBuffers {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as promised by the caller.
        let start = unsafe { System.alloc_zeroed(layout) };
        if layout.size() >= BUFFER_BYTES_MIN && !start.is_null() {
            for offset in (0..REQUEST_BYTES_MAX).step_by(PAGE_BYTES) {
                // SAFETY: within the allocation, which is larger, and which nobody else has yet.
                unsafe { start.add(offset).write_volatile(0) };
            }
        }
        start
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        // SAFETY: as promised by the caller.
        unsafe { System.dealloc(start, layout) }
    }

    unsafe fn realloc(&self, start: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: as promised by the caller.
        unsafe { System.realloc(start, layout, size) }
    }
}
