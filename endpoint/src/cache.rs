//! Answers that endpoints have given, and what they cost, in SQLite.
//!
//! An answer is kept under a hash of everything that determines it, so that nothing is asked twice. Money is
//! reserved here *before* a request is sent, at the most that it can cost, and settled when the answer is
//! there; so a spending cap holds even when the program is killed between the two, or runs twice at once.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

/// A sum of money in billionths of a dollar: whole numbers, so that sums are exact.
pub type NanoDollars = i64;

/// The cache could not be read or written.
#[derive(Debug, thiserror::Error)]
#[error("{path}: the cache of answers: {source}")]
pub struct CacheError {
    path: PathBuf,
    source: rusqlite::Error,
}

/// An answer as kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// What the endpoint said.
    pub text: String,
    /// Tokens of the prompt, where the endpoint told.
    pub prompt_tokens: Option<u64>,
    /// Tokens of the answer, where the endpoint told.
    pub completion_tokens: Option<u64>,
}

/// A batch that was sent, or was about to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SentBatch {
    /// Our name for it.
    pub tag: String,
    /// The server's, once it is known.
    pub id: Option<String>,
    /// The keys of its questions, and the numbers of the sums set aside for them.
    pub requests: Vec<(String, Option<i64>)>,
}

/// What asking to spend came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reservation {
    /// The sum is set aside under this number.
    Granted(i64),
    /// It would pass the cap; this much is spent or set aside already.
    Refused(NanoDollars),
}

/// The cache: one SQLite file.
#[derive(Debug)]
pub struct Cache {
    path: PathBuf,
    connection: Mutex<Connection>,
}

const TABLES: &str = "
    create table if not exists answers (
        key text primary key,
        request text not null,
        answer text not null,
        prompt_tokens integer,
        completion_tokens integer,
        at text not null default (datetime('now'))
    ) strict;
    create table if not exists spending (
        number integer primary key,
        scope text not null,
        nano_dollars integer not null,
        settled integer not null,
        at text not null default (datetime('now'))
    ) strict;
    create index if not exists spending_scope on spending (scope);
    create table if not exists batches (
        tag text primary key,
        asker text not null,
        id text,
        requests text not null,
        over integer not null default 0,
        at text not null default (datetime('now'))
    ) strict;
";

impl Cache {
    /// Opens the cache, and makes it where it is missing.
    ///
    /// # Errors
    /// [`CacheError`]: the file cannot be opened, or is no SQLite database.
    pub fn open(path: &Path) -> Result<Cache, CacheError> {
        Cache::with(path, Connection::open(path))
    }

