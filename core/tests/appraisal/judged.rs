use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use troth_core::appraise::{
    AcceptedAlgorithms, Appraisal, Challenge, Finding, ImaRules, MAX_FINDINGS, NodeState, Place,
    Policies, Tomtou, Verdict, appraise, appraise_identity,
};
use troth_core::eventlog::{EventLog, Quirk};
use troth_core::ima::{ImaPosition, Keyring};
use troth_core::policy::{BootPolicy, RuntimePolicy, TpmPolicy};
use troth_core::tpm::{AttestationKey, Digest, HashAlgorithm, PcrMask, Public};
use troth_core::wire::QuoteResponse;

use super::templates::Measured;
use super::tpm::{Tpm, mask, pcrread};
use super::{fixture, text_fixture, vectors};

/// The findings that trothctl's explanations are tested with.
mod explained;

const NK: &str = "-----BEGIN PUBLIC KEY-----\nthe agent's\n-----END PUBLIC KEY-----\n";

/// A node and the verifier's side of it.
pub(super) struct Node {
    tpm: Tpm,
    ak: AttestationKey,
    pub(super) list: Vec<String>,
    boot_log: Option<Vec<u8>>,
    boottime: u64,
    tpm_policy: TpmPolicy,
    pub(super) runtime: Option<RuntimePolicy>,
    boot: BootPolicy,
    accept: AcceptedAlgorithms,
    pub(super) tomtou: Tomtou,
    pub(super) keys: Option<Keyring>,
    pub(super) state: NodeState,
    nonce: u32,
}

impl Node {
    /// A node with an empty IMA list and a policy over PCR 10.
    pub(super) fn new(runtime: Option<RuntimePolicy>) -> Self {
        Self::with_bank(HashAlgorithm::Sha256, runtime)
    }

