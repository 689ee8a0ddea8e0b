//! Agreement of judge and people: `agree FILE.csv`, and the judge's drift.
//!
//! The table has the columns `system,language,judge,human`. A row is a system's totals, or, with a column `id`, a
//! response's marks; then a response may have several rows, one a person, told apart by a column `rater`. An empty
//! judge or human is unrated: such rows are counted and left out of the figures. Rows that contradict each other are
//! refused.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};

use instructions::language::Language;
use serde::{Deserialize, Serialize};

use crate::rating::{Rating, ResponseKey};
use crate::statistics::{self, Interval, Measurement, Weights};

/// A line goes through any two points: fewer than these have a correlation of 1 or -1, whatever they are.
pub const FEWEST: usize = 3;

/// How many of the largest differences are listed.
const LISTED: usize = 10;

/// What is wrong with a table.
#[derive(Debug, thiserror::Error)]
pub enum AgreeError {
    /// The file could not be read.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// A column is missing.
    #[error("{path}: expected the columns system,language,judge,human, found no {missing}")]
    Column {
        /// The file.
        path: PathBuf,
        /// The missing one.
        missing: &'static str,
    },
    /// A line is wrong.
    #[error("{path}, line {line}: {found}")]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What was found, and what was expected.
        found: String,
    },
    /// There are no rows.
    #[error("{path}: expected rows below the heading, found none")]
    Empty {
        /// The file.
        path: PathBuf,
    },
}

/// A row of the table.
#[derive(Clone, Debug, PartialEq)]
pub struct Row {
    /// The system.
    pub system: String,
    /// The language.
    pub language: String,
    /// The prompt's id, where a row is a response.
    pub id: Option<String>,
    /// The person, where there are several.
    pub rater: Option<String>,
    /// The judge's mark or total.
    pub judge: Option<f64>,
    /// The person's.
    pub human: Option<f64>,
}

/// Reads the table.
///
/// # Errors
/// [`AgreeError`]: also where a column stands twice, a row names no system, a language is not written as its ISO 639
/// code, one row or one person's mark stands twice, or the judge's mark of one response differs between its rows.
pub fn read_table(path: &Path) -> Result<Vec<Row>, AgreeError> {
    let mut text = Vec::new();
    std::fs::File::open(path)
        .and_then(|mut file| file.read_to_end(&mut text))
        .map_err(|source| AgreeError::File { path: path.to_path_buf(), source })?;
    // Spreadsheets like to put a byte-order mark before the first heading.
    let text = text.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&text);
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::All).from_reader(text);
    let wrong = |line, found| AgreeError::Line { path: path.to_path_buf(), line, found };
    let headings = reader.headers().map_err(|error| wrong(1, error.to_string()))?.clone();
    let place = |name: &str| headings.iter().position(|heading| heading == name);
    let needed = |name: &'static str| {
        place(name).ok_or_else(|| AgreeError::Column { path: path.to_path_buf(), missing: name })
    };
    let columns = Columns {
        system: needed("system")?,
        language: needed("language")?,
        judge: needed("judge")?,
        human: needed("human")?,
        id: place("id"),
        rater: place("rater"),
    };
    for name in COLUMNS {
        if headings.iter().filter(|heading| *heading == name).count() > 1 {
            return Err(wrong(1, format!("expected one column {name}, found several")));
        }
    }
    let mut rows = Vec::new();
    let mut seen = Seen::default();
    for record in reader.records() {
        let record = record
            .map_err(|error| wrong(error.position().map_or(0, csv::Position::line), error.to_string()))?;
        let line = record.position().map_or(0, csv::Position::line);
        let row = columns.row(&record).map_err(|found| wrong(line, found))?;
        seen.add(&row, line).map_err(|found| wrong(line, found))?;
        rows.push(row);
    }
    if rows.is_empty() {
        return Err(AgreeError::Empty { path: path.to_path_buf() });
    }
    Ok(rows)
}

