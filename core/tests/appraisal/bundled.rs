use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use troth_core::appraise::{AcceptedAlgorithms, ImaRules, NodeState, Policies, Tomtou, Verdict};
use troth_core::bundle::{
    Bundle, BundleError, Chain, Criteria, Head, Link, Outcome, PolicyReference, Word, policy_digest,
};
use troth_core::eventlog::{Event, EventLog, EventType};
use troth_core::identity::AgentId;
use troth_core::ima;
use troth_core::policy::{BootEngine, BootPolicy, RuntimePolicy, TpmPolicy};
use troth_core::tpm::{AttestationKey, HashAlgorithm, PcrMask, PcrValues, Public};
use troth_core::wire::{Envelope, QuoteResponse};

use super::tpm::{Tpm, mask, pcrread};
use super::{fixture, text_fixture};

const NK: &str = "-----BEGIN PUBLIC KEY-----\nthe agent's\n-----END PUBLIC KEY-----\n";

/// A node after the captured boot, what judges it, and the bundles that its verifier makes.
struct Node {
    tpm: Tpm,
    list: Vec<String>,
    log: Vec<u8>,
    runtime_text: String,
    runtime: RuntimePolicy,
    boot: BootPolicy,
    criteria: Criteria,
    mask: PcrMask,
    state: NodeState,
    asked: u32,
}

impl Node {
    /// With the first `entries` of the captured list.
    fn new(entries: usize) -> Self {
        let mut tpm = Tpm::new(HashAlgorithm::Sha256);
        for (pcr, value) in pcrread("uki", HashAlgorithm::Sha256)
            .iter()
            .filter(|(pcr, _)| *pcr < 16)
        {
            tpm.pcrs.set(pcr, *value);
        }
        tpm.bind(NK);
        let list = text_fixture("boots/uki/ima-ascii_runtime_measurements");
        let runtime_text = RuntimePolicy::json_from_ima_list(&list, 0).unwrap();
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        let mut node = Self {
            tpm,
            list: Vec::new(),
            log: fixture("boots/uki/binary_bios_measurements"),
            runtime: RuntimePolicy::compile_text(runtime_text.as_bytes()).unwrap(),
            criteria: Criteria {
                accept: AcceptedAlgorithms {
                    hash: words(&["sha256"]),
                    encryption: words(&["ecc"]),
                    signing: words(&["ecdsa"]),
                },
                tpm_policy: r#"{"mask": "0xffff"}"#.to_owned(),
                runtime_policy: Some(PolicyReference {
                    name: "base".to_owned(),
                    sha256: policy_digest(runtime_text.as_bytes()),
                }),
                boot_policy: Some(PolicyReference {
                    name: "replay".to_owned(),
                    sha256: policy_digest(b"{}"),
                }),
                boot_engine: BootEngine::Example,
                tomtou: Tomtou::Ignore,
                ima_keys: None,
            },
            boot: BootPolicy::Replay,
            mask: mask(0..16),
            runtime_text,
            state: NodeState::default(),
            asked: 0,
        };
        list.split_inclusive('\n')
            .take(entries)
            .for_each(|line| node.measure(line));
        node
    }

    /// The kernel writes a line of the list.
    fn measure(&mut self, line: &str) {
        self.list.push(line.to_owned());
        let (bank, log_hash) = (HashAlgorithm::Sha256, HashAlgorithm::Sha1);
        let (value, _) = ima::unverified_replay(&self.list.concat(), log_hash, bank);
        self.tpm.pcrs.set(10, value);
    }

    fn policies<'a>(&'a self, tpm: &'a TpmPolicy) -> Policies<'a> {
        Policies {
            tpm,
            runtime: Some(&self.runtime),
            boot: &self.boot,
            accept: &self.criteria.accept,
            ima: ImaRules {
                tomtou: self.criteria.tomtou,
                keys: None,
            },
        }
    }

