use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::tpm::Digest;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn read(path: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{path}")).unwrap()
}

fn vectors(file: &str) -> Value {
    serde_json::from_slice(&read(&format!("vectors/{file}"))).unwrap()
}

fn text<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap()
}

fn public(base64: &str) -> Public {
    Public::from_tpm2b(&STANDARD.decode(base64).unwrap()).unwrap()
}

fn key(base64: &str) -> AttestationKey {
    AttestationKey::new(&public(base64)).unwrap()
}

fn mask(pcrs: &[u8]) -> PcrMask {
    pcrs.iter()
        .fold(PcrMask::default(), |mask, &pcr| mask.with(pcr))
}

/// What PCR 16 holds after an agent bound its payload key.
fn binding(bank: HashAlgorithm, pem: &str) -> Digest {
    Digest::zero(bank).extend(bank, bank.digest(&[pem.as_bytes()]).as_bytes())
}

/// A captured quote with all that checks it.
struct Case {
    attest: Vec<u8>,
    signature: Vec<u8>,
    pcrs: Vec<u8>,
    key: AttestationKey,
    nonce: Vec<u8>,
    mask: PcrMask,
}

impl Case {
    fn boot(boot: &str) -> Self {
        let file = |name: &str| read(&format!("boots/{boot}/{name}"));
        let nonce = String::from_utf8(file("nonce.hex")).unwrap();
        let pcrs = file("quote-rsa.pcrs");
        Self {
            attest: file("quote-rsa.msg"),
            signature: file("quote-rsa.sig"),
            key: AttestationKey::new(&Public::from_tpm2b(&file("ak.pub")).unwrap()).unwrap(),
            nonce: hex::decode(nonce.trim()).unwrap(),
            mask: PcrValues::from_blob(&pcrs).unwrap().mask(),
            pcrs,
        }
    }

    fn string(quote: &str, ak: &str, nonce: &str, mask: PcrMask) -> Self {
        let mut parts = quote[1..]
            .split(':')
            .map(|part| STANDARD.decode(part).unwrap());
        Self {
            attest: parts.next().unwrap(),
            signature: parts.next().unwrap(),
            pcrs: parts.next().unwrap(),
            key: key(ak),
            nonce: nonce.as_bytes().to_vec(),
            mask,
        }
    }

    /// The RSA and the ECC quote over PCR 16.
    fn pcr_16() -> Vec<Self> {
        let file = vectors("quotes.json");
        let quotes = file["quotes"].as_array().unwrap();
        let case = |quote| {
            let (text_of, nonce) = (text(quote, "/quote"), text(&file, "/nonce"));
            Self::string(text_of, text(quote, "/ak_tpm"), nonce, mask(&[16]))
        };
        quotes.iter().map(case).collect()
    }

    fn expected(&self) -> Expected<'_> {
        Expected {
            nonce: &self.nonce,
            hash: HashAlgorithm::Sha256,
            mask: self.mask,
        }
    }

    fn check(
        &self,
        attest: &[u8],
        signature: &[u8],
        pcrs: &[u8],
    ) -> Result<VerifiedQuote, QuoteError> {
        Quote::from_parts(attest, signature, PcrValues::from_blob(pcrs)?)?
            .verify(&self.key, &self.expected())
    }

    fn quote(&self) -> Quote {
        let pcrs = PcrValues::from_blob(&self.pcrs).unwrap();
        Quote::from_parts(&self.attest, &self.signature, pcrs).unwrap()
    }

    fn fails(&self, expected: &Expected<'_>) -> QuoteError {
        self.quote().verify(&self.key, expected).unwrap_err()
    }
}

fn all() -> Vec<Case> {
    let mut cases = Case::pcr_16();
    cases.extend(["uki", "grub"].map(Case::boot));
    cases
}

#[test]
fn captured_quotes_verify() {
    for case in all() {
        let quote = case
            .check(&case.attest, &case.signature, &case.pcrs)
            .unwrap();
        assert_eq!(quote.pcrs().mask(), case.mask);
        assert!(quote.clock().safe);
    }
}

#[test]
fn quoted_values_are_those_tpm2_pcrread_saw() {
    for boot in ["uki", "grub"] {
        let case = Case::boot(boot);
        let quote = case
            .check(&case.attest, &case.signature, &case.pcrs)
            .unwrap();
        let listing = String::from_utf8(read(&format!("boots/{boot}/pcrread.txt"))).unwrap();
        let bank = listing.split("sha256:").nth(1).unwrap();
        let mut compared = 0;
        for line in bank.lines() {
            let Some((pcr, value)) = line.split_once(": 0x") else {
                continue;
            };
            let Ok(pcr) = pcr.trim().parse::<u8>() else {
                continue;
            };
            if let Some(quoted) = quote.pcrs().get(pcr) {
                assert_eq!(Some(*quoted), Digest::from_hex(value.trim()), "PCR {pcr}");
                compared += 1;
            }
        }
        assert_eq!(compared, case.mask.iter().count());
    }
}

