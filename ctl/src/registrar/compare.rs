use std::collections::BTreeSet;

use base64::{Engine, prelude::BASE64_STANDARD};
use indicatif::{ProgressBar, ProgressStyle};
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
    /// `None`: neither has the id any more.
    fn of(here: Option<&RegistrarRecord>, there: Option<&RegistrarRecord>) -> Option<Self> {
        Some(match (here, there) {
            (Some(here), Some(there)) => {
                let same = same_key(&here.ek_tpm, &there.ek_tpm)
                    && same_key(&here.aik_tpm, &there.aik_tpm);
                if same { Self::Same } else { Self::Other }
            }
            (None, Some(_)) => Self::OnlyThere,
            (Some(_), None) => Self::OnlyHere,
            (None, None) => return None,
        })
    }

    /// Of an id that no agent may have, so that nobody can ask for its keys.
    fn of_listed(here: bool, there: bool) -> Self {
        match (here, there) {
            (true, false) => Self::OnlyHere,
            (false, _) => Self::OnlyThere,
            // Nothing says that they are the same.
            (true, true) => Self::Other,
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

/// Two TPM2B_PUBLIC in base64. One that is empty or cannot be read is no key.
fn same_key(one: &str, other: &str) -> bool {
    let [one, other] = [one, other].map(|text| BASE64_STANDARD.decode(text).ok());
    one.is_some_and(|one| !one.is_empty() && Some(one) == other)
}

/// Compares the keys of every id at the registrar with those at the registrar `other`. An id with
/// other keys is [`Exit::Untrusted`].
pub(super) async fn compare(
    config: &Config,
    other: &Endpoint,
    tls_name: Option<&str>,
    out: &Output,
) -> Result<Exit, Error> {
    let credentials = Credentials::load(config)?;
    let here = credentials.registrar(config)?;
    let there = credentials.other_registrar(other, tls_name)?;
    let (listed_here, listed_there) = (ids(&here).await?, ids(&there).await?);
    let ids: BTreeSet<_> = listed_here.union(&listed_there).collect();
    let progress = progress(ids.len());
    let mut agents = Vec::with_capacity(ids.len());
    for id in ids {
        let keys = match AgentId::new(id) {
            Ok(id) => Keys::of(
                record(&here, &id).await?.as_ref(),
                record(&there, &id).await?.as_ref(),
            ),
            Err(_) => {
                let listed = [&listed_here, &listed_there].map(|ids| ids.contains(id));
                let [here, there] = listed;
                Some(Keys::of_listed(here, there))
            }
        };
        let id = id.clone();
        agents.extend(keys.map(|keys| Compared { id, keys }));
        progress.inc(1);
    }
    progress.finish_and_clear();
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

/// A line on standard error, if that is a terminal.
fn progress(ids: usize) -> ProgressBar {
    let bar = ProgressBar::new(u64::try_from(ids).unwrap_or(u64::MAX));
    let style = ProgressStyle::with_template("{bar:24} {human_pos} of {human_len} ids");
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

async fn ids(registrar: &Service) -> Result<BTreeSet<String>, Error> {
    let list: RegistrarList = registrar.get("agents/").await?;
    Ok(list.uuids.into_iter().collect())
}

/// `None`: the registrar does not know the id.
async fn record(registrar: &Service, id: &AgentId) -> Result<Option<RegistrarRecord>, Error> {
    registrar.find(&format!("agents/{id}")).await
}
