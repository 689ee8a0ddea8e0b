//! The flags that the commands on a whole experiment share.

use std::path::PathBuf;

use clap::Args;
use lab::local::{Places, Prepared, prepare};

use crate::failure::Failure;
use crate::output::Output;

/// Which experiment, and where its results lie.
#[derive(Debug, Args)]
pub(crate) struct ExperimentArguments {
    /// The experiment file
    #[arg(value_name = "EXPERIMENT.toml")]
    pub(crate) experiment: PathBuf,

    /// The folder of the results [default: runs/NAME]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,

    /// The store of finished cells, to be shared by several experiments [default: store in the results' folder]
    #[arg(long, value_name = "DIR")]
    pub(crate) store: Option<PathBuf>,
}

impl ExperimentArguments {
    /// Reads, checks and plans the experiment, and tells every problem of its input.
    pub(crate) fn prepare(&self, output: &Output) -> Result<(Prepared, Places), Failure> {
        let prepared = prepare(&self.experiment).map_err(Failure::wrong_input)?;
        for problem in &prepared.inputs.problems {
            output.warning(problem.to_string());
        }
        for difference in &prepared.inputs.differences {
            output.warning(difference);
        }
        for warning in &prepared.plan.warnings {
            output.warning(warning);
        }
        let places = Places::new(&prepared.experiment, self.out.clone(), self.store.clone());
        Ok((prepared, places))
    }
}
