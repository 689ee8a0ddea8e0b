//! `polypaca rate`: the people's rating page.

use std::collections::{BTreeSet, HashMap};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::anyhow;
use clap::{Args, Subcommand};
use instructions::language::Language;
use instructions::prompt::{Response, read_numbered_responses};
use judge::gate::GateRules;
use judge::identify::identifier;
use judge::judging::check_unique_in_files;
use judge::rate::export::{gate_column, judge_column, write_table};
use judge::rate::sample::{Sample, SampleSettings, draw_sample};
use judge::rate::server;
use judge::rate::store::{Marked, Rater, Standing, Store, StoreError};
use judge::rating::{FileLine, ResponseKey, read_ratings};
use serde_json::json;

use crate::failure::Failure;
use crate::output::Output;

/// Where the page is served unless told otherwise.
const ADDRESS: &str = "127.0.0.1:8400";

/// Has people rate responses, 0 to 3 in halves, on a page that this program serves
#[derive(Debug, Subcommand)]
pub(crate) enum Rate {
    /// Draw the sample of systems and prompts to rate, into a new database
    Draw(Draw),
    /// Make a link for each person who rates
    Invite(Invite),
    /// Serve the page, until interrupted
    Serve(Serve),
    /// Show how far each person is
    Status(Status),
    /// Write the marks, beside a judge's ratings, as the table that `agree` reads
    Export(Export),
}

/// Draws the sample of systems and prompts to rate, into a new database
#[derive(Debug, Args)]
pub(crate) struct Draw {
    /// The database, SQLite
    #[arg(long, value_name = "FILE")]
    database: PathBuf,

    /// Responses: JSONL with a prompt's keys, `response` and `system`
    #[arg(long, value_name = "FILE", required = true, num_args = 1..)]
    responses: Vec<PathBuf>,

    /// Prompts a language, at most
    #[arg(long, value_name = "N", default_value_t = 50)]
    prompts: usize,

    /// Systems, at most; all unless given
    #[arg(long, value_name = "N")]
    systems: Option<usize>,

    /// These systems alone, by name
    #[arg(long, value_name = "NAME", num_args = 1.., conflicts_with = "systems")]
    system: Vec<String>,

    /// Only responses to prompts in these languages
    #[arg(long, value_name = "CODE", num_args = 1..)]
    language: Vec<Language>,

    /// The seed of the draw
    #[arg(long, value_name = "N", default_value_t = 1)]
    seed: u64,
}

/// Makes a link for each person who rates. A person who had one gets a new one, and keeps the marks
#[derive(Debug, Args)]
pub(crate) struct Invite {
    /// The database that `rate draw` made
    #[arg(long, value_name = "FILE")]
    database: PathBuf,

    /// The persons' names, as the export will have them
    #[arg(long, value_name = "NAME", required = true, num_args = 1.., value_parser = person)]
    rater: Vec<String>,

    /// The language that they rate
    #[arg(long, value_name = "CODE")]
    language: Language,

    /// The page's address as the persons reach it
    #[arg(long, value_name = "URL", default_value_t = format!("http://{ADDRESS}"))]
    url: String,
}

/// Serves the page, until interrupted
#[derive(Debug, Args)]
pub(crate) struct Serve {
    /// The database that `rate draw` made
    #[arg(long, value_name = "FILE")]
    database: PathBuf,

    /// Where to listen; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS:PORT", default_value = ADDRESS)]
    address: SocketAddr,
}

/// Shows how far each person is
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// The database that `rate draw` made
    #[arg(long, value_name = "FILE")]
    database: PathBuf,
}

/// Writes the marks, beside a judge's ratings, as the table that `agree` reads
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The database that `rate draw` made
    #[arg(long, value_name = "FILE")]
    database: PathBuf,

    /// The table: system,language,id,rater,judge,human
    #[arg(long, value_name = "FILE.csv")]
    out: PathBuf,

    /// A judge's ratings of the same responses, as `judge` writes them
    #[arg(long, value_name = "FILE")]
    ratings: Option<PathBuf>,

    /// Whose ratings, where the file holds several judges'
    #[arg(long, value_name = "NAME", requires = "ratings")]
    judge: Option<String>,

    /// Take the judge's scores: its rating × the gate, as people give 0 for a wrong language
    #[arg(long, requires = "ratings")]
    gate: bool,

    /// A fastText model for the gate, .bin or .ftz; the embedded lingua unless given
    #[arg(long, value_name = "MODEL", requires = "gate")]
    lid: Option<PathBuf>,
}

