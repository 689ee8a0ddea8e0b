//! Gating and rating the responses of one system in one language.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use instructions::prompt::{Prompt, Response, read_responses};
use judge::gate::{GateRules, SetAside};
use judge::judging::{Progress, judge_responses};
use judge::rating::Rating;
use report::records::{Score, ScoreStatus};

use super::{RESPONSES_FILE, Rooms};
use crate::progress::CellProgress;
use crate::stop::{Stopped, leave};
use crate::store::{INCOMPLETE_FILE, write_atomically};

/// In a scores folder: a [`Score`] a line, under the name of its responses' cell.
pub const SCORES_FILE: &str = "scores.jsonl";

/// In a scores folder: the judge's ratings as they come.
pub const RATINGS_FILE: &str = "ratings.jsonl";

/// Leaves the judging when the run is asked to end.
struct Stops<'a>(&'a CellProgress<'a>);

impl Progress for Stops<'_> {
    fn rated(&self, _: &Rating) {
        self.look();
    }

    fn retry(&self, _: &str, _: u32, _: Duration) {
        self.look();
    }
}

impl Stops<'_> {
    fn look(&self) {
        if self.0.should_stop() {
            leave();
        }
    }
}

/// Scores the responses of one cell. Ratings are kept as they come: a killed judging goes on where it was.
pub(super) fn score(
    rooms: &Rooms,
    answers: &Path,
    prompts: &[Prompt],
    folder: &Path,
    progress: &CellProgress,
) -> Result<()> {
    let reading = read_responses(&answers.join(RESPONSES_FILE))?;
    let mut answered: HashMap<&str, &Response> = HashMap::new();
    for response in &reading.items {
        answered.insert(&response.prompt.id, response);
    }
    // The prompt as it is now: its reference may be newer than its response.
    let responses: Vec<Response> = prompts
        .iter()
        .filter_map(|prompt| {
            let response = answered.get(prompt.id.as_str())?;
            Some(Response { prompt: prompt.clone(), ..(*response).clone() })
        })
        .collect();
    let judged = judge_responses(rooms.judge, &responses, &folder.join(RATINGS_FILE), &Stops(progress));
    let judged = match judged {
        // Whatever broke off, it was left on purpose.
        Err(_) if progress.should_stop() => return Err(Stopped.into()),
        judged => judged?,
    };
    let set_aside = rooms.experiment.gate.set_aside_code;
    let rules = GateRules {
        set_aside: SetAside { code: set_aside, urls: set_aside, ..SetAside::default() },
        ..GateRules::default()
    };
    let mut lines = Vec::new();
    let mut unrated = 0;
    for (response, rating) in responses.iter().zip(&judged.ratings) {
        let expected = response.prompt.expected_language();
        let gated = rules.check(rooms.identifier, &response.response, expected);
        unrated += usize::from(rating.rating.is_none());
        let score = Score {
            system: response.system.clone(),
            language: response.prompt.language.code().to_owned(),
            prompt_id: response.prompt.id.clone(),
            prompt: response.prompt.prompt.clone(),
            reference: response.prompt.reference().map(str::to_owned),
            response: Some(response.response.clone()),
            gate: Some(u8::from(gated.passes)),
            label: Some(gated.identified.label),
            identified: Some(gated.identified.language.code().to_owned()),
            probability: Some(f64::from(gated.identified.probability)),
            rating: rating.rating,
            reason: rating.unrated.clone(),
            explanation: Some(rating.explanation.clone()).filter(|text| !text.is_empty()),
            status: if rating.rating.is_some() { ScoreStatus::Rated } else { ScoreStatus::Unrated },
        };
        serde_json::to_writer(&mut lines, &score)?;
        lines.push(b'\n');
    }
    write_atomically(&folder.join(SCORES_FILE), &lines)?;
    if unrated > 0 {
        let reasons: Vec<String> =
            judged.unrated.iter().map(|(reason, count)| format!("{count} times {reason}")).collect();
        let reason = format!(
            "{unrated} of {} responses are unrated, and asked for again in the next run: {}\n",
            responses.len(),
            reasons.join("; ")
        );
        write_atomically(&folder.join(INCOMPLETE_FILE), reason.as_bytes())?;
    }
    Ok(())
}

/// Reads the scores of a finished cell.
///
/// # Errors
/// Where the file cannot be read.
pub fn read_scores(folder: &Path) -> Result<Vec<Score>> {
    let path = folder.join(SCORES_FILE);
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let line = |(number, line): (usize, &str)| {
        serde_json::from_str(line).with_context(|| format!("{}, line {}", path.display(), number + 1))
    };
    text.lines().enumerate().map(line).collect()
}