    fn with_bank(bank: HashAlgorithm, runtime: Option<RuntimePolicy>) -> Self {
        let mut tpm = Tpm::new(bank);
        tpm.bind(NK);
        let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
        Self {
            ak: tpm.ak(),
            tpm,
            list: Vec::new(),
            boot_log: None,
            boottime: 1_700_000_000,
            tpm_policy: TpmPolicy::parse(r#"{"mask":"0x400"}"#).unwrap(),
            runtime,
            boot: BootPolicy::None,
            accept: AcceptedAlgorithms {
                hash: list(&["sha256", "sha384"]),
                encryption: list(&["ecc", "ecc384"]),
                signing: list(&["ecdsa"]),
            },
            tomtou: Tomtou::default(),
            keys: None,
            state: NodeState::default(),
            nonce: 0,
        }
    }

    /// The node of the IMA vector, under its policy with `change`.
    pub(super) fn of_vector(change: impl FnOnce(&mut Value)) -> Self {
        let mut policy = vectors("ima.json")["policy"].clone();
        change(&mut policy);
        let policy = RuntimePolicy::compile(policy.to_string().as_bytes()).unwrap();
        let mut node = Self::new(Some(policy));
        node.list = vector_lines();
        let last = vectors("ima.json")["pcr10_sha256"][8].clone();
        node.tpm
            .pcrs
            .set(10, Digest::from_hex(last.as_str().unwrap()).unwrap());
        node
    }

    /// The captured boot: PCRs, list, and boot log of it.
    fn of_boot(boot: &str, runtime: Option<RuntimePolicy>) -> Self {
        let mut node = Self::new(runtime);
        for (pcr, value) in pcrread(boot, HashAlgorithm::Sha256)
            .iter()
            .filter(|(p, _)| *p < 16)
        {
            node.tpm.pcrs.set(pcr, *value);
        }
        let list = text_fixture(&format!("boots/{boot}/ima-ascii_runtime_measurements"));
        node.list = list.split_inclusive('\n').map(ToOwned::to_owned).collect();
        node.boot_log = Some(fixture(&format!("boots/{boot}/binary_bios_measurements")));
        node.boot = BootPolicy::Replay;
        node.tpm_policy = node.tpm_policy.with_mask(node.boot.mask());
        node
    }

    /// The kernel measures a file: list entry and PCR 10.
    pub(super) fn measure(&mut self, path: &str, digest: &[u8; 32]) {
        let entry = self.entry(path, digest);
        self.list.push(entry.0);
        self.tpm.extend(10, &entry.1);
    }

    /// The kernel measures anything; `text` is what it prints of the fields.
    pub(super) fn measure_entry(&mut self, entry: &Measured, text: &str) {
        self.list.push(entry.ascii(text));
        let extended = entry.extended(self.tpm.pcrs.bank());
        self.tpm.extend(10, extended.as_bytes());
    }

    /// The kernel's first entry, over boot PCRs that nothing was measured into.
    fn measure_boot_aggregate(&mut self) {
        self.tpm_policy = self.tpm_policy.clone().with_mask(mask(0..10));
        let zeros = [0; 320];
        let aggregate = HashAlgorithm::Sha256.digest(&[&zeros]);
        self.measure("boot_aggregate", &aggregate.as_bytes().try_into().unwrap());
    }

    /// Line and template digest of the bank.
    pub(super) fn entry(&self, path: &str, digest: &[u8; 32]) -> (String, Vec<u8>) {
        let mut data = 40u32.to_le_bytes().to_vec();
        data.extend(b"sha256:\0");
        data.extend(digest);
        data.extend(u32::try_from(path.len() + 1).unwrap().to_le_bytes());
        data.extend(path.as_bytes());
        data.push(0);
        let printed = HashAlgorithm::Sha1.digest(&[&data]);
        let line = format!(
            "10 {printed} ima-ng sha256:{} {path}\n",
            hex::encode(digest)
        );
        let extended = self.tpm.pcrs.bank().digest(&[&data]);
        (line, extended.as_bytes().to_vec())
    }

    /// The host boots again.
    pub(super) fn restart(&mut self) {
        self.tpm.reboot();
        self.tpm.bind(NK);
        self.list.clear();
        self.boottime += 100;
    }

    fn mask(&self) -> PcrMask {
        self.tpm_policy.mask()
    }

    /// What the verifier asks next, and the agent's true answer.
    pub(super) fn ask(&mut self) -> (String, u64, QuoteResponse) {
        self.nonce += 1;
        let nonce = format!("nonce-{:014}", self.nonce);
        let asked = self.state.ima.next_entry;
        let from = usize::try_from(asked).unwrap();
        // Like an agent, start over when there are not that many.
        let from = if from <= self.list.len() { from } else { 0 };
        let evidence = QuoteResponse {
            quote: self.tpm.quote_string(&nonce, self.mask().with(16)),
            hash_alg: self.tpm.pcrs.bank().name().to_owned(),
            enc_alg: match self.tpm.pcrs.bank() {
                HashAlgorithm::Sha384 => "ecc384".to_owned(),
                _ => "ecc256".to_owned(),
            },
            sign_alg: "ecdsa".to_owned(),
            pubkey: self.state.pubkey.is_none().then(|| NK.to_owned()),
            ima_measurement_list: Some(self.list[from..].concat()),
            ima_measurement_list_entry: Some(u64::try_from(from).unwrap()),
            mb_measurement_list: self.boot_log.as_ref().map(|log| STANDARD.encode(log)),
            userspace_measurement_list: None,
            boottime: Some(self.boottime),
        };
        (nonce, asked, evidence)
    }

    fn judge(&mut self, nonce: &str, asked: u64, evidence: &QuoteResponse) -> Appraisal {
        let challenge = Challenge {
            nonce,
            mask: self.mask(),
            ima_entry: asked,
        };
        let policies = Policies {
            tpm: &self.tpm_policy,
            runtime: self.runtime.as_ref(),
            boot: &self.boot,
            accept: &self.accept,
            ima: ImaRules {
                tomtou: self.tomtou,
                keys: self.keys.as_ref(),
            },
        };
        let appraisal = appraise(&self.ak, &challenge, evidence, &policies, &self.state);
        self.state = appraisal.state.clone();
        appraisal
    }

    /// One attestation with an answer that `change` tampers with.
    pub(super) fn attest_with(&mut self, change: impl FnOnce(&mut QuoteResponse)) -> Appraisal {
        let (nonce, asked, mut evidence) = self.ask();
        change(&mut evidence);
        self.judge(&nonce, asked, &evidence)
    }

    pub(super) fn attest(&mut self) -> Appraisal {
        self.attest_with(|_| {})
    }
}

fn vector_lines() -> Vec<String> {
    let list = vectors("ima.json")["list"].as_str().unwrap().to_owned();
    list.split_inclusive('\n').map(ToOwned::to_owned).collect()
}

/// A policy that allows `files`.
pub(super) fn policy(files: &[(&str, [u8; 32])]) -> RuntimePolicy {
    let lines: Vec<_> = files
        .iter()
        .map(|(path, digest)| format!("{}  {path}", hex::encode(digest)))
        .collect();
    let json = RuntimePolicy::json_from_allowlist(&lines.join("\n"), "", 0).unwrap();
    RuntimePolicy::compile(json.as_bytes()).unwrap()
}

pub(super) fn findings(appraisal: &Appraisal) -> &[Finding] {
    match &appraisal.verdict {
        Verdict::Failed(findings) => findings,
        other => panic!("not failed: {other:?}"),
    }
}

pub(super) fn ids(appraisal: &Appraisal) -> Vec<&str> {
    findings(appraisal)
        .iter()
        .map(|finding| finding.id.as_str())
        .collect()
}

/// Trusted; returns the entries covered since boot.
pub(super) fn trusted(appraisal: &Appraisal) -> u64 {
    match &appraisal.verdict {
        Verdict::Trusted(trusted) => trusted.ima_entries(),
        other => panic!("not trusted: {other:#?}"),
    }
}

pub(super) const NOT_LISTED: &str = "ima.validation.ima-ng.not_in_allowlist";
const WRONG_DIGEST: &str = "ima.validation.ima-ng.runtime_policy_hash";
const UNPARSABLE: &str = "ima.parser.entry";
const QUOTE: &str = "qoute_validation.quote_validation";

#[test]
fn listed_files_are_trusted_and_judged_once() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32]), ("/bin/b", [2; 32])])));
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(trusted(&node.attest()), 1);
    node.measure("/bin/b", &[2; 32]);
    let (_, asked, evidence) = node.ask();
    assert_eq!(asked, 1);
    assert_eq!(evidence.ima_measurement_list.unwrap().lines().count(), 1);
    assert_eq!(trusted(&node.attest()), 2);
    assert_eq!(trusted(&node.attest()), 2, "nothing new is fine too");
}

#[test]
fn a_kernel_that_measures_nothing_is_not_trusted_under_a_policy_for_files() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    let appraisal = node.attest();
    let [finding] = findings(&appraisal) else {
        panic!("{appraisal:?}")
    };
    assert_eq!(finding.id, "ima.nothing_measured");
    assert!(finding.recoverable);
    assert_eq!(finding.place, Place::ImaList);
    assert!(finding.action.contains("ima_policy="), "{}", finding.action);

    // No list at all says the same.
    let missing = node.attest_with(|evidence| evidence.ima_measurement_list = None);
    assert_eq!(ids(&missing), ["pcr_validation.unused_pcr_10"]);

    // Any kernel with IMA measures boot_aggregate, even when it has no policy for files.
    node.measure_boot_aggregate();
    assert_eq!(ids(&node.attest()), ["ima.nothing_measured"]);
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(trusted(&node.attest()), 2);
}

