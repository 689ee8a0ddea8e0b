//! Learning curves: validation loss in each language against updates.

use super::compose::{Composer, Names, language_title, slug};
use super::plot::{Axis, Figure, Lines, Panel, Plot, Point, Series};
use crate::read::Records;
use crate::records::{BaseModel, CurvePoint, Language, System, SystemKind};

impl Composer<'_> {
    /// A figure a method, of its largest base model that has curves.
    pub(super) fn learning(&self, records: &Records) -> Vec<Figure> {
        self.methods()
            .filter_map(|method| {
                let with_curves = |base: &&BaseModel| {
                    records.systems.iter().any(|system| {
                        system.base_model.as_ref() == Some(&base.name)
                            && system.method.as_deref() == Some(method)
                            && !system.learning_curve.is_empty()
                    })
                };
                let bases = self.experiment.base_models.iter().filter(with_curves);
                self.learning_of(records, method, bases.max_by_key(|base| base.parameters)?)
            })
            .collect()
    }

    fn learning_of(&self, records: &Records, method: &str, base: &BaseModel) -> Option<Figure> {
        let mut names = Names::default();
        let panels: Vec<Panel> = self
            .languages(true)
            .into_iter()
            .filter_map(|language| {
                let series = self.curves(records, method, base, language, &mut names);
                (!series.is_empty()).then(|| curve_panel(language, series))
            })
            .collect();
        if panels.is_empty() {
            return None;
        }
        Some(Figure {
            id: format!("learning-{}", slug(method)),
            title: format!("Learning curves: {}, {method}", base.name),
            caption: "Validation loss (nats a supervised token) in each language against updates, a line a seed. The \
                      mark is the checkpoint that was kept. A recipe whose validation rows hold no such language has \
                      no line, nor has a run that failed or is missing. Vertical axes differ between languages."
                .to_owned(),
            columns: 3.min(panels.len()),
            panel_size: (256, 210),
            legend: self.legend(&names),
            panels,
        })
    }

    /// Two series a run: its curve, and the checkpoint that was kept.
    fn curves(
        &self,
        records: &Records,
        method: &str,
        base: &BaseModel,
        language: &Language,
        names: &mut Names,
    ) -> Vec<Series> {
        let mut series = Vec::new();
        for line in self.lines_of(&base.name, method).filter(|line| line.kind == SystemKind::Tuned) {
            let runs = line.cell(&language.code).map_or(&[][..], |cell| &cell.runs);
            for run in runs {
                let Some(system) = records.systems.iter().find(|system| system.id == run.system) else {
                    continue;
                };
                let points = curve(system, &language.code);
                if points.is_empty() {
                    continue;
                }
                names.note(&line.recipe);
                let mut style = self.style(&line.recipe);
                style.dashed = false;
                let kept = |point: &&Point| system.best_update.is_some_and(|best| best as f64 == point.x);
                let best = points.iter().filter(kept).cloned().collect();
                let name = line.recipe.clone();
                series.push(Series { name: name.clone(), style, joined: true, marked: false, points });
                series.push(Series { name, style, joined: false, marked: true, points: best });
            }
        }
        series
    }
}

/// A system's losses in a language; where it was tuned on that language alone, its loss over all is that loss.
fn curve(system: &System, language: &str) -> Vec<Point> {
    let alone = system.languages == [language];
    let loss = |point: &CurvePoint| {
        let own = point.validation_loss_by_language.get(language).copied();
        own.or(point.validation_loss.filter(|_| alone))
    };
    system
        .learning_curve
        .iter()
        .filter_map(|point| {
            let y = Some(loss(point)?);
            Some(Point { x: point.update as f64, y, interval: None, partial: false, source: None })
        })
        .collect()
}

fn curve_panel(language: &Language, series: Vec<Series>) -> Panel {
    let all = || series.iter().flat_map(|series| &series.points);
    let highest = all().map(|point| point.x).fold(1.0, f64::max);
    let y = Axis::around(all().filter_map(|point| point.y));
    Panel {
        title: language_title(language),
        x_title: "updates".to_owned(),
        y_title: "validation loss".to_owned(),
        plot: Plot::Lines(Lines { x: Axis::from_zero(highest * 1.04), y, series }),
    }
}
