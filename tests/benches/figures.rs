//! `cargo xtask bench`: the figures that docs/performance.md promises, each beside a floor that is
//! measured in the same run. Prints a table; asserts nothing.

use std::{
    borrow::Borrow,
    fmt::Write as _,
    fs,
    hint::black_box,
    io::Write as _,
    path::Path,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aws_lc_rs::{
    digest,
    encoding::{AsDer, PublicKeyX509Der},
    rand::SystemRandom,
    rsa::{KeyPair, KeySize},
    signature::{
        ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _,
        ParsedPublicKey, RSA_PKCS1_2048_8192_SHA256, RSA_PKCS1_SHA256,
    },
};
use base64::{Engine, prelude::BASE64_STANDARD as STANDARD};
use flate2::{Compression, write::GzEncoder};
use serde_json::json;
use troth_core::{
    appraise::{
        AcceptedAlgorithms, Challenge, ImaRules, NodeState, Policies, Tomtou, Verdict, appraise,
        appraise_answer,
    },
    bundle::{Bundle, Criteria, Head, Outcome, PolicyReference, Word, policy_digest},
    eventlog::EventLog,
    identity::AgentId,
    policy::{BootEngine, BootPolicy, BootRules, RuntimePolicy, TpmPolicy},
    tpm::{AttestationKey, Digest, Expected, HashAlgorithm, PcrMask, PcrValues, Quote},
    wire::{Envelope, QuoteResponse},
};
use troth_daemon::{
    client::Client,
    tls::{Identity, ServerTrust, client_config, load_certificates},
};
use troth_ipc::client::AgentClient;
use troth_tests::{
    boot::{Machine, fixtures},
    bus::Bus,
    fleet::{Agent, AgentOptions, Fleet, Programs},
    ima_list::{ImaList, policy, template},
    process::output_of,
    software_ak::SoftwareAk,
    usage::Usage,
};
use zbus::connection;

/// How long after its start an agent is taken to be idle.
const SETTLING: Duration = Duration::from_secs(3);

/// Files that a policy is made of.
const FILES: usize = 20_000;

/// Entries of the IMA list, and digests of the policy, that the figures are stated for.
const ENTRIES: usize = 50_000;
const DIGESTS: usize = 100_000;
/// Exclude patterns of that policy, and how many of it are weighed together.
const EXCLUDES: usize = 100;
const COPIES: u32 = 8;
/// Signed entries of a list.
const SIGNED: usize = 2_000;

/// A boot log of a real machine, about as long as a common one.
const BOOT_LOG: &[u8] =
    include_bytes!("../fixtures/public-logs/ubuntu_2104_shielded_vm_no_secure_boot_eventlog");

const NONCE: &str = "AbCdEfGhIj0123456789";

/// Quotes asked for per figure.
const QUOTES: usize = 101;

/// Properties that are read for a figure.
const READS: usize = 5_000;

/// What the agent's figures are compared with.
const TPM_TIME: &str = "the TPM's own time";

const MINUTE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let mut table = Table::default();
    quote_check(&mut table)?;
    ima(&mut table)?;
    boot_log(&mut table)?;
    evidence(&mut table)?;
    boot_policy(&mut table)?;
    // `cargo xtask bench` builds the daemons and says where they are.
    let programs = std::env::var_os("TROTH_BENCH_PROGRAMS")
        .context("TROTH_BENCH_PROGRAMS is not set: run `cargo xtask bench`");
    let agent = programs.and_then(|programs| {
        policy_of_files(&mut table, programs.as_ref())?;
        agent(&mut table, programs.as_ref())
    });
    table.print();
    agent
}

/// The whole check of a quote, over the one thing in it that cannot be saved.
fn quote_check(table: &mut Table) -> Result<()> {
    let floor = rsa_verify()?;
    let ak = SoftwareAk::generate()?;
    let mut pcrs = PcrValues::new(HashAlgorithm::Sha256);
    for pcr in [10, 16] {
        pcrs.set(pcr, HashAlgorithm::Sha256.digest(&[&[pcr]]));
    }
    let text = ak.quote(NONCE.as_bytes(), &pcrs, 1)?;
    let ak = AttestationKey::new(ak.public())?;
    let expected = Expected {
        nonce: NONCE.as_bytes(),
        hash: HashAlgorithm::Sha256,
        mask: pcrs.mask(),
    };
    Quote::parse(&text)?.verify(&ak, &expected)?;
    let figure = median(2_000, || {
        black_box(Quote::parse(&text).is_ok_and(|quote| quote.verify(&ak, &expected).is_ok()));
    });
    table.add(
        "quote check (parse, RSA-2048, PCRs)",
        figure,
        "RSA-2048 verify alone",
        floor,
        "<= 2x",
    );
    Ok(())
}

