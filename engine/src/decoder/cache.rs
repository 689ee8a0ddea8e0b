//! Keys and values of what has been read, in pages that sequences can share.

use std::sync::Arc;

use super::Decoder;
use crate::kernels::{CachedRow, Kernels};

/// Positions in a page.
pub const PAGE_SIZE: usize = 16;

/// Rows that go on from a cache: one per new token.
#[derive(Clone, Debug, Default)]
pub struct CachedBatch {
    /// Token ids.
    pub tokens: Vec<u32>,
    /// Each token's sequence and position.
    pub rows: Vec<CachedRow>,
}

/// Pages of keys and values, for every block of a decoder.
pub struct KeyValueCache<K: Kernels> {
    layers: Vec<K::Buffer>,
    page_length: usize,
    users: Vec<u32>,
    /// The last one given back is taken first: a page that nobody ever needed takes no memory, as the system gives
    /// memory to what is touched.
    free: Vec<u32>,
}

/// One sequence's pages. Give them back with [`KeyValueCache::release`].
#[derive(Debug, Default)]
pub struct CachedSequence {
    pages: Vec<u32>,
    length: usize,
}

impl CachedSequence {
    /// Tokens read so far.
    pub fn length(&self) -> usize {
        self.length
    }
}

/// All pages are in use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the cache of keys and values is full")]
pub struct CacheFull;

impl<K: Kernels> KeyValueCache<K> {
    /// A cache with room for `pages` pages of [`PAGE_SIZE`] positions.
    pub fn new(decoder: &Decoder<K>, pages: usize) -> Self {
        let config = &decoder.config;
        let page_length = 2 * config.key_value_heads * PAGE_SIZE * config.head_size;
        let layers = (0..config.layers).map(|_| decoder.kernels.buffer(pages * page_length)).collect();
        Self { layers, page_length, users: vec![0; pages], free: (0..pages as u32).rev().collect() }
    }

    /// Bytes that a page takes over all blocks of a decoder.
    pub fn page_bytes(decoder: &Decoder<K>) -> usize {
        let config = &decoder.config;
        4 * config.layers * 2 * config.key_value_heads * PAGE_SIZE * config.head_size
    }

    /// Pages that nobody uses.
    pub fn free_pages(&self) -> usize {
        self.free.len()
    }

    /// Makes room for `count` more tokens of a sequence and adds their rows to `batch`. A last page that another
    /// sequence shares is copied first.
    ///
    /// # Errors
    /// [`CacheFull`]; the sequence is as it was.
    pub fn extend(
        &mut self,
        decoder: &Decoder<K>,
        sequence: &mut CachedSequence,
        tokens: &[u32],
        batch: &mut CachedBatch,
    ) -> Result<(), CacheFull> {
        let needed = (sequence.length + tokens.len()).div_ceil(PAGE_SIZE) - sequence.pages.len();
        let shared = !sequence.length.is_multiple_of(PAGE_SIZE)
            && sequence.pages.last().is_some_and(|page| self.users[*page as usize] > 1);
        if needed + usize::from(shared) > self.free.len() {
            return Err(CacheFull);
        }
        if shared && let Some(last) = sequence.pages.last_mut() {
            let Some(own) = self.free.pop() else { return Err(CacheFull) };
            for layer in &mut self.layers {
                decoder.kernels.copy_page(self.page_length, *last, own, layer);
            }
            self.users[*last as usize] -= 1;
            self.users[own as usize] = 1;
            *last = own;
        }
        for _ in 0..needed {
            let Some(page) = self.free.pop() else { return Err(CacheFull) };
            self.users[page as usize] = 1;
            sequence.pages.push(page);
        }
        let pages: Arc<[u32]> = sequence.pages.as_slice().into();
        batch.tokens.extend_from_slice(tokens);
        let positions = sequence.length..sequence.length + tokens.len();
        batch.rows.extend(positions.map(|position| CachedRow { pages: Arc::clone(&pages), position }));
        sequence.length += tokens.len();
        Ok(())
    }

    /// A second sequence with the same beginning, which shares its pages.
    pub fn fork(&mut self, sequence: &CachedSequence) -> CachedSequence {
        for page in &sequence.pages {
            self.users[*page as usize] += 1;
        }
        CachedSequence { pages: sequence.pages.clone(), length: sequence.length }
    }

    /// Gives a sequence's pages back.
    pub fn release(&mut self, sequence: CachedSequence) {
        for page in sequence.pages {
            let users = &mut self.users[page as usize];
            *users -= 1;
            if *users == 0 {
                self.free.push(page);
            }
        }
    }

    /// The page size and the buffers, for a pass.
    pub(crate) fn parts(&mut self) -> (usize, &mut [K::Buffer]) {
        (PAGE_SIZE, &mut self.layers)
    }
}
