//! The draw of one mix's rows: each language's part, replaced and cross-lingual rows, and the order.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, bail};

use super::MixOptions;
use super::manifest::{LeftOut, RowEntry};
use super::split::{Candidate, Pools, rank};
use crate::budget::{Held, Measured, Meter, apportion, counted, weight};
use crate::language::Language;
use crate::recipe::{CrossLingual, Recipe, Replace, Sampling};
use crate::record::Record;

/// A mix's rows in order, each with its entry in the manifest.
pub(super) struct Drawn {
    pub(super) rows: Vec<Record>,
    pub(super) entries: Vec<RowEntry>,
    pub(super) measured: Vec<Measured>,
    pub(super) left_out: Vec<LeftOut>,
    /// What the mix was allowed, in the unit that rows are drawn by.
    pub(super) budget: u64,
    /// What its rows cost in that unit.
    pub(super) amount: u64,
}

/// One language of a mix.
struct Part<'a> {
    language: Language,
    candidates: Vec<Candidate<'a>>,
    budget: u64,
}

/// A drawn row; `copy` counts how often the set had been gone through before.
#[derive(Clone)]
struct Row<'a> {
    candidate: Candidate<'a>,
    copy: u64,
    /// Made from several rows; else the candidate's record.
    record: Option<Record>,
    measured: Measured,
    entry: RowEntry,
}

impl<'a> Row<'a> {
    fn new(candidate: Candidate<'a>, copy: u64) -> Self {
        Self { candidate, copy, record: None, measured: candidate.measured, entry: candidate.entry() }
    }

    fn record(&self) -> &Record {
        self.record.as_ref().unwrap_or(self.candidate.record)
    }
}

pub(super) fn draw(
    recipe: &Recipe,
    languages: &[Language],
    pools: &Pools,
    meter: &Meter,
    options: &MixOptions,
) -> Result<Drawn> {
    let mut left_out = Vec::new();
    let mut candidates = Vec::new();
    for language in languages {
        let (training, reasons) = pools.training(recipe, language);
        left_out.extend(reasons);
        candidates.push(training);
    }
    let held = options.budget.held;
    let budgets = budgets(recipe, languages, &candidates, pools, held)?;
    let all = budgets.iter().map(|budget| u128::from(*budget)).sum();
    let budget = counted(all, held, || "the mix".to_owned())?;
    let parts: Vec<Part> = languages
        .iter()
        .zip(candidates)
        .zip(&budgets)
        .map(|((language, candidates), budget)| Part {
            language: language.clone(),
            candidates,
            budget: *budget,
        })
        .collect();
    let draw = Draw { recipe, seed: options.seed, meter, pools };
    let mut rows = match recipe.sampling {
        Sampling::Same | Sampling::Independent | Sampling::Disjoint => draw.by_language(&parts)?,
        Sampling::Aligned => draw.aligned(&parts, budget, &mut left_out)?,
    };
    if let Some(replace) = &recipe.replace {
        draw.replace(&mut rows, replace)?;
    }
    if let Some(cross_lingual) = &recipe.cross_lingual {
        draw.cross_lingual(&mut rows, cross_lingual, languages)?;
    }
    rows.sort_by_cached_key(|row| {
        let record = row.record();
        let copy = row.copy.to_string();
        (draw.rank(&["order", record.language.code(), &record.id, &copy]), record.id.clone(), row.copy)
    });
    let amount = cut_to(budget, &mut rows, &mut left_out);
    list_not_drawn(&parts, &rows, &mut left_out);
    if rows.is_empty() {
        bail!("the mix has no rows: not even one fits into its budget of {budget} {held}");
    }
    let measured = rows.iter().map(|row| row.measured).collect();
    let (rows, entries) = rows
        .into_iter()
        .map(|row| (row.record.unwrap_or_else(|| row.candidate.record.clone()), row.entry))
        .unzip();
    Ok(Drawn { rows, entries, measured, left_out, budget, amount })
}

