//! Entry points that take arbitrary bytes; they must not panic.
//!
//! One function per parser, listed in [`fuzz::TARGETS`]. `tests/fuzz` wraps each in a libFuzzer target of
//! the same name with seeds in `corpus/NAME`; `tests/src/fuzz_corpus.rs` replays the seeds on
//! stable Rust, cut short and with flipped bits.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::appraise::{AcceptedAlgorithms, Challenge, ImaRules, NodeState, Policies};
use crate::bundle::{Bundle, Outcome};
use crate::eventlog::{Event, EventLog, Measured, UserspaceLog};
use crate::identity::{
    AgentId, Expiry, Trust, TrustAnchors, certificate_matches_key, certificate_quirks, certify_ek,
    check_ak, check_ek, ek_certificate_chain, normalise_ek_certificate,
};
use crate::ima;
use crate::policy::{
    BootPolicy, BootRules, Envelope, PolicyDocument, PolicyFormat, PolicySigner, Refstate,
    RuntimePolicy, SigningKey, TpmPolicy,
};
use crate::tpm::{
    Attest, AttestationKey, CredentialBlob, Expected, HashAlgorithm, PcrValues, Public, Quote,
    Signature, parse_pcrread,
};
use crate::wire::QuoteResponse;

/// A function that takes arbitrary bytes, and its name.
pub type Target = (&'static str, fn(&[u8]));

/// All entry points by name.
pub const TARGETS: &[Target] = &[
    ("allowlist", allowlist),
    ("appraise", appraise),
    ("attest", attest),
    ("bundle", bundle),
    ("boot_log_by_policy", boot_log_by_policy),
    ("boot_policy", boot_policy),
    ("credential_blob", credential_blob),
    ("dm_event", dm_event),
    ("dsse", dsse),
    ("ek_certificate", ek_certificate),
    ("ek_chain", ek_chain),
    ("event_content", event_content),
    ("eventlog", eventlog),
    ("ima_binary", ima_binary),
    ("ima_keyring", ima_keyring),
    ("ima_list", ima_list),
    ("ima_signature", ima_signature),
    ("pcr_blob", pcr_blob),
    ("pcrread", pcrread),
    ("policy_document", policy_document),
    ("public", public),
    ("quote_string", quote_string),
    ("registration", registration),
    ("runtime_policy", runtime_policy),
    ("signature", signature),
    ("tpm_policy", tpm_policy),
    ("userspace_log", userspace_log),
];

/// A flat allowlist, and an exclude file after a line `---`: what converts also compiles.
pub fn allowlist(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (allowlist, excludes) = text.split_once("\n---\n").unwrap_or((&text, ""));
    if let Ok(json) = RuntimePolicy::json_from_allowlist(allowlist, excludes, 0) {
        assert!(RuntimePolicy::compile(json.as_bytes()).is_ok());
    }
}

/// An event of the device mapper: its name, a line feed, and what was measured.
pub fn dm_event(data: &[u8]) {
    let mut parts = data.splitn(2, |byte| *byte == b'\n');
    let (name, text) = (parts.next().unwrap_or_default(), parts.next());
    let (name, text) = (String::from_utf8_lossy(name), text.unwrap_or_default());
    if ima::DmEvent::parse(&name, text).is_ok() {
        assert!(ima::DmEvent::is_named(&name));
    }
}

/// A signed policy, or the key that signed it: one key alone has signed what it has signed.
pub fn dsse(data: &[u8]) {
    const STRANGER: &[u8] = b"-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEzf25ZUSND4goWDxGUKvHYyoGFkUp
njY/VyIrMqBXN+h8xTG9URNNCtfg91zVUS9OG6FTvzW6kS8Erln8y6TPaA==
-----END PUBLIC KEY-----
";
    let _ = SigningKey::parse(data);
    if let Ok(signer) = PolicySigner::parse(data) {
        let _ = signer.with_certificate(data);
    }
    let _ = PolicyFormat::of(&String::from_utf8_lossy(data));
    if let Ok(Some(envelope)) = Envelope::parse(data) {
        let again = Envelope::parse(envelope.to_json().as_bytes());
        assert!(again.is_ok_and(|again| again.is_some_and(|again| {
            again.payload() == envelope.payload()
                && again.signatures().len() == envelope.signatures().len()
        })));
        let anchors = TrustAnchors::default();
        let trust = Trust {
            anchors: &anchors,
            at: 1_800_000_000,
            expired: Expiry::Refuse,
        };
        for signature in envelope.signatures() {
            assert!(envelope.certified_signer(signature, &trust).is_err());
        }
    }
    if let (Ok(Some(envelope)), Ok(key)) = (Envelope::parse(data), SigningKey::parse(STRANGER)) {
        assert!(!envelope.is_signed_by(&key));
    }
}

/// An answer with all that judges it.
#[derive(serde::Deserialize)]
struct Case {
    ak: String,
    nonce_hex: String,
    evidence: QuoteResponse,
    state: NodeState,
    tpm_policy: String,
    runtime_policy: Option<serde_json::Value>,
    boot_policy: Option<String>,
}

/// An answer, from its quote to the verdict; and once more with the quote taken for good by its
/// bare signature, so that changes to the rest are judged too.
pub fn appraise(data: &[u8]) {
    let Ok(case) = serde_json::from_slice::<Case>(data) else {
        return;
    };
    let (Ok(ak), Ok(nonce)) = (STANDARD.decode(&case.ak), hex::decode(&case.nonce_hex)) else {
        return;
    };
    let ak = Public::from_tpm2b(&ak)
        .ok()
        .and_then(|ak| AttestationKey::new(&ak).ok());
    let runtime = case.runtime_policy.and_then(|policy| {
        let json = policy.to_string();
        RuntimePolicy::compile(json.as_bytes()).ok()
    });
    let boot = BootPolicy::parse(case.boot_policy.as_deref());
    let (Some(ak), Ok(tpm), Ok(boot)) = (ak, TpmPolicy::parse(&case.tpm_policy), boot) else {
        return;
    };
    let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let accept = AcceptedAlgorithms {
        hash: list(&["sha256"]),
        encryption: list(&["rsa", "ecc"]),
        signing: list(&["rsassa", "ecdsa"]),
    };
    let policies = Policies {
        tpm: &tpm,
        runtime: runtime.as_ref(),
        boot: &boot,
        accept: &accept,
        ima: ImaRules::default(),
    };
    let ima_entry = case.state.ima.next_entry;
    let text = String::from_utf8_lossy(&nonce);
    let challenge = Challenge {
        nonce: &text,
        mask: tpm.mask(),
        ima_entry,
    };
    let _ = crate::appraise::appraise(&ak, &challenge, &case.evidence, &policies, &case.state);
    let _ = crate::appraise::appraise_identity(&ak, &text, &case.evidence, &accept);
    let _ = crate::appraise::appraise_quote(&ak, &text, &case.evidence);
    let _ = crate::appraise::appraise_evidence(&ak, &text, &case.evidence, &policies);
    let expected = Expected {
        nonce: &nonce,
        hash: HashAlgorithm::Sha256,
        mask: tpm.mask(),
    };
    let quote = Quote::parse(&case.evidence.quote).and_then(|quote| quote.verify(&ak, &expected));
    if let Ok(quote) = quote {
        let _ = crate::appraise::judge(&quote, ima_entry, &case.evidence, &policies, &case.state);
    }
}

/// TPMS_ATTEST.
pub fn attest(data: &[u8]) {
    let _ = Attest::parse(data);
}

/// An evidence bundle: what is read is written back as it was, and can be judged.
pub fn bundle(data: &[u8]) {
    let Ok(bundle) = Bundle::parse(data) else {
        return;
    };
    let written = bundle.to_bytes();
    let again = written.as_deref().map(Bundle::parse);
    assert!(matches!(again, Ok(Ok(again)) if again == bundle));
    let (Ok(ak), Some(criteria)) = (bundle.attestation_key(), &bundle.head.criteria) else {
        return;
    };
    let compile = |text| RuntimePolicy::compile_text(text).ok();
    let runtime = bundle.runtime_policy.and_then(compile);
    let boot = bundle.boot_policy.map(String::from_utf8_lossy);
    if let (Ok(tpm), Ok(boot)) = (
        TpmPolicy::parse(&criteria.tpm_policy),
        BootPolicy::parse_for(boot.as_deref(), criteria.boot_engine),
    ) {
        let keys = criteria.keyring().ok();
        let policies = Policies {
            tpm: &tpm,
            runtime: runtime.as_ref(),
            boot: &boot,
            accept: &criteria.accept,
            ima: ImaRules {
                tomtou: criteria.tomtou,
                keys: keys.as_ref(),
            },
        };
        let appraisal = bundle.appraise(&ak, &bundle.head.nonce, &policies);
        let outcome = Outcome::new(&appraisal);
        assert!(outcome.canonical().is_ok());
    }
}

/// A boot policy, and after a line `---` a boot log that is judged by it. What a policy of ours
/// is made of, it accepts.
pub fn boot_log_by_policy(data: &[u8]) {
    let at = data.windows(5).position(|window| window == b"\n---\n");
    let (policy, log) = match at {
        Some(at) => (&data[..at], &data[at + 5..]),
        None => (&b"{}"[..], data),
    };
    let Ok(log) = EventLog::parse(log) else {
        return;
    };
    let bank = HashAlgorithm::Sha256;
    let text = String::from_utf8_lossy(policy);
    if let Ok(policy) = BootPolicy::parse(Some(&text)) {
        let _ = crate::appraise::boot_policy_unverified(&policy, &log, bank);
    }
    let _ = Refstate::json_from_log(&log, true);
    if let Ok(rules) = BootRules::from_log(&log, None, Some(bank), true) {
        let measured = |event: Event<'_>| event.digests.get(bank).is_some();
        let policy = BootPolicy::Rules(rules.into());
        // An event without a digest of the bank is measured into nothing, and allowed by nothing.
        if log.unverified_events().all(measured) {
            let wrong = crate::appraise::boot_policy_unverified(&policy, &log, bank);
            assert_eq!(wrong, 0, "the policy of a boot refuses that boot");
        }
    }
}

/// A boot policy as JSON or as TOML: what parses is written back to an equal meaning.
pub fn boot_policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let _ = BootPolicy::parse(Some(&text));
    let _ = Refstate::parse(&text);
    for rules in [BootRules::from_json(&text), BootRules::from_toml(&text)] {
        let Ok(rules) = rules else { continue };
        assert_eq!(BootRules::from_json(&rules.to_json()).as_ref(), Ok(&rules));
        assert_eq!(BootRules::from_toml(&rules.to_toml()).as_ref(), Ok(&rules));
    }
}

