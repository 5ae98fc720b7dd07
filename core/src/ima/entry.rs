use super::template::Field;
use super::{MAX_LINE, MeasuredKey, Template, raw, split};
use crate::base16;
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

/// One entry of the list. Borrows its line.
#[derive(Clone, Copy, Debug)]
pub struct Entry<'l> {
    /// 0-based index since boot.
    pub index: u64,
    /// The PCR that was extended.
    pub pcr: u32,
    /// Template hash as printed; the kernel prints SHA-1 whatever the bank, but in the lists that
    /// are named after another one.
    pub template_hash: Digest,
    /// The template.
    pub template: Template,
    /// Hash algorithm of the digest as the kernel names it; empty in template `ima`.
    pub algorithm: &'l str,
    /// Digest of the file or buffer.
    pub digest: Digest,
    /// Is the digest fs-verity's, over a Merkle tree, and not that of the file's content?
    pub verity: bool,
    /// File path, keyring or buffer name. The kernel writes spaces as underscores; a byte that is
    /// not UTF-8 is a character from U+10FF80 to U+10FFFF.
    pub name: &'l str,
    /// What stands before the digest, `alg` or `type:alg`.
    prefix: &'l str,
    /// The fields behind the name, as they stand in the line.
    rest: &'l str,
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
        // The kernel writes the PCR with a width of two.
        let line = line.strip_prefix(' ').unwrap_or(line);
        let field = |text| split::at(text, b' ').ok_or_else(|| fail("fewer than four fields"));
        let (pcr, rest) = field(line)?;
        let (hash, rest) = field(rest)?;
        let (template, fields) = field(rest)?;
        let pcr = pcr.parse().map_err(|_| fail("PCR is not a number"))?;
        let template_hash = decode(hash).ok_or_else(|| fail("template hash is not hex"))?;
        let template = Template::from_name(template).ok_or_else(|| fail("unknown template"))?;
        let (digest, rest) =
            split::at(fields, b' ').ok_or_else(|| fail("no name after the digest"))?;
        let (prefix, digest) = match template {
            Template::Ima => ("", digest),
            _ => split::at_nth_last(digest, b':', 1)
                .ok_or_else(|| fail("digest without its algorithm"))?,
        };
        let (verity, algorithm) = if template.has_digest_type() {
            match prefix.split_once(':') {
                Some(("ima", algorithm)) => (false, algorithm),
                Some(("verity", algorithm)) => (true, algorithm),
                _ => return Err(fail("digest is neither of type ima nor verity")),
            }
        } else {
            (false, prefix)
        };
        let digest = decode(digest).ok_or_else(|| fail("digest is not hex"))?;
        let (name, rest) = if template == Template::Ima {
            if !matches!(digest.as_bytes().len(), 16 | 20) {
                return Err(fail("digest is neither MD5 nor SHA-1"));
            }
            if rest.len() > 255 {
                return Err(fail("name is longer than 255 bytes"));
            }
            (rest, "")
        } else {
            // A name may hold spaces in lists of very old kernels; the last fields never do.
            match template.fields().len() {
                0 => (rest, ""),
                behind => split::at_nth_last(rest, b' ', behind)
                    .ok_or_else(|| fail("no field after the name"))?,
            }
        };
        Ok(Self {
            index,
            pcr,
            template_hash,
            template,
            algorithm,
            digest,
            verity,
            name,
            prefix,
            rest,
        })
    }

    /// Did the kernel see the file opened for writing while it was measured, or the reverse?
    /// Such an entry has no digest; PCR 10 is extended with ones instead.
    pub fn is_violation(&self) -> bool {
        self.template_hash.as_bytes().iter().all(|byte| *byte == 0)
    }

    /// Is it a key or another buffer, and not a file?
    pub fn is_buffer(&self) -> bool {
        self.template == Template::ImaBuf
    }

    /// The bytes of the buffer; empty in an entry of a file.
    pub fn buffer(&self) -> Vec<u8> {
        if self.is_buffer() {
            base16::decode(self.rest).unwrap_or_default()
        } else {
            Vec::new()
        }
    }

    /// The signature of the file that was measured along, as it stands in `security.ima`.
    pub fn signature(&self) -> Option<Vec<u8>> {
        let hex = match self.template {
            Template::ImaSig | Template::ImaSigV2 => self.rest,
            Template::ImaModsig => self.rest.split(' ').next().unwrap_or_default(),
            Template::Ima
            | Template::ImaNg
            | Template::ImaNgV2
            | Template::ImaBuf
            | Template::EvmSig => "",
        };
        base16::decode(hex).filter(|bytes| !bytes.is_empty())
    }

    /// The key, if the entry measured one being added to a keyring.
    pub fn key(&self) -> Option<MeasuredKey> {
        self.is_buffer()
            .then(|| MeasuredKey::parse(&self.buffer()))
            .flatten()
    }

    /// Does the digest belong to the buffer? `None` for a hash algorithm that is not known.
    pub fn buffer_matches_digest(&self) -> Option<bool> {
        let algorithm = HashAlgorithm::from_name(self.algorithm)?;
        Some(algorithm.digest(&[&self.buffer()]) == self.digest)
    }

    /// Writes the template data, the bytes that the template hash and PCR 10 are made of, into
    /// `out`. Fields are preceded by their length as u32, little-endian, except in `ima`. With
    /// `raw`, characters of the name that stand for bytes that are not UTF-8 become these.
    pub(super) fn template_data(&self, out: &mut Vec<u8>, raw: bool) -> Result<(), EntryError> {
        out.clear();
        let fail = |reason| EntryError {
            entry: self.index,
            reason,
        };
        let write_name = |out: &mut Vec<u8>| {
            if raw {
                raw::decode_into(out, self.name);
            } else {
                out.extend_from_slice(self.name.as_bytes());
            }
        };
        let digest = self.digest.as_bytes();
        if self.template == Template::Ima {
            out.extend_from_slice(digest);
            write_name(out);
            out.resize(digest.len() + 256, 0);
            return Ok(());
        }
        write_digest(out, self.prefix, digest);
        let name = out.len();
        out.extend_from_slice(&[0; 4]);
        write_name(out);
        out.push(0);
        set_length(out, name);
        let fields = self.template.fields();
        for (field, text) in fields.iter().zip(self.rest.split(' ')) {
            let start = out.len();
            if text.is_empty() {
                out.extend_from_slice(&[0; 4]);
                continue;
            }
            match field {
                Field::Digest => {
                    let (prefix, hex) = text.rsplit_once(':').ok_or_else(|| {
                        fail("digest of the appended signature without algorithm")
                    })?;
                    let digest = decode(hex).ok_or_else(|| fail("digest is not hex"))?;
                    write_digest(out, prefix, digest.as_bytes());
                }
                Field::Hex => {
                    out.resize(start + 4 + text.len() / 2, 0);
                    base16::decode_into(text, &mut out[start + 4..])
                        .ok_or_else(|| fail("a field after the name is not hex"))?;
                    set_length(out, start);
                }
                Field::Text => {
                    out.extend_from_slice(&[0; 4]);
                    out.extend_from_slice(text.as_bytes());
                    out.push(0);
                    set_length(out, start);
                }
                Field::Number(size) => {
                    let number: u32 = text
                        .parse()
                        .map_err(|_| fail("owner or mode is not a number"))?;
                    let bytes = number.to_le_bytes();
                    let (low, high) = bytes
                        .split_at_checked(*size)
                        .ok_or_else(|| fail("owner or mode is not a number"))?;
                    if high.iter().any(|byte| *byte != 0) {
                        return Err(fail("owner or mode is too large a number"));
                    }
                    out.extend_from_slice(&[0; 4]);
                    out.extend_from_slice(low);
                    set_length(out, start);
                }
            }
        }
        Ok(())
    }
}

