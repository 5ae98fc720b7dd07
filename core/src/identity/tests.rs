use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::*;
use crate::tpm::Public;

const FIXTURES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/fixtures");

fn read(path: &str) -> Vec<u8> {
    std::fs::read(format!("{FIXTURES}/{path}")).unwrap()
}

fn vectors() -> Value {
    serde_json::from_slice(&read("vectors/agent-registrar.json")).unwrap()
}

fn field<'a>(value: &'a Value, pointer: &str) -> &'a str {
    value.pointer(pointer).and_then(Value::as_str).unwrap()
}

fn public(base64: &str) -> Public {
    Public::from_tpm2b(&STANDARD.decode(base64).unwrap()).unwrap()
}

/// EK and AK of every kind that Keylime agents register.
fn live_keys() -> Vec<(Public, Public)> {
    let file = vectors();
    let cases = file["other_key_types"]["cases"].as_array().unwrap();
    cases
        .iter()
        .chain([&file["registration"]["request"]])
        .map(|keys| {
            (
                public(field(keys, "/ek_tpm")),
                public(field(keys, "/aik_tpm")),
            )
        })
        .collect()
}

/// The same key with other attributes.
fn with_attributes(key: &Public, attributes: u32) -> Public {
    let mut tpmt = key.as_tpmt().to_vec();
    tpmt[4..8].copy_from_slice(&attributes.to_be_bytes());
    Public::from_tpmt(&tpmt).unwrap()
}

#[test]
fn agent_ids_are_safe_in_paths_and_logs() {
    for id in [
        "d432fbb3-d2f1-4a97-9ef7-75bd81c00000",
        "a",
        "host.example_1",
        &"f".repeat(80),
    ] {
        assert_eq!(AgentId::new(id).unwrap().as_str(), id);
    }
    for id in [
        "",
        ".",
        "..",
        ".x",
        "a/b",
        "a b",
        "a\n",
        "ä",
        "a%2f",
        &"f".repeat(81),
    ] {
        AgentId::new(id).unwrap_err();
        assert!(serde_json::from_value::<AgentId>(Value::from(id)).is_err());
    }
    let Err(IdentityError::AgentId(text)) = AgentId::new(&"x/".repeat(1000)) else {
        panic!()
    };
    assert_eq!(text.len(), 80);
}

#[test]
fn hash_ek_is_keylimes() {
    let file = vectors();
    let ek = public(field(&file, "/registration/request/ek_tpm"));
    assert_eq!(
        ek.name().to_string(),
        field(&file, "/registration/ek_name_hex")
    );
    assert_eq!(ek.to_spki_pem(), field(&file, "/hash_ek/ek_pem"));
    assert_eq!(
        AgentId::hash_ek(&ek).as_str(),
        field(&file, "/hash_ek/uuid")
    );
}

#[test]
fn activation_tags_are_keylimes() {
    let file = vectors();
    let id = AgentId::new(field(&file, "/agent_id")).unwrap();
    let vector = &file["make_credential"];
    let challenge = field(vector, "/challenge_ascii").as_bytes();
    let tag = field(vector, "/activate_auth_tag_hex");
    assert_eq!(activation_tag(challenge, &id), tag);

    let mut live = vec![(
        id,
        field(&file, "/registration/challenge_key_b64"),
        field(&file, "/registration/activate_auth_tag_hex"),
    )];
    for case in file["other_key_types"]["cases"].as_array().unwrap() {
        let id = AgentId::new(field(case, "/agent_id")).unwrap();
        live.push((id, field(case, "/challenge_text"), field(case, "/auth_tag")));
    }
    for (id, key, tag) in live {
        let challenge = STANDARD.decode(key).unwrap();
        assert_eq!(activation_tag(&challenge, &id), tag);
        assert!(activation_tag_matches(&challenge, &id, tag));
        assert!(activation_tag_matches(&challenge, &id, &tag.to_uppercase()));
        let other = AgentId::new("other").unwrap();
        assert!(!activation_tag_matches(&challenge, &other, tag));
        assert!(!activation_tag_matches(&challenge[1..], &id, tag));
        for wrong in [
            "",
            "00",
            &tag[2..],
            &format!("{tag}00"),
            &"0".repeat(96),
            &tag[1..],
        ] {
            assert!(!activation_tag_matches(&challenge, &id, wrong));
        }
    }
}