/// What AWS-LC needs to verify an RSA-2048 signature over a quote's bytes.
fn rsa_verify() -> Result<Duration> {
    let key = KeyPair::generate(KeySize::Rsa2048)?;
    let message = [7; 145];
    let mut signature = vec![0; key.public_modulus_len()];
    key.sign(
        &RSA_PKCS1_SHA256,
        &SystemRandom::new(),
        &message,
        &mut signature,
    )?;
    let parsed = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, key.public_key().as_ref())?;
    Ok(median(2_000, || {
        black_box(parsed.verify_sig(&message, &signature).is_ok());
    }))
}

/// IMA replay with a digest policy, per entry; signed entries; and what a policy weighs.
fn ima(table: &mut Table) -> Result<()> {
    let mut list = ImaList::new(ENTRIES);
    let pcr10 = list.pcr(ENTRIES);
    let templates: Vec<_> = (0..ENTRIES).map(template).collect();
    let mut policy = policy(DIGESTS);
    policy["excludes"] = (0..EXCLUDES)
        .map(|n| match n % 4 {
            0 => format!("/var/lib/service-{n}/.*"),
            1 => format!(r"/home/[^/]+/\.cache-{n}/.*"),
            2 => format!(r"/opt/(agent|job)-{n}/run\.\d+$"),
            _ => format!("/var/cache/package-{n}"),
        })
        .collect();
    let text = policy.to_string();
    let before = Usage::of(std::process::id())?.resident;
    let copies = (0..COPIES)
        .map(|_| RuntimePolicy::compile(text.as_bytes()))
        .collect::<Result<Vec<_>, _>>()?;
    let after = Usage::of(std::process::id())?.resident;
    println!(
        "runtime policy, {DIGESTS} digests and {EXCLUDES} excludes, compiled: {:.1} MiB each, by the \
         resident memory of {COPIES}; goal <= 12 MiB",
        after.saturating_sub(before) as f64 / f64::from(COPIES) / f64::from(1 << 20)
    );
    let runtime = copies.into_iter().next().context("no policy")?;

    let list = list.entries(0, ENTRIES).to_owned();
    let figure = host_of(&list, pcr10, ENTRIES)?.judged(15, || Ok(&runtime))?;
    // What no implementation can leave out: two hashes of the template data and one extend.
    let floor = median(15, || {
        let mut pcr = [0; 32];
        for template in &templates {
            black_box(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, template));
            let hash = digest::digest(&digest::SHA256, template);
            let mut context = digest::Context::new(&digest::SHA256);
            context.update(&pcr);
            context.update(hash.as_ref());
            pcr.copy_from_slice(context.finish().as_ref());
        }
        black_box(pcr);
    });
    table.add(
        "IMA replay + digest policy, per entry",
        per(ENTRIES, figure),
        "its three hashes",
        per(ENTRIES, floor),
        "<= 0.7 us, 2x",
    );
    signed_entries(table)
}

/// Entries that are trusted by their signatures alone: when a policy sees them first, and when it
/// has seen them on another node.
fn signed_entries(table: &mut Table) -> Result<()> {
    let random = SystemRandom::new();
    let rsa = KeyPair::generate(KeySize::Rsa2048)?;
    let sign_rsa = |message: &[u8]| {
        let mut signature = vec![0; rsa.public_modulus_len()];
        rsa.sign(&RSA_PKCS1_SHA256, &random, message, &mut signature)?;
        Ok(signature)
    };
    let of_rsa = ParsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, rsa.public_key().as_ref())?;
    let info: PublicKeyX509Der<'_> = rsa.public_key().as_der()?;
    signed_by(table, "RSA-2048", info.as_ref(), &of_rsa, &sign_rsa)?;
    let ec = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)?;
    let sign_ec = |message: &[u8]| Ok(ec.sign(&random, message)?.as_ref().to_owned());
    let of_ec = ParsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, ec.public_key().as_ref())?;
    let info: PublicKeyX509Der<'_> = ec.public_key().as_der()?;
    signed_by(table, "P-256", info.as_ref(), &of_ec, &sign_ec)
}

