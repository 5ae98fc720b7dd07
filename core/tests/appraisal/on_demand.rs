use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use troth_core::appraise::{
    AcceptedAlgorithms, Finding, ImaRules, Policies, appraise_evidence, appraise_quote,
};
use troth_core::policy::{BootPolicy, TpmPolicy};

use super::judged::identity;

#[test]
fn one_flipped_bit_of_a_quote_is_refused_on_demand_too() {
    for index in 0..2 {
        let (ak, nonce, evidence) = identity(index);
        let accept = AcceptedAlgorithms::of(&ak);
        let tpm = TpmPolicy::parse(r#"{"mask": "0x0"}"#).unwrap();
        let policies = Policies {
            tpm: &tpm,
            runtime: None,
            boot: &BootPolicy::None,
            accept: &accept,
            ima: ImaRules::default(),
        };
        appraise_quote(&ak, &nonce, &evidence).unwrap();
        appraise_evidence(&ak, &nonce, &evidence, &policies).unwrap();

        let refused = |finding: &Finding, what: &str| {
            assert!(
                finding.id.starts_with("qoute_validation."),
                "{what}: {finding:?}"
            );
            assert!(!finding.recoverable, "{what}");
        };
        refused(
            &appraise_quote(&ak, "another", &evidence).unwrap_err(),
            "nonce",
        );
        let parts: Vec<&str> = evidence.quote[1..].split(':').collect();
        for part in 0..2 {
            let bytes = STANDARD.decode(parts[part]).unwrap();
            for at in 0..bytes.len() {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1;
                let flipped = STANDARD.encode(&bytes);
                let mut parts = parts.clone();
                parts[part] = &flipped;
                let mut evidence = evidence.clone();
                evidence.quote = format!("r{}", parts.join(":"));
                let what = format!("byte {at} of part {part}");
                refused(&appraise_quote(&ak, &nonce, &evidence).unwrap_err(), &what);
                let findings = appraise_evidence(&ak, &nonce, &evidence, &policies).unwrap_err();
                assert_eq!(findings.len(), 1);
                refused(&findings[0], &what);
            }
        }
    }
}
