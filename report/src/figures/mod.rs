//! The figures of an experiment: the paper's, and what it lacks.
//!
//! | figure | in the paper | panels |
//! | --- | --- | --- |
//! | `scores-METHOD-FAMILY` | 1, 2, 7 | a seen language each: score against model size, a line a recipe |
//! | `unseen-FAMILY` | 3 | a method and unseen language each |
//! | `gate` | 4 | a method and family each: what the gate takes, against model size (bars for families of one size) |
//! | `families-METHOD` | 8 | a language each: bars by family, at one size |
//! | `recipes-METHOD-MODEL` | | a language each: bars by recipe, where a family has one size |
//! | `seeds-METHOD` | | a language each: the total of every seed |
//! | `cost` | | a method each: score against cost |
//! | `learning-METHOD` | | a language each: validation loss against updates |
//! | `confusion` | | a recipe each: languages of prompts and of responses |
//! | `fertility` | | a method each: score against tokens a word |

mod by_family;
mod by_size;
mod compose;
mod confusion;
mod cost;
pub mod draw;
mod fertility;
mod learning;
pub mod plot;
pub mod png;
mod seeds;

pub use compose::figures;
