//! The files of a report, each written whole or not at all.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rayon::prelude::*;

use crate::figures::draw;
use crate::figures::plot::Figure;
use crate::figures::png::Painter;
use crate::page::{self, Report};
use crate::read::Records;
use crate::results::Results;
use crate::tables::{grid_latex, plain_csv, plain_latex, totals_csv};
use crate::{Options, Summary};

/// Writes every file of the report.
pub(crate) fn write(
    out: &Path,
    records: &Records,
    results: &Results,
    report: &Report,
    figures: &[Figure],
    options: &Options,
) -> Result<Summary> {
    let (figure_folder, table_folder) = (out.join("figures"), out.join("tables"));
    for folder in [out, &figure_folder, &table_folder] {
        fs::create_dir_all(folder).with_context(|| format!("{}: cannot be made", folder.display()))?;
    }
    let mut warnings = Vec::new();
    let painter = options.png.then(Painter::new).filter(|painter| {
        if !painter.has_fonts() {
            warnings.push("no font was found on this system: figures are written as SVG only".to_owned());
        }
        painter.has_fonts()
    });
    let mut files: Vec<PathBuf> = figures
        .par_iter()
        .map(|figure| write_figure(&figure_folder, figure, painter.as_ref()))
        .collect::<Result<Vec<_>>>()?
        .into_iter()
        .flatten()
        .collect();

    let caption = match &report.judge_caption {
        Some(caption) => format!("Gated totals (raw totals, what the gate took); {caption}"),
        None => "Gated totals (raw totals, what the gate took)".to_owned(),
    };
    let mut tables = vec![
        ("totals.csv".to_owned(), totals_csv(results)?),
        ("totals.tex".to_owned(), grid_latex(&report.grid, &caption)),
    ];
    for table in [&report.costs, &report.comparisons, &report.lost_runs] {
        tables.push((format!("{}.csv", table.id), plain_csv(table)?));
        tables.push((format!("{}.tex", table.id), plain_latex(table)));
    }
    for (name, text) in tables {
        files.push(write_file(&table_folder, &name, text.as_bytes())?);
    }
    let text = serde_json::to_string(report).context("the report cannot be written as JSON")?;
    let json = write_file(out, "report.json", text.as_bytes())?;
    let html = page::html(records, results, report, figures, options)?;
    let page = write_file(out, "index.html", html.as_bytes())?;
    let findings = report.findings.iter().map(|finding| finding.text.clone()).collect();
    Ok(Summary { page, json, files, findings, warnings })
}

fn write_figure(folder: &Path, figure: &Figure, painter: Option<&Painter>) -> Result<Vec<PathBuf>> {
    let svg = draw::figure(figure)?;
    let mut files = vec![write_file(folder, &format!("{}.svg", figure.id), svg.as_bytes())?];
    if let Some(painter) = painter {
        let png = painter.png(&svg).with_context(|| figure.id.clone())?;
        files.push(write_file(folder, &format!("{}.png", figure.id), &png)?);
    }
    Ok(files)
}

/// Writes to a temporary name in the same folder, then renames.
fn write_file(folder: &Path, name: &str, bytes: &[u8]) -> Result<PathBuf> {
    let path = folder.join(name);
    let failed = || format!("{}: cannot be written", path.display());
    let mut file = tempfile::NamedTempFile::new_in(folder).with_context(failed)?;
    file.write_all(bytes).with_context(failed)?;
    file.as_file().sync_all().with_context(failed)?;
    // Temporary files are private; a report is for all who may read its folder.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        file.as_file().set_permissions(fs::Permissions::from_mode(0o644)).with_context(failed)?;
    }
    file.persist(&path).with_context(failed)?;
    Ok(path)
}
