use std::{net::IpAddr, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{StatusCode, body::Incoming};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use troth_core::{
    appraise::{
        AcceptedAlgorithms, Finding, ImaRules, Policies, Tomtou, appraise_evidence, appraise_quote,
    },
    identity::check_ak,
    policy::{BootEngine, BootPolicy, RuntimePolicy, TpmPolicy},
    tpm::{AttestationKey, Public},
    wire::QuoteResponse,
};
use troth_daemon::server::read_shared_body;

use crate::{
    config::VerifierConfig,
    limit::SourceLimit,
    rest::{self, Refusal, Reply},
    store::percent_decoded,
};

/// Largest evidence in bytes: some 80,000 entries of an IMA list, and a policy.
const MAX_EVIDENCE: usize = 16 << 20;
/// Bytes for each check at a time: its own evidence, and another that is being sent meanwhile.
const ROOM: usize = 2 * MAX_EVIDENCE;

/// Checks for anybody, in places of their own: attestation never waits for them.
#[derive(Debug)]
pub(super) struct OnDemand {
    slots: Arc<Semaphore>,
    /// KiB for evidence that is being sent or checked.
    room: Arc<Semaphore>,
    limit: SourceLimit,
    /// What judges refstates.
    engine: BootEngine,
    tomtou: Tomtou,
}

/// The body of a `POST /verify/evidence`. Typed, as a tree of JSON values would take many times
/// the memory that was sent.
#[derive(Deserialize)]
struct Request {
    #[serde(default, rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    data: Option<Evidence>,
}

/// What a TPM's evidence is made of.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Evidence {
    #[serde(skip_serializing_if = "Option::is_none")]
    quote: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nonce: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hash_alg: Option<String>,
    /// Of no use here: that the TPM holds both keys was shown to a registrar.
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm_ek: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm_ak: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tpm_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    runtime_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mb_policy: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ima_measurement_list: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    mb_log: Option<String>,
}

/// `results` of a check of evidence.
#[derive(Serialize)]
struct Verdict {
    valid: bool,
    /// What was sent, when it is valid.
    claims: Evidence,
    failures: Vec<Failure>,
}

#[derive(Serialize)]
struct Failure {
    #[serde(rename = "type")]
    id: String,
    context: Value,
}

impl Failure {
    fn new(id: &str, message: &str) -> Self {
        Self {
            id: id.to_owned(),
            context: json!({ "message": message }),
        }
    }
}

impl From<Finding> for Failure {
    fn from(finding: Finding) -> Self {
        let context = json!({
            "message": finding.explanation, "place": finding.place,
            "expected": finding.expected, "got": finding.got, "action": finding.action,
        });
        Self {
            id: finding.id,
            context,
        }
    }
}

impl OnDemand {
    pub(super) fn new(config: &VerifierConfig) -> Self {
        Self {
            slots: Arc::new(Semaphore::new(config.max_evidence_checks)),
            room: Arc::new(Semaphore::new(
                config.max_evidence_checks.min(1 << 20) * ROOM / 1024,
            )),
            limit: SourceLimit::new(config.evidence_rate_limit),
            engine: config.measured_boot_policy_name,
            tomtou: config.tomtou,
        }
    }

    /// A place for one check.
    fn enter(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        let slot = Arc::clone(&self.slots).try_acquire_owned();
        slot.map_err(|_| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "as much evidence as this verifier checks at a time is being checked",
            )
        })
    }

    /// `GET /verify/identity`: did the AK of an enrolled agent make this quote? `key` finds it.
    pub(super) async fn identity(
        &self,
        source: IpAddr,
        query: &str,
        key: impl FnOnce(&str) -> Option<Arc<AttestationKey>>,
    ) -> Reply {
        self.limit.take(source)?;
        let slot = self.enter()?;
        let id = parameter(query, "agent_uuid")?;
        let quote = parameter(query, "quote")?;
        let nonce = parameter(query, "nonce")?;
        let hash_alg = parameter(query, "hash_alg")?;
        let key = key(&id).ok_or_else(|| Refusal::not_found("agent id not found"))?;
        let evidence = QuoteResponse {
            quote,
            hash_alg,
            ..QuoteResponse::default()
        };
        let verdict = check(slot, move || appraise_quote(&key, &nonce, &evidence)).await?;
        Ok(rest::success(match verdict {
            Ok(()) => json!({ "valid": 1 }),
            Err(finding) => json!({ "valid": 0, "reason": finding.explanation }),
        }))
    }

    /// `POST /verify/evidence`: what the evidence of any TPM is worth.
    pub(super) async fn evidence(&self, source: IpAddr, body: Incoming) -> Reply {
        self.limit.take(source)?;
        if self.slots.available_permits() == 0 {
            // Said before all of it is sent.
            drop(self.enter()?);
        }
        // A place is for what can be checked now, not for who sends slowly.
        let (body, held) = read_shared_body(body, MAX_EVIDENCE, &self.room).await?;
        let slot = self.enter()?;
        let ima = ImaRules {
            tomtou: self.tomtou,
            keys: None,
        };
        let engine = self.engine;
        let verdict = check(slot, move || {
            let verdict = judge(&body, engine, ima);
            drop(held);
            verdict
        });
        let verdict = verdict.await??;
        let malformed = |failure: &Failure| failure.id.starts_with("default.missing_");
        Ok(if verdict.failures.iter().any(malformed) {
            rest::envelope(StatusCode::BAD_REQUEST, "Bad Request", verdict)
        } else {
            rest::success(verdict)
        })
    }
}

