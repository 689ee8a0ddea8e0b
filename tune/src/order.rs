//! Which row is met when.

use rand::RngExt as _;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::settings::Order;

/// The rows of every update, derived from the seed alone: nothing of it needs to be kept in a checkpoint.
#[derive(Clone, Copy, Debug)]
pub struct RowOrder {
    /// Rows there are.
    pub rows: usize,
    /// Rows an update.
    pub batch: usize,
    /// As in the file, or drawn.
    pub order: Order,
    /// What it is drawn from.
    pub seed: u64,
}

impl RowOrder {
    /// Updates of an epoch; the last takes what is left.
    pub fn updates_per_epoch(&self) -> u64 {
        self.rows.div_ceil(self.batch) as u64
    }

    /// The rows of update `update`, counted from 0.
    pub fn update(&self, update: u64) -> Vec<usize> {
        let (epoch, place) = (update / self.updates_per_epoch(), update % self.updates_per_epoch());
        let start = place as usize * self.batch;
        let rows = start..self.rows.min(start + self.batch);
        match self.order {
            Order::File => rows.collect(),
            Order::Shuffle => self.epoch(epoch)[rows].to_vec(),
        }
    }

    /// Tells the rows of the first `count` updates one after the other. Draws each epoch once.
    pub fn for_each_update(&self, count: u64, mut told: impl FnMut(&[usize])) {
        let mut left = count;
        let mut epoch = 0;
        while left > 0 && self.rows > 0 {
            let rows = match self.order {
                Order::File => (0..self.rows).collect(),
                Order::Shuffle => self.epoch(epoch),
            };
            for update in rows.chunks(self.batch).take(usize::try_from(left).unwrap_or(usize::MAX)) {
                told(update);
                left -= 1;
            }
            epoch += 1;
        }
    }

    /// All rows in the order of an epoch: Fisher and Yates' shuffle, from a stream of the seed's and the epoch's own.
    fn epoch(&self, epoch: u64) -> Vec<usize> {
        let mut random = ChaCha8Rng::seed_from_u64(self.seed);
        random.set_stream(epoch);
        let mut rows: Vec<usize> = (0..self.rows).collect();
        for last in (1..rows.len()).rev() {
            rows.swap(last, random.random_range(0..=last as u64) as usize);
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_epoch_meets_every_row_once(rows in 1usize..60, batch in 1usize..20, seed: u64, file: bool) {
            let order = if file { Order::File } else { Order::Shuffle };
            let order = RowOrder { rows, batch, order, seed };
            for epoch in 0..3 {
                let updates = epoch * order.updates_per_epoch()..(epoch + 1) * order.updates_per_epoch();
                let mut met: Vec<usize> = updates.flat_map(|update| order.update(update)).collect();
                met.sort_unstable();
                prop_assert_eq!(met, (0..rows).collect::<Vec<_>>());
            }
            let mut update = 0;
            order.for_each_update(2 * order.updates_per_epoch() + 1, |rows| {
                assert_eq!(rows, order.update(update));
                update += 1;
            });
            prop_assert_eq!(update, 2 * order.updates_per_epoch() + 1);
        }
    }
}