/// The registrar's challenge.
pub fn credential_blob(data: &[u8]) {
    if let Ok(blob) = CredentialBlob::parse(data) {
        assert_eq!(blob.to_bytes(), data);
    }
}

/// An EK certificate as it stands in NV or comes over the wire.
pub fn ek_certificate(data: &[u8]) {
    if let Ok(Some(der)) = normalise_ek_certificate(data) {
        let again = normalise_ek_certificate(&der);
        assert_eq!(again, Ok(Some(der.clone())), "not stable");
        let _ = some_key().map(|key| certificate_matches_key(&der, &key));
        let _ = certificate_quirks(&der);
    }
    let _ = ek_certificate_chain(data);
}

/// TPM2B_PUBLIC of an EK, then certificates one after the other: the EK's, those of CAs, and the
/// trust anchor.
pub fn ek_chain(data: &[u8]) {
    let Some((size, rest)) = data.split_first_chunk() else {
        return;
    };
    let size = usize::from(u16::from_be_bytes(*size));
    let Some((ek, mut rest)) = rest.split_at_checked(size) else {
        return;
    };
    let Ok(ek) = Public::from_tpmt(ek) else {
        return;
    };
    let mut certificates = Vec::new();
    while let Ok(Some(der)) = normalise_ek_certificate(rest) {
        rest = rest.get(der.len()..).unwrap_or_default();
        certificates.push(der);
    }
    let mut anchors = TrustAnchors::default();
    let (Some(anchor), Some((ek_certificate, cas))) =
        (certificates.pop(), certificates.split_first())
    else {
        return;
    };
    let _ = anchors.add(&anchor);
    for expired in [Expiry::Refuse, Expiry::Accept] {
        let trust = Trust {
            anchors: &anchors,
            at: 1_800_000_000,
            expired,
        };
        let _ = certify_ek(&ek, ek_certificate, cas, &trust).map_err(|error| error.to_string());
    }
}

