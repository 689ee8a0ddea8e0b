//! Which figures an experiment has, and what stands in them.

use std::collections::BTreeMap;

use super::plot::{
    Axis, Bar, Bars, Figure, Group, Heat, Key, Lines, Marker, Panel, Plot, Point, Series, Style,
};
use crate::read::Records;
use crate::records::{BaseModel, Experiment, Language, ScoreStatus, SystemKind};
use crate::results::{Cell, CellState, Line, Results, UNTUNED};

/// What every figure with intervals says about them.
const MARKS: &str = "Vertical lines are 95 % bootstrap intervals over prompts and seeds. A hollow mark leaves something \
                     out (an unrated response, a failed or missing run); a cross is a result with nothing to show; \
                     what was never planned is blank.";

/// Every figure of an experiment, in the order of the page.
pub fn figures(records: &Records, results: &Results) -> Vec<Figure> {
    let composer = Composer { experiment: &records.experiment, results };
    let mut figures = composer.recipes_at_one_size();
    figures.extend(composer.scores_by_size());
    figures.extend(composer.unseen());
    figures.extend(composer.families());
    figures.extend(composer.gate());
    figures.extend(composer.cost());
    figures.extend(composer.learning(records));
    figures.extend(composer.confusion(records));
    figures.extend(composer.fertility());
    let caption = records.experiment.judge.caption();
    for figure in &mut figures {
        if let Some(caption) = &caption
            && !figure.id.starts_with("learning")
            && !figure.id.starts_with("confusion")
        {
            figure.caption = format!("{} {}.", figure.caption, capital(caption));
        }
    }
    figures
}

/// Where a mark's cell stands, its value and its interval.
type Mark = (CellState, Option<f64>, Option<(f64, f64)>);

struct Composer<'a> {
    experiment: &'a Experiment,
    results: &'a Results,
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
fn slug(name: &str) -> String {
    let plain: String = name.chars().map(|c| if c.is_alphanumeric() || c == '.' { c } else { '-' }).collect();
    plain.to_lowercase()
}

