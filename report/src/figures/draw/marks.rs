//! Markers, keys of legends, and the cross of what is not there.

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use super::{Area, Drawn, PAPER, colour, fine};
use crate::figures::plot::{Marker, Style};

/// A legend's mark of bars: a box of their colour.
pub(super) fn draw_swatch(area: &Area<'_>, style: Style, x: i32, y: i32) -> Drawn {
    let (middle, corners) =
        ((x + fine(11.0), y), [(x + fine(4.0), y - fine(4.5)), (x + fine(18.0), y + fine(4.5))]);
    let colour = colour(style);
    match style.marker {
        Marker::Cross => return draw_cross(area, middle, colour),
        Marker::Hollow => {
            area.draw(&Rectangle::new(corners, colour.mix(0.35).filled()))?;
            area.draw(&Rectangle::new(corners, colour.stroke_width(fine(1.0) as u32)))?;
        }
        _ => area.draw(&Rectangle::new(corners, colour.filled()))?,
    }
    Ok(())
}

/// A legend's mark of lines: a stretch of line with the marker on it.
pub(super) fn draw_key(area: &Area<'_>, style: Style, x: i32, y: i32) -> Drawn {
    let (middle, colour) = ((x + fine(11.0), y), colour(style));
    match style.marker {
        Marker::Cross => return draw_cross(area, middle, colour),
        Marker::Hollow => return draw_marker(area, Marker::Circle, middle, 4.0, colour, true),
        _ => {}
    }
    let (from, to) = ((x, y), (x + fine(22.0), y));
    let stroke = colour.stroke_width(fine(1.6) as u32);
    if style.dashed {
        area.draw(&DashedPathElement::new(vec![from, to], fine(4.0), fine(3.0), stroke))?;
    } else {
        area.draw(&PathElement::new(vec![from, to], stroke))?;
    }
    draw_marker(area, style.marker, middle, 4.0, colour, false)
}

/// A marker of `pixels` from its middle to its rim; hollow where something is left out.
pub(super) fn draw_marker(
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
        Marker::Cross => return draw_cross(area, (x, y), colour),
        Marker::Circle | Marker::Dot | Marker::Hollow => {
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
pub(super) fn draw_cross(area: &Area<'_>, (x, y): (i32, i32), colour: RGBColor) -> Drawn {
    let (arm, stroke) = (fine(3.0), colour.stroke_width(fine(1.5) as u32));
    area.draw(&PathElement::new(vec![(x - arm, y - arm), (x + arm, y + arm)], stroke))?;
    area.draw(&PathElement::new(vec![(x - arm, y + arm), (x + arm, y - arm)], stroke))?;
    Ok(())
}
