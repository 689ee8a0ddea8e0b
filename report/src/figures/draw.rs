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
use plotters::element::DashedPathElement;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::plot::{Axis, Bar, Bars, Figure, Heat, Lines, Marker, Panel, Plot, Point, Series, Style};
use crate::results::CellState;

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;
type Drawn = std::result::Result<(), Box<dyn Error + Send + Sync>>;

/// How many units of the drawing are a CSS pixel.
const FINENESS: i32 = 4;
const INK: RGBColor = RGBColor(0x1B, 0x1B, 0x1B);
const SOFT_INK: RGBColor = RGBColor(0x5C, 0x5C, 0x5C);
const GRID: RGBColor = RGBColor(0xE4, 0xE4, 0xE4);
const PAPER: RGBColor = RGBColor(0xFE, 0xFE, 0xFE);
/// On a strong cell of a table of shares, in light and dark alike.
const ON_COLOUR: RGBColor = RGBColor(0xFA, 0xFA, 0xFA);
const HEAT: RGBColor = RGBColor(0x00, 0x72, 0xB2);
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
            draw_panel(&area, panel)?;
        }
        for (row, entries) in legend.iter().enumerate() {
            let y = units(height * rows + LEGEND_ROW * row as u32 + LEGEND_ROW / 2);
            for &(x, entry) in entries {
                let key = &figure.legend[entry];
                draw_key(root, key.style, units(x), y)?;
                root.draw(&Text::new(key.name.clone(), (units(x + 27), y), text(11.5, INK, HPos::Left)))?;
            }
        }
        Ok(())
    })
}

/// One panel alone, for the page, on nothing.
pub fn panel(panel: &Panel, size: (u32, u32)) -> Result<String> {
    svg(size, None, |root| draw_panel(root, panel))
}

/// A legend's mark alone, for the page.
pub fn key(style: Style) -> Result<String> {
    svg((24, 12), None, |root| draw_key(root, style, units(1), units(6)))
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

fn draw_panel(area: &Area<'_>, panel: &Panel) -> Drawn {
    area.draw(&Text::new(panel.title.clone(), (fine(8.0), fine(11.0)), title(12.0)))?;
    match &panel.plot {
        Plot::Lines(lines) => draw_lines(area, panel, lines),
        Plot::Bars(bars) => draw_bars(area, panel, bars),
        Plot::Heat(heat) => draw_heat(area, panel, heat),
    }
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

fn draw_lines(area: &Area<'_>, panel: &Panel, lines: &Lines) -> Drawn {
    draw_titles(area, panel, true)?;
    let x_room = if panel.x_title.is_empty() { 20.0 } else { 32.0 };
    let mut chart = ChartBuilder::on(area)
        .margin_top(fine(26.0))
        .margin_right(fine(10.0))
        .set_label_area_size(LabelAreaPosition::Left, label_room(&lines.y))
        .set_label_area_size(LabelAreaPosition::Bottom, fine(x_room))
        .build_cartesian_2d(Scale(lines.x.clone()), Scale(lines.y.clone()))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .x_labels(lines.x.ticks.len().max(1))
        .y_labels(lines.y.ticks.len().max(1))
        .label_style((FONTS, 10.5 * 1.24 * f64::from(FINENESS)).into_font().color(&SOFT_INK))
        .bold_line_style(GRID.stroke_width(fine(1.0) as u32))
        .light_line_style(TRANSPARENT)
        .axis_style(SOFT_INK.stroke_width(fine(0.75) as u32))
        .set_tick_mark_size(LabelAreaPosition::Left, fine(3.0))
        .set_tick_mark_size(LabelAreaPosition::Bottom, fine(3.0))
        .draw()?;

    // Series stand a little beside each other, so that their intervals can be seen.
    let plot = chart.plotting_area();
    let (width, _) = plot.dim_in_pixel();
    let marked: Vec<&Series> = lines.series.iter().filter(|series| series.marked).collect();
    let step = (lines.x.high - lines.x.low) / f64::from(width) * f64::from(fine(2.2));
    let shift = |series: &Series| {
        let place = marked.iter().position(|other| other.name == series.name);
        place.map_or(0.0, |place| (place as f64 - (marked.len() as f64 - 1.0) / 2.0) * step)
    };
    for series in &lines.series {
        let (colour, shift) =
            (colour(series.style), if series.joined && series.marked { shift(series) } else { 0.0 });
        let stroke = if series.marked { 1.6 } else { 1.1 };
        for points in whole_stretches(&series.points).filter(|_| series.joined) {
            let path: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x + shift, y)).collect();
            let style = colour.stroke_width(fine(stroke) as u32);
            if series.style.dashed {
                plot.draw(&DashedPathElement::new(path, fine(4.0), fine(3.0), style))?;
            } else {
                plot.draw(&PathElement::new(path, style))?;
            }
        }
    }
    for series in lines.series.iter().filter(|series| series.marked) {
        let (colour, shift) =
            (colour(series.style), if series.joined && series.marked { shift(series) } else { 0.0 });
        for point in &series.points {
            let x = point.x + shift;
            match point.y {
                Some(y) => {
                    if let Some((low, high)) = point.interval {
                        let style = colour.mix(0.6).stroke_width(fine(1.0) as u32);
                        plot.draw(&PathElement::new(vec![(x, low), (x, high)], style))?;
                    }
                    let at = within(area, plot.map_coordinate(&(x, y)));
                    draw_marker(area, series.style.marker, at, 3.4, colour, point.partial)?;
                }
                None => {
                    let at = within(area, plot.map_coordinate(&(x, lines.y.low)));
                    draw_cross(area, (at.0, at.1 - fine(5.0)), colour)?;
                }
            }
        }
    }
    Ok(())
}

