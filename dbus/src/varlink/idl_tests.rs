//! The interfaces' texts and the types that are sent say the same.

use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};
use zlink_idl::{CustomType, Interface as Idl, Type};

use super::{ACTIONS, AGENT, metrics::METRICS, wire::*};
use crate::agent::{self, Mode, PayloadState, State};

fn idl(text: &'static str) -> Idl<'static> {
    Idl::try_from(text).unwrap()
}

/// Whether `value` is of the type; `all`: nothing that may be null is.
fn check(idl: &Idl<'_>, r#type: &Type<'_>, value: &Value, place: &str) {
    let fits = match r#type {
        Type::Optional(inner) => return check(idl, inner.inner(), value, place),
        Type::Array(inner) => {
            let items = value
                .as_array()
                .unwrap_or_else(|| panic!("{place}: {value}"));
            assert!(!items.is_empty(), "{place} has no example");
            for item in items {
                check(idl, inner.inner(), item, place);
            }
            true
        }
        Type::Custom(name) => {
            let custom = idl.custom_types().find(|custom| custom.name() == name);
            match custom.unwrap_or_else(|| panic!("{place}: no type {name}")) {
                CustomType::Object(object) => {
                    let fields = object.fields().map(|f| (f.name().to_string(), f.ty()));
                    check_object(idl, fields, value, place);
                    true
                }
                CustomType::Enum(choice) => choice
                    .variants()
                    .any(|v| Some(v.name().as_str()) == value.as_str()),
            }
        }
        Type::Bool => value.is_boolean(),
        Type::Int => value.is_i64(),
        Type::Float => value.is_number(),
        Type::String => value.is_string(),
        Type::ForeignObject | Type::Any => true,
        other => panic!("{place}: {other:?}"),
    };
    assert!(fits, "{place}: {value} is no {type:?}");
}

fn check_object<'a>(
    idl: &Idl<'_>,
    fields: impl Iterator<Item = (String, &'a Type<'a>)>,
    value: &Value,
    place: &str,
) {
    let mut members = value
        .as_object()
        .unwrap_or_else(|| panic!("{place}: {value}"))
        .clone();
    for (name, r#type) in fields {
        let place = format!("{place}.{name}");
        let member = members.remove(&name);
        check(
            idl,
            r#type,
            &member.unwrap_or_else(|| panic!("no {place}")),
            &place,
        );
    }
    assert!(members.is_empty(), "{place} has not {members:?}");
}

