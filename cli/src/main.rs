//! The program `polypaca`: flags to calls, and nothing else.

mod arguments;
mod commands;
mod failure;
mod output;

use std::process::ExitCode;

use clap::Parser;

use arguments::Arguments;
use failure::Failure;
use output::Output;

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

fn start(arguments: Arguments, output: &Output) -> Result<ExitCode, Failure> {
    if let Some(threads) = arguments.threads {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads.get());
        pool.build_global().map_err(|error| Failure::failed(anyhow::Error::new(error)))?;
    }
    commands::run(arguments.command, output)
}