#[test]
fn a_kernel_that_measures_nothing_is_found_where_the_check_resumes_too() {
    let value = HashAlgorithm::Sha256.digest(&[&[0; 320]]);
    let value = <[u8; 32]>::try_from(value.as_bytes()).unwrap();
    let files = [("boot_aggregate", value), ("/bin/a", [1; 32])];
    let mut node = Node::new(Some(policy(&files[..1])));
    node.measure_boot_aggregate();
    assert_eq!(trusted(&node.attest()), 1, "all that the policy lists");
    // A verifier that starts again knows it, too.
    let stored = serde_json::to_string(&node.state).unwrap();
    node.state = serde_json::from_str(&stored).unwrap();
    let mut later = serde_json::from_str::<NodeState>(&stored).unwrap();
    node.runtime = Some(policy(&files));
    let appraisal = node.attest();
    assert_eq!(ids(&appraisal), ["ima.nothing_measured"]);
    assert_eq!(findings(&appraisal)[0].got.as_deref(), Some("1 entries"));
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(trusted(&node.attest()), 2);
    // A file that is not good is one: the answer that resumes at it is about it alone.
    std::mem::swap(&mut node.state, &mut later);
    node.runtime = Some(policy(&files[..1]));
    for _ in 0..2 {
        assert_eq!(ids(&node.attest()), [NOT_LISTED]);
        assert_eq!(node.state.ima.next_entry, 1);
    }
    // What an earlier version stored does not say whether there were files.
    let unknown = serde_json::to_string(&later).unwrap();
    assert!(!unknown.contains("no_files"), "{unknown}");
    node.state = later;
    node.runtime = Some(policy(&files));
    assert_eq!(trusted(&node.attest()), 2);
}

#[test]
fn what_asks_for_no_files_is_content_without_them() {
    let mut node = Node::new(None);
    assert_eq!(trusted(&node.attest()), 0, "no runtime policy");

    let value = HashAlgorithm::Sha256.digest(&[&[0; 320]]);
    let value = <[u8; 32]>::try_from(value.as_bytes()).unwrap();
    let mut node = Node::new(Some(policy(&[("boot_aggregate", value)])));
    assert_eq!(ids(&node.attest()), ["ima.nothing_measured"]);
    node.measure_boot_aggregate();
    assert_eq!(trusted(&node.attest()), 1, "all that the policy lists");
}

#[test]
fn an_unlisted_file_is_named_with_its_digest() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(trusted(&node.attest()), 1);
    node.measure("/tmp/evil", &[9; 32]);
    let appraisal = node.attest();
    let [finding] = findings(&appraisal) else {
        panic!("{appraisal:?}")
    };
    assert_eq!(finding.id, NOT_LISTED);
    assert!(finding.recoverable);
    let path = Some("/tmp/evil".to_owned());
    assert_eq!(finding.place, Place::ImaEntry { entry: 1, path });
    assert_eq!(
        finding.got.as_deref(),
        Some(&*format!("sha256:{}", "09".repeat(32)))
    );
    assert!(
        finding
            .explanation
            .contains("no digest for the file /tmp/evil")
    );
    assert!(finding.action.contains("runtime policy"));
    assert_eq!(
        appraisal.state.ima.next_entry, 1,
        "judged from there next time"
    );
    assert_eq!(ids(&node.attest()), [NOT_LISTED], "and it stays failed");
}

#[test]
fn a_changed_file_is_shown_with_what_the_policy_has() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    node.measure("/bin/a", &[2; 32]);
    let appraisal = node.attest();
    let [finding] = findings(&appraisal) else {
        panic!("{appraisal:?}")
    };
    assert_eq!(finding.id, WRONG_DIGEST);
    assert_eq!(finding.expected, ["01".repeat(32)]);
    assert_eq!(
        finding.got.as_deref(),
        Some(&*format!("sha256:{}", "02".repeat(32)))
    );
}

