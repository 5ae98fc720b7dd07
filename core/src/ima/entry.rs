use super::{MAX_LINE, MeasuredKey};
use crate::tpm::{Digest, HashAlgorithm};

/// A line that is no entry: which, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("entry {entry}: {reason}")]
pub struct EntryError {
    /// 0-based index since boot.
    pub entry: u64,
    /// What is wrong with it.
    pub reason: &'static str,
}

/// The template of an entry: which fields were measured (kernel, Documentation/security/IMA-templates).
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
#[non_exhaustive]
pub enum Template {
    /// `ima`: SHA-1 or MD5 digest and a name of up to 255 bytes, of fixed size.
    Ima,
    /// `ima-ng`: `d-ng|n-ng`.
    ImaNg,
    /// `ima-sig`: `d-ng|n-ng|sig`.
    ImaSig,
    /// `ima-buf`: `d-ng|n-ng|buf`.
    ImaBuf,
}

impl Template {
    /// The name as the list writes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ima => "ima",
            Self::ImaNg => "ima-ng",
            Self::ImaSig => "ima-sig",
            Self::ImaBuf => "ima-buf",
        }
    }
}

/// One entry of the list. Borrows its line.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'l> {
    /// 0-based index since boot.
    pub index: u64,
    /// The PCR that was extended.
    pub pcr: u32,
    /// Template hash as printed; the kernel prints SHA-1 whatever the bank.
    pub template_hash: Digest,
    /// The template.
    pub template: Template,
    /// Hash algorithm of the digest as the kernel names it; empty in template `ima`.
    pub algorithm: &'l str,
    /// Digest of the file or buffer.
    pub digest: Digest,
    /// File path, keyring or buffer name.
    pub name: &'l str,
    /// Hex of the signature (`ima-sig`) or buffer (`ima-buf`), else empty.
    extra: &'l str,
}

impl<'l> Entry<'l> {
    /// Parses one line, without its line feed.
    pub(super) fn parse(line: &'l str, index: u64) -> Result<Self, EntryError> {
        let fail = |reason| EntryError {
            entry: index,
            reason,
        };
        if line.len() > MAX_LINE {
            return Err(fail("line is over 1 MiB"));
        }
        let mut parts = line.splitn(4, ' ');
        let (Some(pcr), Some(hash), Some(template), Some(fields)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(fail("fewer than four fields"));
        };
        let pcr = pcr.parse().map_err(|_| fail("PCR is not a number"))?;
        let template_hash = decode(hash).ok_or_else(|| fail("template hash is not hex"))?;
        let template = match template {
            "ima-sig" => Template::ImaSig,
            "ima-ng" => Template::ImaNg,
            "ima-buf" => Template::ImaBuf,
            "ima" => Template::Ima,
            _ => return Err(fail("unknown template")),
        };
        let (digest, rest) = fields
            .split_once(' ')
            .ok_or_else(|| fail("no name after the digest"))?;
        let (algorithm, digest) = match template {
            Template::Ima => ("", digest),
            _ => digest
                .split_once(':')
                .ok_or_else(|| fail("digest without its algorithm"))?,
        };
        let digest = decode(digest).ok_or_else(|| fail("digest is not hex"))?;
        let size = digest.as_bytes().len();
        let (name, extra) = match template {
            Template::Ima => {
                if size != 16 && size != 20 {
                    return Err(fail("digest is neither MD5 nor SHA-1"));
                }
                if rest.len() > 255 {
                    return Err(fail("name is longer than 255 bytes"));
                }
                (rest, "")
            }
            Template::ImaNg => (rest, ""),
            // A name may hold spaces in lists of very old kernels; the last field never does.
            Template::ImaSig | Template::ImaBuf => rest
                .rsplit_once(' ')
                .ok_or_else(|| fail("no field after the name"))?,
        };
        if !extra.len().is_multiple_of(2) {
            return Err(fail("last field is not hex"));
        }
        Ok(Self {
            index,
            pcr,
            template_hash,
            template,
            algorithm,
            digest,
            name,
            extra,
        })
    }

    /// Did the kernel see the file opened for writing while it was measured, or the reverse?
    /// Such an entry has no digest; PCR 10 is extended with ones instead.
    pub fn is_violation(&self) -> bool {
        self.template_hash.as_bytes().iter().all(|byte| *byte == 0)
    }

    /// The bytes of the signature or buffer.
    pub fn extra(&self) -> Vec<u8> {
        hex::decode(self.extra).unwrap_or_default()
    }

    /// The key, if the entry measured one being added to a keyring.
    pub fn key(&self) -> Option<MeasuredKey> {
        match self.template {
            Template::ImaBuf => MeasuredKey::parse(&self.extra()),
            Template::Ima | Template::ImaNg | Template::ImaSig => None,
        }
    }

    /// Does the digest belong to the buffer? `None` for a hash algorithm that is not known.
    pub fn buffer_matches_digest(&self) -> Option<bool> {
        let algorithm = HashAlgorithm::from_name(self.algorithm)?;
        Some(algorithm.digest(&[&self.extra()]) == self.digest)
    }

