//! Which cells become which jobs of which arrays.
//!
//! Cells of one stage that wait for the same jobs are packed together until a job is long enough. The packs of a stage
//! become arrays: of those that wait for different jobs of one array of this round, each has the place of the job that
//! it waits for, so that each begins as soon as its own is done (`aftercorr`), and not when all are.

use std::collections::{BTreeMap, BTreeSet};

use super::journal::Wish;

/// A job of this program's arrays: the array's place in its list, and the job's place in the array.
pub(super) type Parent = (usize, u32);

/// A cell to submit.
#[derive(Debug, Clone)]
pub(super) struct Todo {
    /// Its place in the plan.
    pub cell: usize,
    /// The jobs that make what it needs and what is not finished yet.
    pub parents: BTreeSet<Parent>,
    /// What it asks for.
    pub wish: Wish,
    /// How long it is thought to take.
    pub seconds: f64,
    /// Whether others are done beside it.
    pub small: bool,
}

/// Cells that are done in one job.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Pack {
    pub cells: Vec<usize>,
    pub parents: BTreeSet<Parent>,
    pub wish: Wish,
}

/// Packs, each with its place, that wait for the same.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Group {
    /// The most that one of them asks for: an array's jobs all have the same.
    pub wish: Wish,
    pub packs: BTreeMap<u32, Pack>,
    /// The array of whose jobs each pack waits for the one in its own place.
    pub corresponding: Option<usize>,
    /// The jobs that all of them wait for.
    pub after: BTreeSet<Parent>,
}

/// Packs cells of one stage into jobs of about `seconds`, for `cores` cores.
pub(super) fn packs(cells: &[Todo], seconds: f64, cores: usize) -> Vec<Pack> {
    // By what they wait for and what they ask for; in the plan's order within.
    let mut alike: BTreeMap<(&BTreeSet<Parent>, Wish, bool), Vec<&Todo>> = BTreeMap::new();
    for cell in cells {
        alike.entry((&cell.parents, cell.wish, cell.small)).or_default().push(cell);
    }
    let mut packs = Vec::new();
    for ((parents, wish, small), cells) in alike {
        let mut rest = cells.as_slice();
        while !rest.is_empty() {
            let mut sum = 0.0;
            // Side by side, so many take the time of one.
            let beside = if small { cores.max(1) } else { 1 };
            let fits = rest.iter().take_while(|cell| {
                sum += cell.seconds / beside as f64;
                sum <= seconds
            });
            let taken = fits.count().max(1);
            let (pack, later) = rest.split_at(taken);
            rest = later;
            let needed: f64 =
                pack.iter().map(|cell| cell.seconds).sum::<f64>() / beside.min(pack.len()) as f64;
            packs.push(Pack {
                cells: pack.iter().map(|cell| cell.cell).collect(),
                parents: parents.clone(),
                wish: Wish {
                    memory: wish.memory * beside.min(pack.len()) as u64,
                    // Twice what it is thought to take, and never less than one cell asks for.
                    minutes: wish.minutes.max((needed * 2.0 / 60.0).ceil() as u64),
                    tries: wish.tries,
                },
            });
        }
    }
    packs
}

/// Groups packs into arrays of at most `size` places. `new` is the first array of this round: only with it and with
/// later ones do places correspond, since earlier ones have jobs that are over.
pub(super) fn groups(packs: Vec<Pack>, new: usize, size: u32) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for pack in packs {
        let latest = pack.parents.iter().map(|(array, _)| *array).max().filter(|array| *array >= new);
        let of_latest: Vec<Parent> =
            pack.parents.iter().copied().filter(|(array, _)| Some(*array) == latest).collect();
        let own = match of_latest.as_slice() {
            [own] => Some(*own),
            _ => None,
        };
        let after: BTreeSet<Parent> =
            pack.parents.iter().copied().filter(|parent| Some(*parent) != own).collect();
        let corresponding = own.map(|(array, _)| array);
        let found = groups.iter_mut().find(|group| {
            let free = match own {
                Some((_, place)) => !group.packs.contains_key(&place),
                None => (group.packs.len() as u32) < size,
            };
            class(group.wish) == class(pack.wish)
                && group.corresponding == corresponding
                && group.after == after
                && free
        });
        match found {
            Some(group) => {
                group.wish.memory = group.wish.memory.max(pack.wish.memory);
                group.wish.minutes = group.wish.minutes.max(pack.wish.minutes);
                let place = own.map_or(group.packs.len() as u32, |(_, place)| place);
                group.packs.insert(place, pack);
            }
            None => {
                let place = own.map_or(0, |(_, place)| place);
                let wish = pack.wish;
                groups.push(Group { wish, packs: BTreeMap::from([(place, pack)]), corresponding, after });
            }
        }
    }
    groups
}

