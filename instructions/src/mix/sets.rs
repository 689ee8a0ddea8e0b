//! The sets that mixes are made of.

use std::collections::BTreeMap;

use crate::language::Language;
use crate::recipe::Origin;
use crate::record::Record;

/// Records of one language and origin.
#[derive(Clone, Debug, PartialEq)]
pub struct Set {
    /// The language of all its records.
    pub language: Language,
    /// Where its text comes from.
    pub origin: Origin,
    /// The records; sets that share ids are parallel.
    pub records: Vec<Record>,
}

/// All sets at hand: one a language, or several of different origins.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sets(Vec<Set>);

impl Sets {
    /// No set.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a set; records of a language and origin that are there already are added to that set.
    pub fn add(&mut self, set: Set) {
        match self.0.iter_mut().find(|other| other.language == set.language && other.origin == set.origin) {
            Some(other) => other.records.extend(set.records),
            None => self.0.push(set),
        }
    }

    /// The sets, in the order in which they were added.
    pub fn iter(&self) -> impl Iterator<Item = &Set> {
        self.0.iter()
    }
}

/// One native set a language.
impl From<BTreeMap<Language, Vec<Record>>> for Sets {
    fn from(sets: BTreeMap<Language, Vec<Record>>) -> Self {
        let set = |(language, records)| Set { language, origin: Origin::Native, records };
        Self(sets.into_iter().map(set).collect())
    }
}
