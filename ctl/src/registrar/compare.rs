use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use troth_core::{
    identity::AgentId,
    wire::{RegistrarList, RegistrarRecord},
};

use crate::{
    api::{Credentials, Endpoint, Service},
    config::Config,
    error::{Error, Exit},
    output::{Output, Tone},
};

/// `registrar compare --json`.
#[derive(Serialize)]
struct Comparison {
    /// The registrar that this one is compared with.
    with: String,
    agents: Vec<Compared>,
}

#[derive(Serialize)]
struct Compared {
    id: String,
    keys: Keys,
}

/// EK and AK of one id at two registrars.
#[derive(Clone, Copy, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Keys {
    /// The same TPM, and the same key in it.
    Same,
    /// Another EK, another AK, or both: not the host that had the id.
    Other,
    /// Not registered here, yet.
    OnlyThere,
    /// Not registered there.
    OnlyHere,
}

impl Keys {
    fn of(here: Option<&RegistrarRecord>, there: Option<&RegistrarRecord>) -> Self {
        match (here, there) {
            (Some(here), Some(there)) => {
                let same = same_key(&here.ek_tpm, &there.ek_tpm)
                    && same_key(&here.aik_tpm, &there.aik_tpm);
                if same { Self::Same } else { Self::Other }
            }
            (None, _) => Self::OnlyThere,
            (Some(_), None) => Self::OnlyHere,
        }
    }

    fn told(self) -> (Tone, &'static str) {
        match self {
            Self::Same => (Tone::Good, "the same"),
            Self::Other => (Tone::Bad, "OTHER KEYS here"),
            Self::OnlyThere => (Tone::Warn, "not registered here"),
            Self::OnlyHere => (Tone::Plain, "only registered here"),
        }
    }
}

/// Two TPM2B_PUBLIC in base64.
fn same_key(one: &str, other: &str) -> bool {
    let [one_bytes, other_bytes] = [one, other].map(|text| BASE64_STANDARD.decode(text).ok());
    one == other || (one_bytes.is_some() && one_bytes == other_bytes)
}

/// Compares the keys of every id at the registrar with those at the registrar `other`. An id with
/// other keys is [`Exit::Untrusted`].
pub(super) async fn compare(
    config: &Config,
    other: &Endpoint,
    out: &Output,
) -> Result<Exit, Error> {
    let credentials = Credentials::load(config)?;
    let here = credentials.registrar(config)?;
    let there = credentials.other_registrar(config, other)?;
    let ids: BTreeSet<_> = [ids(&here).await?, ids(&there).await?]
        .concat()
        .into_iter()
        .collect();
    let mut agents = Vec::with_capacity(ids.len());
    for id in ids {
        let keys = Keys::of(
            record(&here, &id).await?.as_ref(),
            record(&there, &id).await?.as_ref(),
        );
        agents.push(Compared { id, keys });
    }
    let comparison = Comparison {
        with: there.url.clone(),
        agents,
    };
    out.result(&comparison, || {
        let rows = comparison.agents.iter().map(|agent| {
            let (tone, told) = agent.keys.told();
            vec![(Tone::Plain, agent.id.clone()), (tone, told.to_owned())]
        });
        out.table(&["AGENT", "KEYS"], rows.collect())
    })?;
    let others = comparison
        .agents
        .iter()
        .any(|agent| agent.keys == Keys::Other);
    Ok(if others {
        Exit::Untrusted
    } else {
        Exit::Success
    })
}

async fn ids(registrar: &Service) -> Result<Vec<String>, Error> {
    let list: RegistrarList = registrar.get("agents/").await?;
    Ok(list.uuids)
}

/// `None`: the registrar does not know the id, or nobody may have it.
async fn record(registrar: &Service, id: &str) -> Result<Option<RegistrarRecord>, Error> {
    match AgentId::new(id) {
        Ok(id) => registrar.find(&format!("agents/{id}")).await,
        Err(_) => Ok(None),
    }
}
