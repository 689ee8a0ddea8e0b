//! SVG to PNG, with the system's fonts: shaping and fallback find a font for every script that has one, and letters
//! that no font has are told.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::fontdb::{Database, FaceInfo};
use resvg::usvg::{Group, Node, Options, Tree};

/// Pixels of the picture for a CSS pixel.
const SCALE: f32 = 2.0;

/// Families that stand for the generic one, the first that is there: without one, text that names no other would
/// vanish.
const SANS_SERIF: [&str; 5] = ["Liberation Sans", "Arial", "Helvetica", "Noto Sans", "DejaVu Sans"];

/// Draws PNG pictures.
pub struct Painter {
    options: Options<'static>,
}

/// A figure as PNG.
pub struct Picture {
    /// The file's bytes.
    pub png: Vec<u8>,
    /// Letters that no font has: the picture shows boxes for them.
    pub missing: BTreeSet<char>,
}

impl Painter {
    /// Loads the system's fonts, once.
    pub fn new() -> Self {
        let mut fonts = Database::new();
        fonts.load_system_fonts();
        Self::with_fonts(&fonts)
    }

    /// A painter with these fonts alone.
    pub fn with_fonts(fonts: &Database) -> Self {
        let mut fonts = without_serifs_first(fonts);
        let named = |name: &&str| fonts.faces().any(|face| has_family(face, |family| family == *name));
        if let Some(family) = SANS_SERIF.into_iter().find(|name| named(name)) {
            fonts.set_sans_serif_family(family);
        }
        Self { options: Options { fontdb: Arc::new(fonts), ..Options::default() } }
    }

    /// Whether there is a font at all; without one a picture would have no text.
    pub fn has_fonts(&self) -> bool {
        !self.options.fontdb.is_empty()
    }

    /// An SVG as a PNG of twice its size.
    ///
    /// # Errors
    /// An SVG that cannot be parsed, or has no size.
    pub fn png(&self, svg: &str) -> Result<Picture> {
        let tree = Tree::from_str(svg, &self.options).context("a figure's SVG cannot be read")?;
        let size = tree.size().to_int_size();
        let (width, height) = (size.width() as f32 * SCALE, size.height() as f32 * SCALE);
        let mut picture = Pixmap::new(width as u32, height as u32)
            .ok_or_else(|| anyhow!("a figure of {width} × {height} pixels cannot be drawn"))?;
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut picture.as_mut());
        let mut missing = BTreeSet::new();
        missing_letters(tree.root(), &mut missing);
        Ok(Picture { png: picture.encode_png().context("a figure's PNG cannot be written")?, missing })
    }
}

impl Default for Painter {
    fn default() -> Self {
        Self::new()
    }
}

fn has_family(face: &FaceInfo, wanted: impl Fn(&str) -> bool) -> bool {
    face.families.iter().any(|(family, _)| wanted(family))
}

/// The same fonts in another order: where a font lacks a letter, the first that has it is taken, and labels should
/// stay without serifs.
fn without_serifs_first(fonts: &Database) -> Database {
    let (serif, plain): (Vec<&FaceInfo>, Vec<&FaceInfo>) =
        fonts.faces().partition(|face| has_family(face, |family| family.contains("Serif")));
    let mut ordered = Database::new();
    for face in plain.into_iter().chain(serif) {
        ordered.push_face_info(face.clone());
    }
    ordered
}

/// Letters drawn with glyph 0, which every font keeps for those that it has not.
fn missing_letters(group: &Group, missing: &mut BTreeSet<char>) {
    for node in group.children() {
        match node {
            Node::Group(group) => missing_letters(group, missing),
            Node::Text(text) => {
                let glyphs = text.layouted().iter().flat_map(|span| &span.positioned_glyphs);
                missing.extend(glyphs.filter(|glyph| glyph.id.0 == 0).flat_map(|glyph| glyph.text.chars()));
            }
            Node::Path(_) | Node::Image(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LABELS: &str = r##"<svg xmlns="http://www.w3.org/2000/svg" width="300" height="40"><text x="5" y="25"
        font-family="Noto Sans, sans-serif">Bulgarian · български, Chinese · 中文, Bengali · বাংলা</text></svg>"##;

    /// Latin and Cyrillic, and neither Chinese nor Bengali.
    const WESTERN: [&str; 3] = ["Liberation Sans", "DejaVu Sans", "Noto Sans"];

    #[test]
    fn letters_without_a_font_are_told() {
        let mut system = Database::new();
        system.load_system_fonts();
        let mut western = Database::new();
        let is_western = |face: &&FaceInfo| has_family(face, |family| WESTERN.contains(&family));
        system.faces().filter(is_western).for_each(|face| {
            western.push_face_info(face.clone());
        });
        if western.is_empty() {
            eprintln!("skipped: none of {WESTERN:?} is installed");
            return;
        }
        let missing = Painter::with_fonts(&western).png(LABELS).unwrap().missing;
        assert!("中文বাংল".chars().all(|letter| missing.contains(&letter)), "{missing:?}");
        assert!("Bulgarianбългарски".chars().all(|letter| !missing.contains(&letter)), "{missing:?}");
    }

    /// With fonts of all three scripts nothing is missing, and a label's ink is on the picture.
    #[test]
    fn labels_of_three_scripts_are_drawn() {
        let painter = Painter::new();
        let picture = painter.png(LABELS).unwrap();
        if !picture.missing.is_empty() {
            eprintln!("skipped: no font of this system has {:?}", picture.missing);
            return;
        }
        for label in ["български", "中文", "বাংলা"] {
            let one = LABELS.replace("Bulgarian · български, Chinese · 中文, Bengali · বাংলা", label);
            let pixels = Pixmap::decode_png(&painter.png(&one).unwrap().png).unwrap();
            assert!(pixels.pixels().iter().any(|pixel| pixel.alpha() > 200), "{label}");
        }
    }

    #[test]
    fn a_system_without_fonts_is_known() {
        assert!(!Painter::with_fonts(&Database::new()).has_fonts());
    }
}
