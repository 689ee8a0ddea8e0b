//! Rows that begin alike: the rows of one template share its beginning, and in causal attention nothing behind a token
//! changes what is computed at it. So a micro-batch computes a shared beginning once.

use std::ops::Range;

use crate::rows::TrainingRow;

/// Fewest tokens that are worth a sequence of their own.
const LEAST_SHARED: usize = 8;

/// Puts rows that begin alike side by side; equal ones stay in the order of their numbers.
pub fn sort(rows: &[TrainingRow], numbers: &mut [usize]) {
    numbers.sort_by(|first, second| {
        rows[*first].tokens.cmp(&rows[*second].tokens).then_with(|| first.cmp(second))
    });
}

/// Neighbouring rows that share their first tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// Which rows.
    pub rows: Range<usize>,
    /// How many tokens they share; of each row one or more are left.
    pub shared: usize,
}

/// Cuts rows into groups of neighbours such that as many tokens as possible need not be computed again.
pub fn groups(rows: &[&[u32]]) -> Vec<Group> {
    // Of the rows before each place: the most tokens that can be saved, and the last group that saves them.
    let mut best: Vec<(usize, Group)> = vec![(0, Group { rows: 0..0, shared: 0 })];
    for (last, row) in rows.iter().enumerate() {
        let alone = Group { rows: last..last + 1, shared: 0 };
        let mut most = (best[last].0, alone);
        let mut shared = row.len().saturating_sub(1);
        for first in (0..last).rev() {
            shared =
                shared.min(common(rows[first], rows[first + 1])).min(rows[first].len().saturating_sub(1));
            if shared < LEAST_SHARED {
                break;
            }
            let saved = best[first].0 + (last - first) * shared;
            if saved > most.0 {
                most = (saved, Group { rows: first..last + 1, shared });
            }
        }
        best.push(most);
    }
    let mut groups = Vec::new();
    let mut end = rows.len();
    while end > 0 {
        let group = best[end].1.clone();
        end = group.rows.start;
        groups.push(group);
    }
    groups.reverse();
    groups
}