/// One event's data: type and PCR (little-endian), then the data. Signature lists, device paths and
/// the other structures are in them.
pub fn event_content(data: &[u8]) {
    let Some((head, data)) = data.split_first_chunk::<8>() else {
        return;
    };
    let (kind, pcr) = head.split_at(4);
    let size = u32::try_from(data.len()).unwrap_or(0).to_le_bytes();
    // An event in the old format: PCR, type, SHA-1 digest, size, data.
    let event = [pcr, kind, &[0; 20], &size, data].concat();
    if let Ok(log) = EventLog::parse(&event) {
        log.unverified_events().for_each(|event| content(&event));
        assert_eq!(
            log.to_json()["events"].as_array().map(Vec::len),
            Some(log.len())
        );
    }
}

fn content(event: &Event<'_>) {
    let shown = event.content().to_string();
    assert!(!shown.chars().any(char::is_control), "{shown:?}");
    for (bank, digest) in event.digests.iter() {
        let Some(believed) = event.believed(bank) else {
            continue;
        };
        assert_eq!(believed, event.content());
        assert_eq!(event.measured(bank), Measured::Data);
        assert_eq!(digest.as_bytes().len(), bank.size());
    }
}

/// A boot log: its events, and its replay in every bank.
pub fn eventlog(data: &[u8]) {
    if let Ok(log) = EventLog::parse(data) {
        assert_eq!(log.unverified_events().count(), log.len());
        for event in log.unverified_events() {
            let _ = (event.kind.to_string(), event.digests.iter().count());
        }
        let _ = log.boot_aggregates();
    }
}

