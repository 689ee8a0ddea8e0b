//! Why a command ended early, and the exit code that says so.

use std::io;
use std::process::ExitCode;

/// The exit code of wrong usage or input; clap's own for wrong flags.
const WRONG_INPUT: u8 = 2;

/// An error with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) error: anyhow::Error,
    wrong_input: bool,
}

impl Failure {
    /// What was asked for cannot be done: exit code 2.
    pub(crate) fn wrong_input(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), wrong_input: true }
    }

    /// What was asked for was tried, and failed: exit code 1.
    pub(crate) fn failed(error: impl Into<anyhow::Error>) -> Self {
        Self { error: error.into(), wrong_input: false }
    }

    /// The failure of one of several processes.
    pub(crate) fn of_rank(self, rank: usize) -> Self {
        Self { error: self.error.context(format!("rank {rank}")), ..self }
    }

    pub(crate) fn code(&self) -> ExitCode {
        if self.wrong_input { ExitCode::from(WRONG_INPUT) } else { ExitCode::FAILURE }
    }

    /// Whether the reader of standard output has gone, as `head` does: no failure of ours.
    pub(crate) fn is_broken_pipe(&self) -> bool {
        self.error.chain().any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
        })
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self::failed(error)
    }
}