#[test]
fn the_vector_is_judged_as_keylime_judges_it() {
    let remove = |policy: &mut Value, path: &str| {
        policy["digests"].as_object_mut().unwrap().remove(path);
    };
    type Change<'c> = &'c dyn Fn(&mut Value);
    let cases: [(&str, Change<'_>, &[&str]); 10] = [
        ("as it is", &|_| {}, &[]),
        (
            "no keys for signatures",
            &|p| p["verification-keys"] = json!(""),
            &[NOT_LISTED],
        ),
        (
            "true unlisted",
            &|p| remove(p, "/usr/bin/true"),
            &[NOT_LISTED],
        ),
        (
            "true changed",
            &|p| p["digests"]["/usr/bin/true"] = json!(["cc".repeat(20)]),
            &[WRONG_DIGEST],
        ),
        (
            "true excluded",
            &|p| {
                remove(p, "/usr/bin/true");
                p["excludes"] = json!(["/usr/bin/tr"]);
            },
            &[],
        ),
        (
            "exclude not at the start",
            &|p| {
                remove(p, "/usr/bin/true");
                p["excludes"] = json!(["bin/true"]);
            },
            &[NOT_LISTED],
        ),
        ("no keyrings", &|p| p["keyrings"] = json!({}), &[NOT_LISTED]),
        (
            "keyring ignored",
            &|p| {
                p["keyrings"] = json!({});
                p["ima"]["ignored_keyrings"] = json!([".ima"]);
            },
            &[],
        ),
        ("no buffers", &|p| p["ima-buf"] = json!({}), &[NOT_LISTED]),
        (
            "all keyrings ignored",
            &|p| {
                p["keyrings"] = json!({});
                p["ima"]["ignored_keyrings"] = json!(["*"]);
            },
            &[],
        ),
    ];
    for (name, change, expected) in cases {
        let mut node = Node::of_vector(change);
        let appraisal = node.attest();
        if expected.is_empty() {
            assert_eq!(trusted(&appraisal), 9, "{name}");
        } else {
            assert_eq!(ids(&appraisal), expected, "{name}");
        }
    }
}

#[test]
fn a_tampered_vector_is_judged_as_keylime_judges_it() {
    let mut node = Node::of_vector(|_| {});
    node.tpm
        .pcrs
        .set(10, Digest::from_slice(&[0x11; 32]).unwrap());
    assert_eq!(ids(&node.attest()), ["ima.pcr_mismatch"]);

    let mut node = Node::of_vector(|_| {});
    node.list[1] = node.list[1].replace("/usr/bin/true", "/usr/bin/trve");
    assert_eq!(
        ids(&node.attest()),
        ["ima.validation.ima_hash", "ima.pcr_mismatch"]
    );

    let mut node = Node::of_vector(|_| {});
    node.list[1] = node.list[1].replacen("10", "11", 1);
    assert_eq!(ids(&node.attest()), ["ima.validation.ima_pcr"]);

    let mut node = Node::of_vector(|_| {});
    node.list[1] = node.list[1].replace("ima-ng", "ima-ng3");
    assert_eq!(
        ids(&node.attest()),
        ["ima.parser.entry", "ima.pcr_mismatch"]
    );
}

#[test]
fn the_vector_is_trusted_in_the_sha384_bank() {
    let mut node = Node::of_vector(|_| {});
    let mut other = Node::with_bank(HashAlgorithm::Sha384, node.runtime.take());
    other.list = vector_lines();
    let value = vectors("ima.json")["pcr10_sha384"]
        .as_str()
        .unwrap()
        .to_owned();
    other.tpm.pcrs.set(10, Digest::from_hex(&value).unwrap());
    assert_eq!(trusted(&other.attest()), 9);
}

#[test]
fn a_buffer_must_have_the_digest_that_it_says() {
    // Key and digest both allowed, but the digest is not that of the content.
    let mut node = Node::of_vector(|_| {});
    let data = "6b65726e656c5f76657273696f6e3d362e342e302d313b";
    let other = "6b65726e656c5f76657273696f6e3d362e342e302d323b";
    let line = node.list[7].replace(data, other);
    // The kernel would have extended this line: make list and PCR agree on it.
    let digest = "60a5b5e1e47ffef388416d13c73b3c22079d83ab62735cd050953248a01fca61";
    let mut template = 40u32.to_le_bytes().to_vec();
    template.extend(b"sha256:\0");
    template.extend(hex::decode(digest).unwrap());
    template.extend(12u32.to_le_bytes());
    template.extend(b"kernel_info\0");
    template.extend(23u32.to_le_bytes());
    template.extend(hex::decode(other).unwrap());
    let printed = HashAlgorithm::Sha1.digest(&[&template]).to_string();
    let line = format!("10 {printed} {}", line.splitn(3, ' ').nth(2).unwrap());
    node.list = vec![line];
    node.tpm.pcrs.set(10, Digest::zero(HashAlgorithm::Sha256));
    node.tpm
        .extend(10, HashAlgorithm::Sha256.digest(&[&template]).as_bytes());
    assert_eq!(ids(&node.attest()), ["ima.validation.ima-buf.digest"]);
}

#[test]
fn captured_boots_are_trusted_under_a_policy_made_of_their_list() {
    for (boot, entries) in [("uki", 1_641), ("grub", 1_633)] {
        let list = text_fixture(&format!("boots/{boot}/ima-ascii_runtime_measurements"));
        // The boot log explains boot_aggregate, so the policy needs none.
        let json = RuntimePolicy::json_from_ima_list(&list, 0).unwrap();
        let mut json: Value = serde_json::from_str(&json).unwrap();
        json["digests"]
            .as_object_mut()
            .unwrap()
            .remove("boot_aggregate")
            .unwrap();
        let runtime = RuntimePolicy::compile(json.to_string().as_bytes()).unwrap();
        let mut node = Node::of_boot(boot, Some(runtime));
        assert_eq!(trusted(&node.attest()), entries, "{boot}");
        node.measure("/opt/unlisted", &[7; 32]);
        assert_eq!(ids(&node.attest()), [NOT_LISTED]);
    }
}

#[test]
fn a_boot_log_of_another_boot_fails_by_pcr() {
    let mut node = Node::of_boot("grub", None);
    node.boot_log = Some(fixture("boots/uki/binary_bios_measurements"));
    let appraisal = node.attest();
    let boot: Vec<_> = ids(&appraisal)
        .into_iter()
        .filter(|id| id.contains("boot"))
        .collect();
    assert!(boot.contains(&"measured_boot.invalid_pcr_4"), "{boot:?}");
    assert!(boot.contains(&"measured_boot.invalid_pcr_8"), "{boot:?}");
    for free in [9, 10, 11, 15] {
        assert!(
            !boot.contains(&&*format!("measured_boot.invalid_pcr_{free}")),
            "{boot:?}"
        );
    }
}

/// A UKI host: PCRs 11 and 15 go on being extended from user space.
#[test]
fn systemds_log_is_judged_where_it_is_sent() {
    let log = text_fixture("boots/uki/tpm2-measure.log");
    let judged = |log: &str| {
        let mut node = Node::of_boot("uki", None);
        let log = STANDARD.encode(log);
        let appraisal = node.attest_with(|evidence| {
            evidence.userspace_measurement_list = Some(log);
            evidence.ima_measurement_list = None;
        });
        let mut ids: Vec<_> = ids(&appraisal).into_iter().map(str::to_owned).collect();
        ids.retain(|id| id.starts_with("measured_boot."));
        ids
    };
    assert_eq!(judged(&log), [""; 0]);
    let without_ready = &log[..log.rfind('\u{1e}').unwrap()];
    assert_eq!(judged(without_ready), ["measured_boot.invalid_pcr_11"]);
    let other_machine = log.replace("e11a06f3d9fc", "e11a06f3d9fd");
    assert_eq!(judged(&other_machine), ["measured_boot.invalid_pcr_15"]);
    // The writer died: what the log lacks is no sign of an attack.
    assert_eq!(judged(&format!("{without_ready}\u{1e}")), [""; 0]);
    assert_eq!(judged("no log"), ["measured_boot.parser.userspace_log"]);
}

/// Firmware that extends its EV_NO_ACTION event, which the log has a digest of.
#[test]
fn a_quirk_of_the_firmware_is_told_with_the_verdict() {
    let mut node = Node::of_boot("grub", Some(policy(&[])));
    let told = |node: &mut Node| {
        let appraisal = node.attest();
        let boot = ids(&appraisal)
            .iter()
            .any(|id| id.starts_with("measured_boot"));
        assert!(!boot, "{:?}", appraisal.verdict);
        appraisal.boot_quirks
    };
    assert_eq!(told(&mut node), []);
    let mut event = [7u32, 3, 2].map(u32::to_le_bytes).concat();
    event.extend([4, 0]);
    event.extend([0x5a; 20]);
    event.extend([11, 0]);
    event.extend([0x5a; 32]);
    event.extend([16, 0, 0, 0]);
    event.extend(b"Vendor's event!\0");
    node.boot_log.as_mut().unwrap().extend(event);
    node.tpm.extend(7, &[0x5a; 32]);
    let quirk = (7, Quirk::NoActionExtended);
    assert_eq!(told(&mut node), [quirk]);
    assert_eq!(told(&mut node), [quirk], "the same boot, recognised");
}

/// Kernels that aggregate another bank than the one that is quoted.
#[test]
fn the_boot_aggregate_may_be_of_another_bank_that_the_log_explains() {
    let judged = |change: fn(&mut Node)| {
        let mut node = Node::of_boot("grub", Some(policy(&[("/bin/a", [1; 32])])));
        node.list.clear();
        node.tpm.pcrs.set(10, Digest::zero(HashAlgorithm::Sha256));
        let pcrs = pcrread("grub", HashAlgorithm::Sha1);
        let values: Vec<_> = (0..8)
            .map(|pcr| pcrs.get(pcr).unwrap().as_bytes())
            .collect();
        let aggregate = HashAlgorithm::Sha1.digest(&[&values.concat()]);
        let mut data = [26u32.to_le_bytes().as_slice(), b"sha1:\0"].concat();
        data.extend(aggregate.as_bytes());
        data.extend(15u32.to_le_bytes());
        data.extend(b"boot_aggregate\0");
        let printed = HashAlgorithm::Sha1.digest(&[&data]);
        let line = format!("10 {printed} ima-ng sha1:{aggregate} boot_aggregate\n");
        node.list.push(line);
        let extended = HashAlgorithm::Sha256.digest(&[&data]);
        node.tpm.extend(10, extended.as_bytes());
        node.measure("/bin/a", &[1; 32]);
        change(&mut node);
        node.attest()
    };
    assert_eq!(trusted(&judged(|_| {})), 2);
    // A log that the quote does not explain says nothing of any bank.
    let unexplained = judged(|node| node.tpm.extend(4, &[1; 32]));
    assert!(ids(&unexplained).contains(&NOT_LISTED), "{unexplained:?}");
}

#[test]
fn a_boot_log_that_is_missing_cut_or_not_base64_fails() {
    let boot_ids = |appraisal: &Appraisal| -> Vec<String> {
        let boot = ids(appraisal)
            .into_iter()
            .filter(|id| id.starts_with("measured_boot"));
        boot.map(ToOwned::to_owned).collect()
    };
    let mut node = Node::of_boot("grub", None);
    let appraisal = node.attest_with(|evidence| evidence.mb_measurement_list = None);
    assert_eq!(boot_ids(&appraisal), ["measured_boot.missing_log"]);
    let appraisal = node.attest_with(|evidence| evidence.mb_measurement_list = Some("?".into()));
    assert_eq!(
        boot_ids(&appraisal),
        ["measured_boot.parser.log.base64decode"]
    );
    let mut log = node.boot_log.take().unwrap();
    log.truncate(log.len() - 1);
    assert!(EventLog::parse(&log).is_err());
    node.boot_log = Some(log);
    let appraisal = node.attest();
    assert_eq!(boot_ids(&appraisal), ["measured_boot.parser.eventlog"]);
    let [finding, ..] = findings(&appraisal) else {
        unreachable!()
    };
    assert!(
        finding.explanation.contains("byte"),
        "{}",
        finding.explanation
    );
}

#[test]
fn a_boot_policy_needs_its_pcrs_in_the_quote() {
    let mut node = Node::of_boot("grub", None);
    node.tpm_policy = TpmPolicy::parse(r#"{"mask":"0xff"}"#).unwrap();
    assert_eq!(ids(&node.attest()), ["measured_boot.missing_pcrs"]);
}

#[test]
fn without_a_boot_policy_the_log_is_not_looked_at() {
    let mut node = Node::new(None);
    node.boot_log = Some(b"no log".to_vec());
    assert_eq!(trusted(&node.attest()), 0);
}

#[test]
fn truncated_and_reordered_lists_fail() {
    let files = [
        ("/bin/a", [1; 32]),
        ("/bin/b", [2; 32]),
        ("/bin/c", [3; 32]),
    ];
    let mut node = Node::new(Some(policy(&files)));
    files
        .iter()
        .for_each(|(path, digest)| node.measure(path, digest));
    let appraisal = node.attest_with(|evidence| {
        let list = evidence.ima_measurement_list.as_mut().unwrap();
        list.truncate(list[..list.len() - 1].rfind('\n').unwrap() + 1);
    });
    assert_eq!(ids(&appraisal), ["ima.pcr_mismatch"]);
    let appraisal = node.attest_with(|evidence| {
        let list = evidence.ima_measurement_list.as_mut().unwrap();
        let mut lines: Vec<_> = list.split_inclusive('\n').collect();
        lines.swap(0, 1);
        *list = lines.concat();
    });
    assert_eq!(ids(&appraisal), ["ima.pcr_mismatch"]);
    assert_eq!(trusted(&node.attest()), 3);
}

#[test]
fn a_list_without_its_quote_is_not_believed() {
    let mut node = Node::new(Some(policy(&[])));
    node.measure("/tmp/evil", &[9; 32]);
    let appraisal = node.attest_with(|evidence| evidence.ima_measurement_list = None);
    assert_eq!(ids(&appraisal), ["pcr_validation.unused_pcr_10"]);
    let appraisal =
        node.attest_with(|evidence| evidence.ima_measurement_list = Some(String::new()));
    assert_eq!(ids(&appraisal), ["ima.pcr_mismatch"]);
}

#[test]
fn a_quote_that_is_not_verified_leaves_the_state_alone() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(trusted(&node.attest()), 1);
    let before = node.state.clone();

    let (_, asked, evidence) = node.ask();
    let appraisal = node.judge("another nonce 123456", asked, &evidence);
    assert_eq!(ids(&appraisal), [QUOTE], "wrong nonce");
    assert!(!findings(&appraisal)[0].recoverable);
    assert!(findings(&appraisal)[0].explanation.contains("nonce"));

    let appraisal = node.attest_with(|evidence| {
        // A byte of the first value in the PCR blob.
        let blob = evidence.quote.rfind(':').unwrap() + 1;
        let mut bytes = STANDARD.decode(&evidence.quote[blob..]).unwrap();
        bytes[4 + 128 + 4 + 4 + 2] ^= 1;
        evidence.quote.truncate(blob);
        evidence.quote.push_str(&STANDARD.encode(bytes));
    });
    assert_eq!(ids(&appraisal), [QUOTE], "swapped PCR value");

    let mut stranger = Tpm::new(HashAlgorithm::Sha256);
    stranger.pcrs = node.tpm.pcrs.clone();
    stranger.clock = 1 << 40;
    let (nonce, asked, mut evidence) = node.ask();
    evidence.quote = stranger.quote_string(&nonce, node.mask().with(16));
    let appraisal = node.judge(&nonce, asked, &evidence);
    assert_eq!(ids(&appraisal), [QUOTE], "another AK");

    let (nonce, asked, mut evidence) = node.ask();
    evidence.quote = node.tpm.quote_string(&nonce, mask([16]));
    let appraisal = node.judge(&nonce, asked, &evidence);
    assert_eq!(ids(&appraisal), ["pcr_validation.missing_pcrs"]);

    let appraisal = node.attest_with(|evidence| evidence.quote.clear());
    assert_eq!(ids(&appraisal), ["qoute_validation.invalid_data"]);

    assert_eq!(node.state, before);
    assert_eq!(trusted(&node.attest()), 1);
}

#[test]
fn only_accepted_algorithms_count() {
    type Change = fn(&mut QuoteResponse);
    let cases: [(Change, &str); 5] = [
        (
            |e| e.hash_alg = "sha512".into(),
            "qoute_validation.invalid_hash_alg",
        ),
        (|e| e.hash_alg.clear(), "qoute_validation.invalid_hash_alg"),
        (
            |e| e.enc_alg = "ecc521".into(),
            "qoute_validation.invalid_enc_alg",
        ),
        (
            |e| e.sign_alg = "rsassa".into(),
            "qoute_validation.invalid_sign_alg",
        ),
        // Accepted, but not what the quote is made with.
        (|e| e.hash_alg = "sha384".into(), QUOTE),
    ];
    for (change, expected) in cases {
        let mut node = Node::new(None);
        assert_eq!(ids(&node.attest_with(change)), [expected]);
    }
    let mut node = Node::new(None);
    node.accept.signing = vec!["rsassa".to_owned()];
    let appraisal = node.attest_with(|evidence| evidence.sign_alg = "rsassa".to_owned());
    assert_eq!(
        ids(&appraisal),
        ["qoute_validation.invalid_sign_alg"],
        "the AK's scheme counts"
    );
    let mut node = Node::new(None);
    node.accept.encryption = vec!["rsa2048".to_owned()];
    let appraisal = node.attest_with(|evidence| evidence.enc_alg = "rsa2048".to_owned());
    assert_eq!(
        ids(&appraisal),
        ["qoute_validation.invalid_enc_alg"],
        "the AK's own algorithm counts"
    );
}

#[test]
fn the_clock_must_advance_between_quotes() {
    let mut node = Node::new(None);
    trusted(&node.attest());
    node.tpm.clock -= 500;
    let appraisal = node.attest();
    assert_eq!(ids(&appraisal), [QUOTE]);
    assert!(findings(&appraisal)[0].explanation.contains("clock"));
    node.tpm.clock += 5_000;
    trusted(&node.attest());
    node.tpm.reset_count -= 1;
    assert_eq!(ids(&node.attest()), [QUOTE]);
}

#[test]
fn a_reboot_is_neither_pass_nor_fail_and_then_judged_in_full() {
    let files = [("/bin/a", [1; 32]), ("/bin/b", [2; 32])];
    let mut node = Node::new(Some(policy(&files)));
    files
        .iter()
        .for_each(|(path, digest)| node.measure(path, digest));
    assert_eq!(trusted(&node.attest()), 2);

    // The new list is as long as the old one was: the agent cannot tell from the offset.
    node.tpm.reboot();
    node.tpm.bind(NK);
    node.list.clear();
    node.boottime += 100;
    files
        .iter()
        .rev()
        .for_each(|(path, digest)| node.measure(path, digest));
    node.measure("/tmp/evil", &[9; 32]);
    let appraisal = node.attest();
    assert!(
        matches!(appraisal.verdict, Verdict::Rebooted),
        "{appraisal:?}"
    );
    assert_eq!(appraisal.state.ima, ImaPosition::default());
    assert_eq!(ids(&node.attest()), [NOT_LISTED]);
}

#[test]
fn a_reboot_that_the_agent_hides_is_seen_in_the_tpm() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(trusted(&node.attest()), 1);
    node.tpm.reboot();
    node.tpm.bind(NK);
    let list = std::mem::take(&mut node.list);
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(node.list, list);
    assert!(matches!(node.attest().verdict, Verdict::Rebooted));
    assert_eq!(trusted(&node.attest()), 1);
}

