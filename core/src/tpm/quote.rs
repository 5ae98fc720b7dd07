use aws_lc_rs::constant_time::verify_slices_are_equal;
use aws_lc_rs::signature::{ParsedPublicKey, RsaPublicKeyComponents};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::signature::{ecdsa_verification, rsa_verification};
use super::{
    Attest, Attested, ClockInfo, HashAlgorithm, Name, PcrBlobError, PcrMask, PcrValues, Public,
    PublicParms, Signature, SignatureScheme, StructureError,
};

/// Longest quote string that is looked at, in bytes. The largest possible one (P-521 or RSA-8192,
/// 24 PCRs, each in a list of its own) has some 19 KiB.
const MAX_QUOTE_STRING: usize = 32 * 1024;

/// A quote as it came over the wire: parsed, not yet checked. Its values cannot be read.
#[derive(Clone, Debug)]
pub struct Quote {
    /// The signed bytes.
    message: Vec<u8>,
    attest: Attest,
    signature: Signature,
    pcrs: PcrValues,
}

impl Quote {
    /// Parses Keylime's quote string: `r`, then base64 of TPMS_ATTEST, TPMT_SIGNATURE and PCR
    /// blob ([`PcrValues::to_blob`]) with `:` between.
    pub fn parse(text: &str) -> Result<Self, QuoteError> {
        if text.len() > MAX_QUOTE_STRING {
            return Err(QuoteError::TooLong { length: text.len() });
        }
        let parts = text.strip_prefix('r').ok_or(QuoteError::Prefix)?;
        let mut parts = parts.split(':');
        let (Some(attest), Some(signature), Some(pcrs), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(QuoteError::Parts);
        };
        let decode = |text, part| {
            STANDARD
                .decode(text)
                .map_err(|_| QuoteError::Base64 { part })
        };
        let pcrs = PcrValues::from_blob(&decode(pcrs, "PCR blob")?)?;
        let signature = decode(signature, "TPMT_SIGNATURE")?;
        Self::from_parts(&decode(attest, "TPMS_ATTEST")?, &signature, pcrs)
    }

    /// From TPMS_ATTEST, TPMT_SIGNATURE and the PCR values.
    pub fn from_parts(
        attest: &[u8],
        signature: &[u8],
        pcrs: PcrValues,
    ) -> Result<Self, QuoteError> {
        Ok(Self {
            message: attest.to_vec(),
            attest: Attest::parse(attest)?,
            signature: Signature::parse(signature)?,
            pcrs,
        })
    }

    /// Writes the quote string.
    pub fn encode(attest: &[u8], signature: &[u8], pcrs: &PcrValues) -> String {
        let mut text = String::from("r");
        STANDARD.encode_string(attest, &mut text);
        text.push(':');
        STANDARD.encode_string(signature, &mut text);
        text.push(':');
        STANDARD.encode_string(pcrs.to_blob(), &mut text);
        text
    }

    /// The PCRs that it says it covers; nothing of it was checked.
    pub(crate) fn claimed_mask(&self) -> PcrMask {
        self.pcrs.mask()
    }

    /// The only way to a [`VerifiedQuote`]: AK signature, magic, type, nonce, selection, PCR
    /// digest. A SHA-1 signature is refused whatever the AK's scheme says.
    ///
    /// The signature must be of the AK's own scheme and hash, and that hash is the bank: a
    /// restricted key signs with no other.
    pub fn verify(
        &self,
        key: &AttestationKey,
        expected: &Expected<'_>,
    ) -> Result<VerifiedQuote, QuoteError> {
        let Attested::Quote {
            selection,
            pcr_digest,
        } = &self.attest.attested
        else {
            return Err(QuoteError::NotAQuote);
        };
        if self.signature.scheme != key.scheme {
            let got = self.signature.scheme;
            return Err(QuoteError::Scheme {
                expected: key.scheme,
                got,
            });
        }
        if self.signature.hash == HashAlgorithm::Sha1 {
            return Err(QuoteError::Sha1Signature);
        }
        if self.signature.hash != expected.hash {
            let got = self.signature.hash;
            return Err(QuoteError::SignatureHash {
                expected: expected.hash,
                got,
            });
        }
        if self.signature.hash != key.hash {
            let got = self.signature.hash;
            return Err(QuoteError::KeyHash {
                expected: key.hash,
                got,
            });
        }
        key.parsed
            .verify_sig(&self.message, &self.signature.bytes)
            .map_err(|_| QuoteError::Signature)?;
        verify_slices_are_equal(&self.attest.extra_data, expected.nonce)
            .map_err(|_| QuoteError::Nonce)?;
        let &[(bank, mask)] = selection.as_slice() else {
            return Err(QuoteError::Banks {
                count: selection.len(),
            });
        };
        if bank != expected.hash {
            return Err(QuoteError::Bank {
                expected: expected.hash,
                got: bank,
            });
        }
        let missing = expected.mask.difference(mask);
        if !missing.is_empty() {
            return Err(QuoteError::MissingPcrs(missing));
        }
        let extra = mask.difference(expected.mask);
        if !extra.is_empty() {
            return Err(QuoteError::ExtraPcrs(extra));
        }
        if self.pcrs.bank() != bank {
            return Err(QuoteError::ValuesBank {
                expected: bank,
                got: self.pcrs.bank(),
            });
        }
        if self.pcrs.mask() != mask {
            return Err(QuoteError::ValuesMask {
                expected: mask,
                got: self.pcrs.mask(),
            });
        }
        if self.pcrs.digest() != *pcr_digest {
            return Err(QuoteError::PcrDigest);
        }
        Ok(VerifiedQuote {
            pcrs: self.pcrs.clone(),
            clock: self.attest.clock,
            firmware_version: self.attest.firmware_version,
        })
    }
}

