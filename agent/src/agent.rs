use std::{
    convert::Infallible, io, net::SocketAddr, os::fd::OwnedFd, path::Path, sync::Arc,
    time::Duration,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::net::TcpListener;
use troth_core::wire::Registration;
use troth_daemon::{
    client::Client,
    descriptors::Descriptors,
    notify, resident,
    server::{self, Limits},
    shutdown::Shutdown,
    tls::{self, ClientAuth, RevocationFiles, ServedIdentity, ServerTls, ServerTrust, TlsError},
    watch,
};
use troth_ipc::{
    agent::State,
    bus,
    polkit::Polkit,
    varlink::{self, AgentService},
};

use crate::{
    config::{Config, InvalidConfig},
    evidence::{Collector, KeptList, bootlog::BootLog, ima::ImaList, userspace::UserspaceLog},
    host_files::HostFiles,
    http::Api,
    identity::{
        agent_data::Candidate,
        ak::{self, AkError, Keys},
        device::{DeviceError, DeviceIdentity, DevicePlan, Identified},
        id::{self, IdError},
        mtls::{self, Files, MtlsError},
        transport::{self, TransportError, TransportKey},
    },
    listener,
    local::{Host, LocalAgent, ProcessLogs, Reporter, ThisProcess},
    messages,
    registration::{self, Attempts, Backoff, Registrar, RegistrationError, Requests, wait_after},
    renewal::Renewal,
    secure_mount,
    tpm::{
        Actor, AkTemplate, Tpm, TpmError, TpmHandle,
        actor::Opener,
        esys::{EsysTpm, choose_tcti},
        nv::{EkCertificates, ek_certificates},
        permission,
    },
};

/// sysexits.h: the registrar refuses this host for good.
pub const EX_NOPERM: u8 = 77;
/// sysexits.h: the configuration, or a key it names, cannot work.
pub use troth_daemon::config::EX_CONFIG;

/// Longest wait for EK, certificates and AK; making RSA keys takes a slow chip half a minute each.
const PROVISION_DEADLINE: Duration = Duration::from_secs(180);

/// First wait before a TPM that failed is asked for the keys again, and how often.
const PROVISION_RETRY: Duration = Duration::from_millis(250);
const PROVISION_TRIES: u32 = 5;

/// How often the TPM is asked for a sign of life in a unit without watchdog.
const TPM_CHECK_INTERVAL: Duration = Duration::from_secs(30);

/// Longest wait for one answer of the registrar.
const REGISTRAR_TIMEOUT: Duration = Duration::from_secs(30);

/// The name of the varlink socket in its unit.
const VARLINK_SOCKET: &str = "varlink";

/// Why the agent ended.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// The configuration cannot work.
    #[error(transparent)]
    Config(#[from] InvalidConfig),
    /// No agent id.
    #[error(transparent)]
    Id(#[from] IdError),
    /// No AK.
    #[error(transparent)]
    Ak(#[from] AkError),
    /// No device identity.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// No payload transport key.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// No TLS certificate.
    #[error(transparent)]
    Mtls(#[from] MtlsError),
    /// The TLS stack refuses the certificates.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The listener cannot be opened.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The reason.
        source: io::Error,
    },
    /// Registration has no hope.
    #[error(transparent)]
    Registration(#[from] RegistrationError),
    /// The operating system refused a thread, a signal handler or the like.
    #[error(transparent)]
    System(#[from] io::Error),
}

impl AgentError {
    /// The process's exit status.
    pub fn exit_status(&self) -> u8 {
        match self {
            Self::Config(_) | Self::Id(_) => EX_CONFIG,
            Self::Ak(error) if !error.is_transient() => EX_CONFIG,
            Self::Device(error) if !matches!(error, DeviceError::Tpm(_)) => EX_CONFIG,
            Self::Tpm(
                TpmError::EndorsementAuth { .. }
                | TpmError::KeyAuth { .. }
                | TpmError::PersistentKey { .. },
            )
            | Self::Registration(RegistrationError::Tpm(TpmError::KeyAuth { .. })) => EX_CONFIG,
            Self::Transport(
                TransportError::NotRsa2048 { .. } | TransportError::Encrypted { .. },
            )
            | Self::Mtls(
                MtlsError::Half { .. } | MtlsError::Unusable { .. } | MtlsError::Encrypted { .. },
            )
            | Self::Tls(_) => EX_CONFIG,
            Self::Registration(error) if error.is_final() => EX_NOPERM,
            _ => 1,
        }
    }
}

/// Runs the agent on the TPM that the configuration names, until `shutdown`. What the service manager
/// has opened goes before the paths of the configuration's defaults.
pub async fn run(
    mut config: Config,
    mut descriptors: Descriptors,
    shutdown: Shutdown,
) -> Result<(), AgentError> {
    let tcti = choose_tcti(config.tcti.as_deref());
    tracing::info!("TPM at {tcti}");
    config.tcti = Some(tcti.clone());
    let endorsement = config.endorsement()?;
    tokio::select! {
        () = permission::wait(&tcti) => {}
        () = shutdown.wait() => return Ok(()),
    }
    let open: Opener = Box::new(move || {
        let tpm = EsysTpm::open_with(&tcti, &endorsement)?;
        Ok(Box::new(tpm) as Box<dyn Tpm>)
    });
    let socket = descriptors.take(VARLINK_SOCKET);
    let doors = |agent| local_doors(agent, socket);
    run_with(config, descriptors, open, doors, shutdown).await
}

/// The front doors for callers of this host: the system bus, and varlink on `socket`.
async fn local_doors(agent: LocalAgent, socket: Option<OwnedFd>) -> Infallible {
    let agent = Arc::new(agent);
    let polkit = Arc::new(Polkit::default());
    let varlink = serve_varlink(Arc::clone(&agent), Arc::clone(&polkit), socket);
    let bus = bus::serve(agent, Arc::new(ProcessLogs), polkit, bus::Address::System);
    tokio::select! {
        never = varlink => never,
        never = bus => never,
    }
}

/// Without a socket nobody is served: the unit that makes it may be switched off.
async fn serve_varlink(
    agent: Arc<LocalAgent>,
    polkit: Arc<Polkit>,
    socket: Option<OwnedFd>,
) -> Infallible {
    if let Some(socket) = socket {
        let service = AgentService::new(agent, polkit, ThisProcess);
        if let Err(error) = varlink::serve(socket, service, None).await {
            tracing::error!("no varlink interface: its socket cannot be used: {error}");
        }
    }
    std::future::pending().await
}

/// Runs the agent on any TPM, until `shutdown`. Whatever happens, the TPM is left clean. `doors` let
/// local callers in, from the beginning on.
pub async fn run_with<D: Future<Output = Infallible>>(
    config: Config,
    mut descriptors: Descriptors,
    open: Opener,
    doors: impl FnOnce(LocalAgent) -> D,
    shutdown: Shutdown,
) -> Result<(), AgentError> {
    let kept = Kept {
        listener: descriptors.take(listener::NAME),
        ima_list: KeptList::take(&mut descriptors),
    };
    let files = HostFiles::new(&config, descriptors);
    let secure_mount = secure_mount::find(&config.state_dir);
    let reporter = Reporter::new(&config, secure_mount);
    let (registrar, requests) = registration::requests();
    let local = LocalAgent::new(reporter, registrar);
    let actor = Actor::start(open)?;
    let tpm = actor.handle();
    let result = tokio::select! {
        result = start_and_serve(&config, files, kept, &tpm, &local, requests, &shutdown) => result,
        never = doors(local.clone()) => match never {},
    };
    notify::stopping();
    actor.stop();
    result
}

async fn start_and_serve(
    config: &Config,
    files: HostFiles,
    kept: Kept,
    tpm: &TpmHandle,
    local: &LocalAgent,
    requests: Requests,
    shutdown: &Shutdown,
) -> Result<(), AgentError> {
    let service = tokio::select! {
        service = prepare(config, files, kept, tpm, local) => service?,
        () = shutdown.wait() => return Ok(()),
    };
    let reporter = local.reporter();
    let id = service.registrar.id.clone();
    let mut attempts = Attempts::new(service.registrar, tpm.clone(), requests);
    tokio::select! {
        registered = register(config, &mut attempts, reporter) => registered?,
        lost = watch_tpm(tpm, reporter) => return Err(lost.into()),
        () = shutdown.wait() => return Ok(()),
    }
    let address = service.listener.local_addr()?;
    tracing::info!("listening on {address}");
    resident::release_start_up_code();
    // Without mTLS there is nothing to renew.
    let renewal = service.shown.map(|shown| Renewal {
        id: id.clone(),
        files: shown.files,
        served: shown.served,
        contact: shown.contact,
        shown: shown.certificate,
        registrar: local.registrar().clone(),
        waits: config.backoff(),
    });
    let revocation = follow_revocation(service.revocation, service.tls.clone());
    reporter.ready(State::Attesting, format!("Attesting as {id} on {address}"));
    tokio::select! {
        () = server::serve(
            service.listener,
            service.tls,
            Limits::default(),
            service.api,
            shutdown.clone(),
        ) => Ok(()),
        lost = watch_tpm(tpm, reporter) => Err(lost.into()),
        never = attempts.on_request() => match never {},
        never = keep_certificate(renewal) => match never {},
        never = revocation => match never {},
    }
}

/// What the service manager kept of an earlier start.
struct Kept {
    listener: Option<OwnedFd>,
    ima_list: KeptList,
}

/// An agent that can be asked as soon as it is registered.
struct Service {
    listener: TcpListener,
    tls: Option<ServerTls>,
    revocation: RevocationFiles,
    api: Api,
    registrar: Registrar,
    /// With mTLS.
    shown: Option<Shown>,
}

/// The certificate that is shown to verifiers.
struct Shown {
    files: Files,
    served: ServedIdentity,
    contact: String,
    /// PEM.
    certificate: String,
}

async fn prepare(
    config: &Config,
    host_files: HostFiles,
    kept: Kept,
    tpm: &TpmHandle,
    local: &LocalAgent,
) -> Result<Service, AgentError> {
    // What only the configuration can spoil comes first: it is told before the TPM is touched.
    let template = config.ak_template()?;
    let versions = config.versions()?;
    let contact = config.contact()?;
    let client_auth = client_auth(config)?;
    let device = config.device_identity()?;
    let device = device.map(DevicePlan::read).transpose()?;
    let client = registrar_client(config)?;

    let reporter = local.reporter();
    reporter.enter(State::Starting, "Waiting for the TPM".to_owned());
    let Provisioned {
        keys,
        certificates,
        device,
    } = provision(config, tpm, template, device, reporter).await?;
    let id = id::agent_id(&config.uuid, &keys.ek, &host_files.product_uuid)?;
    if keys.created {
        tracing::info!(
            message_id = messages::AK_MADE,
            node_id = %id,
            "agent {id}, AK {template} made"
        );
    } else {
        tracing::info!("agent {id}, AK {template} loaded");
    }
    let file = config.file(config.payload_key.as_deref(), transport::FILE);
    let transport = Arc::new(TransportKey::load_or_create(
        &file,
        &config.payload_key_password,
    )?);
    let files = Files {
        certificate: config.file(config.server_cert.as_deref(), mtls::CERTIFICATE_FILE),
        key: config.file(config.server_key.as_deref(), mtls::KEY_FILE),
        password: config.server_key_password.clone(),
    };
    let mut revocation = config.client_crl_files();
    let (tls, served, mtls_cert) = match client_auth {
        Some(client_auth) => {
            let identity = mtls::load_or_create(&files, &id, &contact)?;
            let served = ServedIdentity::new(identity.tls);
            let tls = tls::server_config_showing(&served, client_auth)?;
            if let Some(clients) = tls.clients() {
                revocation
                    .apply(clients)
                    .map_err(InvalidConfig::ClientCrl)?;
            }
            (Some(tls), Some(served), identity.certificate_pem)
        }
        None => {
            tracing::warn!("enable_agent_mtls is off: anybody may ask this host for quotes");
            (None, None, "disabled".to_owned())
        }
    };

    // Bound before it is announced, because port 0 becomes a number here; answered only after
    // activation, because nobody can know this host before.
    let address = SocketAddr::new(config.ip, config.port);
    let listener = listener::listen(kept.listener, address)
        .await
        .map_err(|source| AgentError::Listen { address, source })?;
    let port = config
        .contact_port
        .map_or_else(|| listener.local_addr().map(|a| a.port()), Ok)?;
    let (idevid, iak) = device.as_ref().map(|d| (&d.idevid, &d.iak)).unzip();
    let key = |key: Option<&Identified>| key.map(|key| STANDARD.encode(key.public.to_tpm2b()));
    let certificate =
        |key: Option<&Identified>| key?.certificate.as_ref().map(|c| STANDARD.encode(c));
    let registrar = Registrar {
        client,
        id: id.clone(),
        kind: template.kind,
        versions: versions.clone(),
        body: Registration {
            ek_tpm: Some(STANDARD.encode(keys.ek.to_tpm2b())),
            ekcert: Some(certificates.to_pem()),
            aik_tpm: Some(STANDARD.encode(keys.ak.to_tpm2b())),
            ip: Some(contact.clone()),
            port: Some(port),
            mtls_cert: Some(mtls_cert.clone()),
            idevid_tpm: key(idevid),
            idevid_cert: certificate(idevid),
            iak_tpm: key(iak),
            iak_cert: certificate(iak),
            ..Registration::default()
        },
        iak: device.as_ref().map(|device| device.iak_key.clone()),
    };
    let collector = Arc::new(Collector::new(
        tpm.clone(),
        template,
        transport,
        ImaList::continued(host_files.ima_list, kept.ima_list),
        BootLog::new(host_files.boot_log),
        UserspaceLog::new(host_files.userspace_log),
        reporter.clone(),
    ));
    let api = Api::new(id.clone(), versions, Arc::clone(&collector));
    local.identified(Host {
        id,
        ak: keys.ak,
        collector,
    });
    let shown = served.map(|served| Shown {
        files,
        served,
        contact,
        certificate: mtls_cert,
    });
    Ok(Service {
        listener,
        tls,
        revocation,
        api,
        registrar,
        shown,
    })
}

/// The clients that may connect; `None` without mTLS.
fn client_auth(config: &Config) -> Result<Option<ClientAuth>, InvalidConfig> {
    if !config.enable_agent_mtls {
        return Ok(None);
    }
    let mut authorities = Vec::new();
    for file in config.client_ca_files() {
        let found = tls::load_certificates(&file).map_err(|error| InvalidConfig::ClientCa {
            reason: error.to_string(),
        })?;
        authorities.extend(found);
    }
    if authorities.is_empty() {
        let reason = "no file is named".to_owned();
        return Err(InvalidConfig::ClientCa { reason });
    }
    Ok(Some(ClientAuth::Required(authorities)))
}

/// The connection to the registrar. Whether it is TLS is decided here, once.
fn registrar_client(config: &Config) -> Result<Client, InvalidConfig> {
    let tls = if config.registrar_tls {
        let invalid = |error: TlsError| match error {
            TlsError::ServerName(value) => InvalidConfig::Value {
                option: "registrar_tls_name",
                value,
                expected: "it is a DNS name or an address",
            },
            error => InvalidConfig::RegistrarCa {
                reason: error.to_string(),
            },
        };
        let authorities = tls::load_certificates(&config.registrar_ca_file()).map_err(invalid)?;
        let trust = match config.registrar_tls_name.clone() {
            None => ServerTrust::Roots(authorities),
            Some(name) => ServerTrust::Named { authorities, name },
        };
        // No client certificate: those of the registrar's CA belong to administrators.
        Some(tls::client_config(trust, None).map_err(invalid)?)
    } else {
        None
    };
    let port = config.registrar_port();
    Ok(Client::new(
        &config.registrar_ip,
        port,
        tls,
        REGISTRAR_TIMEOUT,
    ))
}

/// What the TPM says about this host.
struct Provisioned {
    keys: Keys,
    certificates: EkCertificates,
    device: Option<DeviceIdentity>,
}

/// EK, its certificate, the AK, and the device identity. What may pass is tried again a few times, then left to the
/// service manager.
async fn provision(
    config: &Config,
    tpm: &TpmHandle,
    template: AkTemplate,
    device: Option<DevicePlan>,
    reporter: &Reporter,
) -> Result<Provisioned, AgentError> {
    let path = config.state_dir.join(ak::FILE);
    let agent_data = config.agent_data_files();
    let mut backoff = Backoff::new(PROVISION_RETRY, PROVISION_RETRY * 8);
    loop {
        let (path, agent_data) = (path.clone(), agent_data.clone());
        let (device, told) = (device.clone(), reporter.clone());
        // The outer result is the TPM thread's, the inner one the keys'.
        let result = tpm
            .call("EK and AK", PROVISION_DEADLINE, move |tpm| {
                let about = tpm.describe()?;
                tracing::info!("TPM: {about}");
                told.tpm_is(about);
                match find_keys(tpm, template, &path, &agent_data, device.as_ref()) {
                    Err(
                        AgentError::Tpm(error)
                        | AgentError::Ak(AkError::Tpm(error))
                        | AgentError::Device(DeviceError::Tpm(error)),
                    ) => Err(error),
                    other => Ok(other),
                }
            })
            .await;
        let error = match result {
            Ok(found) => {
                let found = found?;
                tpm.keep_loaded(template.kind, found.keys.blobs.clone())
                    .await?;
                return Ok(found);
            }
            Err(error) => error,
        };
        if backoff.tries() == PROVISION_TRIES || error.is_final() {
            return Err(error.into());
        }
        let delay = backoff.next_delay();
        tracing::warn!("{error}; trying again in {:.1} s", delay.as_secs_f64());
        reporter.enter(State::Starting, format!("Waiting for the TPM: {error}"));
        tokio::time::sleep(delay).await;
    }
}

/// What [`provision`] does on the TPM thread. EK and AK stay loaded, for the activation that follows.
fn find_keys(
    tpm: &mut dyn Tpm,
    template: AkTemplate,
    path: &Path,
    agent_data: &[Candidate],
    device: Option<&DevicePlan>,
) -> Result<Provisioned, AgentError> {
    let device = device.map(|plan| plan.identify(tpm)).transpose()?;
    let keys = ak::load_or_create(tpm, &template, path, agent_data)?;
    Ok(Provisioned {
        certificates: ek_certificates(tpm, template.kind, &keys.ek)?,
        keys,
        device,
    })
}

/// Registers, again and again until it works or cannot. When it did not work once, the service
/// manager is told that the start is over: it ends a start that takes long, and a host boots on
/// without its registrar.
async fn register(
    config: &Config,
    attempts: &mut Attempts,
    reporter: &Reporter,
) -> Result<(), RegistrationError> {
    let (initial, longest) = config.backoff();
    let mut backoff = Backoff::new(initial, longest);
    loop {
        let detail = format!("Registering with {}", config.registrar_ip);
        reporter.enter(State::Registering, detail);
        let error = match attempts.attempt().await {
            Ok(version) => {
                let id = attempts.id();
                tracing::info!(
                    message_id = messages::HOST_REGISTERED,
                    node_id = %id,
                    registrar = config.registrar_ip,
                    "registered and activated as {id} (API {version})"
                );
                return Ok(());
            }
            Err(error) => error,
        };
        let spent = config
            .exponential_backoff_max_retries
            .is_some_and(|retries| backoff.tries() >= retries);
        if error.is_final() {
            tracing::error!(
                message_id = messages::HOST_REFUSED,
                node_id = %attempts.id(),
                registrar = config.registrar_ip,
                "not registered, and no further try will do: {error}"
            );
        }
        if error.is_final() || spent {
            return Err(error);
        }
        let delay = wait_after(&(&error).into(), &mut backoff);
        let wait = delay.as_secs_f64();
        tracing::warn!(
            message_id = messages::NOT_REGISTERED,
            node_id = %attempts.id(),
            registrar = config.registrar_ip,
            "not registered: {error}; trying again in {wait:.1} s"
        );
        reporter.ready(
            State::Unregistered,
            format!("Not registered, trying again in {wait:.0} s: {error}"),
        );
        attempts.pause(delay).await;
    }
}

async fn keep_certificate(renewal: Option<Renewal>) -> Infallible {
    match renewal {
        Some(renewal) => renewal.keep().await,
        None => std::future::pending().await,
    }
}

async fn follow_revocation(files: RevocationFiles, tls: Option<ServerTls>) -> Infallible {
    if let Some(tls) = tls {
        files.follow(tls).await;
    }
    std::future::pending().await
}

/// Tells the service manager whether the TPM answers. The watchdog is fed by nothing else: an agent
/// whose TPM hangs has to be restarted, however well it serves `/version`. An agent that is not asked
/// anything wakes up for this alone.
///
/// Returns when the watchdog would end this process because the way to the TPM is gone. Opening it
/// anew may never work again: libtss2 reaches tpm2-abrmd by GLib's connection to the bus, which the
/// process has once, and for ever. Who ends by itself is started anew at once, and says why.
async fn watch_tpm(tpm: &TpmHandle, reporter: &Reporter) -> TpmError {
    notify::until_ready().await;
    let watchdog = notify::watchdog_interval();
    let interval = watchdog.unwrap_or(TPM_CHECK_INTERVAL);
    let mut gone = false;
    loop {
        let wait = match tpm.ping().await {
            Ok(()) => {
                notify::watchdog();
                reporter.tpm(None);
                gone = false;
                interval
            }
            Err(error) => {
                tracing::warn!("watchdog not fed: {error}");
                // That many wait for the TPM is no news of the TPM.
                if !matches!(error, TpmError::Overloaded) {
                    reporter.tpm(Some(error.to_string()));
                }
                let unreachable = matches!(error, TpmError::Open { .. });
                if unreachable && gone && watchdog.is_some() {
                    return error;
                }
                gone = unreachable;
                wait_after_failed_check(unreachable, interval)
            }
        };
        watch::look_again();
        tokio::time::sleep(wait).await;
    }
}

/// The TPM is asked once more before the watchdog, which waits for two intervals, gives up: a check
/// may take half a minute of them, or fail for once.
fn wait_after_failed_check(unreachable: bool, interval: Duration) -> Duration {
    if unreachable {
        interval / 2
    } else {
        interval / 6
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tpm::actor::PING_DEADLINE;

    /// That of the unit, half of which is the interval.
    const WATCHDOG: Duration = Duration::from_secs(60);

    #[test]
    fn a_check_that_failed_once_is_repeated_before_the_watchdog_ends() {
        let interval = WATCHDOG / 2;
        let took = PING_DEADLINE;
        assert!(interval + took + wait_after_failed_check(false, interval) < WATCHDOG);
        // Nobody answers at all: found at once, twice.
        assert!(interval + wait_after_failed_check(true, interval) < WATCHDOG);
    }
}
