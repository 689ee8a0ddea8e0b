//! What people rate, who they are, and their marks, in SQLite.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use instructions::language::Language;
use instructions::prompt::Response;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rusqlite::{Connection, ErrorCode, OptionalExtension, params};
use serde::Serialize;

use crate::rating::{ResponseKey, hash_of_texts};

/// What went wrong with the ratings of people.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite failed.
    #[error("{path}: {source}")]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// What SQLite says.
        source: rusqlite::Error,
    },
    /// The database already holds responses.
    #[error("{path}: already holds {found} responses to rate; expected a new database for another sample")]
    Filled {
        /// The file.
        path: PathBuf,
        /// How many.
        found: usize,
    },
    /// The database is to be read and is not there.
    #[error("{path}: expected a database of responses to rate, found no file; `rate draw` makes one")]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// The file is something else.
    #[error("{path}: expected a database of responses to rate, as `rate draw` makes one, found {found}")]
    Other {
        /// The file.
        path: PathBuf,
        /// What it is.
        found: String,
    },
    /// No responses are in a person's language.
    #[error("{path}: no responses in the language {language:?} to rate")]
    NoSuchLanguage {
        /// The file.
        path: PathBuf,
        /// What was asked for.
        language: String,
    },
    /// The link or the response is not this person's: nothing more is told.
    #[error("no such page")]
    Unknown,
    /// The mark is not from 0 to 3 in halves.
    #[error("expected a mark from 0 to 3 in halves, found {0}")]
    Mark(f64),
}

/// A person, once the link has been recognised.
#[derive(Clone, Debug)]
pub struct Rater {
    number: i64,
    secret: String,
    /// Their name.
    pub name: String,
    /// The language that they rate.
    pub language: String,
}

impl Rater {
    fn of_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Rater> {
        Ok(Rater { number: row.get(0)?, secret: row.get(1)?, name: row.get(2)?, language: row.get(3)? })
    }
}

/// A response that a person has marked.
#[derive(Clone, Debug, PartialEq)]
pub struct Marked {
    /// Which response.
    pub key: ResponseKey,
    /// Its text.
    pub response: String,
    /// The language that it should be in.
    pub response_language: Language,
    /// The person.
    pub rater: String,
    /// The mark, 0 to 3 in halves.
    pub mark: f64,
    /// Hash of the prompt and the response, as a judge's rating has it.
    pub rated: String,
}

/// How far a person is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Standing {
    /// The name.
    pub name: String,
    /// The language.
    pub language: String,
    /// How many prompts there are.
    pub pages: usize,
    /// The first prompt with a response not yet rated; the last one where all are.
    pub page: usize,
    /// Responses rated.
    pub done: usize,
    /// Responses in all.
    pub total: usize,
}

/// A prompt and its responses, in the person's own order, without their systems.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    /// Its number, from 0.
    pub page: usize,
    /// The prompt.
    pub prompt: String,
    /// The responses.
    pub responses: Vec<Shown>,
}

/// A response as shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Shown {
    /// A name that holds for this person alone, and tells nothing.
    pub handle: String,
    /// The text.
    pub text: String,
    /// The person's mark, if any.
    pub mark: Option<f64>,
}

/// The database.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    connection: Mutex<Connection>,
}

/// The names of [`TABLES`].
const NAMES: [&str; 4] = ["responses", "raters", "marks", "actions"];

const TABLES: &str = "
    begin;
    create table if not exists responses (
        number integer primary key,
        language text not null,
        id text not null,
        system text not null,
        prompt text not null,
        response text not null,
        response_language text not null,
        unique (language, id, system)
    ) strict;
    create table if not exists raters (
        number integer primary key,
        name text not null,
        language text not null,
        token_hash text not null unique,
        secret text not null,
        unique (name, language)
    ) strict;
    create table if not exists marks (
        rater integer not null references raters,
        response integer not null references responses,
        mark real not null,
        primary key (rater, response)
    ) strict;
    create table if not exists actions (
        number integer primary key,
        rater integer not null,
        response integer not null,
        before real,
        at text not null default (datetime('now'))
    ) strict;
    commit;
";

