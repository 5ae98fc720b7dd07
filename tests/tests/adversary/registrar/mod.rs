/// Much of everything.
mod flood;
/// Another host's identity.
mod takeover;
/// Keys and certificates that must not be believed.
mod unfit;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::Method;
use serde_json::{Value, json};
use troth_core::identity::{AgentId, activation_tag};
use troth_core::tpm::Public;
use troth_tests::api::{Api, Reply};
use troth_tests::fleet::Extra;
use troth_tests::software_ek::SoftwareEk;

use crate::Stage;
use crate::forge::{AK_ATTRIBUTES, Ak};

const VICTIM: &str = "victim";

/// A TPM in memory: an EK with its certificate, and an AK.
pub(crate) struct Tpm {
    ek: SoftwareEk,
    ak: Ak,
}

impl Tpm {
    pub(crate) fn new() -> Self {
        Self {
            ek: SoftwareEk::generate().unwrap(),
            ak: Ak::generate(),
        }
    }

    pub(crate) fn registration(&self) -> Value {
        json!({
            "ek_tpm": BASE64_STANDARD.encode(self.ek.public.to_tpm2b()),
            "aik_tpm": self.ak.public(),
            "ekcert": BASE64_STANDARD.encode(&self.ek.certificate),
            "iak_cert": null, "idevid_cert": null,
            "ip": "127.0.0.1", "port": 9002, "mtls_cert": "disabled",
        })
    }

    /// The answer to a challenge for this TPM's AK.
    pub(crate) fn tag(&self, id: &str, challenge: &Reply) -> String {
        let ak = Public::from_tpmt(&self.ak.tpmt(AK_ATTRIBUTES)).unwrap();
        let blob = challenge.body["results"]["blob"].as_str().unwrap();
        let blob = BASE64_STANDARD.decode(blob).unwrap();
        let challenge = self.ek.activate(&ak.name(), &blob).unwrap();
        activation_tag(&challenge, &AgentId::new(id).unwrap())
    }
}

/// A registrar over plain HTTP, as agents see it.
pub(crate) struct Registrar {
    anyone: Api,
    pub(crate) stage: Stage,
}

impl Registrar {
    fn new() -> Self {
        Self::with("")
    }

    /// With these lines in `registrar.toml`.
    fn with(lines: &str) -> Self {
        Self::of(Stage::with(&Extra {
            registrar: lines.to_owned(),
            ..Extra::default()
        }))
    }

    pub(crate) fn of(stage: Stage) -> Self {
        let anyone = Api::plain(stage.fleet.registrar_port()).unwrap();
        Self { anyone, stage }
    }

    pub(crate) fn register(&self, id: &str, body: &Value) -> Reply {
        let path = format!("/v2.6/agents/{id}");
        self.anyone.send(Method::POST, &path, Some(body)).unwrap()
    }

    pub(crate) fn activate(&self, id: &str, tag: &str) -> Reply {
        let path = format!("/v2.6/agents/{id}");
        let body = json!({ "auth_tag": tag });
        self.anyone.send(Method::PUT, &path, Some(&body)).unwrap()
    }

    /// Registers and activates, as an honest agent does.
    pub(crate) fn take_in(&self, id: &str, tpm: &Tpm) {
        let challenge = self.register(id, &tpm.registration());
        assert_eq!(challenge.status, 200, "{challenge:?}");
        let activated = self.activate(id, &tpm.tag(id, &challenge));
        assert_eq!(activated.status, 200, "{activated:?}");
    }

    /// With the victim's registration active.
    fn with_victim() -> (Self, Tpm, Value) {
        let this = Self::new();
        let victim = Tpm::new();
        this.take_in(VICTIM, &victim);
        let record = this.record(VICTIM);
        assert_eq!(record["aik_tpm"], victim.registration()["aik_tpm"]);
        (this, victim, record)
    }

    /// What operators are shown; `null` without a registration.
    pub(crate) fn record(&self, id: &str) -> Value {
        let path = format!("/v2.6/agents/{id}");
        let mut reply = self.stage.operator.registrar.get(&path).unwrap();
        match reply.status {
            200 => reply.body["results"].take(),
            _ => Value::Null,
        }
    }

    /// The registration is as it was, and its owner may still renew it.
    fn assert_untouched(&self, victim: &Tpm, before: &Value) {
        assert_eq!(self.record(VICTIM), *before);
        self.take_in(VICTIM, victim);
        assert_eq!(self.record(VICTIM)["aik_tpm"], before["aik_tpm"]);
    }
}
