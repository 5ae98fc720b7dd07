use aws_lc_rs::signature;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use proptest::prelude::*;

use super::*;
use crate::identity::draft::{Draft, Signer, name, oid, tlv};
use crate::identity::{certificate_quirks, normalise_ek_certificate};

/// 2027-01-15.
const NOW: u64 = 1_800_000_000;
fn read(path: &str) -> Vec<u8> {
    let fixtures = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");
    std::fs::read(format!("{fixtures}/{path}")).unwrap()
}

fn public(path: &str) -> Public {
    Public::from_tpm2b(&read(path)).unwrap()
}

fn pem(path: &str) -> Vec<u8> {
    let text = String::from_utf8(read(path)).unwrap();
    let body: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    STANDARD.decode(body).unwrap()
}

fn anchors(certificates: &[&Vec<u8>]) -> TrustAnchors {
    let mut anchors = TrustAnchors::default();
    for certificate in certificates {
        anchors.add(certificate).unwrap();
    }
    anchors
}

fn trust(anchors: &TrustAnchors) -> Trust<'_> {
    Trust {
        anchors,
        at: NOW,
        expired: Expiry::Refuse,
    }
}

/// A certificate of the EK of `boots/uki`.
fn ek_of(issuer: &str) -> Draft {
    Draft::ek(public("boots/uki/ek.pub").to_spki_der(), issuer)
}

/// A root, an intermediate CA and an EK certificate.
struct Chain {
    root_key: Signer,
    ca_key: Signer,
    root: Vec<u8>,
    ca: Vec<u8>,
    ek: Vec<u8>,
}

impl Chain {
    fn new() -> Self {
        let (root_key, ca_key) = (Signer::new(), Signer::new());
        Self {
            root: Draft::ca("root", "root", &root_key).signed_by(&root_key),
            ca: Draft::ca("ca", "root", &ca_key).signed_by(&root_key),
            ek: ek_of("ca").signed_by(&ca_key),
            root_key,
            ca_key,
        }
    }

    fn certify(&self) -> Result<CertifiedEk, ChainError> {
        self.certify_at(NOW, Expiry::Refuse)
    }

    fn certify_at(&self, at: u64, expired: Expiry) -> Result<CertifiedEk, ChainError> {
        let anchors = anchors(&[&self.root]);
        let trust = Trust {
            anchors: &anchors,
            at,
            expired,
        };
        let ek = public("boots/uki/ek.pub");
        certify_ek(&ek, &self.ek, std::slice::from_ref(&self.ca), &trust)
    }

    fn problem(&self) -> ChainProblem {
        self.certify().unwrap_err().problem
    }

    /// With another CA certificate.
    fn with_ca(mut self, change: impl FnOnce(Draft) -> Draft) -> Self {
        self.ca = change(Draft::ca("ca", "root", &self.ca_key)).signed_by(&self.root_key);
        self
    }

    /// With another EK certificate.
    fn with_ek(mut self, change: impl FnOnce(Draft) -> Draft) -> Self {
        self.ek = change(ek_of("ca")).signed_by(&self.ca_key);
        self
    }
}