#[test]
fn quotes_over_pcr_16_carry_clock_name_and_binding() {
    let file = vectors("quotes.json");
    for (case, vector) in Case::pcr_16()
        .iter()
        .zip(file["quotes"].as_array().unwrap())
    {
        let quote = Quote::parse(text(vector, "/quote")).unwrap();
        let verified = quote.verify(&case.key, &case.expected()).unwrap();
        assert_eq!(case.key.name().to_string(), text(vector, "/name_hex"));
        assert_eq!(Some(verified.clock().clock), vector["clock"].as_u64());
        assert_eq!(
            (verified.clock().reset_count, verified.clock().restart_count),
            (2, 0)
        );
        let bound = binding(HashAlgorithm::Sha256, text(&file, "/pubkey"));
        assert_eq!(bound.to_string(), text(&file, "/pcr16"));
        assert_eq!(verified.pcrs().get(16), Some(&bound));
    }
}

#[test]
fn live_pull_quotes_verify() {
    let file = vectors("agent-registrar.json");
    let key = key(text(&file, "/registration/request/aik_tpm"));
    assert_eq!(
        key.name().to_string(),
        text(&file, "/registration/aik_name_hex")
    );
    let quotes = file["pull_quotes"].as_array().unwrap();
    assert_eq!(quotes.len(), 5);
    for vector in quotes {
        let request = text(vector, "/request");
        let query = |name: &str| {
            let (_, query) = request.split_once('?').unwrap();
            query
                .split('&')
                .find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
        };
        let asked =
            query("mask").map_or_else(PcrMask::default, |mask| PcrMask::from_hex(mask).unwrap());
        let expected = Expected {
            nonce: query("nonce").unwrap().as_bytes(),
            hash: HashAlgorithm::from_name(text(vector, "/response/results/hash_alg")).unwrap(),
            mask: asked.with(16),
        };
        let quoted = text(vector, "/response/results/quote");
        let quote = Quote::parse(quoted)
            .unwrap()
            .verify(&key, &expected)
            .unwrap();

        let pcrs = vector["pcrs"].as_object().unwrap();
        assert_eq!(pcrs.len(), quote.pcrs().iter().count());
        for (pcr, value) in quote.pcrs().iter() {
            assert_eq!(pcrs[&pcr.to_string()], value.to_string());
        }
        let attest = &vector["decoded"]["attest"];
        assert_eq!(attest["clockInfo"]["clock"], quote.clock().clock);
        assert_eq!(attest["clockInfo"]["resetCount"], quote.clock().reset_count);
        assert_eq!(attest["pcrDigest_hex"], quote.pcrs().digest().to_string());
        let nk = binding(expected.hash, text(&file, "/nk_pem"));
        assert_eq!(nk.to_string(), text(&file, "/pcr16_expected_sha256"));
        assert_eq!(quote.pcrs().get(16), Some(&nk));

        let blob = quote.pcrs().to_blob();
        assert_eq!(vector["decoded"]["pcr_blob_len"], blob.len());
        let hash = HashAlgorithm::Sha256.digest(&[&blob]).to_string();
        assert_eq!(vector["decoded"]["pcr_blob_sha256"], hash);
    }
}

#[test]
fn other_key_types_verify() {
    let file = vectors("agent-registrar.json");
    let mut kinds = Vec::new();
    for case in file
        .pointer("/other_key_types/cases")
        .unwrap()
        .as_array()
        .unwrap()
    {
        let ak = text(case, "/aik_tpm");
        let key = key(ak);
        assert_eq!(key.scheme().name(), text(case, "/sign_alg"));
        assert_eq!(public(ak).enc_alg(), text(case, "/enc_alg"));
        kinds.push(text(case, "/enc_alg"));
        let asked = PcrMask::from_hex(text(case, "/integrity_quote_mask")).unwrap();
        for (quote, mask) in [
            ("/identity_quote", mask(&[16])),
            ("/integrity_quote", asked.with(16)),
        ] {
            let expected = Expected {
                nonce: text(case, "/nonce").as_bytes(),
                hash: HashAlgorithm::from_name(text(case, "/hash_alg")).unwrap(),
                mask,
            };
            Quote::parse(text(case, quote))
                .unwrap()
                .verify(&key, &expected)
                .unwrap();
        }
    }
    kinds.sort_unstable();
    assert_eq!(kinds, ["ecc256", "ecc384", "ecc521", "rsa3072"]);
}

