//! The commands: a file each, with its flags, what it calls, and what it prints.

mod agree;
mod answer;
mod chat;
mod data;
mod experiment;
mod identify;
mod judge;
mod loss;
mod merge;
mod places;
mod plan;
mod rate;
mod report;
mod run;
mod serve;
mod store;
mod tune;
mod values;
mod verify;
mod watch;

use std::process::ExitCode;

use clap::Subcommand;

use crate::failure::Failure;
use crate::output::Output;

pub(crate) use tune::failure as tuning_failure;

/// What is to be done.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run the whole experiment: all that is missing or changed
    Run(run::Run),
    /// Show an experiment's cells: which are done, missing or changed
    Plan(plan::Plan),
    /// Show a running experiment: cells, losses, speed, time left, failures
    Watch(watch::Watch),
    /// Check, mix and count instruction data
    #[command(subcommand)]
    Data(data::Data),
    /// Tune a base model on instruction data
    Tune(Box<tune::Tune>),
    /// Test a model and its tokenizer before it is tuned
    Verify(verify::Verify),
    /// Measure a system's loss on instruction data
    Loss(loss::Loss),
    /// Answer prompts with a system
    Answer(answer::Answer),
    /// Talk to a system in the terminal
    Chat(chat::Chat),
    /// Serve systems to OpenAI's clients
    Serve(serve::Serve),
    /// Put an adapter into its base model's weights
    Merge(merge::Merge),
    /// Identify the languages of responses
    Identify(identify::Identify),
    /// Rate responses
    Judge(judge::Judge),
    /// Have people rate responses on a page
    #[command(subcommand)]
    Rate(rate::Rate),
    /// How far a judge and people agree, per language
    Agree(agree::Agree),
    /// Write an experiment's tables and figures again, from its records
    Report(report::Report),
    /// List, explain or clear finished cells
    #[command(subcommand)]
    Store(store::Store),
}

impl Command {
    /// Processes on this machine that the command is divided among, and share its cores.
    pub(crate) fn processes_here(&self) -> usize {
        match self {
            Self::Tune(command) => command.processes_here(),
            _ => 1,
        }
    }
}

/// Runs a command.
pub(crate) fn run(command: Command, output: &Output) -> Result<ExitCode, Failure> {
    match command {
        Command::Run(command) => command.run(output),
        Command::Plan(command) => command.run(output),
        Command::Watch(command) => command.run(output),
        Command::Data(command) => command.run(output),
        Command::Tune(command) => command.run(output),
        Command::Verify(command) => command.run(output),
        Command::Loss(command) => command.run(output),
        Command::Answer(command) => command.run(output),
        Command::Chat(command) => command.run(output),
        Command::Merge(command) => command.run(output),
        Command::Serve(command) => command.run(output),
        Command::Identify(command) => command.run(output),
        Command::Judge(command) => command.run(output),
        Command::Rate(command) => command.run(output),
        Command::Agree(command) => command.run(output),
        Command::Report(command) => command.run(output),
        Command::Store(command) => command.run(output),
    }
}