#[test]
fn swtpms_certificates_lead_to_its_root() {
    let ek = public("boots/uki/ek.pub");
    let certificate = read("boots/uki/ek-cert.der");
    let issuer = pem("boots/uki/issuercert.pem");
    let root = pem("boots/uki/swtpm-localca-rootca-cert.pem");
    let (by_root, by_issuer) = (anchors(&[&root]), anchors(&[&issuer]));
    let certified = certify_ek(
        &ek,
        &certificate,
        std::slice::from_ref(&issuer),
        &trust(&by_root),
    );
    let certified = certified.unwrap();
    assert_eq!(
        certified.path(),
        ["CN=unknown", "CN=swtpm-localca", "CN=swtpm-localca-rootca"]
    );
    assert!(certified.quirks().is_empty(), "{:?}", certified.quirks());
    // The store may hold what Keylime's holds: the CA that issued.
    let direct = certify_ek(&ek, &certificate, &[], &trust(&by_issuer)).unwrap();
    assert_eq!(direct.path(), ["CN=unknown", "CN=swtpm-localca"]);

    let error = certify_ek(&ek, &certificate, &[], &trust(&by_root)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "CN=unknown: its issuer (CN=swtpm-localca) is neither in the store nor in the chain that \
         came with it; get the certificate from the TPM's manufacturer and put it into the store"
    );
    let nothing = TrustAnchors::default();
    let error = certify_ek(&ek, &certificate, &[issuer, root], &trust(&nothing)).unwrap_err();
    assert_eq!(error.certificate, "CN=swtpm-localca-rootca");
    for other in ["boots/grub/ek.pub", "boots/uki/ek-ecc.pub"] {
        let error = certify_ek(&public(other), &certificate, &[], &trust(&by_issuer));
        assert_eq!(error.unwrap_err().problem, ChainProblem::OtherKey);
    }
    // Another CA of the same name.
    let stranger = read("boots/grub/ek-cert.der");
    let error = certify_ek(
        &public("boots/grub/ek.pub"),
        &stranger,
        &[],
        &trust(&by_issuer),
    );
    let expected = ChainProblem::Signature(String::from("CN=swtpm-localca"));
    assert_eq!(error.unwrap_err().problem, expected);
}

#[test]
fn a_chain_of_vendors_kind_is_accepted_and_every_link_counts() {
    let chain = Chain::new();
    let certified = chain.certify().unwrap();
    assert_eq!(certified.path()[1..], ["CN=ca", "CN=root"]);
    assert!(certified.quirks().is_empty());
    let other = Chain::new();
    for broken in [
        Chain {
            ek: other.ek.clone(),
            ..Chain::new()
        },
        Chain {
            ca: other.ca.clone(),
            ..Chain::new()
        },
        Chain {
            root: other.root.clone(),
            ..Chain::new()
        },
    ] {
        assert!(matches!(broken.problem(), ChainProblem::Signature(_)));
    }
}

#[test]
fn every_signature_of_vendors_is_checked_and_sha1_is_refused() {
    let pkcs1 = |last: u8| {
        tlv(
            0x30,
            &[&oid(&format!("1.2.840.113549.1.1.{last}")), &[5, 0]],
        )
    };
    let pss = |hash: u8, salt: u8, mgf: &str| {
        let hash = tlv(0x30, &[&oid(&format!("2.16.840.1.101.3.4.2.{hash}"))]);
        let mask = tlv(0x30, &[&oid(mgf), &hash]);
        let (hash, mask) = (tlv(0xa0, &[&hash]), tlv(0xa1, &[&mask]));
        let parameters = tlv(0x30, &[&hash, &mask, &[0xa2, 3, 2, 1, salt]]);
        tlv(0x30, &[&oid("1.2.840.113549.1.1.10"), &parameters])
    };
    const MGF1: &str = "1.2.840.113549.1.1.8";
    let good = [
        Signer::rsa(&signature::RSA_PKCS1_SHA256, pkcs1(11)),
        Signer::rsa(&signature::RSA_PKCS1_SHA384, pkcs1(12)),
        Signer::rsa(&signature::RSA_PKCS1_SHA512, pkcs1(13)),
        Signer::rsa(&signature::RSA_PSS_SHA256, pss(1, 32, MGF1)),
        Signer::rsa(&signature::RSA_PSS_SHA384, pss(2, 48, MGF1)),
        Signer::rsa(&signature::RSA_PSS_SHA512, pss(3, 64, MGF1)),
        Signer::ecdsa(
            &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
            "1.2.840.10045.4.3.2",
        ),
        Signer::ecdsa(
            &signature::ECDSA_P384_SHA384_ASN1_SIGNING,
            "1.2.840.10045.4.3.3",
        ),
        Signer::ecdsa(
            &signature::ECDSA_P521_SHA512_ASN1_SIGNING,
            "1.2.840.10045.4.3.4",
        ),
    ];
    let certify = |signer: &Signer| {
        let ca = Draft::ca("ca", "ca", signer).signed_by(signer);
        let anchors = anchors(&[&ca]);
        let ek = ek_of("ca").signed_by(signer);
        certify_ek(&public("boots/uki/ek.pub"), &ek, &[], &trust(&anchors))
            .map_err(|error| error.problem)
    };
    for signer in good {
        certify(&signer).unwrap();
    }
    let unsupported = |dotted: &str| ChainProblem::Algorithm(dotted.to_owned());
    for (signer, expected) in [
        (
            Signer::rsa(&signature::RSA_PKCS1_SHA256, pkcs1(5)),
            ChainProblem::Sha1,
        ),
        (
            Signer::ecdsa(
                &signature::ECDSA_P256_SHA256_ASN1_SIGNING,
                "1.2.840.10045.4.1",
            ),
            ChainProblem::Sha1,
        ),
        // Says SHA-384, is SHA-256.
        (
            Signer::rsa(&signature::RSA_PKCS1_SHA256, pkcs1(12)),
            ChainProblem::Signature(String::from("CN=ca")),
        ),
        (
            Signer::rsa(&signature::RSA_PSS_SHA256, pss(1, 20, MGF1)),
            unsupported("1.2.840.113549.1.1.10"),
        ),
        (
            Signer::rsa(
                &signature::RSA_PSS_SHA256,
                pss(1, 32, "1.2.840.113549.1.1.9"),
            ),
            unsupported("1.2.840.113549.1.1.10"),
        ),
        (
            Signer::rsa(&signature::RSA_PKCS1_SHA256, pkcs1(4)),
            unsupported("1.2.840.113549.1.1.4"),
        ),
    ] {
        assert_eq!(certify(&signer).unwrap_err(), expected);
    }
}