async fn check<T: Send + 'static>(
    slot: OwnedSemaphorePermit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Refusal> {
    let task = tokio::task::spawn_blocking(move || {
        let result = work();
        drop(slot);
        result
    });
    task.await.map_err(|error| Refusal::internal(&error))
}

/// Judges the body of a `POST /verify/evidence`.
fn judge(body: &[u8], engine: BootEngine, ima: ImaRules<'_>) -> Result<Verdict, Refusal> {
    let Request { kind, data } = serde_json::from_slice(body)
        .map_err(|error| Refusal::bad_request(format!("body: {error}")))?;
    let missing = |name| Refusal::bad_request(format!("missing parameter '{name}'"));
    let kind = kind.filter(|kind| !kind.is_empty());
    let kind = kind.ok_or_else(|| missing("type"))?;
    let evidence = data.ok_or_else(|| missing("data"))?;
    match kind.as_str() {
        "tpm" => {}
        "tee" => {
            return Err(Refusal::bad_request(
                "evidence of type tee is not supported: to check it takes the key service of the \
                 processor's vendor, which this verifier does not ask",
            ));
        }
        _ => return Err(Refusal::bad_request("invalid evidence type")),
    }
    let failures = tpm_failures(&evidence, engine, ima)?;
    let valid = failures.is_empty();
    Ok(Verdict {
        valid,
        claims: match valid {
            true => evidence,
            false => Evidence::default(),
        },
        failures,
    })
}

/// What is wrong with the evidence of a TPM; an error is about the policies that came with it.
fn tpm_failures(
    sent: &Evidence,
    engine: BootEngine,
    ima: ImaRules<'_>,
) -> Result<Vec<Failure>, Refusal> {
    let required = [
        ("quote", text(&sent.quote)),
        ("nonce", text(&sent.nonce)),
        ("hash_alg", text(&sent.hash_alg)),
        ("tpm_ek", text(&sent.tpm_ek)),
        ("tpm_ak", text(&sent.tpm_ak)),
    ];
    if let Some((name, _)) = required.iter().find(|(_, text)| text.is_none()) {
        let message = format!("missing parameter \"{name}\"");
        return Ok(vec![Failure::new("default.missing_param", &message)]);
    }
    let [quote, nonce, hash_alg, _, ak] = required.map(|(_, text)| text.unwrap_or_default());
    let (tpm, boot) = (text(&sent.tpm_policy), text(&sent.mb_policy));
    let runtime = text(&sent.runtime_policy);
    if (tpm, runtime, boot) == (None, None, None) {
        let message =
            "at least one policy (tpm_policy, runtime_policy, or mb_policy) must be provided";
        return Ok(vec![Failure::new("default.missing_policy", message)]);
    }
    let unusable =
        |name: &'static str| move |error| Refusal::bad_request(format!("{name}: {error}"));
    let tpm = tpm_policy(tpm.unwrap_or("{}")).map_err(unusable("tpm_policy"))?;
    let runtime = runtime.map(|text| RuntimePolicy::compile_text(text.as_bytes()));
    let runtime = runtime.transpose().map_err(unusable("runtime_policy"))?;
    let boot = BootPolicy::parse_for(boot, engine).map_err(unusable("mb_policy"))?;
    let ak = match attestation_key(ak) {
        Ok(ak) => ak,
        Err(reason) => {
            return Ok(vec![Failure::new(
                "qoute_validation.invalid_quote",
                &reason,
            )]);
        }
    };
    let owned = |member| text(member).map(str::to_owned);
    let evidence = QuoteResponse {
        quote: quote.to_owned(),
        hash_alg: hash_alg.to_owned(),
        ima_measurement_list: owned(&sent.ima_measurement_list),
        mb_measurement_list: owned(&sent.mb_log),
        ..QuoteResponse::default()
    };
    let policies = Policies {
        tpm: &tpm,
        runtime: runtime.as_ref(),
        boot: &boot,
        accept: &AcceptedAlgorithms::of(&ak),
        ima,
    };
    Ok(match appraise_evidence(&ak, nonce, &evidence, &policies) {
        Ok(()) => Vec::new(),
        Err(findings) => findings.into_iter().map(Failure::from).collect(),
    })
}

/// Null, absence and `""` are the same.
fn text(member: &Option<String>) -> Option<&str> {
    member.as_deref().filter(|text| !text.is_empty())
}

/// As the verifier's API carries it, or as operators write it: without `mask`.
fn tpm_policy(text: &str) -> Result<TpmPolicy, troth_core::policy::PolicyError> {
    TpmPolicy::from_operator(text).or_else(|error| TpmPolicy::parse(text).map_err(|_| error))
}

fn attestation_key(encoded: &str) -> Result<AttestationKey, String> {
    let bytes = STANDARD
        .decode(encoded)
        .map_err(|_| String::from("tpm_ak is not base64"))?;
    let public = Public::from_tpm2b(&bytes).map_err(|error| format!("tpm_ak: {error}"))?;
    check_ak(&public).map_err(|error| format!("tpm_ak: {error}"))?;
    AttestationKey::new(&public).map_err(|error| format!("tpm_ak: {error}"))
}

/// A parameter of a query. `+` is itself, not a space: base64 has it.
fn parameter(query: &str, name: &str) -> Result<String, Refusal> {
    let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .find(|(key, _)| *key == name)
        .and_then(|(_, value)| String::from_utf8(percent_decoded(value)).ok())
        .filter(|value| !value.is_empty())
        .ok_or_else(|| Refusal::bad_request(format!("missing query parameter '{name}'")))
}
