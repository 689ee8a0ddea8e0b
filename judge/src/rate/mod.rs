//! The people's rating page: blind, with a link for each person, and every confirmed mark on disk.
//!
//! Read in this order: [`sample`] draws what is rated, [`store`] keeps it and the marks, [`server`] shows it, and
//! [`export`] joins the marks with a judge's ratings.

pub mod export;
pub mod sample;
pub mod server;
pub mod store;