fn signed_by(
    table: &mut Table,
    kind: &str,
    info: &[u8],
    key: &ParsedPublicKey,
    sign: &dyn Fn(&[u8]) -> Result<Vec<u8>>,
) -> Result<()> {
    let mut policy = policy(1);
    let keyring = json!({"keyids": [1], "pubkeys": [STANDARD.encode(info)]});
    policy["verification-keys"] = json!(keyring.to_string());
    let policy = policy.to_string();
    let compile = || RuntimePolicy::compile(policy.as_bytes());

    let bank = HashAlgorithm::Sha256;
    let (mut list, mut pcr10) = (String::new(), Digest::zero(bank));
    let mut signatures = Vec::new();
    for n in 0..SIGNED {
        let path = format!("/usr/lib/signed/component-{n}.so");
        let content = bank.digest(&[path.as_bytes()]);
        let signature = sign(path.as_bytes())?;
        // Type, version, SHA-256, key id, size (linux/security/integrity/integrity.h).
        let mut blob = vec![3, 2, 4, 0, 0, 0, 1];
        blob.extend_from_slice(&u16::try_from(signature.len())?.to_be_bytes());
        blob.extend_from_slice(&signature);
        let mut template = Vec::new();
        let digest = [b"sha256:\0", content.as_bytes()].concat();
        for field in [&digest, [path.as_bytes(), b"\0"].concat().as_slice(), &blob] {
            template.extend_from_slice(&u32::try_from(field.len())?.to_le_bytes());
            template.extend_from_slice(field);
        }
        let hash = HashAlgorithm::Sha1.digest(&[&template]);
        let blob = hex::encode(blob);
        writeln!(list, "10 {hash} ima-sig sha256:{content} {path} {blob}")?;
        pcr10 = pcr10.extend(bank, bank.digest(&[&template]).as_bytes());
        signatures.push((path, signature));
    }
    let host = host_of(&list, pcr10, SIGNED)?;
    let floor = median(5, || {
        for (message, signature) in &signatures {
            black_box(key.verify_sig(message.as_bytes(), signature).is_ok());
        }
    });
    let first = host.judged(5, || Ok(compile()?))?;
    let shared = compile()?;
    let again = host.judged(15, || Ok(&shared))?;
    for (what, figure, goal) in [("first seen", first, "<= 1.1x"), ("seen before", again, "")] {
        table.add(
            &format!("IMA entry signed with {kind}, {what}"),
            per(SIGNED, figure),
            &format!("{kind} verify alone"),
            per(SIGNED, floor),
            goal,
        );
    }
    Ok(())
}

/// A host with nothing but an IMA list.
struct ImaHost {
    ak: AttestationKey,
    evidence: QuoteResponse,
    entries: usize,
}

fn host_of(list: &str, pcr10: Digest, entries: usize) -> Result<ImaHost> {
    let bank = HashAlgorithm::Sha256;
    let nk = "-----BEGIN PUBLIC KEY-----\nbench\n-----END PUBLIC KEY-----\n";
    let bound = bank.digest(&[nk.as_bytes()]);
    let mut pcrs = PcrValues::new(bank);
    pcrs.set(10, pcr10);
    pcrs.set(16, Digest::zero(bank).extend(bank, bound.as_bytes()));
    let software = SoftwareAk::generate()?;
    let evidence = QuoteResponse {
        quote: software.quote(NONCE.as_bytes(), &pcrs, 1)?,
        hash_alg: "sha256".into(),
        enc_alg: "rsa2048".into(),
        sign_alg: "rsassa".into(),
        pubkey: Some(nk.into()),
        ima_measurement_list: Some(list.to_owned()),
        ima_measurement_list_entry: Some(0),
        ..QuoteResponse::default()
    };
    Ok(ImaHost {
        ak: AttestationKey::new(software.public())?,
        evidence,
        entries,
    })
}

