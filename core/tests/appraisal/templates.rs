use proptest::prelude::*;
use troth_core::ima::{AnomalyKind, list_text, log_hash, unverified_entries, unverified_replay};
use troth_core::policy::RuntimePolicy;
use troth_core::tpm::{Digest, HashAlgorithm};

use super::{fixture, text_fixture};

/// An entry as the kernel holds it: the bytes of each field.
pub(crate) struct Measured {
    pub(crate) template: &'static str,
    pub(crate) fields: Vec<Vec<u8>>,
    pub(crate) violation: bool,
}

impl Measured {
    pub(crate) fn new(template: &'static str, fields: &[&[u8]]) -> Self {
        Self {
            template,
            fields: fields.iter().map(|field| field.to_vec()).collect(),
            violation: false,
        }
    }

    /// The fields, each behind its length.
    fn data(&self) -> Vec<u8> {
        let mut data = Vec::new();
        for field in &self.fields {
            data.extend(u32::try_from(field.len()).unwrap().to_le_bytes());
            data.extend(field);
        }
        data
    }

    fn hash(&self, algorithm: HashAlgorithm) -> Digest {
        if self.violation {
            Digest::zero(algorithm)
        } else {
            algorithm.digest(&[&self.data()])
        }
    }

    /// What PCR 10 of the bank is extended with.
    pub(crate) fn extended(&self, bank: HashAlgorithm) -> Digest {
        if self.violation {
            Digest::ones(bank)
        } else {
            bank.digest(&[&self.data()])
        }
    }

    /// As it stands in the binary file whose template hashes are of `algorithm`.
    fn binary(&self, algorithm: HashAlgorithm) -> Vec<u8> {
        let mut bytes = 10u32.to_le_bytes().to_vec();
        bytes.extend(self.hash(algorithm).as_bytes());
        bytes.extend(u32::try_from(self.template.len()).unwrap().to_le_bytes());
        bytes.extend(self.template.as_bytes());
        let data = self.data();
        bytes.extend(u32::try_from(data.len()).unwrap().to_le_bytes());
        bytes.extend(data);
        bytes
    }

    /// As it stands in the ASCII file; `fields` is what the kernel prints of them.
    pub(crate) fn ascii(&self, fields: &str) -> String {
        let hash = self.hash(HashAlgorithm::Sha1);
        format!("10 {hash} {} {fields}\n", self.template)
    }
}

/// A digest field.
pub(crate) fn digest(prefix: &str, digest: &[u8]) -> Vec<u8> {
    [prefix.as_bytes(), b":\0", digest].concat()
}

