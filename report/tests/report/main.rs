//! A report as a user builds it, of an experiment that is synthetic.

#![expect(clippy::unwrap_used, reason = "helpers of tests: a failure is a failed test")]

mod chromium;
mod page;
mod plain;
mod recomputed;
mod synthetic;
