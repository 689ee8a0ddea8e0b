//! Two systems' responses to a prompt, compared by a judge in both orders: judges tend to prefer what stands first.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;

use instructions::language::Language;
use instructions::prompt::Response;
use serde::{Deserialize, Serialize};

use crate::asking::{Asker, Check, Reply};
use crate::judging::{Progress, check_unique, short_hash};
use crate::lock::lock;
use crate::parse::{self, Better, after_thinking, defuse};
use crate::prompt_template::PromptTemplate;
use crate::rating::{LineLog, RatingError, beside, read_lines, response_hash, write_lines};

/// What a judge says of two responses in one order: one line of a file of comparisons.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Preference {
    /// The prompt's language.
    pub language: Language,
    /// The prompt's id.
    pub id: String,
    /// The system whose response was shown first.
    pub first: String,
    /// The system whose response was shown second.
    pub second: String,
    /// The judge's name.
    pub judge: String,
    /// Which is better; `None` where the judge did not say.
    pub better: Option<Better>,
    /// Why it did not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrated: Option<String>,
    /// What it said.
    #[serde(default)]
    pub explanation: String,
    /// Hash of what the judge was set to.
    pub setting: String,
    /// Hash of the prompt and the two responses.
    pub rated: String,
}

impl Preference {
    fn key(&self) -> Key {
        Key {
            language: self.language.clone(),
            id: self.id.clone(),
            first: self.first.clone(),
            second: self.second.clone(),
        }
    }
}

/// Which two responses, in which order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    language: Language,
    id: String,
    first: String,
    second: String,
}

/// What comparing came to.
#[derive(Clone, Debug, PartialEq)]
pub struct Compared {
    /// The judge's preferences, in the order of the prompts, each pair in both orders.
    pub preferences: Vec<Preference>,
    /// How many were there before.
    pub kept: usize,
    /// Wins and losses.
    pub table: Vec<PairTotal>,
}

/// How two systems compare in a language.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PairTotal {
    /// The prompts' language.
    pub language: Language,
    /// One system.
    pub first: String,
    /// The other.
    pub second: String,
    /// Prompts that both answered.
    pub prompts: usize,
    /// Prompts on which the first is better, in both orders.
    pub first_better: usize,
    /// Prompts on which the second is better, in both orders.
    pub second_better: usize,
    /// Prompts on which neither is, in both orders.
    pub ties: usize,
    /// Prompts on which the judge says another thing in the other order: a tie, and a measure of the judge.
    pub inconsistent: usize,
    /// Prompts on which it did not say, in one order or both.
    pub unrated: usize,
}

