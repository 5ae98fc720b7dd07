use std::{collections::HashMap, sync::Arc};

use zbus::{
    Connection, OwnedFd, Variant, fdo, message::Header, names::InterfaceName,
    object_server::SignalEmitter,
};

use super::{caller::authorise, error::CallError};
use crate::{
    agent::{Agent, Event, QuoteRequest, Status, checked_name},
    polkit::{Guarded, Polkit},
};

/// Name of the bus and of the interface.
pub(super) const NAME: &str = "org.troth.Agent1";

/// Where the agent is.
pub(super) const PATH: &str = "/org/troth/Agent1";

/// A PCR and its value.
type Pcr = (u32, Vec<u8>);

/// An action: name, description, sandbox.
type Action = (String, String, String);

/// The agent as an object on the bus.
pub(super) struct Agent1<A> {
    agent: Arc<A>,
    polkit: Arc<Polkit>,
}

impl<A: Agent> Agent1<A> {
    pub(super) fn new(agent: Arc<A>, polkit: Arc<Polkit>) -> Self {
        Self { agent, polkit }
    }

    fn status<T>(&self, property: impl FnOnce(&Status) -> T) -> T {
        property(&self.agent.status().borrow())
    }
}

/// No flag is known yet.
fn no_flags(flags: u64) -> Result<(), CallError> {
    match flags {
        0 => Ok(()),
        _ => Err(CallError::standard("InvalidArgs", "flags: must be 0")),
    }
}