fn random_token() -> String {
    let bytes: [u8; 16] = rand::rng().random();
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn hash(texts: &[&str]) -> String {
    blake3::hash(texts.join("\n").as_bytes()).to_hex()[..32].to_string()
}

impl Store {
    /// Opens a database that is there.
    ///
    /// # Errors
    /// [`StoreError::Missing`], [`StoreError::Other`]; SQLite's.
    pub fn open_existing(path: &Path) -> Result<Store, StoreError> {
        if !path.is_file() {
            return Err(StoreError::Missing { path: path.to_path_buf() });
        }
        let (store, tables) = Store::connect(path)?;
        if tables.is_empty() {
            return Err(StoreError::Other { path: path.to_path_buf(), found: "no tables".to_owned() });
        }
        Ok(store)
    }

    /// Opens the database, and makes it where it is missing or empty.
    ///
    /// # Errors
    /// [`StoreError::Other`]; SQLite's.
    pub fn open(path: &Path) -> Result<Store, StoreError> {
        let (store, tables) = Store::connect(path)?;
        if tables.is_empty() {
            store.with(|connection| connection.execute_batch(TABLES))?;
        }
        Ok(store)
    }

    /// Connects to a database that is ours or empty, and changes nothing in it; with the names of its tables.
    fn connect(path: &Path) -> Result<(Store, Vec<String>), StoreError> {
        let select = "select name from sqlite_schema where type = 'table' order by name";
        let open = || -> rusqlite::Result<(Connection, Vec<String>)> {
            let connection = Connection::open(path)?;
            connection.busy_timeout(std::time::Duration::from_secs(10))?;
            // A mark that the page confirmed must survive a kill and a power cut.
            connection.pragma_update(None, "synchronous", "FULL")?;
            let tables =
                connection.prepare(select)?.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
            Ok((connection, tables))
        };
        let path = path.to_path_buf();
        let (connection, tables) = match open() {
            Ok(opened) => opened,
            Err(source) if source.sqlite_error_code() == Some(ErrorCode::NotADatabase) => {
                return Err(StoreError::Other { path, found: "no SQLite database".to_owned() });
            }
            Err(source) => return Err(StoreError::Sqlite { path, source }),
        };
        if tables.is_empty() || NAMES.iter().all(|name| tables.iter().any(|table| table == name)) {
            return Ok((Store { path, connection: Mutex::new(connection) }, tables));
        }
        Err(StoreError::Other { path, found: format!("the tables {}", tables.join(", ")) })
    }

    fn with<T>(&self, work: impl FnOnce(&mut Connection) -> rusqlite::Result<T>) -> Result<T, StoreError> {
        let mut connection: MutexGuard<'_, Connection> =
            self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        work(&mut connection).map_err(|source| StoreError::Sqlite { path: self.path.clone(), source })
    }

    /// Puts the responses to be rated in.
    ///
    /// # Errors
    /// [`StoreError::Filled`] where there are some already; SQLite's where two share system, language and id.
    pub fn fill(&self, responses: &[Response]) -> Result<(), StoreError> {
        let count = |connection: &mut Connection| {
            connection.query_row("select count(*) from responses", [], |row| row.get::<_, i64>(0))
        };
        let found = self.with(count)? as usize;
        if found > 0 {
            return Err(StoreError::Filled { path: self.path.clone(), found });
        }
        self.with(|connection| {
            let transaction = connection.transaction()?;
            for response in responses {
                transaction.execute(
                    "insert into responses (language, id, system, prompt, response, response_language)
                     values (?1, ?2, ?3, ?4, ?5, ?6)",
                    params![
                        response.prompt.language.code(),
                        response.prompt.id,
                        response.system,
                        response.prompt.prompt,
                        response.response,
                        response.prompt.expected_language().code()
                    ],
                )?;
            }
            transaction.commit()
        })
    }

    /// Adds a person who rates a language, or gives one a new link; the token of the link is told only here.
    ///
    /// # Errors
    /// [`StoreError::NoSuchLanguage`]; SQLite's.
    pub fn add_rater(&self, name: &str, language: &str) -> Result<String, StoreError> {
        let count = "select count(*) from responses where language = ?1";
        if self.with(|connection| connection.query_row(count, [language], |row| row.get::<_, i64>(0)))? == 0 {
            return Err(StoreError::NoSuchLanguage { path: self.path.clone(), language: language.into() });
        }
        let token = random_token();
        self.with(|connection| {
            // A new link for a known person keeps the marks and the order, and ends the old link.
            let insert = "insert into raters (name, language, token_hash, secret) values (?1, ?2, ?3, ?4)
                          on conflict (name, language) do update set token_hash = excluded.token_hash";
            connection.execute(insert, params![name, language, hash(&["token", &token]), random_token()])
        })?;
        Ok(token)
    }

    /// The person whom a token belongs to.
    ///
    /// # Errors
    /// [`StoreError::Unknown`].
    pub fn rater(&self, token: &str) -> Result<Rater, StoreError> {
        let select = "select number, secret, name, language from raters where token_hash = ?1";
        self.with(|connection| {
            connection.query_row(select, [hash(&["token", token])], Rater::of_row).optional()
        })?
        .ok_or(StoreError::Unknown)
    }

    /// All persons, in the order in which they were added.
    ///
    /// # Errors
    /// SQLite's.
    pub fn raters(&self) -> Result<Vec<Rater>, StoreError> {
        let select = "select number, secret, name, language from raters order by number";
        self.with(|connection| connection.prepare(select)?.query_map([], Rater::of_row)?.collect())
    }

    /// How many responses there are to rate in each language.
    ///
    /// # Errors
    /// SQLite's.
    pub fn languages(&self) -> Result<BTreeMap<String, u32>, StoreError> {
        let select = "select language, count(*) from responses group by language";
        self.with(|connection| {
            connection.prepare(select)?.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
        })
    }

    /// Where a person stands.
    ///
    /// # Errors
    /// SQLite's.
    pub fn standing(&self, rater: &Rater) -> Result<Standing, StoreError> {
        let select = "select count(*), count(marks.mark) from responses
                      left join marks on marks.response = responses.number and marks.rater = ?1
                      where language = ?2 group by id order by min(number)";
        let pages: Vec<(u32, u32)> = self.with(|connection| {
            let mut statement = connection.prepare(select)?;
            let rows = statement
                .query_map(params![rater.number, rater.language], |row| Ok((row.get(0)?, row.get(1)?)))?;
            rows.collect()
        })?;
        let unfinished = pages.iter().position(|(all, done)| done < all);
        Ok(Standing {
            name: rater.name.clone(),
            language: rater.language.clone(),
            pages: pages.len(),
            page: unfinished.unwrap_or(pages.len().saturating_sub(1)),
            done: pages.iter().map(|(_, done)| *done as usize).sum(),
            total: pages.iter().map(|(all, _)| *all as usize).sum(),
        })
    }

    /// The prompts' ids in the order in which they are shown: the same for everybody.
    fn ids(&self, rater: &Rater) -> Result<Vec<String>, StoreError> {
        let select = "select id from responses where language = ?1 group by id order by min(number)";
        self.with(|connection| {
            connection.prepare(select)?.query_map([&rater.language], |row| row.get(0))?.collect()
        })
    }

    /// A prompt's responses in the person's own order: number, text and mark.
    fn shown(&self, rater: &Rater, id: &str) -> Result<Vec<(i64, String, Option<f64>)>, StoreError> {
        let select = "select number, responses.response, marks.mark from responses
                      left join marks on marks.response = responses.number and marks.rater = ?1
                      where language = ?2 and id = ?3 order by number";
        let mut shown: Vec<(i64, String, Option<f64>)> = self.with(|connection| {
            let mut statement = connection.prepare(select)?;
            let rows = statement.query_map(params![rater.number, rater.language, id], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })?;
            rows.collect()
        })?;
        // From the person's secret, so that the order is the same on every visit and nobody can work it out.
        let seed = blake3::hash(format!("{}\n{id}", rater.secret).as_bytes());
        shown.shuffle(&mut ChaCha8Rng::from_seed(*seed.as_bytes()));
        Ok(shown)
    }

    fn handle(rater: &Rater, number: i64) -> String {
        hash(&["response", &rater.secret, &number.to_string()])
    }

    /// A page.
    ///
    /// # Errors
    /// [`StoreError::Unknown`] past the last page; SQLite's.
    pub fn page(&self, rater: &Rater, page: usize) -> Result<Page, StoreError> {
        let ids = self.ids(rater)?;
        let id = ids.get(page).ok_or(StoreError::Unknown)?;
        let select = "select prompt from responses where language = ?1 and id = ?2 order by number limit 1";
        let prompt = self
            .with(|connection| connection.query_row(select, params![rater.language, id], |row| row.get(0)))?;
        let responses = self
            .shown(rater, id)?
            .into_iter()
            .map(|(number, text, mark)| Shown { handle: Store::handle(rater, number), text, mark })
            .collect();
        Ok(Page { page, prompt, responses })
    }

    /// Keeps a mark; when this returns, it is on disk.
    ///
    /// # Errors
    /// [`StoreError::Mark`], [`StoreError::Unknown`] for a handle that is not this person's; SQLite's.
    pub fn mark(&self, rater: &Rater, handle: &str, mark: f64) -> Result<(), StoreError> {
        if !(0.0..=3.0).contains(&mark) || (mark * 2.0).fract() != 0.0 {
            return Err(StoreError::Mark(mark));
        }
        let numbers: Vec<i64> = self.with(|connection| {
            let mut statement = connection.prepare("select number from responses where language = ?1")?;
            statement.query_map([&rater.language], |row| row.get(0))?.collect()
        })?;
        let number = numbers
            .into_iter()
            .find(|&number| Store::handle(rater, number) == handle)
            .ok_or(StoreError::Unknown)?;
        self.with(|connection| {
            let transaction = connection.transaction()?;
            transaction.execute(
                "insert into actions (rater, response, before) values
                 (?1, ?2, (select mark from marks where rater = ?1 and response = ?2))",
                params![rater.number, number],
            )?;
            transaction.execute(
                "insert or replace into marks (rater, response, mark) values (?1, ?2, ?3)",
                params![rater.number, number, mark],
            )?;
            transaction.commit()
        })
    }

    /// Takes the person's last mark back; gives the page that it stood on, and `None` where there is none.
    ///
    /// # Errors
    /// SQLite's.
    pub fn undo(&self, rater: &Rater) -> Result<Option<usize>, StoreError> {
        let select =
            "select number, response, before from actions where rater = ?1 order by number desc limit 1";
        let id: Option<String> = self.with(|connection| {
            let transaction = connection.transaction()?;
            let last: Option<(i64, i64, Option<f64>)> = transaction
                .query_row(select, [rater.number], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))
                .optional()?;
            let Some((action, response, before)) = last else { return Ok(None) };
            match before {
                Some(mark) => transaction.execute(
                    "update marks set mark = ?3 where rater = ?1 and response = ?2",
                    params![rater.number, response, mark],
                )?,
                None => transaction.execute(
                    "delete from marks where rater = ?1 and response = ?2",
                    params![rater.number, response],
                )?,
            };
            transaction.execute("delete from actions where number = ?1", [action])?;
            let id =
                transaction
                    .query_row("select id from responses where number = ?1", [response], |row| row.get(0))?;
            transaction.commit()?;
            Ok(Some(id))
        })?;
        let Some(id) = id else { return Ok(None) };
        Ok(self.ids(rater)?.iter().position(|found| *found == id))
    }

    /// All marks, in the order of the responses and then of the persons.
    ///
    /// # Errors
    /// SQLite's.
    pub fn marks(&self) -> Result<Vec<Marked>, StoreError> {
        let select =
            "select system, responses.language, id, responses.response, response_language, name, mark,
                      responses.prompt
                      from marks
                      join responses on responses.number = marks.response
                      join raters on raters.number = marks.rater
                      order by responses.number, raters.number";
        self.with(|connection| {
            let mut statement = connection.prepare(select)?;
            let rows = statement.query_map([], |row| {
                let language = |place| row.get(place).map(|code: String| Language::from_label(&code));
                let (prompt, response): (String, String) = (row.get(7)?, row.get(3)?);
                Ok(Marked {
                    key: ResponseKey { system: row.get(0)?, language: language(1)?, id: row.get(2)? },
                    rated: hash_of_texts(&prompt, &response),
                    response,
                    response_language: language(4)?,
                    rater: row.get(5)?,
                    mark: row.get(6)?,
                })
            })?;
            rows.collect()
        })
    }
}
