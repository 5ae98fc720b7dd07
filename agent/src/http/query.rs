use troth_core::tpm::PcrMask;

/// Longest nonce, bytes: TPM2B_DATA of a TPM with SHA-512.
const NONCE_LIMIT: usize = 64;

/// Most parameters of a request; no request has more than four.
const PARAMETERS: usize = 32;

/// A request's query parameters, percent-decoded.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(String, String)>);

/// A parameter that is missing or not as it should be; the texts are Keylime's.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(super) enum QueryError {
    #[error("Query deserialize error: missing field `{0}`")]
    Missing(&'static str),
    #[error("Query deserialize error: duplicate field `{0}`")]
    Duplicate(String),
    #[error("Query deserialize error: more than {PARAMETERS} parameters")]
    TooMany,
    #[error("Query deserialize error: not percent-encoded UTF-8")]
    Encoding,
    #[error("{0} should be strictly alphanumeric: {1}")]
    NotAlphanumeric(&'static str, String),
    #[error("Nonce is too long (max size {NONCE_LIMIT}): {0}")]
    NonceTooLong(usize),
    #[error("mask should be a hex encoded 32-bit integer: {0}")]
    Mask(String),
    #[error("mask names a PCR above 23: {0}")]
    NoSuchPcr(String),
    #[error("uri must contain key 'partial' and value '0' or '1'")]
    Partial,
}

impl Query {
    pub(super) fn parse(query: Option<&str>) -> Result<Self, QueryError> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for pair in query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
        {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let (key, value) = (decode(key)?, decode(value)?);
            if pairs.iter().any(|(known, _)| *known == key) {
                return Err(QueryError::Duplicate(key));
            }
            if pairs.len() == PARAMETERS {
                return Err(QueryError::TooMany);
            }
            pairs.push((key, value));
        }
        Ok(Self(pairs))
    }

    fn get(&self, name: &'static str) -> Option<&str> {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    }

    fn required(&self, name: &'static str) -> Result<&str, QueryError> {
        self.get(name).ok_or(QueryError::Missing(name))
    }

    /// `told` is what the parameter is called when it is refused.
    fn alphanumeric(&self, name: &'static str, told: &'static str) -> Result<&str, QueryError> {
        let value = self.required(name)?;
        if value.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            Ok(value)
        } else {
            Err(QueryError::NotAlphanumeric(
                told,
                value.escape_default().take(100).collect(),
            ))
        }
    }

    /// The nonce of an integrity quote: its characters are the bytes that are signed.
    pub(super) fn nonce(&self) -> Result<Vec<u8>, QueryError> {
        self.nonce_told("nonce")
    }

    /// The nonce of an identity quote, its only parameter.
    pub(super) fn only_nonce(&self) -> Result<Vec<u8>, QueryError> {
        self.nonce_told("Parameters")
    }

    fn nonce_told(&self, told: &'static str) -> Result<Vec<u8>, QueryError> {
        let nonce = self.alphanumeric("nonce", told)?;
        if nonce.len() > NONCE_LIMIT {
            return Err(QueryError::NonceTooLong(nonce.len()));
        }
        Ok(nonce.as_bytes().to_vec())
    }

    /// The PCRs to quote.
    pub(super) fn mask(&self) -> Result<PcrMask, QueryError> {
        let text = self.alphanumeric("mask", "mask")?;
        let digits = text.trim_start_matches("0x");
        let bits = u32::from_str_radix(digits, 16).map_err(|_| QueryError::Mask(text.into()))?;
        PcrMask::from_bits(bits).map_err(|_| QueryError::NoSuchPcr(text.into()))
    }

    /// True when the verifier knows the transport key already.
    pub(super) fn partial(&self) -> Result<bool, QueryError> {
        match self.required("partial")? {
            "0" => Ok(false),
            "1" => Ok(true),
            _ => Err(QueryError::Partial),
        }
    }

    /// What to prove the payload key with.
    pub(super) fn challenge(&self) -> Result<&str, QueryError> {
        self.alphanumeric("challenge", "Parameters")
    }

    /// First entry of the IMA list wanted; whatever is no number means all of it.
    pub(super) fn ima_entry(&self) -> u64 {
        self.get("ima_ml_entry")
            .and_then(|text| text.parse().ok())
            .unwrap_or(0)
    }

    /// Is systemd's log wanted? Troth's own: Keylime's verifier does not ask for it.
    pub(super) fn userspace_log(&self) -> bool {
        self.get("userspace_ml") == Some("1")
    }
}

