use super::pcr::PCR_COUNT;
use super::{Digest, HashAlgorithm, PcrValues};

/// Longest text, in bytes: all PCRs of all banks are some 12 KiB.
const MAX_TEXT: usize = 64 << 10;

/// Reads what `tpm2_pcrread` (tpm2-tools 4 and 5) prints: the values of each bank that is known
/// here; others, such as `sm3_256`, are passed over.
///
/// # Errors
/// The first line that is not of that form, or says something twice.
pub fn parse_pcrread(text: &str) -> Result<Vec<PcrValues>, PcrReadError> {
    if text.len() > MAX_TEXT {
        return Err(error(0, "more than 64 KiB"));
    }
    let mut banks: Vec<PcrValues> = Vec::new();
    // Is the bank of the last heading one of them?
    let mut known = None;
    for (index, line) in text.lines().enumerate() {
        let fail = |reason| error(index + 1, reason);
        let Some((left, right)) = line.split_once(':') else {
            if line.trim().is_empty() {
                continue;
            }
            return Err(fail("neither a bank nor a PCR"));
        };
        let (left, right) = (left.trim(), right.trim());
        if right.is_empty() {
            let bank = HashAlgorithm::from_name(left);
            if bank.is_some() && banks.iter().any(|other| Some(other.bank()) == bank) {
                return Err(fail("a bank that was there before"));
            }
            known = Some(bank.is_some());
            banks.extend(bank.map(PcrValues::new));
            continue;
        }
        let pcr = left.parse().ok().filter(|pcr| *pcr < PCR_COUNT);
        let pcr = pcr.ok_or_else(|| fail("the first word is not a PCR number from 0 to 23"))?;
        let hex = right.strip_prefix("0x").unwrap_or(right);
        let value = Digest::from_hex(hex).ok_or_else(|| fail("the value is not hexadecimal"))?;
        match (known, banks.last_mut()) {
            (None, _) => return Err(fail("a PCR before any bank")),
            (Some(true), Some(bank)) => {
                if value.as_bytes().len() != bank.bank().size() {
                    return Err(fail("the value does not have the size of its bank"));
                }
                if bank.get(pcr).is_some() {
                    return Err(fail("a PCR that was there before"));
                }
                bank.set(pcr, value);
            }
            _ => {}
        }
    }
    Ok(banks)
}

/// A text that `tpm2_pcrread` does not print.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("PCR values, line {line}: {reason}")]
pub struct PcrReadError {
    /// From 1; 0 is all of it.
    pub line: usize,
    /// What is wrong there.
    pub reason: &'static str,
}

fn error(line: usize, reason: &'static str) -> PcrReadError {
    PcrReadError { line, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As tpm2-tools 5.4 prints it, with another number of digits of PCRs.
    fn text() -> String {
        format!(
            "  sha1:\n  sha256:\n    0 : 0x{}\n    23: 0x{}\n  sm3_256:\n    0 : 0x{}\n\n",
            "AB".repeat(32),
            "00".repeat(32),
            "11".repeat(32)
        )
    }

    #[test]
    fn values_stand_under_their_bank() {
        let banks = parse_pcrread(&text()).unwrap();
        let [sha1, sha256] = &banks[..] else {
            panic!("{banks:?}");
        };
        assert_eq!((sha1.bank(), sha1.mask().bits()), (HashAlgorithm::Sha1, 0));
        assert_eq!(sha256.mask().bits(), 0x800001);
        assert_eq!(sha256.get(0).unwrap().as_bytes(), [0xab; 32]);
    }

    #[test]
    fn the_line_that_is_wrong_is_named() {
        let value = "ab".repeat(32);
        for (more, reason) in [
            (format!("sha256:\n  1: 0x{value}\n"), "bank that was there"),
            ("    1 : 0xzz\n".to_owned(), "hexadecimal"),
            (format!("    24: 0x{value}\n"), "from 0 to 23"),
            ("ERROR\n".to_owned(), "neither"),
        ] {
            let error = parse_pcrread(&(text() + &more)).unwrap_err();
            assert_eq!(error.line, 8, "{more}");
            assert!(error.reason.contains(reason), "{more}: {error}");
        }
        let again = text().replace("    23:", "    0 :");
        assert_eq!(parse_pcrread(&again).unwrap_err().line, 4);
        let short = text().replace(&"00".repeat(32), "00");
        assert_eq!(parse_pcrread(&short).unwrap_err().line, 4);
        assert_eq!(parse_pcrread("0 : 0x00").unwrap_err().line, 1);
    }
}
