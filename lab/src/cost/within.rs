//! What to leave out so that the rest fits a budget.

use std::collections::BTreeSet;

use serde::Serialize;

use super::CellCost;
use crate::plan::{Plan, System, Work};

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
/// finished, and costs nothing. None where it is not known what a cell that is left takes of the budget.
pub fn drops(plan: &Plan, costs: &[CellCost], done: &[bool], budget: Budget) -> Option<Drops> {
    let price = |cell: usize| match budget {
        _ if done[cell] => Some(0.0),
        Budget::Hours(_) => {
            let cost = &costs[cell];
            // A judge's time is its own, and small beside what it rates.
            let seconds = if cost.flops > 0.0 { cost.seconds } else { Some(cost.seconds.unwrap_or(0.0)) };
            seconds.map(|seconds| seconds / 3600.0 / cost.at_once.max(1) as f64)
        }
        // What a judge's requests cost is not known where it has no price. A system's are not the judge's.
        Budget::Dollars(_) => {
            let asks_judge = costs[cell].requests > 0 && matches!(plan.cells[cell].work, Work::Scores { .. });
            costs[cell].dollars.or((!asks_judge).then_some(0.0))
        }
    };
    let prices: Vec<f64> = (0..plan.cells.len()).map(price).collect::<Option<_>>()?;
    let (Budget::Hours(most) | Budget::Dollars(most)) = budget;
    let needed: Vec<BTreeSet<usize>> = plan.systems.iter().map(needed).collect();
    // How many of the kept systems need each cell: one that nobody needs is not paid for.
    let mut uses = vec![0usize; plan.cells.len()];
    needed.iter().flatten().for_each(|cell| uses[*cell] += 1);
    let mut rest: f64 = (0..uses.len()).filter(|cell| uses[*cell] > 0).map(|cell| prices[cell]).sum();
    let mut kept: BTreeSet<usize> = (0..plan.systems.len()).collect();
    let mut dropped = Vec::new();
    while rest > most && !kept.is_empty() {
        let saving = |system: usize| -> f64 {
            needed[system].iter().filter(|cell| uses[**cell] == 1).map(|cell| prices[*cell]).sum()
        };
        let worth = |system: usize| saving(system) / plan.systems[system].answers.len().max(1) as f64;
        let savings = kept.iter().map(|system| (*system, worth(*system)));
        let Some((system, _)) = savings.max_by(|left, right| left.1.total_cmp(&right.1)) else { break };
        rest -= saving(system);
        needed[system].iter().for_each(|cell| uses[*cell] -= 1);
        kept.remove(&system);
        dropped.push(system);
    }
    for system in dropped.clone().into_iter().rev() {
        let cells = &needed[system];
        let more: f64 = cells.iter().filter(|cell| uses[**cell] == 0).map(|cell| prices[*cell]).sum();
        if rest + more <= most {
            rest += more;
            cells.iter().for_each(|cell| uses[*cell] += 1);
            dropped.retain(|other| *other != system);
        }
    }
    // What was added and taken away again leaves a rounding error, and nothing is less than nothing.
    let rest = rest.max(0.0);
    let scores = |system: &usize| plan.systems[*system].answers.len();
    Some(Drops {
        systems: dropped.iter().map(|system| plan.systems[*system].id.clone()).collect(),
        rest,
        lost: dropped.iter().map(scores).sum(),
        of: (0..plan.systems.len()).map(|system| scores(&system)).sum(),
        fits: rest <= most,
    })
}

/// The cells that a system needs.
fn needed(system: &System) -> BTreeSet<usize> {
    let answers = system.answers.iter().flat_map(|(_, answers, scores)| [*answers, *scores]);
    system.made_by.iter().copied().chain(answers).collect()
}
