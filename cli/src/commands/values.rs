//! Numbers of flags that not every number can be: refused where they are read, with what was expected.

use std::ops::RangeFrom;

use clap::builder::RangedU64ValueParser;

/// A finite number, 0 or more.
pub(super) fn at_least_0(text: &str) -> Result<f64, String> {
    number(text, |value| value >= 0.0, "a number, 0 or more")
}

/// A finite number above 0.
pub(super) fn above_0(text: &str) -> Result<f64, String> {
    number(text, |value| value > 0.0, "a number above 0")
}

/// A finite number, 1 or more.
pub(super) fn at_least_1(text: &str) -> Result<f64, String> {
    number(text, |value| value >= 1.0, "a number, 1 or more")
}

/// How many times a length may be another: 1 or more, or 0 for any.
pub(super) fn times_or_any(text: &str) -> Result<f64, String> {
    number(text, |value| value == 0.0 || value >= 1.0, "a number, 1 or more, or 0 for any")
}

/// A whole number, 1 or more.
pub(super) fn one_or_more<N: TryFrom<u64> + Clone + Send + Sync + 'static>() -> RangedU64ValueParser<N> {
    const FROM_1: RangeFrom<u64> = 1..;
    RangedU64ValueParser::new().range(FROM_1)
}

fn number(text: &str, fits: fn(f64) -> bool, expected: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if value.is_finite() && fits(value) => Ok(value),
        _ => Err(format!("expected {expected}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_that_cannot_be_are_refused() {
        for odd in ["nan", "inf", "-inf", "1e999", "-1", "", "many"] {
            assert!(
                [at_least_0, above_0, at_least_1, times_or_any].iter().all(|read| read(odd).is_err()),
                "{odd}"
            );
        }
        assert_eq!((at_least_0("0"), times_or_any("0"), at_least_1("1")), (Ok(0.0), Ok(0.0), Ok(1.0)));
        assert!(above_0("0").is_err() && at_least_1("0.5").is_err() && times_or_any("0.5").is_err());
    }
}
