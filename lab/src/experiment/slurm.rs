//! `[slurm]`: what the Slurm runner asks a cluster for.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::Context;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[slurm]`, or a file of its own: how cells become jobs of a cluster. Changes no result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Slurm {
    /// The partition; the cluster's default unless given.
    pub partition: Option<String>,
    /// The account that is charged.
    pub account: Option<String>,
    /// The quality of service.
    pub qos: Option<String>,
    /// Further options of `sbatch`, `--gres=gpu:1`.
    pub options: Vec<String>,
    /// Shell lines before the program starts: `module load ...`.
    pub preamble: String,
    /// The program on the nodes; the one that submits unless given.
    pub program: Option<PathBuf>,
    /// Cores of a job.
    pub cores: usize,
    /// Memory of a job at its first try, `4G`; estimated from its cells unless given.
    pub memory: Option<Memory>,
    /// The most memory that a job asks for after the cluster has killed it for want of it.
    pub max_memory: Memory,
    /// Time of a job at its first try, `2:00:00`; estimated from its cells unless given.
    pub time: Option<TimeLimit>,
    /// The most time that a job asks for after the cluster has killed it for want of it.
    pub max_time: TimeLimit,
    /// Small cells are done in one job, one after the other or side by side, until it is estimated to take so long.
    pub pack: TimeLimit,
    /// How often a cell is submitted before it fails.
    pub tries: u32,
    /// Jobs of one array that run at once; as many as the cluster allows unless given.
    pub at_once: Option<usize>,
    /// Seconds between two looks at the jobs.
    pub poll: f64,
    /// Seconds before a job's time is up at which it is told to write its checkpoints.
    pub notice: u64,
}

impl Default for Slurm {
    fn default() -> Self {
        Self {
            partition: None,
            account: None,
            qos: None,
            options: Vec::new(),
            preamble: String::new(),
            program: None,
            cores: 4,
            memory: None,
            max_memory: Memory { mebibytes: 256 << 10 },
            time: None,
            max_time: TimeLimit { minutes: 24 * 60 },
            pack: TimeLimit { minutes: 20 },
            tries: 4,
            at_once: None,
            poll: 15.0,
            notice: 120,
        }
    }
}

impl Slurm {
    /// Reads a file of its own: the keys of `[slurm]`, without a table.
    ///
    /// # Errors
    /// A file that cannot be read, an unknown key or a wrong value, with its line and column.
    pub fn load(path: &Path) -> anyhow::Result<Self> {
        let text =
            std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| path.display().to_string())
    }
}

/// An amount of memory, written as Slurm does: `800M`, `16G`; without a letter in mebibytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct Memory {
    /// In units of 1,048,576 bytes.
    pub mebibytes: u64,
}

/// A length of time, written as Slurm does: `minutes`, `hours:minutes:seconds`, `days-hours` and so on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "String", into = "String")]
#[schemars(with = "String")]
pub struct TimeLimit {
    /// Slurm counts in these; seconds are rounded up.
    pub minutes: u64,
}

impl FromStr for Memory {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("memory {text:?}: expected a number with M, G or T behind it, `16G`");
        let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
        let number: u64 = digits.parse().map_err(|_| wrong())?;
        let factor = match &text[digits.len()..] {
            "" | "M" | "MB" => 1,
            "G" | "GB" => 1 << 10,
            "T" | "TB" => 1 << 20,
            _ => return Err(wrong()),
        };
        match number.checked_mul(factor) {
            Some(mebibytes) if mebibytes > 0 => Ok(Self { mebibytes }),
            _ => Err(wrong()),
        }
    }
}

impl FromStr for TimeLimit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "time {text:?}: expected minutes, minutes:seconds, hours:minutes:seconds, days-hours, \
                 days-hours:minutes or days-hours:minutes:seconds"
            )
        };
        let number = |part: &str| part.parse::<u32>().map(u64::from).map_err(|_| wrong());
        let (days, rest) = match text.split_once('-') {
            Some((days, rest)) => (Some(number(days)?), rest),
            None => (None, text),
        };
        let parts = rest.split(':').map(number).collect::<Result<Vec<u64>, String>>()?;
        let seconds = match (days, parts.as_slice()) {
            (None, [minutes]) => minutes * 60,
            (None, [minutes, seconds]) => minutes * 60 + seconds,
            (None, [hours, minutes, seconds]) => hours * 3600 + minutes * 60 + seconds,
            (Some(days), [hours]) => days * 86_400 + hours * 3600,
            (Some(days), [hours, minutes]) => days * 86_400 + hours * 3600 + minutes * 60,
            (Some(days), [hours, minutes, seconds]) => days * 86_400 + hours * 3600 + minutes * 60 + seconds,
            _ => return Err(wrong()),
        };
        if seconds == 0 { Err(wrong()) } else { Ok(Self { minutes: seconds.div_ceil(60) }) }
    }
}

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}M", self.mebibytes)
    }
}

impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{:02}:00", self.minutes / 60, self.minutes % 60)
    }
}

impl TryFrom<String> for Memory {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Memory> for String {
    fn from(memory: Memory) -> Self {
        memory.to_string()
    }
}

impl TryFrom<String> for TimeLimit {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TimeLimit> for String {
    fn from(time: TimeLimit) -> Self {
        time.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_time_are_written_as_slurm_writes_them() {
        let memory = |text: &str| text.parse::<Memory>().map(|memory| memory.mebibytes);
        assert_eq!(memory("800"), Ok(800));
        assert_eq!(memory("16G"), Ok(16 << 10));
        assert!(memory("16X").unwrap_err().contains("16X"));
        assert!(memory("0").is_err() && memory("").is_err() && memory("-1G").is_err());
        let minutes = |text: &str| text.parse::<TimeLimit>().map(|time| time.minutes);
        // The forms that sbatch's manual lists for --time.
        for (text, expected) in [
            ("90", 90),
            ("1:30", 2),
            ("2:00:00", 120),
            ("1-12", 36 * 60),
            ("1-0:30", 24 * 60 + 30),
            ("0-0:0:30", 1),
        ] {
            assert_eq!(minutes(text), Ok(expected), "{text}");
        }
        assert!(minutes("0").is_err() && minutes("soon").is_err() && minutes("1-2:3:4:5").is_err());
        assert_eq!(TimeLimit { minutes: 135 }.to_string(), "2:15:00");
    }
}