/// Entries of every template, and what the kernel prints of their fields.
fn every_template() -> Vec<(Measured, String)> {
    let file = digest("sha256", &[0xab; 32]);
    let (hex, signature) = ("ab".repeat(32), [0x03, 0x02, 0x04, 0xff]);
    let ng = format!("sha256:{hex}");
    let entry = |template, fields: &[&[u8]], text: String| (Measured::new(template, fields), text);
    vec![
        entry("ima-ng", &[&file, b"/bin/a\0"], format!("{ng} /bin/a")),
        entry(
            "ima-ngv2",
            &[&digest("ima:sha256", &[0xab; 32]), b"/bin/b\0"],
            format!("ima:{ng} /bin/b"),
        ),
        entry(
            "ima-ngv2",
            &[&digest("verity:sha256", &[0xab; 32]), b"/bin/c\0"],
            format!("verity:{ng} /bin/c"),
        ),
        entry(
            "ima-sig",
            &[&file, b"/bin/d\0", &[]],
            format!("{ng} /bin/d "),
        ),
        entry(
            "ima-sig",
            &[&file, b"/bin/e\0", &signature],
            format!("{ng} /bin/e 030204ff"),
        ),
        entry(
            "ima-sigv2",
            &[&digest("verity:sha512", &[1; 64]), b"/bin/f\0", &signature],
            format!("verity:sha512:{} /bin/f 030204ff", "01".repeat(64)),
        ),
        entry(
            "ima-buf",
            &[&file, b"kernel_info\0", b"data"],
            format!("{ng} kernel_info 64617461"),
        ),
        entry(
            "ima-modsig",
            &[
                &file,
                b"/m.ko\0",
                &signature,
                &digest("sha1", &[7; 20]),
                b"sig",
            ],
            format!("{ng} /m.ko 030204ff sha1:{} 736967", "07".repeat(20)),
        ),
        entry(
            "ima-modsig",
            &[&file, b"/n.ko\0", &[], &[], &[]],
            format!("{ng} /n.ko   "),
        ),
        entry(
            "evm-sig",
            &[
                &file,
                b"/bin/g\0",
                &signature,
                b"security.ima|security.capability\0",
                &[4, 0, 0, 0, 2, 0, 0, 0],
                &[1, 2, 3, 4, 5, 6],
                &1000u32.to_le_bytes(),
                &4_294_967_294u32.to_le_bytes(),
                &0o100_755u16.to_le_bytes(),
            ],
            format!(
                "{ng} /bin/g 030204ff security.ima|security.capability 0400000002000000 \
                 010203040506 1000 4294967294 33261"
            ),
        ),
        entry(
            "evm-sig",
            &[&file, b"/bin/h\0", &[], &[], &[], &[], &[], &[], &[]],
            format!("{ng} /bin/h       "),
        ),
        entry(
            "d-ng|n-ng|sig",
            &[&file, b"/bin/i\0", &[]],
            format!("{ng} /bin/i "),
        ),
    ]
}

/// PCR 10 after `entries`.
fn replayed(entries: &[Measured]) -> Digest {
    let bank = HashAlgorithm::Sha256;
    entries.iter().fold(Digest::zero(bank), |pcr, entry| {
        pcr.extend(bank, entry.extended(bank).as_bytes())
    })
}

fn names(list: &str) -> Vec<(u64, String)> {
    unverified_entries(list, 0, HashAlgorithm::Sha1)
        .map(Result::unwrap)
        .map(|entry| (entry.index, entry.name.to_owned()))
        .collect()
}

#[test]
fn binary_and_ascii_lists_of_a_boot_are_the_same() {
    for boot in ["grub", "uki"] {
        for (suffix, hash) in [
            ("", HashAlgorithm::Sha1),
            ("_sha256", HashAlgorithm::Sha256),
        ] {
            let file = |form| format!("boots/{boot}/ima-{form}_runtime_measurements{suffix}");
            let binary = fixture(&file("binary"));
            let list = list_text(&binary).unwrap();
            assert_eq!(list, text_fixture(&file("ascii")), "{boot}{suffix}");
            assert_eq!(log_hash(&list), hash);
        }
    }
}

#[test]
fn every_template_has_the_kernels_fields() {
    let entries = every_template();
    let ascii: String = entries
        .iter()
        .map(|(entry, text)| entry.ascii(text))
        .collect();
    let (entries, _): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
    let (pcr, anomalies) = unverified_replay(&ascii, HashAlgorithm::Sha1, HashAlgorithm::Sha256);
    assert_eq!(
        (anomalies.total, pcr),
        (0, replayed(&entries)),
        "{anomalies:?}"
    );
    for hash in [
        HashAlgorithm::Sha1,
        HashAlgorithm::Sha256,
        HashAlgorithm::Sha512,
    ] {
        let binary: Vec<_> = entries
            .iter()
            .flat_map(|entry| entry.binary(hash))
            .collect();
        let text = list_text(&binary).unwrap();
        let replay = unverified_replay(&text, log_hash(&text), HashAlgorithm::Sha256);
        assert_eq!((replay.1.total, replay.0), (0, pcr), "{hash}");
        assert_eq!(names(&text), names(&ascii));
        if hash == HashAlgorithm::Sha1 {
            assert_eq!(text, ascii);
        }
    }
    let all = unverified_entries(&ascii, 0, HashAlgorithm::Sha1).map(Result::unwrap);
    let all: Vec<_> = all
        .map(|entry| (entry.name, entry.verity, entry.signature()))
        .collect();
    let signature = Some(vec![3, 2, 4, 0xff]);
    assert_eq!(all[2], ("/bin/c", true, None));
    assert_eq!(all[5], ("/bin/f", true, signature.clone()));
    assert_eq!(all[7], ("/m.ko", false, signature));
}

