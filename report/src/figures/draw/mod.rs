//! Figures drawn as SVG.
//!
//! Plotters places everything on whole pixels. So that points lie where they should, all is drawn at
//! `FINENESS` times its size, and the picture says so in its `viewBox`.
//!
//! Ink, soft ink, grid and paper are colours that nothing else uses: the page's style sheet turns them over in the
//! dark, by their attribute.

use std::error::Error;

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use self::bars::draw_bars;
use self::heat::draw_heat;
use self::lines::draw_lines;
use self::marks::{draw_key, draw_swatch};
use super::plot::{Axis, Figure, Panel, Plot, Style};
use crate::findings::one_digit;
use crate::results::Source;

mod bars;
mod heat;
mod lines;
mod marks;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn Error + Send + Sync>>;

/// How many units of the drawing are a CSS pixel.
const FINENESS: i32 = 4;
const INK: RGBColor = RGBColor(0x1B, 0x1B, 0x1B);
const SOFT_INK: RGBColor = RGBColor(0x5C, 0x5C, 0x5C);
const GRID: RGBColor = RGBColor(0xE4, 0xE4, 0xE4);
const PAPER: RGBColor = RGBColor(0xFE, 0xFE, 0xFE);
/// Fonts that print, then those that hold every script of a label.
const FONTS: &str =
    "Helvetica, Arial, Liberation Sans, Noto Sans, Noto Sans Bengali, Noto Sans CJK SC, sans-serif";
/// The height of a row of the legend in a file.
const LEGEND_ROW: u32 = 20;

/// An axis as Plotters knows it: its ticks are the axis's own, and say what the axis says.
struct Scale(Axis);

impl Ranged for Scale {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.0.low) / (self.0.high - self.0.low);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.0.ticks.iter().map(|(place, _)| *place).collect()
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.0.low..self.0.high
    }
}

impl ValueFormatter<f64> for Scale {
    fn format(value: &f64) -> String {
        value.to_string()
    }

    fn format_ext(&self, value: &f64) -> String {
        let tick = self.0.ticks.iter().find(|(place, _)| place == value);
        tick.map(|(_, label)| label.clone()).unwrap_or_default()
    }
}

/// The whole figure in one picture, with its legend, on paper.
pub fn figure(figure: &Figure) -> Result<String> {
    let (width, height) = figure.panel_size;
    let columns = figure.columns.min(figure.panels.len()).max(1) as u32;
    let rows = (figure.panels.len() as u32).div_ceil(columns).max(1);
    let legend = legend_rows(figure, width * columns);
    let total = (width * columns, height * rows + LEGEND_ROW * legend.len() as u32 + 4);
    svg(total, Some(PAPER), |root| {
        for (place, panel) in figure.panels.iter().enumerate() {
            let (row, column) = (place as u32 / columns, place as u32 % columns);
            let left = units(column * width);
            let top = units(row * height);
            let area = root.clone().shrink((left, top), (units(width), units(height)));
            draw_panel(&area, panel, &mut Vec::new())?;
        }
        for (row, entries) in legend.iter().enumerate() {
            let y = units(height * rows + LEGEND_ROW * row as u32 + LEGEND_ROW / 2);
            for &(x, entry) in entries {
                let key = &figure.legend[entry];
                draw_legend_mark(root, figure, key.style, units(x), y)?;
                root.draw(&Text::new(key.name.clone(), (units(x + 27), y), text(11.5, INK, HPos::Left)))?;
            }
        }
        Ok(())
    })
}

/// One panel alone, for the page, on nothing. Its marks can be pointed at and opened: over each lies a rectangle that
/// names its records.
pub fn panel(panel: &Panel, size: (u32, u32)) -> Result<String> {
    let mut targets = Vec::new();
    let drawn = svg(size, None, |root| draw_panel(root, panel, &mut targets))?;
    let Some(body) = drawn.trim_end().strip_suffix("</svg>") else { return Ok(drawn) };
    let over: String = targets.iter().map(Target::rectangle).collect();
    Ok(format!("{body}{over}</svg>"))
}

/// A place of a panel that can be pointed at, in units of the drawing.
struct Target {
    corner: (i32, i32),
    size: (i32, i32),
    text: String,
    source: Source,
}

impl Target {
    /// What a mark says: its name, its value, its interval.
    fn text(name: &str, value: Option<f64>, interval: Option<(f64, f64)>) -> String {
        let value = value.map_or_else(|| "no number".to_owned(), one_digit);
        match interval {
            Some((low, high)) => format!("{name}: {value} [{}, {}]", one_digit(low), one_digit(high)),
            None => format!("{name}: {value}"),
        }
    }

    fn rectangle(&self) -> String {
        let Source { base_model, method, recipe, language } = &self.source;
        let data: String =
            [("base", base_model), ("method", method), ("recipe", recipe), ("language", language)]
                .iter()
                .map(|(name, value)| format!(" data-{name}=\"{}\"", escaped(value)))
                .collect();
        let ((x, y), (width, height)) = (self.corner, self.size);
        let model = if base_model.is_empty() { String::new() } else { format!("{base_model}, ") };
        let text = escaped(&format!("{model}{}", self.text));
        format!(
            "<rect class=\"target\" x=\"{x}\" y=\"{y}\" width=\"{width}\" height=\"{height}\"{data}><title>{text}</title></rect>"
        )
    }
}

/// Text as markup.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

/// A mark of a figure's legend alone, for the page.
pub fn key(figure: &Figure, style: Style) -> Result<String> {
    svg((24, 12), None, |root| draw_legend_mark(root, figure, style, units(1), units(6)))
}

