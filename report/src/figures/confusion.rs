//! The confusion of languages: which language responses are in, for each language of prompts.

use std::collections::{BTreeMap, BTreeSet};

use super::compose::Composer;
use super::plot::{Figure, Heat, Panel, Plot};
use crate::read::Records;
use crate::records::{Score, ScoreStatus};

/// Responses of a recipe: a row a language of prompts, a column a language of responses, and last any other.
type Counts = Vec<Vec<usize>>;

impl Composer<'_> {
    /// A panel a recipe, over all base models, methods and seeds.
    pub(super) fn confusion(&self, records: &Records) -> Vec<Figure> {
        let codes: Vec<&str> =
            self.experiment.languages.iter().map(|language| language.code.as_str()).collect();
        let counts = self.counts(records, &codes);
        let mut names: Vec<&str> = Vec::new();
        for line in &self.results.lines {
            if counts.contains_key(line.recipe.as_str()) && !names.contains(&line.recipe.as_str()) {
                names.push(&line.recipe);
            }
        }
        if names.is_empty() {
            return Vec::new();
        }
        vec![Figure {
            id: "confusion".to_owned(),
            title: "Language of prompts and of responses".to_owned(),
            caption: format!(
                "Of 100 gated responses to prompts in a row's language, how many {} found to be in a column's language, \
                 over all base models, methods and seeds. What passes the gate is in the prompt's language; other is any \
                 language that is not named here. An empty cell is less than half a per cent; – is nothing planned.",
                self.experiment.gate.identifier
            ),
            columns: 2,
            panel_size: (384, 54 + 22 * codes.len() as u32),
            legend: Vec::new(),
            panels: names.into_iter().map(|recipe| panel(recipe, &codes, &counts[recipe])).collect(),
        }]
    }

    /// Gated responses of each recipe.
    fn counts(&self, records: &Records, codes: &[&str]) -> BTreeMap<&str, Counts> {
        let recipes = self.recipes_of_systems();
        let mut counts: BTreeMap<&str, Counts> = BTreeMap::new();
        for score in &records.scores {
            let Some(row) = codes.iter().position(|code| *code == score.language) else { continue };
            let Some(column) = column(score, codes) else { continue };
            let key = (score.system.as_str(), score.language.as_str());
            for recipe in recipes.get(&key).into_iter().flatten() {
                let table =
                    counts.entry(recipe).or_insert_with(|| vec![vec![0; codes.len() + 1]; codes.len()]);
                table[row][column] += 1;
            }
        }
        counts
    }

    /// The recipes that a system answers for in a language: what answers for monolingual in English does not in any
    /// other.
    fn recipes_of_systems(&self) -> BTreeMap<(&str, &str), BTreeSet<&str>> {
        let mut recipes: BTreeMap<(&str, &str), BTreeSet<&str>> = BTreeMap::new();
        for line in &self.results.lines {
            for cell in &line.cells {
                for run in &cell.runs {
                    let key = (run.system.as_str(), cell.language.as_str());
                    recipes.entry(key).or_default().insert(&line.recipe);
                }
            }
        }
        recipes
    }
}

/// The column of a response; none if it was not gated.
fn column(score: &Score, codes: &[&str]) -> Option<usize> {
    if !matches!(score.status, ScoreStatus::Rated | ScoreStatus::Unrated) {
        return None;
    }
    // What passed the gate is in the prompt's language, whatever the identifier calls it (nb for no).
    let identified = match score.gate? {
        1 => Some(score.language.as_str()),
        _ => score.identified.as_deref(),
    };
    Some(codes.iter().position(|code| Some(*code) == identified).unwrap_or(codes.len()))
}

fn panel(recipe: &str, codes: &[&str], counts: &Counts) -> Panel {
    let rows: Vec<String> = codes.iter().map(|code| (*code).to_owned()).collect();
    let columns = rows.iter().cloned().chain(["other".to_owned()]).collect();
    let shares = |row: &Vec<usize>| {
        let sum: usize = row.iter().sum();
        row.iter().map(|&count| (sum > 0).then(|| count as f64 / sum as f64)).collect()
    };
    Panel {
        title: recipe.to_owned(),
        x_title: String::new(),
        y_title: "rows: prompts, columns: responses".to_owned(),
        plot: Plot::Heat(Heat { rows, columns, values: counts.iter().map(shares).collect() }),
    }
}
