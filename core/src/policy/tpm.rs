use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{MAX_SMALL_POLICY, PolicyError};
use crate::ima::IMA_PCR;
use crate::tpm::{BIND_PCR, Digest, PcrMask, PcrValues};

/// Allowed PCR values, with the mask the quote must cover.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct TpmPolicy {
    mask: PcrMask,
    allowed: BTreeMap<u8, Vec<Digest>>,
}

impl TpmPolicy {
    /// From the verifier's JSON text, which has `mask` (hex text): `{"15": ["<hex>"], "mask":
    /// "0x8000"}`. A single value may stand without its list.
    ///
    /// # Errors
    /// Names the key or value that cannot be used; a mask with PCR 24 or above is refused.
    pub fn parse(json: &str) -> Result<Self, PolicyError> {
        let mut object = object(json)?;
        let mask = match object.remove("mask") {
            Some(Value::String(text)) => PcrMask::from_hex(&text)?,
            Some(_) => return Err(PolicyError::Schema("`mask` is not a string".to_owned())),
            None => return Err(PolicyError::Schema("missing key `mask`".to_owned())),
        };
        Ok(Self {
            mask: without_bind_pcr(mask),
            allowed: allowed(object)?,
        })
    }

    /// From what an operator writes, normalised; refuses PCR 10, 16 and above 23. The mask is the
    /// PCRs named, and those of a `mask` if there is one.
    ///
    /// # Errors
    /// Names the key or value that cannot be used.
    pub fn from_operator(json: &str) -> Result<Self, PolicyError> {
        let mut object = object(json)?;
        let mask = match object.remove("mask") {
            Some(Value::String(text)) => PcrMask::from_hex(&text)?,
            Some(_) => return Err(PolicyError::Schema("`mask` is not a string".to_owned())),
            None => PcrMask::default(),
        };
        Ok(Self::of(allowed(object)?, mask))
    }

    /// Allows exactly `values` of the PCRs of `mask`; PCR 10 and 16, which have no fixed value, are
    /// left out.
    ///
    /// # Errors
    /// Names the first PCR of `mask` that has no value.
    pub fn from_values(values: &PcrValues, mask: PcrMask) -> Result<Self, PolicyError> {
        let pcrs = mask.iter().filter(|pcr| ![IMA_PCR, BIND_PCR].contains(pcr));
        let allowed = pcrs
            .map(|pcr| match values.get(pcr) {
                Some(value) => Ok((pcr, vec![*value])),
                None => Err(PolicyError::PcrMissing { pcr }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Self::of(allowed, PcrMask::default()))
    }

    /// Allows also what `other` allows, and covers the PCRs of both masks. The values of a PCR come
    /// sorted.
    #[must_use]
    pub fn merge(&self, other: &Self) -> Self {
        let mut merged = self.clone().with_mask(other.mask);
        for (pcr, values) in &other.allowed {
            let mine = merged.allowed.entry(*pcr).or_default();
            mine.extend(values);
        }
        for values in merged.allowed.values_mut() {
            values.sort_by(|a, b| a.as_bytes().cmp(b.as_bytes()));
            values.dedup();
        }
        merged
    }

    /// With a mask of the PCRs named and of `more`.
    fn of(allowed: BTreeMap<u8, Vec<Digest>>, more: PcrMask) -> Self {
        let mask = allowed.keys().fold(more, |mask, pcr| mask.with(*pcr));
        Self {
            mask: without_bind_pcr(mask),
            allowed,
        }
    }

    /// The mask, without PCR 16.
    pub fn mask(&self) -> PcrMask {
        self.mask
    }

    /// Adds PCRs to the mask.
    #[must_use]
    pub fn with_mask(self, mask: PcrMask) -> Self {
        Self {
            mask: without_bind_pcr(self.mask.union(mask)),
            ..self
        }
    }

    /// PCRs with their allowed values, ascending. The values may be of several banks.
    pub fn allowed(&self) -> impl Iterator<Item = (u8, &[Digest])> {
        self.allowed
            .iter()
            .map(|(pcr, values)| (*pcr, values.as_slice()))
    }

    /// The JSON text the verifier's API carries.
    pub fn to_json(&self) -> String {
        // Built by hand: PCRs in numeric order, `mask` last, as people expect to read it.
        let mut text = String::from("{");
        for (pcr, values) in &self.allowed {
            let values: Vec<_> = values.iter().map(|value| format!("\"{value}\"")).collect();
            text += &format!("\"{pcr}\": [{}], ", values.join(", "));
        }
        text + &format!("\"mask\": \"{:#x}\"}}", self.mask.bits())
    }
}

fn object(json: &str) -> Result<Map<String, Value>, PolicyError> {
    PolicyError::check_size(json.len(), MAX_SMALL_POLICY)?;
    let Members(members) = serde_json::from_str(json).map_err(|e| PolicyError::from_json(&e))?;
    Ok(members)
}

/// An object in which every name occurs once: parsers disagree on which of two counts.
struct Members(Map<String, Value>);

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(Self(Map::new()))
    }
}

impl<'de> Visitor<'de> for Members {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object of PCR numbers")
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<Self, A::Error> {
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if self.0.contains_key(&name) {
                return Err(A::Error::custom(format!("{name:?} occurs twice")));
            }
            self.0.insert(name, value);
        }
        Ok(self)
    }
}

fn without_bind_pcr(mask: PcrMask) -> PcrMask {
    mask.iter()
        .filter(|pcr| *pcr != BIND_PCR)
        .fold(PcrMask::default(), PcrMask::with)
}

fn allowed(object: Map<String, Value>) -> Result<BTreeMap<u8, Vec<Digest>>, PolicyError> {
    object
        .into_iter()
        .map(|(key, values)| entry(key, values))
        .collect()
}