/// The columns that are read; others are passed over.
const COLUMNS: [&str; 6] = ["system", "language", "id", "rater", "judge", "human"];

/// Where the columns stand.
struct Columns {
    system: usize,
    language: usize,
    judge: usize,
    human: usize,
    id: Option<usize>,
    rater: Option<usize>,
}

impl Columns {
    fn row(&self, record: &csv::StringRecord) -> Result<Row, String> {
        let cell = |place: usize| record.get(place).unwrap_or_default();
        let number = |place: usize, name: &str| match cell(place).parse::<f64>() {
            _ if cell(place).is_empty() => Ok(None),
            Ok(value) if value.is_finite() => Ok(Some(value)),
            _ => Err(format!("{name}: expected a number or nothing, found {:?}", cell(place))),
        };
        if cell(self.system).is_empty() {
            return Err("system: expected a name, found nothing".to_owned());
        }
        // Another way of writing a code would make a language of its own.
        let language = cell(self.language);
        match language.parse::<Language>() {
            Ok(known) if known.code() == language => {}
            Ok(known) => return Err(format!("language: expected {:?}, found {language:?}", known.code())),
            Err(error) => return Err(format!("language: {error}")),
        }
        Ok(Row {
            system: cell(self.system).to_owned(),
            language: language.to_owned(),
            id: self.id.map(|place| cell(place).to_owned()),
            rater: self.rater.map(|place| cell(place).to_owned()),
            judge: number(self.judge, "judge")?,
            human: number(self.human, "human")?,
        })
    }
}

/// Which row a mark is of: system, language, and id where there is one.
type Marked = (String, String, Option<String>);

/// What earlier lines said, for lines that say otherwise.
#[derive(Default)]
struct Seen {
    /// The lines of rows, or of a person's marks.
    lines: HashMap<(Marked, Option<String>), u64>,
    /// The judge's marks, with their lines.
    judged: HashMap<Marked, (f64, u64)>,
}

impl Seen {
    fn add(&mut self, row: &Row, line: u64) -> Result<(), String> {
        let key: Marked = (row.system.clone(), row.language.clone(), row.id.clone());
        let what = match &row.id {
            Some(id) => format!("system {:?}, id {id:?} in {}", row.system, row.language),
            None => format!("system {:?} in {}", row.system, row.language),
        };
        // A line of a person who gave no mark says nothing that another could deny.
        if row.rater.is_none() || row.human.is_some() {
            let earlier = self.lines.insert((key.clone(), row.rater.clone()), line);
            match (earlier, &row.rater) {
                (None, _) => {}
                (Some(first), Some(rater)) => {
                    return Err(format!(
                        "expected one mark by {rater:?} of {what}, found another in line {first}"
                    ));
                }
                (Some(first), None) => {
                    let expected = format!("expected one row of {what}, found another in line {first}");
                    return Err(expected + "; a column rater tells people apart");
                }
            }
        }
        let Some(judge) = row.judge else { return Ok(()) };
        let (earlier, first) = *self.judged.entry(key).or_insert((judge, line));
        if earlier == judge {
            Ok(())
        } else {
            Err(format!("judge: expected {earlier} for {what} as in line {first}, found {judge}"))
        }
    }
}

/// How often to draw for an interval, and from which seed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bootstrap {
    /// Draws.
    pub draws: usize,
    /// The seed.
    pub seed: u64,
}

impl Default for Bootstrap {
    fn default() -> Bootstrap {
        Bootstrap { draws: 1000, seed: 1 }
    }
}

/// A correlation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Correlation {
    /// The figure; null where it is not defined, as for a constant column, or says nothing, as for two pairs.
    pub value: Option<f64>,
    /// Its 95 % bootstrap interval.
    pub interval: Option<Interval>,
    /// Two-sided p of no correlation (Student's t); null for Kendall's.
    pub p: Option<f64>,
}

/// Judge and human of one system or response.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The system.
    pub system: String,
    /// The prompt's id, for a response.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The judge's.
    pub judge: f64,
    /// The people's.
    pub human: f64,
}

