//! Memory for the CPU backend: slices of `f32` that begin on a cache line.

use bytemuck::{Pod, Zeroable};

/// One cache line; gives the vector below its alignment.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C, align(64))]
struct Line([f32; LINE]);

/// Floats in a cache line, and lanes of the widest vector register.
const LINE: usize = 16;

/// A fixed number of `f32`, zeroed at first, aligned to 64 bytes.
#[derive(Clone, Default)]
pub struct Buffer {
    lines: Vec<Line>,
    length: usize,
}

impl Buffer {
    /// A buffer of `length` zeros.
    pub fn zeros(length: usize) -> Self {
        Self { lines: bytemuck::allocation::zeroed_vec(length.div_ceil(LINE)), length }
    }

    /// A copy of `values`.
    pub fn from_slice(values: &[f32]) -> Self {
        let mut buffer = Self::zeros(values.len());
        buffer.copy_from_slice(values);
        buffer
    }

    /// Makes the buffer at least `length` long; what it held is lost where it grows.
    pub fn reserve(&mut self, length: usize) {
        if self.lines.len() * LINE < length {
            *self = Self::zeros(length);
        }
        self.length = self.length.max(length);
    }
}

impl std::ops::Deref for Buffer {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        &bytemuck::cast_slice(&self.lines)[..self.length]
    }
}

impl std::ops::DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut bytemuck::cast_slice_mut(&mut self.lines)[..self.length]
    }
}

impl std::fmt::Debug for Buffer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Buffer[{}]", self.length)
    }
}
