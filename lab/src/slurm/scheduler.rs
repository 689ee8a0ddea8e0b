//! What is asked of Slurm, and how it answers: `sbatch`, `squeue`, `sacct`, `scancel`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};

/// A job of an array: the array's number and the job's place in it.
pub type JobId = (u64, u32);

/// How a job stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// It waits, runs, or is put back to wait; with the reason why it waits.
    Live(String),
    /// Its program ended with 0.
    Completed,
    /// Its program ended with another code, or was killed by a signal.
    Failed {
        /// The signal that ended it.
        signal: Option<u32>,
    },
    /// Killed for want of memory.
    OutOfMemory,
    /// Killed because its time was up.
    Timeout,
    /// Its node failed, or was taken from it for another job.
    Lost,
    /// Somebody cancelled it, or a job that it depends on did not end well.
    Cancelled,
}

/// A cluster.
pub trait Scheduler {
    /// Submits an array; gives its number.
    ///
    /// # Errors
    /// What the cluster says.
    fn submit(&self, job: &Submission) -> Result<u64>;

    /// The states of these arrays' jobs. A job of which nothing is known any more is left out.
    ///
    /// # Errors
    /// Where the cluster does not answer.
    fn states(&self, arrays: &[u64]) -> Result<BTreeMap<JobId, JobState>>;

    /// The number of the array with this name, if the cluster knows one.
    ///
    /// # Errors
    /// Where the cluster does not answer.
    fn find(&self, name: &str) -> Result<Option<u64>>;

    /// Cancels one job.
    ///
    /// # Errors
    /// Where the cluster does not answer.
    fn cancel(&self, job: JobId) -> Result<()>;

    /// The greatest place in an array, and one more.
    fn array_size(&self) -> u32;
}

/// An array to submit.
#[derive(Debug, Clone)]
pub struct Submission<'a> {
    /// The script.
    pub script: &'a Path,
    /// Options of `sbatch`.
    pub options: Vec<String>,
}

/// Slurm's own programs.
#[derive(Debug, Clone)]
pub struct Programs {
    accounting: bool,
    array_size: u32,
}

/// Slurm's own default.
const ARRAY_SIZE: u32 = 1001;

impl Programs {
    /// Asks the cluster how it is set up.
    ///
    /// # Errors
    /// Where Slurm is not there, or its controller does not answer.
    pub fn new() -> Result<Self> {
        let config = text(Command::new("scontrol").args(["show", "config"]))
            .context("--runner slurm: Slurm's controller does not answer")?;
        let value = |key: &str| {
            let line = config.lines().find(|line| line.split('=').next().is_some_and(|k| k.trim() == key))?;
            line.split_once('=').map(|(_, value)| value.trim().to_owned())
        };
        let storage = value("AccountingStorageType").unwrap_or_default();
        Ok(Self {
            accounting: !storage.is_empty() && !storage.ends_with("none"),
            array_size: value("MaxArraySize").and_then(|size| size.parse().ok()).unwrap_or(ARRAY_SIZE),
        })
    }
}

impl Scheduler for Programs {
    fn submit(&self, job: &Submission) -> Result<u64> {
        let said = text(Command::new("sbatch").arg("--parsable").args(&job.options).arg(job.script))?;
        // With several clusters the number has the cluster's name behind it.
        let number = said.trim().split(';').next().unwrap_or_default();
        number.parse().with_context(|| format!("sbatch: expected the job's number, found {said:?}"))
    }

    fn states(&self, arrays: &[u64]) -> Result<BTreeMap<JobId, JobState>> {
        let mut found = BTreeMap::new();
        if self.accounting {
            let ids: Vec<String> = arrays.iter().map(ToString::to_string).collect();
            let said = text(Command::new("sacct").args([
                "--noheader",
                "--allocations",
                "--parsable2",
                "--array",
                "--format=JobID,State,ExitCode",
                "--jobs",
                &ids.join(","),
            ]))?;
            found.extend(accounted(&said));
        }
        // What the controller says is newer than what the accounting has written down.
        let said = text(Command::new("squeue").args([
            "--noheader",
            "--array",
            "--states=all",
            "--me",
            "--Format=ArrayJobID:;,ArrayTaskID:;,State:;,exit_code:;,Reason:",
        ]))?;
        found.extend(queued(&said).into_iter().filter(|((array, _), _)| arrays.contains(array)));
        Ok(found)
    }

    fn find(&self, name: &str) -> Result<Option<u64>> {
        let said = text(Command::new("squeue").args([
            "--noheader",
            "--states=all",
            "--me",
            "--name",
            name,
            "--Format=ArrayJobID:",
        ]))?;
        Ok(said.lines().find_map(|line| line.trim().parse().ok()))
    }