#[test]
fn only_a_ca_issues() {
    let not_ca = [
        // What an IDevID certificate of the same vendor looks like.
        |ca: Draft| ca.without("2.5.29.19").with("2.5.29.15", true, "03020780"),
        |ca: Draft| ca.without("2.5.29.19").without("2.5.29.15"),
        |ca: Draft| ca.with("2.5.29.19", true, "3000"),
        |ca: Draft| ca.with("2.5.29.19", true, "3003010100"),
        |ca: Draft| ca.with("2.5.29.15", true, "03020780"),
    ];
    for change in not_ca {
        let error = Chain::new().with_ca(change).certify().unwrap_err();
        assert_eq!(
            (error.certificate.as_str(), error.problem),
            ("CN=ca", ChainProblem::NotCa)
        );
    }
    // Put into the store, it needs no basicConstraints; an end entity's stays one.
    for (change, good) in [
        (not_ca[1], true),
        (|ca: Draft| ca.without("2.5.29.19"), true),
        (not_ca[0], false),
        (not_ca[2], false),
    ] {
        let mut chain = Chain::new();
        chain.root = change(Draft::ca("root", "x", &chain.root_key)).signed_by(&chain.root_key);
        assert_eq!(chain.certify().is_ok(), good);
    }
    // An old intermediate without basicConstraints whose keyUsage says what it is.
    let certified = Chain::new()
        .with_ca(|ca| ca.without("2.5.29.19"))
        .certify()
        .unwrap();
    assert_eq!(
        *certified.quirks(),
        BTreeSet::from([Quirk::NoBasicConstraints])
    );
}

#[test]
fn the_length_of_a_path_is_bounded_by_its_cas() {
    let mut chain = Chain::new();
    for (length, good) in [("00", false), ("01", true), ("ff", false), ("020100", true)] {
        let size = length.len() / 2;
        let value = format!("30{:02x}0101ff02{size:02x}{length}", 5 + size);
        let root = Draft::ca("root", "root", &chain.root_key).with("2.5.29.19", true, &value);
        chain.root = root.signed_by(&chain.root_key);
        assert_eq!(chain.certify().is_ok(), good, "{length}");
    }
    // And by what a path may cost.
    let keys: Vec<_> = (0..12).map(|_| Signer::new()).collect();
    let cas: Vec<_> = (1..12)
        .map(|n| {
            let (subject, issuer) = (format!("ca {n}"), format!("ca {}", n - 1));
            Draft::ca(&subject, &issuer, &keys[n]).signed_by(&keys[n - 1])
        })
        .collect();
    let root = Draft::ca("ca 0", "ca 0", &keys[0]).signed_by(&keys[0]);
    let anchors = anchors(&[&root]);
    for (cas_between, good) in [(0, true), (MAX_CAS, true), (MAX_CAS + 1, false)] {
        let ek = ek_of(&format!("ca {cas_between}")).signed_by(&keys[cas_between]);
        let certified = certify_ek(&public("boots/uki/ek.pub"), &ek, &cas, &trust(&anchors));
        assert_eq!(certified.is_ok(), good, "{cas_between}: {certified:?}");
    }
}