fn draw_legend_mark(area: &Area<'_>, figure: &Figure, style: Style, x: i32, y: i32) -> Drawn {
    let bars_alone = figure.panels.iter().all(|panel| matches!(panel.plot, Plot::Bars(_)));
    if bars_alone { draw_swatch(area, style, x, y) } else { draw_key(area, style, x, y) }
}

/// Where each entry of the legend stands: rows of (x in pixels, entry), centred.
fn legend_rows(figure: &Figure, width: u32) -> Vec<Vec<(u32, usize)>> {
    // The mark, and letters at their mean width: what is drawn may differ a little.
    let entry_width = |name: &str| 27 + (name.chars().count() as f64 * 6.2) as u32 + 20;
    let mut rows: Vec<(u32, Vec<(u32, usize)>)> = Vec::new();
    for (entry, key) in figure.legend.iter().enumerate() {
        let needed = entry_width(&key.name);
        match rows.last_mut() {
            Some((used, row)) if *used + needed <= width => {
                row.push((*used, entry));
                *used += needed;
            }
            _ => rows.push((needed, vec![(0, entry)])),
        }
    }
    rows.into_iter()
        .map(|(used, row)| {
            let shift = width.saturating_sub(used) / 2;
            row.into_iter().map(|(x, entry)| (x + shift, entry)).collect()
        })
        .collect()
}

/// Draws into a string, and sets the size in pixels.
fn svg(size: (u32, u32), paper: Option<RGBColor>, draw: impl FnOnce(&Area<'_>) -> Drawn) -> Result<String> {
    let fine = (size.0 * FINENESS as u32, size.1 * FINENESS as u32);
    let mut text = String::new();
    {
        let root = SVGBackend::with_string(&mut text, fine).into_drawing_area();
        let all = || -> Drawn {
            if let Some(paper) = paper {
                root.fill(&paper)?;
            }
            draw(&root)?;
            root.present()?;
            Ok(())
        };
        all().map_err(|error| anyhow!("a figure cannot be drawn: {error}"))?;
    }
    let as_drawn = format!("width=\"{}\" height=\"{}\"", fine.0, fine.1);
    Ok(text.replacen(&as_drawn, &format!("width=\"{}\" height=\"{}\"", size.0, size.1), 1))
}

/// A place of the whole picture as a place of an area: Plotters maps to the one, and draws in the other.
fn within(area: &Area<'_>, (x, y): (i32, i32)) -> (i32, i32) {
    let (xs, ys) = area.get_pixel_range();
    (x - xs.start, y - ys.start)
}

fn units(pixels: u32) -> i32 {
    pixels as i32 * FINENESS
}

fn fine(pixels: f64) -> i32 {
    (pixels * f64::from(FINENESS)).round() as i32
}

fn text(pixels: f64, colour: RGBColor, across: HPos) -> TextStyle<'static> {
    // The backend divides a font's size by 1.24 on its way out.
    (FONTS, pixels * 1.24 * f64::from(FINENESS))
        .into_font()
        .color(&colour)
        .pos(Pos::new(across, VPos::Center))
}

fn title(pixels: f64) -> TextStyle<'static> {
    (FONTS, pixels * 1.24 * f64::from(FINENESS), FontStyle::Bold)
        .into_font()
        .color(&INK)
        .pos(Pos::new(HPos::Left, VPos::Center))
}

fn colour(style: Style) -> RGBColor {
    RGBColor(style.colour.0, style.colour.1, style.colour.2)
}

/// The room left of the axis that its labels take.
fn label_room(axis: &Axis) -> i32 {
    let letters = axis.ticks.iter().map(|(_, label)| label.chars().count()).max().unwrap_or(0);
    fine(12.0 + 6.2 * letters as f64)
}

/// The axis's title, above its labels and beside the panel's title: turned text is hard to read.
fn draw_titles(area: &Area<'_>, panel: &Panel, bottom: bool) -> Drawn {
    let (width, height) = area.dim_in_pixel();
    if !panel.y_title.is_empty() {
        let at = (width as i32 - fine(8.0), fine(11.0));
        area.draw(&Text::new(panel.y_title.clone(), at, text(10.0, SOFT_INK, HPos::Right)))?;
    }
    if bottom && !panel.x_title.is_empty() {
        let at = (width as i32 - fine(8.0), height as i32 - fine(8.0));
        area.draw(&Text::new(panel.x_title.clone(), at, text(10.0, SOFT_INK, HPos::Right)))?;
    }
    Ok(())
}

fn axis_text() -> TextStyle<'static> {
    (FONTS, 10.5 * 1.24 * f64::from(FINENESS)).into_font().color(&SOFT_INK)
}

fn axis_lines() -> ShapeStyle {
    SOFT_INK.stroke_width(fine(0.75) as u32)
}

fn grid_lines() -> ShapeStyle {
    GRID.stroke_width(fine(1.0) as u32)
}

fn draw_panel(area: &Area<'_>, panel: &Panel, targets: &mut Vec<Target>) -> Drawn {
    area.draw(&Text::new(panel.title.clone(), (fine(8.0), fine(11.0)), title(12.0)))?;
    match &panel.plot {
        Plot::Lines(lines) => draw_lines(area, panel, lines, targets),
        Plot::Bars(bars) => draw_bars(area, panel, bars, targets),
        Plot::Heat(heat) => draw_heat(area, panel, heat),
    }
}
