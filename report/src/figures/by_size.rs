//! Lines over the sizes of a family: the paper's figures 1, 2 and 7 (seen languages), 3 (unseen ones) and 4 (what the
//! gate takes).

use super::compose::{Composer, MARKS, Mark, Names, billions, cell_mark, language_title, seen_state, slug};
use super::plot::{Axis, Bars, Figure, Group, Lines, Panel, Plot, Point, Series};
use crate::records::{BaseModel, Language, SystemKind};
use crate::results::{CellState, Line, Source};

impl Composer<'_> {
    /// A panel a seen language; a figure a method and family.
    pub(super) fn scores_by_size(&self) -> Vec<Figure> {
        let languages = self.languages(true);
        let mut figures = Vec::new();
        for method in self.methods() {
            for family in self.sized_families() {
                let mut names = Names::default();
                let panels = languages
                    .iter()
                    .map(|language| {
                        self.size_panel(language_title(language), family, method, language, &mut names)
                    })
                    .collect();
                figures.push(Figure {
                    id: format!("scores-{}-{}", slug(method), slug(family)),
                    title: format!("Score against model size: {family}, {method}"),
                    caption: format!(
                        "Gated total in each seen language against the base model's size, on a logarithmic scale. {MARKS}"
                    ),
                    columns: 3,
                    panel_size: (256, 210),
                    legend: self.legend(&names),
                    panels,
                });
            }
        }
        figures
    }

    /// A panel a method and unseen language; a figure a family.
    pub(super) fn unseen(&self) -> Vec<Figure> {
        let languages = self.languages(false);
        if languages.is_empty() {
            return Vec::new();
        }
        self.sized_families()
            .into_iter()
            .map(|family| {
                let mut names = Names::default();
                let mut panels = Vec::new();
                for method in self.methods() {
                    for language in &languages {
                        let title = format!("{method}: {}", language_title(language));
                        panels.push(self.size_panel(title, family, method, language, &mut names));
                    }
                }
                Figure {
                    id: format!("unseen-{}", slug(family)),
                    title: format!("Unseen languages: {family}"),
                    caption: format!(
                        "Gated total in languages of which no instruction data was seen, against the base model's size, \
                         on a logarithmic scale. {MARKS}"
                    ),
                    columns: languages.len().clamp(1, 3),
                    panel_size: (if languages.len() > 2 { 256 } else { 300 }, 210),
                    legend: self.legend(&names),
                    panels,
                }
            })
            .collect()
    }

    /// What the gate takes, a panel a method and family: lines over sizes, and bars for the families of one size.
    pub(super) fn gate(&self) -> Vec<Figure> {
        let highest = self
            .results
            .lines
            .iter()
            .filter_map(|line| line.seen_dropped)
            .map(|dropped| dropped.high.unwrap_or(dropped.value));
        let y = Axis::from_zero(highest.fold(1.0, f64::max) * 1.08);
        let (families, alone) = (self.sized_families(), self.alone_in_family());
        let mut names = Names::default();
        let mut panels = Vec::new();
        for method in self.methods() {
            for family in &families {
                let mut panel =
                    self.panel_of_sizes(format!("{method}: {family}"), family, y.clone(), |base| {
                        self.marks(base, method, "", &mut names, dropped_mark)
                    });
                panel.y_title = "score lost".to_owned();
                panels.push(panel);
            }
            if !alone.is_empty() {
                panels.push(self.gate_bars(method, &alone, &y, &mut names));
            }
        }
        if panels.is_empty() {
            return Vec::new();
        }
        vec![Figure {
            id: "gate".to_owned(),
            title: "Score lost to the language gate".to_owned(),
            caption: format!(
                "Raw total minus gated total, the mean over the seen languages: what a judge would have given to \
                 responses in another language than the prompt's. {MARKS}"
            ),
            columns: (families.len() + usize::from(!alone.is_empty())).clamp(2, 3),
            panel_size: (if families.len() > 1 { 256 } else { 300 }, 210),
            legend: self.legend(&names),
            panels,
        }]
    }

    fn gate_bars(&self, method: &str, models: &[&BaseModel], y: &Axis, names: &mut Names) -> Panel {
        let label = |base: &BaseModel| if models.len() > 1 { base.family.clone() } else { String::new() };
        let groups = models
            .iter()
            .map(|base| {
                let bar = |line: &Line| {
                    names.note(&line.recipe);
                    self.bar(line, dropped_mark(line, ""), line.source(method, ""))
                };
                Group { label: label(base), bars: self.lines_of(&base.name, method).map(bar).collect() }
            })
            .collect();
        let title = match models {
            [one] => format!("{method}: {}", one.name),
            _ => format!("{method}: families of one size"),
        };
        let plot = Plot::Bars(Bars { y: y.clone(), groups });
        Panel { title, x_title: String::new(), y_title: "score lost".to_owned(), plot }
    }

    /// Families with at least two sizes: those that make a line.
    fn sized_families(&self) -> Vec<&str> {
        self.family_names().into_iter().filter(|family| self.of_family(family).len() > 1).collect()
    }

    /// Base models whose family has no other.
    fn alone_in_family(&self) -> Vec<&BaseModel> {
        let alone = |base: &&BaseModel| self.of_family(&base.family).len() == 1;
        self.experiment.base_models.iter().filter(alone).collect()
    }

    fn size_panel(
        &self,
        title: String,
        family: &str,
        method: &str,
        language: &Language,
        names: &mut Names,
    ) -> Panel {
        let y = Axis::from_zero(self.greatest(&[language]));
        let mark = |line: &Line, language: &str| cell_mark(line.cell(language));
        self.panel_of_sizes(title, family, y, |base| self.marks(base, method, &language.code, names, mark))
    }

    /// The marks of a base model's lines in a panel; what was never planned has none.
    fn marks(
        &self,
        base: &BaseModel,
        method: &str,
        language: &str,
        names: &mut Names,
        mark: fn(&Line, &str) -> Mark,
    ) -> Vec<(Mark, Source)> {
        let mut marks = Vec::new();
        for line in self.lines_of(&base.name, method).filter(|line| line.kind != SystemKind::Adapter) {
            let mark = mark(line, language);
            if mark.0 != CellState::Absent {
                names.note(&line.recipe);
                marks.push((mark, line.source(method, language)));
            }
        }
        marks
    }

    /// A panel with a series a recipe over the sizes of a family.
    fn panel_of_sizes(
        &self,
        title: String,
        family: &str,
        y: Axis,
        mut marks: impl FnMut(&BaseModel) -> Vec<(Mark, Source)>,
    ) -> Panel {
        let models = self.of_family(family);
        let mut series: Vec<Series> = Vec::new();
        for base in &models {
            for ((state, y, interval), source) in marks(base) {
                let recipe = source.recipe.clone();
                let partial = state == CellState::Partial;
                let point = Point { x: log_billions(base), y, interval, partial, source: Some(source) };
                self.add(&mut series, &recipe, true, point);
            }
        }
        Panel {
            title,
            x_title: "billion parameters".to_owned(),
            y_title: "score".to_owned(),
            plot: Plot::Lines(Lines { x: size_axis(&models), y, series }),
        }
    }
}

/// What the gate takes from a line, the mean over the seen languages.
fn dropped_mark(line: &Line, _language: &str) -> Mark {
    let state = seen_state(line, line.seen_dropped.is_some());
    let interval = line.seen_dropped.and_then(|dropped| dropped.interval());
    (state, line.seen_dropped.map(|dropped| dropped.value), interval)
}

/// The decimal logarithm of the billions of parameters.
fn log_billions(base: &BaseModel) -> f64 {
    (base.parameters as f64 / 1e9).log10()
}

fn size_axis(models: &[&BaseModel]) -> Axis {
    let low = models.first().map_or(0.0, |base| log_billions(base));
    let high = models.last().map_or(1.0, |base| log_billions(base));
    let room = ((high - low) * 0.08).max(0.05);
    // The largest size first, then all that leave room for its label.
    let mut ticks: Vec<(f64, String)> = Vec::new();
    for base in models.iter().rev() {
        let at = log_billions(base);
        if ticks.last().is_none_or(|(last, _)| last - at > (high - low + 2.0 * room) * 0.115) {
            ticks.push((at, billions(base.parameters)));
        }
    }
    ticks.reverse();
    Axis { low: low - room, high: high + room, ticks }
}
