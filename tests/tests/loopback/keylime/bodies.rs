use std::collections::BTreeMap;
use std::fs;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD as BASE64;
use hyper::Method;
use serde_json::{Value, json};
use troth_tests::api::Api;
use troth_tests::boot::Machine;
use troth_tests::fleet::{Agent, AgentOptions, Fleet, Programs, QUOTE_INTERVAL};
use troth_tests::keylime::{Keylime, Servers, Tenant};

use crate::copy_files;

const ID: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81c00003";
const UNKNOWN: &str = "d432fbb3-d2f1-4a97-9ef7-75bd81cfffff";

/// Keylime's servers and ours, under Keylime's CA, with one agent that both know.
struct Both {
    // Dropped from the top: daemons before the TPM, everything before the files.
    _agent: Agent,
    fleet: Fleet,
    keylime: Keylime,
    tenant: Tenant,
    machine: Machine,
    _directory: tempfile::TempDir,
}

impl Both {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let machine = Machine::booted(&directory.path().join("machine")).unwrap();
        let issuer = machine.tpm().ek_issuer();
        let keylime = Keylime::start(&directory.path().join("keylime"), &issuer).unwrap();
        let programs = Programs::beside_this().unwrap();
        let place = directory.path().join("fleet");
        copy_files(&keylime.ca_dir(), &place.join("state/cv_ca"));
        let fleet = Fleet::start(&programs, &place, QUOTE_INTERVAL).unwrap();
        let servers = Servers {
            verifier_port: fleet.verifier_port(),
            registrar_tls_port: fleet.registrar_tls_port(),
            ca_dir: &keylime.ca_dir(),
        };
        let tenant = Tenant::new(&directory.path().join("tenant"), servers, &issuer).unwrap();

        // One agent, registered at both, one after the other.
        let mut agent = Agent::start(
            &programs,
            &directory.path().join("agent"),
            &machine,
            keylime.registrar_port(),
            &keylime.ca_dir(),
            &AgentOptions::with_id(ID),
        )
        .unwrap();
        agent.move_to(fleet.registrar_port()).unwrap();
        fleet.wait_registered(ID).unwrap();
        Self {
            _agent: agent,
            fleet,
            keylime,
            tenant,
            machine,
            _directory: directory,
        }
    }

    /// What Keylime's tenant posts to a verifier, without any policy.
    fn enrolment(&self) -> Value {
        let port = self.fleet.registrar_tls_port();
        let registrar = Api::operator(port, &self.keylime.ca_dir()).unwrap();
        let record = registrar.get(&format!("/v2.6/agents/{ID}")).unwrap().body["results"].take();
        json!({
            "v": null, "cloudagent_ip": record["ip"], "cloudagent_port": record["port"],
            "verifier_ip": "127.0.0.1", "verifier_port": "8881",
            "tpm_policy": "{\"mask\": \"0x0\"}", "metadata": "{}",
            "runtime_policy": "", "runtime_policy_name": "", "runtime_policy_key": "",
            "mb_policy": null, "mb_policy_name": "", "ima_sign_verification_keys": "",
            "revocation_key": "", "accept_tpm_hash_algs": ["sha256"],
            "accept_tpm_encryption_algs": ["rsa"], "accept_tpm_signing_algs": ["rsassa"],
            "ak_tpm": record["aik_tpm"], "mtls_cert": record["mtls_cert"],
            "supported_version": "2.6",
        })
    }

    /// Operators of Keylime's server and of ours.
    fn operators(&self, keylimes_port: u16, our_port: u16) -> [Api; 2] {
        [keylimes_port, our_port].map(|port| Api::operator(port, &self.keylime.ca_dir()).unwrap())
    }
}

/// The shape of a JSON value: members and types, no values.
fn shape(value: &Value) -> Value {
    match value {
        Value::Null => json!("null"),
        Value::Bool(_) => json!("bool"),
        Value::Number(_) => json!("number"),
        Value::String(_) => json!("string"),
        Value::Array(items) => items.iter().map(shape).collect(),
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| (name.clone(), shape(value)))
            .collect::<serde_json::Map<_, _>>()
            .into(),
    }
}