/// Runs of points that all have a value: a line does not bridge what is missing.
fn whole_stretches(points: &[Point]) -> impl Iterator<Item = Vec<(f64, f64)>> + '_ {
    points
        .split(|point| point.y.is_none())
        .map(|stretch| stretch.iter().filter_map(|point| Some((point.x, point.y?))).collect::<Vec<_>>())
        .filter(|stretch| stretch.len() > 1)
}

fn draw_bars(area: &Area<'_>, panel: &Panel, bars: &Bars) -> Drawn {
    draw_titles(area, panel, false)?;
    let labelled = bars.groups.iter().any(|group| !group.label.is_empty());
    let groups = bars.groups.len().max(1);
    let mut chart = ChartBuilder::on(area)
        .margin_top(fine(30.0))
        .margin_right(fine(8.0))
        .set_label_area_size(LabelAreaPosition::Left, label_room(&bars.y))
        .set_label_area_size(LabelAreaPosition::Bottom, fine(if labelled { 20.0 } else { 8.0 }))
        .build_cartesian_2d(0.0..1.0, Scale(bars.y.clone()))?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .disable_x_axis()
        .x_labels(0)
        .y_labels(bars.y.ticks.len().max(1))
        .label_style((FONTS, 10.5 * 1.24 * f64::from(FINENESS)).into_font().color(&SOFT_INK))
        .bold_line_style(GRID.stroke_width(fine(1.0) as u32))
        .light_line_style(TRANSPARENT)
        .axis_style(SOFT_INK.stroke_width(fine(0.75) as u32))
        .set_tick_mark_size(LabelAreaPosition::Left, fine(3.0))
        .draw()?;
    let plot = chart.plotting_area();
    let (xs, ys) = plot.get_pixel_range();
    let ((left, top), (right, bottom)) = (within(area, (xs.start, ys.start)), within(area, (xs.end, ys.end)));
    let (xs, ys) = (left..right, top..bottom);
    let height_of = |value: f64| {
        let share = (value - bars.y.low) / (bars.y.high - bars.y.low);
        ys.end - (share * f64::from(ys.end - ys.start)).round() as i32
    };
    let group_width = f64::from(xs.end - xs.start) / groups as f64;
    for (place, group) in bars.groups.iter().enumerate() {
        let room = group_width * if groups == 1 { 0.94 } else { 0.84 };
        let width = (room / group.bars.len().max(1) as f64).min(f64::from(fine(38.0)));
        let centre = f64::from(xs.start) + group_width * (place as f64 + 0.5);
        let left = centre - width * group.bars.len() as f64 / 2.0;
        for (index, bar) in group.bars.iter().enumerate() {
            let from = left + width * index as f64;
            draw_bar(area, bar, from, width, ys.end, &height_of)?;
        }
        if labelled {
            let at = (centre as i32, ys.end + fine(11.0));
            area.draw(&Text::new(group.label.clone(), at, text(10.5, SOFT_INK, HPos::Center)))?;
        }
    }
    area.draw(&PathElement::new(
        vec![(xs.start, ys.end), (xs.end, ys.end)],
        SOFT_INK.stroke_width(fine(0.75) as u32),
    ))?;
    Ok(())
}

