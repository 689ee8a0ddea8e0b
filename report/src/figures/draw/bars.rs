//! A panel of bars.

use std::ops::Range;

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::marks::draw_cross;
use super::{
    Area, Drawn, FINENESS, INK, SOFT_INK, Scale, Target, axis_lines, axis_text, colour, draw_titles, fine,
    grid_lines, label_room, text, within,
};
use crate::figures::plot::{Axis, Bar, Bars, Group, Panel};
use crate::results::CellState;

/// Where bars stand: the inside of the axes, in units of the area.
struct Room {
    xs: Range<i32>,
    ys: Range<i32>,
    axis: Axis,
}

impl Room {
    fn height_of(&self, value: f64) -> i32 {
        let share = (value - self.axis.low) / (self.axis.high - self.axis.low);
        self.ys.end - (share * f64::from(self.ys.end - self.ys.start)).round() as i32
    }
}

/// Draws the axis, and the groups of bars.
pub(super) fn draw_bars(area: &Area<'_>, panel: &Panel, bars: &Bars, targets: &mut Vec<Target>) -> Drawn {
    draw_titles(area, panel, false)?;
    let labelled = bars.groups.iter().any(|group| !group.label.is_empty());
    let room = axes(area, bars, labelled)?;
    let groups = bars.groups.len().max(1);
    let width = f64::from(room.xs.end - room.xs.start) / groups as f64;
    let used = width * if groups == 1 { 0.94 } else { 0.84 };
    for (place, group) in bars.groups.iter().enumerate() {
        let centre = f64::from(room.xs.start) + width * (place as f64 + 0.5);
        draw_group(area, group, centre, used, &room, targets)?;
        if labelled {
            let at = (centre as i32, room.ys.end + fine(11.0));
            area.draw(&Text::new(group.label.clone(), at, text(10.5, SOFT_INK, HPos::Center)))?;
        }
    }
    area.draw(&PathElement::new(
        vec![(room.xs.start, room.ys.end), (room.xs.end, room.ys.end)],
        axis_lines(),
    ))?;
    Ok(())
}

fn axes(
    area: &Area<'_>,
    bars: &Bars,
    labelled: bool,
) -> Result<Room, Box<dyn std::error::Error + Send + Sync>> {
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
        .label_style(axis_text())
        .bold_line_style(grid_lines())
        .light_line_style(TRANSPARENT)
        .axis_style(axis_lines())
        .set_tick_mark_size(LabelAreaPosition::Left, fine(3.0))
        .draw()?;
    let (xs, ys) = chart.plotting_area().get_pixel_range();
    let ((left, top), (right, bottom)) = (within(area, (xs.start, ys.start)), within(area, (xs.end, ys.end)));
    Ok(Room { xs: left..right, ys: top..bottom, axis: bars.y.clone() })
}

fn draw_group(
    area: &Area<'_>,
    group: &Group,
    centre: f64,
    used: f64,
    room: &Room,
    targets: &mut Vec<Target>,
) -> Drawn {
    let width = (used / group.bars.len().max(1) as f64).min(f64::from(fine(38.0)));
    let left = centre - width * group.bars.len() as f64 / 2.0;
    for (index, bar) in group.bars.iter().enumerate() {
        let from = left + width * index as f64;
        draw_bar(area, bar, from, width, room)?;
        if let Some(source) = bar.source.as_ref().filter(|_| bar.state != CellState::Absent) {
            targets.push(Target {
                corner: (from as i32, room.ys.start),
                size: (width as i32, room.ys.end - room.ys.start),
                text: Target::text(&bar.name, bar.value, bar.interval),
                source: source.clone(),
            });
        }
    }
    Ok(())
}

fn draw_bar(area: &Area<'_>, bar: &Bar, from: f64, width: f64, room: &Room) -> Drawn {
    let gap = (width * 0.1).max(f64::from(FINENESS) * 0.5);
    let (left, right) = ((from + gap) as i32, (from + width - gap) as i32);
    let (middle, floor) = ((left + right) / 2, room.ys.end);
    let colour = colour(bar.style);
    let Some(value) = bar.value else {
        // What was never planned is left blank; what was and is not there gets a cross.
        return match bar.state {
            CellState::Absent => Ok(()),
            // Above the axes, where no number stands: at their foot it could be taken for a zero.
            _ => draw_cross(area, (middle, room.ys.start - fine(4.5)), colour),
        };
    };
    let top = room.height_of(value);
    if bar.state == CellState::Partial {
        area.draw(&Rectangle::new([(left, top), (right, floor)], colour.mix(0.35).filled()))?;
        let outline = vec![(left, floor), (left, top), (right, top), (right, floor)];
        area.draw(&PathElement::new(outline, colour.stroke_width(fine(1.0) as u32)))?;
    } else {
        area.draw(&Rectangle::new([(left, top), (right, floor)], colour.filled()))?;
    }
    let mut above = top;
    if let Some((low, high)) = bar.interval {
        let (low, high) = (room.height_of(low), room.height_of(high));
        let style = INK.mix(0.75).stroke_width(fine(1.0) as u32);
        area.draw(&PathElement::new(vec![(middle, low), (middle, high)], style))?;
        above = above.min(high);
    }
    if width >= f64::from(fine(19.0)) {
        let at = (middle, above - fine(7.0));
        let digits = usize::from(value.abs() < 9.95);
        area.draw(&Text::new(format!("{value:.digits$}"), at, text(10.0, INK, HPos::Center)))?;
    }
    Ok(())
}