fn entry(key: String, values: Value) -> Result<(u8, Vec<Digest>), PolicyError> {
    // One way to write each: "1" and "01" would be two keys, of which one is lost.
    let digits = key.bytes().all(|b| b.is_ascii_digit()) && (key == "0" || !key.starts_with('0'));
    let pcr = match key.parse::<u8>() {
        Ok(pcr) if digits && pcr < 24 => pcr,
        _ => return Err(PolicyError::PcrNumber(key)),
    };
    match pcr {
        IMA_PCR => {
            let reason = "it holds the IMA list, which the runtime policy judges";
            return Err(PolicyError::PcrReserved { pcr, reason });
        }
        BIND_PCR => {
            let reason = "it binds the agent's key to the quote";
            return Err(PolicyError::PcrReserved { pcr, reason });
        }
        _ => {}
    }
    let digest = |value: &Value| match value {
        Value::String(text) => Digest::from_hex(text)
            .filter(|digest| !digest.as_bytes().is_empty())
            .ok_or_else(|| PolicyError::PcrValue {
                pcr,
                value: text.clone(),
            }),
        other => Err(PolicyError::PcrValue {
            pcr,
            value: other.to_string(),
        }),
    };
    let values = match &values {
        Value::Array(values) => values.iter().map(digest).collect::<Result<_, _>>()?,
        value => vec![digest(value)?],
    };
    Ok((pcr, values))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_operator_writes_is_normalised() {
        let policy = TpmPolicy::from_operator(r#"{"15":"AA","22":["bb","CC"]}"#).unwrap();
        assert_eq!(
            policy.to_json(),
            r#"{"15": ["aa"], "22": ["bb", "cc"], "mask": "0x408000"}"#
        );
        assert_eq!(
            TpmPolicy::from_operator("{}").unwrap().to_json(),
            r#"{"mask": "0x0"}"#
        );
        assert_eq!(TpmPolicy::parse(&policy.to_json()).unwrap(), policy);
    }

    #[test]
    fn what_is_normalised_may_be_given_again() {
        let text = r#"{"15": ["aa"], "mask": "0x408000"}"#;
        let policy = TpmPolicy::from_operator(text).unwrap();
        assert_eq!(policy.to_json(), text);
        // The mask of PCR values is never less than what they need.
        let text = r#"{"15": ["aa"], "mask": "0x10001"}"#;
        assert_eq!(
            TpmPolicy::from_operator(text).unwrap().mask().bits(),
            0x8001
        );
    }

    #[test]
    fn a_policy_of_values_leaves_out_the_pcrs_of_lists_and_keys() {
        let mut values = PcrValues::new(HashAlgorithm::Sha1);
        for pcr in [0, 7, 10, 16] {
            values.set(pcr, Digest::from_slice(&[pcr; 20]).unwrap());
        }
        let policy = TpmPolicy::from_values(&values, values.mask()).unwrap();
        let value = |byte: &str| byte.repeat(20);
        let expected = format!(
            r#"{{"0": ["{}"], "7": ["{}"], "mask": "0x81"}}"#,
            value("00"),
            value("07")
        );
        assert_eq!(policy.to_json(), expected);
        let error = TpmPolicy::from_values(&values, values.mask().with(4)).unwrap_err();
        assert_eq!(error, PolicyError::PcrMissing { pcr: 4 });
    }

    #[test]
    fn two_policies_allow_what_either_allows() {
        let policy = |text| TpmPolicy::from_operator(text).unwrap();
        let (a, b) = (
            r#"{"7": ["bb", "aa"]}"#,
            r#"{"7": "cc", "0": "aa", "mask": "0x400"}"#,
        );
        let merged = policy(a).merge(&policy(b));
        let expected = r#"{"0": ["aa"], "7": ["aa", "bb", "cc"], "mask": "0x481"}"#;
        assert_eq!(merged.to_json(), expected);
        assert_eq!(merged, policy(b).merge(&policy(a)));
        assert_eq!(merged, merged.merge(&merged));
    }

    #[test]
    fn reserved_and_unknown_pcrs_are_refused() {
        for (json, part) in [
            (r#"{"10":"aa"}"#, "PCR 10"),
            (r#"{"16":"aa"}"#, "PCR 16"),
            (r#"{"24":"aa"}"#, "\"24\""),
            (r#"{"mask":1}"#, "`mask`"),
            (r#"{"+1":"aa"}"#, "\"+1\""),
            (r#"{"1":"aa","01":"bb"}"#, "\"01\""),
            (r#"{"0":"aa","00":"bb"}"#, "\"00\""),
            (r#"{"1":"aa","1":"bb"}"#, "\"1\" occurs twice"),
            (r#"{"1":"xy"}"#, "\"xy\""),
            (r#"{"1":[7]}"#, "\"7\""),
        ] {
            let error = TpmPolicy::from_operator(json).unwrap_err();
            assert!(error.to_string().contains(part), "{error}");
        }
    }

    #[test]
    fn the_mask_is_required_and_never_names_pcr_16_or_24() {
        assert!(matches!(
            TpmPolicy::parse("{}"),
            Err(PolicyError::Schema(_))
        ));
        assert!(matches!(
            TpmPolicy::parse(r#"{"mask":"0x1000000"}"#),
            Err(PolicyError::Mask(PcrMaskError::OutOfRange(_)))
        ));
        assert_eq!(
            TpmPolicy::parse(r#"{"mask":"0x10400"}"#)
                .unwrap()
                .mask()
                .bits(),
            0x400
        );
    }

    use crate::tpm::{HashAlgorithm, PcrMaskError};
}