fn draw_bar(
    area: &Area<'_>,
    bar: &Bar,
    from: f64,
    width: f64,
    floor: i32,
    height_of: &dyn Fn(f64) -> i32,
) -> Drawn {
    let gap = (width * 0.1).max(f64::from(FINENESS) * 0.5);
    let (left, right) = ((from + gap) as i32, (from + width - gap) as i32);
    let middle = (left + right) / 2;
    let colour = colour(bar.style);
    let Some(value) = bar.value else {
        // What was never planned is left blank; what was and is not there gets a cross.
        return match bar.state {
            CellState::Absent => Ok(()),
            _ => draw_cross(area, (middle, floor - fine(6.0)), colour),
        };
    };
    let top = height_of(value);
    if bar.state == CellState::Partial {
        area.draw(&Rectangle::new([(left, top), (right, floor)], colour.mix(0.35).filled()))?;
        let outline = vec![(left, floor), (left, top), (right, top), (right, floor)];
        area.draw(&PathElement::new(outline, colour.stroke_width(fine(1.0) as u32)))?;
    } else {
        area.draw(&Rectangle::new([(left, top), (right, floor)], colour.filled()))?;
    }
    let mut above = top;
    if let Some((low, high)) = bar.interval {
        let style = INK.mix(0.75).stroke_width(fine(1.0) as u32);
        area.draw(&PathElement::new(vec![(middle, height_of(low)), (middle, height_of(high))], style))?;
        above = above.min(height_of(high));
    }
    if width >= f64::from(fine(19.0)) {
        let at = (middle, above - fine(7.0));
        let digits = usize::from(value.abs() < 9.95);
        area.draw(&Text::new(format!("{value:.digits$}"), at, text(10.0, INK, HPos::Center)))?;
    }
    Ok(())
}

