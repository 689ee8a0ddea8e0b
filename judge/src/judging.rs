//! A judge, and the judging of a file of responses by it: what is rated already is not rated again.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use instructions::prompt::Response;

use crate::lock::lock;
use crate::parse::{self, NoRating};
use crate::prompt_template::PromptTemplate;
use crate::rating::{self, FileLine, HIGHEST_RATING, Rating, RatingError, RatingLog, ResponseKey};

/// What a judge makes of one response.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// The mark, 1 to 3, or why there is none.
    pub rating: Result<f64, String>,
    /// What the judge said.
    pub explanation: String,
}

/// Whatever can rate responses.
pub trait Judge: Sync {
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

    /// What is being waited for.
    fn note(&self, message: &str) {
        let _ = message;
    }

    /// Two responses have been compared in one order.
    fn compared(&self) {}

    /// A request failed for `reason`, or its reply cannot be read; try number `next` comes after `wait`.
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

/// Judges responses into the ratings file `out`, by one judge.
///
/// # Errors
/// As [`judge_by_all`].
pub fn judge_responses(
    judge: &dyn Judge,
    responses: &[Response],
    out: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Judged> {
    Ok(judge_by_all(&[judge], responses, out, progress)?.remove(0))
}

/// Judges responses into the ratings file `out`, by several judges at once.
///
/// Each rating is added to a file beside `out` (its name with the judge's hash and `.partial`) as soon as it is there.
/// At the end `out` is written whole, judge by judge in the order of the responses; lines of other judges, and of other
/// responses, are kept in front. Run again, it asks only for what is missing, unrated or changed.
///
/// # Errors
/// Two responses under one key, two judges under one name, a file that cannot be read or written or that another program
/// writes, or what stops a judge.
/// What was rated until then is kept; the other judges come to their end first.
pub fn judge_by_all(
    judges: &[&dyn Judge],
    responses: &[Response],
    out: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<Vec<Judged>> {
    check_unique(responses)?;
    let mut work = Vec::new();
    for judge in judges {
        let work_of_judge = Work::new(*judge, responses, out);
        let name = &work_of_judge.name;
        anyhow::ensure!(
            work.iter().all(|other: &Work<'_>| other.name != *name),
            "two judges are named {name}"
        );
        work.push(work_of_judge);
    }
    let _lock = lock(out)?;
    let mut others = Others::default();
    let partials: Vec<PathBuf> = work.iter().map(|work| work.partial.clone()).collect();
    for path in std::iter::once(out).chain(partials.iter().map(PathBuf::as_path)) {
        for rating in read_earlier(path)? {
            match work.iter_mut().find(|work| work.is_for(&rating)) {
                Some(work) => work.take(rating),
                None => others.take(rating),
            }
        }
    }
    let kept = work.iter().map(|work| work.ratings.iter().flatten().count()).sum();
    progress.begin(responses.len() * judges.len(), kept);
    let judged: Vec<anyhow::Result<Judged>> = std::thread::scope(|scope| {
        let begun: Vec<_> = work.into_iter().map(|work| scope.spawn(|| work.rate(progress))).collect();
        let ended = begun
            .into_iter()
            .map(|judge| judge.join().unwrap_or_else(|_| Err(anyhow::anyhow!("a judge ended in a panic"))));
        ended.collect()
    });
    progress.end();

    let judged: Vec<Judged> = judged.into_iter().collect::<anyhow::Result<_>>()?;
    let mut ratings = others.ratings;
    ratings.extend(judged.iter().flat_map(|judged| judged.ratings.iter().cloned()));
    rating::write_ratings(out, &ratings)?;
    for path in partials {
        std::fs::remove_file(&path).map_err(|source| RatingError::File { path, source })?;
    }
    Ok(judged)
}

/// The ratings of an earlier judging; none where there is no such file.
fn read_earlier(path: &Path) -> anyhow::Result<Vec<Rating>> {
    if !path.try_exists().map_err(|source| RatingError::File { path: path.to_path_buf(), source })? {
        return Ok(Vec::new());
    }
    let read = rating::read_ratings(path)?;
    if read.torn {
        tracing::warn!(
            "{}: the last line was cut off by an interrupted write; it is rated again",
            path.display()
        );
    }
    Ok(read.ratings)
}

/// Ratings of judges and responses that are not this judging's, each once: after a kill between the last two steps of a
/// judging, two files hold the same ones.
#[derive(Default)]
struct Others {
    ratings: Vec<Rating>,
    places: HashMap<(ResponseKey, String), usize>,
}

impl Others {
    fn take(&mut self, rating: Rating) {
        match self.places.entry((rating.key.clone(), rating.judge.clone())) {
            Entry::Occupied(place) => self.ratings[*place.get()] = rating,
            Entry::Vacant(place) => {
                place.insert(self.ratings.len());
                self.ratings.push(rating);
            }
        }
    }
}

/// One judge's part of a judging.
struct Work<'a> {
    judge: &'a dyn Judge,
    name: String,
    setting: String,
    partial: PathBuf,
    responses: &'a [Response],
    places: HashMap<ResponseKey, usize>,
    /// Hashes of the responses.
    hashes: Vec<String>,
    /// The ratings that are there.
    ratings: Vec<Option<Rating>>,
    outdated: usize,
}

impl<'a> Work<'a> {
    fn new(judge: &'a dyn Judge, responses: &'a [Response], out: &Path) -> Work<'a> {
        let name = judge.name();
        Work {
            judge,
            setting: judge.setting(),
            partial: rating::beside(out, &format!(".{}.partial", short_hash(&[&name]))),
            name,
            responses,
            places: responses.iter().map(ResponseKey::of).zip(0..).collect(),
            hashes: responses.iter().map(rating::response_hash).collect(),
            ratings: vec![None; responses.len()],
            outdated: 0,
        }
    }

    fn is_for(&self, rating: &Rating) -> bool {
        rating.judge == self.name && self.places.contains_key(&rating.key)
    }

    /// Takes an earlier rating over, unless it no longer holds.
    fn take(&mut self, rating: Rating) {
        let Some(&place) = self.places.get(&rating.key) else { return };
        if rating.setting != self.setting || rating.rated != self.hashes[place] {
            self.outdated += 1;
        } else if rating.rating.is_some() {
            self.ratings[place] = Some(rating);
        }
    }

    /// Has the judge rate what is missing.
    fn rate(mut self, progress: &dyn Progress) -> anyhow::Result<Judged> {
        let missing: Vec<usize> =
            (0..self.ratings.len()).filter(|&place| self.ratings[place].is_none()).collect();
        let mut log = RatingLog::open(&self.partial)?;
        let asked: Vec<Response> = missing.iter().map(|&place| self.responses[place].clone()).collect();
        self.judge.rate(&asked, progress, &mut |index, verdict| {
            let place = missing[index];
            let rating = Rating {
                key: ResponseKey::of(&self.responses[place]),
                judge: self.name.clone(),
                rating: verdict.rating.as_ref().ok().copied(),
                unrated: verdict.rating.err(),
                explanation: verdict.explanation,
                setting: self.setting.clone(),
                rated: self.hashes[place].clone(),
            };
            log.add(&rating)?;
            progress.rated(&rating);
            self.ratings[place] = Some(rating);
            Ok(())
        })?;
        let missed = self.ratings.iter().filter(|rating| rating.is_none()).count();
        anyhow::ensure!(missed == 0, "the judge {} gave no verdict on {missed} responses", self.name);
        let kept = self.ratings.len() - missing.len();
        let ratings: Vec<Rating> = self.ratings.into_iter().flatten().collect();
        Ok(Judged { kept, outdated: self.outdated, unrated: count_reasons(&ratings), ratings })
    }
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

/// The prompt for a response, with the candidate's own `[[n]]` defused.
pub(crate) fn shown_prompt(template: &PromptTemplate, response: &Response) -> String {
    template.fill(&parse::defuse(&response.prompt.prompt), &parse::defuse(&response.response))
}

/// The verdict that a reply holds, and, where it holds none, what is wrong with the reply.
pub(crate) fn verdict_of(response: &Response, reply: &str) -> (Verdict, Option<NoRating>) {
    let shown: [&str; 2] = [&response.response, &response.prompt.prompt];
    let parsed = parse::parse_reply(reply, &shown);
    debug_assert!(parsed.as_ref().is_ok_and(|&mark| mark <= HIGHEST_RATING) || parsed.is_err());
    let explanation = parse::after_thinking(reply, &shown).to_string();
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

/// Fails where two responses share a key; `lines` says where each stands.
///
/// # Errors
/// [`RatingError::TwiceInFiles`].
pub fn check_unique_in_files(responses: &[Response], lines: &[FileLine]) -> Result<(), RatingError> {
    let mut seen = HashMap::new();
    for (response, line) in responses.iter().zip(lines) {
        let key = ResponseKey::of(response);
        match seen.entry(key.clone()) {
            Entry::Vacant(place) => drop(place.insert(line)),
            Entry::Occupied(first) => {
                let lines = Box::new([(*first.get()).clone(), line.clone()]);
                return Err(RatingError::TwiceInFiles { key, lines });
            }
        }
    }
    Ok(())
}

/// Fails where two responses share a key.
pub(crate) fn check_unique(responses: &[Response]) -> Result<(), RatingError> {
    let mut seen = HashSet::new();
    match responses.iter().map(ResponseKey::of).find(|key| !seen.insert(key.clone())) {
        Some(key) => Err(RatingError::Twice(key)),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// While it rates, another judging begins at the same file.
    struct Meets<'a> {
        out: &'a Path,
        met: std::sync::Mutex<String>,
    }

    impl Judge for Meets<'_> {
        fn name(&self) -> String {
            "meets".to_owned()
        }

        fn setting(&self) -> String {
            String::new()
        }

        fn rate(
            &self,
            responses: &[Response],
            progress: &dyn Progress,
            give: &mut dyn FnMut(usize, Verdict) -> anyhow::Result<()>,
        ) -> anyhow::Result<()> {
            let other = crate::reference::ReferenceJudge::default();
            let error = judge_responses(&other, responses, self.out, progress).unwrap_err();
            *self.met.lock().unwrap() = error.to_string();
            (0..responses.len())
                .try_for_each(|place| give(place, Verdict { rating: Ok(2.0), explanation: String::new() }))
        }
    }

    #[test]
    fn a_second_judging_at_one_file_is_told_who_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("ratings.jsonl");
        let response = serde_json::json!({
            "id": "1", "language": "fi", "prompt": "Kuka?", "response": "Minä.", "system": "a", "reference": "Minä."
        });
        let responses = [serde_json::from_value::<Response>(response).unwrap()];
        let judge = Meets { out: &out, met: std::sync::Mutex::default() };
        judge_responses(&judge, &responses, &out, &Silent).unwrap();
        let met = judge.met.into_inner().unwrap();
        let process = format!("process {}", std::process::id());
        assert!(met.contains("ratings.jsonl is in use") && met.contains(&process), "{met}");
        // What a killed program leaves behind locks nobody out, and the lock's file goes with its judging.
        std::fs::write(rating::beside(&out, ".lock"), "process 1").unwrap();
        judge_responses(&crate::reference::ReferenceJudge::default(), &responses, &out, &Silent).unwrap();
        assert_eq!(rating::read_ratings(&out).unwrap().ratings.len(), 2);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