/// A digest field: its length, `prefix`, a colon, NUL, the digest.
fn write_digest(out: &mut Vec<u8>, prefix: &str, digest: &[u8]) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(prefix.as_bytes());
    out.extend_from_slice(b":\0");
    out.extend_from_slice(digest);
    set_length(out, start);
}

/// Puts the length of what follows it into the four bytes at `start`. A line is at most 1 MiB.
fn set_length(out: &mut [u8], start: usize) {
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    if let Some(slot) = out.get_mut(start..start + 4) {
        slot.copy_from_slice(&length.to_le_bytes());
    }
}

/// A digest of 1 to 64 bytes.
fn decode(hex: &str) -> Option<Digest> {
    Digest::from_hex(hex).filter(|_| !hex.is_empty())
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
            .template_data(&mut data, false)
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
        assert_eq!(
            (entry.name, entry.signature()),
            ("/usr/bin/true", Some(vec![3, 2]))
        );
        let unsigned = LINE
            .replace("ima-ng", "ima-sig")
            .replace("/usr", "/usr local")
            + " ";
        let entry = Entry::parse(&unsigned, 0).unwrap();
        assert_eq!(
            (entry.name, entry.signature()),
            ("/usr local/bin/true", None)
        );
    }

    #[test]
    fn what_is_no_entry_says_why() {
        for (from, to, reason) in [
            ("ima-ng", "ima-ng3", "unknown template"),
            (
                "ima-ng",
                "ima-ngv2",
                "digest is neither of type ima nor verity",
            ),
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
