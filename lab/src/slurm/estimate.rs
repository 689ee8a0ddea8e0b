//! What cells are thought to take before any of them has been tried: what `plan` says of them, on the safe side. The
//! cluster's own verdict (killed for want of memory, or of time) corrects it.

use anyhow::Result;

use super::Estimate;
use crate::cost::{Calibration, CellCost, Estimator, calibration};
use crate::experiment::JudgeKind;
use crate::local::Prepared;
use crate::plan::Work;
use crate::store::Store;
use crate::work::bytes;

/// Beside what a cell computes with: the gate's identifier, what the allocator keeps, and what the system counts to a
/// job.
const PROGRAM: u64 = 1 << 30;
/// Floating-point operations a second of one core, where nothing was measured: a tenth of what a good one reaches.
const SPEED: f64 = 1e10;
/// Held for each byte of a local judge's file: the weights as they are, packed, and as f32 where they are half as wide.
const JUDGE: u64 = 4;
/// The bytes of a parameter in a judge's file, and the tokens that it writes to some 50 responses.
const JUDGE_BYTES: f64 = 2.0;
const JUDGE_TOKENS: f64 = 25_000.0;

/// What the cells are thought to take on so many cores, in the plan's order. Hours are those of finished cells of the
/// kind, or of this machine's calibration in the store; where there is neither, those of a slow machine.
///
/// # Errors
/// As [`Estimator::all`].
pub fn estimates(prepared: &Prepared, store: &Store, cores: usize) -> Result<Vec<Estimate>> {
    let cores = cores.max(1);
    let device = prepared.experiment.experiment.device;
    let calibration = Calibration::read(store.folder(), &calibration::device(cores, device))?;
    let costs = Estimator::new(prepared, store, &calibration, cores)?.all()?;
    let cells = prepared.plan.cells.iter().zip(costs);
    Ok(cells.map(|(cell, cost)| of(&cell.work, &cost, prepared, cores)).collect())
}

fn of(work: &Work, cost: &CellCost, prepared: &Prepared, cores: usize) -> Estimate {
    let (mut memory, mut flops) = (cost.memory_bytes, cost.flops);
    let judge = &prepared.experiment.judge;
    if let (Work::Scores { .. }, JudgeKind::Local, Some(path)) = (work, judge.kind, &judge.path) {
        let size = bytes(path);
        memory += size * JUDGE;
        flops += 2.0 * JUDGE_TOKENS * size as f64 / JUDGE_BYTES;
    }
    let small = cost.at_once > 1;
    // Beside others a cell has one core.
    let at_work = if small { 1 } else { cores };
    let seconds = cost.seconds.unwrap_or(flops / (SPEED * at_work as f64));
    // A quarter more than the plan says, whose figure is the process at its largest.
    Estimate { memory: (PROGRAM + memory + memory / 4).div_ceil(1 << 20), seconds: 10.0 + seconds, small }
}
