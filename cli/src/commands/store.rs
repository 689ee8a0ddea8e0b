//! `polypaca store`: the finished cells.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{SystemTime, UNIX_EPOCH};

use clap::{Args, Subcommand};
use lab::store::{Key, Manifest, StoreError};

use crate::failure::Failure;
use crate::output::Output;

/// Lists, explains or clears finished cells
#[derive(Debug, Subcommand)]
pub(crate) enum Store {
    /// List the finished cells
    List(List),
    /// Show what determines a cell, and how it differs from others of its name
    Why(Why),
    /// Remove finished cells
    Clear(Clear),
}

/// Lists the finished cells: key, size, seconds that it took, experiment, name
#[derive(Debug, Args)]
pub(crate) struct List {
    /// The store
    #[arg(value_name = "STORE")]
    store: PathBuf,
}

/// Shows what determines a cell, and how it differs from others of its name
#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The store
    #[arg(value_name = "STORE")]
    store: PathBuf,

    /// The cell's name, or the first letters of its key
    #[arg(value_name = "CELL")]
    cell: String,
}

/// Removes finished cells: all of an experiment, or all that are old, or both at once
#[derive(Debug, Args)]
pub(crate) struct Clear {
    /// The store
    #[arg(value_name = "STORE")]
    store: PathBuf,

    /// Only cells that were made for this experiment
    #[arg(long, value_name = "NAME", required_unless_present_any = ["older_than", "unfinished", "all"])]
    experiment: Option<String>,

    /// Only cells that were finished more than so many days ago
    #[arg(long, value_name = "DAYS")]
    older_than: Option<u64>,

    /// What unfinished cells have left, checkpoints too
    #[arg(long, conflicts_with_all = ["experiment", "older_than", "all"])]
    unfinished: bool,

    /// All cells
    #[arg(long, conflicts_with_all = ["experiment", "older_than"])]
    all: bool,
}

const DAY: u64 = 24 * 60 * 60;

impl Store {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        match self {
            Self::List(command) => command.run(output),
            Self::Why(command) => command.run(output),
            Self::Clear(command) => command.run(output),
        }
    }
}

/// The manifests of a store that is there.
fn listed(folder: &Path) -> Result<Vec<Result<Manifest, StoreError>>, Failure> {
    if !folder.join("cells").is_dir() {
        return Err(Failure::wrong_input(anyhow::anyhow!("{} is no store", folder.display())));
    }
    lab::store::Store::read(folder).list().map_err(Failure::failed)
}

impl List {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let mut code = ExitCode::SUCCESS;
        let mut manifests = Vec::new();
        for manifest in listed(&self.store)? {
            match manifest {
                Ok(manifest) => manifests.push(manifest),
                Err(error) => {
                    output.error(&error.into());
                    code = ExitCode::FAILURE;
                }
            }
        }
        if output.json() {
            output.object(&serde_json::json!({ "cells": manifests }))?;
            return Ok(code);
        }
        for manifest in manifests {
            output.line(format!(
                "{} {:>12} bytes {:>9.1} s  {}  {}",
                manifest.key.short(),
                manifest.bytes(),
                manifest.seconds,
                manifest.experiment,
                manifest.determinants.label
            ))?;
        }
        Ok(code)
    }
}

impl Why {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let manifests: Vec<Manifest> = listed(&self.store)?.into_iter().filter_map(Result::ok).collect();
        let is_meant = |manifest: &&Manifest| {
            manifest.determinants.label == self.cell
                || (self.cell.len() >= 4 && manifest.key.to_string().starts_with(&self.cell))
        };
        let meant: Vec<&Manifest> = manifests.iter().filter(is_meant).collect();
        if meant.is_empty() {
            let error =
                anyhow::anyhow!("no finished cell {:?}: expected a name or a key of `store list`", self.cell);
            return Err(Failure::wrong_input(error));
        }
        if output.json() {
            output.object(&serde_json::json!({ "cells": meant }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for manifest in meant {
            output.line(format!("{} {}", manifest.key, manifest.determinants.label))?;
            for (name, value) in &manifest.determinants.values {
                output.line(format!("  {name} = {value}"))?;
            }
            let same_name = manifests.iter().filter(|other| {
                other.key != manifest.key && other.determinants.label == manifest.determinants.label
            });
            for other in same_name {
                output.line(format!("  it is not {}, because", other.key.short()))?;
                for difference in manifest.determinants.differences(&other.determinants) {
                    output.line(format!("    {difference}"))?;
                }
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Clear {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        // Listed first, so that a mistyped path is an error and not a new, empty store.
        let manifests = listed(&self.store)?;
        let store = lab::store::Store::open(&self.store).map_err(Failure::failed)?;
        if self.unfinished {
            let removed = store.remove_unfinished().map_err(Failure::failed)?;
            output.line(format!("removed what {removed} unfinished cells had left"))?;
            return Ok(ExitCode::SUCCESS);
        }
        if self.all {
            let removed = store.remove_all().map_err(Failure::failed)?;
            output.line(format!("removed {removed} cells"))?;
            return Ok(ExitCode::SUCCESS);
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let mut removed: Vec<Key> = Vec::new();
        for manifest in manifests {
            let manifest = match manifest {
                Ok(manifest) => manifest,
                Err(error) => {
                    // For which experiment and when it was made is not known.
                    output.warning(format!("{error}; `--all` removes it"));
                    continue;
                }
            };
            let of_experiment = self.experiment.as_ref().is_none_or(|name| *name == manifest.experiment);
            let age = now.saturating_sub(manifest.finished);
            let old = self.older_than.is_none_or(|days| age > days.saturating_mul(DAY));
            if of_experiment && old {
                store.remove(&manifest.key).map_err(Failure::failed)?;
                removed.push(manifest.key);
            }
        }
        output.line(format!("removed {} cells", removed.len()))?;
        Ok(ExitCode::SUCCESS)
    }
}