impl ImaHost {
    /// Median of `runs` appraisals, each by the policy that `policy` gives, which is not timed.
    fn judged<P: Borrow<RuntimePolicy>>(
        &self,
        runs: usize,
        policy: impl Fn() -> Result<P>,
    ) -> Result<Duration> {
        let tpm = TpmPolicy::parse(r#"{"mask": "0x400"}"#)?;
        let accept = AcceptedAlgorithms::of(&self.ak);
        let challenge = Challenge {
            nonce: NONCE,
            mask: PcrMask::from_hex("0x400")?,
            ima_entry: 0,
        };
        let state = NodeState::default();
        let mut times = Vec::new();
        for _ in 0..runs {
            let policy = policy()?;
            let policies = Policies {
                tpm: &tpm,
                runtime: Some(policy.borrow()),
                boot: &BootPolicy::None,
                accept: &accept,
                ima: ImaRules::default(),
            };
            let start = Instant::now();
            let appraisal = appraise(&self.ak, &challenge, &self.evidence, &policies, &state);
            times.push(start.elapsed());
            match appraisal.verdict {
                Verdict::Trusted(trusted) if trusted.ima_entries() == self.entries as u64 => {}
                verdict => bail!("the benchmark's own evidence is not trusted: {verdict:?}"),
            }
        }
        times.sort_unstable();
        Ok(times[runs / 2])
    }
}

fn per(entries: usize, time: Duration) -> Duration {
    time / u32::try_from(entries).unwrap_or(u32::MAX)
}

/// A boot log, from base64 to what the quote vouches for: all that the policy `{}` asks.
fn boot_log(table: &mut Table) -> Result<()> {
    let log = EventLog::parse(BOOT_LOG)?;
    let events = log.unverified_events().count();
    let software = SoftwareAk::generate()?;
    let ak = AttestationKey::new(software.public())?;
    let pcrs = log.replay(HashAlgorithm::Sha256);
    let quote = Quote::parse(&software.quote(NONCE.as_bytes(), &pcrs, 1)?)?;
    let expected = Expected {
        nonce: NONCE.as_bytes(),
        hash: HashAlgorithm::Sha256,
        mask: pcrs.mask(),
    };
    let quote = quote.verify(&ak, &expected)?;
    ensure!(
        log.verify(&quote).mismatches().is_empty(),
        "the log does not match"
    );
    let text = STANDARD.encode(BOOT_LOG);
    let figure = median(2_000, || {
        let bytes = STANDARD.decode(&text).unwrap_or_default();
        let log = EventLog::parse(&bytes);
        black_box(log.map(|log| log.verify(&quote).boot_aggregates()).is_ok());
    });
    let floor = median(2_000, || {
        for _ in 0..events {
            black_box(digest::digest(&digest::SHA256, &[7; 64]));
        }
    });
    let what = format!("boot log, {} bytes, {events} events", BOOT_LOG.len());
    table.add(&what, figure, "its extends", floor, "<= 150 us");
    Ok(())
}

/// Evidence bundles of a captured boot, as the verifier keeps them.
fn evidence(table: &mut Table) -> Result<()> {
    let boot = fixtures().join("boots/uki");
    let list = fs::read_to_string(boot.join("ima-ascii_runtime_measurements"))?;
    let log = STANDARD.encode(fs::read(boot.join("binary_bios_measurements"))?);
    let ak = SoftwareAk::generate()?;
    let mut pcrs = PcrValues::new(HashAlgorithm::Sha256);
    for pcr in 0..17 {
        pcrs.set(pcr, HashAlgorithm::Sha256.digest(&[&[pcr]]));
    }
    let gzipped = |bytes: &[u8]| {
        let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
        gzip.write_all(bytes)?;
        gzip.finish()
    };
    for list in ["", &list] {
        let entries = list.lines().count();
        let answer = serde_json::to_vec(&Envelope {
            code: 200,
            status: "Success".to_owned(),
            results: Some(QuoteResponse {
                quote: ak.quote(NONCE.as_bytes(), &pcrs, 1)?,
                hash_alg: "sha256".to_owned(),
                enc_alg: "rsa2048".to_owned(),
                sign_alg: "rsassa".to_owned(),
                ima_measurement_list: Some(list.to_owned()),
                ima_measurement_list_entry: Some(0),
                mb_measurement_list: Some(log.clone()),
                ..QuoteResponse::default()
            }),
        })?;
        let reference = |name: &str| {
            Some(PolicyReference {
                name: name.to_owned(),
                sha256: policy_digest(name.as_bytes()),
            })
        };
        let outcome = Outcome {
            verdict: Word::Trusted,
            findings: Vec::new(),
            findings_total: 0,
            state: NodeState::default(),
        };
        let outcome = outcome.canonical()?;
        let accepted = AttestationKey::new(ak.public())?;
        let bundle = Bundle {
            head: Head {
                maker: "bench".to_owned(),
                node: AgentId::new("d432fbb3-d2f1-4a97-9ef7-75bd81c00000")?,
                time_ms: 0,
                sequence: Some(1),
                nonce: NONCE.to_owned(),
                mask: PcrMask::from_bits(0xffff)?,
                ima_entry: 0,
                ak: ak.public().to_tpm2b(),
                state: NodeState::default(),
                criteria: Some(Criteria {
                    accept: AcceptedAlgorithms::of(&accepted),
                    tpm_policy: r#"{"mask": "0xffff"}"#.to_owned(),
                    runtime_policy: reference("base"),
                    boot_policy: reference("{}"),
                    boot_engine: BootEngine::default(),
                    tomtou: Tomtou::default(),
                    ima_keys: None,
                }),
            },
            answer: &answer,
            outcome: Some(&outcome),
            runtime_policy: None,
            boot_policy: None,
        };
        let bytes = bundle.to_bytes()?;
        println!(
            "evidence bundle, {entries} IMA entries and a boot log: {} bytes, {} gzipped",
            bytes.len(),
            gzipped(&bytes)?.len()
        );
        let figure = median(101, || {
            black_box(bundle.to_bytes().map(|bytes| gzipped(&bytes)).is_ok());
        });
        let floor = median(101, || {
            black_box(gzipped(&bytes).is_ok());
        });
        let what = format!("evidence bundle, {entries} IMA entries, written");
        table.add(&what, figure, "gzip alone", floor, "");
    }
    Ok(())
}

/// A boot by a boot policy that names all that it may hold, beyond the check of the quote: the first
/// time, and when the same log was judged before.
fn boot_policy(table: &mut Table) -> Result<()> {
    let log = EventLog::parse(BOOT_LOG)?;
    let bank = HashAlgorithm::Sha256;
    let rules = BootRules::from_log(&log, None, Some(bank), true)?;
    let rules = BootPolicy::parse(Some(&rules.to_json()))?;
    let nk = "-----BEGIN PUBLIC KEY-----\nbench\n-----END PUBLIC KEY-----\n";
    let mut pcrs = PcrValues::new(bank);
    let replayed = log.replay(bank);
    replayed
        .iter()
        .filter(|(pcr, _)| *pcr != 10)
        .for_each(|(pcr, value)| pcrs.set(pcr, *value));
    let bound = bank.digest(&[nk.as_bytes()]);
    pcrs.set(16, Digest::zero(bank).extend(bank, bound.as_bytes()));
    let software = SoftwareAk::generate()?;
    let ak = AttestationKey::new(software.public())?;
    let evidence = QuoteResponse {
        quote: software.quote(NONCE.as_bytes(), &pcrs, 1)?,
        hash_alg: "sha256".into(),
        enc_alg: "rsa2048".into(),
        sign_alg: "rsassa".into(),
        pubkey: Some(nk.into()),
        mb_measurement_list: Some(STANDARD.encode(BOOT_LOG)),
        ..QuoteResponse::default()
    };
    let tpm = TpmPolicy::parse(r#"{"mask": "0xfbff"}"#)?;
    let accept = AcceptedAlgorithms::of(&ak);
    let challenge = Challenge {
        nonce: NONCE,
        mask: tpm.mask(),
        ima_entry: 0,
    };
    let judge = |boot: &BootPolicy, state: &NodeState| {
        let policies = Policies {
            tpm: &tpm,
            runtime: None,
            boot,
            accept: &accept,
            ima: ImaRules::default(),
        };
        appraise(&ak, &challenge, &evidence, &policies, state)
    };
    let new = NodeState::default();
    let judged = judge(&rules, &new);
    if let Verdict::Failed(findings) = judged.verdict {
        bail!("the benchmark's own boot is not trusted: {findings:?}");
    }
    let known = NodeState {
        known_boot: judged.state.known_boot,
        ..NodeState::default()
    };
    let time = |boot: &BootPolicy, state: &NodeState| {
        median(2_000, || {
            black_box(judge(boot, state));
        })
    };
    let quote = time(&BootPolicy::None, &new);
    let events = log.unverified_events().count();
    let what = format!(
        "boot judged, {} bytes, {events} events, first time",
        BOOT_LOG.len()
    );
    let figure = time(&rules, &new).saturating_sub(quote);
    let floor = median(2_000, || {
        black_box(digest::digest(&digest::SHA256, BOOT_LOG));
    });
    table.add(&what, figure, "SHA-256 of the log", floor, "<= 150 us");
    let figure = time(&rules, &known).saturating_sub(quote);
    table.add(
        "the same, again",
        figure,
        "SHA-256 of the log",
        floor,
        "<= 5 us",
    );
    // The whole answer of a node that has nothing new, from its JSON on.
    let body = serde_json::to_vec(&json!({
        "code": 200, "status": "Success", "results": &evidence
    }))?;
    let policies = Policies {
        tpm: &tpm,
        runtime: None,
        boot: &rules,
        accept: &accept,
        ima: ImaRules::default(),
    };
    let answer = || appraise_answer(&ak, &challenge, &body, &policies, &known).0;
    ensure!(
        matches!(answer().verdict, Verdict::Trusted(_)),
        "the benchmark's own answer is not trusted"
    );
    let figure = median(2_000, || {
        black_box(answer());
    });
    table.add(
        "attestation without anything new, from JSON to verdict",
        figure,
        "RSA-2048 verify alone",
        rsa_verify()?,
        "<= verify + 30 us",
    );
    Ok(())
}

/// `policy create runtime` beside `sha256sum` on all cores, over files that are in memory: from 300
/// bytes to 77 KB, and a few of 4 MB, 420 MB in all.
fn policy_of_files(table: &mut Table, programs: &Path) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let root = directory.path().join("root");
    for index in 0..FILES {
        let place = root.join(format!("usr/{}", index / 200));
        fs::create_dir_all(&place)?;
        let size = match index % 1000 {
            0 => 4 << 20,
            _ => 300 << (index % 9),
        };
        let content: Vec<_> = index.to_le_bytes().into_iter().cycle().take(size).collect();
        fs::write(place.join(index.to_string()), content)?;
    }
    let timed = |command: &mut Command| -> Result<Duration> {
        let start = Instant::now();
        output_of(command)?;
        Ok(start.elapsed())
    };
    let programs = Programs::in_directory(programs);
    let policy = directory.path().join("policy.json");
    let (mut ours, mut theirs) = (Vec::new(), Vec::new());
    for _ in 0..5 {
        let mut command = programs.command("trothctl")?;
        command.args(["policy", "create", "runtime", "--all-owners", "--root"]);
        ours.push(timed(command.arg(&root).arg("--output").arg(&policy))?);
        let mut command = Command::new("sh");
        let line =
            "find \"$1\" -type f -print0 | xargs -0 -P$(nproc) -n 100 sha256sum > \"$1.sums\"";
        theirs.push(timed(command.args(["-c", line, "sh"]).arg(&root))?);
    }
    ours.sort_unstable();
    theirs.sort_unstable();
    table.add(
        "policy create runtime, 20,000 files",
        ours[ours.len() / 2],
        "xargs -P sha256sum",
        theirs[theirs.len() / 2],
        "<= 1x",
    );
    Ok(())
}

/// The agent as a process on swtpm, asked over one kept mTLS connection.
fn agent(table: &mut Table, programs: &Path) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let programs = Programs::in_directory(programs);
    let machine = Machine::booted(&directory.path().join("machine"))?;
    let fleet = Fleet::start(
        &programs,
        &directory.path().join("fleet"),
        Duration::from_secs(60),
    )?;
    let mut list = ImaList::new(ENTRIES);
    let list = list.entries(0, ENTRIES);
    fs::write(machine.ima_list(), list)?;
    let bus = Bus::start(&directory.path().join("bus"))?;
    let options = AgentOptions {
        environment: vec![("DBUS_SYSTEM_BUS_ADDRESS".to_owned(), bus.address())],
        ..AgentOptions::with_id("bench")
    };
    let place = directory.path().join("agent");
    let (registrar, ca) = (fleet.registrar_port(), fleet.ca_dir());
    let (before, start) = (machine.tpm().busy(), Instant::now());
    let mut agent = Agent::start(&programs, &place, &machine, registrar, &ca, &options)?;
    activated(&mut agent, 0)?;
    let (time, tpm) = (start.elapsed(), machine.tpm().busy() - before);
    table.add(
        "agent, first start to activated",
        time,
        TPM_TIME,
        tpm,
        "<= TPM + 60 ms",
    );
    ensure!(
        agent.process().terminate()?.success(),
        "the agent did not stop cleanly"
    );
    let log = agent.process().log().len();
    let (before, start) = (machine.tpm().busy(), Instant::now());
    agent.start_again()?;
    activated(&mut agent, log)?;
    let (time, tpm) = (start.elapsed(), machine.tpm().busy() - before);
    table.add(
        "agent, start with its keys to activated",
        time,
        TPM_TIME,
        tpm,
        "<= TPM + 60 ms",
    );
    ensure!(
        agent.process().terminate()?.success(),
        "the agent did not stop cleanly"
    );
    // With a socket, which takes what opens it some time.
    let socket = directory.path().join("varlink");
    let options = AgentOptions {
        varlink: Some(socket.clone()),
        ..options
    };
    let log = agent.process().log().len();
    let mut agent = Agent::start(&programs, &place, &machine, registrar, &ca, &options)?;
    activated(&mut agent, log)?;
    let pid = agent.process().id();
    thread::sleep(SETTLING);
    let idle = Usage::of(pid)?;
    println!(
        "agent, binary without symbols: {:.1} MB; goal <= 8 MB",
        stripped(&programs)?
    );