    fn cancel(&self, (array, place): JobId) -> Result<()> {
        text(Command::new("scancel").arg(format!("{array}_{place}"))).map(|_| ())
    }

    fn array_size(&self) -> u32 {
        self.array_size
    }
}

/// What a program prints, where it ends well.
fn text(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let Output { status, stdout, stderr } =
        command.output().with_context(|| format!("cannot start {name}: is Slurm installed here?"))?;
    if !status.success() {
        bail!("{name} ended with {status}: {}", String::from_utf8_lossy(&stderr).trim());
    }
    Ok(String::from_utf8_lossy(&stdout).into_owned())
}

/// Lines of `squeue`: array, place, state, the status as `wait` gives it, reason.
fn queued(said: &str) -> BTreeMap<JobId, JobState> {
    let line = |line: &str| {
        let mut parts = line.splitn(5, ';');
        let array = parts.next()?.trim().parse().ok()?;
        let place = parts.next()?.trim().parse().ok()?;
        let state = parts.next()?;
        let status: u32 = parts.next()?.trim().parse().unwrap_or(0);
        let signal = Some(status & 0x7f).filter(|signal| *signal != 0);
        Some(((array, place), state_of(state, signal, parts.next().unwrap_or_default().trim())))
    };
    said.lines().filter_map(line).collect()
}

/// Lines of `sacct`: `5_0|COMPLETED|0:0`. Jobs that still wait stand together as `5_[1-3]`, and are left to `squeue`.
fn accounted(said: &str) -> BTreeMap<JobId, JobState> {
    let line = |line: &str| {
        let mut parts = line.split('|');
        let (array, place) = parts.next()?.split_once('_')?;
        let id = (array.parse().ok()?, place.parse().ok()?);
        let state = parts.next()?;
        let signal =
            parts.next().and_then(|code| code.split_once(':')).and_then(|(_, signal)| signal.parse().ok());
        Some((id, state_of(state, signal.filter(|signal| *signal != 0), "")))
    };
    said.lines().filter_map(line).collect()
}

/// Slurm's word for a state; `CANCELLED by 1000` begins with it.
fn state_of(word: &str, signal: Option<u32>, reason: &str) -> JobState {
    match word.split_whitespace().next().unwrap_or_default() {
        "COMPLETED" => JobState::Completed,
        "FAILED" | "BOOT_FAIL" => JobState::Failed { signal },
        "OUT_OF_MEMORY" => JobState::OutOfMemory,
        "TIMEOUT" | "DEADLINE" => JobState::Timeout,
        "NODE_FAIL" | "PREEMPTED" | "REVOKED" => JobState::Lost,
        "CANCELLED" => JobState::Cancelled,
        // PENDING, RUNNING, COMPLETING, CONFIGURING, REQUEUED, SUSPENDED, STOPPED, RESIZING and the like.
        _ => JobState::Live(reason.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Printed by Slurm 22.05.8: a job that ended well, one killed for memory without cgroups, one cancelled, one whose
    // dependency failed, one that runs.
    const SQUEUE: &str = "1;0;COMPLETED;0;None\n1;1;FAILED;9;JobLaunchFailure\n1;2;CANCELLED;256;None\n\
        2;1;CANCELLED;0;DependencyNeverSatisfied\n3;4;RUNNING;0;None\n3;5;PENDING;0;Dependency\n7;N/A;RUNNING;0;None\n";

    #[test]
    fn what_squeue_prints_is_understood() {
        let states = queued(SQUEUE);
        assert_eq!(states[&(1, 0)], JobState::Completed);
        assert_eq!(states[&(1, 1)], JobState::Failed { signal: Some(9) });
        assert_eq!(states[&(1, 2)], JobState::Cancelled);
        assert_eq!(states[&(3, 4)], JobState::Live("None".to_owned()));
        assert_eq!(states[&(3, 5)], JobState::Live("Dependency".to_owned()));
        assert_eq!(states.len(), 6, "a job outside an array is none of ours");
    }

    #[test]
    fn what_sacct_prints_is_understood() {
        let states = accounted(
            "5_0|COMPLETED|0:0\n5_1|OUT_OF_MEMORY|0:125\n5_2|CANCELLED by 1000|0:15\n5_3|TIMEOUT|0:0\n5_4|FAILED|1:0\n\
             5_5|NODE_FAIL|0:0\n5_[6-9]|PENDING|0:0\n8|COMPLETED|0:0\n",
        );
        let expected = [
            JobState::Completed,
            JobState::OutOfMemory,
            JobState::Cancelled,
            JobState::Timeout,
            JobState::Failed { signal: None },
            JobState::Lost,
        ];
        for (place, state) in (0..).zip(expected) {
            assert_eq!(states[&(5, place)], state);
        }
        assert_eq!(states.len(), 6);
    }
}