    /// A cache that lives as long as the program.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn in_memory() -> Result<Cache, CacheError> {
        Cache::with(Path::new("(in memory)"), Connection::open_in_memory())
    }

    fn with(path: &Path, connection: rusqlite::Result<Connection>) -> Result<Cache, CacheError> {
        let prepare = || -> rusqlite::Result<Connection> {
            let connection = connection?;
            connection.busy_timeout(Duration::from_secs(30))?;
            // What an endpoint was paid for must survive the machine's going down: every commit reaches the disk.
            connection.pragma_update(None, "synchronous", "FULL")?;
            connection.execute_batch(TABLES)?;
            Ok(connection)
        };
        let connection = prepare().map_err(|source| CacheError { path: path.to_path_buf(), source })?;
        Ok(Cache { path: path.to_path_buf(), connection: Mutex::new(connection) })
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A panic elsewhere leaves SQLite's own state whole.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn at_path(&self) -> impl Fn(rusqlite::Error) -> CacheError + '_ {
        |source| CacheError { path: self.path.clone(), source }
    }

    /// The answer kept under a key.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn answer(&self, key: &str) -> Result<Option<Answer>, CacheError> {
        let select = "select answer, prompt_tokens, completion_tokens from answers where key = ?1";
        self.connection()
            .query_row(select, [key], |row| {
                let tokens = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok());
                Ok(Answer {
                    text: row.get(0)?,
                    prompt_tokens: tokens(row.get(1)?),
                    completion_tokens: tokens(row.get(2)?),
                })
            })
            .optional()
            .map_err(self.at_path())
    }

    /// Keeps an answer, with the request that it answers.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn keep(&self, key: &str, request: &str, answer: &Answer) -> Result<(), CacheError> {
        let insert = "insert or replace into answers (key, request, answer, prompt_tokens, completion_tokens)
                      values (?1, ?2, ?3, ?4, ?5)";
        let tokens = |value: Option<u64>| value.and_then(|value| i64::try_from(value).ok());
        let values = params![
            key,
            request,
            answer.text,
            tokens(answer.prompt_tokens),
            tokens(answer.completion_tokens)
        ];
        self.connection().execute(insert, values).map(drop).map_err(self.at_path())
    }

    /// Forgets an answer, so that it is asked for again.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn forget(&self, key: &str) -> Result<(), CacheError> {
        self.connection()
            .execute("delete from answers where key = ?1", [key])
            .map(drop)
            .map_err(self.at_path())
    }

    /// Sets `most` aside in `scope`, unless that would pass `cap`.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn reserve(
        &self,
        scope: &str,
        most: NanoDollars,
        cap: Option<NanoDollars>,
    ) -> Result<Reservation, CacheError> {
        let mut connection = self.connection();
        let mut reserve = || -> rusqlite::Result<Reservation> {
            // Immediate: another program's reservation cannot come between the sum and the insert.
            let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            let sum = "select coalesce(sum(nano_dollars), 0) from spending where scope = ?1";
            let spent: NanoDollars = transaction.query_row(sum, [scope], |row| row.get(0))?;
            if cap.is_some_and(|cap| spent.saturating_add(most) > cap) {
                return Ok(Reservation::Refused(spent));
            }
            let insert = "insert into spending (scope, nano_dollars, settled) values (?1, ?2, 0)";
            transaction.execute(insert, params![scope, most])?;
            let number = transaction.last_insert_rowid();
            transaction.commit()?;
            Ok(Reservation::Granted(number))
        };
        reserve().map_err(self.at_path())
    }

    /// Whether a sum in `scope` was set aside at most `since` ago, to the second, and not settled yet.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn is_set_aside(&self, scope: &str, since: Duration) -> Result<bool, CacheError> {
        let select = "select exists (select 1 from spending
                      where scope = ?1 and settled = 0 and at >= datetime('now', ?2))";
        let ago = format!("-{} seconds", since.as_secs() + 1);
        self.connection().query_row(select, [scope, &ago], |row| row.get(0)).map_err(self.at_path())
    }

    /// Replaces what was set aside by what was spent.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn settle(&self, number: i64, spent: NanoDollars) -> Result<(), CacheError> {
        let update = "update spending set nano_dollars = ?2, settled = 1 where number = ?1";
        self.connection().execute(update, params![number, spent]).map(drop).map_err(self.at_path())
    }

    /// Writes a batch down, before it is sent.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn keep_batch(&self, asker: &str, batch: &SentBatch) -> Result<(), CacheError> {
        let insert = "insert into batches (tag, asker, id, requests) values (?1, ?2, ?3, ?4)";
        let requests = serde_json::json!(batch.requests).to_string();
        let values = params![batch.tag, asker, batch.id, requests];
        self.connection().execute(insert, values).map(drop).map_err(self.at_path())
    }

    /// Writes the server's name of a batch down.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn name_batch(&self, tag: &str, id: &str) -> Result<(), CacheError> {
        let update = "update batches set id = ?2 where tag = ?1";
        self.connection().execute(update, [tag, id]).map(drop).map_err(self.at_path())
    }

    /// A batch's answers are kept: it is not looked at again.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn close_batch(&self, tag: &str) -> Result<(), CacheError> {
        let update = "update batches set over = 1 where tag = ?1";
        self.connection().execute(update, [tag]).map(drop).map_err(self.at_path())
    }

    /// The batches sent for an asker whose answers are not kept yet.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn sent_batches(&self, asker: &str) -> Result<Vec<SentBatch>, CacheError> {
        let select = "select tag, id, requests from batches where asker = ?1 and over = 0 order by at, tag";
        let connection = self.connection();
        let read = || -> rusqlite::Result<Vec<SentBatch>> {
            let mut statement = connection.prepare(select)?;
            let rows = statement.query_map([asker], |row| {
                let requests: String = row.get(2)?;
                // Written by this program alone.
                let requests = serde_json::from_str(&requests).unwrap_or_default();
                Ok(SentBatch { tag: row.get(0)?, id: row.get(1)?, requests })
            })?;
            rows.collect()
        };
        read().map_err(self.at_path())
    }

    /// What is spent or set aside in `scope`. What an ended program had set aside and not settled counts as
    /// spent: the request may have been answered and billed.
    ///
    /// # Errors
    /// [`CacheError`].
    pub fn spent(&self, scope: &str) -> Result<NanoDollars, CacheError> {
        let sum = "select coalesce(sum(nano_dollars), 0) from spending where scope = ?1";
        self.connection().query_row(sum, [scope], |row| row.get(0)).map_err(self.at_path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_kept_across_openings() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.sqlite");
        let answer = Answer { text: "[[2]]".into(), prompt_tokens: Some(7), completion_tokens: None };
        Cache::open(&path).unwrap().keep("k", "{}", &answer).unwrap();
        let again = Cache::open(&path).unwrap();
        assert_eq!(again.answer("k").unwrap(), Some(answer));
        assert_eq!(again.answer("other").unwrap(), None);
    }

    #[test]
    fn what_is_set_aside_counts_against_the_cap_until_settled() {
        let cache = Cache::in_memory().unwrap();
        let Reservation::Granted(number) = cache.reserve("run", 60, Some(100)).unwrap() else { panic!() };
        assert_eq!(cache.reserve("run", 60, Some(100)).unwrap(), Reservation::Refused(60));
        assert!(matches!(cache.reserve("other run", 60, Some(100)).unwrap(), Reservation::Granted(_)));
        cache.settle(number, 40).unwrap();
        assert!(matches!(cache.reserve("run", 60, Some(100)).unwrap(), Reservation::Granted(_)));
        assert_eq!(cache.spent("run").unwrap(), 100);
    }

    #[test]
    fn what_an_ended_program_set_aside_is_not_waited_for() {
        let (cache, minute) = (Cache::in_memory().unwrap(), Duration::from_secs(60));
        assert!(!cache.is_set_aside("run", minute).unwrap());
        let Reservation::Granted(number) = cache.reserve("run", 60, None).unwrap() else { panic!() };
        assert!(cache.is_set_aside("run", minute).unwrap());
        assert!(!cache.is_set_aside("other run", minute).unwrap());
        let earlier = "update spending set at = datetime('now', '-70 seconds')";
        cache.connection().execute(earlier, []).unwrap();
        assert!(!cache.is_set_aside("run", minute).unwrap());
        assert!(cache.is_set_aside("run", 2 * minute).unwrap());
        cache.settle(number, 60).unwrap();
        assert!(!cache.is_set_aside("run", 2 * minute).unwrap());
    }

    #[test]
    fn a_file_that_is_no_database_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.sqlite");
        std::fs::write(&path, "not a database, but long enough to be looked at as one".repeat(40)).unwrap();
        assert!(Cache::open(&path).unwrap_err().to_string().contains("cache.sqlite"));
    }
}