/// A person's name. The table is read without the spaces around its words, and "Bo " would be Bo there.
fn person(text: &str) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("expected a name, found none".to_owned());
    }
    if text.trim() != text {
        return Err(format!("expected a name without spaces around it, found {text:?}"));
    }
    Ok(text.to_owned())
}

impl Rate {
    pub(crate) fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        match self {
            Self::Draw(command) => command.run(output),
            Self::Invite(command) => command.run(output),
            Self::Serve(command) => command.run(output),
            Self::Status(command) => command.run(output),
            Self::Export(command) => command.run(output),
        }
    }
}

impl Draw {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let (responses, left_out) = self.read(output)?;
        let settings = SampleSettings { prompts: self.prompts, systems: self.systems, seed: self.seed };
        let sample = draw_sample(&responses, settings);
        if sample.responses.is_empty() {
            let error = anyhow!("expected prompts that all systems answered, found none");
            return Err(Failure::wrong_input(error));
        }
        self.warn_of_few(&responses, &sample, output);
        let store = Store::open(&self.database).map_err(|error| match error {
            StoreError::Other { .. } => Failure::wrong_input(error),
            error => Failure::failed(error),
        })?;
        store.fill(&sample.responses).map_err(Failure::wrong_input)?;
        let prompts: HashMap<&String, usize> =
            sample.prompts.iter().map(|(language, drawn)| (language, drawn.drawn)).collect();
        if output.json() {
            output.object(&json!({ "responses": sample.responses.len(), "prompts": prompts }))?;
        } else {
            for (language, drawn) in &sample.prompts {
                output.line(format!("{language}: {} prompts", drawn.drawn))?;
            }
            output.line(format!(
                "{} responses to rate in {}",
                sample.responses.len(),
                self.database.display()
            ))?;
        }
        Ok(if left_out == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    /// The responses of all files in the languages asked for, and how many lines were none.
    fn read(&self, output: &Output) -> Result<(Vec<Response>, usize), Failure> {
        let mut responses = Vec::new();
        let mut lines = Vec::new();
        let mut left_out = 0;
        for path in &self.responses {
            let reading = read_numbered_responses(path).map_err(Failure::wrong_input)?;
            for problem in &reading.problems {
                output.warning(problem.to_string());
            }
            left_out += reading.dropped();
            for (line, response) in reading.items {
                lines.push(FileLine { path: path.clone(), line });
                responses.push(response);
            }
        }
        check_unique_in_files(&responses, &lines).map_err(Failure::wrong_input)?;
        for system in &self.system {
            if !responses.iter().any(|response| response.system == *system) {
                return Err(Failure::wrong_input(no_such_system(system, &responses)));
            }
        }
        if !self.language.is_empty() {
            responses.retain(|response| self.language.contains(&response.prompt.language));
        }
        if !self.system.is_empty() {
            responses.retain(|response| self.system.contains(&response.system));
        }
        Ok((responses, left_out))
    }

    fn warn_of_few(&self, responses: &[Response], sample: &Sample, output: &Output) {
        for (language, drawn) in sample.prompts.iter().filter(|(_, drawn)| drawn.drawn < self.prompts) {
            output.warning(format!(
                "{language}: {} of {} prompts drawn; of {} answered prompts, {} were answered by all systems",
                drawn.drawn, self.prompts, drawn.answered, drawn.shared
            ));
        }
        let answered: BTreeSet<&str> =
            responses.iter().map(|response| response.prompt.language.code()).collect();
        for language in answered.into_iter().filter(|language| !sample.prompts.contains_key(*language)) {
            output.warning(format!(
                "{language}: no prompt drawn, none was answered by all systems; another --seed or fewer --systems may draw some"
            ));
        }
    }
}

/// Names some of the systems that there are: an experiment may have hundreds.
fn no_such_system(system: &str, responses: &[Response]) -> anyhow::Error {
    const NAMED: usize = 20;
    let there: BTreeSet<&str> = responses.iter().map(|response| response.system.as_str()).collect();
    let named: Vec<String> = there.iter().take(NAMED).map(|system| format!("{system:?}")).collect();
    let more = if there.len() > NAMED { format!(" and {} more", there.len() - NAMED) } else { String::new() };
    anyhow!("--system: no response of the system {system:?}; expected some of {}{more}", named.join(", "))
}

impl Invite {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let mut names = BTreeSet::new();
        if let Some(twice) = self.rater.iter().find(|name| !names.insert(*name)) {
            // The second link would end the first.
            return Err(Failure::wrong_input(anyhow!(
                "--rater: expected each name once, found {twice:?} twice"
            )));
        }
        let store = Store::open_existing(&self.database).map_err(Failure::wrong_input)?;
        let url = self.url.trim_end_matches('/');
        let mut links = Vec::new();
        for rater in &self.rater {
            let token = store.add_rater(rater, self.language.code()).map_err(Failure::wrong_input)?;
            links.push((rater, format!("{url}/r/{token}")));
        }
        if output.json() {
            let link =
                |(rater, link)| json!({ "rater": rater, "language": self.language.code(), "link": link });
            output.object(&json!({ "links": links.into_iter().map(link).collect::<Vec<_>>() }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for (rater, link) in links {
            output.line(format!("{rater}\t{}\t{link}", self.language.code()))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Serve {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let store = Store::open_existing(&self.database).map_err(Failure::wrong_input)?;
        let listener = TcpListener::bind(self.address)
            .map_err(|error| Failure::failed(anyhow!("{}: {error}", self.address)))?;
        let address = listener.local_addr()?;
        if !address.ip().is_loopback() {
            output.warning(
                "links and marks travel unencrypted: put a server that speaks HTTPS in front of this one",
            );
        }
        if output.json() {
            output.object(&json!({ "url": format!("http://{address}") }))?;
        } else {
            output.line(format!("http://{address}"))?;
        }
        server::serve_until_interrupted(Arc::new(store), listener)?;
        Ok(ExitCode::SUCCESS)
    }
}

impl Status {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        let store = Store::open_existing(&self.database).map_err(Failure::wrong_input)?;
        let raters = store.raters().map_err(Failure::failed)?;
        let standing = |rater: &Rater| store.standing(rater);
        let standings: Vec<Standing> =
            raters.iter().map(standing).collect::<Result<_, _>>().map_err(Failure::failed)?;
        if output.json() {
            let languages = store.languages().map_err(Failure::failed)?;
            output.object(&json!({ "raters": standings, "responses": languages }))?;
            return Ok(ExitCode::SUCCESS);
        }
        for Standing { name, language, done, total, .. } in standings {
            output.line(format!("{name}\t{language}\t{done} of {total}"))?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Export {
    fn run(self, output: &Output) -> Result<ExitCode, Failure> {
        self.check_out()?;
        let store = Store::open_existing(&self.database).map_err(Failure::wrong_input)?;
        let marks = store.marks().map_err(Failure::failed)?;
        let mut judge = HashMap::new();
        if let Some(path) = &self.ratings {
            judge = self.judged(path, &marks, output)?;
        }
        if self.gate {
            let identifier = identifier(self.lid.as_deref(), None).map_err(Failure::wrong_input)?;
            gate_column(&mut judge, &marks, &GateRules::default(), &*identifier);
        }
        write_table(&marks, &judge, &self.out).map_err(Failure::failed)?;
        if output.json() {
            output.object(&json!({ "marks": marks.len(), "out": self.out.display().to_string() }))?;
        } else {
            output.line(format!("{} marks in {}", marks.len(), self.out.display()))?;
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Fails where the table would be written over what it is made of.
    fn check_out(&self) -> Result<(), Failure> {
        let Ok(out) = self.out.canonicalize() else { return Ok(()) };
        let inputs = [
            ("--database", Some(&self.database)),
            ("--ratings", self.ratings.as_ref()),
            ("--lid", self.lid.as_ref()),
        ];
        let same = |path: Option<&PathBuf>| {
            path.is_some_and(|path| path.canonicalize().is_ok_and(|path| path == out))
        };
        match inputs.into_iter().find(|(_, path)| same(*path)) {
            Some((flag, _)) => Err(Failure::wrong_input(anyhow!(
                "--out {}: expected another file than that of {flag}, found the same",
                self.out.display()
            ))),
            None => Ok(()),
        }
    }

    /// The judge's ratings of what people marked.
    fn judged(
        &self,
        path: &Path,
        marks: &[Marked],
        output: &Output,
    ) -> Result<HashMap<ResponseKey, f64>, Failure> {
        let ratings = read_ratings(path).map_err(Failure::wrong_input)?.ratings;
        let column = judge_column(&ratings, self.judge.as_deref(), marks).map_err(Failure::wrong_input)?;
        let (path, all) = (path.display(), marks.len());
        if column.unrated > 0 {
            output.warning(format!("{path}: no rating for {} of {all} marks", column.unrated));
        }
        if column.other_responses > 0 {
            output.warning(format!(
                "{path}: {} of {all} marks are of other responses than the judge rated; they stand without its rating",
                column.other_responses
            ));
        }
        Ok(column.ratings)
    }
}
