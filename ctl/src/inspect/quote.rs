use std::{collections::BTreeMap, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::Value;
use troth_core::{
    tpm::{
        Attest, AttestationKey, Attested, BIND_PCR, Digest, Expected, HashAlgorithm, PcrMask,
        PcrValues, Public, Quote, Signature,
    },
    wire::QuoteResponse,
};

use crate::{
    cli::QuoteArgs,
    error::{Error, Exit},
    output::{Output, Tone, clean, span},
    policy::read_file,
};

/// A quote, in the shape of `inspect quote --json`.
#[derive(Debug, Serialize)]
struct View {
    /// Signature, nonce (if given) and PCR digest checked with --ak; null: no --ak.
    verified: Option<bool>,
    /// Why `verified` is false.
    failure: Option<String>,
    /// Was the nonce one of the things checked?
    nonce_checked: bool,
    /// extraData as text, if it is ASCII.
    nonce: Option<String>,
    /// extraData, hex.
    nonce_hex: String,
    /// Hex.
    qualified_signer: String,
    /// Milliseconds.
    clock_ms: u64,
    reset_count: u32,
    restart_count: u32,
    clock_safe: bool,
    /// Hex.
    firmware_version: String,
    selection: Vec<Selection>,
    /// Hex.
    pcr_digest: String,
    /// Is pcrDigest the hash over the values below?
    pcr_digest_matches: bool,
    signature_scheme: &'static str,
    signature_hash: &'static str,
    /// Bank of the values below.
    bank: &'static str,
    #[serde(skip)]
    values: PcrValues,
    /// PCR number to hex value.
    pcrs: BTreeMap<u8, String>,
    /// Is PCR 16 the hash of the answer's `pubkey`? null: there is none to compare.
    pubkey_bound: Option<bool>,
}

/// TPMS_PCR_SELECTION.
#[derive(Debug, Serialize)]
struct Selection {
    bank: &'static str,
    pcrs: Vec<u8>,
}

/// Runs `trothctl inspect quote`.
pub(crate) fn run(args: &QuoteArgs, out: &Output) -> Result<Exit, Error> {
    let (text, pubkey) = quote_of(&args.file, &read_file(&args.file)?)?;
    let view = View::new(args, &text, pubkey.as_deref())?;
    out.result(&view, || view.describe(out))?;
    let bad = view.verified == Some(false)
        || !view.pcr_digest_matches
        || view.pubkey_bound == Some(false);
    Ok(if bad { Exit::Untrusted } else { Exit::Success })
}

/// The PCR values of a quote, which the quote's digest is of; with `ak`, a quote that it signed.
pub(crate) fn quoted_values(args: &QuoteArgs) -> Result<PcrValues, Error> {
    let (text, pubkey) = quote_of(&args.file, &read_file(&args.file)?)?;
    let view = View::new(args, &text, pubkey.as_deref())?;
    let failure = match view.failure {
        Some(failure) => Some(failure),
        None if !view.pcr_digest_matches => {
            Some("its PCR digest is not that of its PCR values".to_owned())
        }
        None => None,
    };
    match failure {
        Some(reason) => Err(Error::QuoteInvalid {
            path: args.file.clone(),
            reason,
        }),
        None => Ok(view.values),
    }
}

/// The quote string of a file, and the key of the answer around it, if it is one.
fn quote_of(path: &Path, bytes: &[u8]) -> Result<(String, Option<String>), Error> {
    let malformed = |reason: String| Error::Malformed {
        path: path.to_owned(),
        reason,
    };
    let text = std::str::from_utf8(bytes)
        .map_err(|error| malformed(format!("neither a quote string nor JSON: {error}")))?
        .trim();
    if !text.starts_with('{') {
        return Ok((text.to_owned(), None));
    }
    let mut answer: Value =
        serde_json::from_str(text).map_err(|error| malformed(format!("JSON: {error}")))?;
    if let Some(results) = answer.get_mut("results") {
        answer = results.take();
    }
    let answer: QuoteResponse = serde_json::from_value(answer)
        .map_err(|error| malformed(format!("not an agent's answer to a quote request: {error}")))?;
    Ok((answer.quote, answer.pubkey))
}

impl View {
    fn new(args: &QuoteArgs, text: &str, pubkey: Option<&str>) -> Result<Self, Error> {
        let malformed = |reason: String| Error::Malformed {
            path: args.file.clone(),
            reason,
        };
        let structure = |source| Error::Structure {
            path: args.file.clone(),
            source,
        };
        // `Quote` gives its values away only after a check; here the claims are printed, so the
        // parts are read one by one.
        let parts: Vec<_> = text
            .strip_prefix('r')
            .map(|rest| rest.split(':').collect())
            .unwrap_or_default();
        let [attest, signature, pcrs] = parts[..] else {
            return Err(malformed(
                "a quote string is r<base64>:<base64>:<base64>".to_owned(),
            ));
        };
        let decode = |what: &str, part: &str| {
            BASE64_STANDARD
                .decode(part)
                .map_err(|error| malformed(format!("{what}: {error}")))
        };
        let attest = Attest::parse(&decode("TPMS_ATTEST", attest)?).map_err(structure)?;
        let signature =
            Signature::parse(&decode("TPMT_SIGNATURE", signature)?).map_err(structure)?;
        let pcrs = PcrValues::from_blob(&decode("PCR blob", pcrs)?)
            .map_err(|error| malformed(error.to_string()))?;
        let Attested::Quote {
            selection,
            pcr_digest,
        } = &attest.attested
        else {
            return Err(malformed(
                "TPMS_ATTEST is not a quote (TPM_ST_ATTEST_QUOTE)".to_owned(),
            ));
        };

        let failure = match &args.ak {
            None => None,
            Some(path) => {
                let mask = selection
                    .first()
                    .map_or_else(PcrMask::default, |(_, mask)| *mask);
                let given = args.nonce.as_ref().map(String::as_bytes);
                let hex = args.nonce_hex.as_ref().map(|nonce| &nonce.0[..]);
                let nonce = given.or(hex).unwrap_or(&attest.extra_data);
                let expected = Expected {
                    nonce,
                    hash: signature.hash,
                    mask,
                };
                let key = AttestationKey::new(&ak(path)?)?;
                Some(
                    Quote::parse(text)
                        .and_then(|quote| quote.verify(&key, &expected))
                        .err(),
                )
            }
        };
        Ok(Self {
            verified: failure.as_ref().map(Option::is_none),
            failure: failure.flatten().map(|error| error.to_string()),
            nonce_checked: args.nonce.is_some() || args.nonce_hex.is_some(),
            nonce: std::str::from_utf8(&attest.extra_data)
                .ok()
                .filter(|nonce| nonce.bytes().all(|byte| byte.is_ascii_graphic()))
                .map(str::to_owned),
            nonce_hex: hex::encode(&attest.extra_data),
            qualified_signer: hex::encode(&attest.qualified_signer),
            clock_ms: attest.clock.clock,
            reset_count: attest.clock.reset_count,
            restart_count: attest.clock.restart_count,
            clock_safe: attest.clock.safe,
            firmware_version: format!("{:016x}", attest.firmware_version),
            selection: selection
                .iter()
                .map(|(bank, mask)| Selection {
                    bank: bank.name(),
                    pcrs: mask.iter().collect(),
                })
                .collect(),
            pcr_digest: pcr_digest.to_string(),
            pcr_digest_matches: pcrs.digest() == *pcr_digest,
            signature_scheme: signature.scheme.name(),
            signature_hash: signature.hash.name(),
            bank: pcrs.bank().name(),
            values: pcrs.clone(),
            pcrs: pcrs
                .iter()
                .map(|(pcr, value)| (pcr, value.to_string()))
                .collect(),
            pubkey_bound: pubkey
                .map(|pem| pcrs.get(BIND_PCR) == Some(&bound_value(pcrs.bank(), pem.as_bytes()))),
        })
    }

    fn describe(&self, out: &Output) -> String {
        let verdict = match (self.verified, &self.failure) {
            (Some(true), _) if self.nonce_checked => {
                out.paint(Tone::Good, "valid: signature, nonce and PCR digest")
            }
            (Some(true), _) => {
                out.paint(Tone::Good, "valid: signature and PCR digest")
                    + " (no --nonce: it may be a replay)"
            }
            (Some(false), failure) => {
                let reason = failure.as_deref().unwrap_or("unknown reason");
                out.paint(Tone::Bad, &format!("NOT VALID: {}", clean(reason)))
            }
            (None, _) => {
                out.paint(Tone::Warn, "not checked")
                    + ": what follows is what the file claims (--ak FILE checks it)"
            }
        };
        let digest = if self.pcr_digest_matches {
            "matches the values below".to_owned()
        } else {
            out.paint(Tone::Bad, "DOES NOT match the values below")
        };
        let selection: Vec<_> = self
            .selection
            .iter()
            .map(|selection| {
                let pcrs: Vec<_> = selection.pcrs.iter().map(u8::to_string).collect();
                format!("{}: {}", selection.bank, pcrs.join(" "))
            })
            .collect();
        let mut fields = vec![
            ("Quote", verdict),
            (
                "Nonce",
                self.nonce
                    .clone()
                    .unwrap_or_else(|| format!("0x{}", self.nonce_hex)),
            ),
            (
                "Signature",
                format!("{} with {}", self.signature_scheme, self.signature_hash),
            ),
            (
                "Signer",
                format!("qualified name {}", self.qualified_signer),
            ),
            (
                "Clock",
                format!(
                    "{} since the TPM was made ({}), {} resets, {} restarts",
                    span(self.clock_ms),
                    if self.clock_safe { "safe" } else { "not safe" },
                    self.reset_count,
                    self.restart_count
                ),
            ),
            ("Firmware", self.firmware_version.clone()),
            ("Selection", selection.join(", ")),
            ("PCR digest", format!("{}\n{digest}", self.pcr_digest)),
        ];
        if let Some(bound) = self.pubkey_bound {
            fields.push((
                "Key binding",
                if bound {
                    "PCR 16 holds the hash of the answer's pubkey".to_owned()
                } else {
                    out.paint(
                        Tone::Bad,
                        "PCR 16 DOES NOT hold the hash of the answer's pubkey",
                    )
                },
            ));
        }
        let rows = self
            .pcrs
            .iter()
            .map(|(pcr, value)| vec![(Tone::Plain, pcr.to_string()), (Tone::Plain, value.clone())])
            .collect();
        format!(
            "{}\n{}",
            out.fields(&fields),
            out.table(&["PCR", self.bank], rows)
        )
    }
}

/// What PCR 16 must hold: H(0 || H(PEM)).
fn bound_value(bank: HashAlgorithm, pem: &[u8]) -> Digest {
    Digest::zero(bank).extend(bank, bank.digest(&[pem]).as_bytes())
}

/// TPM2B_PUBLIC, binary or base64.
fn ak(path: &Path) -> Result<Public, Error> {
    let bytes = read_file(path)?;
    let decoded = std::str::from_utf8(&bytes)
        .ok()
        .and_then(|text| BASE64_STANDARD.decode(text.trim()).ok());
    Public::from_tpm2b(decoded.as_deref().unwrap_or(&bytes)).map_err(|source| Error::Structure {
        path: path.to_owned(),
        source,
    })
}