#[test]
fn time_is_judged_for_the_ek_now_and_for_its_cas_when_they_issued() {
    let chain = Chain::new().with_ek(|ek| Draft {
        validity: ["200101000000Z", "250101000000Z"],
        ..ek
    });
    // 2025-01-01
    let expiry = 1_735_689_600;
    chain.certify_at(expiry, Expiry::Refuse).unwrap();
    let error = chain.certify_at(expiry + 1, Expiry::Refuse).unwrap_err();
    assert_eq!(error.problem, ChainProblem::Expired(expiry));
    assert!(
        error
            .to_string()
            .contains("has expired on 2025-01-01T00:00:00Z"),
        "{error}"
    );
    let certified = chain.certify_at(expiry + 1, Expiry::Accept).unwrap();
    assert_eq!(*certified.quirks(), BTreeSet::from([Quirk::Expired]));
    for expired in [Expiry::Refuse, Expiry::Accept] {
        let error = chain.certify_at(1_577_836_799, expired).unwrap_err();
        assert_eq!(error.problem, ChainProblem::NotYetValid(1_577_836_800));
    }
    // 2021: after the EK certificate was issued; 2019-06: before.
    let ca_until = |until| {
        Chain::new().with_ca(|ca| Draft {
            validity: ["190101000000Z", until],
            ..ca
        })
    };
    let certified = ca_until("210101000000Z").certify().unwrap();
    assert_eq!(*certified.quirks(), BTreeSet::from([Quirk::IssuerExpired]));
    let problem = ca_until("190601000000Z").problem();
    assert!(
        matches!(problem, ChainProblem::IssuedAfterExpiry(_)),
        "{problem}"
    );
    let early = Chain::new().with_ca(|ca| Draft {
        validity: ["350101000000Z", "20491231235959Z"],
        ..ca
    });
    assert!(matches!(early.problem(), ChainProblem::NotYetValid(_)));
    for nonsense in [
        "21010100000000",
        "20010100000Z",
        "20010100000aZ",
        "201301000000Z",
    ] {
        let chain = Chain::new().with_ek(|ek| Draft {
            validity: [nonsense, "99991231235959Z"],
            ..ek
        });
        assert!(
            matches!(chain.problem(), ChainProblem::Malformed(_)),
            "{nonsense}"
        );
    }
}

#[test]
fn a_certificate_for_another_purpose_is_no_ek_certificate() {
    // serverAuth; anyExtendedKeyUsage; a commonName instead of a TPM's.
    let server = "300a06082b06010505070301";
    let any = "30060604551d2500";
    let no_tpm = "3013a411300f310d300b06035504030c0474686579";
    let sets = [
        (ek_of("ca").with("2.5.29.37", false, server), false),
        (ek_of("ca").with("2.5.29.37", false, any), true),
        (ek_of("ca").without("2.5.29.37"), true),
        (ek_of("ca").without("2.5.29.37").without("2.5.29.17"), false),
        (
            ek_of("ca")
                .without("2.5.29.37")
                .with("2.5.29.17", true, no_tpm),
            false,
        ),
        (
            ek_of("ca")
                .without("2.5.29.37")
                .with("2.5.29.17", true, "3003a40130"),
            false,
        ),
    ];
    for (draft, good) in sets {
        let chain = Chain::new().with_ek(|_| draft);
        match good {
            true => drop(chain.certify().unwrap()),
            false => assert_eq!(chain.problem(), ChainProblem::NotEk),
        }
    }
}