/// Agreement over the systems or responses of a language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Agreement {
    /// How many systems or responses.
    pub pairs: usize,
    /// Pearson's correlation.
    pub pearson: Correlation,
    /// Spearman's.
    pub spearman: Correlation,
    /// Kendall's τ-b.
    pub kendall: Correlation,
    /// Where judge and people differ most.
    pub largest_differences: Vec<Difference>,
}

/// Agreement between people in a language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Raters {
    /// How many people.
    pub raters: usize,
    /// Krippendorff's alpha.
    pub alpha_nominal: Option<f64>,
    /// The same, by order.
    pub alpha_ordinal: Option<f64>,
    /// The same, by difference.
    pub alpha_interval: Option<f64>,
    /// The ordinal alpha's bootstrap interval, over responses.
    pub alpha_ordinal_interval: Option<Interval>,
    /// Every two people.
    pub pairs: Vec<RaterPair>,
}

/// Two people's agreement.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RaterPair {
    /// One.
    pub first: String,
    /// The other.
    pub second: String,
    /// How many responses both rated.
    pub responses: usize,
    /// Cohen's kappa.
    pub kappa: Option<f64>,
    /// Cohen's kappa with quadratic weights.
    pub quadratic_kappa: Option<f64>,
}

/// All that a table says of a language.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LanguageAgreement {
    /// The language.
    pub language: String,
    /// Rows without a judge's or without a human mark.
    pub unrated_rows: usize,
    /// Systems of whose responses some lack a mark, and whose rated ones stand for all prompts.
    #[serde(default)]
    pub scaled_systems: usize,
    /// Over systems: the table's rows, or the mean over the responses that both sides rated × all prompts.
    pub systems: Agreement,
    /// Over responses, where the table has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub responses: Option<Agreement>,
    /// Between people, where there are several.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raters: Option<Raters>,
}

/// Agreement per language, in the languages' order of appearance.
pub fn agree(rows: &[Row], bootstrap: Bootstrap) -> Vec<LanguageAgreement> {
    let mut languages: Vec<&str> = Vec::new();
    for row in rows {
        if !languages.contains(&row.language.as_str()) {
            languages.push(&row.language);
        }
    }
    languages
        .into_iter()
        .map(|language| {
            let rows: Vec<&Row> = rows.iter().filter(|row| row.language == language).collect();
            agree_language(language, &rows, bootstrap)
        })
        .collect()
}

fn agree_language(language: &str, rows: &[&Row], bootstrap: Bootstrap) -> LanguageAgreement {
    let unrated_rows = rows.iter().filter(|row| row.judge.is_none() || row.human.is_none()).count();
    let by_response = rows.iter().any(|row| row.id.is_some());
    let rated = mean_over_raters(rows);
    let ids: BTreeSet<Option<&str>> = rows.iter().map(|row| row.id.as_deref()).collect();
    let mut scaled_systems = 0;
    let (systems, responses) = if by_response {
        let systems = system_totals(&rated, ids.len());
        scaled_systems = systems.iter().filter(|(_, responses)| *responses < ids.len()).count();
        let systems: Vec<Difference> = systems.into_iter().map(|(total, _)| total).collect();
        (agreement(&systems, bootstrap), Some(agreement(&rated, bootstrap)))
    } else {
        (agreement(&rated, bootstrap), None)
    };
    LanguageAgreement {
        language: language.into(),
        unrated_rows,
        scaled_systems,
        systems,
        responses,
        raters: raters(rows, bootstrap),
    }
}

/// Each system's totals, and how many responses they were made of. Responses that both sides rated stand for all
/// `prompts`, as in the report's totals: what is unrated is not 0.
fn system_totals(rated: &[Difference], prompts: usize) -> Vec<(Difference, usize)> {
    let mut sums: BTreeMap<&str, (Difference, usize)> = BTreeMap::new();
    for response in rated {
        let (sum, responses) = sums.entry(&response.system).or_insert_with(|| {
            let none = Difference { system: response.system.clone(), id: None, judge: 0.0, human: 0.0 };
            (none, 0)
        });
        sum.judge += response.judge;
        sum.human += response.human;
        *responses += 1;
    }
    let scaled = |(sum, responses): (Difference, usize)| {
        let scale = prompts as f64 / responses as f64;
        (Difference { judge: sum.judge * scale, human: sum.human * scale, ..sum }, responses)
    };
    sums.into_values().map(scaled).collect()
}