/// Where two shapes differ, by JSON pointer.
fn differences(keylimes: &Value, ours: &Value) -> BTreeMap<String, String> {
    fn walk(at: &str, keylimes: &Value, ours: &Value, found: &mut BTreeMap<String, String>) {
        match (keylimes, ours) {
            (Value::Object(theirs), Value::Object(our)) => {
                for name in theirs.keys().chain(our.keys()) {
                    let absent = json!("absent");
                    let get = |members: &serde_json::Map<String, Value>| {
                        members.get(name).unwrap_or(&absent).clone()
                    };
                    walk(&format!("{at}/{name}"), &get(theirs), &get(our), found);
                }
            }
            _ if keylimes == ours => {}
            _ => {
                found.insert(at.to_owned(), format!("{keylimes} there, {ours} here"));
            }
        }
    }
    let mut found = BTreeMap::new();
    walk("", keylimes, ours, &mut found);
    found
}

/// A request, and where our answer is another than Keylime's on purpose.
struct Case {
    method: Method,
    path: String,
    /// As it is sent, which may be no JSON.
    body: Option<String>,
    /// Status there and here, and why, if they differ.
    status: Option<(u16, u16, &'static str)>,
    /// Members that differ, and why.
    members: &'static [(&'static str, &'static str)],
    /// Why `status` says it in other words, if it does.
    words: Option<&'static str>,
    /// Are the results the same, not only members and types of them?
    same: bool,
}

impl Case {
    fn new(method: Method, path: impl Into<String>) -> Self {
        Self {
            method,
            path: path.into(),
            body: None,
            status: None,
            members: &[],
            words: None,
            same: false,
        }
    }

    fn get(path: impl Into<String>) -> Self {
        Self::new(Method::GET, path)
    }

    fn body(mut self, body: Value) -> Self {
        self.body = Some(body.to_string());
        self
    }

    fn text(mut self, body: &str) -> Self {
        self.body = Some(body.to_owned());
        self
    }

    fn status(mut self, there: u16, here: u16, why: &'static str) -> Self {
        self.status = Some((there, here, why));
        self
    }

    fn members(mut self, members: &'static [(&'static str, &'static str)]) -> Self {
        self.members = members;
        self
    }

    fn words(mut self, why: &'static str) -> Self {
        self.words = Some(why);
        self
    }

    fn same(mut self) -> Self {
        self.same = true;
        self
    }

