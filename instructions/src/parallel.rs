//! Do sets, or prompts, that should be parallel share their ids?

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::language::Language;
use crate::prompt::Prompt;
use crate::record::Record;

/// What one language's ids differ in from the other languages'.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ParallelDifference {
    /// The language.
    pub language: Language,
    /// Ids that more than half of the languages have (of two, one), and this one lacks; in those languages' order.
    pub missing: Vec<String>,
    /// Ids that this language has and at most half of the languages do; in its own order.
    pub extra: Vec<String>,
    /// Pairs of a missing and an extra id that stand in the same place: most likely one item under two ids.
    pub renamed: Vec<(String, String)>,
}

impl fmt::Display for ParallelDifference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        if !self.missing.is_empty() {
            parts.push(format!("lacks {} of the others' ids ({})", self.missing.len(), some(&self.missing)));
        }
        if !self.extra.is_empty() {
            parts.push(format!("has {} ids that most others lack ({})", self.extra.len(), some(&self.extra)));
        }
        for (missing, extra) in self.renamed.iter().take(3) {
            parts.push(format!("{extra} stands where the others have {missing}"));
        }
        write!(f, "{}: {}", self.language, parts.join("; "))
    }
}

/// The first few of many ids.
fn some(ids: &[String]) -> String {
    const SHOWN: usize = 5;
    let mut text = ids.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    if ids.len() > SHOWN {
        text.push_str(", ...");
    }
    text
}

/// Compares prompts that should be parallel; see [`parallel_differences`].
pub fn prompt_differences(prompts: &[Prompt]) -> Vec<ParallelDifference> {
    parallel_differences(prompts.iter().map(|prompt| (&prompt.language, prompt.id.as_str())))
}

/// Compares records that should be parallel; see [`parallel_differences`].
pub fn record_differences<'a>(records: impl IntoIterator<Item = &'a Record>) -> Vec<ParallelDifference> {
    parallel_differences(records.into_iter().map(|record| (&record.language, record.id.as_str())))
}

/// Every language whose ids differ from what most languages have, with what is missing and what is its own alone.
/// Nothing is repaired: an id that only looks renamed is told, and left.
pub fn parallel_differences<'a>(
    items: impl IntoIterator<Item = (&'a Language, &'a str)>,
) -> Vec<ParallelDifference> {
    let mut orders: BTreeMap<&Language, Vec<&str>> = BTreeMap::new();
    for (language, id) in items {
        orders.entry(language).or_default().push(id);
    }
    let sets: BTreeMap<&Language, BTreeSet<&str>> =
        orders.iter().map(|(language, ids)| (*language, ids.iter().copied().collect())).collect();
    let mut languages_with: BTreeMap<&str, usize> = BTreeMap::new();
    for id in sets.values().flatten() {
        *languages_with.entry(id).or_default() += 1;
    }
    let is_common = |id: &str| 2 * languages_with.get(id).copied().unwrap_or(0) > sets.len();
    // Of two languages neither is the rule: what either has alone, the other lacks.
    let is_expected = |id: &str| is_common(id) || sets.len() == 2;
    let mut expected = Vec::new();
    let mut seen = BTreeSet::new();
    let mut places: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for order in orders.values() {
        for (place, id) in order.iter().enumerate() {
            places.entry(id).or_default().insert(place);
            if is_expected(id) && seen.insert(*id) {
                expected.push(*id);
            }
        }
    }
    let mut differences = Vec::new();
    for (language, order) in &orders {
        let own = &sets[language];
        let missing: Vec<&str> = expected.iter().copied().filter(|id| !own.contains(id)).collect();
        let extra: Vec<(usize, &str)> =
            order.iter().copied().enumerate().filter(|(_, id)| !is_common(id)).collect();
        if missing.is_empty() && extra.is_empty() {
            continue;
        }
        let renamed = extra
            .iter()
            .filter_map(|(place, id)| {
                let other = missing.iter().find(|other| places[**other].contains(place))?;
                Some(((*other).to_owned(), (*id).to_owned()))
            })
            .collect();
        differences.push(ParallelDifference {
            language: (*language).clone(),
            missing: missing.into_iter().map(str::to_owned).collect(),
            extra: extra.into_iter().map(|(_, id)| id.to_owned()).collect(),
            renamed,
        });
    }
    differences
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_and_a_renamed_id_are_named() {
        let languages: Vec<Language> =
            ["en", "fi", "hi", "zh"].iter().map(|code| code.parse().expect("a code")).collect();
        let ids = [
            ["a", "b", "c"].as_slice(),
            ["a", "b", "c"].as_slice(),
            ["a", "b"].as_slice(),
            ["a", "x", "c"].as_slice(),
        ];
        let items =
            languages.iter().zip(ids).flat_map(|(language, ids)| ids.iter().map(move |id| (language, *id)));
        let differences = parallel_differences(items);
        let said: Vec<String> = differences.iter().map(ToString::to_string).collect();
        assert_eq!(
            said,
            [
                "hi: lacks 1 of the others' ids (c)",
                "zh: lacks 1 of the others' ids (b); has 1 ids that most others lack (x); x stands where the others \
                 have b",
            ]
        );
    }

    #[test]
    fn of_two_languages_each_lacks_what_the_other_has_alone() {
        let [en, fi] = ["en", "fi"].map(|code| code.parse::<Language>().expect("a code"));
        let differences = parallel_differences([(&en, "a"), (&en, "b"), (&fi, "a")]);
        assert_eq!(differences.len(), 2);
        assert_eq!(differences[0].extra, ["b"]);
        assert_eq!(differences[1].missing, ["b"]);
    }
}
