//! The program's memory: small pieces from mimalloc, large ones from the system.
//!
//! Small pieces are the tokenizers': a few for each word, in which the system's allocator had a third of their time.
//! Large ones are weights, activations, gradients and copies of files: few, and with long lives. An allocator that keeps
//! what was given back, in case it is asked for again, may hold half a model for nobody, and has to write zeros into
//! what it hands out again. The system's pages are zero and take no memory until they are written to, and are gone when
//! they are given back: so a process holds what is alive in it, and `plan` can tell how much that will be.

use std::alloc::{GlobalAlloc, Layout};

use mimalloc::MiMalloc;

/// From here on a piece is the system's own: a call to the system and its page faults are little beside the time in
/// which so many bytes are used.
const LARGE: usize = 1 << 20;

/// No system has smaller pages, and no piece that is the system's own is aligned to more.
const PAGE: usize = 4096;

/// Gives small pieces out of mimalloc's heaps, and large ones as mappings of their own.
pub(crate) struct Allocator;

/// Whose a piece is follows from its layout alone: it is asked for and given back with the same.
fn is_large(layout: Layout) -> bool {
    cfg!(unix) && layout.size() >= LARGE && layout.align() <= PAGE
}

// SAFETY: every piece is given back to, or changed by, whom it came from, because `is_large` depends on its layout alone,
// and both keep the promises of the trait: mimalloc's own, and mappings that lie on pages, overlap with nothing, hold as
// many bytes as were asked for and are zero.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return system::map(layout.size());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { MiMalloc.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_large(layout) {
            return system::map(layout.size());
        }
        // SAFETY: the caller's promise is the same.
        unsafe { MiMalloc.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, piece: *mut u8, layout: Layout) {
        if is_large(layout) {
            // SAFETY: the caller gives back a piece of this layout, which is a mapping of this size, and forgets it.
            return unsafe { system::unmap(piece, layout.size()) };
        }
        // SAFETY: the caller gives back a piece of this layout, which is mimalloc's.
        unsafe { MiMalloc.dealloc(piece, layout) }
    }

    unsafe fn realloc(&self, piece: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller promises that `size` is not zero and not too large for this alignment.
        let new = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        if !is_large(layout) && !is_large(new) {
            // SAFETY: the caller gives a piece of this layout, which is mimalloc's and stays so.
            return unsafe { MiMalloc.realloc(piece, layout, size) };
        }
        // SAFETY: the caller promises that `size` is not zero.
        let moved = unsafe { self.alloc(new) };
        if !moved.is_null() {
            // SAFETY: both pieces hold as many bytes as the smaller of them, and the new one is nobody else's; the old
            // one is of this layout, and the caller forgets it.
            unsafe {
                std::ptr::copy_nonoverlapping(piece, moved, layout.size().min(size));
                self.dealloc(piece, layout);
            }
        }
        moved
    }
}

#[cfg(unix)]
mod system {
    use std::ffi::c_void;
    use std::ptr::null_mut;

    /// Pages of zeros that hold so many bytes; null where the system has none.
    pub(super) fn map(size: usize) -> *mut u8 {
        let (access, kind) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANON);
        // SAFETY: a new mapping, wherever the system has room for it, touches nothing that is there.
        let pages = unsafe { libc::mmap(null_mut(), size, access, kind, -1, 0) };
        if pages == libc::MAP_FAILED {
            return null_mut();
        }
        // In pages of 2 MiB, where the system keeps them for those who ask: fewer of them to look up in a product.
        #[cfg(target_os = "linux")]
        // SAFETY: advice about the mapping that was just made; it changes nothing that can be read there.
        let _ = unsafe { libc::madvise(pages, size, libc::MADV_HUGEPAGE) };
        pages.cast()
    }

    /// Gives pages back.
    ///
    /// # Safety
    /// They are those that [`map`] gave for this size, and nobody uses them any more.
    pub(super) unsafe fn unmap(pages: *mut u8, size: usize) {
        // SAFETY: the caller's promise. What the system refuses stays mapped, which is no more than a leak.
        let _ = unsafe { libc::munmap(pages.cast::<c_void>(), size) };
    }
}

/// Elsewhere no piece is large.
#[cfg(not(unix))]
mod system {
    pub(super) fn map(_: usize) -> *mut u8 {
        std::ptr::null_mut()
    }

    pub(super) unsafe fn unmap(_: *mut u8, _: usize) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The program's own: tests run under it, too.
    fn fill(length: usize) -> Vec<u8> {
        (0..length).map(|place| place as u8).collect()
    }

    #[test]
    fn what_grows_and_shrinks_over_the_border_keeps_its_bytes() {
        let mut bytes = fill(LARGE / 2);
        for length in [LARGE - 1, LARGE, 5 * LARGE + 1, 9 * LARGE, LARGE, LARGE - 1, 3] {
            let kept = bytes.len().min(length);
            bytes.resize(length, 7);
            bytes.shrink_to_fit();
            assert_eq!(bytes[..kept], fill(kept));
            bytes = fill(length);
        }
    }

    #[test]
    fn zeros_are_zeros_whatever_was_there_before() {
        for length in [LARGE - 1, LARGE, 3 * LARGE + 5] {
            drop(vec![1u8; length]);
            assert!(vec![0u8; length].iter().all(|byte| *byte == 0));
        }
    }

    #[test]
    fn a_large_piece_takes_memory_from_when_it_is_written_to_until_it_is_given_back() {
        if tune::memory::resident_bytes() == 0 {
            eprintln!("skipped: this system does not say what a process holds");
            return;
        }
        const PIECE: usize = 256 << 20;
        // Other tests take some at the same time.
        let grown = |before: u64| tune::memory::resident_bytes() > before + PIECE as u64 / 2;
        let before = tune::memory::resident_bytes();
        let mut piece = vec![0u8; PIECE];
        assert!(!grown(before), "zeros take memory");
        piece.iter_mut().step_by(PAGE).for_each(|byte| *byte = 1);
        assert!(grown(before), "what is written to takes none");
        drop(std::hint::black_box(piece));
        assert!(!grown(before), "what is given back takes memory");
    }
}
