use troth_core::tpm::{Attest, Attested, Digest, HashAlgorithm, PcrMask, PcrValues, Quote};

use super::{Tpm, TpmError};

/// The PCR that binds the transport key: resettable by anyone, so it means nothing alone; in a
/// quote it means that the AK's host vouched for this key.
pub const BINDING_PCR: u8 = 16;

/// Tries before a host whose PCRs keep moving is called busy.
const ATTEMPTS: u32 = 5;

/// What to quote.
#[derive(Clone, Debug)]
pub struct QuoteRequest {
    /// Qualifying data: the verifier's nonce, as it came.
    pub nonce: Vec<u8>,
    /// PCR bank and hash of the signature.
    pub bank: HashAlgorithm,
    /// PCRs asked for; PCR 16 is added.
    pub mask: PcrMask,
    /// H(transport key PEM) in the bank's hash, extended into PCR 16.
    pub binding: Digest,
}

/// A quote whose PCR values are those that were signed.
#[derive(Clone, Debug)]
pub struct BoundQuote {
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// The quoted values.
    pub pcrs: PcrValues,
}

impl BoundQuote {
    /// The quote string of Keylime's API: `r<attest>:<signature>:<PCR values>`.
    pub fn encode(&self) -> String {
        Quote::encode(&self.attest, &self.signature, &self.pcrs)
    }
}

/// Binds the transport key in PCR 16 and quotes; one uninterrupted use of the TPM.
///
/// IMA extends PCR 10 whenever it likes, and any process may reset PCR 16: reading and quoting are
/// repeated until both agree, and the binding is renewed when somebody else moved PCR 16.
pub fn bound_quote(tpm: &mut dyn Tpm, request: &QuoteRequest) -> Result<BoundQuote, TpmError> {
    let bank = request.bank;
    let mask = request.mask.with(BINDING_PCR);
    let bound = Digest::zero(bank).extend(bank, request.binding.as_bytes());
    bind(tpm, request)?;
    for attempt in 0..ATTEMPTS {
        let pcrs = tpm.pcr_read(bank, mask)?;
        if pcrs.get(BINDING_PCR) != Some(&bound) {
            tracing::debug!(
                attempt,
                "PCR 16 was changed by another process; binding again"
            );
            bind(tpm, request)?;
            continue;
        }
        let raw = tpm.quote(&request.nonce, bank, mask)?;
        let attested = Attest::parse(&raw.attest)?.attested;
        if matches!(attested, Attested::Quote { pcr_digest, .. } if pcr_digest == pcrs.digest()) {
            return Ok(BoundQuote {
                attest: raw.attest,
                signature: raw.signature,
                pcrs,
            });
        }
        tracing::debug!(
            attempt,
            "a PCR changed between reading and quoting; quoting again"
        );
    }
    Err(TpmError::Busy { attempts: ATTEMPTS })
}

fn bind(tpm: &mut dyn Tpm, request: &QuoteRequest) -> Result<(), TpmError> {
    tpm.pcr_reset(BINDING_PCR)?;
    tpm.pcr_extend(BINDING_PCR, request.bank, &request.binding)
}

#[cfg(test)]
mod tests {
    use troth_core::tpm::{AttestationKey, Expected, Public};

    use super::*;
    use crate::tpm::{
        AkTemplate, KeyKind,
        sim::{Chip, Faults, SimTpm},
    };

    const BANK: HashAlgorithm = HashAlgorithm::Sha256;

    fn ready(chip: &Chip) -> (SimTpm, Public) {
        let mut tpm = chip.open().unwrap();
        let kind = KeyKind::EccP256;
        let scheme = kind.default_scheme();
        tpm.load_ek(kind).unwrap();
        let hash = BANK;
        let blobs = tpm.create_ak(&AkTemplate { kind, hash, scheme }).unwrap();
        tpm.load_ak(&blobs).unwrap();
        (tpm, Public::from_tpmt(&blobs.public).unwrap())
    }

    fn request() -> QuoteRequest {
        QuoteRequest {
            nonce: b"n0nce".to_vec(),
            bank: BANK,
            mask: PcrMask::from_bits(1 << 10).unwrap(),
            binding: BANK.digest(&[b"key"]),
        }
    }

    fn assert_verifies(quoted: &BoundQuote, ak: &Public) {
        let quote = Quote::parse(&quoted.encode()).unwrap();
        let expected = Expected {
            nonce: b"n0nce",
            hash: BANK,
            mask: PcrMask::from_bits(0x1_0400).unwrap(),
        };
        let verified = quote
            .verify(&AttestationKey::new(ak).unwrap(), &expected)
            .unwrap();
        let bound = Digest::zero(BANK).extend(BANK, BANK.digest(&[b"key"]).as_bytes());
        assert_eq!(verified.pcrs().get(BINDING_PCR), Some(&bound));
    }

    #[test]
    fn pcrs_that_move_a_few_times_are_waited_for() {
        let chip = Chip::manufacture().unwrap();
        let (mut tpm, ak) = ready(&chip);
        for pcr_moves in 0..ATTEMPTS {
            chip.set_faults(Faults {
                pcr_moves,
                ..Faults::default()
            });
            let quoted = bound_quote(&mut tpm, &request()).unwrap();
            assert_verifies(&quoted, &ak);
        }
    }

    #[test]
    fn pcrs_that_never_rest_are_a_typed_error() {
        let chip = Chip::manufacture().unwrap();
        let (mut tpm, _) = ready(&chip);
        chip.set_faults(Faults {
            pcr_moves: ATTEMPTS,
            ..Faults::default()
        });
        let error = bound_quote(&mut tpm, &request()).unwrap_err();
        assert_eq!(error, TpmError::Busy { attempts: ATTEMPTS });
    }

    #[test]
    fn a_binding_that_somebody_reset_is_made_again() {
        let chip = Chip::manufacture().unwrap();
        let (mut tpm, ak) = ready(&chip);
        chip.set_faults(Faults {
            pcr16_reset: 2,
            ..Faults::default()
        });
        assert_verifies(&bound_quote(&mut tpm, &request()).unwrap(), &ak);
    }
}