#[test]
fn critical_extensions_are_understood_or_refused() {
    let foreign = "1.3.6.1.4.1.311.21.10";
    // nameConstraints would have to be applied.
    for extension in ["2.5.29.30", foreign] {
        let problem = ChainProblem::CriticalExtension(extension.to_owned());
        let chain = Chain::new().with_ca(|ca| ca.with(extension, true, "3000"));
        assert_eq!(chain.problem(), problem);
        let chain = Chain::new().with_ek(|ek| ek.with(extension, true, "3000"));
        assert_eq!(chain.problem(), problem);
    }
    Chain::new()
        .with_ek(|ek| ek.with(foreign, false, "3000"))
        .certify()
        .unwrap();
    // subjectDirectoryAttributes with the TPM's specification.
    let chain = Chain::new().with_ek(|ek| {
        ek.with(
            "2.5.29.9",
            true,
            "3019301706056781050210310e300c0c03322e300201000202009e",
        )
    });
    chain.certify().unwrap();
    let twice = Chain::new().with_ek(|mut ek| {
        ek.extensions.push(ek.extensions[0].clone());
        ek
    });
    assert!(matches!(twice.problem(), ChainProblem::Malformed(_)));
}

#[test]
fn deviations_in_the_field_are_tolerated_and_named() {
    for serial in [vec![0], vec![0x80], vec![], vec![1; 21]] {
        let certified = Chain::new()
            .with_ek(|ek| Draft { serial, ..ek })
            .certify()
            .unwrap();
        assert!(certified.quirks().contains(&Quirk::OddSerial));
    }
    let oaep = Chain::new().with_ek(|mut ek| {
        let rsa = oid("1.2.840.113549.1.1.1");
        let at = ek
            .spki
            .windows(rsa.len())
            .position(|window| window == rsa)
            .unwrap();
        ek.spki[at + rsa.len() - 1] = 7;
        ek
    });
    assert_eq!(
        *oaep.certify().unwrap().quirks(),
        BTreeSet::from([Quirk::OaepKey])
    );
    // A SET that is not in order.
    let attribute = |dotted: &str| tlv(0x30, &[&oid(dotted), &tlv(0x0c, &[b"x"])]);
    let set = tlv(0x31, &[&attribute("2.5.4.11"), &attribute("2.5.4.3")]);
    let subject = tlv(0x30, &[&set]);
    let chain = Chain::new().with_ek(|ek| Draft { subject, ..ek });
    let certified = chain.certify().unwrap();
    assert_eq!(*certified.quirks(), BTreeSet::from([Quirk::NotStrictDer]));
    assert_eq!(certificate_quirks(&chain.ek).unwrap(), *certified.quirks());
    // Names that differ in letter case and kind of string.
    let printable = tlv(0x30, &[&oid("2.5.4.3"), &tlv(0x13, &[b"CA"])]);
    let issuer = tlv(0x30, &[&tlv(0x31, &[&printable])]);
    Chain::new()
        .with_ek(|ek| Draft { issuer, ..ek })
        .certify()
        .unwrap();
}

#[test]
fn hostile_text_in_a_name_does_not_reach_the_log() {
    let nothing = TrustAnchors::default();
    let chain = Chain::new().with_ek(|ek| Draft {
        subject: name(&format!("a\nb\x1b[31m{}", "x".repeat(1000))),
        ..ek
    });
    let ek = public("boots/uki/ek.pub");
    let error = certify_ek(&ek, &chain.ek, &[], &trust(&nothing)).unwrap_err();
    assert!(!error.certificate.contains(char::is_control), "{error}");
    assert!(error.certificate.len() <= 200, "{error}");
}