/// The content of an IMA list's file, of either form, as text.
pub fn ima_binary(data: &[u8]) {
    if let Ok(text) = ima::list_text(data) {
        ima_list(text.as_bytes());
    }
}

/// The JSON of a keyring, and a measured key.
pub fn ima_keyring(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = ima::Keyring::from_json(text).map(|keyring| keyring.get(1).map(ima::ImaKey::id));
    }
    let _ = ima::MeasuredKey::parse(data);
}

/// A signature as it stands in `security.ima`.
pub fn ima_signature(data: &[u8]) {
    let _ = ima::ImaSignature::parse(data).map(|signature| signature.hash_name());
}

/// An IMA list: replay, keys in it, and a policy made of it, which allows its files.
pub fn ima_list(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let log_hash = ima::log_hash(&text);
    let _ = ima::unverified_replay(&text, log_hash, HashAlgorithm::Sha256);
    for entry in ima::unverified_entries(&text, 0, log_hash).flatten() {
        let _ = (
            entry.key(),
            entry.buffer_matches_digest(),
            entry.signature(),
        );
    }
    if let Ok(json) = RuntimePolicy::json_from_ima_list(&text, 0) {
        assert!(RuntimePolicy::compile(json.as_bytes()).is_ok());
    }
}

/// A key to compare certificates with: the generator of P-256 as an EK.
fn some_key() -> Option<Public> {
    const TPMT: &str = "0023000b000300b20000000600800043001000030010\
        00206b17d1f2e12c4247f8bce6e563a440f277037d812deb33a0f4a13945d898c296\
        00204fe342e2fe1a7f9b8ee7eb4a7c0f9e162bce33576b315ececbb6406837bf51f5";
    Public::from_tpmt(&hex::decode(TPMT).ok()?).ok()
}

