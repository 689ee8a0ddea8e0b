//! Memory that kernels share one after the other, and what the host has sent lately.

use std::collections::VecDeque;
use std::sync::Arc;

use bytemuck::NoUninit;

use super::device::{Address, Gpu, Memory};
use super::matrix::narrow;

/// Memory for what lasts no longer than one kernel of the trait. It grows to the widest use and stays there: work is done
/// in order, so that the next use begins when the last has ended.
#[derive(Default)]
pub(super) struct Scratch {
    /// A matrix converted for a product.
    pub(super) weight: Grown,
    /// A product's left operand as bf16.
    pub(super) left: Grown,
    /// A product's right operand as bf16, where it is no weight.
    pub(super) right: Grown,
    /// Logits.
    pub(super) logits: Grown,
    /// Losses, the gradient of an adapter's inner values, and the like: one value or a few a row.
    pub(super) rows: Grown,
    /// What was sent lately.
    pub(super) sent: Sent,
}

impl Scratch {
    /// `length` values at `from` as the left operand of a product in bf16.
    pub(super) fn narrow_left(&mut self, gpu: &Gpu, length: usize, from: Address) -> Address {
        let to = self.left.reserve(gpu, 2 * length);
        narrow(gpu, length, from, to);
        to
    }

    /// The same as the right operand.
    pub(super) fn narrow_right(&mut self, gpu: &Gpu, length: usize, from: Address) -> Address {
        let to = self.right.reserve(gpu, 2 * length);
        narrow(gpu, length, from, to);
        to
    }
}

/// Memory that only grows.
#[derive(Default)]
pub(super) struct Grown {
    memory: Option<Memory>,
}

impl Grown {
    /// At least `bytes` bytes, of undefined contents.
    pub(super) fn reserve(&mut self, gpu: &Gpu, bytes: usize) -> Address {
        if self.memory.as_ref().is_none_or(|memory| memory.bytes() < bytes) {
            // First back, then anew: the two need not stand side by side.
            self.memory = None;
            self.memory = Some(gpu.allocate(bytes));
        }
        self.memory.as_ref().map_or(0, |memory| memory.at(0..bytes))
    }

    /// The memory reserved last.
    pub(super) fn read(&self, count: usize) -> Vec<f32> {
        self.memory.as_ref().map_or_else(Vec::new, |memory| memory.read(count))
    }
}

/// Arrays that the host has sent lately. A step's tokens, positions and boundaries are the same for every block, and
/// are sent once.
#[derive(Default)]
pub(super) struct Sent {
    arrays: VecDeque<(Vec<u8>, Arc<Memory>)>,
}

/// More than a pass over a batch names.
const REMEMBERED: usize = 32;

impl Sent {
    /// These values in the device's memory.
    pub(super) fn array<T: NoUninit>(&mut self, gpu: &Gpu, values: &[T]) -> Arc<Memory> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        if let Some(place) = self.arrays.iter().position(|(known, _)| known == bytes)
            && let Some(found) = self.arrays.remove(place)
        {
            self.arrays.push_front(found);
        } else {
            self.arrays.truncate(REMEMBERED - 1);
            self.arrays.push_front((bytes.to_vec(), Arc::new(gpu.with_values(bytes))));
        }
        Arc::clone(&self.arrays[0].1)
    }
}
