use serde_json::Value;

use super::{
    Interface,
    agent::value,
    message::Fault,
    server::{Answer, Call, Replies},
    wire::{Metric, MetricFamily, identifier},
};
use crate::agent::Status;

/// `io.systemd.Metrics`.
pub(super) const METRICS: Interface = Interface {
    name: "io.systemd.Metrics",
    description: include_str!("../../io.systemd.Metrics.varlink"),
};

/// A family of metrics that has one metric.
struct Family {
    /// systemd-report expects the name of the socket before it.
    name: &'static str,
    description: &'static str,
    r#type: &'static str,
    value: fn(&Status) -> Value,
}

const FAMILIES: [Family; 6] = [
    Family {
        name: "org.troth.Agent.State",
        description: "What the attestation agent does: starting, registering, unregistered, \
                      attesting or tpm_unavailable",
        r#type: "string",
        value: |status| identifier(status.state).into(),
    },
    Family {
        name: "org.troth.Agent.AgentId",
        description: "The id under which registrar and verifier know this host, empty while it is \
                      unknown",
        r#type: "string",
        value: |status| status.agent_id.clone().unwrap_or_default().into(),
    },
    Family {
        name: "org.troth.Agent.Version",
        description: "The version of the attestation agent",
        r#type: "string",
        value: |status| status.version.into(),
    },
    Family {
        name: "org.troth.Agent.QuotesTotal",
        description: "Quotes that the attestation agent has made since its start",
        r#type: "counter",
        value: |status| status.quote_count.into(),
    },
    Family {
        name: "org.troth.Agent.LastQuoteTimestamp",
        description: "When the last quote was made, in microseconds since 1970; 0 if never",
        r#type: "gauge",
        value: |status| status.last_quote_usec.into(),
    },
    Family {
        name: "org.troth.Agent.ImaEntries",
        description: "Entries of the IMA list, as of the last quote",
        r#type: "gauge",
        value: |status| status.ima_entries.into(),
    },
];

/// Answers a call of `io.systemd.Metrics`: all replies but the last are sent through `replies`.
pub(super) async fn call(
    call: Call<'_>,
    status: &Status,
    replies: &mut Replies<'_>,
) -> Result<Answer, Fault> {
    let shown: fn(&Family, &Status) -> Result<Value, Fault> = match call.method {
        "List" => |family, status| {
            value(Metric {
                name: family.name.to_owned(),
                value: (family.value)(status),
            })
        },
        "Describe" => |family, _| {
            value(MetricFamily {
                name: family.name.to_owned(),
                description: family.description.to_owned(),
                r#type: family.r#type.to_owned(),
            })
        },
        _ => return Err(Fault::method_not_found(&call.name())),
    };
    call.of_a_stream()?;
    let [before @ .., last] = &FAMILIES;
    for family in before {
        replies.send(shown(family, status)?).await;
    }
    shown(last, status).map(Answer::from)
}
