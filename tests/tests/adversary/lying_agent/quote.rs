use std::sync::{Arc, Mutex};

use serde_json::json;
use troth_core::tpm::{Digest, HashAlgorithm, PcrMask, PcrValues};

use super::{ID, failed, fails};
use crate::Stage;
use crate::forge::{Ak, Evidence, Liar, Reply, SHA256};

/// A quote over a nonce that the agent chose.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Nonce`
#[test]
fn a_quote_for_another_challenge() {
    fails("nonce", |evidence| evidence.nonce = vec![b'0'; 20]);
}

/// A quote over the beginning of the nonce.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Nonce`
#[test]
fn a_quote_over_a_part_of_the_nonce() {
    fails("nonce", |evidence| evidence.nonce.truncate(19));
}

/// The last good answer, byte for byte, again.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Nonce`
#[test]
fn a_replayed_answer() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    let kept: Arc<Mutex<Option<Box<Evidence>>>> = Arc::default();
    liar.lie(move |_, evidence| {
        let mut kept = kept.lock().unwrap();
        Reply::Evidence(kept.get_or_insert(evidence).clone())
    });
    failed(&stage, "nonce");
}

/// Another TPM's AK signs what this one should.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Signature`
#[test]
fn a_quote_signed_by_the_ak_of_another_tpm() {
    let foreign = Arc::new(Ak::generate());
    fails("AK signature", move |evidence| {
        evidence.signer = Arc::clone(&foreign);
    });
}

/// The attestation is changed after it was signed.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Signature`
#[test]
fn a_quote_whose_signature_is_of_other_bytes() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.lie(|_, evidence| {
        let mut other = evidence.clone();
        other.clock.milliseconds += 1;
        let (signed, changed) = (evidence.quote(), other.quote());
        let signature = signed.split(':').nth(1).unwrap();
        let mut parts: Vec<_> = changed.split(':').collect();
        parts[1] = signature;
        let mut body = evidence.body();
        body["results"]["quote"] = json!(parts.join(":"));
        Reply::Body(200, body.to_string())
    });
    failed(&stage, "AK signature");
}

/// TPM_ALG_NULL in place of a signature.
///
/// Check: `core/src/tpm/signature.rs`: `sigAlg is not RSASSA, RSAPSS or ECDSA`
#[test]
fn an_unsigned_quote() {
    fails("sigAlg", |evidence| {
        evidence.scheme[..2].copy_from_slice(&[0, 0x10])
    });
}

/// The signature is said to be RSASSA, the AK is ECDSA.
///
/// Check: `core/src/tpm/signature.rs`: `SignatureScheme::RsaSsa | SignatureScheme::RsaPss`
#[test]
fn a_signature_of_another_scheme() {
    fails("TPMT_SIGNATURE", |evidence| {
        evidence.scheme[..2].copy_from_slice(&[0, 0x14]);
    });
}

/// The signature is said to be over SHA-1.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Sha1Signature`
#[test]
fn a_signature_over_sha1() {
    fails("SHA-1", |evidence| {
        evidence.scheme[2..].copy_from_slice(&[0, 4])
    });
}

/// The signature is said to be over SHA-384.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::SignatureHash`
#[test]
fn a_signature_over_another_hash() {
    fails("sha256 was asked for", |evidence| {
        evidence.scheme[2..].copy_from_slice(&[0, 0x0c]);
    });
}

/// The AK certifies a key, and the host calls that a quote.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::NotAQuote`
#[test]
fn an_attestation_that_is_no_quote() {
    fails("not a quote", |evidence| evidence.kind = 0x8017);
}

/// A structure that no TPM made: a restricted key signs none that begins otherwise.
///
/// Check: `core/src/tpm/attest.rs`: `magic is not TPM_GENERATED_VALUE`
#[test]
fn a_quote_that_no_tpm_generated() {
    fails("magic", |evidence| evidence.magic = 0xff54_4348);
}

