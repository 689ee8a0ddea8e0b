//! The language gate, judges, ratings and their agreement with people.