/// Billions of parameters, as short as they can be said.
pub(crate) fn billions(parameters: u64) -> String {
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
    fn style(&self, recipe: &str) -> Style {
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

    fn key(&self, recipe: &str) -> Key {
        Key { name: recipe.to_owned(), style: self.style(recipe) }
    }

    /// The greatest score a language can have.
    fn greatest(&self, languages: &[&Language]) -> f64 {
        let prompts = languages
            .iter()
            .filter_map(|language| self.experiment.prompts.get(&language.code))
            .max()
            .copied()
            .unwrap_or(1);
        prompts as f64 * self.experiment.rating_range[1]
    }

    fn languages(&self, seen: bool) -> Vec<&Language> {
        self.experiment.languages.iter().filter(|language| language.seen == seen).collect()
    }

    fn families(&self) -> Vec<Figure> {
        let families = self.family_names();
        if families.len() < 2 {
            return Vec::new();
        }
        let chosen = self.nearest_in_size(&families);
        let languages: Vec<&Language> = self.experiment.languages.iter().collect();
        let greatest = self.greatest(&languages);
        let sizes: Vec<String> = chosen
            .iter()
            .map(|base| format!("{} ({} billion parameters)", base.name, billions(base.parameters)))
            .collect();
        let methods = self
            .experiment
            .methods
            .iter()
            .filter(|method| self.results.lines.iter().any(|line| line.method.as_ref() == Some(*method)));
        methods
            .map(|method| {
                let mut names = Vec::new();
                let panels = languages
                    .iter()
                    .map(|language| Panel {
                        title: language_title(language),
                        x_title: String::new(),
                        y_title: "score".to_owned(),
                        plot: Plot::Bars(Bars {
                            y: Axis::from_zero(greatest),
                            groups: chosen
                                .iter()
                                .map(|base| Group {
                                    label: base.family.clone(),
                                    bars: self.bars(&base.name, method, &language.code, &mut names),
                                })
                                .collect(),
                        }),
                    })
                    .collect();
                Figure {
                    id: format!("families-{}", slug(method)),
                    title: format!("Families of base models, {method}"),
                    caption: format!(
                        "Gated total of each recipe, by family of base models, at their nearest sizes: {}. {MARKS}",
                        sizes.join(", ")
                    ),
                    columns: 2,
                    panel_size: (384, 190),
                    legend: names.iter().map(|name| self.key(name)).collect(),
                    panels,
                }
            })
            .collect()
    }

    fn family_names(&self) -> Vec<&str> {
        let mut names = Vec::new();
        for base in &self.experiment.base_models {
            if !names.contains(&base.family.as_str()) {
                names.push(base.family.as_str());
            }
        }
        names
    }

    fn of_family(&self, family: &str) -> Vec<&BaseModel> {
        let mut models: Vec<&BaseModel> =
            self.experiment.base_models.iter().filter(|base| base.family == family).collect();
        models.sort_by_key(|base| base.parameters);
        models
    }

    /// The base model of each family that lies nearest to one size; the size is the one that all families come
    /// nearest to.
    fn nearest_in_size(&self, families: &[&str]) -> Vec<&BaseModel> {
        let distance = |left: u64, right: u64| (left as f64 / right as f64).ln().abs();
        let nearest = |size: u64| -> Vec<&BaseModel> {
            families
                .iter()
                .filter_map(|family| {
                    self.of_family(family).into_iter().min_by(|left, right| {
                        distance(left.parameters, size).total_cmp(&distance(right.parameters, size))
                    })
                })
                .collect()
        };
        let sum = |size: u64| nearest(size).iter().map(|base| distance(base.parameters, size)).sum::<f64>();
        self.experiment
            .base_models
            .iter()
            .map(|base| base.parameters)
            .min_by(|&left, &right| sum(left).total_cmp(&sum(right)))
            .map(nearest)
            .unwrap_or_default()
    }

    /// Lines of a base model that stand in a figure of a method: the untuned one first, then the recipes.
    fn lines_of<'s>(&'s self, base: &'s str, method: &'s str) -> impl Iterator<Item = &'s Line> {
        self.results.lines.iter().filter(move |line| {
            line.base_model.as_deref() == Some(base)
                && match line.kind {
                    SystemKind::Base | SystemKind::Adapter => true,
                    SystemKind::Tuned => line.method.as_deref() == Some(method),
                    SystemKind::Endpoint => false,
                }
        })
    }

    fn endpoints(&self) -> impl Iterator<Item = &Line> {
        self.results.lines.iter().filter(|line| line.kind == SystemKind::Endpoint)
    }

    fn bars(&self, base: &str, method: &str, language: &str, names: &mut Vec<String>) -> Vec<Bar> {
        self.lines_of(base, method)
            .filter_map(|line| {
                if !names.contains(&line.recipe) {
                    names.push(line.recipe.clone());
                }
                line.cell(language).map(|cell| self.bar(line, cell))
            })
            .collect()
    }

    fn bar(&self, line: &Line, cell: &Cell) -> Bar {
        Bar {
            name: line.recipe.clone(),
            style: self.style(&line.recipe),
            value: cell.value(),
            interval: cell.gated.map(|gated| (gated.low, gated.high)),
            state: cell.state,
        }
    }

    /// Bars by recipe where sizes cannot make a line, unless there are so many base models that their families are
    /// compared instead.
    fn recipes_at_one_size(&self) -> Vec<Figure> {
        let languages: Vec<&Language> = self.experiment.languages.iter().collect();
        let greatest = self.greatest(&languages);
        let mut figures = Vec::new();
        if self.experiment.base_models.len() > 3 {
            return figures;
        }
        for base in &self.experiment.base_models {
            if self.of_family(&base.family).len() > 1 {
                continue;
            }
            for method in &self.experiment.methods {
                let mut names = Vec::new();
                let panels: Vec<Panel> = languages
                    .iter()
                    .map(|language| {
                        let mut bars = self.bars(&base.name, method, &language.code, &mut names);
                        for line in self.endpoints() {
                            if !names.contains(&line.recipe) {
                                names.push(line.recipe.clone());
                            }
                            bars.extend(line.cell(&language.code).map(|cell| self.bar(line, cell)));
                        }
                        Panel {
                            title: language_title(language),
                            x_title: String::new(),
                            y_title: "score".to_owned(),
                            plot: Plot::Bars(Bars {
                                y: Axis::from_zero(greatest),
                                groups: vec![Group { label: String::new(), bars }],
                            }),
                        }
                    })
                    .collect();
                figures.push(Figure {
                    id: format!("recipes-{}-{}", slug(method), slug(&base.name)),
                    title: format!("Recipes by language: {}, {method}", base.name),
                    caption: format!(
                        "Gated total of each recipe, of at most {greatest}, in each language. Vertical lines are 95 % \
                         bootstrap intervals over prompts and seeds. A pale bar leaves something out (an unrated \
                         response, a failed or missing run); a cross is a result with nothing to show; what was never \
                         planned is blank."
                    ),
                    columns: 4.min(languages.len()),
                    panel_size: (if languages.len() < 4 { 250 } else { 192 }, 200),
                    legend: names.iter().map(|name| self.key(name)).collect(),
                    panels,
                });
            }
        }
        figures
    }

    /// Families with at least two sizes: those that make a line.
    fn sized_families(&self) -> Vec<&str> {
        self.family_names().into_iter().filter(|family| self.of_family(family).len() > 1).collect()
    }

    fn size_axis(&self, models: &[&BaseModel]) -> Axis {
        let place = |base: &BaseModel| (base.parameters as f64 / 1e9).log10();
        let (low, high) = (models.first().map_or(0.0, |b| place(b)), models.last().map_or(1.0, |b| place(b)));
        let room = ((high - low) * 0.08).max(0.05);
        // The largest size first, then all that leave room for its label.
        let mut ticks: Vec<(f64, String)> = Vec::new();
        for base in models.iter().rev() {
            let at = place(base);
            if ticks.last().is_none_or(|(last, _)| last - at > (high - low + 2.0 * room) * 0.115) {
                ticks.push((at, billions(base.parameters)));
            }
        }
        ticks.reverse();
        Axis { low: low - room, high: high + room, ticks }
    }

    /// A series a recipe, over the sizes of a family.
    fn by_size(
        &self,
        models: &[&BaseModel],
        method: &str,
        names: &mut Vec<String>,
        value: &dyn Fn(&Line) -> Mark,
    ) -> Vec<Series> {
        let mut series: Vec<Series> = Vec::new();
        for base in models {
            for line in self.lines_of(&base.name, method).filter(|line| line.kind != SystemKind::Adapter) {
                let (state, y, interval) = value(line);
                if state == CellState::Absent {
                    continue;
                }
                if !names.contains(&line.recipe) {
                    names.push(line.recipe.clone());
                }
                let point = Point {
                    x: (base.parameters as f64 / 1e9).log10(),
                    y,
                    interval,
                    partial: state == CellState::Partial,
                };
                match series.iter_mut().find(|series| series.name == line.recipe) {
                    Some(series) => series.points.push(point),
                    None => series.push(Series {
                        name: line.recipe.clone(),
                        style: self.style(&line.recipe),
                        joined: true,
                        marked: true,
                        points: vec![point],
                    }),
                }
            }
        }
        series
    }

    fn size_panel(
        &self,
        title: String,
        models: &[&BaseModel],
        method: &str,
        language: &Language,
        names: &mut Vec<String>,
    ) -> Panel {
        let series = self.by_size(models, method, names, &|line| match line.cell(&language.code) {
            Some(cell) => (cell.state, cell.value(), cell.gated.map(|gated| (gated.low, gated.high))),
            None => (CellState::Absent, None, None),
        });
        Panel {
            title,
            x_title: "billion parameters".to_owned(),
            y_title: "score".to_owned(),
            plot: Plot::Lines(Lines {
                x: self.size_axis(models),
                y: Axis::from_zero(self.greatest(&[language])),
                series,
            }),
        }
    }

    fn scores_by_size(&self) -> Vec<Figure> {
        let languages = self.languages(true);
        let mut figures = Vec::new();
        for method in &self.experiment.methods {
            for family in self.sized_families() {
                let models = self.of_family(family);
                let mut names = Vec::new();
                let panels: Vec<Panel> = languages
                    .iter()
                    .map(|language| {
                        self.size_panel(language_title(language), &models, method, language, &mut names)
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
                    legend: names.iter().map(|name| self.key(name)).collect(),
                    panels,
                });
            }
        }
        figures
    }

    fn unseen(&self) -> Vec<Figure> {
        let languages = self.languages(false);
        if languages.is_empty() {
            return Vec::new();
        }
        self.sized_families()
            .into_iter()
            .map(|family| {
                let models = self.of_family(family);
                let mut names = Vec::new();
                let panels: Vec<Panel> = self
                    .experiment
                    .methods
                    .iter()
                    .flat_map(|method| languages.iter().map(move |language| (method, language)))
                    .map(|(method, language)| {
                        let title = format!("{method}: {}", language_title(language));
                        self.size_panel(title, &models, method, language, &mut names)
                    })
                    .collect();
                Figure {
                    id: format!("unseen-{}", slug(family)),
                    title: format!("Unseen languages: {family}"),
                    caption: format!(
                        "Gated total in languages of which no instruction data was seen, against the base model's size, \
                         on a logarithmic scale. {MARKS}"
                    ),
                    columns: languages.len().clamp(1, 3),
                    panel_size: (if languages.len() > 2 { 256 } else { 300 }, 210),
                    legend: names.iter().map(|name| self.key(name)).collect(),
                    panels,
                }
            })
            .collect()
    }

    /// What the gate takes: lines over sizes, or bars where there is one size.
    fn gate(&self) -> Vec<Figure> {
        let families = self.sized_families();
        let dropped = |line: &Line| {
            let cells = line.cells.iter().filter(|cell| cell.seen);
            let state = if cells.clone().all(|cell| cell.state == CellState::Absent) {
                CellState::Absent
            } else if line.seen_dropped.is_none() {
                CellState::Empty
            } else if cells.clone().all(|cell| cell.state == CellState::Complete) {
                CellState::Complete
            } else {
                CellState::Partial
            };
            let interval = line.seen_dropped.map(|dropped| (dropped.low, dropped.high));
            (state, line.seen_dropped.map(|dropped| dropped.value), interval)
        };
        let highest = self
            .results
            .lines
            .iter()
            .filter_map(|line| line.seen_dropped.map(|dropped| dropped.high))
            .fold(1.0, f64::max);
        let y = Axis::from_zero(highest * 1.08);
        let mut names = Vec::new();
        let mut panels = Vec::new();
        for method in &self.experiment.methods {
            for family in &families {
                let models = self.of_family(family);
                panels.push(Panel {
                    title: format!("{method}: {family}"),
                    x_title: "billion parameters".to_owned(),
                    y_title: "score lost".to_owned(),
                    plot: Plot::Lines(Lines {
                        x: self.size_axis(&models),
                        y: y.clone(),
                        series: self.by_size(&models, method, &mut names, &dropped),
                    }),
                });
            }
            if !families.is_empty() {
                continue;
            }
            for base in &self.experiment.base_models {
                let bars = self
                    .lines_of(&base.name, method)
                    .map(|line| {
                        if !names.contains(&line.recipe) {
                            names.push(line.recipe.clone());
                        }
                        let (state, value, interval) = dropped(line);
                        Bar {
                            name: line.recipe.clone(),
                            style: self.style(&line.recipe),
                            value,
                            interval,
                            state,
                        }
                    })
                    .collect();
                panels.push(Panel {
                    title: format!("{method}: {}", base.name),
                    x_title: String::new(),
                    y_title: "score lost".to_owned(),
                    plot: Plot::Bars(Bars {
                        y: y.clone(),
                        groups: vec![Group { label: String::new(), bars }],
                    }),
                });
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
            columns: families.len().clamp(2, 3),
            panel_size: (300, 210),
            legend: names.iter().map(|name| self.key(name)).collect(),
            panels,
        }]
    }

    fn cost(&self) -> Vec<Figure> {
        let tuned = |line: &&Line| line.kind == SystemKind::Tuned && line.cost.is_some();
        let lines: Vec<&Line> = self.results.lines.iter().filter(tuned).collect();
        if lines.is_empty() {
            return Vec::new();
        }
        // Between base models C is not the same amount of work: operations are.
        let by_flops = self.experiment.base_models.len() > 1
            && lines.iter().all(|line| line.cost.as_ref().is_some_and(|cost| cost.flops > 0.0));
        let place = |line: &Line| {
            line.cost.as_ref().map_or(0.0, |cost| if by_flops { cost.flops.log10() } else { cost.in_c })
        };
        let x = if by_flops {
            power_axis(lines.iter().map(|line| place(line)))
        } else {
            let highest = lines.iter().map(|line| place(line)).fold(0.0, f64::max);
            Axis::from_zero(highest * 1.08)
        };
        let greatest = self.greatest(&self.languages(true));
        let mut names: Vec<String> = Vec::new();
        let panels = self
            .experiment
            .methods
            .iter()
            .map(|method| {
                let mut series: Vec<Series> = Vec::new();
                for line in lines.iter().filter(|line| line.method.as_ref() == Some(method)) {
                    if !names.contains(&line.recipe) {
                        names.push(line.recipe.clone());
                    }
                    let whole = line
                        .cells
                        .iter()
                        .filter(|cell| cell.seen)
                        .all(|cell| cell.state == CellState::Complete);
                    let point = Point {
                        x: place(line),
                        y: line.seen_mean.map(|mean| mean.value),
                        interval: line.seen_mean.map(|mean| (mean.low, mean.high)),
                        partial: !whole,
                    };
                    match series.iter_mut().find(|series| series.name == line.recipe) {
                        Some(series) => series.points.push(point),
                        None => series.push(Series {
                            name: line.recipe.clone(),
                            style: self.style(&line.recipe),
                            joined: false,
                            marked: true,
                            points: vec![point],
                        }),
                    }
                }
                Panel {
                    title: method.clone(),
                    x_title: if by_flops {
                        "floating-point operations"
                    } else {
                        "cost in C, one monolingual run"
                    }
                    .to_owned(),
                    y_title: "mean score, seen languages".to_owned(),
                    plot: Plot::Lines(Lines { x: x.clone(), y: Axis::from_zero(greatest), series }),
                }
            })
            .collect();
        let scale = if by_flops { ", on a logarithmic scale: a mark a base model and recipe" } else { "" };
        vec![Figure {
            id: "cost".to_owned(),
            title: "Score against cost".to_owned(),
            caption: format!(
                "Mean gated total over the seen languages against what the tunings of a recipe took together{scale}. {MARKS}"
            ),
            columns: 2,
            panel_size: (384, 260),
            legend: names.iter().map(|name| self.key(name)).collect(),
            panels,
        }]
    }

    /// Learning curves of each method's largest base model that has them.
    fn learning(&self, records: &Records) -> Vec<Figure> {
        let mut figures = Vec::new();
        for method in &self.experiment.methods {
            let with_curves = |base: &&BaseModel| {
                records.systems.iter().any(|system| {
                    system.base_model.as_ref() == Some(&base.name)
                        && system.method.as_ref() == Some(method)
                        && !system.learning_curve.is_empty()
                })
            };
            let base =
                self.experiment.base_models.iter().filter(with_curves).max_by_key(|base| base.parameters);
            if let Some(base) = base {
                figures.extend(self.learning_of(records, method, base));
            }
        }
        figures
    }

    fn learning_of(&self, records: &Records, method: &str, base: &BaseModel) -> Option<Figure> {
        let mut names: Vec<String> = Vec::new();
        let mut panels = Vec::new();
        for language in self.languages(true) {
            let mut series = Vec::new();
            for line in self.lines_of(&base.name, method).filter(|line| line.kind == SystemKind::Tuned) {
                let Some(cell) = line.cell(&language.code) else { continue };
                for run in &cell.runs {
                    let Some(system) = records.systems.iter().find(|system| system.id == run.system) else {
                        continue;
                    };
                    let alone = system.languages.len() == 1;
                    let points: Vec<Point> = system
                        .learning_curve
                        .iter()
                        .filter_map(|point| {
                            let own = point.validation_loss_by_language.get(&language.code).copied();
                            let loss = own.or(point
                                .validation_loss
                                .filter(|_| alone && system.languages.first() == Some(&language.code)))?;
                            Some(Point {
                                x: point.update as f64,
                                y: Some(loss),
                                interval: None,
                                partial: false,
                            })
                        })
                        .collect();
                    if points.is_empty() {
                        continue;
                    }
                    if !names.contains(&line.recipe) {
                        names.push(line.recipe.clone());
                    }
                    let mut style = self.style(&line.recipe);
                    style.dashed = false;
                    let best: Vec<Point> = points
                        .iter()
                        .filter(|point| system.best_update.is_some_and(|best| best as f64 == point.x))
                        .cloned()
                        .collect();
                    let name = line.recipe.clone();
                    series.push(Series { name: name.clone(), style, joined: true, marked: false, points });
                    series.push(Series { name, style, joined: false, marked: true, points: best });
                }
            }
            if series.is_empty() {
                continue;
            }
            let all = || series.iter().flat_map(|series| &series.points);
            let highest = all().map(|point| point.x).fold(1.0, f64::max);
            let y = Axis::around(all().filter_map(|point| point.y));
            panels.push(Panel {
                title: language_title(language),
                x_title: "updates".to_owned(),
                y_title: "validation loss".to_owned(),
                plot: Plot::Lines(Lines { x: Axis::from_zero(highest * 1.04), y, series }),
            });
        }
        if panels.is_empty() {
            return None;
        }
        Some(Figure {
            id: format!("learning-{}", slug(method)),
            title: format!("Learning curves: {}, {method}", base.name),
            caption: "Validation loss (nats a supervised token) in each language against updates, a line a seed. The \
                      mark is the checkpoint that was kept. A recipe whose validation rows hold no such language has \
                      no line. Vertical axes differ between languages."
                .to_owned(),
            columns: 3.min(panels.len()),
            panel_size: (256, 210),
            legend: names.iter().map(|name| self.key(name)).collect(),
            panels,
        })
    }

    /// Which language responses are in, for each language of prompts.
    fn confusion(&self, records: &Records) -> Vec<Figure> {
        let codes: Vec<&str> =
            self.experiment.languages.iter().map(|language| language.code.as_str()).collect();
        // By system and language: what answers for monolingual in English does not in any other.
        let recipes = {
            let mut recipes: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
            for line in &self.results.lines {
                for cell in &line.cells {
                    for run in &cell.runs {
                        let key = (run.system.as_str(), cell.language.as_str());
                        recipes.entry(key).or_default().push(line.recipe.as_str());
                    }
                }
            }
            for names in recipes.values_mut() {
                names.sort_unstable();
                names.dedup();
            }
            recipes
        };
        // One count for each recipe, language of the prompt, and identified language; the last column is any other.
        let mut counts: BTreeMap<&str, Vec<Vec<usize>>> = BTreeMap::new();
        for score in &records.scores {
            if !matches!(score.status, ScoreStatus::Rated | ScoreStatus::Unrated) || score.gate.is_none() {
                continue;
            }
            let Some(row) = codes.iter().position(|code| *code == score.language) else { continue };
            // What passed the gate is in the prompt's language, whatever the identifier calls it (nb for no).
            let identified = if score.gate == Some(1) {
                Some(score.language.as_str())
            } else {
                score.identified.as_deref()
            };
            let column = codes.iter().position(|code| Some(*code) == identified).unwrap_or(codes.len());
            for recipe in recipes.get(&(score.system.as_str(), score.language.as_str())).into_iter().flatten()
            {
                let table =
                    counts.entry(recipe).or_insert_with(|| vec![vec![0; codes.len() + 1]; codes.len()]);
                table[row][column] += 1;
            }
        }
        let mut order: Vec<&str> = Vec::new();
        for line in &self.results.lines {
            if counts.contains_key(line.recipe.as_str()) && !order.contains(&line.recipe.as_str()) {
                order.push(&line.recipe);
            }
        }
        if order.is_empty() {
            return Vec::new();
        }
        let mut columns: Vec<String> = codes.iter().map(|code| (*code).to_owned()).collect();
        columns.push("other".to_owned());
        let panels: Vec<Panel> = order
            .into_iter()
            .map(|recipe| Panel {
                title: recipe.to_owned(),
                x_title: "language of the response".to_owned(),
                y_title: String::new(),
                plot: Plot::Heat(Heat {
                    rows: codes.iter().map(|code| (*code).to_owned()).collect(),
                    columns: columns.clone(),
                    values: counts[recipe]
                        .iter()
                        .map(|row| {
                            let sum: usize = row.iter().sum();
                            row.iter().map(|&count| (sum > 0).then(|| count as f64 / sum as f64)).collect()
                        })
                        .collect(),
                }),
            })
            .collect();
        let height = 66 + 22 * codes.len() as u32;
        vec![Figure {
            id: "confusion".to_owned(),
            title: "Language of prompts and of responses".to_owned(),
            caption: format!(
                "Of 100 gated responses to prompts in a row's language, how many {} found to be in a column's language, \
                 over all base models, methods and seeds. An empty cell is less than half a per cent; – is nothing \
                 planned.",
                self.experiment.gate.identifier
            ),
            columns: 2,
            panel_size: (384, height),
            legend: Vec::new(),
            panels,
        }]
    }

    fn fertility(&self) -> Vec<Figure> {
        let known: Vec<f64> =
            self.experiment.base_models.iter().flat_map(|base| base.fertility.values().copied()).collect();
        if known.is_empty() {
            return Vec::new();
        }
        let highest = known.iter().copied().fold(1.0, f64::max);
        let languages: Vec<&Language> = self.experiment.languages.iter().collect();
        let mut names: Vec<String> = Vec::new();
        let mut panels = Vec::new();
        for method in &self.experiment.methods {
            let mut series: Vec<Series> = Vec::new();
            for base in &self.experiment.base_models {
                for line in self.lines_of(&base.name, method).filter(|line| line.kind == SystemKind::Tuned) {
                    for cell in &line.cells {
                        let (Some(&x), Some(gated)) = (base.fertility.get(&cell.language), cell.gated) else {
                            continue;
                        };
                        if !names.contains(&line.recipe) {
                            names.push(line.recipe.clone());
                        }
                        let point = Point {
                            x,
                            y: Some(gated.value),
                            interval: None,
                            partial: cell.state == CellState::Partial,
                        };
                        match series.iter_mut().find(|series| series.name == line.recipe) {
                            Some(series) => series.points.push(point),
                            None => series.push(Series {
                                name: line.recipe.clone(),
                                style: self.style(&line.recipe),
                                joined: false,
                                marked: true,
                                points: vec![point],
                            }),
                        }
                    }
                }
            }
            panels.push(Panel {
                title: method.clone(),
                x_title: "tokens a word".to_owned(),
                y_title: "score".to_owned(),
                plot: Plot::Lines(Lines {
                    x: Axis::from_zero(highest * 1.06),
                    y: Axis::from_zero(self.greatest(&languages)),
                    series,
                }),
            });
        }
        vec![Figure {
            id: "fertility".to_owned(),
            title: "Fertility against score".to_owned(),
            caption: "Gated total against the tokenizer's tokens a word: a mark a base model, language and recipe. A \
                      hollow mark leaves something out."
                .to_owned(),
            columns: 2,
            panel_size: (384, 240),
            legend: names.iter().map(|name| self.key(name)).collect(),
            panels,
        }]
    }
}

/// A language's name, with its own name where that differs.
fn language_title(language: &Language) -> String {
    match &language.native_name {
        Some(native) if *native != language.name => format!("{} · {native}", language.name),
        _ => language.name.clone(),
    }
}

/// Powers of ten around logarithms.
fn power_axis(logarithms: impl Iterator<Item = f64>) -> Axis {
    let (low, high) = logarithms
        .filter(|value| value.is_finite())
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    let (low, high) = if low > high { (0.0, 1.0) } else { (low - 0.15, high + 0.15) };
    let step = (((high - low) / 6.0).ceil() as i32).max(1);
    let ticks = (low.ceil() as i32..=high.floor() as i32)
        .step_by(step as usize)
        .map(|power| (f64::from(power), format!("1e{power}")))
        .collect();
    Axis { low, high, ticks }
}
