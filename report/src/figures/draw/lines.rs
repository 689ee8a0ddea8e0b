//! A panel of points, and the lines that join them.

use plotters::chart::ChartContext;
use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::marks::{draw_cross, draw_marker};
use super::{
    Area, Drawn, Scale, Target, axis_lines, axis_text, colour, draw_titles, fine, grid_lines, label_room,
    within,
};
use crate::figures::plot::{Lines, Marker, Panel, Point, Series};

type Chart<'a, 'b> = ChartContext<'b, SVGBackend<'a>, Cartesian2d<Scale, Scale>>;

/// Half of what can be pointed at around a mark, in pixels.
const REACH: f64 = 7.0;

/// Draws the axes, the lines, and over them the marks.
pub(super) fn draw_lines(area: &Area<'_>, panel: &Panel, lines: &Lines, targets: &mut Vec<Target>) -> Drawn {
    draw_titles(area, panel, true)?;
    let chart = axes(area, panel, lines)?;
    let step = beside(lines, chart.plotting_area().dim_in_pixel().0);
    for series in lines.series.iter().filter(|series| series.joined) {
        draw_path(&chart, series, shift(series, lines, step))?;
    }
    for series in lines.series.iter().filter(|series| series.marked) {
        let shift = shift(series, lines, step);
        for point in &series.points {
            draw_point(area, &chart, series, point, point.x + shift, targets)?;
        }
    }
    Ok(())
}

fn axes<'a, 'b>(
    area: &'b Area<'a>,
    panel: &Panel,
    lines: &Lines,
) -> Result<Chart<'a, 'b>, Box<dyn std::error::Error + Send + Sync>> {
    let x_room = match (panel.x_title.is_empty(), lines.x.ticks.is_empty()) {
        (false, _) => 32.0,
        (true, false) => 20.0,
        (true, true) => 8.0,
    };
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
        .label_style(axis_text())
        .bold_line_style(grid_lines())
        .light_line_style(TRANSPARENT)
        .axis_style(axis_lines())
        .set_tick_mark_size(LabelAreaPosition::Left, fine(3.0))
        .set_tick_mark_size(LabelAreaPosition::Bottom, fine(3.0))
        .draw()?;
    Ok(chart)
}

/// How far series stand beside each other, so that their intervals can be seen.
fn beside(lines: &Lines, width: u32) -> f64 {
    (lines.x.high - lines.x.low) / f64::from(width) * f64::from(fine(2.2))
}

fn shift(series: &Series, lines: &Lines, step: f64) -> f64 {
    if !series.joined || !series.marked {
        return 0.0;
    }
    let marked: Vec<&Series> = lines.series.iter().filter(|series| series.marked).collect();
    let place = marked.iter().position(|other| other.name == series.name);
    place.map_or(0.0, |place| (place as f64 - (marked.len() as f64 - 1.0) / 2.0) * step)
}

fn draw_path(chart: &Chart<'_, '_>, series: &Series, shift: f64) -> Drawn {
    let stroke = if series.marked { 1.6 } else { 1.1 };
    let style = colour(series.style).stroke_width(fine(stroke) as u32);
    for points in whole_stretches(&series.points) {
        let path: Vec<(f64, f64)> = points.iter().map(|&(x, y)| (x + shift, y)).collect();
        if series.style.dashed {
            chart.plotting_area().draw(&DashedPathElement::new(path, fine(4.0), fine(3.0), style))?;
        } else {
            chart.plotting_area().draw(&PathElement::new(path, style))?;
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

fn draw_point(
    area: &Area<'_>,
    chart: &Chart<'_, '_>,
    series: &Series,
    point: &Point,
    x: f64,
    targets: &mut Vec<Target>,
) -> Drawn {
    let (plot, colour) = (chart.plotting_area(), colour(series.style));
    let at = |y: f64| within(area, plot.map_coordinate(&(x, y)));
    let middle = match point.y {
        Some(y) => {
            if let Some((low, high)) = point.interval {
                let style = colour.mix(0.6).stroke_width(fine(1.0) as u32);
                plot.draw(&PathElement::new(vec![(x, low), (x, high)], style))?;
            }
            let pixels = if series.style.marker == Marker::Dot { 2.0 } else { 3.4 };
            draw_marker(area, series.style.marker, at(y), pixels, colour, point.partial)?;
            at(y)
        }
        None => {
            // Above the axes, where no number stands: at their foot it could be taken for a zero.
            let (x, _) = at(0.0);
            let ceiling = plot.get_pixel_range().1.start - area.get_pixel_range().1.start;
            let middle = (x, ceiling - fine(4.5));
            draw_cross(area, middle, colour)?;
            middle
        }
    };
    if let Some(source) = &point.source {
        let reach = fine(REACH);
        targets.push(Target {
            corner: (middle.0 - reach, middle.1 - reach),
            size: (2 * reach, 2 * reach),
            text: Target::text(&series.name, point.y, point.interval),
            source: source.clone(),
        });
    }
    Ok(())
}