/// Compares every two systems' responses to each prompt in both orders, into the file `out`.
///
/// Each answer is added to `OUT.partial` as soon as it is there, and `out` is written whole at the end; what it says of
/// other pairs is kept in front. Run again, only what is missing, unrated or changed is asked for.
///
/// # Errors
/// Two responses under one key, no prompt that two systems answered, a file that cannot be read or written or that
/// another program writes, or what stops the asker.
pub fn compare_responses(
    asker: &dyn Asker,
    template: &PromptTemplate,
    responses: &[Response],
    out: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Compared> {
    check_unique(responses)?;
    let pairs = pairs(responses);
    if pairs.is_empty() {
        return Err(RatingError::NoPair.into());
    }
    let _lock = lock(out)?;
    let setting = short_hash(&["pair", &asker.setting(), template.text()]);
    let blank: Vec<Preference> =
        pairs.iter().map(|(first, second)| preference(asker, &setting, first, second)).collect();
    let partial = beside(out, ".partial");
    let Earlier { mut found, others } = earlier(&[out, &partial], &blank)?;
    let missing: Vec<usize> = (0..pairs.len()).filter(|&place| found[place].is_none()).collect();
    let kept = pairs.len() - missing.len();
    progress.begin(pairs.len(), kept);

    let prompts: Vec<String> = missing.iter().map(|&place| shown(template, pairs[place])).collect();
    let check = check(missing.iter().map(|&place| pairs[place]));
    let mut log = LineLog::open(&partial)?;
    asker.ask(&prompts, &check, progress, &mut |index, reply| {
        let place = missing[index];
        let answered = answered(blank[place].clone(), pairs[place], reply);
        log.add(&answered)?;
        progress.compared();
        found[place] = Some(answered);
        Ok(())
    })?;
    progress.end();

    let preferences: Vec<Preference> = found.into_iter().flatten().collect();
    anyhow::ensure!(preferences.len() == pairs.len(), "{} left out pairs that it was asked", asker.name());
    write_lines(out, &[others, preferences.clone()].concat())?;
    std::fs::remove_file(&partial).map_err(|source| RatingError::File { path: partial.clone(), source })?;
    Ok(Compared { table: table(&preferences), preferences, kept })
}

/// All two responses to one prompt, in both orders, one behind the other.
fn pairs(responses: &[Response]) -> Vec<(&Response, &Response)> {
    let mut prompts: Vec<Vec<&Response>> = Vec::new();
    let mut places = HashMap::new();
    for response in responses {
        let place = *places.entry((&response.prompt.language, &response.prompt.id)).or_insert(prompts.len());
        prompts.resize_with(prompts.len().max(place + 1), Vec::new);
        prompts[place].push(response);
    }
    let mut pairs = Vec::new();
    for answers in &mut prompts {
        answers.sort_by(|a, b| a.system.cmp(&b.system));
        for (place, first) in answers.iter().enumerate() {
            for second in &answers[place + 1..] {
                pairs.extend([(*first, *second), (*second, *first)]);
            }
        }
    }
    pairs
}

fn preference(asker: &dyn Asker, setting: &str, first: &Response, second: &Response) -> Preference {
    Preference {
        language: first.prompt.language.clone(),
        id: first.prompt.id.clone(),
        first: first.system.clone(),
        second: second.system.clone(),
        judge: asker.name(),
        better: None,
        unrated: None,
        explanation: String::new(),
        setting: setting.to_owned(),
        rated: short_hash(&[&response_hash(first), &response_hash(second)]),
    }
}

/// What was said before.
struct Earlier {
    /// What still holds, in the places of what is to be asked.
    found: Vec<Option<Preference>>,
    /// Of other pairs, each once.
    others: Vec<Preference>,
}

fn earlier(paths: &[&Path], blank: &[Preference]) -> Result<Earlier, RatingError> {
    let places: HashMap<Key, usize> = blank.iter().map(Preference::key).zip(0..).collect();
    let mut found = vec![None; blank.len()];
    let mut others: Vec<Preference> = Vec::new();
    let mut place_among_others = HashMap::new();
    for path in paths {
        if !path.try_exists().map_err(|source| RatingError::File { path: path.to_path_buf(), source })? {
            continue;
        }
        for earlier in read_lines::<Preference>(path)?.ratings {
            if earlier.judge != blank[0].judge {
                let (path, expected) = (path.to_path_buf(), blank[0].judge.clone());
                return Err(RatingError::OtherJudge { path, expected, found: earlier.judge });
            }
            let Some(&place) = places.get(&earlier.key()) else {
                match place_among_others.entry(earlier.key()) {
                    Entry::Occupied(place) => others[*place.get()] = earlier,
                    Entry::Vacant(place) => {
                        place.insert(others.len());
                        others.push(earlier);
                    }
                }
                continue;
            };
            let wanted = &blank[place];
            if earlier.better.is_some() && earlier.setting == wanted.setting && earlier.rated == wanted.rated
            {
                found[place] = Some(earlier);
            }
        }
    }
    Ok(Earlier { found, others })
}

fn shown(template: &PromptTemplate, (first, second): (&Response, &Response)) -> String {
    template.fill_pair(&defuse(&first.prompt.prompt), &defuse(&first.response), &defuse(&second.response))
}

fn check<'a>(pairs: impl Iterator<Item = (&'a Response, &'a Response)>) -> Arc<Check> {
    let texts: Vec<[String; 3]> = pairs
        .map(|(first, second)| [first.response.clone(), second.response.clone(), first.prompt.prompt.clone()])
        .collect();
    Arc::new(move |index, reply| {
        let texts = texts[index].each_ref().map(String::as_str);
        parse::parse_preference(reply, &texts).map(drop).map_err(|error| error.to_string())
    })
}

fn answered(blank: Preference, (first, second): (&Response, &Response), reply: Reply) -> Preference {
    match reply {
        Reply::Unanswered { reason, said } => {
            Preference { unrated: Some(reason), explanation: said, ..blank }
        }
        Reply::Text(text) => {
            let shown: [&str; 3] = [&first.response, &second.response, &first.prompt.prompt];
            let better = parse::parse_preference(&text, &shown);
            Preference {
                unrated: better.as_ref().err().map(ToString::to_string),
                better: better.ok(),
                explanation: after_thinking(&text, &shown).to_owned(),
                ..blank
            }
        }
    }
}

