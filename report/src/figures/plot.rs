//! What a figure holds, apart from how it is drawn: the same data goes to the drawing and to `report.json`.

use serde::Serialize;

use crate::results::{CellState, Source};

/// A figure: panels that share axes, and one legend.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// Its file name without an ending, `scores-lora-bloom`.
    pub id: String,
    /// Its title.
    pub title: String,
    /// What it shows and what its marks mean.
    pub caption: String,
    /// How many panels stand in a row.
    pub columns: usize,
    /// The width and height of a panel, in CSS pixels.
    pub panel_size: (u32, u32),
    /// The legend, in order.
    pub legend: Vec<Key>,
    /// The panels, in order.
    pub panels: Vec<Panel>,
}

/// An entry of a legend.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Key {
    /// What it stands for.
    pub name: String,
    /// How that looks.
    pub style: Style,
}

/// How a series looks: a colour and a marker, either of which tells it apart.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Style {
    /// Red, green, blue.
    pub colour: (u8, u8, u8),
    /// The marker of its points.
    pub marker: Marker,
    /// Whether its line is dashed.
    pub dashed: bool,
}

/// Shapes of markers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Marker {
    /// A disc.
    Circle,
    /// A square.
    Square,
    /// A triangle, its point up.
    Triangle,
    /// A square on its corner.
    Diamond,
    /// A triangle, its point down.
    Wedge,
    /// A short bar.
    Bar,
    /// A small disc: one seed among others.
    Dot,
    /// In a legend: a hollow mark or a pale bar, of whatever shape and colour.
    Hollow,
    /// In a legend: the cross of what failed or is missing.
    Cross,
}

/// One panel.
#[derive(Debug, Clone, Serialize)]
pub struct Panel {
    /// Its title.
    pub title: String,
    /// What its horizontal axis measures; empty where the labels say it.
    pub x_title: String,
    /// What its vertical axis measures.
    pub y_title: String,
    /// Its marks.
    pub plot: Plot,
}

/// The kinds of panel.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "lowercase", tag = "kind")]
pub enum Plot {
    /// Points, joined or not.
    Lines(Lines),
    /// Groups of bars.
    Bars(Bars),
    /// A table of shares.
    Heat(Heat),
}

/// An axis from `low` to `high`, with labelled ticks.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Axis {
    /// Its lower end.
    pub low: f64,
    /// Its upper end.
    pub high: f64,
    /// Where ticks are, and what they say.
    pub ticks: Vec<(f64, String)>,
}

/// Points on two axes.
#[derive(Debug, Clone, Serialize)]
pub struct Lines {
    /// The horizontal axis; logarithms where the figure says so.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// The series.
    pub series: Vec<Series>,
}

/// A series of points.
#[derive(Debug, Clone, Serialize)]
pub struct Series {
    /// Its name.
    pub name: String,
    /// Its look.
    pub style: Style,
    /// Whether a line joins its points.
    pub joined: bool,
    /// Whether its points have markers.
    pub marked: bool,
    /// Its points.
    pub points: Vec<Point>,
}

