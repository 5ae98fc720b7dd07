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