/// What the verifier asked for.
#[derive(Clone, Copy, Debug)]
pub struct Expected<'a> {
    /// Qualifying data, the ASCII bytes of the nonce.
    pub nonce: &'a [u8],
    /// The bank, and the hash the signature must use.
    pub hash: HashAlgorithm,
    /// PCRs that must be in the quote, exactly; no more, no less.
    pub mask: PcrMask,
}

/// The public key of an AK or IAK, parsed once and kept per node.
#[derive(Debug)]
pub struct AttestationKey {
    name: Name,
    algorithm: String,
    scheme: SignatureScheme,
    hash: HashAlgorithm,
    parsed: ParsedPublicKey,
}

impl AttestationKey {
    /// From the key's public area. Object attributes are checked by [`crate::identity::check_ak`],
    /// not here.
    pub fn new(public: &Public) -> Result<Self, KeyError> {
        let (scheme, hash) = public.parms().scheme().ok_or(KeyError::NoScheme)?;
        let parsed = match public.parms() {
            PublicParms::Rsa {
                key_bits,
                exponent,
                modulus,
                ..
            } => {
                if *key_bits < 2048 {
                    return Err(KeyError::RsaSize { bits: *key_bits });
                }
                if hash == HashAlgorithm::Sha1 {
                    return Err(KeyError::Sha1);
                }
                let algorithm = rsa_verification(scheme, hash).ok_or(KeyError::NoScheme)?;
                let exponent = exponent.to_be_bytes();
                let zeros = exponent.iter().take_while(|&&byte| byte == 0).count();
                RsaPublicKeyComponents {
                    n: modulus.as_slice(),
                    e: &exponent[zeros..],
                }
                .to_parsed_public_key(algorithm)
            }
            PublicParms::Ecc { curve, x, y, .. } => {
                let algorithm = ecdsa_verification(*curve, hash).ok_or(KeyError::Sha1)?;
                let point = [&[0x04], x.as_slice(), y.as_slice()].concat();
                ParsedPublicKey::new(algorithm, point)
            }
        };
        let parsed = parsed.map_err(|_| KeyError::NotAKey)?;
        Ok(Self {
            name: public.name(),
            algorithm: public.enc_alg(),
            scheme,
            hash,
            parsed,
        })
    }

    /// The AK's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its algorithm and size under Keylime's name: `rsa2048`, `ecc256`.
    pub fn algorithm(&self) -> &str {
        &self.algorithm
    }

    /// The scheme that its quotes must use.
    pub fn scheme(&self) -> SignatureScheme {
        self.scheme
    }

    /// The hash that its quotes must use.
    pub fn hash(&self) -> HashAlgorithm {
        self.hash
    }

    /// Did this key make that signature, with its own scheme and hash? A restricted key makes no
    /// other.
    pub(super) fn signed(&self, message: &[u8], signature: &Signature) -> bool {
        (signature.scheme, signature.hash) == (self.scheme, self.hash)
            && self.parsed.verify_sig(message, &signature.bytes).is_ok()
    }
}

/// A quote whose AK signature, nonce, selection and PCR digest were checked. Made by
/// [`Quote::verify`] alone.
#[derive(Clone, Debug)]
pub struct VerifiedQuote {
    pcrs: PcrValues,
    clock: ClockInfo,
    firmware_version: u64,
}