    /// Asks, judges, and keeps the bundle.
    fn attest(&mut self) -> Vec<u8> {
        self.asked += 1;
        let nonce = format!("nonce-{:014}", self.asked);
        let from = usize::try_from(self.state.ima.next_entry).unwrap();
        let from = if from <= self.list.len() { from } else { 0 };
        let evidence = QuoteResponse {
            quote: self.tpm.quote_string(&nonce, self.mask.with(16)),
            hash_alg: "sha256".to_owned(),
            enc_alg: "ecc256".to_owned(),
            sign_alg: "ecdsa".to_owned(),
            pubkey: Some(NK.to_owned()),
            ima_measurement_list: Some(self.list[from..].concat()),
            ima_measurement_list_entry: Some(u64::try_from(from).unwrap()),
            mb_measurement_list: Some(STANDARD.encode(&self.log)),
            userspace_measurement_list: None,
            boottime: Some(u64::from(self.tpm.reset_count)),
        };
        let answer = body(evidence);
        let mut bundle = Bundle {
            head: Head {
                maker: "test".to_owned(),
                node: AgentId::new("node").unwrap(),
                time_ms: u64::from(self.asked),
                sequence: Some(u64::from(self.asked)),
                nonce,
                mask: self.mask,
                ima_entry: self.state.ima.next_entry,
                ak: self.tpm.ak_public().to_tpm2b(),
                state: self.state.clone(),
                criteria: Some(self.criteria.clone()),
            },
            answer: &answer,
            outcome: None,
            runtime_policy: Some(self.runtime_text.as_bytes()),
            boot_policy: Some(b"{}"),
        };
        let tpm = TpmPolicy::parse(&self.criteria.tpm_policy).unwrap();
        let appraisal = bundle.appraise(&self.tpm.ak(), &bundle.head.nonce, &self.policies(&tpm));
        self.state = appraisal.state.clone();
        let outcome = Outcome::new(&appraisal).canonical().unwrap();
        bundle.outcome = Some(&outcome);
        bundle.to_bytes().unwrap()
    }

    /// Judges a bundle as somebody does who has nothing but it and the policies.
    fn judge(&self, bundle: &Bundle<'_>) -> Outcome {
        let tpm = TpmPolicy::parse(&self.criteria.tpm_policy).unwrap();
        let ak = bundle.attestation_key().unwrap();
        let appraisal = bundle.appraise(&ak, &bundle.head.nonce, &self.policies(&tpm));
        Outcome::new(&appraisal)
    }

    fn judge_bytes(&self, bytes: &[u8]) -> Outcome {
        self.judge(&Bundle::parse(bytes).unwrap())
    }
}

/// What an agent sends.
fn body(evidence: QuoteResponse) -> Vec<u8> {
    let envelope = Envelope {
        code: 200,
        status: "Success".to_owned(),
        results: Some(evidence),
    };
    serde_json::to_vec(&envelope).unwrap()
}

#[test]
fn a_kept_answer_is_judged_alike_byte_for_byte() {
    let mut node = Node::new(40);
    let mut kept = vec![node.attest()];
    let full = text_fixture("boots/uki/ima-ascii_runtime_measurements");
    for line in full.lines().skip(40).take(3) {
        node.measure(&format!("{line}\n"));
    }
    kept.push(node.attest());
    let stranger = "10 0000000000000000000000000000000000000000 ima-ng sha256:00 /tmp/x\n";
    node.list.push(stranger.to_owned());
    node.tpm.extend(10, &[1; 32]);
    kept.push(node.attest());
    let words: Vec<_> = kept
        .iter()
        .map(|bytes| {
            let bundle = Bundle::parse(bytes).unwrap();
            let outcome = node.judge(&bundle);
            assert_eq!(
                String::from_utf8(outcome.canonical().unwrap()).unwrap(),
                std::str::from_utf8(bundle.outcome.unwrap()).unwrap()
            );
            assert_eq!(bundle.recorded().unwrap(), Some(outcome.clone()));
            outcome.verdict
        })
        .collect();
    assert_eq!(words, [Word::Trusted, Word::Trusted, Word::Failed]);
}

#[test]
fn a_row_of_bundles_is_continued_from_what_was_judged_before() {
    let mut node = Node::new(10);
    let full = text_fixture("boots/uki/ima-ascii_runtime_measurements");
    let mut lines = full.split_inclusive('\n').skip(10);
    let mut kept = Vec::new();
    for _ in 0..4 {
        kept.push(node.attest());
        node.measure(lines.next().unwrap());
    }
    let links = |row: &[usize]| {
        let mut chain = Chain::default();
        let tpm = TpmPolicy::parse(&node.criteria.tpm_policy).unwrap();
        let mut links = Vec::new();
        for index in row {
            let bundle = Bundle::parse(&kept[*index]).unwrap();
            links.push(chain.link(&bundle.head.state));
            let appraisal =
                bundle.appraise(&node.tpm.ak(), &bundle.head.nonce, &node.policies(&tpm));
            assert!(matches!(appraisal.verdict, Verdict::Trusted(_)));
            chain.push(&bundle.head, &appraisal);
        }
        links
    };
    use Link::{Claimed, Continued, Start};
    assert_eq!(
        links(&[0, 1, 2, 3]),
        [Start, Continued, Continued, Continued]
    );
    // Without one of them, what the next continues from is its own word.
    assert_eq!(links(&[0, 2, 3]), [Start, Claimed, Continued]);
    // The verifier was killed before it had stored the second state.
    assert_eq!(links(&[0, 1, 1]), [Start, Continued, Continued]);
}