#[test]
fn the_first_template_has_neither_lengths_nor_a_long_name() {
    // Digest and name as the hash covers them: the name in 256 bytes.
    let data = [&[0xcc; 20][..], b"/usr/lib/legacy.so", &[0; 238]].concat();
    let hash = HashAlgorithm::Sha1.digest(&[&data]);
    let mut binary = 10u32.to_le_bytes().to_vec();
    binary.extend(hash.as_bytes());
    binary.extend(3u32.to_le_bytes());
    binary.extend(b"ima");
    binary.extend([0xcc; 20]);
    binary.extend(18u32.to_le_bytes());
    binary.extend(b"/usr/lib/legacy.so");
    let text = list_text(&binary).unwrap();
    let expected = format!("10 {hash} ima {} /usr/lib/legacy.so\n", "cc".repeat(20));
    assert_eq!(text, expected);
    let (_, anomalies) = unverified_replay(&text, HashAlgorithm::Sha1, HashAlgorithm::Sha256);
    assert_eq!(anomalies.total, 0);
}

#[test]
fn names_may_have_line_feeds_control_characters_and_any_bytes() {
    let file = digest("sha256", &[0xab; 32]);
    let odd: [&[u8]; 9] = [
        b"/tmp/a\nb",
        b"/tmp/\n\n\n",
        b"\n",
        b"/tmp/x\ny z 10 sha1",
        b"/tmp/\x01\x1b[2J\r\t\"\\\x7f",
        "/tmp/é€😀\u{85}\u{2028}".as_bytes(),
        b"/tmp/\xff\xfe\x80 latin-1 \xe9",
        b"/tmp/\xff\n\xff",
        "/tmp/\u{10ffe9}".as_bytes(),
    ];
    let name = |name: &[u8]| [name, b"\0"].concat();
    let mut entries = Vec::new();
    for odd in odd {
        entries.push(Measured::new("ima-sig", &[&file, &name(odd), &[]]));
        entries.push(Measured::new("ima-ng", &[&file, &name(odd)]));
        entries.push(Measured {
            violation: true,
            ..Measured::new("ima-ng", &[&file, &name(odd)])
        });
    }
    let binary: Vec<_> = entries
        .iter()
        .flat_map(|entry| entry.binary(HashAlgorithm::Sha1))
        .collect();
    let text = list_text(&binary).unwrap();
    let (pcr, anomalies) = unverified_replay(&text, HashAlgorithm::Sha1, HashAlgorithm::Sha256);
    assert_eq!(
        (anomalies.total, pcr),
        (0, replayed(&entries)),
        "{anomalies:?}"
    );
    let found = names(&text);
    assert_eq!(found.len(), entries.len());
    assert_eq!(found[0], (0, "/tmp/a\nb".to_owned()));
    assert_eq!(found[1].0, 2, "agents count lines");
    assert_eq!(found[24].1, "/tmp/\u{10ffe9}", "text stays text");
    // The ASCII file has the bytes themselves.
    let ascii = text.chars().fold(Vec::new(), |mut bytes, c| {
        match u32::from(c).checked_sub(0x10_ff00).map(u8::try_from) {
            Some(Ok(byte)) if c != '\u{10ffe9}' => bytes.push(byte),
            _ => bytes.extend(c.encode_utf8(&mut [0; 4]).as_bytes()),
        }
        bytes
    });
    assert_eq!(list_text(&ascii).unwrap(), text);
    // A policy made of it has these names, and nothing but them.
    let json = RuntimePolicy::json_from_ima_list(&text, 0).unwrap();
    let policy = RuntimePolicy::compile(json.as_bytes()).unwrap();
    assert_eq!(policy.digests().len(), odd.len());
    assert!(
        found
            .iter()
            .all(|(_, name)| policy.digests().get(name).is_some())
    );
}

