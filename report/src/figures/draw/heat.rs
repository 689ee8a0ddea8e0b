//! A panel that is a table of shares.

use plotters::prelude::*;
use plotters::style::text_anchor::HPos;

use super::{Area, Drawn, INK, SOFT_INK, draw_titles, fine, text};
use crate::figures::plot::{Heat, Panel};

/// On a strong cell, in light and dark alike.
const ON_COLOUR: RGBColor = RGBColor(0xFA, 0xFA, 0xFA);
const STRONG: RGBColor = RGBColor(0x00, 0x72, 0xB2);

/// Draws names of columns and rows, and a box a share.
pub(super) fn draw_heat(area: &Area<'_>, panel: &Panel, heat: &Heat) -> Drawn {
    draw_titles(area, panel, false)?;
    let (width, height) = area.dim_in_pixel();
    let letters = heat.rows.iter().map(|name| name.chars().count()).max().unwrap_or(0);
    let left = fine(14.0 + 6.4 * letters as f64);
    let (top, bottom) = (fine(44.0), height as i32 - fine(10.0));
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
            draw_share(area, *value, (left + cell_width * column as i32, y), (cell_width, cell_height))?;
        }
    }
    Ok(())
}

fn draw_share(area: &Area<'_>, share: Option<f64>, (x, y): (i32, i32), (width, height): (i32, i32)) -> Drawn {
    let middle = (x + width / 2, y + height / 2);
    let Some(share) = share else {
        area.draw(&Text::new("–".to_owned(), middle, text(9.5, SOFT_INK, HPos::Center)))?;
        return Ok(());
    };
    let inset = fine(0.75);
    let corners = [(x + inset, y + inset), (x + width - inset, y + height - inset)];
    area.draw(&Rectangle::new(corners, STRONG.mix(0.04 + 0.92 * share).filled()))?;
    let percent = (share * 100.0).round();
    if percent > 0.0 {
        let ink = if share > 0.7 { ON_COLOUR } else { INK };
        area.draw(&Text::new(format!("{percent}"), middle, text(9.5, ink, HPos::Center)))?;
    }
    Ok(())
}