impl VerifiedQuote {
    /// The quoted values.
    pub fn pcrs(&self) -> &PcrValues {
        &self.pcrs
    }

    /// TPM clock and counters.
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// TPM firmware version.
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }
}

/// Why a quote is not believed.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum QuoteError {
    /// The quote string is longer than any quote can be.
    #[error("quote string of {length} bytes is longer than any quote")]
    TooLong {
        /// Its length in bytes.
        length: usize,
    },
    /// The quote string does not start with `r`.
    #[error("quote string does not start with the letter r")]
    Prefix,
    /// The quote string does not have three parts.
    #[error("quote string does not have exactly three parts")]
    Parts,
    /// A part of the quote string is not base64.
    #[error("{part} of the quote string is not base64")]
    Base64 {
        /// Which part.
        part: &'static str,
    },
    /// A structure does not parse.
    #[error(transparent)]
    Structure(#[from] StructureError),
    /// The PCR blob does not parse.
    #[error(transparent)]
    PcrBlob(#[from] PcrBlobError),
    /// The TPM attested something, but not PCRs.
    #[error("TPMS_ATTEST is not a quote")]
    NotAQuote,
    /// Signed with another scheme than the AK's.
    #[error("signature scheme is {got}, the AK signs with {expected}")]
    Scheme {
        /// The AK's scheme.
        expected: SignatureScheme,
        /// The signature's.
        got: SignatureScheme,
    },
    /// SHA-1 signatures can be forged.
    #[error("signature uses SHA-1, which proves nothing")]
    Sha1Signature,
    /// Signed with another hash than was asked for.
    #[error("signature hash is {got}, {expected} was asked for")]
    SignatureHash {
        /// What was asked for.
        expected: HashAlgorithm,
        /// The signature's.
        got: HashAlgorithm,
    },
    /// Signed with another hash than the AK's.
    #[error("signature hash is {got}, the AK signs with {expected}")]
    KeyHash {
        /// The AK's.
        expected: HashAlgorithm,
        /// The signature's.
        got: HashAlgorithm,
    },
    /// The AK did not sign this.
    #[error("AK signature over TPMS_ATTEST is wrong")]
    Signature,
    /// Not an answer to this challenge.
    #[error("extraData is not the nonce that was sent")]
    Nonce,
    /// Not exactly one bank is selected.
    #[error("quote selects PCRs of {count} banks, not of one")]
    Banks {
        /// How many.
        count: usize,
    },
    /// Another bank than was asked for.
    #[error("quote is over bank {got}, {expected} was asked for")]
    Bank {
        /// What was asked for.
        expected: HashAlgorithm,
        /// The quote's.
        got: HashAlgorithm,
    },
    /// PCRs that were asked for are not in the quote.
    #[error("quote lacks PCR {}", .0.list())]
    MissingPcrs(PcrMask),
    /// PCRs that were not asked for are in the quote.
    #[error("quote has PCR {} that nobody asked for", .0.list())]
    ExtraPcrs(PcrMask),
    /// The values that came with the quote are of another bank.
    #[error("PCR values are of bank {got}, the quote is over {expected}")]
    ValuesBank {
        /// The quote's.
        expected: HashAlgorithm,
        /// The values'.
        got: HashAlgorithm,
    },
    /// The values that came with the quote are of other PCRs.
    #[error("values came for PCR {}, the quote is over PCR {}", .got.list(), .expected.list())]
    ValuesMask {
        /// The quote's.
        expected: PcrMask,
        /// The values'.
        got: PcrMask,
    },
    /// The values that came with the quote are not those the TPM had.
    #[error("PCR values do not hash to the quoted pcrDigest")]
    PcrDigest,
}

/// A key whose attestations cannot be checked.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KeyError {
    /// Not a signing key of a known scheme.
    #[error("key has no signing scheme (TPM_ALG_NULL)")]
    NoScheme,
    /// SHA-1 signatures can be forged.
    #[error("key signs with SHA-1; make one that signs with SHA-256 or better")]
    Sha1,
    /// RSA below 2048 bits.
    #[error("key is RSA with {bits} bits; 2048 are the least")]
    RsaSize {
        /// Modulus size in bits.
        bits: u16,
    },
    /// The numbers are no public key, e.g. a point that is not on its curve.
    #[error("key's numbers are not a public key")]
    NotAKey,
}

#[cfg(test)]
mod tests;