    /// What is not as this case says; empty when all is.
    fn run(&self, [keylimes, ours]: [&Api; 2]) -> Vec<String> {
        let ask = |api: &Api| {
            let body = self.body.as_deref();
            api.send_text(self.method.clone(), &self.path, body)
                .unwrap()
        };
        let (theirs, our) = (ask(keylimes), ask(ours));
        let mut wrong = Vec::new();
        let mut complain = |what: String| {
            wrong.push(format!("{} {}: {what}", self.method, self.path));
        };
        let (there, here, _) = self.status.unwrap_or((theirs.status, theirs.status, ""));
        if (theirs.status, our.status) != (there, here) {
            complain(format!(
                "status {} there, {} here: {} {}",
                theirs.status, our.status, theirs.body, our.body
            ));
        }
        // A refusal without a body there has a reason here: Troth's errors always say why.
        if theirs.body != Value::Null && there == here {
            let mut found = differences(&shape(&theirs.body), &shape(&our.body));
            for (member, _) in self.members {
                if found.remove(*member).is_none() {
                    complain(format!("{member} is alike, the table says it is not"));
                }
            }
            for (member, how) in found {
                complain(format!("{member}: {how}"));
            }
        }
        let word = |body: &Value| body["status"].as_str().map(str::to_owned);
        if let (Some(theirs), Some(ours)) = (word(&theirs.body), word(&our.body))
            && there == here
            // A reason may follow.
            && ours.starts_with(&theirs) == self.words.is_some()
        {
            complain(format!("the words: {theirs:?} there, {ours:?} here"));
        }
        if self.same && theirs.body["results"] != our.body["results"] {
            complain(format!("{} there, {} here", theirs.body, our.body));
        }
        if our.body == Value::Null && !matches!(our.status, 204 | 307) {
            complain("no body here".to_owned());
        }
        wrong
    }
}

fn run_all(apis: [&Api; 2], cases: &[Case]) {
    let wrong: Vec<_> = cases.iter().flat_map(|case| case.run(apis)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Beyond Keylime's members, under one name that nobody else uses.
const OWN_VIEW: &[(&str, &str)] = &[("/results/troth", "our own view of the node")];

/// The same in the list of all.
const OWN_VIEWS: &[(&str, &str)] = &[(
    "/results/d432fbb3-d2f1-4a97-9ef7-75bd81c00003/troth",
    "our own view of the node",
)];

const LEFT_NOTHING: &[(&str, &str)] = &[
    (
        "/results/runtimepolicy names",
        "a refused enrolment leaves nothing behind",
    ),
    POLICIES,
];

/// Beyond Keylime's list of names.
const POLICIES: (&str, &str) = (
    "/results/policies",
    "digests, sizes, and how many nodes use it",
);

/// Where the reason is given by what reads the body.
const OWN_REASON: &str = "says in our words what is wrong with the body";

const OWN_WORDS: &str = "says in our words that the agent is unknown";

const NOT_THERE: &str = "an unknown agent is unknown on every path";

/// 1.0 is deprecated there, and 3.0 is the push model's.
const VERSIONS: &[(&str, &str)] = &[("/results/supported_versions", "2.x is served")];

/// Every answer of the verifiers to an operator, side by side: status, members, their types, and
/// the words of the status.
#[test]
fn our_verifier_answers_as_keylimes() {
    let both = Both::new();
    let policy = both.machine.write_runtime_policy().unwrap();
    let policy = policy.to_str().unwrap();
    let add = ["-c", "add", "-u", ID, "--runtime-policy", policy];
    both.keylime.tenant(&add).unwrap();
    both.tenant.run(&add).unwrap();
    both.keylime.wait_for_attestations(ID, 1).unwrap();
    both.tenant.wait_for_attestations(ID, 1).unwrap();
    let [theirs, ours] = both.operators(both.keylime.verifier_port(), both.fleet.verifier_port());
    let sent = BASE64.encode(fs::read(policy).unwrap());
    let policy_body = json!({"runtime_policy": sent, "runtime_policy_key": "", "tpm_policy": "{}"});
    let no_json = json!({"runtime_policy": BASE64.encode(b"no JSON"), "tpm_policy": "{}"});
    let no_policy = json!({"runtime_policy": BASE64.encode(b"{}"), "tpm_policy": "{}"});
    let agent = format!("/v2.6/agents/{ID}");
    let nobody = format!("/v2.6/agents/{UNKNOWN}");
    let enrolment = both.enrolment();
    let enrol_with = |member: &str, value: Option<Value>| {
        let mut body = enrolment.clone();
        match value {
            Some(value) => body[member] = value,
            None => drop(body.as_object_mut().unwrap().remove(member)),
        }
        Case::new(Method::POST, &nobody).body(body)
    };
    let mut with_boot_policy = enrolment.clone();
    with_boot_policy["mb_policy_name"] = json!("m");
    with_boot_policy["tpm_policy"] = json!("{\"mask\": \"0xffff\"}");
    let mut badly_signed = policy_body.clone();
    badly_signed["runtime_policy_key"] = json!(BASE64.encode(b"no key"));
    run_all(
        [&theirs, &ours],
        &[
            Case::get("/version").members(VERSIONS),
            Case::get(&agent).members(OWN_VIEW),
            Case::get(format!("/v2/agents/{ID}")).members(OWN_VIEW),
            Case::get("/v2.6/agents/"),
            Case::get("/v2.6/agents?verifier=default"),
            Case::get("/v2.6/agents?verifier=another"),
            Case::get("/v2.6/agents/?bulk=True").members(OWN_VIEWS),
            Case::get(&nobody),
            Case::get("/v2.6/agents/not%20valid"),
            Case::get("/v1.0/agents/"),
            Case::get("/v2.9/agents/"),
            Case::get("/v2.6/nothing"),
            Case::get("/v2.6/").status(500, 200, "the root of a served version is there"),
            Case::new(Method::PATCH, &agent),
            Case::new(Method::POST, &agent),
            Case::new(Method::POST, &agent)
                .body(json!({}))
                .words("names the first member that is missing"),
            Case::new(Method::DELETE, &nobody),
            Case::new(Method::PUT, format!("{nobody}/reactivate")).status(400, 404, NOT_THERE),
            Case::new(Method::PUT, format!("{nobody}/stop")).status(400, 404, NOT_THERE),
            // What anybody may ask.
            Case::get("/"),
            Case::get("/versions").members(VERSIONS),
            Case::get("/v2.6/verify/identity"),
            Case::get(format!(
                "/v2.6/verify/identity?agent_uuid={UNKNOWN}&quote=r&nonce=n&hash_alg=sha256"
            )),
            Case::get(format!(
                "/v2.6/verify/identity?agent_uuid={ID}&quote=r&nonce=n&hash_alg=sha256"
            )),
            Case::new(Method::POST, "/v2.6/verify/evidence").text("{"),
            Case::new(Method::POST, "/v2.6/verify/evidence").body(json!({})),
            Case::new(Method::POST, "/v2.6/verify/evidence").body(json!({"type": "tpm"})),
            Case::new(Method::POST, "/v2.6/verify/evidence")
                .body(json!({"type": "tpm", "data": {}})),
            Case::new(Method::POST, "/v2.6/verify/evidence")
                .body(json!({"type": "other", "data": {}})),
            // Enrolments that do not come about.
            Case::new(Method::POST, &agent).body(enrolment.clone()),
            enrol_with("tpm_policy", None),
            enrol_with("mtls_cert", Some(json!("disabled"))),
            enrol_with("runtime_policy_name", Some(json!("none"))),
            enrol_with("mb_policy_name", Some(json!("none"))),
            enrol_with("runtime_policy", Some(json!(BASE64.encode(b"{}")))).words(OWN_REASON),
            Case::get(&nobody),
            // Policies by name.
            Case::get("/v2.6/allowlists/").members(LEFT_NOTHING),
            Case::get("/v2.6/allowlists/none"),
            Case::new(Method::POST, "/v2.6/allowlists/a").body(policy_body.clone()),
            Case::new(Method::POST, "/v2.6/allowlists/a").body(policy_body.clone()),
            Case::new(Method::PUT, "/v2.6/allowlists/a").body(policy_body.clone()),
            Case::new(Method::PUT, "/v2.6/allowlists/none").body(policy_body),
            Case::new(Method::POST, "/v2.6/allowlists/b"),
            Case::new(Method::POST, "/v2.6/allowlists/b")
                .body(no_json)
                .status(500, 400, "the sender's fault is not the server's"),
            Case::new(Method::POST, "/v2.6/allowlists/b")
                .body(no_policy)
                .words(OWN_REASON),
            Case::get("/v2.6/allowlists/").members(LEFT_NOTHING),
            Case::get("/v2.6/allowlists/a").same(),
            Case::new(Method::POST, "/v2.6/allowlists/c").text("{"),
            Case::new(Method::POST, "/v2.6/allowlists/c")
                .text("[]")
                .status(500, 400, "the sender's fault is not the server's"),
            Case::new(Method::POST, "/v2.6/allowlists/c")
                .body(badly_signed)
                .status(201, 400, "a key that is given is always used"),
            Case::new(Method::POST, "/v2.6/mbpolicies/c").text("{"),
            Case::new(Method::POST, "/v2.6/mbpolicies/c")
                .body(json!({"mb_policy": "{"}))
                .status(201, 400, "nothing here could judge by it"),
            Case::new(Method::POST, &nobody).text("{"),
            Case::new(Method::DELETE, format!("/v2.6/allowlists/{ID}")),
            Case::new(Method::DELETE, "/v2.6/allowlists/a"),
            Case::new(Method::DELETE, "/v2.6/allowlists/a"),
            Case::get("/v2.6/mbpolicies/none"),
            Case::new(Method::POST, "/v2.6/mbpolicies/m").body(json!({"mb_policy": "{}"})),
            Case::new(Method::POST, "/v2.6/mbpolicies/m").body(json!({"mb_policy": "{}"})),
            Case::new(Method::PUT, "/v2.6/mbpolicies/m").body(json!({"mb_policy": "{}"})),
            Case::new(Method::PUT, "/v2.6/mbpolicies/none").body(json!({"mb_policy": "{}"})),
            Case::get("/v2.6/mbpolicies/").members(&[
                (
                    "/results/mbpolicy names",
                    "an agent without a boot policy has no row of its own",
                ),
                POLICIES,
            ]),
            Case::get("/v2.6/mbpolicies/m").same(),
            Case::new(Method::POST, &nobody).body(with_boot_policy),
            Case::new(Method::DELETE, "/v2.6/mbpolicies/m"),
            Case::new(Method::PUT, format!("{nobody}/stop")),
            Case::new(Method::DELETE, &nobody),
            Case::new(Method::DELETE, "/v2.6/mbpolicies/m"),
            Case::new(Method::DELETE, "/v2.6/mbpolicies/m"),
            // The agent itself, last.
            Case::new(Method::PUT, format!("{agent}/stop")),
            Case::get(&agent).members(OWN_VIEW),
            Case::new(Method::PUT, format!("{agent}/reactivate")),
            Case::new(Method::DELETE, &agent),
            Case::get(&agent),
        ],
    );
}

/// The same without an operator's certificate.
#[test]
fn our_servers_refuse_strangers_as_keylimes() {
    let both = Both::new();
    let strangers = |keylimes, ours| {
        [keylimes, ours].map(|port| Api::anonymous(port, &both.keylime.ca_dir()).unwrap())
    };
    let [theirs, ours] = strangers(both.keylime.verifier_port(), both.fleet.verifier_port());
    let agent = format!("/v2.6/agents/{ID}");
    run_all(
        [&theirs, &ours],
        &[
            Case::get("/version").members(VERSIONS),
            Case::get("/v2.6/agents/"),
            Case::get(&agent),
            Case::new(Method::POST, &agent).body(json!({})),
            Case::new(Method::DELETE, &agent),
            Case::new(Method::PUT, format!("{agent}/stop")),
            Case::get("/v2.6/allowlists/"),
            Case::get("/v2.6/mbpolicies/"),
            Case::get("/v2.6/nothing"),
        ],
    );
    let [theirs, ours] = strangers(
        both.keylime.registrar_tls_port(),
        both.fleet.registrar_tls_port(),
    );
    run_all(
        [&theirs, &ours],
        &[
            Case::get("/version").members(VERSIONS),
            Case::get("/v2.6/agents/"),
            Case::get(&agent),
            Case::new(Method::DELETE, &agent),
            Case::get("/v2.6/nothing"),
        ],
    );
}

/// Every answer of the registrars.
#[test]
fn our_registrar_answers_as_keylimes() {
    let both = Both::new();
    let [theirs, ours] = both.operators(
        both.keylime.registrar_tls_port(),
        both.fleet.registrar_tls_port(),
    );
    let agent = format!("/v2.6/agents/{ID}");
    let nobody = format!("/v2.6/agents/{UNKNOWN}");
    let record = ours.get(&agent).unwrap().body["results"].clone();
    let again = json!({
        "ek_tpm": record["ek_tpm"], "ekcert": record["ekcert"], "aik_tpm": record["aik_tpm"],
        "ip": record["ip"], "port": record["port"], "mtls_cert": record["mtls_cert"],
    });
    let mut other = again.clone();
    other["aik_tpm"] = other_key(&again["aik_tpm"]);
    run_all(
        [&theirs, &ours],
        &[
            Case::get("/version").members(VERSIONS),
            Case::get(&agent),
            Case::get("/v2.6/agents/"),
            Case::get("/v2/agents"),
            Case::get(&nobody).words(OWN_WORDS),
            Case::get("/v1.0/agents/"),
            Case::get("/v2.9/agents/"),
            Case::get("/v2.6/nothing"),
            Case::new(Method::PATCH, &agent),
            Case::new(Method::POST, &nobody).words(OWN_REASON),
            Case::new(Method::POST, &nobody).body(json!({})),
            Case::new(Method::PUT, &nobody)
                .body(json!({"auth_tag": "00"}))
                .words(OWN_WORDS),
            Case::new(Method::PUT, &nobody).body(json!({})),
            Case::new(Method::POST, &agent).body(again.clone()),
            Case::new(Method::POST, &nobody).body(again),
            Case::new(Method::POST, &agent).body(other),
            Case::new(Method::DELETE, &nobody).status(200, 404, "nothing was there to delete"),
            Case::new(Method::DELETE, &agent),
            Case::get(&agent).words(OWN_WORDS),
        ],
    );
}

/// A key of the same kind with another number.
fn other_key(tpm2b_public: &Value) -> Value {
    let mut key = BASE64.decode(tpm2b_public.as_str().unwrap()).unwrap();
    let last = key.last_mut().unwrap();
    *last ^= 2;
    json!(BASE64.encode(key))
}