#[test]
fn a_reboot_to_a_shorter_list_is_judged_at_once() {
    let files = [("/bin/a", [1; 32]), ("/bin/b", [2; 32])];
    let mut node = Node::new(Some(policy(&files)));
    files
        .iter()
        .for_each(|(path, digest)| node.measure(path, digest));
    assert_eq!(trusted(&node.attest()), 2);
    node.tpm.reboot();
    node.tpm.bind(NK);
    node.list.clear();
    node.boottime += 100;
    node.measure("/bin/b", &[2; 32]);
    assert_eq!(trusted(&node.attest()), 1);
}

#[test]
fn a_reboot_is_not_believed_without_its_quote() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    node.measure("/bin/a", &[1; 32]);
    assert_eq!(trusted(&node.attest()), 1);
    let (_, asked, mut evidence) = node.ask();
    evidence.boottime = Some(5);
    let appraisal = node.judge("another nonce 123456", asked, &evidence);
    assert_eq!(ids(&appraisal), [QUOTE]);
}

#[test]
fn a_wrong_first_entry_is_irrecoverable() {
    let files = [("/bin/a", [1; 32]), ("/bin/b", [2; 32])];
    let mut node = Node::new(Some(policy(&files)));
    files
        .iter()
        .for_each(|(path, digest)| node.measure(path, digest));
    assert_eq!(trusted(&node.attest()), 2);
    let appraisal = node.attest_with(|evidence| evidence.ima_measurement_list_entry = Some(1));
    assert_eq!(ids(&appraisal), ["qoute_validation.invalid_ima_entry_nb"]);
    assert!(!findings(&appraisal)[0].recoverable);
    assert_eq!(trusted(&node.attest()), 2, "asked for from entry 0");
}

