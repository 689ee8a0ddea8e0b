//! One tuning by several processes: what they tell each other.
//!
//! Each process (a *rank* of a *world*, as MPI has it) has the whole model, takes a part of every update's rows, and
//! owns some of the trained tensors. After a batch's backward pass the gradients of a tensor are summed at its owner,
//! which alone keeps the moments and moves the values, and hands the values to the others: optimizer states are sharded
//! (ZeRO's first stage, Rajbhandari et al. 2020), and all ranks have the same values to the last bit, whatever
//! processors they run on. Full tuning can divide the weights and gradients too: see `sharded.rs`.

mod meeting;
pub mod mesh;

use crate::error::Result;

/// What the processes of a tuning do together. All of them call the same methods in the same order.
///
/// Sums are added in the order of ranks, and so are the same bytes whenever the world has the same size.
pub trait Collective: Send + Sync {
    /// This process's number, from 0. Rank 0 reads and writes the checkpoints, the metrics and the result.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn world_size(&self) -> usize;

    /// How many of them are on this machine, and share its memory.
    fn on_this_machine(&self) -> usize;

    /// Overwrites `numbers` with their sums over all ranks, in every rank. For few of them.
    ///
    /// # Errors
    /// A rank that is gone, or does something else.
    fn sum(&self, numbers: &mut [f64]) -> Result<()>;

    /// Overwrites `bytes` with rank 0's.
    ///
    /// # Errors
    /// As for [`Collective::sum`].
    fn broadcast(&self, bytes: &mut Vec<u8>) -> Result<()>;

    /// Sums each of `tensors`, as long in every rank, over all ranks at its owner: tensor `i` is rank `owners[i]`'s. What
    /// is in the other ranks stays as it is.
    ///
    /// # Errors
    /// As for [`Collective::sum`].
    fn reduce(&self, owners: &[usize], tensors: Vec<Box<dyn Tensor + '_>>) -> Result<()>;

    /// Overwrites each of `tensors` with its owner's, in all ranks that are among the receivers.
    ///
    /// # Errors
    /// As for [`Collective::sum`].
    fn gather(
        &self,
        owners: &[usize],
        tensors: Vec<Box<dyn Tensor + '_>>,
        receivers: Receivers,
    ) -> Result<()>;

    /// Whether this is rank 0.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }
}

/// Values that ranks hand each other, wherever they lie.
pub trait Tensor: Send + Sync {
    /// Hands `read` the values.
    fn read(&self, read: &mut dyn FnMut(&[f32]));

    /// Hands `modify` the values, to read and to overwrite.
    fn modify(&mut self, modify: &mut dyn FnMut(&mut [f32]));
}

impl Tensor for &mut Vec<f32> {
    fn read(&self, read: &mut dyn FnMut(&[f32])) {
        read(self);
    }

    fn modify(&mut self, modify: &mut dyn FnMut(&mut [f32])) {
        modify(self);
    }
}

/// Who gets what is gathered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Receivers {
    /// Every rank.
    All,
    /// Rank 0 alone.
    First,
}

impl Receivers {
    /// Whether `rank` is among them.
    pub(crate) fn include(self, rank: usize) -> bool {
        self == Self::All || rank == 0
    }
}

/// A world of one: nothing is sent, nothing is copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Collective for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn world_size(&self) -> usize {
        1
    }

    fn on_this_machine(&self) -> usize {
        1
    }

    fn sum(&self, _numbers: &mut [f64]) -> Result<()> {
        Ok(())
    }

    fn broadcast(&self, _bytes: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn reduce(&self, _owners: &[usize], _tensors: Vec<Box<dyn Tensor + '_>>) -> Result<()> {
        Ok(())
    }

    fn gather(
        &self,
        _owners: &[usize],
        _tensors: Vec<Box<dyn Tensor + '_>>,
        _receivers: Receivers,
    ) -> Result<()> {
        Ok(())
    }
}

