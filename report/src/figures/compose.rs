//! What all figures share: who is in them, how each recipe looks, and what its marks say.

use std::collections::BTreeSet;

use super::plot::{Bar, Figure, Key, Marker, Point, Series, Style};
use crate::read::Records;
use crate::records::{BaseModel, Experiment, Language, SystemKind};
use crate::results::{Cell, CellState, Line, Results, Source, UNTUNED};

/// What every figure with intervals says about them.
pub(super) const MARKS: &str = "Vertical lines are 95 % bootstrap intervals over prompts and seeds. A hollow mark or \
                                pale bar leaves something out (an unrated response, a failed or missing run); a cross \
                                is a result with nothing to show; what was never planned is blank.";

/// What every figure of bars says about them.
pub(super) const BARS: &str = "Vertical lines are 95 % bootstrap intervals over prompts and seeds. A pale bar leaves \
                               something out (an unrated response, a failed or missing run); a cross is a result with \
                               nothing to show; what was never planned is blank.";

/// Every figure of an experiment, in the order of the page.
pub fn figures(records: &Records, results: &Results) -> Vec<Figure> {
    let composer = Composer { experiment: &records.experiment, results };
    let mut figures = composer.recipes_at_one_size();
    figures.extend(composer.scores_by_size());
    figures.extend(composer.unseen());
    figures.extend(composer.families());
    figures.extend(composer.gate());
    figures.extend(composer.seeds());
    figures.extend(composer.cost());
    figures.extend(composer.learning(records));
    figures.extend(composer.confusion(records));
    figures.extend(composer.fertility());
    tell_apart(&mut figures);
    let caption = records.experiment.judge.caption();
    for figure in &mut figures {
        figure.explain_what_is_left_out();
        if let Some(caption) = &caption
            && !figure.id.starts_with("learning")
            && !figure.id.starts_with("confusion")
        {
            figure.caption = format!("{} {}.", figure.caption, capital(caption));
        }
    }
    figures
}

/// Gives each figure an id of its own, for each has files of that name: `a/b` and `a-b` are alike as parts of one. The
/// first keeps its id, the next ones have a number.
fn tell_apart(figures: &mut [Figure]) {
    let mut taken: BTreeSet<String> = figures.iter().map(|figure| figure.id.clone()).collect();
    let mut met = BTreeSet::new();
    for figure in figures {
        if met.insert(figure.id.clone()) {
            continue;
        }
        let mut number = 2;
        while !taken.insert(format!("{}-{number}", figure.id)) {
            number += 1;
        }
        figure.id = format!("{}-{number}", figure.id);
    }
}

/// Where a mark's cell stands, its value and its interval.
pub(super) type Mark = (CellState, Option<f64>, Option<(f64, f64)>);

/// Composes the figures of one experiment.
pub(super) struct Composer<'a> {
    pub(super) experiment: &'a Experiment,
    pub(super) results: &'a Results,
}

/// Okabe and Ito's palette (2008), black and yellow left out, in an order in which neighbours differ in lightness.
const STYLES: [((u8, u8, u8), Marker); 6] = [
    ((0x00, 0x72, 0xB2), Marker::Circle),
    ((0xD5, 0x5E, 0x00), Marker::Square),
    ((0x00, 0x9E, 0x73), Marker::Triangle),
    ((0xCC, 0x79, 0xA7), Marker::Diamond),
    ((0xE6, 0x9F, 0x00), Marker::Wedge),
    ((0x56, 0xB4, 0xE9), Marker::Bar),
];

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

/// A name as part of a file's name.
pub(super) fn slug(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() || c == '.' { c } else { '-' }).collect();
    plain.to_lowercase()
}

/// Billions of parameters, as short as they can be said.
pub(super) fn billions(parameters: u64) -> String {
    let billions = parameters as f64 / 1e9;
    let text = match billions {
        b if b >= 9.95 => format!("{b:.0}"),
        b if b >= 0.995 => format!("{b:.1}"),
        b if b >= 0.01 => format!("{b:.2}"),
        b => format!("{b:.4}"),
    };
    if text.contains('.') { text.trim_end_matches('0').trim_end_matches('.').to_owned() } else { text }
}