fn draw_heat(area: &Area<'_>, panel: &Panel, heat: &Heat) -> Drawn {
    draw_titles(area, panel, true)?;
    let (width, height) = area.dim_in_pixel();
    let letters = |names: &[String]| names.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let left = fine(14.0 + 6.4 * letters(&heat.rows) as f64);
    let (top, bottom) = (fine(44.0), height as i32 - fine(22.0));
    let cell_width = (width as i32 - fine(8.0) - left) / heat.columns.len().max(1) as i32;
    let cell_height = (bottom - top) / heat.rows.len().max(1) as i32;
    for (column, name) in heat.columns.iter().enumerate() {
        let at = (left + cell_width * column as i32 + cell_width / 2, top - fine(9.0));
        area.draw(&Text::new(name.clone(), at, text(10.5, SOFT_INK, HPos::Center)))?;
    }
    for (row, (name, values)) in heat.rows.iter().zip(&heat.values).enumerate() {
        let y = top + cell_height * row as i32;
        let at = (left - fine(6.0), y + cell_height / 2);
        area.draw(&Text::new(name.clone(), at, text(10.5, SOFT_INK, HPos::Right)))?;
        for (column, value) in values.iter().enumerate() {
            let x = left + cell_width * column as i32;
            let inset = fine(0.75);
            let box_ = [(x + inset, y + inset), (x + cell_width - inset, y + cell_height - inset)];
            let middle = (x + cell_width / 2, y + cell_height / 2);
            match value {
                Some(share) => {
                    area.draw(&Rectangle::new(box_, HEAT.mix(0.04 + 0.92 * share).filled()))?;
                    let ink = if *share > 0.5 { ON_COLOUR } else { INK };
                    let percent = (share * 100.0).round();
                    if percent > 0.0 {
                        area.draw(&Text::new(format!("{percent}"), middle, text(9.5, ink, HPos::Center)))?;
                    }
                }
                None => area.draw(&Text::new("–".to_owned(), middle, text(9.5, SOFT_INK, HPos::Center)))?,
            }
        }
    }
    Ok(())
}

fn draw_key(area: &Area<'_>, style: Style, x: i32, y: i32) -> Drawn {
    let colour = colour(style);
    let (from, to) = ((x, y), (x + fine(22.0), y));
    let stroke = colour.stroke_width(fine(1.6) as u32);
    if style.dashed {
        area.draw(&DashedPathElement::new(vec![from, to], fine(4.0), fine(3.0), stroke))?;
    } else {
        area.draw(&PathElement::new(vec![from, to], stroke))?;
    }
    draw_marker(area, style.marker, (x + fine(11.0), y), 4.0, colour, false)
}

fn draw_marker(
    area: &Area<'_>,
    marker: Marker,
    (x, y): (i32, i32),
    pixels: f64,
    colour: RGBColor,
    hollow: bool,
) -> Drawn {
    let radius = fine(pixels);
    let outline = |points: &[(f64, f64)]| -> Vec<(i32, i32)> {
        let place = |share: f64| (share * f64::from(radius)).round() as i32;
        points.iter().map(|&(right, down)| (x + place(right), y + place(down))).collect()
    };
    let mut corners = match marker {
        Marker::Circle => {
            let fill = if hollow { PAPER } else { colour };
            area.draw(&Circle::new((x, y), radius, fill.filled()))?;
            area.draw(&Circle::new((x, y), radius, colour.stroke_width(fine(1.2) as u32)))?;
            return Ok(());
        }
        Marker::Square => outline(&[(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)]),
        Marker::Triangle => outline(&[(0.0, -1.15), (1.1, 0.85), (-1.1, 0.85)]),
        Marker::Diamond => outline(&[(0.0, -1.3), (1.1, 0.0), (0.0, 1.3), (-1.1, 0.0)]),
        Marker::Wedge => outline(&[(0.0, 1.15), (1.1, -0.85), (-1.1, -0.85)]),
        Marker::Bar => outline(&[(-1.1, -0.35), (1.1, -0.35), (1.1, 0.35), (-1.1, 0.35)]),
    };
    let fill = if hollow { PAPER } else { colour };
    area.draw(&Polygon::new(corners.clone(), fill.filled()))?;
    if let Some(&first) = corners.first() {
        corners.push(first);
    }
    area.draw(&PathElement::new(corners, colour.stroke_width(fine(1.2) as u32)))?;
    Ok(())
}

/// The mark of what failed or is missing.
fn draw_cross(area: &Area<'_>, (x, y): (i32, i32), colour: RGBColor) -> Drawn {
    let (arm, stroke) = (fine(3.0), colour.stroke_width(fine(1.5) as u32));
    area.draw(&PathElement::new(vec![(x - arm, y - arm), (x + arm, y + arm)], stroke))?;
    area.draw(&PathElement::new(vec![(x - arm, y + arm), (x + arm, y - arm)], stroke))?;
    Ok(())
}
