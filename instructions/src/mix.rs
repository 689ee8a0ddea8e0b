//! Mixes: the exact ordered rows that a run trains on, each with its manifest.
//!
//! Everything is drawn by rank: a row's place is a hash of the seed, what is drawn, and the row's id. So the same
//! inputs give the same bytes on every machine, in whatever order the sets come; a smaller mix is a part of a larger
//! one; and parallel sets give the same ids.

mod draw;
mod manifest;
mod sets;
mod split;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

pub use manifest::{Cost, LanguageCounts, LeftOut, Manifest, RowEntry};
pub use sets::{Set, Sets};
pub use split::TooFewToHoldOut;

use crate::budget::{Budget, CountFlops, CountTokens, Held, Meter};
use crate::files::{read_bytes, write_json, write_json_lines};
use crate::language::Language;
use crate::recipe::{Mixes, Recipe};
use crate::record::Record;
use draw::{Drawn, draw};
use split::Pools;

/// The rows that one tuning trains on, in order, and those that choose its checkpoint.
#[derive(Clone, Debug, PartialEq)]
pub struct Mix {
    /// The recipe's name; behind it, where the recipe makes several mixes, the language (`monolingual-fi`) or the
    /// number of languages (`growing-3`).
    pub name: String,
    /// The recipe's name.
    pub recipe: String,
    /// The languages of its rows, in the recipe's order.
    pub languages: Vec<Language>,
    /// The one language that its system answers; none where it answers all, unseen ones too.
    pub answers: Option<Language>,
    /// What is trained on, in order.
    pub rows: Vec<Record>,
    /// Held out: no id of it is trained on in any language (where the split is by id).
    pub validation: Vec<Record>,
    /// Everything about it, with [`Manifest::hash`] of its content.
    pub manifest: Manifest,
}

/// How validation rows are set apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Split {
    /// By id: a row validated in one language is trained on in none.
    #[default]
    Id,
    /// By row, each language by itself, as the paper's authors did.
    Row,
}

/// What holds for all recipes of an experiment, so that their mixes can be compared.
#[derive(Clone)]
pub struct MixOptions<'a> {
    /// The experiment's languages, in its order; all of the sets' where empty. C is taken over their sets.
    pub languages: Vec<Language>,
    /// For every draw.
    pub seed: u64,
    /// What is held equal, and C.
    pub budget: Budget,
    /// Rows of each set that are held out for validation.
    pub validation_rows: usize,
    /// How they are set apart.
    pub split: Split,
    /// Counts tokens; needed where tokens or FLOPs are held, and else only told in the manifest.
    pub tokens: Option<CountTokens<'a>>,
    /// Counts a sequence's FLOPs; needed where they are held.
    pub flops: Option<CountFlops<'a>>,
}

impl Default for MixOptions<'_> {
    fn default() -> Self {
        Self {
            languages: Vec::new(),
            seed: 0,
            budget: Budget::default(),
            validation_rows: 0,
            split: Split::Id,
            tokens: None,
            flops: None,
        }
    }
}

impl Recipe {
    /// Makes this recipe's mixes.
    ///
    /// # Errors
    /// Where the recipe does not hold together ([`Recipe::check`]), a language has no set, or a set is too small:
    /// each names the recipe, the language, what was found and what was needed.
    pub fn mixes(&self, sets: &Sets, options: &MixOptions) -> Result<Vec<Mix>> {
        self.check()?;
        let meter = Meter::new(options.budget.held, options.tokens, options.flops)?;
        let mut all = Vec::new();
        self.each_mix(&Pools::new(sets, options, &meter)?, &meter, options, &mut |mix| {
            all.push(mix);
            Ok(())
        })?;
        Ok(all)
    }

    fn each_mix(
        &self,
        pools: &Pools,
        meter: &Meter,
        options: &MixOptions,
        each: &mut dyn FnMut(Mix) -> Result<()>,
    ) -> Result<()> {
        let languages =
            if self.languages.is_empty() { pools.languages().to_vec() } else { self.languages.clone() };
        for language in languages.iter().chain(self.replace.iter().flat_map(|replace| &replace.with)) {
            if !pools.has(language) {
                bail!("recipe `{}`: there is no set in {language} ({})", self.name, language.english_name());
            }
        }
        for named in self.named(&languages) {
            let drawn = draw(self, &named.languages, pools, meter, options)
                .with_context(|| format!("recipe `{}`", self.name))?;
            each(self.mix(named, drawn, pools, options))?;
        }
        Ok(())
    }

    /// The mixes that it makes of some languages, before they are drawn.
    fn named(&self, languages: &[Language]) -> Vec<Named> {
        match self.mixes {
            Mixes::One => vec![Named::new(self.name.clone(), languages)],
            Mixes::PerLanguage => languages
                .iter()
                .map(|language| {
                    let named = Named::new(self.name_in(language), std::slice::from_ref(language));
                    Named { answers: Some(language.clone()), ..named }
                })
                .collect(),
            Mixes::Growing => (1..=languages.len())
                .map(|number| Named::new(format!("{}-{number}", self.name), &languages[..number]))
                .collect(),
        }
    }

    /// The name of its mix of one language, where it makes one for each.
    fn name_in(&self, language: &Language) -> String {
        format!("{}-{language}", self.name)
    }