#[test]
fn one_flipped_bit_anywhere_is_refused() {
    for case in [
        Case::pcr_16().remove(0),
        Case::pcr_16().remove(1),
        Case::boot("uki"),
    ] {
        let good = case
            .check(&case.attest, &case.signature, &case.pcrs)
            .unwrap();
        for at in 0..case.attest.len() {
            let mut attest = case.attest.clone();
            attest[at] ^= 1 << (at % 8);
            case.check(&attest, &case.signature, &case.pcrs)
                .expect_err("attest");
        }
        for at in 0..case.signature.len() {
            let mut signature = case.signature.clone();
            signature[at] ^= 1 << (at % 8);
            case.check(&case.attest, &signature, &case.pcrs)
                .expect_err("signature");
        }
        for at in 0..case.pcrs.len() {
            let mut pcrs = case.pcrs.clone();
            pcrs[at] ^= 1 << (at % 8);
            // The counts of the lists are not used: a flip there may only change nothing.
            if let Ok(quote) = case.check(&case.attest, &case.signature, &pcrs) {
                assert!(at >= 136 && (at - 136) % 532 == 0, "byte {at}");
                assert_eq!(quote.pcrs(), good.pcrs());
            }
        }
    }
}

#[test]
fn each_wrong_expectation_has_its_own_error() {
    let case = Case::boot("uki");
    let right = case.expected();
    let wrong = |nonce| case.fails(&Expected { nonce, ..right });
    assert_eq!(wrong(b""), QuoteError::Nonce);
    assert_eq!(wrong(&case.nonce[1..]), QuoteError::Nonce);
    let longer = [case.nonce.as_slice(), b"0"].concat();
    assert_eq!(wrong(&longer), QuoteError::Nonce);

    let error = case.fails(&Expected {
        mask: mask(&[0, 22, 23]).union(case.mask),
        ..right
    });
    let missing = mask(&[22, 23]).difference(case.mask);
    assert_eq!(error, QuoteError::MissingPcrs(missing));
    assert!(error.to_string().contains("23"), "{error}");
    let error = case.fails(&Expected {
        mask: mask(&[0]),
        ..right
    });
    assert_eq!(
        error,
        QuoteError::ExtraPcrs(case.mask.difference(mask(&[0])))
    );
    let error = case.fails(&Expected {
        hash: HashAlgorithm::Sha384,
        ..right
    });
    assert_eq!(
        error,
        QuoteError::SignatureHash {
            expected: HashAlgorithm::Sha384,
            got: HashAlgorithm::Sha256
        }
    );

    let [ecc, rsa] = <[Case; 2]>::try_from(Case::pcr_16())
        .map_err(|_| ())
        .unwrap();
    let quote = case.quote();
    assert_eq!(
        quote.verify(&rsa.key, &right).unwrap_err(),
        QuoteError::Signature
    );
    assert_eq!(
        quote.verify(&ecc.key, &right).unwrap_err().to_string(),
        "signature scheme is rsassa, the AK signs with ecdsa"
    );
}

#[test]
fn values_of_another_quote_are_refused() {
    let case = Case::boot("uki");
    let other = PcrValues::from_blob(&Case::boot("grub").pcrs).unwrap();
    let check = |pcrs| {
        let quote = Quote::from_parts(&case.attest, &case.signature, pcrs).unwrap();
        quote.verify(&case.key, &case.expected()).unwrap_err()
    };
    assert_eq!(check(other), QuoteError::PcrDigest);
    let mut fewer = PcrValues::new(HashAlgorithm::Sha256);
    fewer.set(0, Digest::zero(HashAlgorithm::Sha256));
    assert_eq!(
        check(fewer),
        QuoteError::ValuesMask {
            expected: case.mask,
            got: mask(&[0])
        }
    );
    assert_eq!(
        check(PcrValues::new(HashAlgorithm::Sha1)),
        QuoteError::ValuesBank {
            expected: HashAlgorithm::Sha256,
            got: HashAlgorithm::Sha1
        }
    );
}

#[test]
fn a_quote_over_two_banks_is_refused() {
    for boot in ["uki", "grub"] {
        let file = |name: &str| read(&format!("boots/{boot}/{name}"));
        let blob = PcrValues::from_blob(&file("quote-ecc.pcrs")).unwrap_err();
        assert_eq!((blob.offset, blob.reason), (0, "not exactly one PCR bank"));
        let case = Case::boot(boot);
        let key = Public::from_tpm2b(&file("ak-ecc.pub")).unwrap();
        let key = AttestationKey::new(&key).unwrap();
        let pcrs = PcrValues::from_blob(&case.pcrs).unwrap();
        let quote =
            Quote::from_parts(&file("quote-ecc.msg"), &file("quote-ecc.sig"), pcrs).unwrap();
        // The signature is right: the banks are what is wrong.
        let error = quote.verify(&key, &case.expected()).unwrap_err();
        assert_eq!(error, QuoteError::Banks { count: 2 });
    }
}