/// PCR 0 is left out, where the bad firmware is.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::MissingPcrs`
#[test]
fn a_selection_smaller_than_asked() {
    fails("lacks PCR 0", |evidence| {
        let mut pcrs = PcrValues::new(SHA256);
        for pcr in [10, 16] {
            pcrs.set(pcr, *evidence.pcrs.get(pcr).unwrap());
        }
        evidence.selection[0].1 = pcrs.mask();
        evidence.pcrs = pcrs;
    });
}

/// PCR 23 comes along, which anybody may reset and extend.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::ExtraPcrs`
#[test]
fn a_selection_larger_than_asked() {
    fails("nobody asked for", |evidence| {
        evidence.pcrs.set(23, Digest::zero(SHA256));
        evidence.selection[0].1 = evidence.pcrs.mask();
    });
}

/// The right PCRs of SHA-256, and those of a bank that nobody extends.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Banks`
#[test]
fn a_selection_of_two_banks() {
    fails("banks", |evidence| {
        let mask = evidence.selection[0].1;
        evidence.selection.push((HashAlgorithm::Sha1.id(), mask));
    });
}

/// The TPM quotes a bank that the firmware does not extend; the answer calls it SHA-256.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Bank`
#[test]
fn a_selection_of_another_bank() {
    fails("bank sha384", |evidence| {
        evidence.selection[0].0 = HashAlgorithm::Sha384.id();
    });
}

/// The PCR blob has the values of a good host, the quote those of this one.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::PcrDigest`
#[test]
fn a_pcr_blob_that_disagrees_with_the_quote() {
    fails("pcrDigest", |evidence| {
        evidence.shown = Some(evidence.pcrs.clone());
        evidence.pcrs.set(0, Digest::ones(SHA256));
    });
}

/// The PCR blob has fewer values than the quote covers.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::ValuesMask`
#[test]
fn a_pcr_blob_of_other_pcrs() {
    fails("values came for PCR", |evidence| {
        let mut shown = PcrValues::new(SHA256);
        for pcr in [10, 16] {
            shown.set(pcr, *evidence.pcrs.get(pcr).unwrap());
        }
        evidence.shown = Some(shown);
    });
}

/// The PCR blob has values of another bank.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::ValuesBank`
#[test]
fn a_pcr_blob_of_another_bank() {
    fails("PCR values are of bank sha1", |evidence| {
        let mut shown = PcrValues::new(HashAlgorithm::Sha1);
        for pcr in evidence.pcrs.mask().iter() {
            shown.set(pcr, Digest::zero(HashAlgorithm::Sha1));
        }
        evidence.shown = Some(shown);
    });
}

/// Honest evidence of a host whose firmware is not the policy's.
///
/// Check: `core/src/appraise/pcrs.rs`: `pcr_validation.invalid_pcr_`
#[test]
fn a_pcr_value_that_the_policy_does_not_allow() {
    let node = fails("PCR 0 has a value", |evidence| {
        evidence.pcrs.set(0, Digest::ones(SHA256));
    });
    assert_eq!(node["troth"]["findings"][0]["place"]["pcr"], 0);
}

/// PCR 16 binds another key than the one in the answer: secrets would go to a third party.
///
/// Check: `core/src/appraise/pcrs.rs`: `got == Some(&expected)`
#[test]
fn a_transport_key_that_the_tpm_does_not_bind() {
    fails("PCR 16", |evidence| {
        evidence.results["pubkey"] =
            json!("-----BEGIN PUBLIC KEY-----\nBBBB\n-----END PUBLIC KEY-----\n");
    });
}

/// No key at all, from the first answer on.
///
/// Check: `core/src/appraise/mod.rs`: `pcrs::no_pubkey()`
#[test]
fn no_transport_key() {
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    liar.falsify(|evidence| {
        evidence.results.as_object_mut().unwrap().remove("pubkey");
    });
    stage.enrol(ID, &liar);
    failed(&stage, "no public key");
}

/// An old quote has an older clock, even if its nonce could be guessed.
///
/// Check: `core/src/appraise/quote.rs`: `now.clock <= last.clock`
#[test]
fn a_clock_that_runs_backwards() {
    fails("did not advance", |evidence| {
        evidence.clock.milliseconds = 1
    });
}