impl Composer<'_> {
    /// A recipe's look is the same in every figure.
    pub(super) fn style(&self, recipe: &str) -> Style {
        let grey = Style { colour: (0x8C, 0x8C, 0x8C), marker: Marker::Bar, dashed: true };
        if recipe == UNTUNED {
            return grey;
        }
        let known = ["monolingual", "multilingual", "english", "downsampled"];
        let own = self.experiment.recipes.iter().filter(|own| !known.contains(&own.name.as_str()));
        let place = known
            .iter()
            .position(|&name| name == recipe)
            .or_else(|| own.clone().position(|own| own.name == recipe).map(|place| known.len() + place));
        let Some(place) = place else {
            // An adapter or an endpoint.
            return Style { colour: (0x4D, 0x4D, 0x4D), marker: Marker::Diamond, dashed: true };
        };
        let (colour, marker) = STYLES[place % STYLES.len()];
        // Past six recipes colours come again, with dashes.
        Style { colour, marker, dashed: place >= STYLES.len() }
    }

    /// The legend of the recipes that a figure names.
    pub(super) fn legend(&self, names: &Names) -> Vec<Key> {
        let key = |name: &String| Key { name: name.clone(), style: self.style(name) };
        names.0.iter().map(key).collect()
    }

    /// The greatest score a language can have.
    pub(super) fn greatest(&self, languages: &[&Language]) -> f64 {
        let prompts = languages
            .iter()
            .filter_map(|language| self.experiment.prompts.get(&language.code))
            .max()
            .copied()
            .unwrap_or(1);
        prompts as f64 * self.experiment.rating_range[1]
    }

    /// Methods with at least one line.
    pub(super) fn methods(&self) -> impl Iterator<Item = &str> {
        let there = |method: &&String| {
            self.results.lines.iter().any(|line| line.method.as_deref() == Some(method.as_str()))
        };
        self.experiment.methods.iter().filter(there).map(String::as_str)
    }

    pub(super) fn languages(&self, seen: bool) -> Vec<&Language> {
        self.experiment.languages.iter().filter(|language| language.seen == seen).collect()
    }

    pub(super) fn family_names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for base in &self.experiment.base_models {
            if !names.contains(&base.family.as_str()) {
                names.push(base.family.as_str());
            }
        }
        names
    }

    pub(super) fn of_family(&self, family: &str) -> Vec<&BaseModel> {
        let mut models: Vec<&BaseModel> =
            self.experiment.base_models.iter().filter(|base| base.family == family).collect();
        models.sort_by_key(|base| base.parameters);
        models
    }

    /// Lines of a base model that stand in a figure of a method: the untuned one first, then the recipes.
    pub(super) fn lines_of<'s>(&'s self, base: &'s str, method: &'s str) -> impl Iterator<Item = &'s Line> {
        self.results.lines.iter().filter(move |line| {
            line.base_model.as_deref() == Some(base)
                && match line.kind {
                    SystemKind::Base | SystemKind::Adapter => true,
                    SystemKind::Tuned => line.method.as_deref() == Some(method),
                    SystemKind::Endpoint => false,
                }
        })
    }

    pub(super) fn endpoints(&self) -> impl Iterator<Item = &Line> {
        self.results.lines.iter().filter(|line| line.kind == SystemKind::Endpoint)
    }

    /// A bar of a line.
    pub(super) fn bar(&self, line: &Line, mark: Mark, source: Source) -> Bar {
        let (state, value, interval) = mark;
        let style = self.style(&line.recipe);
        Bar { name: line.recipe.clone(), style, value, interval, state, source: Some(source) }
    }

    /// Adds a point to the series of a recipe, which begins with its first.
    pub(super) fn add(&self, series: &mut Vec<Series>, recipe: &str, joined: bool, point: Point) {
        if let Some(series) = series.iter_mut().find(|series| series.name == recipe) {
            series.points.push(point);
            return;
        }
        let style = self.style(recipe);
        series.push(Series { name: recipe.to_owned(), style, joined, marked: true, points: vec![point] });
    }
}

/// The recipes that a figure names, in the order in which they come up.
#[derive(Default)]
pub(super) struct Names(Vec<String>);

impl Names {
    /// Takes a name up, once.
    pub(super) fn note(&mut self, name: &str) {
        if !self.0.iter().any(|known| known == name) {
            self.0.push(name.to_owned());
        }
    }
}

/// A cell's mark.
pub(super) fn cell_mark(cell: Option<&Cell>) -> Mark {
    cell.map_or((CellState::Absent, None, None), |cell| {
        (cell.state, cell.value(), cell.gated.and_then(|gated| gated.interval()))
    })
}

/// Where a line's seen languages stand together, if it has a mean over them.
pub(super) fn seen_state(line: &Line, there: bool) -> CellState {
    let all = |state: CellState| line.cells.iter().filter(|cell| cell.seen).all(|cell| cell.state == state);
    if all(CellState::Absent) {
        CellState::Absent
    } else if !there {
        CellState::Empty
    } else if all(CellState::Complete) {
        CellState::Complete
    } else {
        CellState::Partial
    }
}

/// How many panels of `count` stand in a row, and their size: as few gaps in the last row as can be.
pub(super) fn row_of_panels(count: usize) -> (usize, (u32, u32)) {
    match count {
        0..=3 | 5 | 6 | 9 => (count.clamp(1, 3), (256, 200)),
        _ => (4, (192, 200)),
    }
}

/// A language's name, with its own name where that differs.
pub(super) fn language_title(language: &Language) -> String {
    match &language.native_name {
        Some(native) if *native != language.name => format!("{} · {native}", language.name),
        _ => language.name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_alike_as_files_are_told_apart() {
        let figure = |family: &str| Figure {
            id: format!("scores-{}", slug(family)),
            title: String::new(),
            caption: String::new(),
            columns: 1,
            panel_size: (1, 1),
            legend: Vec::new(),
            panels: Vec::new(),
        };
        let mut figures: Vec<Figure> = ["a/b", "a-b", "a-b-2", "A b"].map(figure).into_iter().collect();
        tell_apart(&mut figures);
        let ids: Vec<&str> = figures.iter().map(|figure| figure.id.as_str()).collect();
        assert_eq!(ids, ["scores-a-b", "scores-a-b-3", "scores-a-b-2", "scores-a-b-4"]);
    }
}
