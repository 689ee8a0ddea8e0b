//! Fertility against score.

use super::compose::{Composer, Names};
use super::plot::{Axis, Figure, Lines, Panel, Plot, Point, Series};
use crate::records::{Language, SystemKind};
use crate::results::CellState;

impl Composer<'_> {
    /// A panel a method: a mark a language and recipe for the largest base model of each family. A family has one
    /// tokenizer, and all of its sizes would stand above each other.
    pub(super) fn fertility(&self) -> Vec<Figure> {
        let known = self.experiment.base_models.iter().flat_map(|base| base.fertility.values().copied());
        let highest = known.fold(0.0, f64::max);
        if highest == 0.0 {
            return Vec::new();
        }
        let mut names = Names::default();
        let panels = self.methods().map(|method| self.fertility_panel(method, highest, &mut names)).collect();
        vec![Figure {
            id: "fertility".to_owned(),
            title: "Fertility against score".to_owned(),
            caption: "Gated total against the tokenizer's tokens a word: a mark a language and recipe, for the \
                      largest base model of each family. A hollow mark leaves something out; a cross is a result with nothing to show."
                .to_owned(),
            columns: 2,
            panel_size: (384, 240),
            legend: self.legend(&names),
            panels,
        }]
    }

    fn fertility_panel(&self, method: &str, highest: f64, names: &mut Names) -> Panel {
        let mut series: Vec<Series> = Vec::new();
        let families = self.family_names().into_iter();
        for base in families.filter_map(|family| self.of_family(family).pop()) {
            for line in self.lines_of(&base.name, method).filter(|line| line.kind == SystemKind::Tuned) {
                for cell in &line.cells {
                    let Some(&x) = base.fertility.get(&cell.language) else { continue };
                    if cell.state == CellState::Absent {
                        continue;
                    }
                    names.note(&line.recipe);
                    let point = Point {
                        x,
                        y: cell.value(),
                        interval: None,
                        partial: cell.state == CellState::Partial,
                        source: Some(line.source(method, &cell.language)),
                    };
                    self.add(&mut series, &line.recipe, false, point);
                }
            }
        }
        let languages: Vec<&Language> = self.experiment.languages.iter().collect();
        let (x, y) = (Axis::from_zero(highest * 1.06), Axis::from_zero(self.greatest(&languages)));
        Panel {
            title: method.to_owned(),
            x_title: "tokens a word".to_owned(),
            y_title: "score".to_owned(),
            plot: Plot::Lines(Lines { x, y, series }),
        }
    }
}
