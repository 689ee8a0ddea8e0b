//! Score against cost.

use super::compose::{Composer, MARKS, Names, seen_state};
use super::plot::{Axis, Figure, Lines, Panel, Plot, Point, Series};
use crate::findings::listed;
use crate::records::SystemKind;
use crate::results::{CellState, Line};

/// In what a figure counts cost.
#[derive(Clone, Copy, PartialEq)]
enum Unit {
    /// Logarithms of floating-point operations: between base models C is not the same amount of work.
    Flops,
    /// C, the cost of one monolingual run.
    C,
}

impl Unit {
    fn place(self, line: &Line) -> f64 {
        line.cost.as_ref().map_or(0.0, |cost| match self {
            Self::Flops => cost.flops.log10(),
            Self::C => cost.in_c,
        })
    }

    fn axis(self, lines: &[&Line]) -> Axis {
        let places = lines.iter().map(|line| self.place(line));
        match self {
            Self::Flops => power_axis(places),
            Self::C => Axis::from_zero(places.fold(0.0, f64::max) * 1.08),
        }
    }
}

impl Composer<'_> {
    /// A panel a method: the mean over the seen languages against what a recipe's tunings took together.
    pub(super) fn cost(&self) -> Vec<Figure> {
        let tuned = |line: &&Line| line.kind == SystemKind::Tuned && line.cost.is_some();
        let lines: Vec<&Line> = self.results.lines.iter().filter(tuned).collect();
        if lines.is_empty() {
            return Vec::new();
        }
        let counted = lines.iter().all(|line| line.cost.as_ref().is_some_and(|cost| cost.flops > 0.0));
        let unit = if counted && self.experiment.base_models.len() > 1 { Unit::Flops } else { Unit::C };
        let mut names = Names::default();
        let panels = self.methods().map(|method| self.cost_panel(method, &lines, unit, &mut names)).collect();
        let scale = match unit {
            Unit::Flops => ", on a logarithmic scale: a mark a base model and recipe",
            Unit::C => "",
        };
        vec![Figure {
            id: "cost".to_owned(),
            title: "Score against cost".to_owned(),
            caption: format!(
                "Mean gated total over the seen languages against what the tunings of a recipe took together{scale}.{} {MARKS}",
                self.without_cost()
            ),
            columns: 2,
            panel_size: (384, 260),
            legend: self.legend(&names),
            panels,
        }]
    }

    /// A sentence on those that have no place in the figure.
    fn without_cost(&self) -> String {
        let lines =
            self.results.lines.iter().filter(|line| line.kind == SystemKind::Tuned && line.cost.is_none());
        let names: Vec<String> = lines
            .map(|line| {
                let part = |name: &Option<String>| name.clone().unwrap_or_default();
                format!("{} on {} by {}", line.recipe, part(&line.base_model), part(&line.method))
            })
            .collect();
        match names.as_slice() {
            [] => String::new(),
            names => format!(" Not shown, as what it took is not known: {}.", listed(names)),
        }
    }

    fn cost_panel(&self, method: &str, lines: &[&Line], unit: Unit, names: &mut Names) -> Panel {
        let mut series: Vec<Series> = Vec::new();
        for line in lines.iter().filter(|line| line.method.as_deref() == Some(method)) {
            names.note(&line.recipe);
            let mean = line.seen_mean;
            let point = Point {
                x: unit.place(line),
                y: mean.map(|mean| mean.value),
                interval: mean.and_then(|mean| mean.interval()),
                partial: seen_state(line, mean.is_some()) == CellState::Partial,
                source: Some(line.source(method, "")),
            };
            self.add(&mut series, &line.recipe, false, point);
        }
        let x_title = match unit {
            Unit::Flops => "floating-point operations",
            Unit::C => "cost in C, one monolingual run",
        };
        let y = Axis::from_zero(self.greatest(&self.languages(true)));
        Panel {
            title: method.to_owned(),
            x_title: x_title.to_owned(),
            y_title: "mean score, seen languages".to_owned(),
            plot: Plot::Lines(Lines { x: unit.axis(lines), y, series }),
        }
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