#[test]
fn what_no_quote_vouches_for_is_not_carried_on() {
    let mut node = Node::new(10);
    node.attest();
    let kept = node.attest();
    let bundle = Bundle::parse(&kept).unwrap();
    let tpm = TpmPolicy::parse(&node.criteria.tpm_policy).unwrap();
    let ak = node.tpm.ak();
    let unusable = b"{}".as_slice();
    type Change<'c> = &'c dyn Fn(&mut Bundle<'_>);
    let changes: [(&str, Change<'_>); 3] = [
        ("no evidence", &|bundle| bundle.answer = unusable),
        ("another nonce", &|bundle| bundle.head.nonce.push('x')),
        ("a clock that stands still", &|bundle| {
            let clock = bundle
                .appraise(&ak, &bundle.head.nonce, &node.policies(&tpm))
                .state
                .clock;
            bundle.head.state.clock = clock;
        }),
    ];
    for (what, change) in changes {
        let mut forged = bundle.clone();
        change(&mut forged);
        let mut chain = Chain::default();
        assert_eq!(chain.link(&forged.head.state), Link::Claimed, "{what}");
        let appraisal = forged.appraise(&ak, &forged.head.nonce, &node.policies(&tpm));
        assert!(matches!(appraisal.verdict, Verdict::Failed(_)), "{what}");
        chain.push(&forged.head, &appraisal);
        let state = &forged.head.state;
        assert_eq!(
            chain.link(state),
            Link::Claimed,
            "{what}: it said so itself"
        );
    }
    // What it said itself was known before: so it stays.
    let mut chain = Chain::default();
    let first = bundle.appraise(&ak, &bundle.head.nonce, &node.policies(&tpm));
    chain.push(&bundle.head, &first);
    let mut late = bundle.clone();
    late.answer = unusable;
    late.head.state = first.state.clone();
    let failed = late.appraise(&ak, &late.head.nonce, &node.policies(&tpm));
    chain.push(&late.head, &failed);
    assert_eq!(chain.link(&failed.state), Link::Continued);
}

#[test]
fn a_quote_without_pcr_10_vouches_for_no_place_in_the_list() {
    let mut node = Node::new(10);
    node.attest();
    let claimed = node.state.clone();
    node.criteria.tpm_policy = r#"{"mask": "0xff"}"#.to_owned();
    node.boot = BootPolicy::None;
    node.mask = mask(0..8);
    let kept = node.attest();
    let bundle = Bundle::parse(&kept).unwrap();
    let tpm = TpmPolicy::parse(&node.criteria.tpm_policy).unwrap();
    let appraisal = bundle.appraise(&node.tpm.ak(), &bundle.head.nonce, &node.policies(&tpm));
    assert_eq!(appraisal.state.ima, claimed.ima, "nothing was said of it");
    assert_ne!(appraisal.state.clock, claimed.clock, "the quote is good");
    let mut chain = Chain::default();
    chain.push(&bundle.head, &appraisal);
    assert_eq!(chain.link(&appraisal.state), Link::Claimed);
}

#[test]
fn a_node_that_makes_its_own_bundle_is_judged_by_who_reads_it() {
    let mut node = Node::new(10);
    let kept = node.attest();
    let mut bundle = Bundle::parse(&kept).unwrap();
    bundle.head.criteria = None;
    bundle.head.sequence = None;
    bundle.outcome = None;
    bundle.runtime_policy = None;
    bundle.boot_policy = None;
    let bytes = bundle.to_bytes().unwrap();
    let text = String::from_utf8_lossy(&bytes);
    assert!(!text.contains("criteria") && !text.contains("outcome"));
    assert_eq!(node.judge_bytes(&bytes).verdict, Word::Trusted);
    assert_eq!(Bundle::parse(&bytes).unwrap().recorded().unwrap(), None);
    // Asked with another nonce than the quote has: it is not the answer to this question.
    let tpm = TpmPolicy::parse(&node.criteria.tpm_policy).unwrap();
    let appraisal = bundle.appraise(&node.tpm.ak(), "nonce-of-mine", &node.policies(&tpm));
    assert!(matches!(appraisal.verdict, Verdict::Failed(_)));
}

#[test]
fn a_bundle_whose_answer_was_written_first_is_the_same_but_for_spaces() {
    let mut node = Node::new(10);
    let kept = node.attest();
    let mut bundle = Bundle::parse(&kept).unwrap();
    (bundle.outcome, bundle.runtime_policy, bundle.boot_policy) = (None, None, None);
    let room = bundle.head.line_of_answer(0).unwrap();
    let mut bytes = bundle.head.line_of_answer(bundle.answer.len()).unwrap();
    assert_eq!(bytes.len(), room.len());
    bytes.extend_from_slice(bundle.answer);
    bytes.push(b'\n');
    assert_eq!(Bundle::parse(&bytes).unwrap(), bundle);
}

/// An answer with other evidence in it.
fn judge_changed(node: &Node, bundle: &Bundle<'_>, evidence: QuoteResponse) -> Word {
    let answer = body(evidence);
    let mut bundle = bundle.clone();
    bundle.answer = &answer;
    node.judge(&bundle).verdict
}

fn evidence_of(bundle: &Bundle<'_>) -> QuoteResponse {
    let answer: Envelope<QuoteResponse> = serde_json::from_slice(bundle.answer).unwrap();
    answer.results.unwrap()
}

#[test]
fn no_flipped_bit_of_the_quote_is_trusted() {
    let mut node = Node::new(3);
    node.boot = BootPolicy::None;
    let kept = node.attest();
    let bundle = Bundle::parse(&kept).unwrap();
    assert_eq!(node.judge(&bundle).verdict, Word::Trusted);
    let evidence = evidence_of(&bundle);
    let parts: Vec<_> = evidence.quote[1..]
        .split(':')
        .map(|part| STANDARD.decode(part).unwrap())
        .collect();
    assert_eq!(parts.len(), 3);
    for (part, bytes) in parts.iter().enumerate() {
        // The blob of PCR values is large and mostly empty: of each byte, one bit.
        let step = if part == 2 { 9 } else { 1 };
        for bit in (0..bytes.len() * 8).step_by(step) {
            let mut parts = parts.clone();
            parts[part][bit / 8] ^= 1 << (bit % 8);
            // Where the blob of PCR values has no value, nothing is read.
            let values = |blob: &[u8]| PcrValues::from_blob(blob).ok();
            let same = part == 2 && values(&parts[2]) == values(bytes);
            let texts: Vec<_> = parts.iter().map(|part| STANDARD.encode(part)).collect();
            let mut evidence = evidence.clone();
            evidence.quote = format!("r{}", texts.join(":"));
            let expected = if same { Word::Trusted } else { Word::Failed };
            let word = judge_changed(&node, &bundle, evidence);
            assert_eq!(word, expected, "part {part} of the quote, bit {bit}");
        }
    }
}

#[test]
fn no_flipped_bit_of_the_list_is_trusted() {
    let mut node = Node::new(3);
    node.boot = BootPolicy::None;
    let kept = node.attest();
    let bundle = Bundle::parse(&kept).unwrap();
    let evidence = evidence_of(&bundle);
    let list = evidence.ima_measurement_list.clone().unwrap();
    let mut refused = 0;
    for bit in 0..list.len() * 8 {
        let mut bytes = list.clone().into_bytes();
        bytes[bit / 8] ^= 1 << (bit % 8);
        // What is not UTF-8 does not come through JSON.
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        // Digits of either case are the same digits, and the last newline may be missing.
        let same = text.eq_ignore_ascii_case(&list) || bit / 8 == list.len() - 1;
        let mut evidence = evidence.clone();
        evidence.ima_measurement_list = Some(text);
        let word = judge_changed(&node, &bundle, evidence);
        assert!(same || word == Word::Failed, "bit {bit} of the list");
        refused += usize::from(word == Word::Failed);
    }
    assert!(refused > list.len() * 6, "{refused} of {}", list.len());
}

#[test]
fn no_flipped_bit_of_the_boot_log_is_trusted() {
    // What the log says was extended, where the log of the firmware alone can say it.
    let extended = |log: &[u8]| {
        let log = EventLog::parse(log).ok()?;
        let events = log.unverified_events().filter(|event| {
            event.kind != EventType::EV_NO_ACTION && ![9, 11, 15].contains(&event.pcr)
        });
        let digest = |event: Event<'_>| {
            let digests = event.digests.iter();
            let mut sha256 = digests.filter(|(bank, _)| *bank == HashAlgorithm::Sha256);
            (event.pcr, sha256.next().map(|(_, digest)| digest))
        };
        Some(events.map(digest).collect::<Vec<_>>())
    };
    let mut node = Node::new(2);
    let kept = node.attest();
    let bundle = Bundle::parse(&kept).unwrap();
    assert_eq!(node.judge(&bundle).verdict, Word::Trusted);
    let evidence = evidence_of(&bundle);
    let mut refused = 0;
    for at in (0..node.log.len()).step_by(11) {
        let mut log = node.log.clone();
        log[at] ^= 1 << (at % 8);
        let mut evidence = evidence.clone();
        evidence.mb_measurement_list = Some(STANDARD.encode(&log));
        let word = judge_changed(&node, &bundle, evidence);
        let same = extended(&log) == extended(&node.log);
        assert!(same || word == Word::Failed, "byte {at} of the log");
        refused += usize::from(word == Word::Failed);
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn what_is_no_bundle_is_refused_with_its_place() {
    let mut node = Node::new(3);
    let kept = node.attest();
    let text = |bytes: &[u8]| Bundle::parse(bytes).unwrap_err().to_string();
    assert!(text(b"").contains("no line of JSON"));
    assert!(text(&[0; 5 << 20]).contains("no line of JSON"));
    assert!(text(b"10 00 ima-ng sha256:00 /bin/sh\n").contains("not an evidence bundle"));
    assert!(text(b"{\"troth_evidence\":2,\"new\":1}\n").contains("version 2"));
    assert!(text(b"{\"troth_evidence\":1}\n").contains("head: missing field"));
    for cut in [kept.len() - 1, kept.len() / 2] {
        assert!(text(&kept[..cut]).contains("cut off or damaged"), "{cut}");
    }
    let longer = [kept.as_slice(), b"x"].concat();
    assert!(matches!(
        Bundle::parse(&longer),
        Err(BundleError::Trailing(1))
    ));
    let replaced = |from: &str, to: &str| {
        let text = String::from_utf8(kept.clone()).unwrap();
        assert!(text.contains(from), "{from}");
        text.replacen(from, to, 1).into_bytes()
    };
    for (from, to, reason) in [
        ("\"maker\":", "\"maker2\":", "unknown field `maker2`"),
        (
            "\"accept\":",
            "\"other\":1,\"accept\":",
            "unknown field `other`",
        ),
        ("\"node\":\"node\"", "\"node\":\"../../etc\"", "agent"),
        (
            "\"kind\":\"outcome\"",
            "\"kind\":\"answer\"",
            "in this order",
        ),
        (
            "\"kind\":\"outcome\"",
            "\"kind\":\"video\"",
            "unknown variant",
        ),
        ("\"mask\":\"0xffff\"", "\"mask\":\"0x1ffffff\"", "PCR"),
        (
            "\"verdict\":\"trusted\"",
            "\"verdict\":\"perfect\"",
            "outcome: unknown variant",
        ),
        ("\n{}\n", "\n[]\n", "boot_policy: its SHA-256"),
    ] {
        let text = text(&replaced(from, to));
        assert!(text.contains(reason), "{from} -> {to}: {text}");
    }
    let nonce = format!("\"nonce\":\"{}", "x".repeat(200));
    assert!(text(&replaced("\"nonce\":\"", &nonce)).contains("at most 128"));
}

#[test]
fn a_key_that_anybody_may_sign_with_is_refused() {
    let mut node = Node::new(3);
    let kept = node.attest();
    let mut bundle = Bundle::parse(&kept).unwrap();
    // sign without restricted: it signs what software says a quote is.
    bundle.head.ak[2 + 4 + 1] &= !0x01;
    assert!(Public::from_tpm2b(&bundle.head.ak).is_ok_and(|ak| AttestationKey::new(&ak).is_ok()));
    assert!(matches!(
        bundle.attestation_key(),
        Err(BundleError::AkUnsafe(_))
    ));
}