#[test]
fn entries_read_after_the_quote_are_judged_by_the_next_one() {
    let files = [
        ("/bin/a", [1; 32]),
        ("/bin/b", [2; 32]),
        ("/bin/c", [3; 32]),
    ];
    let mut node = Node::new(Some(policy(&files)));
    node.measure("/bin/a", &[1; 32]);
    // Quoted with one entry, the list read with three.
    let (nonce, asked, mut evidence) = node.ask();
    node.measure("/bin/b", &[2; 32]);
    node.measure("/bin/c", &[3; 32]);
    evidence.ima_measurement_list = Some(node.list.concat());
    let appraisal = node.judge(&nonce, asked, &evidence);
    assert_eq!(trusted(&appraisal), 1);
    assert_eq!(appraisal.state.ima.lag, 2);
    assert_eq!(trusted(&node.attest()), 3);
    assert_eq!(node.state.ima.lag, 0);
}

#[test]
fn entries_that_are_never_extended_fail_by_lack_of_progress() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    node.measure("/bin/a", &[1; 32]);
    let shown = node.entry("/bin/a", &[5; 32]).0;
    let show = |evidence: &mut QuoteResponse| {
        evidence
            .ima_measurement_list
            .as_mut()
            .unwrap()
            .push_str(&shown);
    };
    assert_eq!(trusted(&node.attest_with(show)), 1);
    let appraisal = node.attest_with(show);
    assert_eq!(ids(&appraisal), ["ima.quote_progress"]);
    assert_eq!(appraisal.state.ima, ImaPosition::default());
}