#[test]
fn sha1_proves_nothing() {
    let case = Case::boot("uki");
    let mut signature = case.signature.clone();
    signature[2..4].copy_from_slice(&[0, 4]);
    let error = case
        .check(&case.attest, &signature, &case.pcrs)
        .unwrap_err();
    assert_eq!(error, QuoteError::Sha1Signature);

    let mut tpmt = read("boots/uki/ak.pub")[2..].to_vec();
    tpmt[14..16].copy_from_slice(&[0, 4]);
    let sha1 = Public::from_tpmt(&tpmt).unwrap();
    assert_eq!(AttestationKey::new(&sha1).unwrap_err(), KeyError::Sha1);
}

#[test]
fn keys_that_cannot_sign_quotes_are_refused() {
    let file = |name: &str| Public::from_tpm2b(&read(&format!("boots/uki/{name}"))).unwrap();
    assert_eq!(
        AttestationKey::new(&file("ek.pub")).unwrap_err(),
        KeyError::NoScheme
    );
    let mut off_curve = read("boots/uki/ak-ecc.pub")[2..].to_vec();
    let last = off_curve.len() - 1;
    off_curve[last] ^= 1;
    let off_curve = Public::from_tpmt(&off_curve).unwrap();
    assert_eq!(
        AttestationKey::new(&off_curve).unwrap_err(),
        KeyError::NotAKey
    );
}

#[test]
fn an_ak_certification_is_no_quote() {
    let case = Case::boot("uki");
    // TPMS_CERTIFY_INFO in place of TPMS_QUOTE_INFO: name and qualified name.
    let mut certify = case.attest.clone();
    certify[5] = 0x17;
    let info = Attest::parse(&case.attest).unwrap();
    let fixed = 4 + 2 + 2 + info.qualified_signer.len() + 2 + info.extra_data.len() + 17 + 8;
    certify.truncate(fixed);
    let name = case.key.name().as_bytes();
    certify.extend_from_slice(&[0, 34]);
    certify.extend_from_slice(name);
    certify.extend_from_slice(&[0, 34]);
    certify.extend_from_slice(name);
    match Attest::parse(&certify).unwrap().attested {
        Attested::Certify { name, .. } => assert_eq!(&name, case.key.name()),
        Attested::Quote { .. } => panic!("parsed as a quote"),
    }
    let error = case
        .check(&certify, &case.signature, &case.pcrs)
        .unwrap_err();
    assert_eq!(error, QuoteError::NotAQuote);
}

#[test]
fn strings_that_are_no_quotes_are_refused() {
    let good = text(&vectors("quotes.json"), "/quotes/0/quote").to_owned();
    let parse = |text: &str| Quote::parse(text).map(|_| ()).unwrap_err();
    assert_eq!(parse(""), QuoteError::Prefix);
    assert_eq!(parse(&good[1..]), QuoteError::Prefix);
    assert_eq!(parse("r"), QuoteError::Parts);
    assert_eq!(parse(&format!("{good}:")), QuoteError::Parts);
    assert_eq!(parse(&good.replacen(':', "", 1)), QuoteError::Parts);
    assert_eq!(
        parse(&format!("{good}\n")),
        QuoteError::Base64 { part: "PCR blob" }
    );
    assert_eq!(
        parse(&good.replacen("r/", "r*", 1)),
        QuoteError::Base64 {
            part: "TPMS_ATTEST"
        }
    );
    assert_eq!(
        parse(&"r".repeat(40_000)),
        QuoteError::TooLong { length: 40_000 }
    );
    for end in (0..good.len()).filter(|&end| good.is_char_boundary(end)) {
        Quote::parse(&good[..end]).unwrap_err();
    }
}

proptest! {
    #[test]
    fn quote_strings_round_trip(bits in 0_u32..1 << 24, fill in any::<u8>()) {
        let case = Case::boot("grub");
        let mut pcrs = PcrValues::new(HashAlgorithm::Sha256);
        for pcr in PcrMask::from_bits(bits).unwrap().iter() {
            pcrs.set(pcr, Digest::from_slice(&[fill; 32]).unwrap());
        }
        let text = Quote::encode(&case.attest, &case.signature, &pcrs);
        let quote = Quote::parse(&text).unwrap();
        prop_assert_eq!(&quote.message, &case.attest);
        prop_assert_eq!(Quote::encode(&quote.message, &case.signature, &quote.pcrs), text);
        prop_assert_eq!(quote.pcrs, pcrs);
    }

    #[test]
    fn no_string_panics(text in "r?[A-Za-z0-9+/=]{0,64}:?[A-Za-z0-9+/=]{0,64}:?.{0,64}") {
        let _ = Quote::parse(&text);
    }
}
