//! The files of a report, each written whole or not at all.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rayon::prelude::*;

use crate::bundle::{self, BUNDLE_FILE};
use crate::figures::draw;
use crate::figures::plot::Figure;
use crate::figures::png::Painter;
use crate::page::{self, Report};
use crate::read::Records;
use crate::results::Results;
use crate::tables::{csv, latex};
use crate::{Options, Summary};

/// Writes every file of the report.
pub(crate) fn write(
    directory: &Path,
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
    let drawn: Vec<Drawn> = figures
        .par_iter()
        .map(|figure| write_figure(&figure_folder, figure, painter.as_ref()))
        .collect::<Result<_>>()?;
    warnings.extend(missing_letters(&drawn));
    let mut files: Vec<PathBuf> = drawn.into_iter().flat_map(|drawn| drawn.files).collect();

    let caption = match &report.judge_caption {
        Some(caption) => {
            format!("Gated totals, their 95 % intervals, and raw totals minus what the gate took; {caption}")
        }
        None => "Gated totals, their 95 % intervals, and raw totals minus what the gate took".to_owned(),
    };
    let mut tables = vec![
        ("totals.csv".to_owned(), csv::totals(results)?),
        ("runs.csv".to_owned(), csv::runs(results)?),
        ("costs.csv".to_owned(), csv::costs(results)?),
        ("comparisons.csv".to_owned(), csv::comparisons(results)?),
        ("lost-runs.csv".to_owned(), csv::plain(&report.lost_runs)?),
        ("totals.tex".to_owned(), latex::grid(&report.grid, &caption)),
    ];
    for table in [&report.costs, &report.comparisons, &report.lost_runs] {
        tables.push((format!("{}.tex", table.id), latex::plain(table)));
    }
    for (name, text) in tables {
        files.push(write_file(&table_folder, &name, text.as_bytes())?);
    }
    let text = serde_json::to_string(report).context("the report cannot be written as JSON")?;
    let json = write_file(out, "report.json", text.as_bytes())?;
    let html = page::html(records, results, report, figures, options)?;
    let page = write_file(out, "index.html", html.as_bytes())?;
    files.push(write_file(out, "methods.tex", bundle::methods_latex(report).as_bytes())?);
    if options.bundle {
        let archive = bundle::archive(directory, records, report, &text, options)?;
        files.push(write_file(out, BUNDLE_FILE, &archive)?);
    }
    let findings = report.findings.iter().map(|finding| finding.text.clone()).collect();
    Ok(Summary { page, json, files, findings, warnings })
}

/// The files of a figure, and the letters that its picture has not.
struct Drawn {
    files: Vec<PathBuf>,
    missing: BTreeSet<char>,
}

fn write_figure(folder: &Path, figure: &Figure, painter: Option<&Painter>) -> Result<Drawn> {
    let svg = draw::figure(figure)?;
    let file = |ending: &str, bytes: &[u8]| write_file(folder, &format!("{}.{ending}", figure.id), bytes);
    let mut drawn = Drawn {
        files: vec![file("svg", svg.as_bytes())?, file("csv", csv::figure(figure)?.as_bytes())?],
        missing: BTreeSet::new(),
    };
    if let Some(painter) = painter {
        let picture = painter.png(&svg).with_context(|| figure.id.clone())?;
        drawn.files.push(file("png", &picture.png)?);
        drawn.missing = picture.missing;
    }
    Ok(drawn)
}

fn missing_letters(drawn: &[Drawn]) -> Option<String> {
    let letters: BTreeSet<char> = drawn.iter().flat_map(|drawn| drawn.missing.iter().copied()).collect();
    let pictures = drawn.iter().filter(|drawn| !drawn.missing.is_empty()).count();
    (pictures > 0).then(|| {
        let letters: String = letters.into_iter().collect();
        format!(
            "no font of this system has the letters {letters}: {pictures} PNG pictures show boxes in their place, the \
             SVG files and the page do not depend on it"
        )
    })
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
