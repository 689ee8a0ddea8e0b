//! The rows of each set that may be trained on, those that are held out, and C.

use std::collections::BTreeSet;

use anyhow::{Result, bail};

use super::manifest::{LeftOut, RowEntry};
use super::{MixOptions, Set, Sets, Split};
use crate::budget::{Held, Measured, Meter, counted};
use crate::language::Language;
use crate::recipe::{Origin, Recipe};
use crate::record::Record;

/// A row's place in a draw, from a hash of the seed, what is drawn, and what it is drawn for. Half of the hash's 256
/// bits are enough to have no ties in any set.
pub(super) fn rank(seed: u64, purpose: &[&str]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    for part in purpose {
        // The length goes before each part, so that no two purposes run together.
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut half = [0; 16];
    half.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
    u128::from_le_bytes(half)
}

/// A row that may be drawn.
#[derive(Clone, Copy)]
pub(super) struct Candidate<'a> {
    pub(super) record: &'a Record,
    pub(super) origin: Origin,
    pub(super) measured: Measured,
}

impl Candidate<'_> {
    pub(super) fn entry(&self) -> RowEntry {
        RowEntry {
            id: self.record.id.clone(),
            language: self.record.language.clone(),
            origin: self.origin,
            response_language: None,
        }
    }
}

/// One set after the split.
struct Pool<'a> {
    language: Language,
    origin: Origin,
    training: Vec<Candidate<'a>>,
    validation: Vec<Candidate<'a>>,
    left_out: Vec<LeftOut>,
}

/// All sets after the split.
pub(super) struct Pools<'a> {
    pools: Vec<Pool<'a>>,
    languages: Vec<Language>,
    /// C in the budget's unit.
    pub(super) c: u64,
    /// C in the unit that rows are drawn by: rows where updates are held.
    pub(super) drawn_c: u64,
}

impl<'a> Pools<'a> {
    pub(super) fn new(sets: &'a Sets, options: &MixOptions, meter: &Meter) -> Result<Self> {
        let mut languages = options.languages.clone();
        if languages.is_empty() {
            let all: BTreeSet<&Language> = sets.iter().map(|set| &set.language).collect();
            languages.extend(all.into_iter().cloned());
        }
        for language in &languages {
            if !sets.iter().any(|set| set.language == *language) {
                bail!("there is no set in {language} ({})", language.english_name());
            }
        }
        let mut pools = Vec::new();
        for set in sets.iter().filter(|set| languages.contains(&set.language)) {
            pools.push(Pool::of(set, meter)?);
        }
        hold_out(&mut pools, options)?;
        let (c, drawn_c) = c(&pools, options)?;
        Ok(Self { pools, languages, c, drawn_c })
    }

    pub(super) fn languages(&self) -> &[Language] {
        &self.languages
    }

    pub(super) fn has(&self, language: &Language) -> bool {
        self.pools.iter().any(|pool| pool.language == *language)
    }

    /// The pools of a language that a recipe takes rows from.
    fn of<'b>(&'b self, recipe: &'b Recipe, language: &'b Language) -> impl Iterator<Item = &'b Pool<'a>> {
        let origin = recipe.origin_in(language);
        self.pools.iter().filter(move |pool| {
            pool.language == *language && origin.is_none_or(|origin| pool.origin == origin)
        })
    }

    /// The rows of a language that a recipe may train on, each id once: of several origins, the first set's row.
    pub(super) fn training(
        &self,
        recipe: &Recipe,
        language: &Language,
    ) -> (Vec<Candidate<'a>>, Vec<LeftOut>) {
        let mut seen = BTreeSet::new();
        let mut candidates = Vec::new();
        let mut left_out = Vec::new();
        let mut other_origin = Vec::new();
        for pool in self.of(recipe, language) {
            left_out.extend(pool.left_out.iter().cloned());
            for candidate in &pool.training {
                if seen.insert(candidate.record.id.as_str()) {
                    candidates.push(*candidate);
                } else {
                    other_origin.push(candidate.record.id.clone());
                }
            }
        }
        if !other_origin.is_empty() {
            left_out.push(LeftOut {
                language: language.clone(),
                reason: "the id is there from another origin too".to_owned(),
                ids: other_origin,
            });
        }
        (candidates, left_out)
    }

    /// The validation rows of some languages, as a recipe takes them.
    pub(super) fn validation(&self, recipe: &Recipe, languages: &[Language]) -> (Vec<Record>, Vec<RowEntry>) {
        let mut rows = Vec::new();
        let mut entries = Vec::new();
        for language in languages {
            let mut seen = BTreeSet::new();
            for candidate in self.of(recipe, language).flat_map(|pool| &pool.validation) {
                if seen.insert(candidate.record.id.as_str()) {
                    rows.push(candidate.record.clone());
                    entries.push(candidate.entry());
                }
            }
        }
        (rows, entries)
    }
}

impl<'a> Pool<'a> {
    /// `the set in fi`, with its origin where there may be several.
    fn name(&self) -> String {
        match self.origin {
            Origin::Native => format!("the set in {}", self.language),
            origin => format!("the set in {} ({})", self.language, origin.name()),
        }
    }