/// Two quotes of the same moment.
///
/// Check: `core/src/appraise/quote.rs`: `now.clock <= last.clock`
#[test]
fn a_clock_that_stands_still() {
    fails("did not advance", |evidence| {
        evidence.clock.milliseconds = 2_000_000;
    });
}

/// A snapshot of a virtual TPM was restored: its counter of boots went back.
///
/// Check: `core/src/appraise/quote.rs`: `now.reset_count < last.reset_count`
#[test]
fn a_reset_counter_that_went_back() {
    fails("resetCount decreased", |evidence| {
        evidence.clock.resets -= 1
    });
}

/// The same for the counter of suspends.
///
/// Check: `core/src/appraise/quote.rs`: `now.restart_count < last.restart_count`
#[test]
fn a_restart_counter_that_went_back() {
    fails("restartCount decreased", |evidence| {
        evidence.clock.restarts -= 1;
    });
}

/// The TPM itself says that its clock may have been higher.
///
/// Check: `core/src/appraise/quote.rs`: `!now.safe`
#[test]
fn a_clock_that_is_not_safe() {
    fails("clock", |evidence| evidence.clock.safe = false);
}

/// The answer names a bank that the enrolment does not accept.
///
/// Check: `core/src/appraise/accept.rs`: `listed(&self.hash`
#[test]
fn a_hash_that_is_not_accepted() {
    fails("hash algorithm", |evidence| {
        evidence.results["hash_alg"] = json!("sha1");
    });
}

/// The answer names an AK algorithm that the enrolment does not accept.
///
/// Check: `core/src/appraise/accept.rs`: `listed(&self.encryption`
#[test]
fn an_ak_algorithm_that_is_not_accepted() {
    fails("AK algorithm", |evidence| {
        evidence.results["enc_alg"] = json!("rsa1024");
    });
}

/// The answer says that the AK is RSA, which is accepted; it is ECC, which is not.
///
/// Check: `core/src/appraise/accept.rs`: `ak.algorithm()`
#[test]
fn an_ak_that_is_not_what_the_answer_calls_it() {
    let stage = Stage::new();
    let liar = Liar::start(&stage.fleet.ca_dir());
    liar.falsify(|evidence| {
        evidence.results["enc_alg"] = json!("rsa2048");
    });
    let mut enrolment = liar.enrolment();
    enrolment["accept_tpm_encryption_algs"] = json!(["rsa"]);
    assert_eq!(stage.operator.enrol(ID, &enrolment).status, 200);
    failed(&stage, "ecc256");
}

/// The answer names a scheme that the enrolment does not accept.
///
/// Check: `core/src/appraise/accept.rs`: `listed(&self.signing`
#[test]
fn a_scheme_that_is_not_accepted() {
    fails("signing scheme", |evidence| {
        evidence.results["sign_alg"] = json!("ecschnorr");
    });
}

/// Success, and no quote.
///
/// Check: `core/src/appraise/quote.rs`: `evidence.quote.is_empty()`
#[test]
fn an_answer_without_a_quote() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.lie(|_, evidence| {
        let mut body = evidence.body();
        body["results"]["quote"] = json!("");
        Reply::Body(200, body.to_string())
    });
    failed(&stage, "no quote");
}

/// A fourth part behind the PCR blob.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::Parts`
#[test]
fn a_quote_string_of_four_parts() {
    let stage = Stage::new();
    let liar = stage.trusted(ID);
    liar.lie(|_, evidence| {
        let mut body = evidence.body();
        body["results"]["quote"] = json!(evidence.quote() + ":AAAA");
        Reply::Body(200, body.to_string())
    });
    failed(&stage, "three parts");
}

/// Selections that no TPM has are no PCRs either.
///
/// Check: `core/src/tpm/quote.rs`: `QuoteError::MissingPcrs`
#[test]
fn an_empty_selection() {
    fails("lacks PCR", |evidence| {
        evidence.pcrs = PcrValues::new(SHA256);
        evidence.selection[0].1 = PcrMask::default();
    });
}