    fn mix(&self, mut named: Named, drawn: Drawn, pools: &Pools, options: &MixOptions) -> Mix {
        for entry in &drawn.entries {
            if !named.languages.contains(&entry.language) {
                named.languages.push(entry.language.clone());
            }
        }
        let (validation, validation_entries) = pools.validation(self, &named.languages);
        let manifest = Manifest::new(self, &named, &drawn, &validation, validation_entries, pools, options);
        Mix {
            name: named.name,
            recipe: self.name.clone(),
            languages: named.languages,
            answers: named.answers,
            rows: drawn.rows,
            validation,
            manifest,
        }
    }
}

/// A mix's name, with what [`Mix::languages`] and [`Mix::answers`] say of it.
struct Named {
    name: String,
    languages: Vec<Language>,
    answers: Option<Language>,
}

impl Named {
    fn new(name: String, languages: &[Language]) -> Self {
        Self { name, languages: languages.to_vec(), answers: None }
    }
}

/// The mixes of several recipes under one budget. Mixes with the same [`Manifest::hash`] and updates are one tuning:
/// see [`tunings`].
///
/// # Errors
/// As [`Recipe::mixes`], and where two recipes share a name.
pub fn mixes(recipes: &[Recipe], sets: &Sets, options: &MixOptions) -> Result<Vec<Mix>> {
    let mut all = Vec::new();
    for_each_mix(recipes, sets, options, |mix| {
        all.push(mix);
        Ok(())
    })?;
    Ok(all)
}

/// As [`mixes`], one at a time, for mixes that are more than the memory holds.
///
/// # Errors
/// As [`mixes`], and what `each` returns.
pub fn for_each_mix(
    recipes: &[Recipe],
    sets: &Sets,
    options: &MixOptions,
    mut each: impl FnMut(Mix) -> Result<()>,
) -> Result<()> {
    let mut names = BTreeSet::new();
    for recipe in recipes {
        recipe.check()?;
        if !names.insert(&recipe.name) {
            bail!("recipe `{}`: the name is taken twice", recipe.name);
        }
    }
    // Tokens are counted once for all recipes.
    let meter = Meter::new(options.budget.held, options.tokens, options.flops)?;
    let pools = Pools::new(sets, options, &meter)?;
    for recipe in recipes {
        recipe.each_mix(&pools, &meter, options, &mut each)?;
    }
    Ok(())
}

/// The tunings that mixes need: for each different content (and number of updates, where they are held), the mixes
/// that it serves. `english`, and `monolingual` in English, are one.
pub fn tunings(mixes: &[Mix]) -> Vec<Vec<&Mix>> {
    let mut places: BTreeMap<(&str, Option<u64>), usize> = BTreeMap::new();
    let mut tunings: Vec<Vec<&Mix>> = Vec::new();
    for mix in mixes {
        let place = *places.entry((&mix.manifest.hash, mix.manifest.updates)).or_insert_with(|| {
            tunings.push(Vec::new());
            tunings.len() - 1
        });
        tunings[place].push(mix);
    }
    tunings
}

const ROWS_FILE: &str = "rows.jsonl";
const VALIDATION_FILE: &str = "validation.jsonl";
const MANIFEST_FILE: &str = "manifest.json";

impl Mix {
    /// Writes `rows.jsonl`, `validation.jsonl` and, last, `manifest.json` into a folder: a folder with a manifest is
    /// whole.
    ///
    /// # Errors
    /// Where a file cannot be written.
    pub fn write(&self, folder: &Path) -> Result<()> {
        write_json_lines(&folder.join(ROWS_FILE), &self.rows)?;
        write_json_lines(&folder.join(VALIDATION_FILE), &self.validation)?;
        write_json(&folder.join(MANIFEST_FILE), &self.manifest)
    }

    /// Reads what [`Mix::write`] wrote, and checks the rows against the manifest's hash.
    ///
    /// # Errors
    /// Where a file is missing, broken, or not what the manifest says.
    pub fn read(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST_FILE);
        let manifest: Manifest = serde_json::from_slice(&read_bytes(&path)?)
            .with_context(|| format!("{}: is no mix's manifest", path.display()))?;
        let rows = read_rows(&folder.join(ROWS_FILE))?;
        let validation = read_rows(&folder.join(VALIDATION_FILE))?;
        let hash = manifest::content_hash(&rows, &validation);
        if hash != manifest.hash {
            bail!(
                "{}: its rows have the hash {hash}, its manifest says {}: they were changed or cut short",
                folder.display(),
                manifest.hash
            );
        }
        Ok(Self {
            name: manifest.name.clone(),
            recipe: manifest.recipe.name.clone(),
            languages: manifest.languages_in_order(),
            answers: manifest.answers(),
            rows,
            validation,
            manifest,
        })
    }
}

/// Rows as written: unlike a set's, ids may come again, and every line must be whole.
fn read_rows(path: &Path) -> Result<Vec<Record>> {
    let bytes = read_bytes(path)?;
    serde_json::Deserializer::from_slice(&bytes)
        .into_iter()
        .enumerate()
        .map(|(index, row)| {
            row.with_context(|| format!("{}, line {}: is no record", path.display(), index + 1))
        })
        .collect()
}

/// C as the user reads it: `C = 5000 rows`.
pub fn describe_c(c: u64, held: Held) -> String {
    format!("C = {c} {held}")
}

#[cfg(test)]
mod tests;
