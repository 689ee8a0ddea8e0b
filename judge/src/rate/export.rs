//! The marks of people beside a judge's, as the table that `agree` reads.

use std::collections::HashMap;
use std::path::Path;

use super::store::Marked;
use crate::gate::{GateRules, score};
use crate::identify::Identifier;
use crate::rating::{self, Rating, RatingError, ResponseKey};

/// A judge's column: its rating of each response that it rated.
///
/// # Errors
/// [`RatingError::SeveralJudges`] where the ratings are several judges' and none is chosen,
/// [`RatingError::NoSuchJudge`] where the chosen one has rated nothing.
pub fn judge_column(
    ratings: &[Rating],
    judge: Option<&str>,
) -> Result<HashMap<ResponseKey, f64>, RatingError> {
    let ratings = rating::of_judge(ratings, judge)?;
    Ok(ratings.into_iter().filter_map(|rating| Some((rating.key.clone(), rating.rating?))).collect())
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