/// One pair a system and id: the judge's mark, and the mean of the people's.
fn mean_over_raters(rows: &[&Row]) -> Vec<Difference> {
    let mut places: BTreeMap<(&str, Option<&str>), usize> = BTreeMap::new();
    let mut sums: Vec<(Difference, f64)> = Vec::new();
    for row in rows {
        let (Some(judge), Some(human)) = (row.judge, row.human) else { continue };
        // Without a rater, two rows of one system are two pairs: nothing says that they belong together.
        let place = match &row.rater {
            Some(_) => places.get(&(row.system.as_str(), row.id.as_deref())).copied(),
            None => None,
        };
        match place {
            Some(place) => {
                sums[place].0.human += human;
                sums[place].1 += 1.0;
            }
            None => {
                places.insert((&row.system, row.id.as_deref()), sums.len());
                sums.push((Difference { system: row.system.clone(), id: row.id.clone(), judge, human }, 1.0));
            }
        }
    }
    sums.into_iter().map(|(pair, raters)| Difference { human: pair.human / raters, ..pair }).collect()
}

fn agreement(pairs: &[Difference], bootstrap: Bootstrap) -> Agreement {
    let judge: Vec<f64> = pairs.iter().map(|pair| pair.judge).collect();
    let human: Vec<f64> = pairs.iter().map(|pair| pair.human).collect();
    let correlation = |figure: fn(&[f64], &[f64]) -> Option<f64>, with_p: bool| {
        if pairs.len() < FEWEST {
            return Correlation { value: None, interval: None, p: None };
        }
        let value = figure(&judge, &human);
        let interval =
            statistics::bootstrap_interval(pairs.len(), bootstrap.draws, bootstrap.seed, |drawn| {
                // Two pairs drawn again and again lie on a line as well.
                if !has_different(drawn, FEWEST) {
                    return None;
                }
                let column = |values: &[f64]| drawn.iter().map(|&row| values[row]).collect::<Vec<f64>>();
                figure(&column(&judge), &column(&human))
            });
        let p = value.filter(|_| with_p).and_then(|value| statistics::correlation_p(value, pairs.len()));
        Correlation { value, interval, p }
    };
    let mut largest: Vec<Difference> = pairs.to_vec();
    largest.sort_by(|a, b| (b.judge - b.human).abs().total_cmp(&(a.judge - a.human).abs()));
    largest.truncate(LISTED);
    Agreement {
        pairs: pairs.len(),
        pearson: correlation(statistics::pearson, true),
        spearman: correlation(statistics::spearman, true),
        kendall: correlation(statistics::kendall, false),
        largest_differences: largest,
    }
}

/// Whether `count` different rows are among those drawn.
fn has_different(drawn: &[usize], count: usize) -> bool {
    let mut met = Vec::with_capacity(count);
    drawn.iter().any(|row| {
        if !met.contains(row) {
            met.push(*row);
        }
        met.len() == count
    })
}