    let operator = Identity::load(&ca.join("client-cert.crt"), &ca.join("client-private.pem"))?;
    let certificate = load_certificates(&agent.tls_files().0)?.remove(0);
    let tls = client_config(ServerTrust::Pinned(certificate), Some(&operator))?;
    let port = agent.address().port();
    let connect = || Client::new("127.0.0.1", port, Some(Arc::clone(&tls)), MINUTE);
    let client = connect().body_limit(64 * 1024 * 1024);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let ask = |client: &Client, path: &str| -> Result<usize> {
        let answer = runtime.block_on(client.get(path))?;
        ensure!(answer.status == 200, "{path}: status {}", answer.status);
        Ok(answer.body.len())
    };
    let get = |path: &str| ask(&client, path);
    let measure = |table: &mut Table, what: &str, get: &dyn Fn() -> Result<usize>, goal: &str| {
        get()?;
        let (mut times, mut tpm_times) = (Vec::new(), Vec::new());
        let cpu = cpu_time(pid)?;
        for _ in 0..QUOTES {
            let (before, start) = (machine.tpm().busy(), Instant::now());
            get()?;
            times.push(start.elapsed());
            tpm_times.push(machine.tpm().busy() - before);
        }
        let cpu = (cpu_time(pid)? - cpu) / u32::try_from(QUOTES)?;
        times.sort_unstable();
        tpm_times.sort_unstable();
        table.add(
            what,
            times[QUOTES / 2],
            TPM_TIME,
            tpm_times[QUOTES / 2],
            goal,
        );
        println!("{what}: {} of the agent's CPU time each", duration(cpu));
        anyhow::Ok(())
    };
    let quote = |table: &mut Table, what: &str, path: &str, goal: &str| {
        measure(table, what, &|| get(path), goal)
    };
    let identity = format!("/v2.6/quotes/identity?nonce={NONCE}");
    quote(
        table,
        "agent, identity quote, p50",
        &identity,
        "<= TPM + 1 ms",
    )?;
    measure(
        table,
        "agent, identity quote on a new connection, p50",
        &|| ask(&connect(), &identity),
        "<= TPM + 3 ms",
    )?;
    local_reads(table, &bus, &socket, &connect(), &identity)?;
    let integrity = |entry: usize| {
        format!("/v2.6/quotes/integrity?nonce={NONCE}&mask=0x400&partial=1&ima_ml_entry={entry}")
    };
    let nothing_new = integrity(ENTRIES);
    quote(
        table,
        "agent, integrity quote, nothing new, p50",
        &nothing_new,
        "<= TPM + 1 ms",
    )?;
    let whole = integrity(0);
    ensure!(
        get(&whole)? > list.len(),
        "the agent does not hand out the whole list"
    );
    quote(
        table,
        "agent, integrity quote, 50,000 entries, p50",
        &whole,
        "",
    )?;
    let used = Usage::of(pid)?;
    println!(
        "agent, resident memory: {:.1} MB idle, {:.1} MB after {} answers with {ENTRIES} entries \
         (peak {:.1} MB); goal <= 12 MB",
        megabytes(idle.resident),
        megabytes(used.resident),
        QUOTES + 2,
        megabytes(used.peak),
    );
    ensure!(
        agent.process().terminate()?.success(),
        "the agent did not stop cleanly"
    );
    Ok(())
}