#[zbus::interface(name = "org.troth.Agent1")]
impl<A: Agent> Agent1<A> {
    /// Makes a quote with the attestation key of this host.
    ///
    /// nonce: 1 to 64 bytes, which the quote is made over.
    /// pcr_mask: the PCRs to quote; bit n is PCR n, 0 to 23. PCR 16 comes in any case: it binds the
    /// agent's transport key.
    /// flags: must be 0.
    /// message: TPMS_ATTEST, what was signed (TPM 2.0 Library, part 2).
    /// signature: TPMT_SIGNATURE.
    /// hash_algorithm: the PCR bank, such as "sha256".
    /// pcrs: each quoted PCR and its value.
    /// ak: TPM2B_PUBLIC of the key that signed.
    ///
    /// polkit: org.troth.agent1.quote.
    #[zbus(out_args("message", "signature", "hash_algorithm", "pcrs", "ak"))]
    async fn quote(
        &self,
        nonce: Vec<u8>,
        pcr_mask: u32,
        flags: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(Vec<u8>, Vec<u8>, String, Vec<Pcr>, Vec<u8>), CallError> {
        no_flags(flags)?;
        authorise(Guarded::Quote, &header, connection, &self.polkit).await?;
        let request = QuoteRequest { nonce, pcr_mask };
        let quote = self.agent.quote(request).await?;
        Ok((
            quote.message,
            quote.signature,
            quote.hash_algorithm,
            quote.pcrs,
            quote.ak,
        ))
    }

    /// Collects the evidence of this instant: a quote over all PCRs, the boot log and the whole IMA
    /// list.
    ///
    /// nonce: up to 64 printable characters of ASCII, which the quote is made over; a random one if
    /// it is empty.
    /// flags: must be 0.
    /// bundle: a sealed memfd, at its beginning, as `trothctl appraise` reads it.
    ///
    /// polkit: org.troth.agent1.evidence. The list tells what was run on this host.
    #[zbus(out_args("bundle"))]
    async fn collect_evidence(
        &self,
        nonce: String,
        flags: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<OwnedFd, CallError> {
        no_flags(flags)?;
        authorise(Guarded::Evidence, &header, connection, &self.polkit).await?;
        Ok(self.agent.collect_evidence(nonce).await?.into())
    }

    /// Registers again with the registrar, at once. Calls at the same time are one registration.
    ///
    /// flags: must be 0.
    /// agent_id: the id that this host is registered under.
    /// api_version: the version of the registrar's API that was used.
    ///
    /// polkit: org.troth.agent1.register.
    #[zbus(out_args("agent_id", "api_version"))]
    async fn register(
        &self,
        flags: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(String, String), CallError> {
        no_flags(flags)?;
        authorise(Guarded::Register, &header, connection, &self.polkit).await?;
        let registered = self.agent.register().await?;
        Ok((registered.agent_id, registered.api_version))
    }

    /// The actions that this host knows.
    ///
    /// flags: must be 0.
    /// actions: name, one line for people, and the sandbox that it runs in ("strict", "system" or
    /// "host") of each.
    #[zbus(out_args("actions"))]
    async fn list_actions(&self, flags: u64) -> Result<Vec<Action>, CallError> {
        no_flags(flags)?;
        let actions = self.agent.list_actions().await?;
        let shown = actions.into_iter();
        Ok(shown
            .map(|action| (action.name, action.description, action.sandbox))
            .collect())
    }

    /// Starts an action of this host.
    ///
    /// name: as ListActions has it.
    /// flags: must be 0.
    ///
    /// polkit: org.troth.agent1.run-action, with the name as its detail "action".
    async fn run_action(
        &self,
        name: String,
        flags: u64,
        #[zbus(header)] header: Header<'_>,
        #[zbus(connection)] connection: &Connection,
    ) -> Result<(), CallError> {
        no_flags(flags)?;
        let operation = Guarded::RunAction(checked_name(&name)?);
        authorise(operation, &header, connection, &self.polkit).await?;
        Ok(self.agent.run_action(name).await?)
    }

    /// A quote was made and sent.
    ///
    /// client: the address of the verifier that asked, or "local".
    /// ima_entries: entries of the IMA list that went with it, 0 without the list.
    #[zbus(signal)]
    async fn quote_served(
        emitter: &SignalEmitter<'_>,
        client: &str,
        ima_entries: u64,
    ) -> zbus::Result<()>;

    /// Of the program.
    #[zbus(property(emits_changed_signal = "const"))]
    fn version(&self) -> &'static str {
        self.status(|status| status.version)
    }

    /// The id that this host has with registrar and verifier. Empty until the TPM has answered: it
    /// may be made from its EK.
    #[zbus(property)]
    fn agent_id(&self) -> String {
        self.status(|status| status.agent_id.clone().unwrap_or_default())
    }

    /// What the agent does: "starting" (waits for its TPM), "registering", "unregistered" (the
    /// registrar has not taken it, it tries again), "attesting", "tpm-unavailable" (its TPM does not
    /// answer any more).
    #[zbus(property)]
    fn state(&self) -> String {
        self.status(|status| status.state.to_string())
    }

    /// Who opens the conversation with the verifier: "pull", the verifier does.
    #[zbus(property(emits_changed_signal = "const"))]
    fn mode(&self) -> String {
        self.status(|status| status.mode.to_string())
    }

    /// Host and port of the registrar.
    #[zbus(property(emits_changed_signal = "const"))]
    fn registrar(&self) -> String {
        self.status(|status| status.registrar.clone())
    }

    /// The way to the TPM, as tpm2-tss writes it.
    #[zbus(property(emits_changed_signal = "const"))]
    fn tcti(&self) -> String {
        self.status(|status| status.tcti.clone())
    }

    /// Manufacturer and vendor string, such as "IFX SLB9670". Empty until the TPM has answered.
    #[zbus(property)]
    fn tpm_vendor(&self) -> String {
        self.status(|status| status.tpm_vendor.clone())
    }

    /// The firmware's version, two numbers. Empty until the TPM has answered.
    #[zbus(property)]
    fn tpm_firmware(&self) -> String {
        self.status(|status| status.tpm_firmware.clone())
    }

    /// The PCR banks that are in use, such as "sha256". Empty until the TPM has answered.
    #[zbus(property)]
    fn hash_algorithms(&self) -> Vec<String> {
        self.status(|status| status.hash_algorithms.clone())
    }

    /// When the last quote was made: CLOCK_REALTIME in microseconds, 0 if never.
    #[zbus(name = "LastQuoteUSec", property(emits_changed_signal = "false"))]
    fn last_quote_usec(&self) -> u64 {
        self.status(|status| status.last_quote_usec)
    }

    /// Quotes since the agent was started.
    #[zbus(property(emits_changed_signal = "false"))]
    fn quote_count(&self) -> u64 {
        self.status(|status| status.quote_count)
    }

    /// Entries of the IMA list, as it was read last.
    #[zbus(property(emits_changed_signal = "false"))]
    fn ima_entries(&self) -> u64 {
        self.status(|status| status.ima_entries)
    }

    /// What became of the verifier's payload: "none" (none has come), "key-received" (its key is
    /// complete).
    #[zbus(property)]
    fn payload_state(&self) -> String {
        self.status(|status| status.payload_state.to_string())
    }

    /// The mount for secrets, a tmpfs that is never swapped. Empty: there was none when the agent
    /// was started.
    #[zbus(property(emits_changed_signal = "const"))]
    fn secure_mount(&self) -> String {
        let path = self.status(|status| status.secure_mount.clone());
        path.map_or_else(String::new, |path| path.display().to_string())
    }
}

/// Emits what `event` is on the bus.
pub(super) async fn emit(emitter: &SignalEmitter<'_>, event: Event) -> zbus::Result<()> {
    match event {
        Event::QuoteServed {
            client,
            ima_entries,
        } => Agent1Signals::quote_served(emitter, &client, ima_entries).await,
    }
}

/// Emits one PropertiesChanged for what differs between two states of the agent.
pub(super) async fn emit_changes(
    emitter: &SignalEmitter<'_>,
    before: &Status,
    after: &Status,
) -> zbus::Result<()> {
    let mut changed = HashMap::new();
    for (name, of) in SIGNALLED {
        let value = of(after);
        if of(before) != value {
            changed.insert(name, value);
        }
    }
    if changed.is_empty() {
        return Ok(());
    }
    let name = InterfaceName::from_static_str_unchecked(NAME);
    fdo::Properties::properties_changed(emitter, name, changed, (&[]).into()).await
}

/// A property's name, and its value.
type Signalled = (&'static str, fn(&Status) -> Variant<'static>);

/// The properties whose changes are signalled.
const SIGNALLED: [Signalled; 6] = [
    ("AgentId", |status| {
        status.agent_id.clone().unwrap_or_default().into()
    }),
    ("State", |status| status.state.to_string().into()),
    ("TpmVendor", |status| status.tpm_vendor.clone().into()),
    ("TpmFirmware", |status| status.tpm_firmware.clone().into()),
    ("HashAlgorithms", |status| {
        status.hash_algorithms.clone().into()
    }),
    ("PayloadState", |status| {
        status.payload_state.to_string().into()
    }),
];