/// A reply with everything in it that there may be: it has exactly the fields that the interface
/// gives the method, and is read as what was sent.
fn reply<T>(idl: &Idl<'_>, method: &str, without: &[&str], value: &T)
where
    T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug,
{
    let json = serde_json::to_value(value).unwrap();
    let found = idl.methods().find(|known| known.name() == method);
    let outputs = found.unwrap().outputs();
    let outputs = outputs.map(|output| (output.name().to_string(), output.ty()));
    let outputs = outputs.filter(|(name, _)| !without.contains(&name.as_str()));
    check_object(idl, outputs, &json, method);
    assert_eq!(serde_json::from_value::<T>(json).unwrap(), *value);
}

fn status() -> agent::Status {
    agent::Status {
        version: "1.2.3",
        agent_id: Some("node-1".to_owned()),
        state: State::Attesting,
        detail: "Attesting".to_owned(),
        mode: Mode::Pull,
        registrar: "192.0.2.1:8890".to_owned(),
        tcti: "device:/dev/tpmrm0".to_owned(),
        tpm_vendor: "SW".to_owned(),
        tpm_firmware: "1.0".to_owned(),
        hash_algorithms: vec!["sha256".to_owned()],
        last_quote_usec: 7,
        quote_count: 2,
        ima_entries: 3,
        payload_state: PayloadState::KeyReceived,
        secure_mount: Some("/var/lib/troth/secure".into()),
    }
}

#[test]
fn replies_of_the_agent_are_what_its_interface_says() {
    let idl = idl(AGENT.description);
    let told = Status::from(&status());
    reply(&idl, "GetStatus", &[], &told);
    reply(
        &idl,
        "Subscribe",
        &[],
        &Update {
            context: Some(told.context.clone()),
            runtime: Some(told.runtime.clone()),
            event: Some(Event {
                quote_served: Some(QuoteServed {
                    client: "local".to_owned(),
                    ima_entries: 7,
                }),
            }),
        },
    );
    reply(
        &idl,
        "Quote",
        &[],
        &Quote {
            message: "AA==".to_owned(),
            signature: "AA==".to_owned(),
            hash_algorithm: "sha256".to_owned(),
            pcrs: vec![Pcr {
                index: 10,
                value: "00".to_owned(),
            }],
            attestation_key: "AA==".to_owned(),
        },
    );
    reply(
        &idl,
        "CollectEvidence",
        &[],
        &Evidence {
            bundle_file_descriptor: 0,
        },
    );
    reply(
        &idl,
        "Register",
        &[],
        &Registered {
            agent_id: "node-1".to_owned(),
            api_version: "2.1".to_owned(),
        },
    );
    reply(
        &idl,
        "ListActions",
        &[],
        &Actions {
            actions: vec![Action {
                name: "isolate".to_owned(),
                description: "Cut it off".to_owned(),
                sandbox: "strict".to_owned(),
            }],
        },
    );
}

#[test]
fn replies_of_the_broker_and_metrics_are_what_their_interfaces_say() {
    let actions = idl(ACTIONS.description);
    for sandbox in [Sandbox::Strict, Sandbox::System, Sandbox::Host] {
        let list = ActionList {
            actions: vec![ActionFile {
                name: "isolate".to_owned(),
                description: "Cut it off".to_owned(),
                sandbox,
                command: vec!["/usr/sbin/nft".to_owned()],
                timeout_usec: 1,
                when: vec!["revoked".to_owned()],
                path: "/etc/troth/actions.d/isolate.toml".to_owned(),
            }],
            broken: vec![BrokenAction {
                path: "/etc/troth/actions.d/x.toml".to_owned(),
                reason: "no".to_owned(),
            }],
        };
        reply(&actions, "List", &[], &list);
    }
    let metrics = idl(METRICS.description);
    let metric = Metric {
        name: "a.b".to_owned(),
        value: json!(1),
    };
    // None of ours has several objects.
    reply(&metrics, "List", &["object", "fields"], &metric);
    for r#type in ["counter", "gauge", "string"] {
        let family = MetricFamily {
            name: "a.b".to_owned(),
            description: "x".to_owned(),
            r#type: r#type.to_owned(),
        };
        reply(&metrics, "Describe", &[], &family);
    }
}

/// The names of an enumeration's values, as its text has them.
fn values(idl: &Idl<'_>, name: &str) -> Vec<String> {
    let mut types = idl.custom_types();
    let found = types.find(|custom| custom.name() == name).unwrap();
    let choice = found.as_enum().unwrap();
    choice.variants().map(|v| v.name().to_string()).collect()
}

#[test]
fn every_state_is_one_of_the_interface() {
    let idl = idl(AGENT.description);
    let with = |change: &dyn Fn(&mut agent::Status)| {
        let mut status = status();
        change(&mut status);
        Status::from(&status)
    };
    let states = [
        State::Starting,
        State::Registering,
        State::Unregistered,
        State::Attesting,
        State::TpmUnavailable,
    ];
    let shown = states.map(|state| with(&|status| status.state = state).runtime.state);
    assert_eq!(values(&idl, "State"), shown);
    let states = [PayloadState::None, PayloadState::KeyReceived];
    let shown = states.map(|state| with(&|s| s.payload_state = state).runtime.payload_state);
    assert_eq!(values(&idl, "PayloadState"), shown);
    let shown = with(&|_| ()).context.mode;
    assert_eq!(values(&idl, "Mode"), Vec::from_iter(shown));
}

#[test]
fn everything_in_an_interface_is_described() {
    let texts = [
        AGENT.description,
        ACTIONS.description,
        METRICS.description,
        super::service::SERVICE.description,
        super::server::SERVICE.description,
    ];
    for text in texts {
        let parsed = idl(text);
        assert!(parsed.comments().next().is_some());
        let mut described = false;
        for line in text.lines() {
            assert!(line.len() <= 100, "{line}");
            let code = line.trim();
            if code.starts_with('#') {
                described = true;
                continue;
            }
            let is_end = code.starts_with(')') && !code.contains(',');
            assert!(
                described || code.is_empty() || is_end,
                "{}: {line}",
                parsed.name()
            );
            described = false;
        }
    }
}