/// The PCR part of the quote string: what parses is written back to an equal meaning.
pub fn pcr_blob(data: &[u8]) {
    if let Ok(values) = PcrValues::from_blob(data) {
        let blob = values.to_blob();
        assert_eq!(PcrValues::from_blob(&blob).as_ref(), Ok(&values));
        let _ = values.digest();
    }
}

/// What `tpm2_pcrread` prints, and a policy of each bank.
pub fn pcrread(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for values in parse_pcrread(&text).unwrap_or_default() {
        let policy = TpmPolicy::from_values(&values, values.mask());
        assert!(policy.is_ok_and(|policy| TpmPolicy::parse(&policy.to_json()) == Ok(policy)));
    }
}

/// A runtime policy of any version: what is read is written, reads as the same, and compiles.
pub fn policy_document(data: &[u8]) {
    let strict = PolicyDocument::parse(data);
    let Ok(document) = PolicyDocument::parse_any_version(data, 0) else {
        return;
    };
    assert!(strict.is_err() || RuntimePolicy::compile(data).is_ok());
    let text = document.to_json();
    assert_eq!(
        PolicyDocument::parse(text.as_bytes()).as_ref(),
        Ok(&document)
    );
    assert!(RuntimePolicy::compile(text.as_bytes()).is_ok());
    assert!(document.diff(&document).is_empty());
    assert_eq!(document.merge(document.clone()).as_ref(), Ok(&document));
    let _ = PolicyDocument::from_allowlist(&document.to_allowlist(), "", 0);
}

/// TPM2B_PUBLIC and everything derived from it.
pub fn public(data: &[u8]) {
    if let Ok(public) = Public::from_tpm2b(data) {
        assert_eq!(public.to_tpm2b(), data);
        let _ = (public.name(), public.to_spki_pem(), public.enc_alg());
        let _ = (check_ak(&public), check_ek(&public));
    }
}

/// The quote string.
pub fn quote_string(data: &[u8]) {
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = Quote::parse(text);
    }
}

/// The body of a registration, and what it carries.
pub fn registration(data: &[u8]) {
    let Ok(body) = serde_json::from_slice::<crate::wire::Registration>(data) else {
        return;
    };
    let keys = [&body.ek_tpm, &body.aik_tpm, &body.iak_tpm, &body.idevid_tpm];
    for key in keys.into_iter().flatten() {
        if let Ok(bytes) = STANDARD.decode(key) {
            public(&bytes);
        }
    }
    let certificates = [&body.ekcert, &body.iak_cert, &body.idevid_cert];
    for certificate in certificates.into_iter().flatten() {
        ek_certificate(certificate.as_bytes());
    }
    if let Some(ip) = &body.ip {
        let _ = AgentId::new(ip);
    }
}

/// A runtime policy, and some look-ups in it.
pub fn runtime_policy(data: &[u8]) {
    if let Ok(policy) = RuntimePolicy::compile(data) {
        for name in ["boot_aggregate", "/usr/bin/true", ".ima", ""] {
            let _ = policy.digests().get(name).map(Iterator::count);
            let _ = policy.excludes().matches(name, &mut Default::default());
        }
    }
}

/// TPMT_SIGNATURE.
pub fn signature(data: &[u8]) {
    let _ = Signature::parse(data);
}

/// A TPM policy: what parses is written back to an equal meaning.
pub fn tpm_policy(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    for policy in [TpmPolicy::parse(&text), TpmPolicy::from_operator(&text)]
        .into_iter()
        .flatten()
    {
        assert_eq!(TpmPolicy::parse(&policy.to_json()), Ok(policy));
    }
    let _ = BootPolicy::parse(Some(&text));
}

/// systemd's log of what user space measured.
pub fn userspace_log(data: &[u8]) {
    if let Ok(log) = UserspaceLog::parse(data) {
        for one in log.unverified_measurements() {
            let _ = one
                .digests
                .iter()
                .any(|(bank, _)| one.vouches_for_text(*bank));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_to_compare_with_is_one() {
        assert!(some_key().is_some());
    }
}