/// Each language's budget, in the unit that rows are drawn by.
fn budgets(
    recipe: &Recipe,
    languages: &[Language],
    candidates: &[Vec<Candidate>],
    pools: &Pools,
    held: Held,
) -> Result<Vec<u64>> {
    if !recipe.counts.is_empty() {
        names_only(recipe.counts.keys(), languages, "counts")?;
        return Ok(languages
            .iter()
            .map(|language| recipe.counts.get(language).copied().unwrap_or(0))
            .collect());
    }
    let total = match (recipe.rows, recipe.size_per_language, recipe.size) {
        (Some(rows), _, _) => u128::from(rows),
        (_, Some(size), _) => in_c(size, pools.drawn_c).saturating_mul(languages.len() as u128),
        (_, _, size) => in_c(size.unwrap_or(1.0), pools.drawn_c),
    };
    let total = counted(total, held, || "the mix".to_owned())?;
    let weights: Vec<u64> = if !recipe.shares.is_empty() {
        names_only(recipe.shares.keys(), languages, "shares")?;
        languages.iter().map(|language| weight(recipe.shares.get(language).copied().unwrap_or(0.0))).collect()
    } else if let Some(share) = recipe.english_share {
        english_weights(share, languages)?
    } else if let Some(temperature) = recipe.temperature {
        // libm is one program for all machines, where the standard library's powers are the system's.
        let largest = candidates.iter().map(Vec::len).max().unwrap_or(1).max(1) as f64;
        candidates
            .iter()
            .map(|rows| weight(libm::pow(rows.len() as f64 / largest, 1.0 / temperature)))
            .collect()
    } else {
        vec![1; languages.len()]
    };
    if weights.iter().all(|weight| *weight == 0) {
        bail!("none of this mix's languages has a share");
    }
    Ok(apportion(total, &weights))
}

/// A size in C. Whole sizes are exact: a C in FLOPs may be a number that floating point has not.
fn in_c(size: f64, c: u64) -> u128 {
    if size.fract() == 0.0 {
        (size as u128).saturating_mul(u128::from(c))
    } else {
        (size * c as f64).round() as u128
    }
}

fn names_only<'a>(
    named: impl Iterator<Item = &'a Language>,
    languages: &[Language],
    key: &str,
) -> Result<()> {
    for language in named {
        if !languages.contains(language) {
            bail!("`{key}` names {language}, which is not among the mix's languages");
        }
    }
    Ok(())
}

fn english_weights(share: f64, languages: &[Language]) -> Result<Vec<u64>> {
    let english = Language::english();
    let others = languages.iter().filter(|language| **language != english).count() as u64;
    if others as usize == languages.len() {
        bail!("`english_share` needs English among the mix's languages");
    }
    if others == 0 {
        return Ok(vec![1; languages.len()]);
    }
    // English's weight is scaled by the others' number instead of dividing theirs, so that nothing is rounded.
    let (of_english, of_others) = (weight(share) * others, weight(1.0) - weight(share));
    Ok(languages.iter().map(|language| if *language == english { of_english } else { of_others }).collect())
}

/// A language's rows by id, whose outputs cross-lingual rows take.
type Outputs<'l, 'a> = (&'l Language, BTreeMap<&'a str, &'a Record>);

/// A set that is gone through more often than this is a slip in a recipe, and would fill the memory.
const MOST_COPIES: u64 = 1000;

struct Draw<'a> {
    recipe: &'a Recipe,
    seed: u64,
    meter: &'a Meter<'a>,
    pools: &'a Pools<'a>,
}

impl<'a> Draw<'a> {
    fn rank(&self, purpose: &[&str]) -> u128 {
        rank(self.seed, purpose)
    }