#[test]
fn lines_are_not_joined_to_what_the_kernel_did_not_write() {
    let file = digest("sha256", &[0xab; 32]);
    let entry = |name: &[u8]| Measured::new("ima-ng", &[&file, name]);
    let text = format!("sha256:{}", "ab".repeat(32));
    let (first, second) = (entry(b"/a\0"), entry(b"/b\0"));
    let list = first.ascii(&format!("{text} /a")) + "b c\n" + &second.ascii(&format!("{text} /b"));
    let (pcr, anomalies) = unverified_replay(&list, HashAlgorithm::Sha1, HashAlgorithm::Sha256);
    assert_eq!(pcr, replayed(&[first, second]));
    let [anomaly] = &anomalies.first[..] else {
        panic!("{anomalies:?}")
    };
    assert_eq!(anomaly.entry, 1);
    assert!(matches!(anomaly.kind, AnomalyKind::Unparsable(_)));
}

#[test]
fn a_binary_list_that_is_none_says_where() {
    let entry = Measured::new("ima-ng", &[&digest("sha1", &[1; 20]), b"/a\0"]);
    let good = entry.binary(HashAlgorithm::Sha1);
    let two = [good.clone(), good.clone()].concat();
    for cut in 1..good.len() {
        let error = list_text(&two[..good.len() + cut]).unwrap_err();
        assert_eq!(error.entry, 1, "{error}");
        assert!(error.offset <= good.len() + cut);
    }
    for (at, byte, reason) in [
        (good.len() + 28, b'x', "unknown template"),
        (good.len() + 37, 0xff, "length of the fields"),
        (good.len() + 41, 0xff, "a field is longer than any"),
        (good.len() + 41 + 4, 0, "a field is not of its kind"),
        (two.len() - 1, b'x', "a field is not of its kind"),
    ] {
        let mut bad = two.clone();
        bad[at] = byte;
        if reason.contains("length") || reason.contains("longer") {
            bad[at + 3] = byte;
        }
        let error = list_text(&bad).unwrap_err();
        assert!(error.to_string().contains(reason), "{reason}: {error}");
        assert_eq!(error.entry, 1);
    }
    assert!(
        list_text(b"\x0a\0\0\0")
            .unwrap_err()
            .to_string()
            .contains("no template")
    );
    assert_eq!(list_text(b"").unwrap(), "");
}

proptest! {
    #[test]
    fn any_name_in_any_template_is_replayed(
        picks in proptest::collection::vec((0usize..12, proptest::collection::vec(1u8..=255, 0..40)), 1..12)
    ) {
        let mut entries = Vec::new();
        for (pick, mut name) in picks {
            let (mut entry, _) = every_template().swap_remove(pick);
            // As the kernel does. A line that looks like the beginning of an entry is refused.
            name.iter_mut().filter(|byte| **byte == b' ').for_each(|byte| *byte = b'_');
            entry.fields[1] = [&name[..], b"\0"].concat();
            entries.push(entry);
        }
        let binary: Vec<_> =
            entries.iter().flat_map(|entry| entry.binary(HashAlgorithm::Sha256)).collect();
        let text = list_text(&binary).unwrap();
        let hash = HashAlgorithm::Sha256;
        let (pcr, anomalies) = unverified_replay(&text, hash, hash);
        prop_assert_eq!(pcr, replayed(&entries), "{:?}", anomalies);
        prop_assert_eq!(anomalies.total, 0);
    }

    #[test]
    fn any_bytes_are_text_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(text) = list_text(&bytes) {
            let _ = unverified_replay(&text, log_hash(&text), HashAlgorithm::Sha256);
        }
    }
}