#[test]
fn a_swapped_public_key_is_found() {
    let mut node = Node::new(None);
    let other = NK.replace("agent's", "attacker's");
    let appraisal = node.attest_with(|evidence| evidence.pubkey = Some(other.clone()));
    assert_eq!(ids(&appraisal), ["pcr_validation.invalid_pcr_16"]);
    assert_eq!(appraisal.state.pubkey, None, "not cached");
    assert_eq!(
        ids(&node.attest_with(|e| e.pubkey = None)),
        ["qoute_validation.no_pubkey"]
    );
    trusted(&node.attest());
    assert_eq!(node.state.pubkey.as_deref(), Some(NK));
    // From now on the cached key is checked although it is not sent.
    trusted(&node.attest_with(|evidence| assert_eq!(evidence.pubkey, None)));
    node.tpm.bind(&other);
    assert_eq!(ids(&node.attest()), ["pcr_validation.invalid_pcr_16"]);
}

#[test]
fn pcr_values_must_be_listed() {
    let mut node = Node::new(None);
    let good = Digest::from_slice(&[3; 32]).unwrap();
    node.tpm.pcrs.set(7, good);
    let json = format!(r#"{{"7":["{}","{good}"],"mask":"0x80"}}"#, "00".repeat(20));
    node.tpm_policy = TpmPolicy::parse(&json).unwrap();
    trusted(&node.attest());
    node.tpm.extend(7, &[1; 32]);
    let appraisal = node.attest();
    assert_eq!(ids(&appraisal), ["pcr_validation.invalid_pcr_7"]);
    let finding = &findings(&appraisal)[0];
    assert_eq!(finding.place, Place::Pcr(7));
    assert_eq!(finding.expected, ["00".repeat(20), good.to_string()]);
    assert_eq!(finding.got, node.tpm.pcrs.get(7).map(Digest::to_string));
}

#[test]
fn pcrs_that_policies_need_must_be_quoted() {
    let mut node = Node::new(Some(policy(&[("/bin/a", [1; 32])])));
    let json = format!(r#"{{"7":"{}","mask":"0x100"}}"#, "00".repeat(32));
    node.tpm_policy = TpmPolicy::parse(&json).unwrap();
    let appraisal = node.attest();
    assert_eq!(ids(&appraisal), ["pcr_validation.missing_pcrs"]);
    assert_eq!(findings(&appraisal)[0].expected, ["PCR 7, 10"]);
}

#[test]
fn without_a_runtime_policy_every_measured_file_fails() {
    let mut node = Node::new(None);
    node.measure("/bin/a", &[1; 32]);
    let appraisal = node.attest();
    assert_eq!(ids(&appraisal), [NOT_LISTED]);
    assert!(
        findings(&appraisal)[0]
            .explanation
            .contains("no runtime policy")
    );
}

#[test]
fn findings_are_bounded_and_counted() {
    let mut node = Node::new(Some(policy(&[])));
    (0..1_500).for_each(|n| node.measure(&format!("/bin/{n}"), &[1; 32]));
    let appraisal = node.attest();
    assert_eq!(findings(&appraisal).len(), MAX_FINDINGS);
    let counted = (appraisal.findings_total, appraisal.findings_unseen);
    assert_eq!(counted, (1_500, 0));
}

#[test]
fn every_entry_is_compared_with_the_digests_of_its_own_file() {
    for count in [7u8, 8, 9, 17] {
        let name = |n: u8| format!("/bin/{n}");
        let names: Vec<_> = (0..count).map(name).collect();
        let files = names
            .iter()
            .map(String::as_str)
            .zip((0..count).map(|n| [n; 32]));
        let files: Vec<_> = files.collect();
        for broken in 0..=count {
            // Each entry has the digest of the file that is so many places on.
            for on in [0, 1, count - 1] {
                let mut node = Node::new(Some(policy(&files)));
                for n in 0..count {
                    if n == broken {
                        node.list.push("this is no entry\n".to_owned());
                    }
                    node.measure(&name(n), &[(n + on) % count; 32]);
                }
                let what = format!("{count} entries, {broken}, {on}");
                let mut wanted = vec![WRONG_DIGEST; if on == 0 { 0 } else { count.into() }];
                let appraisal = node.attest();
                if broken < count {
                    wanted.insert(0, UNPARSABLE);
                } else if on == 0 {
                    assert_eq!(trusted(&appraisal), u64::from(count), "{what}");
                    continue;
                }
                assert_eq!(ids(&appraisal), wanted, "{what}");
            }
        }
    }
}

#[test]
fn a_flood_of_findings_hides_no_other_kind() {
    let mut node = Node::new(Some(policy(&[])));
    let zero = Digest::zero(HashAlgorithm::Sha256);
    node.tpm_policy = TpmPolicy::parse(&format!(r#"{{"0":["{zero}"],"mask":"0x401"}}"#)).unwrap();
    node.tpm.extend(0, &[1; 32]);
    (0..1_500).for_each(|n| node.measure(&format!("/bin/{n}"), &[1; 32]));
    let appraisal = node.attest();
    assert_eq!(
        ids(&appraisal)[MAX_FINDINGS..],
        ["pcr_validation.invalid_pcr_0"]
    );

    // Only so many are looked at, and it is said that the others were not.
    (1_500..11_000).for_each(|n| node.measure(&format!("/bin/{n}"), &[1; 32]));
    let appraisal = node.attest();
    assert_eq!(findings(&appraisal).len(), MAX_FINDINGS);
    let counted = (appraisal.findings_total, appraisal.findings_unseen);
    assert_eq!(counted, (11_001, 1_001));
}

#[test]
fn names_in_findings_cannot_drive_a_terminal() {
    let mut node = Node::new(Some(policy(&[])));
    node.measure("/bin/\u{1b}[2Jx", &[1; 32]);
    let appraisal = node.attest();
    let text = serde_json::to_string(findings(&appraisal)).unwrap();
    assert!(
        !findings(&appraisal)[0].explanation.contains('\u{1b}'),
        "{text}"
    );
    assert!(text.contains("/bin/"), "{text}");
}

/// An identity quote of the vectors, with its AK and nonce.
pub(super) fn identity(index: usize) -> (AttestationKey, String, QuoteResponse) {
    let file = vectors("quotes.json");
    let quote = &file["quotes"][index];
    let ak = STANDARD.decode(quote["ak_tpm"].as_str().unwrap()).unwrap();
    let ak = AttestationKey::new(&Public::from_tpm2b(&ak).unwrap()).unwrap();
    let evidence = QuoteResponse {
        quote: quote["quote"].as_str().unwrap().to_owned(),
        hash_alg: "sha256".to_owned(),
        enc_alg: if ak.scheme().name() == "ecdsa" {
            "ecc"
        } else {
            "rsa"
        }
        .to_owned(),
        sign_alg: ak.scheme().name().to_owned(),
        pubkey: Some(file["pubkey"].as_str().unwrap().to_owned()),
        ..QuoteResponse::default()
    };
    (ak, file["nonce"].as_str().unwrap().to_owned(), evidence)
}

#[test]
fn identity_quotes_return_the_bound_key() {
    let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    let accept = AcceptedAlgorithms {
        hash: list(&["sha256"]),
        encryption: list(&["rsa2048", "ecc256"]),
        signing: list(&["rsassa", "ecdsa"]),
    };
    for index in 0..2 {
        let (ak, nonce, mut evidence) = identity(index);
        let key = appraise_identity(&ak, &nonce, &evidence, &accept)
            .unwrap()
            .to_owned();
        assert_eq!(Some(&key), evidence.pubkey.as_ref());
        let error = appraise_identity(&ak, "another", &evidence, &accept).unwrap_err();
        assert_eq!(error[0].id, QUOTE);
        evidence.pubkey = Some(key + " ");
        let error = appraise_identity(&ak, &nonce, &evidence, &accept).unwrap_err();
        assert_eq!(error[0].id, "pcr_validation.invalid_pcr_16");
        evidence.pubkey = None;
        let error = appraise_identity(&ak, &nonce, &evidence, &accept).unwrap_err();
        assert_eq!(error[0].id, "qoute_validation.no_pubkey");
    }
}
