//! Tables as LaTeX, with `booktabs` and `longtable`.

use super::{Grid, GridCell, GridRow, PlainTable};
use crate::results::CellState;

/// The grid as LaTeX, for `\input` with the `booktabs` and `longtable` packages loaded.
pub fn grid(grid: &Grid, caption: &str) -> String {
    let columns = "r".repeat(grid.languages.len() + 1);
    let head: Vec<String> = grid.languages.iter().map(|language| escaped(&language.name)).collect();
    let mut text = format!(
        "% Needs \\usepackage{{booktabs,longtable}}. Gated total, its interval, raw total − what the gate took.\n\
         \\begin{{longtable}}{{@{{}}l{columns}@{{}}}}\n\\caption{{{}}}\\\\\n\\toprule\n\
         recipe & {} & mean, seen \\\\\n\\endhead\n\\bottomrule\n\\endfoot\n",
        escaped(caption),
        head.join(" & ")
    );
    for block in &grid.blocks {
        text += &format!(
            "\\midrule\n\\multicolumn{{{}}}{{@{{}}l}}{{\\emph{{{}}}}} \\\\\n",
            grid.languages.len() + 2,
            escaped(&block.title)
        );
        for row in &block.rows {
            text += &grid_row(row);
        }
    }
    text + "\\end{longtable}\n"
}

/// A row of totals, one of their intervals, one of raw totals and what the gate took.
fn grid_row(row: &GridRow) -> String {
    let cells = |of: fn(&GridCell) -> String| row.cells.iter().map(of).collect::<Vec<_>>().join(" & ");
    format!(
        "{} & {} & {} \\\\*\n & {} & \\\\*\n & {} & \\\\\n",
        escaped(&row.recipe),
        cells(total),
        escaped(&row.mean),
        cells(|cell| small(&cell.interval)),
        cells(|cell| small(&if cell.raw.is_empty() {
            String::new()
        } else {
            format!("{} − {}", cell.raw, cell.dropped)
        })),
    )
}

fn small(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("\\scriptsize {}", escaped(text)) }
}

fn total(cell: &GridCell) -> String {
    match cell.state {
        CellState::Absent => "--".to_owned(),
        CellState::Empty => format!("\\emph{{{}}}", escaped(&cell.gated)),
        CellState::Partial | CellState::Complete => {
            let gated = if cell.best { format!("\\textbf{{{}}}", cell.gated) } else { cell.gated.clone() };
            let mark = if cell.state == CellState::Partial { "$^\\dagger$" } else { "" };
            format!("{gated}{mark}")
        }
    }
}

/// A plain table as LaTeX.
pub fn plain(table: &PlainTable) -> String {
    let names = table.names.min(table.columns.len());
    let columns = "l".repeat(names) + &"r".repeat(table.columns.len() - names);
    let row = |cells: &[String]| cells.iter().map(|cell| escaped(cell)).collect::<Vec<_>>().join(" & ");
    let mut text = format!(
        "% Needs \\usepackage{{booktabs,longtable}}.\n\\begin{{longtable}}{{@{{}}{columns}@{{}}}}\n\\caption{{{}}}\\\\\n\
         \\toprule\n{} \\\\\n\\midrule\n\\endhead\n\\bottomrule\n\\endfoot\n",
        escaped(&table.title),
        row(&table.columns)
    );
    for cells in &table.rows {
        text += &format!("{} \\\\\n", row(cells));
    }
    text + "\\end{longtable}\n"
}

/// Text as LaTeX.
pub(crate) fn escaped(text: &str) -> String {
    let mut escaped = String::new();
    for letter in text.chars() {
        match letter {
            '&' | '%' | '$' | '#' | '_' | '{' | '}' => {
                escaped.push('\\');
                escaped.push(letter);
            }
            '\\' => escaped.push_str("\\textbackslash{}"),
            '~' => escaped.push_str("\\textasciitilde{}"),
            '^' => escaped.push_str("\\textasciicircum{}"),
            '−' => escaped.push_str("$-$"),
            '–' => escaped.push_str("--"),
            '<' => escaped.push_str("$<$"),
            '>' => escaped.push_str("$>$"),
            '×' => escaped.push_str("$\\times$"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latex_is_escaped() {
        assert_eq!(escaped("a_b & 5 % of {x}\\"), "a\\_b \\& 5 \\% of \\{x\\}\\textbackslash{}");
    }
}