fn decode(text: &str) -> Result<String, QueryError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => {
                let (digits, tail) = tail.split_at_checked(2).ok_or(QueryError::Encoding)?;
                let mut value = [0];
                hex::decode_to_slice(digits, &mut value).map_err(|_| QueryError::Encoding)?;
                rest = tail;
                value[0]
            }
            other => other,
        });
    }
    String::from_utf8(bytes).map_err(|_| QueryError::Encoding)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(text: &str) -> Query {
        Query::parse(Some(text)).unwrap()
    }

    #[test]
    fn the_nonce_is_taken_as_it_is() {
        assert_eq!(query("nonce=Ab09").nonce().unwrap(), b"Ab09");
        assert_eq!(query("nonce=").nonce().unwrap(), b"");
        assert_eq!(query("nonce=%41b").nonce().unwrap(), b"Ab");
        assert_eq!(
            query(&format!("nonce={}", "a".repeat(64)))
                .nonce()
                .unwrap()
                .len(),
            64
        );
    }

    #[test]
    fn bad_nonces_are_refused_with_keylimes_texts() {
        let missing = Query::parse(None).unwrap().nonce().unwrap_err().to_string();
        assert_eq!(missing, "Query deserialize error: missing field `nonce`");
        let text = query("nonce=a%20b").nonce().unwrap_err().to_string();
        assert!(
            text.starts_with("nonce should be strictly alphanumeric: "),
            "{text}"
        );
        assert!(
            query("nonce=%C3%A4").nonce().is_err(),
            "letters beyond ASCII"
        );
        let text = query(&format!("nonce={}", "a".repeat(65)))
            .nonce()
            .unwrap_err()
            .to_string();
        assert!(
            text.starts_with("Nonce is too long (max size 64): "),
            "{text}"
        );
    }

    #[test]
    fn masks_are_hexadecimal_with_any_number_of_prefixes() {
        for text in ["408400", "0x408400", "0x0x408400"] {
            assert_eq!(
                query(&format!("mask={text}")).mask().unwrap().bits(),
                0x40_8400
            );
        }
        assert_eq!(query("mask=0").mask().unwrap().bits(), 0);
        for text in ["xyz", "", "0x", "100000000"] {
            let error = query(&format!("mask={text}")).mask().unwrap_err();
            assert_eq!(error, QueryError::Mask(text.into()));
        }
        assert!(matches!(
            query("mask=1000000").mask(),
            Err(QueryError::NoSuchPcr(_))
        ));
        assert!(matches!(
            query("mask=-1").mask(),
            Err(QueryError::NotAlphanumeric(..))
        ));
    }

    #[test]
    fn partial_is_0_or_1() {
        assert!(!query("partial=0").partial().unwrap());
        assert!(query("partial=1").partial().unwrap());
        assert_eq!(query("partial=2").partial(), Err(QueryError::Partial));
        assert_eq!(query("x=1").partial(), Err(QueryError::Missing("partial")));
    }

    #[test]
    fn a_position_that_is_no_number_means_the_whole_list() {
        assert_eq!(query("ima_ml_entry=17").ima_entry(), 17);
        for text in ["ima_ml_entry=-1", "ima_ml_entry=x", "ima_ml_entry=", "y=1"] {
            assert_eq!(query(text).ima_entry(), 0, "{text}");
        }
    }

    #[test]
    fn odd_queries_are_refused_not_guessed() {
        assert!(Query::parse(Some("nonce=1&nonce=2")).is_err());
        assert!(Query::parse(Some("nonce=%4")).is_err());
        assert!(Query::parse(Some("nonce=%FF")).is_err());
        assert!(Query::parse(Some("&&nonce=1&")).is_ok());
    }

    #[test]
    fn odd_escapes_and_floods_of_parameters_are_refused() {
        for bad in ["nonce=%+1", "nonce=%1", "nonce=%", "nonce=%zz", "%ff=1"] {
            let error = Query::parse(Some(bad)).unwrap_err();
            assert_eq!(error, QueryError::Encoding, "{bad}");
        }
        assert_eq!(query("nonce=%41b").nonce().unwrap(), b"Ab");
        let many: Vec<_> = (0..=PARAMETERS).map(|n| format!("p{n}=1")).collect();
        Query::parse(Some(&many[1..].join("&"))).unwrap();
        let error = Query::parse(Some(&many.join("&"))).unwrap_err();
        assert_eq!(error, QueryError::TooMany);
    }
}