fn raters(rows: &[&Row], bootstrap: Bootstrap) -> Option<Raters> {
    let mut marks: BTreeMap<&str, BTreeMap<(&str, Option<&str>), f64>> = BTreeMap::new();
    for row in rows {
        if let (Some(rater), Some(human)) = (&row.rater, row.human) {
            marks.entry(rater).or_default().insert((&row.system, row.id.as_deref()), human);
        }
    }
    if marks.len() < 2 {
        return None;
    }
    let mut units: BTreeMap<(&str, Option<&str>), Vec<f64>> = BTreeMap::new();
    for (unit, mark) in marks.values().flatten() {
        units.entry(*unit).or_default().push(*mark);
    }
    let units: Vec<Vec<f64>> = units.into_values().collect();
    let people: Vec<_> = marks.iter().collect();
    let mut pairs = Vec::new();
    for (place, (first, ours)) in people.iter().enumerate() {
        for (second, theirs) in &people[place + 1..] {
            let (a, b): (Vec<f64>, Vec<f64>) =
                ours.iter().filter_map(|(unit, mark)| Some((*mark, *theirs.get(unit)?))).unzip();
            pairs.push(RaterPair {
                first: first.to_string(),
                second: second.to_string(),
                responses: a.len(),
                kappa: statistics::cohen_kappa(&a, &b, Weights::Unweighted),
                quadratic_kappa: statistics::cohen_kappa(&a, &b, Weights::Quadratic),
            });
        }
    }
    let alpha = |measurement| statistics::krippendorff_alpha(&units, measurement);
    let interval = statistics::bootstrap_interval(units.len(), bootstrap.draws, bootstrap.seed, |drawn| {
        let drawn: Vec<Vec<f64>> = drawn.iter().map(|&unit| units[unit].clone()).collect();
        statistics::krippendorff_alpha(&drawn, Measurement::Ordinal)
    });
    Some(Raters {
        raters: people.len(),
        alpha_nominal: alpha(Measurement::Nominal),
        alpha_ordinal: alpha(Measurement::Ordinal),
        alpha_interval: alpha(Measurement::Interval),
        alpha_ordinal_interval: interval,
        pairs,
    })
}

/// How a judge rates a fixed sample now, against how it did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drift {
    /// How many responses were rated both times.
    pub compared: usize,
    /// How many were rated only once: missing or unrated in the other.
    pub only_once: usize,
    /// How many have another rating now.
    pub changed: usize,
    /// Mean change, after − before.
    pub mean_change: Option<f64>,
    /// Its 95 % bootstrap interval.
    pub mean_change_interval: Option<Interval>,
    /// Cohen's kappa with quadratic weights between the two.
    pub quadratic_kappa: Option<f64>,
    /// What changed most, with the rating before and after.
    pub largest_changes: Vec<(ResponseKey, f64, f64)>,
}

/// A judge's drift between two ratings of the same sample. Only responses that are the same both times count.
pub fn drift(before: &[Rating], after: &[Rating], bootstrap: Bootstrap) -> Drift {
    let rated = |ratings: &[Rating]| -> BTreeMap<(ResponseKey, String), f64> {
        let mark = |rating: &Rating| Some(((rating.key.clone(), rating.rated.clone()), rating.rating?));
        ratings.iter().filter_map(mark).collect()
    };
    let (before, after) = (rated(before), rated(after));
    let mut both: Vec<(ResponseKey, f64, f64)> =
        before.iter().filter_map(|(key, mark)| Some((key.0.clone(), *mark, *after.get(key)?))).collect();
    let compared = both.len();
    let changes: Vec<f64> = both.iter().map(|(_, before, after)| after - before).collect();
    let (first, second): (Vec<f64>, Vec<f64>) =
        both.iter().map(|(_, before, after)| (*before, *after)).unzip();
    let interval = statistics::bootstrap_interval(compared, bootstrap.draws, bootstrap.seed, |drawn| {
        statistics::mean(&drawn.iter().map(|&row| changes[row]).collect::<Vec<f64>>())
    });
    both.retain(|(_, before, after)| before != after);
    let changed = both.len();
    both.sort_by(|a, b| (b.2 - b.1).abs().total_cmp(&(a.2 - a.1).abs()));
    both.truncate(LISTED);
    Drift {
        compared,
        only_once: before.len() + after.len() - 2 * compared,
        changed,
        mean_change: statistics::mean(&changes),
        mean_change_interval: interval,
        quadratic_kappa: statistics::cohen_kappa(&first, &second, Weights::Quadratic),
        largest_changes: both,
    }
}
