//! A judge, and the judging of a file of responses by it: what is rated already is not rated again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::Path;
use std::time::Duration;

use instructions::prompt::Response;

use crate::parse::{self, NoRating};
use crate::prompt_template::PromptTemplate;
use crate::rating::{self, HIGHEST_RATING, Rating, RatingError, RatingLog, ResponseKey};

/// What a judge makes of one response.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The mark, 1 to 3, or why there is none.
    pub rating: Result<f64, String>,
    /// What the judge said.
    pub explanation: String,
}

/// Whatever can rate responses.
pub trait Judge {
    /// The name under which its ratings are kept. A reference judge names itself as one.
    fn name(&self) -> String;

    /// Hash of all that its ratings depend on beside the response: template, model, sampling, thresholds.
    fn setting(&self) -> String;

    /// Rates the responses in any order; hands each verdict over, with the response's index, as soon as it
    /// is there. A response that is never handed over is still to be rated.
    ///
    /// # Errors
    /// What stops the whole judging. What concerns one response is an unrated [`Verdict`].
    fn rate(
        &self,
        responses: &[Response],
        progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Verdict) -> anyhow::Result<()>,
    ) -> anyhow::Result<()>;
}

/// Told how a judging goes on; the default tells nobody. Called from several threads.
pub trait Progress: Sync {
    /// `total` responses in all, `done` of which were rated before.
    fn begin(&self, total: usize, done: usize) {
        let _ = (total, done);
    }

    /// A response has its verdict.
    fn rated(&self, rating: &Rating) {
        let _ = rating;
    }

    /// A request failed for `reason`; try number `next` comes after `wait`.
    fn retry(&self, reason: &str, next: u32, wait: Duration) {
        let _ = (reason, next, wait);
    }

    /// All is done that could be.
    fn end(&self) {}
}

/// Tells nobody.
#[derive(Clone, Copy, Debug)]
pub struct Silent;

impl Progress for Silent {}

/// What a judging came to.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Judged {
    /// The judge's ratings of the responses, in the order of the responses.
    pub ratings: Vec<Rating>,
    /// How many were rated before and kept.
    pub kept: usize,
    /// How many of an earlier judging no longer held, because the response or the judge's setting changed.
    pub outdated: usize,
    /// Reasons why responses are unrated, and how often each occurs, most frequent first.
    pub unrated: Vec<(String, usize)>,
}