    /// Writes the template data, the bytes that the template hash and PCR 10 are made of, into
    /// `out`. Fields are preceded by their length as u32, little-endian, except in `ima`.
    pub(super) fn template_data(&self, out: &mut Vec<u8>) -> Result<(), EntryError> {
        out.clear();
        let digest = self.digest.as_bytes();
        if self.template == Template::Ima {
            out.extend_from_slice(digest);
            out.extend_from_slice(self.name.as_bytes());
            out.resize(digest.len() + 256, 0);
            return Ok(());
        }
        let fail = |reason| EntryError {
            entry: self.index,
            reason,
        };
        let length = |bytes: usize| {
            u32::try_from(bytes)
                .map(u32::to_le_bytes)
                .map_err(|_| fail("field over 4 GiB"))
        };
        out.extend_from_slice(&length(self.algorithm.len() + 2 + digest.len())?);
        out.extend_from_slice(self.algorithm.as_bytes());
        out.extend_from_slice(b":\0");
        out.extend_from_slice(digest);
        out.extend_from_slice(&length(self.name.len() + 1)?);
        out.extend_from_slice(self.name.as_bytes());
        out.push(0);
        if matches!(self.template, Template::ImaSig | Template::ImaBuf) {
            let bytes = self.extra.len() / 2;
            out.extend_from_slice(&length(bytes)?);
            let start = out.len();
            out.resize(start + bytes, 0);
            decode_into(self.extra.as_bytes(), &mut out[start..])
                .ok_or_else(|| fail("last field is not hex"))?;
        }
        Ok(())
    }
}

/// Value of each hex digit, 0xff for other bytes. A list is mostly hex: this decodes at a third
/// of the price of a match on each digit.
const NIBBLES: [u8; 256] = {
    let mut table = [0xff; 256];
    let (mut digit, mut upper, mut lower) = (0, b'A', b'a');
    while digit < 10 {
        table[(b'0' + digit) as usize] = digit;
        digit += 1;
    }
    while digit < 16 {
        table[upper as usize] = digit;
        table[lower as usize] = digit;
        (digit, upper, lower) = (digit + 1, upper + 1, lower + 1);
    }
    table
};

/// Decodes `hex`, which has twice the length of `out`.
fn decode_into(hex: &[u8], out: &mut [u8]) -> Option<()> {
    let mut bad = 0;
    for (pair, byte) in hex.chunks_exact(2).zip(out) {
        let (high, low) = (NIBBLES[usize::from(pair[0])], NIBBLES[usize::from(pair[1])]);
        bad |= high | low;
        *byte = high << 4 | low & 0xf;
    }
    (bad < 16).then_some(())
}

/// A digest of 1 to 64 bytes.
fn decode(hex: &str) -> Option<Digest> {
    let mut bytes = [0; 64];
    if hex.is_empty() || !hex.len().is_multiple_of(2) {
        return None;
    }
    let digest = bytes.get_mut(..hex.len() / 2)?;
    decode_into(hex.as_bytes(), digest)?;
    Digest::from_slice(digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "10 53e58519adfbacbd82efd1f1d5e590a90fcbadd6 ima-ng \
                        sha1:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb /usr/bin/true";

    #[test]
    fn template_data_is_the_kernels() {
        let mut data = Vec::new();
        Entry::parse(LINE, 0)
            .unwrap()
            .template_data(&mut data)
            .unwrap();
        assert_eq!(
            hex::encode(data),
            "1a000000736861313a00bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\
             0e0000002f7573722f62696e2f7472756500"
        );
    }

    #[test]
    fn names_may_hold_spaces() {
        let spaces = LINE.replace("/usr/bin/true", "/a b  c ");
        assert_eq!(Entry::parse(&spaces, 0).unwrap().name, "/a b  c ");
        let signed = LINE.replace("ima-ng", "ima-sig") + " 0302";
        let entry = Entry::parse(&signed, 0).unwrap();
        assert_eq!((entry.name, entry.extra()), ("/usr/bin/true", vec![3, 2]));
        let unsigned = LINE
            .replace("ima-ng", "ima-sig")
            .replace("/usr", "/usr local")
            + " ";
        let entry = Entry::parse(&unsigned, 0).unwrap();
        assert_eq!((entry.name, entry.extra()), ("/usr local/bin/true", vec![]));
    }

    #[test]
    fn what_is_no_entry_says_why() {
        for (from, to, reason) in [
            ("ima-ng", "ima-ngv2", "unknown template"),
            ("10 ", "x ", "PCR is not a number"),
            ("53e5", "53eg", "template hash is not hex"),
            ("sha1:", "", "digest without its algorithm"),
            ("bbbb", "bbb", "digest is not hex"),
            (" /usr/bin/true", "", "no name after the digest"),
            ("ima-ng", "ima-sig", "no field after the name"),
        ] {
            let error = Entry::parse(&LINE.replacen(from, to, 1), 7).unwrap_err();
            assert_eq!(error, EntryError { entry: 7, reason }, "{from} -> {to}");
        }
        let long = format!("{LINE}{}", "x".repeat(MAX_LINE));
        assert_eq!(
            Entry::parse(&long, 0).unwrap_err().reason,
            "line is over 1 MiB"
        );
    }
}
