//! What a model's tokens cost.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::cache::NanoDollars;

/// A model's price, in dollars for a million tokens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// For tokens of the prompt.
    pub prompt: f64,
    /// For tokens of the answer.
    pub completion: f64,
}

impl Price {
    /// What a request costs, rounded up.
    pub fn of(&self, prompt_tokens: u64, completion_tokens: u64) -> NanoDollars {
        // Dollars a million tokens are thousands of nano-dollars a token.
        let cost = (self.prompt * prompt_tokens as f64 + self.completion * completion_tokens as f64) * 1e3;
        // `as` saturates: a sum beyond i64 stays beyond every cap.
        cost.ceil() as NanoDollars
    }
}

/// A price list is wrong.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: expected a price list: [\"MODEL\"] with prompt = and completion = dollars for a million tokens; {found}"
)]
pub struct PriceError {
    path: PathBuf,
    found: String,
}

/// Prices by model, from a TOML file:
///
/// ```toml
/// ["some-model"]
/// prompt = 0.15
/// completion = 0.60
/// ```
///
/// None is built in: prices change, and a cap reckoned with an old price would be broken in silence.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PriceList(BTreeMap<String, Price>);

impl PriceList {
    /// Reads a price list.
    ///
    /// # Errors
    /// [`PriceError`]: unreadable, not of this form, or a price below 0.
    pub fn from_file(path: &Path) -> Result<PriceList, PriceError> {
        let wrong = |found: String| PriceError { path: path.to_path_buf(), found };
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let prices: BTreeMap<String, Price> =
            toml::from_str(&text).map_err(|error| wrong(error.to_string()))?;
        for (model, price) in &prices {
            // Written so that NaN is refused too.
            if !(price.prompt >= 0.0
                && price.completion >= 0.0
                && (price.prompt + price.completion).is_finite())
            {
                return Err(wrong(format!("found {price:?} for {model}")));
            }
        }
        Ok(PriceList(prices))
    }

    /// The price of a model.
    pub fn price(&self, model: &str) -> Option<Price> {
        self.0.get(model).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prices_are_by_the_million_and_rounded_up() {
        let price = Price { prompt: 0.15, completion: 0.6 };
        assert_eq!(price.of(1_000_000, 0), 150_000_000);
        assert_eq!(price.of(1_000, 1_000), 750_000);
        assert_eq!(Price { prompt: 0.0001, completion: 0.0 }.of(1, 0), 1);
    }

    #[test]
    fn a_wrong_list_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prices.toml");
        std::fs::write(&path, "[\"gpt x\"]\nprompt = 1\ncompletion = 2.5\n").unwrap();
        let list = PriceList::from_file(&path).unwrap();
        assert_eq!(list.price("gpt x"), Some(Price { prompt: 1.0, completion: 2.5 }));
        assert_eq!(list.price("other"), None);
        std::fs::write(&path, "[m]\nprompt = -1\ncompletion = 2\n").unwrap();
        assert!(PriceList::from_file(&path).unwrap_err().to_string().contains("prices.toml"));
    }
}