/// What asks for about the same, within a factor of two, may share an array.
fn class(wish: Wish) -> (u32, u32, u32) {
    (wish.tries, wish.memory.max(1).ilog2(), wish.minutes.max(1).ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn todo(cell: usize, parents: &[Parent], seconds: f64) -> Todo {
        let wish = Wish { memory: 100, minutes: 5, tries: 0 };
        Todo { cell, parents: parents.iter().copied().collect(), wish, seconds, small: false }
    }

    #[test]
    fn small_cells_share_a_job_and_large_ones_do_not() {
        let cells: Vec<Todo> = (0..5).map(|cell| todo(cell, &[], 400.0)).collect();
        let packed = packs(&cells, 1000.0, 4);
        let sizes: Vec<usize> = packed.iter().map(|pack| pack.cells.len()).collect();
        assert_eq!(sizes, [2, 2, 1]);
        assert_eq!(packed[0].wish.minutes, 27, "twice 800 seconds, in minutes");
        let large = packs(&[todo(0, &[], 5000.0), todo(1, &[], 5000.0)], 1000.0, 4);
        assert_eq!(large.len(), 2);
    }

    #[test]
    fn what_is_done_side_by_side_shares_the_time_and_not_the_memory() {
        let cells: Vec<Todo> = (0..6).map(|cell| Todo { small: true, ..todo(cell, &[], 400.0) }).collect();
        let packed = packs(&cells, 600.0, 4);
        assert_eq!(packed.len(), 1);
        assert_eq!((packed[0].wish.memory, packed[0].wish.minutes), (400, 20));
    }

    #[test]
    fn packs_that_wait_for_different_jobs_of_an_array_correspond_to_them() {
        // Array 3 is of this round and has the jobs 0 and 1; array 1 is older.
        let cells = [
            todo(0, &[(3, 0)], 900.0),
            todo(1, &[(3, 0)], 900.0),
            todo(2, &[(3, 1)], 900.0),
            todo(3, &[(1, 0)], 900.0),
            todo(4, &[(1, 0), (3, 1)], 900.0),
        ];
        let groups = groups(packs(&cells, 1000.0, 1), 3, 1000);
        let of = |cell: usize| {
            groups.iter().find(|group| group.packs.values().any(|pack| pack.cells == [cell])).unwrap()
        };
        assert_eq!(of(0).corresponding, Some(3));
        assert_eq!(of(0).packs.keys().copied().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(of(0), of(2));
        // Two packs cannot have one place: the second is in an array of its own.
        assert_ne!(of(0), of(1));
        assert_eq!((of(1).corresponding, of(1).packs.len()), (Some(3), 1));
        assert_eq!((of(3).corresponding, of(3).after.clone()), (None, BTreeSet::from([(1, 0)])));
        assert_eq!((of(4).corresponding, of(4).after.clone()), (Some(3), BTreeSet::from([(1, 0)])));
        assert!(of(4).packs.contains_key(&1));
    }

    #[test]
    fn no_array_is_larger_than_the_cluster_allows() {
        let cells: Vec<Todo> = (0..25).map(|cell| todo(cell, &[], 900.0)).collect();
        let groups = groups(packs(&cells, 1000.0, 1), 0, 10);
        let sizes: Vec<usize> = groups.iter().map(|group| group.packs.len()).collect();
        assert_eq!(sizes, [10, 10, 5]);
    }
}
