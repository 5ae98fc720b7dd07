use std::{future::Future, sync::Arc};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::{broadcast::error::RecvError, watch};

use super::{
    Interface,
    message::{Fault, Parameters},
    metrics,
    server::{Answer, Call, Caller, Replies, Service},
    service::{self, Process},
    wire,
};
use crate::{
    agent::{Agent, Event, OperationError, Quote, QuoteRequest, Status, checked_name},
    polkit::{Decision, Guarded, Polkit},
};

/// `org.troth.Agent`.
pub const AGENT: Interface = Interface {
    name: "org.troth.Agent",
    description: include_str!("../../org.troth.Agent.varlink"),
};

/// PCRs that a quote has unless it names some.
const ALL_PCRS: u32 = 0x00ff_ffff;

/// Decides who may do what.
pub trait Authority: 'static {
    /// About one operation of one caller; `interactive`: the user may be asked.
    fn decide(
        &self,
        operation: Guarded<'_>,
        caller: &Caller,
        interactive: bool,
    ) -> impl Future<Output = Decision>;
}

impl Authority for Arc<Polkit> {
    async fn decide(&self, operation: Guarded<'_>, caller: &Caller, interactive: bool) -> Decision {
        match &caller.process {
            Some(process) => {
                let polkit = Polkit::decide(self, operation, process, caller.uid, interactive);
                polkit.await
            }
            // A number may be another process by now.
            None => Decision::Denied,
        }
    }
}

/// An agent's interfaces: its own, and those that systemd knows of every service.
#[derive(Debug)]
pub struct AgentService<A, P, C> {
    agent: Arc<A>,
    authority: P,
    process: C,
}

impl<A: Agent, P: Authority, C: Process> AgentService<A, P, C> {
    /// Of this agent, in this process; `authority` is asked about callers who are neither root nor
    /// the agent's own user.
    pub fn new(agent: Arc<A>, authority: P, process: C) -> Self {
        Self {
            agent,
            authority,
            process,
        }
    }
}

impl<A: Agent, P: Authority, C: Process> Service for AgentService<A, P, C> {
    fn product(&self) -> &'static str {
        "Troth attestation agent"
    }

    fn interfaces(&self) -> &[Interface] {
        const { &[AGENT, service::SERVICE, metrics::METRICS] }
    }

    async fn call(&self, call: Call<'_>, replies: &mut Replies<'_>) -> Result<Answer, Fault> {
        match call.interface {
            name if name == AGENT.name => self.own(call, replies).await,
            name if name == metrics::METRICS.name => {
                let status = self.agent.status().borrow().clone();
                metrics::call(call, &status, replies).await
            }
            _ => service::call(call, &self.process),
        }
    }
}

impl<A: Agent, P: Authority, C: Process> AgentService<A, P, C> {
    async fn own(&self, mut call: Call<'_>, replies: &mut Replies<'_>) -> Result<Answer, Fault> {
        match call.method {
            "GetStatus" => {
                call.without_parameters()?;
                reply(wire::Status::from(&*self.agent.status().borrow()))
            }
            "Subscribe" => {
                call.of_a_stream()?;
                self.subscribe(replies).await
            }
            "Quote" => {
                let nonce = nonce(&mut call.parameters)?;
                let pcrs: Option<Vec<u32>> = call.parameters.optional("pcrs")?;
                let pcr_mask = pcr_mask(pcrs)?;
                self.guard(Guarded::Quote, call).await?;
                let asked = QuoteRequest { nonce, pcr_mask };
                let quote = self.agent.quote(asked).await.map_err(fault)?;
                reply(shown(&quote))
            }
            "CollectEvidence" => {
                let nonce: Option<String> = call.parameters.optional("nonce")?;
                self.guard(Guarded::Evidence, call).await?;
                let collected = self.agent.collect_evidence(nonce.unwrap_or_default());
                let bundle = collected.await.map_err(fault)?;
                let parameters = value(wire::Evidence {
                    bundle_file_descriptor: 0,
                })?;
                Ok(Answer::with_descriptor(parameters, bundle))
            }
            "Register" => {
                self.guard(Guarded::Register, call).await?;
                let registered = self.agent.register().await.map_err(fault)?;
                reply(wire::Registered {
                    agent_id: registered.agent_id,
                    api_version: registered.api_version,
                })
            }
            "ListActions" => {
                call.without_parameters()?;
                let actions = self.agent.list_actions().await.map_err(fault)?;
                reply(wire::Actions {
                    actions: actions.into_iter().map(Into::into).collect(),
                })
            }
            "RunAction" => {
                let name: String = call.parameters.required("name")?;
                let operation = Guarded::RunAction(checked_name(&name).map_err(fault)?);
                self.guard(operation, call).await?;
                self.agent.run_action(name).await.map_err(fault)?;
                Ok(Answer::empty())
            }
            _ => Err(Fault::method_not_found(&call.name())),
        }
    }