#[test]
fn live_keys_of_every_kind_are_accepted() {
    let mut keys = live_keys();
    for boot in ["uki", "grub"] {
        let file =
            |name: &str| Public::from_tpm2b(&read(&format!("boots/{boot}/{name}.pub"))).unwrap();
        keys.push((file("ek"), file("ak")));
        keys.push((file("ek-ecc"), file("ak-ecc")));
    }
    for (ek, ak) in keys {
        check_ek(&ek).unwrap();
        check_ak(&ak).unwrap();
        check_distinct(&ek, &ak).unwrap();
        check_ak(&ek).unwrap_err();
        check_ek(&ak).unwrap_err();
    }
}

#[test]
fn an_ak_that_lets_the_host_forge_quotes_is_refused() {
    for (_, ak) in live_keys() {
        let attributes = ak.attributes().0;
        assert_eq!(attributes, 0x0005_0072);
        for (bit, name) in [
            (1, "fixedTPM"),
            (4, "fixedParent"),
            (5, "sensitiveDataOrigin"),
            (16, "restricted"),
            (18, "sign"),
        ] {
            let error = check_ak(&with_attributes(&ak, attributes & !(1 << bit))).unwrap_err();
            assert_eq!(
                error.to_string(),
                format!("AK has the wrong object attributes: missing [{name}], must not have []")
            );
        }
        let error = check_ak(&with_attributes(&ak, attributes | 1 << 17)).unwrap_err();
        assert!(
            error.to_string().ends_with("must not have [decrypt]"),
            "{error}"
        );
        // userWithAuth, noDA: how the key may be used, not what it proves.
        check_ak(&with_attributes(&ak, attributes & !(1 << 6) | 1 << 10)).unwrap();
    }
}

#[test]
fn an_ek_off_the_templates_is_refused() {
    for (ek, _) in live_keys() {
        let attributes = ek.attributes().0;
        for bit in [1, 4, 5, 7, 16, 17] {
            check_ek(&with_attributes(&ek, attributes & !(1 << bit))).unwrap_err();
        }
        check_ek(&with_attributes(&ek, attributes | 1 << 18)).unwrap_err();
        check_ek(&with_attributes(&ek, attributes | 1 << 6)).unwrap();
    }
}

#[test]
fn weak_names_are_refused() {
    let (_, ak) = live_keys().remove(0);
    let mut tpmt = ak.as_tpmt().to_vec();
    tpmt[2..4].copy_from_slice(&[0, 4]);
    let weak = Public::from_tpmt(&tpmt).unwrap();
    assert_eq!(check_ak(&weak), Err(IdentityError::WeakName { key: "AK" }));
}

#[test]
fn one_key_under_two_public_areas_is_one_key() {
    let (ek, ak) = live_keys().remove(0);
    assert_eq!(check_distinct(&ek, &ek), Err(IdentityError::SameKey));
    let disguised = with_attributes(&ak, 0x0003_00b2);
    assert_eq!(check_distinct(&disguised, &ak), Err(IdentityError::SameKey));
}

#[test]
fn every_form_of_an_ek_certificate_becomes_its_own_bytes() {
    let der = read("boots/uki/ek-cert.der");
    let normalised = |bytes: &[u8]| normalise_ek_certificate(bytes).unwrap().unwrap();
    assert_eq!(normalised(&der), der);
    assert_eq!(normalised(&[&der[..], &[0; 100]].concat()), der);
    assert_eq!(normalised(&[&der[..], &[0xff; 100]].concat()), der);
    assert_eq!(normalised(&read("boots/uki/nv-0x1c00002.bin")), der);

    let length = u16::try_from(der.len()).unwrap().to_be_bytes();
    let wrapped = [&[0x04, 0x82], &length[..], &der, &[0; 7]].concat();
    assert_eq!(normalised(&wrapped), der);
    let header = [&[0x10, 0x01, 0x00], &length[..], &der, &[0xff; 9]].concat();
    assert_eq!(normalised(&header), der);

    let base64 = STANDARD.encode(&der);
    assert_eq!(normalised(base64.as_bytes()), der);
    assert_eq!(normalised(STANDARD.encode(&wrapped).as_bytes()), der);
    let pem = |base64: &str| {
        format!("-----BEGIN CERTIFICATE-----\r\n{base64}\r\n-----END CERTIFICATE-----\r\n")
    };
    let chain = format!("\n{}{}", pem(&base64), pem("AAAA"));
    assert_eq!(normalised(chain.as_bytes()), der);
}

#[test]
fn no_certificate_is_no_error() {
    for none in [&b""[..], b" \n", &[0xff; 1600], &[0; 1600]] {
        assert_eq!(normalise_ek_certificate(none), Ok(None));
    }
}