/// Reads of a property over D-Bus, and of the status over varlink at `socket`, while `client` asks for
/// one quote after the other. The peer is the bus daemon, which answers a call of its own.
fn local_reads(
    table: &mut Table,
    bus: &Bus,
    socket: &Path,
    client: &Client,
    quote: &str,
) -> Result<()> {
    let runtime = || {
        let mut builder = tokio::runtime::Builder::new_current_thread();
        builder.enable_all().build()
    };
    let stop = AtomicBool::new(false);
    let ([property, status, daemon], quotes) = thread::scope(|scope| -> Result<_> {
        let quotes = scope.spawn(|| -> Result<usize> {
            let runtime = runtime()?;
            let mut quotes = 0;
            while !stop.load(Ordering::Relaxed) {
                let answer = runtime.block_on(client.get(quote))?;
                ensure!(answer.status == 200, "{quote}: status {}", answer.status);
                quotes += 1;
            }
            Ok(quotes)
        });
        let address = bus.address();
        let read = runtime()?.block_on(async {
            let bus = connection::Builder::address(address.as_str())
                .build()
                .await?;
            let state = ("org.troth.Agent1", "State");
            let daemon = "org.freedesktop.DBus";
            let mut agent = AgentClient::connect(socket).await?;
            let mut times = [const { Vec::new() }; 3];
            for _ in 0..READS {
                let start = Instant::now();
                bus.call_method(
                    Some("org.troth.Agent1"),
                    "/org/troth/Agent1",
                    Some("org.freedesktop.DBus.Properties"),
                    "Get",
                    &state,
                )
                .await?;
                times[0].push(start.elapsed());
                let start = Instant::now();
                agent.status().await?;
                times[1].push(start.elapsed());
                let start = Instant::now();
                bus.call_method(Some(daemon), "/", Some(daemon), "GetId", &())
                    .await?;
                times[2].push(start.elapsed());
            }
            anyhow::Ok(times)
        });
        stop.store(true, Ordering::Relaxed);
        let quotes = quotes.join().map_err(|_| anyhow!("the quotes ended"))??;
        Ok((read?, quotes))
    })?;
    let p99 = |mut times: Vec<Duration>| {
        times.sort_unstable();
        times[READS * 99 / 100]
    };
    let floor = p99(daemon);
    for (what, times) in [
        ("agent, property over D-Bus while it quotes, p99", property),
        ("agent, GetStatus over varlink while it quotes, p99", status),
    ] {
        let peer = "a call that the bus daemon answers, p99";
        table.add(what, p99(times), peer, floor, "<= 1 ms");
    }
    println!("{READS} of each were read during {quotes} quotes");
    Ok(())
}

