//! Bars: families of base models at one size (the paper's figure 8), or recipes where there is one size alone.

use super::compose::{BARS, Composer, Names, billions, cell_mark, language_title, row_of_panels, slug};
use super::plot::{Axis, Bar, Bars, Figure, Group, Panel, Plot};
use crate::records::{BaseModel, Language};

impl Composer<'_> {
    /// A panel a language, a group of bars a family, a bar a recipe; a figure a method.
    pub(super) fn families(&self) -> Vec<Figure> {
        let families = self.family_names();
        if families.len() < 2 {
            return Vec::new();
        }
        let chosen = self.nearest_in_size(&families);
        let sizes: Vec<String> = chosen
            .iter()
            .map(|base| format!("{} ({} billion parameters)", base.name, billions(base.parameters)))
            .collect();
        self.methods()
            .map(|method| {
                let mut names = Names::default();
                let panels = self.bar_panels(|language| {
                    let group = |base: &&BaseModel| Group {
                        label: base.family.clone(),
                        bars: self.bars(&base.name, method, language, &mut names),
                    };
                    chosen.iter().map(group).collect()
                });
                Figure {
                    id: format!("families-{}", slug(method)),
                    title: format!("Families of base models, {method}"),
                    caption: format!(
                        "Gated total of each recipe, by family of base models, at their nearest sizes: {}. {BARS}",
                        sizes.join(", ")
                    ),
                    columns: 2,
                    panel_size: (384, 190),
                    legend: self.legend(&names),
                    panels,
                }
            })
            .collect()
    }

    /// Bars by recipe where sizes cannot make a line, unless there are so many base models that their families are
    /// compared instead.
    pub(super) fn recipes_at_one_size(&self) -> Vec<Figure> {
        if self.experiment.base_models.len() > 3 {
            return Vec::new();
        }
        let alone = |base: &&BaseModel| self.of_family(&base.family).len() == 1;
        self.experiment
            .base_models
            .iter()
            .filter(alone)
            .flat_map(|base| self.methods().map(move |method| self.recipes_of(base, method)))
            .collect()
    }

    fn recipes_of(&self, base: &BaseModel, method: &str) -> Figure {
        let (columns, panel_size) = row_of_panels(self.experiment.languages.len());
        let mut names = Names::default();
        let panels = self.bar_panels(|language| {
            let mut bars = self.bars(&base.name, method, language, &mut names);
            for line in self.endpoints() {
                names.note(&line.recipe);
                bars.push(self.bar(line, cell_mark(line.cell(language)), line.source(method, language)));
            }
            vec![Group { label: String::new(), bars }]
        });
        let greatest = self.greatest(&self.experiment.languages.iter().collect::<Vec<_>>());
        Figure {
            id: format!("recipes-{}-{}", slug(method), slug(&base.name)),
            title: format!("Recipes by language: {}, {method}", base.name),
            caption: format!("Gated total of each recipe, of at most {greatest}, in each language. {BARS}"),
            columns,
            panel_size,
            legend: self.legend(&names),
            panels,
        }
    }

    /// A panel a language, on one axis.
    fn bar_panels(&self, mut groups: impl FnMut(&str) -> Vec<Group>) -> Vec<Panel> {
        let languages: Vec<&Language> = self.experiment.languages.iter().collect();
        let y = Axis::from_zero(self.greatest(&languages));
        languages
            .iter()
            .map(|language| Panel {
                title: language_title(language),
                x_title: String::new(),
                y_title: "score".to_owned(),
                plot: Plot::Bars(Bars { y: y.clone(), groups: groups(&language.code) }),
            })
            .collect()
    }

    fn bars(&self, base: &str, method: &str, language: &str, names: &mut Names) -> Vec<Bar> {
        self.lines_of(base, method)
            .map(|line| {
                names.note(&line.recipe);
                self.bar(line, cell_mark(line.cell(language)), line.source(method, language))
            })
            .collect()
    }

    /// The base model of each family that lies nearest to one size; the size is the one that all families come
    /// nearest to.
    fn nearest_in_size(&self, families: &[&str]) -> Vec<&BaseModel> {
        let distance = |left: u64, right: u64| (left as f64 / right as f64).ln().abs();
        let nearest = |size: u64| -> Vec<&BaseModel> {
            families
                .iter()
                .filter_map(|family| {
                    self.of_family(family).into_iter().min_by(|left, right| {
                        distance(left.parameters, size).total_cmp(&distance(right.parameters, size))
                    })
                })
                .collect()
        };
        let sum = |size: u64| nearest(size).iter().map(|base| distance(base.parameters, size)).sum::<f64>();
        self.experiment
            .base_models
            .iter()
            .map(|base| base.parameters)
            .min_by(|&left, &right| sum(left).total_cmp(&sum(right)))
            .map(nearest)
            .unwrap_or_default()
    }
}
