//! What to leave out so that the rest fits a budget.

use std::collections::BTreeSet;

use serde::Serialize;

use super::CellCost;
use crate::plan::Plan;

/// What may be spent on the cells that are left to do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Budget {
    /// Hours of this machine.
    Hours(f64),
    /// Dollars for the judge.
    Dollars(f64),
}

/// Systems to leave out.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Drops {
    /// By their names, the dearest first.
    pub systems: Vec<String>,
    /// What the rest takes, in the budget's unit.
    pub rest: f64,
    /// Scores that are lost, of how many: a system in a language each.
    pub lost: usize,
    /// See above.
    pub of: usize,
    /// Whether the rest fits.
    pub fits: bool,
}

/// The fewest scores lost for what they save: again and again the system is left out that saves most for each of its
/// scores, and what turns out to have been left out needlessly comes back. `done` says of each cell whether it is
/// finished, and costs nothing. None where a cell's time is not known.
pub fn drops(plan: &Plan, costs: &[CellCost], done: &[bool], budget: Budget) -> Option<Drops> {
    let price = |cell: usize| match budget {
        _ if done[cell] => Some(0.0),
        Budget::Hours(_) => {
            let cost = &costs[cell];
            // A judge's time is its own, and small beside what it rates.
            let seconds = if cost.flops > 0.0 { cost.seconds } else { Some(cost.seconds.unwrap_or(0.0)) };
            seconds.map(|seconds| seconds / 3600.0 / cost.at_once.max(1) as f64)
        }
        Budget::Dollars(_) => Some(costs[cell].dollars.unwrap_or(0.0)),
    };
    let prices: Vec<f64> = (0..plan.cells.len()).map(price).collect::<Option<_>>()?;
    let (Budget::Hours(most) | Budget::Dollars(most)) = budget;
    let mut kept: BTreeSet<usize> = (0..plan.systems.len()).collect();
    let total = |kept: &BTreeSet<usize>| needed(plan, kept).into_iter().map(|cell| prices[cell]).sum::<f64>();
    let mut dropped = Vec::new();
    let mut rest = total(&kept);
    while rest > most && !kept.is_empty() {
        let saving = |system: usize| {
            let mut without = kept.clone();
            without.remove(&system);
            (rest - total(&without)) / plan.systems[system].answers.len().max(1) as f64
        };
        let savings = kept.iter().map(|system| (*system, saving(*system)));
        let Some((system, _)) = savings.max_by(|left, right| left.1.total_cmp(&right.1)) else { break };
        kept.remove(&system);
        dropped.push(system);
        rest = total(&kept);
    }
    let mut back = dropped.clone();
    back.reverse();
    for system in back {
        kept.insert(system);
        let with = total(&kept);
        if with > most {
            kept.remove(&system);
        } else {
            rest = with;
            dropped.retain(|other| *other != system);
        }
    }
    let scores = |system: &usize| plan.systems[*system].answers.len();
    Some(Drops {
        systems: dropped.iter().map(|system| plan.systems[*system].id.clone()).collect(),
        rest,
        lost: dropped.iter().map(scores).sum(),
        of: (0..plan.systems.len()).map(|system| scores(&system)).sum(),
        fits: rest <= most,
    })
}

/// The cells that some systems need.
fn needed(plan: &Plan, systems: &BTreeSet<usize>) -> BTreeSet<usize> {
    let mut cells = BTreeSet::new();
    for system in systems {
        let system = &plan.systems[*system];
        cells.extend(system.made_by.iter().copied());
        cells.extend(system.answers.iter().flat_map(|(_, answers, scores)| [*answers, *scores]));
    }
    cells
}
