//! Seeds and intervals: how far the seeds of one recipe lie apart.

use super::compose::{Composer, Names, language_title, row_of_panels, slug};
use super::plot::{Axis, Figure, Lines, Marker, Panel, Plot, Point, Series};
use crate::records::{BaseModel, Language, SystemKind};
use crate::results::{Cell, CellState, Line};

/// How far the seeds stand left of their mean, where recipes stand 1 apart.
const LEFT_OF_MEAN: f64 = 0.3;

impl Composer<'_> {
    /// A panel a language; a figure a method, of its largest base model that has several seeds.
    pub(super) fn seeds(&self) -> Vec<Figure> {
        self.methods()
            .filter_map(|method| {
                let several = |base: &&BaseModel| {
                    self.tuned(base, method).any(|line| line.cells.iter().any(|cell| cell.table.len() > 1))
                };
                let bases = self.experiment.base_models.iter().filter(several);
                Some(self.seeds_of(method, bases.max_by_key(|base| base.parameters)?))
            })
            .collect()
    }

    fn tuned<'s>(&'s self, base: &'s BaseModel, method: &'s str) -> impl Iterator<Item = &'s Line> {
        self.lines_of(&base.name, method).filter(|line| line.kind == SystemKind::Tuned)
    }

    fn seeds_of(&self, method: &str, base: &BaseModel) -> Figure {
        let mut names = Names::default();
        let languages = &self.experiment.languages;
        let (columns, panel_size) = row_of_panels(languages.len());
        let mut panels: Vec<Panel> =
            languages.iter().map(|language| self.seeds_panel(method, base, language, &mut names)).collect();
        share_vertical_axis(&mut panels);
        Figure {
            id: format!("seeds-{}", slug(method)),
            title: format!("Seeds: {}, {method}", base.name),
            caption: "Gated total of each seed (dots), and to their right the mean over seeds with its 95 % bootstrap \
                      interval over prompts and seeds. A hollow mark leaves something out; a cross is a seed whose run \
                      failed or is missing."
                .to_owned(),
            columns,
            panel_size,
            legend: self.legend(&names),
            panels,
        }
    }

    fn seeds_panel(&self, method: &str, base: &BaseModel, language: &Language, names: &mut Names) -> Panel {
        let mut series = Vec::new();
        let mut places = 0;
        for line in self.tuned(base, method) {
            let Some(cell) = line.cell(&language.code).filter(|cell| cell.state != CellState::Absent) else {
                continue;
            };
            names.note(&line.recipe);
            series.extend(self.seed_series(line, cell, f64::from(places), method));
            places += 1;
        }
        // What all panels share is known once all are there.
        let y = Axis::from_zero(1.0);
        let x = Axis { low: -0.7, high: f64::from(places.max(1)) - 0.3, ticks: Vec::new() };
        Panel {
            title: language_title(language),
            x_title: String::new(),
            y_title: "score".to_owned(),
            plot: Plot::Lines(Lines { x, y, series }),
        }
    }

    /// The seeds of a cell, and their mean.
    fn seed_series(&self, line: &Line, cell: &Cell, place: f64, method: &str) -> [Series; 2] {
        let source = line.source(method, &cell.language);
        let style = self.style(&line.recipe);
        let name = line.recipe.clone();
        let seeds = cell
            .runs
            .iter()
            .map(|run| Point {
                x: place - LEFT_OF_MEAN,
                y: run.gated,
                interval: None,
                partial: run.unrated + run.failed + run.missing > 0,
                source: Some(source.clone()),
            })
            .collect();
        let mean = Point {
            x: place,
            y: cell.value(),
            interval: cell.gated.and_then(|gated| gated.interval()),
            partial: cell.state == CellState::Partial,
            source: Some(source.clone()),
        };
        let mut dots = style;
        dots.marker = Marker::Dot;
        [
            Series {
                name: format!("{name}, seeds"),
                style: dots,
                joined: false,
                marked: true,
                points: seeds,
            },
            Series { name, style, joined: false, marked: true, points: vec![mean] },
        ]
    }
}

/// Gives panels of points the axis that holds all of their values and intervals, so that they can be compared.
fn share_vertical_axis(panels: &mut [Panel]) {
    let points = || {
        panels
            .iter()
            .flat_map(|panel| match &panel.plot {
                Plot::Lines(lines) => &lines.series[..],
                _ => &[],
            })
            .flat_map(|series| &series.points)
    };
    let ends = points().filter_map(|point| point.interval).flat_map(|(low, high)| [low, high]);
    let shared = Axis::around(points().filter_map(|point| point.y).chain(ends));
    for panel in panels {
        if let Plot::Lines(lines) = &mut panel.plot {
            lines.y = shared.clone();
        }
    }
}