/// Judges responses into the ratings file `out`.
///
/// Each rating is added to `OUT.partial` as soon as it is there. At the end `out` is written whole, in the
/// order of the responses; lines of other judges, and of other responses, are kept in front. Run again,
/// it asks only for what is missing, unrated or changed.
///
/// # Errors
/// Two responses under one key, a file that cannot be read or written, or what stops the judge. What was rated
/// until then is kept.
pub fn judge_responses(
    judge: &dyn Judge,
    responses: &[Response],
    out: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Judged> {
    check_unique(responses)?;
    let places: HashMap<ResponseKey, usize> = responses.iter().map(ResponseKey::of).zip(0..).collect();
    let (name, setting) = (judge.name(), judge.setting());
    let partial = rating::beside(out, ".partial");
    let hashes: Vec<String> = responses.iter().map(rating::response_hash).collect();
    let mut others: Vec<Rating> = Vec::new();
    let mut other_places = HashMap::new();
    let mut ratings: Vec<Option<Rating>> = vec![None; responses.len()];
    let mut judged = Judged::default();
    for path in [out, &partial] {
        if !path.try_exists().map_err(|source| RatingError::File { path: path.to_path_buf(), source })? {
            continue;
        }
        let read = rating::read_ratings(path)?;
        if read.torn {
            tracing::warn!(
                "{}: the last line was cut off by an interrupted write; it is rated again",
                path.display()
            );
        }
        for rating in read.ratings {
            match places.get(&rating.key) {
                Some(&place) if rating.judge == name => {
                    if rating.setting != setting || rating.rated != hashes[place] {
                        judged.outdated += 1;
                    } else if rating.rating.is_some() {
                        ratings[place] = Some(rating);
                    }
                }
                // After a kill between the last two steps below, both files hold the same ratings.
                _ => match other_places.entry((rating.key.clone(), rating.judge.clone())) {
                    Entry::Occupied(place) => others[*place.get()] = rating,
                    Entry::Vacant(place) => {
                        place.insert(others.len());
                        others.push(rating);
                    }
                },
            }
        }
    }
    let missing: Vec<usize> = (0..responses.len()).filter(|&place| ratings[place].is_none()).collect();
    judged.kept = responses.len() - missing.len();
    progress.begin(responses.len(), judged.kept);

    let mut log = RatingLog::open(&partial)?;
    let asked: Vec<Response> = missing.iter().map(|&place| responses[place].clone()).collect();
    judge.rate(&asked, progress, &mut |index, verdict| {
        let place = missing[index];
        let (mark, unrated) = match verdict.rating {
            Ok(mark) => (Some(mark), None),
            Err(reason) => (None, Some(reason)),
        };
        let rating = Rating {
            key: ResponseKey::of(&responses[place]),
            judge: name.clone(),
            rating: mark,
            unrated,
            explanation: verdict.explanation,
            setting: setting.clone(),
            rated: hashes[place].clone(),
        };
        log.add(&rating)?;
        progress.rated(&rating);
        ratings[place] = Some(rating);
        Ok(())
    })?;
    progress.end();

    let missed = ratings.iter().filter(|rating| rating.is_none()).count();
    anyhow::ensure!(missed == 0, "the judge {name} gave no verdict on {missed} responses");
    judged.ratings = ratings.into_iter().flatten().collect();
    judged.unrated = count_reasons(&judged.ratings);
    others.extend(judged.ratings.iter().cloned());
    rating::write_ratings(out, &others)?;
    std::fs::remove_file(&partial).map_err(|source| RatingError::File { path: partial.clone(), source })?;
    Ok(judged)
}

fn count_reasons(ratings: &[Rating]) -> Vec<(String, usize)> {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for reason in ratings.iter().filter_map(|rating| rating.unrated.as_deref()) {
        *counts.entry(reason).or_default() += 1;
    }
    let mut counts: Vec<(String, usize)> =
        counts.into_iter().map(|(reason, count)| (reason.to_string(), count)).collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts
}

/// A judge that is asked in text and answers in text, by whatever means: a model on this machine, say.
pub struct TextJudge<Ask> {
    /// The name of its ratings.
    pub name: String,
    /// What is asked.
    pub template: PromptTemplate,
    /// What its answers depend on beside the template: the model and the decoding.
    pub model_setting: String,
    /// Answers a batch of prompts, in their order.
    pub ask: Ask,
    /// How many prompts are asked at once.
    pub batch: usize,
}

impl<Ask: Fn(&[String]) -> anyhow::Result<Vec<String>>> Judge for TextJudge<Ask> {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn setting(&self) -> String {
        short_hash(&["text", &self.model_setting, self.template.text()])
    }

    fn rate(
        &self,
        responses: &[Response],
        _progress: &dyn Progress,
        give: &mut dyn FnMut(usize, Verdict) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let size = self.batch.max(1);
        for (number, batch) in responses.chunks(size).enumerate() {
            let prompts: Vec<String> =
                batch.iter().map(|response| shown_prompt(&self.template, response)).collect();
            let replies = (self.ask)(&prompts)?;
            let found = replies.len();
            anyhow::ensure!(
                found == batch.len(),
                "expected {} replies of {}, found {found}",
                batch.len(),
                self.name
            );
            for (index, (response, reply)) in batch.iter().zip(replies).enumerate() {
                give(number * size + index, verdict_of(response, &reply).0)?;
            }
        }
        Ok(())
    }
}

/// The prompt for a response, with the candidate's own `[[n]]` defused.
pub(crate) fn shown_prompt(template: &PromptTemplate, response: &Response) -> String {
    template.fill(&parse::defuse(&response.prompt.prompt), &parse::defuse(&response.response))
}

/// The verdict that a reply holds, and, where it holds none, what is wrong with the reply.
pub(crate) fn verdict_of(response: &Response, reply: &str) -> (Verdict, Option<NoRating>) {
    let parsed = parse::parse_reply(reply, &[&response.response, &response.prompt.prompt]);
    debug_assert!(parsed.as_ref().is_ok_and(|&mark| mark <= HIGHEST_RATING) || parsed.is_err());
    let explanation = parse::after_thinking(reply).to_string();
    let verdict = Verdict { rating: parsed.clone().map_err(|error| error.to_string()), explanation };
    (verdict, parsed.err())
}

/// Hash of several texts, short enough to stand in a file's every line.
pub(crate) fn short_hash(texts: &[&str]) -> String {
    let mut hasher = blake3::Hasher::new();
    for text in texts {
        hasher.update(&(text.len() as u64).to_le_bytes());
        hasher.update(text.as_bytes());
    }
    hasher.finalize().to_hex()[..16].to_string()
}

/// Fails where two responses share a key; for callers that hold responses of several files.
///
/// # Errors
/// [`RatingError::Twice`].
pub fn check_unique(responses: &[Response]) -> Result<(), RatingError> {
    let mut seen = HashSet::new();
    match responses.iter().map(ResponseKey::of).find(|key| !seen.insert(key.clone())) {
        Some(key) => Err(RatingError::Twice(key)),
        None => Ok(()),
    }
}
