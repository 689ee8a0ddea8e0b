//! The program `polypaca`: flags to calls, and nothing else.

// Both panic where nothing can be written: a terminal that is gone must not end the work. `Output` ignores it.
#![warn(clippy::print_stderr, clippy::print_stdout)]

mod allocator;
mod arguments;
mod commands;
mod device;
mod failure;
mod output;
mod processes;

use std::num::NonZero;
use std::process::ExitCode;
use std::thread::available_parallelism;

use clap::Parser;

use arguments::Arguments;
use failure::Failure;
use output::Output;

#[global_allocator]
static ALLOCATOR: allocator::Allocator = allocator::Allocator;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let output = Output::new(arguments.color, arguments.json);
    output::log(arguments.color);
    match start(arguments, &output) {
        Ok(code) => code,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            output.error(&failure.error);
            failure.code()
        }
    }
}

/// As many threads as rayon would take.
fn default_threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|number| number.parse().ok());
    asked.filter(|threads| *threads > 0).unwrap_or_else(|| available_parallelism().map_or(1, NonZero::get))
}

fn start(arguments: Arguments, output: &Output) -> Result<ExitCode, Failure> {
    // The command runs on one of the pool's own threads: work handed in from outside would cost a switch of threads for
    // every product.
    let mut threads = arguments.threads.map_or(0, NonZero::get);
    let processes = arguments.command.processes_here();
    if processes > 1 {
        let all = if threads == 0 { default_threads() } else { threads };
        threads = (all / processes).max(1);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
    let pool = pool.map_err(|error| Failure::failed(anyhow::Error::new(error)))?;
    pool.install(|| commands::run(arguments.command, output))
}