/// Hands rank 0 tensors from whoever holds them, one at a time and in the order in which it asks for them: tensor `i` has
/// `lengths[i]` elements and is at rank `holders[i]`, where `own` gives it. Rank 0's `work` asks by number; what it comes
/// to is there in rank 0 alone.
///
/// # Errors
/// What `work` says, in rank 0; and as for [`Collective::sum`].
pub(crate) fn hand_to_first<T>(
    collective: &dyn Collective,
    holders: &[usize],
    lengths: &[usize],
    own: &dyn Fn(usize) -> Vec<f32>,
    work: impl FnOnce(&dyn Fn(usize) -> Result<Vec<f32>>) -> Result<T>,
) -> Result<Option<T>> {
    let hand = |number: usize| -> Result<Vec<f32>> {
        let mut values = match (collective.rank() == holders[number], collective.is_first()) {
            (true, _) => own(number),
            (false, true) => vec![0.0; lengths[number]],
            (false, false) => Vec::new(),
        };
        collective.gather(&[holders[number]], vec![Box::new(&mut values)], Receivers::First)?;
        Ok(values)
    };
    if collective.is_first() {
        let worked = work(&|number| {
            if holders[number] == 0 {
                return Ok(own(number));
            }
            collective.broadcast(&mut (number as u64).to_le_bytes().to_vec())?;
            hand(number)
        });
        // Nothing more is wanted, whatever it came to.
        let ended = collective.broadcast(&mut Vec::new());
        return worked.and_then(|worked| ended.map(|()| Some(worked)));
    }
    loop {
        let mut wanted = Vec::new();
        collective.broadcast(&mut wanted)?;
        let Ok(number) = wanted.try_into().map(u64::from_le_bytes) else { return Ok(None) };
        hand(number as usize)?;
    }
}

/// Who owns which of some tensors: the longest first, each to the rank that has the least so far.
pub fn deal(lengths: &[usize], world_size: usize) -> Vec<usize> {
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|tensor| (std::cmp::Reverse(lengths[*tensor]), *tensor));
    let mut loads = vec![0usize; world_size.max(1)];
    let mut owners = vec![0; lengths.len()];
    for tensor in order {
        let lightest = (0..loads.len()).min_by_key(|rank| loads[*rank]).unwrap_or(0);
        owners[tensor] = lightest;
        loads[lightest] += lengths[tensor];
    }
    owners
}

/// The part of an update's rows that is `rank`'s: about as many tokens as the others', the rows in their order.
pub fn part(tokens: &[usize], rank: usize, world_size: usize) -> std::ops::Range<usize> {
    let total: usize = tokens.iter().sum();
    // Row by row, the middle of its tokens says whose it is: so every row is in exactly one part, and parts differ by no
    // more than a row.
    let owner = |before: usize, tokens: usize| {
        let middle = 2 * before + tokens;
        (middle * world_size / (2 * total).max(1)).min(world_size - 1)
    };
    let mut before = 0;
    let owners: Vec<usize> = tokens
        .iter()
        .map(|tokens| {
            before += tokens;
            owner(before - tokens, *tokens)
        })
        .collect();
    let first = |rank: usize| owners.partition_point(|owner| *owner < rank);
    first(rank)..first(rank + 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_row_is_in_one_part_and_parts_are_about_equal(
            tokens in prop::collection::vec(1usize..300, 0..50), world_size in 1usize..9,
        ) {
            let parts: Vec<_> = (0..world_size).map(|rank| part(&tokens, rank, world_size)).collect();
            let all: Vec<usize> = parts.iter().cloned().flatten().collect();
            prop_assert_eq!(all, (0..tokens.len()).collect::<Vec<_>>());
            let longest = tokens.iter().copied().max().unwrap_or(0);
            let total: usize = tokens.iter().sum();
            for part in parts {
                let sum: usize = tokens[part].iter().sum();
                // Half a row too many or too few at each end.
                prop_assert!(sum <= total.div_ceil(world_size) + longest, "{} of {}", sum, total);
            }
        }

        #[test]
        fn no_owner_has_more_than_its_share_and_a_tensor(
            lengths in prop::collection::vec(1usize..1000, 1..40), world_size in 1usize..9,
        ) {
            let owners = deal(&lengths, world_size);
            let (total, longest) = (lengths.iter().sum::<usize>(), lengths.iter().max().copied().unwrap_or(0));
            for rank in 0..world_size {
                let load: usize = lengths.iter().zip(&owners).filter(|(_, owner)| **owner == rank).map(|(l, _)| l).sum();
                prop_assert!(load <= total / world_size + longest);
            }
        }
    }
}