/// First tokens that two rows have in common.
fn common(first: &[u32], second: &[u32]) -> usize {
    first.iter().zip(second).take_while(|(first, second)| first == second).count()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use engine::Batch;
    use proptest::prelude::*;

    use super::*;
    use crate::rows::{Packing, pack};

    fn rows_of(tokens: &[Vec<u32>], supervised_from: &[usize]) -> Vec<TrainingRow> {
        let row = |(tokens, from): (&Vec<u32>, &usize)| TrainingRow {
            id: String::new(),
            language: String::new(),
            tokens: tokens.clone(),
            supervised_from: *from,
        };
        tokens.iter().zip(supervised_from).map(row).collect()
    }

    /// The tokens that lead to a row of a batch, it among them, with its position and the place of its dropout.
    type Context = (Vec<u32>, u32, String);

    fn context(batch: &Batch, row: usize) -> Context {
        let Some(sequence) = batch.sequences.iter().find(|sequence| sequence.rows.contains(&row)) else {
            panic!("row {row} is in no sequence")
        };
        let rows = sequence.prefix.clone().chain(sequence.rows.start..row + 1);
        let tokens = rows.map(|row| batch.tokens[row]).collect();
        (tokens, batch.positions[row], format!("{:?}", batch.dropout_keys[row]))
    }

    /// What is to be predicted after what, and how often.
    fn learnt(batches: &[Batch]) -> BTreeMap<(Context, u32), f32> {
        let mut learnt = BTreeMap::new();
        for batch in batches {
            for ((row, target), weight) in batch.supervised.iter().zip(&batch.targets).zip(&batch.weights) {
                *learnt.entry((context(batch, *row), *target)).or_insert(0.0) += weight;
            }
        }
        learnt
    }

    /// The whole rows of batches: what leads to their last tokens.
    fn ends(batches: &[Batch]) -> Vec<Context> {
        let of_batch = |batch: &Batch| -> Vec<Context> {
            let is_prefix = |rows: &Range<usize>| batch.sequences.iter().any(|other| other.prefix == *rows);
            let whole = batch.sequences.iter().filter(|sequence| !is_prefix(&sequence.rows));
            whole.map(|sequence| context(batch, sequence.rows.end - 1)).collect()
        };
        batches.iter().flat_map(of_batch).collect()
    }

    proptest! {
        #[test]
        fn what_is_learnt_is_the_same_with_and_without_what_is_shared(
            tokens in prop::collection::vec((prop::collection::vec(0u32..2, 1..6), 0usize..3), 1..12),
            supervised_from in prop::collection::vec(0usize..30, 12),
        ) {
            // Two templates and none, of which one begins like the other; and rows that are alike as a whole.
            let template = |kind: usize| (0..[0, 20, 12][kind] as u32).map(move |token| if token < 9 { token } else { token + 9 * kind as u32 });
            let tokens: Vec<Vec<u32>> =
                tokens.into_iter().map(|(own, kind)| template(kind).chain(own).collect()).collect();
            let rows = rows_of(&tokens, &supervised_from);
            let mut numbers: Vec<usize> = (0..rows.len()).collect();
            sort(&rows, &mut numbers);
            let shared = [pack(&rows, &numbers, 5, 6, Packing::Shared)];
            let alone = |number: &usize| pack(&rows, &[*number], 5, 6, Packing::Shared);
            let apart: Vec<Batch> = numbers.iter().map(alone).collect();
            prop_assert_eq!(learnt(&shared), learnt(&apart));
            // Every row is there, and the workspace that holds its tokens holds its targets.
            prop_assert_eq!(ends(&shared), ends(&apart));
            let [shared] = shared;
            let tokens = apart.iter().map(Batch::rows).sum::<usize>();
            prop_assert!(shared.rows() <= tokens && shared.supervised.len() <= shared.rows());
            prop_assert!(shared.supervised.is_sorted());
        }

        #[test]
        fn groups_hold_every_row_once_and_what_all_of_them_have(
            rows in prop::collection::vec(prop::collection::vec(0u32..2, 1..14), 0..10),
        ) {
            let mut rows = rows;
            rows.sort();
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let groups = groups(&rows);
            prop_assert_eq!(
                groups.iter().flat_map(|group| group.rows.clone()).collect::<Vec<_>>(),
                (0..rows.len()).collect::<Vec<_>>()
            );
            for group in groups {
                let of_group = &rows[group.rows];
                prop_assert!(of_group.iter().all(|row| row.len() > group.shared || group.shared == 0));
                prop_assert!(of_group.iter().all(|row| row[..group.shared] == of_group[0][..group.shared]));
                prop_assert!(group.shared == 0 || group.shared >= LEAST_SHARED && of_group.len() > 1);
            }
        }
    }

    #[test]
    fn two_templates_are_two_groups_and_what_nobody_shares_is_alone() {
        let long =
            |kind: u32, own: u32| -> Vec<u32> { (0..9).chain((0..11).map(|_| kind)).chain([own]).collect() };
        let rows = [long(1, 50), long(1, 51), long(1, 51), long(2, 50), long(2, 52), vec![3; 9], vec![4]];
        let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
        let expected = [(0..3, 20), (3..5, 20), (5..6, 0), (6..7, 0)];
        let expected: Vec<Group> = expected.map(|(rows, shared)| Group { rows, shared }).to_vec();
        assert_eq!(groups(&rows), expected);
        // One of each template: what both begin with.
        assert_eq!(groups(&[rows[0], rows[3]]), [Group { rows: 0..2, shared: 9 }]);
        // A whole row is shared but for its last token.
        assert_eq!(groups(&[rows[0], rows[0]]), [Group { rows: 0..2, shared: 20 }]);
    }
}
