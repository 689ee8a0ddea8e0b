//! What a mix is made of, to be kept beside it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::draw::Drawn;
use super::split::Pools;
use super::{MixOptions, Named, Split};
use crate::budget::Held;
use crate::files::{Place, Problem};
use crate::language::Language;
use crate::recipe::{Mixes, Origin, Recipe};
use crate::record::Record;

/// Everything about a mix but the text of its rows.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// The mix's name.
    pub name: String,
    /// The recipe that made it, whole.
    pub recipe: Recipe,
    /// The seed of every draw.
    pub seed: u64,
    /// blake3 of the rows and the validation rows, in order, as hexadecimal digits. Mixes with the same content have
    /// the same hash, whatever recipe made them.
    pub hash: String,
    /// What it costs.
    pub cost: Cost,
    /// How many updates it is trained for, where updates are held; else the tuning's own settings say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updates: Option<u64>,
    /// Rows and tokens by language.
    pub languages: BTreeMap<Language, LanguageCounts>,
    /// As [`Mix::languages`](super::Mix::languages): in the recipe's order, those without rows too. Empty in manifests
    /// from before it was written down.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub language_order: Vec<Language>,
    /// As [`Mix::answers`](super::Mix::answers).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Language>,
    /// How validation rows were set apart.
    pub split: Split,
    /// Each row, in order.
    pub rows: Vec<RowEntry>,
    /// Each validation row, in order.
    pub validation: Vec<RowEntry>,
    /// Rows of its languages that are not in it, by language and reason.
    pub left_out: Vec<LeftOut>,
}

/// What a mix costs, in the budget's unit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Cost {
    /// What is held equal.
    pub held: Held,
    /// C: the cost of one monolingual run.
    pub c: u64,
    /// What the mix was allowed.
    pub budget: u64,
    /// What it costs, never above `budget`, and equal to it in rows and updates. In tokens and FLOPs rows are taken while
    /// they fit, so each language is short of its part by less than one row; with aligned sampling, where all end with
    /// the first that does not fit, by less than that row times its part over that row's language's. Replaced and
    /// cross-lingual rows cost other than those that were drawn: where less, that leaves it short by the difference, and
    /// where more than the budget, the last rows are left out.
    pub amount: u64,
    /// The amount in units of C.
    pub in_c: f64,
}

/// Rows and tokens of one language.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LanguageCounts {
    /// Rows trained on.
    pub rows: u64,
    /// Their tokens, where a tokenizer was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u64>,
    /// Rows held out.
    pub validation_rows: u64,
}

/// One row of a mix.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowEntry {
    /// Its id.
    pub id: String,
    /// Its language: the instruction's.
    pub language: Language,
    /// Where its text comes from.
    pub origin: Origin,
    /// The output's language, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_language: Option<Language>,
}

/// Rows of a language that are not in a mix, for one reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LeftOut {
    /// The language.
    pub language: Language,
    /// Why.
    pub reason: String,
    /// Which. Rows that could not be read are told by their file's name and their place in it.
    pub ids: Vec<String>,
}

impl Manifest {
    /// Lists rows of a file that could not be read among those left out: by the file's name and their place in it, as
    /// they have no id. The hash is of the content alone, and stays.
    pub fn add_unread(&mut self, language: &Language, problems: &[Problem]) {
        for problem in problems.iter().filter(|problem| problem.dropped) {
            let file = problem.file.file_name().unwrap_or_default().to_string_lossy();
            let place = match problem.place {
                Place::File => file.into_owned(),
                Place::Line(line) => format!("{file}, line {line}"),
                Place::Row { row, .. } => format!("{file}, row {row}"),
            };
            let reason = format!("could not be read: {}", problem.what);
            let same = |left: &&mut LeftOut| left.language == *language && left.reason == reason;
            match self.left_out.iter_mut().find(same) {
                Some(left) => left.ids.push(place),
                None => {
                    self.left_out.push(LeftOut { language: language.clone(), reason, ids: vec![place] });
                }
            }
        }
    }

    pub(super) fn new(
        recipe: &Recipe,
        named: &Named,
        drawn: &Drawn,
        validation: &[Record],
        validation_entries: Vec<RowEntry>,
        pools: &Pools,
        options: &MixOptions,
    ) -> Self {
        let mut languages: BTreeMap<Language, LanguageCounts> = BTreeMap::new();
        for (record, measured) in drawn.rows.iter().zip(&drawn.measured) {
            let counts = languages.entry(record.language.clone()).or_default();
            counts.rows += 1;
            if let Some(tokens) = measured.tokens {
                *counts.tokens.get_or_insert(0) += tokens;
            }
        }
        for record in validation {
            languages.entry(record.language.clone()).or_default().validation_rows += 1;
        }
        let held = options.budget.held;
        // Rows say how much of C a mix is; its updates follow.
        let updates = (held == Held::Updates).then(|| {
            let exact = u128::from(pools.c) * u128::from(drawn.budget) / u128::from(pools.drawn_c.max(1));
            u64::try_from(exact).unwrap_or(u64::MAX).max(1)
        });
        let amount = updates.unwrap_or(drawn.amount);
        let cost = Cost {
            held,
            c: pools.c,
            budget: updates.unwrap_or(drawn.budget),
            amount,
            in_c: amount as f64 / pools.c as f64,
        };
        Self {
            name: named.name.clone(),
            recipe: recipe.clone(),
            seed: options.seed,
            hash: content_hash(&drawn.rows, validation),
            cost,
            updates,
            languages,
            language_order: named.languages.clone(),
            answers: named.answers.clone(),
            split: options.split,
            rows: drawn.entries.clone(),
            validation: validation_entries,
            left_out: drawn.left_out.clone(),
        }
    }

    /// The mix's languages; where the manifest does not say their order, those with rows, by code.
    pub(super) fn languages_in_order(&self) -> Vec<Language> {
        if self.language_order.is_empty() {
            return self.languages.keys().cloned().collect();
        }
        self.language_order.clone()
    }

    /// The one language that the mix's system answers. A manifest that does not say it has it in its name.
    pub(super) fn answers(&self) -> Option<Language> {
        let in_name = |language: &&Language| self.name == self.recipe.name_in(language);
        let named =
            || self.languages.keys().find(in_name).filter(|_| self.recipe.mixes == Mixes::PerLanguage);
        self.answers.clone().or_else(|| named().cloned())
    }
}

/// blake3 of rows and validation rows in order. Lengths go before texts, so that no two contents run together.
pub(super) fn content_hash(rows: &[Record], validation: &[Record]) -> String {
    let mut hasher = blake3::Hasher::new();
    for part in [rows, validation] {
        hasher.update(&(part.len() as u64).to_le_bytes());
        for record in part {
            for text in
                [&record.id, record.language.code(), &record.instruction, &record.input, &record.output]
            {
                hasher.update(&(text.len() as u64).to_le_bytes());
                hasher.update(text.as_bytes());
            }
        }
    }
    hasher.finalize().to_hex().to_string()
}
