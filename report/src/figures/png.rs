//! SVG to PNG, with the system's fonts: shaping and fallback find a font for every script that has one.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

/// Pixels of the picture for a CSS pixel.
const SCALE: f32 = 2.0;

/// Draws PNG pictures.
pub struct Painter {
    options: Options<'static>,
}

impl Painter {
    /// Loads the system's fonts, once.
    pub fn new() -> Self {
        let mut fonts = fontdb::Database::new();
        fonts.load_system_fonts();
        // Where a font lacks a letter the next one that has it is taken: labels stay without serifs if these are gone.
        let serif: Vec<_> = fonts
            .faces()
            .filter(|face| face.families.iter().any(|(family, _)| family.contains("Serif")))
            .map(|face| face.id)
            .collect();
        if serif.len() < fonts.len() {
            for face in serif {
                fonts.remove_face(face);
            }
        }
        // The generic family must be one that is there, or text that names no other would vanish.
        let known = ["Liberation Sans", "Arial", "Helvetica", "Noto Sans", "DejaVu Sans"];
        let there = known
            .into_iter()
            .find(|name| fonts.faces().any(|face| face.families.iter().any(|(family, _)| family == name)));
        if let Some(family) = there {
            fonts.set_sans_serif_family(family);
        }
        Self { options: Options { fontdb: Arc::new(fonts), ..Options::default() } }
    }

    /// Whether the system has a font at all; without one a picture would have no text.
    pub fn has_fonts(&self) -> bool {
        !self.options.fontdb.is_empty()
    }

    /// An SVG as a PNG of twice its size.
    ///
    /// # Errors
    /// An SVG that cannot be parsed, or has no size.
    pub fn png(&self, svg: &str) -> Result<Vec<u8>> {
        let tree = Tree::from_str(svg, &self.options).context("a figure's SVG cannot be read")?;
        let size = tree.size().to_int_size();
        let (width, height) = (size.width() as f32 * SCALE, size.height() as f32 * SCALE);
        let mut picture = Pixmap::new(width as u32, height as u32)
            .ok_or_else(|| anyhow!("a figure of {width} × {height} pixels cannot be drawn"))?;
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
        picture.encode_png().context("a figure's PNG cannot be written")
    }
}

impl Default for Painter {
    fn default() -> Self {
        Self::new()
    }
}