    /// Takes the last parameter, and asks whether the caller may do this.
    async fn guard(&self, operation: Guarded<'_>, mut call: Call<'_>) -> Result<(), Fault> {
        let interactive = call.parameters.optional("allowInteractiveAuthentication")?;
        call.parameters.end()?;
        if call.caller.is_root_or_self() {
            return Ok(());
        }
        let interactive = interactive.unwrap_or_default();
        let decision = self.authority.decide(operation, call.caller, interactive);
        match decision.await {
            Decision::Granted => Ok(()),
            Decision::Denied | Decision::Overloaded => Err(Fault::PERMISSION_DENIED),
            Decision::Challenge => Err(Fault::INTERACTIVE_AUTHENTICATION_REQUIRED),
        }
    }

    /// Ends when the agent does.
    async fn subscribe(&self, replies: &mut Replies<'_>) -> Result<Answer, Fault> {
        // What happens between the two is told twice rather than not at all.
        let mut events = self.agent.events();
        let mut status = self.agent.status();
        let first = current(&mut status);
        let mut update = wire::Update {
            context: Some(wire::Context::from(&first)),
            runtime: Some(wire::Runtime::from(&first)),
            event: None,
        };
        loop {
            if update != wire::Update::default() {
                replies.send(value(update)?).await;
            }
            update = wire::Update::default();
            tokio::select! {
                changed = status.changed() => match changed {
                    Ok(()) => update.runtime = Some((&current(&mut status)).into()),
                    Err(_) => return Ok(Answer::empty()),
                },
                event = events.recv() => match event {
                    Ok(event) => update.event = shown_event(event),
                    Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return Ok(Answer::empty()),
                },
            }
        }
    }
}

fn current(status: &mut watch::Receiver<Status>) -> Status {
    status.borrow_and_update().clone()
}

fn nonce(parameters: &mut Parameters) -> Result<Vec<u8>, Fault> {
    let text: String = parameters.required("nonce")?;
    let nonce = STANDARD.decode(text).ok();
    nonce
        .filter(|nonce| (1..=64).contains(&nonce.len()))
        .ok_or_else(|| Fault::invalid_parameter("nonce"))
}

fn pcr_mask(pcrs: Option<Vec<u32>>) -> Result<u32, Fault> {
    let Some(pcrs) = pcrs else {
        return Ok(ALL_PCRS);
    };
    let mut mask = 0;
    for pcr in pcrs {
        let bit = 1_u32.checked_shl(pcr).filter(|bit| bit & ALL_PCRS != 0);
        mask |= bit.ok_or_else(|| Fault::invalid_parameter("pcrs"))?;
    }
    Ok(mask)
}

fn shown(quote: &Quote) -> wire::Quote {
    let pcrs = quote.pcrs.iter().map(|(index, value)| wire::Pcr {
        index: *index,
        value: hex::encode(value),
    });
    wire::Quote {
        message: STANDARD.encode(&quote.message),
        signature: STANDARD.encode(&quote.signature),
        hash_algorithm: quote.hash_algorithm.clone(),
        pcrs: pcrs.collect(),
        attestation_key: STANDARD.encode(&quote.ak),
    }
}

fn shown_event(event: Event) -> Option<wire::Event> {
    match event {
        Event::QuoteServed {
            client,
            ima_entries,
        } => Some(wire::Event {
            quote_served: Some(wire::QuoteServed {
                client,
                ima_entries,
            }),
        }),
    }
}

fn fault(error: OperationError) -> Fault {
    let (name, reason) = match error {
        OperationError::NotReady(reason) => ("org.troth.Agent.NotReady", reason),
        OperationError::TpmBusy(reason) => ("org.troth.Agent.TpmBusy", reason),
        OperationError::TpmFailed(reason) => ("org.troth.Agent.TpmFailed", reason),
        OperationError::RegistrationFailed(reason) => {
            ("org.troth.Agent.RegistrationFailed", reason)
        }
        OperationError::ActionsUnavailable(reason) => {
            ("org.troth.Agent.ActionsUnavailable", reason)
        }
        OperationError::Host(reason) => ("org.troth.Agent.HostFailed", reason),
        OperationError::InvalidArgument { argument, .. } => {
            return Fault::invalid_parameter(match argument {
                "pcr_mask" => "pcrs",
                other => other,
            });
        }
        OperationError::NoSuchAction(name) => {
            return Fault::with("org.troth.Agent.NoSuchAction", json!({ "name": name }));
        }
    };
    Fault::with(name, json!({ "reason": reason }))
}

fn reply(parameters: impl Serialize) -> Result<Answer, Fault> {
    value(parameters).map(Answer::from)
}

/// JSON of what always has one.
pub(super) fn value(parameters: impl Serialize) -> Result<Value, Fault> {
    serde_json::to_value(parameters).map_err(|error| {
        let reason = error.to_string();
        Fault::with("org.troth.Agent.HostFailed", json!({ "reason": reason }))
    })
}