    /// A set's rows, each id once, none of them held out yet.
    fn of(set: &'a Set, meter: &Meter) -> Result<Self> {
        let mut seen = BTreeSet::new();
        let mut repeated = Vec::new();
        let mut records = Vec::with_capacity(set.records.len());
        for record in &set.records {
            if record.language != set.language {
                bail!(
                    "the set in {} has a record in {} (id {}): a set is of one language",
                    set.language,
                    record.language,
                    record.id
                );
            }
            if seen.insert(record.id.as_str()) {
                records.push(record);
            } else {
                repeated.push(record.id.clone());
            }
        }
        let measured = meter.measure_all(&records);
        let candidate = |(record, measured)| Candidate { record, origin: set.origin, measured };
        let mut pool = Self {
            language: set.language.clone(),
            origin: set.origin,
            training: records.into_iter().zip(measured).map(candidate).collect(),
            validation: Vec::new(),
            left_out: Vec::new(),
        };
        pool.leave_out("the id was met before in the set", repeated);
        Ok(pool)
    }

    /// What one pass over its training rows costs.
    fn cost(&self) -> u128 {
        self.training.iter().map(|candidate| u128::from(candidate.measured.cost)).sum()
    }

    fn leave_out(&mut self, reason: &str, ids: Vec<String>) {
        if !ids.is_empty() {
            self.left_out.push(LeftOut { language: self.language.clone(), reason: reason.to_owned(), ids });
        }
    }
}

/// A set that has no row left to train on when its validation rows are held out.
#[derive(Debug, thiserror::Error)]
#[error("{set} has {rows} rows: expected more than the {wanted} that are held out for validation")]
pub struct TooFewToHoldOut {
    /// The set's language, and its origin where it is not native.
    pub set: String,
    /// Its rows.
    pub rows: usize,
    /// [`MixOptions::validation_rows`].
    pub wanted: usize,
}

/// Moves each set's validation rows out of its training rows.
fn hold_out(pools: &mut [Pool], options: &MixOptions) -> Result<()> {
    let wanted = options.validation_rows;
    if wanted == 0 {
        return Ok(());
    }
    let seed = options.seed;
    let mut held_out: Vec<BTreeSet<String>> = Vec::new();
    for pool in pools.iter() {
        if pool.training.len() <= wanted {
            return Err(TooFewToHoldOut { set: pool.name(), rows: pool.training.len(), wanted }.into());
        }
        let mut ranked: Vec<(u128, &str)> = pool
            .training
            .iter()
            .map(|candidate| {
                let id = candidate.record.id.as_str();
                let rank = match options.split {
                    // By the id alone: parallel sets hold out the same ids.
                    Split::Id => rank(seed, &["validation", id]),
                    Split::Row => rank(seed, &["validation", pool.language.code(), id]),
                };
                (rank, id)
            })
            .collect();
        ranked.sort_unstable();
        held_out.push(ranked[..wanted].iter().map(|(_, id)| (*id).to_owned()).collect());
    }
    let anywhere: BTreeSet<&String> = held_out.iter().flatten().collect();
    for (pool, own) in pools.iter_mut().zip(&held_out) {
        let (mut training, mut elsewhere) = (Vec::new(), Vec::new());
        for candidate in std::mem::take(&mut pool.training) {
            if own.contains(&candidate.record.id) {
                pool.validation.push(candidate);
            } else if options.split == Split::Id && anywhere.contains(&candidate.record.id) {
                elsewhere.push(candidate.record.id.clone());
            } else {
                training.push(candidate);
            }
        }
        pool.training = training;
        pool.validation.sort_by_key(|candidate| {
            (rank(seed, &["validation", &candidate.record.id]), candidate.record.id.as_str())
        });
        pool.leave_out("the id is validated in another set", elsewhere);
    }
    Ok(())
}

/// C in the budget's unit, and in the unit that rows are drawn by.
fn c(pools: &[Pool], options: &MixOptions) -> Result<(u64, u64)> {
    let budget = &options.budget;
    let costs = pools.iter().map(|pool| (pool.cost(), pool));
    let Some((cost, pool)) = costs.min_by_key(|(cost, _)| *cost) else { bail!("there are no sets") };
    if cost == 0 {
        bail!("{} has no rows to train on", pool.name());
    }
    let smallest = || counted(cost, budget.held, || pool.name());
    match (budget.held, budget.c) {
        (_, Some(0)) => bail!("the budget's C is 0: expected at least 1"),
        (Held::Updates, _) if budget.batch == 0 => bail!("the budget's `batch` is 0: expected at least 1"),
        (Held::Updates, Some(c)) => Ok((c, smallest()?)),
        (Held::Updates, None) => {
            let rows = smallest()?;
            Ok((rows.saturating_mul(budget.epochs).div_ceil(budget.batch).max(1), rows))
        }
        (_, Some(c)) => Ok((c, c)),
        (_, None) => {
            let c = smallest()?;
            Ok((c, c))
        }
    }
}
