//! Writes a synthetic experiment and its report: `cargo run -p polypaca-report --example synthetic_report -- DIR [small]`.

#[path = "../tests/report/synthetic.rs"]
mod synthetic;

use std::path::PathBuf;
use std::time::Instant;

fn main() -> anyhow::Result<()> {
    let mut arguments = std::env::args().skip(1);
    let Some(directory) = arguments.next().map(PathBuf::from) else {
        anyhow::bail!("usage: synthetic_report DIR [small]")
    };
    std::fs::create_dir_all(&directory)?;
    let small = arguments.next().is_some();
    let size = if small { synthetic::Size::small() } else { synthetic::Size::paper() };
    synthetic::write(&directory, &size);
    let start = Instant::now();
    let summary = report::build(&directory, &directory, &report::Options::default())?;
    println!("{} in {:.1} s", summary.page.display(), start.elapsed().as_secs_f64());
    for finding in &summary.findings {
        println!("- {finding}");
    }
    Ok(())
}
