use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

/// `90s`, `10m`, `1h`.
pub(crate) fn span(text: &str) -> Result<Duration> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let factor = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("a number with s, m or h, as in 10m"),
    };
    let number: u64 = digits.parse().context("a number with s, m or h")?;
    let seconds = number.checked_mul(factor).context("that is too long")?;
    ensure!(seconds > 0, "longer than nothing");
    Ok(Duration::from_secs(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_are_numbers_with_a_unit() {
        for (text, seconds) in [("90s", 90), ("10m", 600), ("1h", 3600)] {
            assert_eq!(span(text).unwrap(), Duration::from_secs(seconds));
        }
        for text in [
            "",
            "10",
            "m",
            "0s",
            "1d",
            "-1s",
            "1h30m",
            "99999999999999999999h",
        ] {
            assert!(span(text).is_err(), "{text}");
        }
    }
}
