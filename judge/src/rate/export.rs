//! The marks of people beside a judge's, as the table that `agree` reads.

use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::store::Marked;
use crate::gate::{GateRules, score};
use crate::identify::Identifier;
use crate::rating::{self, Rating, RatingError, ResponseKey};

/// A judge's ratings of the responses that people marked.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct JudgeColumn {
    /// The rating of each response that the judge rated.
    pub ratings: HashMap<ResponseKey, f64>,
    /// How many marks are of another response, or of one to another prompt, than the judge rated under its key: a system
    /// answered again meanwhile, say. Their ratings are left out.
    pub other_responses: usize,
    /// How many marks are of responses that the judge did not rate.
    pub unrated: usize,
}

/// A judge's column beside people's marks.
///
/// # Errors
/// [`RatingError::SeveralJudges`] where the ratings are several judges' and none is chosen,
/// [`RatingError::NoSuchJudge`] where the chosen one has rated nothing.
pub fn judge_column(
    ratings: &[Rating],
    judge: Option<&str>,
    marks: &[Marked],
) -> Result<JudgeColumn, RatingError> {
    let mut rated: HashMap<(&ResponseKey, &str), f64> = HashMap::new();
    let mut keys: HashSet<&ResponseKey> = HashSet::new();
    for rating in rating::of_judge(ratings, judge)? {
        if let Some(mark) = rating.rating {
            rated.insert((&rating.key, &rating.rated), mark);
            keys.insert(&rating.key);
        }
    }
    let mut column = JudgeColumn::default();
    for marked in marks {
        match rated.get(&(&marked.key, marked.rated.as_str())) {
            Some(rating) => drop(column.ratings.insert(marked.key.clone(), *rating)),
            None if keys.contains(&marked.key) => column.other_responses += 1,
            None => column.unrated += 1,
        }
    }
    Ok(column)
}

/// Makes a judge's ratings scores: rating × gate, for the responses that people marked.
pub fn gate_column(
    column: &mut HashMap<ResponseKey, f64>,
    marks: &[Marked],
    rules: &GateRules,
    identifier: &dyn Identifier,
) {
    let mut gates: HashMap<&ResponseKey, bool> = HashMap::new();
    for marked in marks {
        gates
            .entry(&marked.key)
            .or_insert_with(|| rules.check(identifier, &marked.response, &marked.response_language).passes);
    }
    for (key, passes) in gates {
        if let Some(rating) = column.get_mut(key) {
            *rating = score(*rating, passes);
        }
    }
}

/// Writes `system,language,id,rater,judge,human`, a line a mark. The judge's column is empty where it has no rating.
///
/// # Errors
/// [`RatingError::File`].
pub fn write_table(
    marks: &[Marked],
    judge: &HashMap<ResponseKey, f64>,
    out: &Path,
) -> Result<(), RatingError> {
    let build = || -> Result<Vec<u8>, csv::Error> {
        let mut table = csv::Writer::from_writer(Vec::new());
        table.write_record(["system", "language", "id", "rater", "judge", "human"])?;
        for Marked { key, rater, mark, .. } in marks {
            let judged = judge.get(key).map(f64::to_string).unwrap_or_default();
            let human = mark.to_string();
            table.write_record([&key.system, key.language.code(), &key.id, rater, &judged, &human])?;
        }
        table.into_inner().map_err(|error| error.into_error().into())
    };
    let at_out = |source| RatingError::File { path: out.to_path_buf(), source };
    let text = build().map_err(|error| at_out(error.into()))?;
    rating::write_atomically(out, &text).map_err(at_out)
}