/// Waits until the agent's log says from byte `from` on that it is registered.
fn activated(agent: &mut Agent, from: usize) -> Result<()> {
    let done = |log: &str| log.contains("registered and activated").then_some(());
    agent.process().wait_for_log(from, done)
}

/// Size of the agent's program in MB (10^6 bytes), as packages ship it.
fn stripped(programs: &Programs) -> Result<f64> {
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("agent");
    let program = programs.command("troth-agent")?;
    output_of(
        Command::new("strip")
            .arg("-o")
            .arg(&out)
            .arg(program.get_program()),
    )?;
    Ok(megabytes(fs::metadata(out)?.len()))
}

fn megabytes(bytes: u64) -> f64 {
    bytes as f64 / 1e6
}

/// User and system time of a process so far, by its scheduler's count in nanoseconds.
fn cpu_time(pid: u32) -> Result<Duration> {
    let mut nanos = 0;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let schedstat = fs::read_to_string(task?.path().join("schedstat"))?;
        let first = schedstat
            .split_whitespace()
            .next()
            .context("empty schedstat")?;
        nanos += first.parse::<u64>()?;
    }
    Ok(Duration::from_nanos(nanos))
}

fn median(runs: usize, mut work: impl FnMut()) -> Duration {
    work();
    let mut times: Vec<_> = (0..runs)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    times.sort_unstable();
    times[runs / 2]
}

/// Rows of figure, floor and ratio.
#[derive(Default)]
struct Table(Vec<[String; 6]>);

impl Table {
    fn add(&mut self, what: &str, figure: Duration, than: &str, floor: Duration, goal: &str) {
        let ratio = figure.as_secs_f64() / floor.as_secs_f64();
        self.0.push([
            what.to_owned(),
            duration(figure),
            than.to_owned(),
            duration(floor),
            format!("{ratio:.2}"),
            goal.to_owned(),
        ]);
    }

    fn print(&self) {
        let head = ["what", "figure", "floor", "floor takes", "ratio", "goal"].map(str::to_owned);
        println!("| {} |", head.join(" | "));
        println!("| --- | --- | --- | --- | --- | --- |");
        for row in &self.0 {
            println!("| {} |", row.join(" | "));
        }
    }
}

fn duration(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    if micros < 1_000.0 {
        format!("{micros:.2} us")
    } else {
        format!("{:.2} ms", micros / 1e3)
    }
}