/// A point.
#[derive(Debug, Clone, Serialize)]
pub struct Point {
    /// Its place on the horizontal axis.
    pub x: f64,
    /// Its value; none where the runs failed or are missing.
    pub y: Option<f64>,
    /// Its interval.
    pub interval: Option<(f64, f64)>,
    /// Whether something planned is left out of it.
    pub partial: bool,
    /// Where its records are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// Groups of bars.
#[derive(Debug, Clone, Serialize)]
pub struct Bars {
    /// The vertical axis.
    pub y: Axis,
    /// The groups.
    pub groups: Vec<Group>,
}

/// A group of bars.
#[derive(Debug, Clone, Serialize)]
pub struct Group {
    /// What stands under it.
    pub label: String,
    /// Its bars.
    pub bars: Vec<Bar>,
}

/// A bar.
#[derive(Debug, Clone, Serialize)]
pub struct Bar {
    /// Its name.
    pub name: String,
    /// Its look.
    pub style: Style,
    /// Its value; none where there is none, and `state` says why.
    pub value: Option<f64>,
    /// Its interval.
    pub interval: Option<(f64, f64)>,
    /// Where its cell stands.
    pub state: CellState,
    /// Where its records are.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// Shares in rows and columns.
#[derive(Debug, Clone, Serialize)]
pub struct Heat {
    /// Names of the rows.
    pub rows: Vec<String>,
    /// Names of the columns.
    pub columns: Vec<String>,
    /// A share a cell, 0 to 1; none where nothing was counted.
    pub values: Vec<Vec<Option<f64>>>,
}

impl Figure {
    /// Adds to the legend what hollow marks and crosses mean, where the figure has any.
    pub fn explain_what_is_left_out(&mut self) {
        let marks = || self.panels.iter().flat_map(|panel| panel.plot.marks());
        let partial = marks().any(|mark| mark == LeftOut::Part);
        let lost = marks().any(|mark| mark == LeftOut::All);
        let key = |name: &str, marker| Key {
            name: name.to_owned(),
            style: Style { colour: (0x5C, 0x5C, 0x5C), marker, dashed: false },
        };
        self.legend.extend(partial.then(|| key("incomplete", Marker::Hollow)));
        self.legend.extend(lost.then(|| key("no result", Marker::Cross)));
    }
}

/// What is left out of a mark.
#[derive(PartialEq)]
enum LeftOut {
    Nothing,
    Part,
    All,
}

impl Plot {
    fn marks(&self) -> Vec<LeftOut> {
        match self {
            Self::Lines(lines) => {
                let marked = lines.series.iter().filter(|series| series.marked);
                let left_out = |point: &Point| match (point.y, point.partial) {
                    (None, _) => LeftOut::All,
                    (Some(_), true) => LeftOut::Part,
                    (Some(_), false) => LeftOut::Nothing,
                };
                marked.flat_map(|series| &series.points).map(left_out).collect()
            }
            Self::Bars(bars) => {
                let left_out = |bar: &Bar| match bar.state {
                    CellState::Empty => LeftOut::All,
                    CellState::Partial => LeftOut::Part,
                    CellState::Absent | CellState::Complete => LeftOut::Nothing,
                };
                bars.groups.iter().flat_map(|group| &group.bars).map(left_out).collect()
            }
            Self::Heat(_) => Vec::new(),
        }
    }
}

impl Axis {
    /// From zero to `high`, or a little above it, with three to six round ticks.
    pub fn from_zero(high: f64) -> Self {
        let step = round_step(high / 5.0);
        let ticks = (0..).map(|place| f64::from(place) * step).take_while(|&tick| tick <= high * 1.0001);
        Self { low: 0.0, high, ticks: ticks.map(|tick| (tick, label(tick, step))).collect() }
    }

    /// Around the values, with three to six round ticks.
    pub fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = values
            .filter(|value| value.is_finite())
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self::from_zero(1.0);
        }
        let room = ((high - low) * 0.06).max(high.abs() * 1e-3).max(1e-9);
        let (low, high) = (low - room, high + room);
        let step = round_step((high - low) / 5.0);
        let first = (low / step).ceil();
        let ticks = (0..).map(|place| (first + f64::from(place)) * step).take_while(|&tick| tick <= high);
        Self { low, high, ticks: ticks.map(|tick| (tick, label(tick, step))).collect() }
    }
}

/// 1, 2, 2.5 or 5 times a power of ten: the nearest above `step`.
fn round_step(step: f64) -> f64 {
    let power = 10f64.powf(step.max(1e-12).log10().floor());
    [1.0, 2.0, 2.5, 5.0, 10.0]
        .into_iter()
        .map(|digit| digit * power)
        .find(|&round| round >= step * 0.9999)
        .unwrap_or(power * 10.0)
}

fn label(tick: f64, step: f64) -> String {
    let tick = if tick.abs() < step * 1e-6 { 0.0 } else { tick };
    let digits = (0..6).find(|&digits| {
        let scaled = step * 10f64.powi(digits);
        (scaled - scaled.round()).abs() < 1e-6
    });
    format!("{tick:.*}", digits.unwrap_or(0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round() {
        let labels = |axis: Axis| axis.ticks.into_iter().map(|(_, label)| label).collect::<Vec<_>>();
        assert_eq!(labels(Axis::from_zero(150.0)), ["0", "50", "100", "150"]);
        assert_eq!(labels(Axis::from_zero(90.0)), ["0", "20", "40", "60", "80"]);
        assert_eq!(labels(Axis::around([1.31, 2.9].into_iter())), ["1.5", "2.0", "2.5"]);
        assert_eq!(labels(Axis::around(std::iter::empty())), ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]);
    }
}