    /// Each language's rows by rank, until its budget is spent.
    fn by_language<'c>(&self, parts: &[Part<'c>]) -> Result<Vec<Row<'c>>> {
        let mut taken = BTreeSet::new();
        let mut rows = Vec::new();
        for part in parts {
            let mut ranked = part.candidates.clone();
            self.sort(&mut ranked, &part.language);
            if self.recipe.sampling == Sampling::Disjoint {
                ranked.retain(|candidate| !taken.contains(candidate.record.id.as_str()));
            }
            let drawn = self.spend(part, &ranked)?;
            if self.recipe.sampling == Sampling::Disjoint {
                taken.extend(drawn.iter().map(|row| row.candidate.record.id.as_str()));
            }
            rows.extend(drawn);
        }
        Ok(rows)
    }

    fn sort(&self, candidates: &mut [Candidate], language: &Language) {
        let by_id_alone = self.recipe.sampling == Sampling::Same || self.recipe.sampling == Sampling::Aligned;
        candidates.sort_by_cached_key(|candidate| {
            let id = candidate.record.id.as_str();
            let rank = if by_id_alone {
                self.rank(&["rows", id])
            } else {
                self.rank(&["rows", language.code(), id])
            };
            (rank, id)
        });
    }

    /// Takes rows in order while they fit, from the start again where the recipe repeats.
    fn spend<'c>(&self, part: &Part<'c>, ranked: &[Candidate<'c>]) -> Result<Vec<Row<'c>>> {
        let mut rows = Vec::new();
        let mut left = part.budget;
        let mut copy = 0;
        loop {
            let before = left;
            for candidate in ranked {
                if candidate.measured.cost > left {
                    return Ok(rows);
                }
                left -= candidate.measured.cost;
                rows.push(Row::new(*candidate, copy));
            }
            if left == 0 {
                return Ok(rows);
            }
            if !self.recipe.repeat || left == before {
                let found = part.budget - left;
                let unit = if self.meter.counts_rows() { "rows" } else { "tokens or FLOPs" };
                let of_origin = match self.recipe.origin_in(&part.language) {
                    Some(origin) => format!(" of origin {}", origin.name()),
                    None => String::new(),
                };
                bail!(
                    "{} needs {} {unit}, and its set has {found}{of_origin} to draw from{}: lower C or its share, or set `repeat`",
                    part.language,
                    part.budget,
                    if self.recipe.sampling == Sampling::Disjoint {
                        " (ids of other languages set aside)"
                    } else {
                        ""
                    },
                );
            }
            copy += 1;
            if copy == MOST_COPIES {
                bail!(
                    "{} needs {} in the budget's unit: more than {MOST_COPIES} times its set",
                    part.language,
                    part.budget
                );
            }
        }
    }

    /// Each id that all languages have, once, in a drawn language.
    fn aligned<'c>(
        &self,
        parts: &[Part<'c>],
        wanted: u64,
        left_out: &mut Vec<LeftOut>,
    ) -> Result<Vec<Row<'c>>> {
        let by_id: Vec<BTreeMap<&str, Candidate<'c>>> = parts
            .iter()
            .map(|part| part.candidates.iter().map(|row| (row.record.id.as_str(), *row)).collect())
            .collect();
        let is_common = |id: &str| by_id.iter().all(|rows| rows.contains_key(id));
        for part in parts {
            let ids = part.candidates.iter().map(|row| &row.record.id);
            let lonely: Vec<String> = ids.filter(|id| !is_common(id)).cloned().collect();
            if !lonely.is_empty() {
                let reason = "another language of the mix lacks the id".to_owned();
                left_out.push(LeftOut { language: part.language.clone(), reason, ids: lonely });
            }
        }
        let Some(first) = by_id.first() else { return Ok(Vec::new()) };
        let mut common: Vec<&str> = first.keys().copied().filter(|id| is_common(id)).collect();
        common.sort_by_cached_key(|id| (self.rank(&["rows", id]), *id));
        let rows = if self.meter.counts_rows() {
            if (common.len() as u64) < wanted {
                bail!(
                    "needs {wanted} ids that all its languages have, and there are {}: lower C",
                    common.len()
                );
            }
            common.truncate(wanted as usize);
            common.sort_by_cached_key(|id| (self.rank(&["language", id]), *id));
            let mut ids = common.into_iter();
            let mut rows = Vec::new();
            for (part, of_language) in parts.iter().zip(&by_id) {
                let taken = ids.by_ref().take(part.budget as usize);
                rows.extend(taken.filter_map(|id| Some(Row::new(*of_language.get(id)?, 0))));
            }
            rows
        } else {
            self.aligned_by_cost(parts, wanted, &by_id, &common)?
        };
        Ok(rows)
    }

    /// Where rows differ in cost: each id in turn goes to the language that has spent the least of its part so far.
    fn aligned_by_cost<'c>(
        &self,
        parts: &[Part<'c>],
        wanted: u64,
        by_id: &[BTreeMap<&str, Candidate<'c>>],
        common: &[&str],
    ) -> Result<Vec<Row<'c>>> {
        let mut spent = vec![0u64; parts.len()];
        let mut rows = Vec::new();
        for id in common {
            // The least share spent, compared in whole numbers; then the language with the larger part.
            let open = (0..parts.len()).filter(|index| parts[*index].budget > 0);
            let next = open.min_by(|a, b| {
                let left = u128::from(spent[*a]) * u128::from(parts[*b].budget);
                let right = u128::from(spent[*b]) * u128::from(parts[*a].budget);
                left.cmp(&right).then(a.cmp(b))
            });
            let Some(index) = next else { break };
            let Some(candidate) = by_id[index].get(id) else { continue };
            if candidate.measured.cost > parts[index].budget - spent[index] {
                return Ok(rows);
            }
            spent[index] += candidate.measured.cost;
            rows.push(Row::new(*candidate, 0));
        }
        let found: u64 = spent.iter().sum();
        if found < wanted {
            bail!(
                "needs {wanted} tokens or FLOPs in ids that all its languages have, and there are {found}: lower C"
            );
        }
        Ok(rows)
    }

    /// The rows' places by rank, for one purpose.
    fn order(&self, purpose: &str, rows: &[Row]) -> Vec<usize> {
        let mut order: Vec<usize> = (0..rows.len()).collect();
        order.sort_by_cached_key(|index| {
            let record = rows[*index].record();
            (self.rank(&[purpose, record.language.code(), &record.id]), rows[*index].copy)
        });
        order
    }

    /// Replaces rows, by rank, by the same ids (or by drawn rows) of other languages.
    fn replace<'c>(&self, rows: &mut [Row<'c>], replace: &Replace) -> Result<()>
    where
        'a: 'c,
    {
        let mut order = self.order("replace", rows);
        order.retain(|index| !replace.with.contains(&rows[*index].record().language));
        let parts = apportion(replace.rows, &vec![1; replace.with.len()]);
        for (language, part) in replace.with.iter().zip(parts) {
            let others = self.pools.training(self.recipe, language).0;
            let replaced = if self.recipe.sampling == Sampling::Independent {
                self.replace_by_rank(rows, &mut order, language, others, part)
            } else {
                // The mix has no id of a language twice, unless the recipe takes rows again.
                let there = if self.recipe.repeat { None } else { Some(ids_in(rows, language)) };
                replace_by_id(rows, &mut order, &others, there, part)
            };
            if replaced < part {
                bail!(
                    "{part} rows are to be replaced by {language}, and only {replaced} could be: the set in {language} \
                     has no more rows that fit (by id, unless sampling is `independent`) and are not in the mix"
                );
            }
        }
        Ok(())
    }

    /// Replaces the first rows of `order`, which goes on behind them, by rows of another language that the mix does not
    /// have, by their own rank. How many there were, `wanted` at most.
    fn replace_by_rank<'c>(
        &self,
        rows: &mut [Row<'c>],
        order: &mut Vec<usize>,
        language: &Language,
        mut others: Vec<Candidate<'c>>,
        wanted: u64,
    ) -> u64 {
        let there = ids_in(rows, language);
        others.retain(|candidate| !there.contains(candidate.record.id.as_str()));
        self.sort(&mut others, language);
        others.truncate(wanted as usize);
        let replaced = others.len().min(order.len());
        for (index, candidate) in order.drain(..replaced).zip(others) {
            rows[index] = Row::new(candidate, 0);
        }
        replaced as u64
    }

    /// Makes rows, by rank, ask for a response in another language, and gives them that language's output.
    fn cross_lingual(
        &self,
        rows: &mut [Row],
        cross_lingual: &CrossLingual,
        languages: &[Language],
    ) -> Result<()> {
        let wanted = (cross_lingual.share * rows.len() as f64).round() as usize;
        let outputs = self.outputs_by_language(cross_lingual, languages)?;
        let mut made = 0;
        for index in self.order("cross-lingual", rows) {
            if made == wanted {
                break;
            }
            let Some((language, new)) = self.crossed(rows[index].record(), cross_lingual, &outputs)? else {
                continue;
            };
            rows[index].entry.response_language = Some(language);
            rows[index].measured = self.meter.measure(&new);
            rows[index].record = Some(new);
            made += 1;
        }
        if made < wanted {
            bail!("{wanted} rows are to be cross-lingual, and only {made} have their id in another language");
        }
        Ok(())
    }

    /// The rows of each response language by id, in the recipe's order.
    fn outputs_by_language<'l>(
        &self,
        cross_lingual: &'l CrossLingual,
        languages: &'l [Language],
    ) -> Result<Vec<Outputs<'l, 'a>>> {
        let response_languages = if cross_lingual.response_languages.is_empty() {
            languages
        } else {
            cross_lingual.response_languages.as_slice()
        };
        let mut outputs = Vec::new();
        for language in response_languages {
            if !self.pools.has(language) {
                bail!("cross-lingual rows ask for {language}, and there is no set in it");
            }
            let training = self.pools.training(self.recipe, language).0;
            outputs
                .push((language, training.iter().map(|row| (row.record.id.as_str(), row.record)).collect()));
        }
        Ok(outputs)
    }

    /// A record that asks for a response in another language and has that language's output, and which it is; none
    /// where no other language has its id.
    fn crossed(
        &self,
        record: &Record,
        cross_lingual: &CrossLingual,
        outputs: &[Outputs],
    ) -> Result<Option<(Language, Record)>> {
        let fitting: Vec<_> = outputs
            .iter()
            .filter_map(|(language, by_id)| Some((*language, *by_id.get(record.id.as_str())?)))
            .filter(|(language, _)| **language != record.language)
            .collect();
        if fitting.is_empty() {
            return Ok(None);
        }
        // The languages take turns from a drawn one on, so that they come out even and none is skipped for good.
        let turn = self.rank(&["response language", record.language.code(), &record.id]);
        let (language, other) = fitting[(turn % fitting.len() as u128) as usize];
        let Some(ask) = cross_lingual.templates.get(&record.language).and_then(|ask| ask.ask(language))
        else {
            bail!(
                "cross-lingual rows need a template that asks in {} for a response in {language}",
                record.language
            );
        };
        let mut new = record.clone();
        new.instruction = format!("{}\n{ask}", record.instruction.trim_end());
        new.output = other.output.clone();
        Ok(Some((language.clone(), new)))
    }
}