#[test]
fn loops_and_crowds_of_cas_cost_no_more_than_their_number() {
    // Two CAs that certified each other, and sixteen of one name.
    let (a, b) = (Signer::new(), Signer::new());
    let cross = [
        Draft::ca("a", "b", &a).signed_by(&b),
        Draft::ca("b", "a", &b).signed_by(&a),
        Draft::ca("a", "a", &a).signed_by(&a),
    ];
    let ek = public("boots/uki/ek.pub");
    let certificate = ek_of("a").signed_by(&a);
    let nothing = TrustAnchors::default();
    let error = certify_ek(&ek, &certificate, &cross, &trust(&nothing)).unwrap_err();
    assert!(
        matches!(error.problem, ChainProblem::UnknownIssuer(_)),
        "{error}"
    );

    let crowd: Vec<_> = (0..40)
        .map(|_| Draft::ca("a", "a", &a).signed_by(&a))
        .collect();
    let error = certify_ek(&ek, &certificate, &crowd, &trust(&nothing)).unwrap_err();
    assert!(
        matches!(error.problem, ChainProblem::UnknownIssuer(_)),
        "{error}"
    );
    let keys: Vec<_> = (0..70).map(|_| Signer::new()).collect();
    let roots: Vec<_> = keys
        .iter()
        .map(|key| Draft::ca("a", "a", key).signed_by(key))
        .collect();
    let roots = anchors(&roots.iter().collect::<Vec<_>>());
    assert_eq!(roots.len(), 70);
    certify_ek(&ek, &certificate, &crowd, &trust(&roots)).unwrap_err();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever order intermediates come in, and whatever else is among them.
    #[test]
    fn a_complete_chain_is_found_in_any_order_and_an_incomplete_one_never(
        length in 0_usize..5,
        rotate in 0_usize..10,
        missing in any::<prop::sample::Index>(),
        noise in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..64), 0..3),
    ) {
        let keys: Vec<_> = (0..=length).map(|_| Signer::new()).collect();
        let root = Draft::ca("ca 0", "ca 0", &keys[0]).signed_by(&keys[0]);
        let cas: Vec<_> = (1..=length)
            .map(|n| Draft::ca(&format!("ca {n}"), &format!("ca {}", n - 1), &keys[n])
                .signed_by(&keys[n - 1]))
            .collect();
        let certificate = ek_of(&format!("ca {length}")).signed_by(&keys[length]);
        let ek = public("boots/uki/ek.pub");
        let anchors = anchors(&[&root]);

        let mut sent: Vec<_> = cas.iter().cloned().chain(noise).collect();
        let count = sent.len().max(1);
        sent.rotate_left(rotate % count);
        let certified = certify_ek(&ek, &certificate, &sent, &trust(&anchors)).unwrap();
        prop_assert_eq!(certified.path().len(), length + 2);
        if length > 0 {
            let gone = &cas[missing.index(length)];
            sent.retain(|der| der != gone);
            certify_ek(&ek, &certificate, &sent, &trust(&anchors)).unwrap_err();
        }
    }

    /// Every byte that is signed counts.
    #[test]
    fn a_changed_certificate_is_refused(at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        let ek = public("boots/uki/ek.pub");
        let anchors = anchors(&[&pem("boots/uki/issuercert.pem")]);
        let mut certificate = read("boots/uki/ek-cert.der");
        certify_ek(&ek, &certificate, &[], &trust(&anchors)).unwrap();
        let signed = Certificate::parse(&certificate).unwrap().signed.len();
        certificate[4 + at.index(signed)] ^= 1 << bit;
        certify_ek(&ek, &certificate, &[], &trust(&anchors)).unwrap_err();
    }

    #[test]
    fn bytes_of_any_kind_are_no_certificate(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        let mut anchors = TrustAnchors::default();
        let _ = anchors.add(&bytes);
        let ek = public("boots/uki/ek.pub");
        let sent = [bytes.clone()];
        certify_ek(&ek, &bytes, &sent, &trust(&anchors)).unwrap_err();
    }
}

#[test]
fn an_ecc_ek_is_certified() {
    let der = normalise_ek_certificate(&read("boots/uki/nv-0x1c00016.bin"))
        .unwrap()
        .unwrap();
    let anchors = anchors(&[&pem("boots/uki/issuercert.pem")]);
    let certificate = Certificate::parse(&der).unwrap();
    let KeyNumbers::Ecc(_, point) = certificate.key().unwrap() else {
        panic!("not an ECC key");
    };
    let mut tpmt = hex::decode("0023000c000300f20000000601000043001000040010").unwrap();
    for coordinate in point.chunks(48) {
        tpmt.extend_from_slice(&[0, 48]);
        tpmt.extend_from_slice(coordinate);
    }
    let ek = Public::from_tpmt(&tpmt).unwrap();
    certify_ek(&ek, &der, &[], &trust(&anchors)).unwrap();
}