/// Wins and losses of every two systems in each language; of two systems the first by name comes first.
pub fn table(preferences: &[Preference]) -> Vec<PairTotal> {
    type Orders<'a> = BTreeMap<&'a str, [Option<Better>; 2]>;
    let mut cells: BTreeMap<(&Language, &str, &str), Orders<'_>> = BTreeMap::new();
    for preference in preferences {
        let swapped = preference.first > preference.second;
        let (first, second, better) = match preference.better {
            better if !swapped => (&preference.first, &preference.second, better),
            Some(Better::First) => (&preference.second, &preference.first, Some(Better::Second)),
            Some(Better::Second) => (&preference.second, &preference.first, Some(Better::First)),
            better => (&preference.second, &preference.first, better),
        };
        let orders = cells.entry((&preference.language, first, second)).or_default();
        orders.entry(&preference.id).or_default()[usize::from(swapped)] = better;
    }
    cells
        .into_iter()
        .map(|((language, first, second), orders)| total(language, first, second, &orders))
        .collect()
}

fn total(
    language: &Language,
    first: &str,
    second: &str,
    prompts: &BTreeMap<&str, [Option<Better>; 2]>,
) -> PairTotal {
    let count = |wanted: &dyn Fn(&[Option<Better>; 2]) -> bool| {
        prompts.values().filter(|orders| wanted(orders)).count()
    };
    let both = |better| count(&|orders| *orders == [Some(better), Some(better)]);
    PairTotal {
        language: language.clone(),
        first: first.to_owned(),
        second: second.to_owned(),
        prompts: prompts.len(),
        first_better: both(Better::First),
        second_better: both(Better::Second),
        ties: both(Better::Tie),
        inconsistent: count(&|orders| orders[0] != orders[1] && !orders.contains(&None)),
        unrated: count(&|orders| orders.contains(&None)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::asking::LocalAsker;
    use crate::judging::Silent;
    use std::sync::atomic::{AtomicUsize, Ordering};

    fn response(system: &str, id: &str, text: &str) -> Response {
        let line = serde_json::json!({
            "id": id, "language": "fi", "prompt": "Kerro vitsi.", "response": text, "system": system
        });
        serde_json::from_value(line).unwrap()
    }

    /// Says that the longer one is better, except of responses with a question mark: of them always the first.
    fn judge(prompt: &str) -> String {
        let between = |begin: &str, end: &str| {
            let rest = prompt.split(begin).nth(1).unwrap();
            rest.split(end).next().unwrap().trim().to_owned()
        };
        let a = between("[Response A begins]", "[Response A ends]");
        let b = between("[Response B begins]", "[Response B ends]");
        if a.contains('?') || a.len() > b.len() {
            "Verdict: [[A]]".into()
        } else if a.contains("mute") {
            "I cannot say.".into()
        } else if a.len() == b.len() {
            "Verdict: [[C]]".into()
        } else {
            "Verdict: [[B]]".into()
        }
    }

    #[test]
    fn both_orders_are_asked_and_a_judge_that_prefers_a_place_is_found_out() {
        let responses = [
            response("x", "1", "long long"),
            response("y", "1", "short"),
            response("x", "2", "same"),
            response("y", "2", "same"),
            response("x", "3", "what?"),
            response("y", "3", "when?"),
            response("x", "4", "mute"),
            response("y", "4", "mute"),
            response("x", "5", "alone"),
        ];
        let asked = AtomicUsize::new(0);
        let answer = |prompts: &[String]| {
            asked.fetch_add(prompts.len(), Ordering::Relaxed);
            Ok(prompts.iter().map(|prompt| judge(prompt)).collect())
        };
        let asker = LocalAsker { name: "long".into(), setting: String::new(), answer, batch: 3 };
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("pairs.jsonl");
        let compare_all = |responses: &[Response]| {
            compare_responses(&asker, &PromptTemplate::pair(), responses, &out, &Silent).unwrap()
        };
        let compare = || compare_all(&responses);
        let compared = compare();
        let expected = PairTotal {
            language: responses[0].prompt.language.clone(),
            first: "x".into(),
            second: "y".into(),
            prompts: 4,
            first_better: 1,
            second_better: 0,
            ties: 1,
            inconsistent: 1,
            unrated: 1,
        };
        assert_eq!(compared.table, [expected]);
        assert_eq!((compared.preferences.len(), asked.load(Ordering::Relaxed)), (8, 8));
        assert_eq!(compare().kept, 6);
        assert_eq!(asked.load(Ordering::Relaxed), 10, "only what is unrated is asked again");

        // Other pairs into the same file: the first ones stay there, each once, and are not counted.
        let others = [response("x", "6", "short"), response("z", "6", "long long")];
        for kept in [0, 2] {
            let compared = compare_all(&others);
            assert_eq!((compared.kept, compared.preferences.len(), compared.table.len()), (kept, 2, 1));
            assert_eq!(read_lines::<Preference>(&out).unwrap().ratings.len(), 10);
        }
        assert_eq!(compare().kept, 6);
        assert_eq!(read_lines::<Preference>(&out).unwrap().ratings.len(), 10);
    }
}