#[test]
fn what_is_no_certificate_is_refused() {
    let der = read("boots/uki/ek-cert.der");
    for bad in [
        &b"hello world"[..],
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n",
        &[0x30, 0x80, 0, 0],
        &[0x30, 0x84, 0, 0, 0, 1, 0],
        &[0x04, 0x02, 0x04, 0x00],
        &[0x30],
        &[0x10, 0x01, 0x00, 0x00],
        &vec![0x30; 64 * 1024 + 1],
    ] {
        normalise_ek_certificate(bad).unwrap_err();
    }
    for end in 1..der.len() {
        normalise_ek_certificate(&der[..end]).unwrap_err();
        certificate_matches_key(&der[..end], &live_keys()[0].0).unwrap_err();
    }
}

#[test]
fn certificates_belong_to_their_keys() {
    let file = vectors();
    let request = &file["registration"]["request"];
    let wire = normalise_ek_certificate(field(request, "/ekcert").as_bytes());
    let wire = wire.unwrap().unwrap();
    let ek = public(field(request, "/ek_tpm"));
    assert_eq!(certificate_matches_key(&wire, &ek), Ok(true));
    for boot in ["uki", "grub"] {
        let file = |name: &str| read(&format!("boots/{boot}/{name}"));
        let own = Public::from_tpm2b(&file("ek.pub")).unwrap();
        let own_ecc = Public::from_tpm2b(&file("ek-ecc.pub")).unwrap();
        let rsa = file("ek-cert.der");
        let ecc = normalise_ek_certificate(&file("nv-0x1c00016.bin"))
            .unwrap()
            .unwrap();
        assert_eq!(certificate_matches_key(&rsa, &own), Ok(true));
        assert_eq!(certificate_matches_key(&rsa, &own_ecc), Ok(false));
        assert_eq!(certificate_matches_key(&rsa, &ek), Ok(false));
        assert_eq!(certificate_matches_key(&wire, &own), Ok(false));
        assert_eq!(certificate_matches_key(&ecc, &own), Ok(false));
    }
}

#[test]
fn an_agent_that_sends_the_certificate_alone_has_the_default_ek() {
    let file = vectors();
    let request = &file["registration"]["request"];
    let wire = normalise_ek_certificate(field(request, "/ekcert").as_bytes());
    let wire = wire.unwrap().unwrap();
    let ek = default_ek_of_certificate(&wire).unwrap();
    assert_eq!(ek, Some(public(field(request, "/ek_tpm"))));
    let ecc = normalise_ek_certificate(&read("boots/uki/nv-0x1c00016.bin"));
    assert_eq!(default_ek_of_certificate(&ecc.unwrap().unwrap()), Ok(None));
}

#[test]
fn an_ecc_certificate_belongs_to_its_key() {
    let bytes = read("boots/uki/nv-0x1c00016.bin");
    let der = normalise_ek_certificate(&bytes).unwrap().unwrap();
    // After the OBJECT IDENTIFIER of P-384: BIT STRING, 98 bytes, no unused bits, 04.
    let head = [0x2b, 0x81, 0x04, 0x00, 0x22, 0x03, 0x62, 0x00, 0x04];
    let at = der
        .windows(head.len())
        .position(|window| window == head)
        .unwrap()
        + head.len();
    let (x, y) = der[at..at + 96].split_at(48);
    // TPMT_PUBLIC by the P-384 template, without a policy.
    let mut tpmt = hex::decode("0023000c000300f20000000601000043001000040010").unwrap();
    for coordinate in [x, y] {
        tpmt.extend_from_slice(&[0, 48]);
        tpmt.extend_from_slice(coordinate);
    }
    let ek = Public::from_tpmt(&tpmt).unwrap();
    assert_eq!(certificate_matches_key(&der, &ek), Ok(true));
    *tpmt.last_mut().unwrap() ^= 1;
    let other = Public::from_tpmt(&tpmt).unwrap();
    assert_eq!(certificate_matches_key(&der, &other), Ok(false));
}

#[test]
fn an_oaep_key_identifier_and_long_lengths_are_tolerated() {
    let der = read("boots/uki/ek-cert.der");
    let ek = Public::from_tpm2b(&read("boots/uki/ek.pub")).unwrap();
    let oid = [0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
    let at = der
        .windows(oid.len())
        .position(|window| window == oid)
        .unwrap();
    let mut oaep = der.clone();
    oaep[at + oid.len() - 1] = 0x07;
    assert_eq!(certificate_matches_key(&oaep, &ek), Ok(true));
    // The outer length in three octets where two would do.
    let long = [&[0x30, 0x83, 0x00], &der[2..]].concat();
    assert_eq!(normalise_ek_certificate(&long), Ok(Some(long.clone())));
    assert_eq!(certificate_matches_key(&long, &ek), Ok(true));
    let mut other = der.clone();
    other[at + oid.len() - 1] = 0x05;
    certificate_matches_key(&other, &ek).unwrap_err();
}
