use std::{fmt, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A span of time: a number of seconds (`2`, `0.5`), or a text with a unit (`"500ms"`, `"2s"`,
/// `"5min"`).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Seconds(pub Duration);

/// Spans above this are typing errors; the limit also keeps sums of them representable.
const LONGEST: f64 = 366.0 * 86_400.0;

impl Seconds {
    fn from_f64(seconds: f64) -> Result<Self, String> {
        if (0.0..=LONGEST).contains(&seconds) {
            Ok(Self(Duration::from_secs_f64(seconds)))
        } else {
            Err(format!(
                "{seconds} is not a time between 0 and 366 days in seconds"
            ))
        }
    }

    fn from_text(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let factor = match text[digits.len()..].trim() {
            "ms" => 0.001,
            "" | "s" | "sec" => 1.0,
            "m" | "min" => 60.0,
            "h" => 3600.0,
            unit => return Err(format!("unknown unit {unit:?}: use ms, s, min or h")),
        };
        let number: f64 = digits
            .trim()
            .parse()
            .map_err(|_| format!("{text:?} is not a time span"))?;
        Self::from_f64(number * factor)
    }
}

/// As a number: whole where it is.
impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0.subsec_nanos() {
            0 => serializer.serialize_u64(self.0.as_secs()),
            _ => serializer.serialize_f64(self.0.as_secs_f64()),
        }
    }
}

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Seconds;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("seconds as a number, or a text such as \"500ms\", \"2s\", \"5min\"")
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Seconds, E> {
                let value = i32::try_from(value).map_err(E::custom)?;
                Seconds::from_f64(f64::from(value)).map_err(E::custom)
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Seconds, E> {
                let value = u32::try_from(value).map_err(E::custom)?;
                Seconds::from_f64(f64::from(value)).map_err(E::custom)
            }

            fn visit_f64<E: de::Error>(self, value: f64) -> Result<Seconds, E> {
                Seconds::from_f64(value).map_err(E::custom)
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Seconds, E> {
                Seconds::from_text(value).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(text: &str) -> Result<Seconds, String> {
        Seconds::from_text(text)
    }

    #[test]
    fn time_spans_take_units_and_refuse_nonsense() {
        assert_eq!(span("500ms"), Ok(Seconds(Duration::from_millis(500))));
        assert_eq!(span("2s"), Ok(Seconds(Duration::from_secs(2))));
        assert_eq!(span(" 1.5 min"), Ok(Seconds(Duration::from_secs(90))));
        assert_eq!(span("3"), Ok(Seconds(Duration::from_secs(3))));
        for wrong in ["", "s", "-1s", "2 parsecs", "NaN", "inf", "1e99"] {
            assert!(span(wrong).is_err(), "{wrong:?} was taken");
        }
    }
}
