//! `polypaca agree`: judge against people, and a judge against itself.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use clap::builder::RangedU64ValueParser;
use judge::agree::{
    Agreement, Bootstrap, Correlation, Difference, FEWEST, LanguageAgreement, Raters, agree, drift,
    read_table,
};
use judge::rating::{Rating, of_judge, read_ratings};
use judge::statistics::Interval;

use crate::failure::Failure;
use crate::output::Output;

/// More draws change no digit that is shown, and take hours.
const MOST_DRAWS: u64 = 1_000_000;

/// How far a judge and people agree, per language: over systems, over responses and between people
#[derive(Debug, Args)]
pub(crate) struct Agree {
    /// A table with the columns system, language, judge and human; with id for responses, and rater for several people
    #[arg(value_name = "FILE.csv", required_unless_present = "drift")]
    table: Option<PathBuf>,

    /// Instead, how a judge's ratings of the same sample moved: its ratings before and after
    #[arg(long, value_names = ["BEFORE", "AFTER"], num_args = 2, conflicts_with = "table")]
    drift: Option<Vec<PathBuf>>,

    /// With --drift: whose ratings, where a file holds several judges'
    #[arg(long, value_name = "NAME", requires = "drift", conflicts_with = "table")]
    judge: Option<String>,

    /// List where judge and people differ most, or what the judge rates most differently now
    #[arg(long)]
    differences: bool,

    /// Draws of the bootstrap for the intervals
    #[arg(
        long,
        value_name = "N",
        default_value_t = Bootstrap::default().draws,
        value_parser = RangedU64ValueParser::<usize>::new().range(1..=MOST_DRAWS)
    )]
    draws: usize,

    /// The seed of the bootstrap
    #[arg(long, value_name = "N", default_value_t = Bootstrap::default().seed)]
    seed: u64,
}

impl Agree {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        match (&self.table, self.drift.as_deref()) {
            (Some(table), _) => self.agreement(table, output)?,
            (None, Some([before, after])) => self.drift(before, after, output)?,
            // The flags' own rules leave no other case.
            (None, _) => {}
        }
        Ok(ExitCode::SUCCESS)
    }

    fn bootstrap(&self) -> Bootstrap {
        Bootstrap { draws: self.draws, seed: self.seed }
    }

    fn agreement(&self, table: &Path, output: &Output) -> Result<(), Failure> {
        let rows = read_table(table).map_err(Failure::wrong_input)?;
        let languages = agree(&rows, self.bootstrap());
        if output.json() {
            return Ok(output.object(&serde_json::json!({ "languages": languages }))?);
        }
        for language in &languages {
            self.show(language, output)?;
        }
        Ok(())
    }

    fn show(&self, found: &LanguageAgreement, output: &Output) -> Result<(), Failure> {
        let language = &found.language;
        output.line(format!(
            "{language}: {} systems, {}",
            found.systems.pairs,
            correlations(&found.systems)
        ))?;
        if let Some(responses) = &found.responses {
            output.line(format!("{language}: {} responses, {}", responses.pairs, correlations(responses)))?;
        }
        if let Some(raters) = &found.raters {
            show_raters(language, raters, output)?;
        }
        if self.differences {
            let most = found.responses.as_ref().unwrap_or(&found.systems);
            for Difference { system, id, judge, human } in &most.largest_differences {
                let id = id.as_ref().map_or_else(String::new, |id| format!(", id {id}"));
                output.line(format!("{language}: system {system}{id}: judge {judge}, people {human:.2}"))?;
            }
        }
        for (count, what) in [(Some(&found.systems), "systems"), (found.responses.as_ref(), "responses")]
            .into_iter()
            .filter_map(|(agreement, what)| Some((agreement?.pairs, what)))
            .filter(|(count, _)| *count < FEWEST)
        {
            output.warning(format!(
                "{language}: {count} {what}: a correlation says nothing of fewer than {FEWEST}"
            ));
        }
        if found.unrated_rows > 0 {
            let rows = found.unrated_rows;
            output.warning(format!("{language}: {rows} rows lack the judge's or the human mark"));
        }
        if found.scaled_systems > 0 {
            output.warning(format!(
                "{language}: {} of {} systems have responses that are not rated by both; the rated ones stand for them",
                found.scaled_systems, found.systems.pairs
            ));
        }
        Ok(())
    }

    fn drift(&self, before: &Path, after: &Path, output: &Output) -> Result<(), Failure> {
        let (before, after) = (self.ratings(before)?, self.ratings(after)?);
        let found = drift(&before, &after, self.bootstrap());
        if output.json() {
            return Ok(output.object(&found)?);
        }
        output.line(format!(
            "{} responses rated both times, {} only once or changed in between; {} rated differently, mean change {}{}, \
             quadratic kappa {}",
            found.compared,
            found.only_once,
            found.changed,
            figure(found.mean_change),
            shown_interval(found.mean_change_interval.as_ref()),
            figure(found.quadratic_kappa)
        ))?;
        if self.differences {
            for (key, before, after) in &found.largest_changes {
                output.line(format!("{key}: {before}, now {after}"))?;
            }
        }
        Ok(())
    }

    fn ratings(&self, path: &Path) -> Result<Vec<Rating>, Failure> {
        let ratings = read_ratings(path).map_err(Failure::wrong_input)?.ratings;
        let of_judge = of_judge(&ratings, self.judge.as_deref()).map_err(|error| {
            Failure::wrong_input(anyhow::Error::new(error).context(path.display().to_string()))
        })?;
        Ok(of_judge.into_iter().cloned().collect())
    }
}

fn correlations(agreement: &Agreement) -> String {
    format!(
        "Pearson {}, Spearman {}, Kendall {}",
        shown(&agreement.pearson),
        shown(&agreement.spearman),
        shown(&agreement.kendall)
    )
}

fn show_raters(language: &str, raters: &Raters, output: &Output) -> Result<(), Failure> {
    output.line(format!(
        "{language}: {} people, Krippendorff's alpha {}{} (ordinal), {} (interval), {} (nominal)",
        raters.raters,
        figure(raters.alpha_ordinal),
        shown_interval(raters.alpha_ordinal_interval.as_ref()),
        figure(raters.alpha_interval),
        figure(raters.alpha_nominal)
    ))?;
    for pair in &raters.pairs {
        output.line(format!(
            "{language}: {} and {}: {} responses, kappa {}, quadratic kappa {}",
            pair.first,
            pair.second,
            pair.responses,
            figure(pair.kappa),
            figure(pair.quadratic_kappa)
        ))?;
    }
    Ok(())
}

/// `0.9124 [0.8012, 0.9641]`; a dash where there is no correlation.
fn shown(correlation: &Correlation) -> String {
    figure(correlation.value) + &shown_interval(correlation.interval.as_ref())
}

fn figure(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| format!("{value:.4}"))
}

fn shown_interval(interval: Option<&Interval>) -> String {
    interval.map_or_else(String::new, |Interval { low, high }| format!(" [{low:.4}, {high:.4}]"))
}