/// Replaced and cross-lingual rows cost other than what was drawn: rows from the end go, until the budget holds. Gives
/// what the rest costs.
fn cut_to(budget: u64, rows: &mut Vec<Row>, left_out: &mut Vec<LeftOut>) -> u64 {
    let mut amount: u128 = rows.iter().map(|row| u128::from(row.measured.cost)).sum();
    while amount > u128::from(budget) {
        let Some(row) = rows.pop() else { break };
        amount -= u128::from(row.measured.cost);
        left_out.push(LeftOut {
            language: row.record().language.clone(),
            reason: "over the budget after replacing".to_owned(),
            ids: vec![row.record().id.clone()],
        });
    }
    // Not above the budget, so it fits.
    amount as u64
}

/// Replaces rows, in order, by the same ids of another language, and takes them out of `order`; where the ids that are
/// `there` already are given, by none of them, and each once. How many there were, `wanted` at most.
fn replace_by_id<'c>(
    rows: &mut [Row<'c>],
    order: &mut Vec<usize>,
    others: &[Candidate<'c>],
    mut there: Option<BTreeSet<&'c str>>,
    wanted: u64,
) -> u64 {
    let by_id: BTreeMap<&str, Candidate> =
        others.iter().map(|candidate| (candidate.record.id.as_str(), *candidate)).collect();
    let mut replaced = 0;
    order.retain(|index| {
        let row = &mut rows[*index];
        let id = row.candidate.record.id.as_str();
        let Some(candidate) = by_id.get(id).filter(|_| replaced < wanted) else { return true };
        let is_new = there.as_mut().is_none_or(|there| there.insert(id));
        if is_new {
            *row = Row::new(*candidate, row.copy);
            replaced += 1;
        }
        !is_new
    });
    replaced
}

/// The ids that a mix has in a language.
fn ids_in<'c>(rows: &[Row<'c>], language: &Language) -> BTreeSet<&'c str> {
    let of_language =
        rows.iter().map(|row| row.candidate.record).filter(|record| record.language == *language);
    of_language.map(|record| record.id.as_str()).collect()
}

/// Lists the rows of each language that were there and not needed.
fn list_not_drawn(parts: &[Part], rows: &[Row], left_out: &mut Vec<LeftOut>) {
    let drawn: BTreeSet<(&str, &str)> =
        rows.iter().map(|row| (row.record().language.code(), row.record().id.as_str())).collect();
    let named: BTreeSet<(String, String)> = left_out
        .iter()
        .flat_map(|left| left.ids.iter().map(|id| (left.language.code().to_owned(), id.clone())))
        .collect();
    for part in parts {
        let code = part.language.code();
        let ids = part.candidates.iter().map(|candidate| &candidate.record.id);
        let rest: Vec<String> = ids
            .filter(|id| !drawn.contains(&(code, id.as_str())))
            .filter(|id| !named.contains(&(code.to_owned(), (*id).clone())))
            .cloned()
            .collect();
        if !rest.is_empty() {
            left_out.push(LeftOut {
                language: part.language.clone(),
                reason: "not drawn".to_owned(),
                ids: rest,
            });
        }
    }
}
