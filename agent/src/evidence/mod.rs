//! From a nonce to one consistent snapshot: quote first, then the logs, so that the logs never lack
//! an entry that the quote has.

/// Evidence as text, whose logs are read as it is sent.
mod answer;
/// The firmware's event log.
pub mod bootlog;
/// Text as it stands in a JSON string.
mod escape;
/// The kernel's IMA list, read from where the last reader stopped.
pub mod ima;
/// The IMA list over a restart of the agent.
mod kept;
/// systemd's log of what user space measured.
pub mod userspace;

use std::{
    fs, io,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::SystemTime,
};

use bytes::Bytes;
use troth_core::{tpm::PcrMask, wire::QuoteResponse};

use crate::{
    http::ApiVersion,
    identity::transport::TransportKey,
    local::Reporter,
    messages,
    tpm::{AkTemplate, BoundQuote, QuoteRequest, TpmError, TpmHandle},
};
pub(crate) use answer::envelope;
pub use answer::{Answer, Pieces};
use bootlog::BootLog;
use ima::{ImaList, Reader};
pub use kept::KeptList;
use userspace::UserspaceLog;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Request {
    /// The nonce's bytes, as they came.
    pub nonce: Vec<u8>,
    /// PCRs to quote; PCR 16 comes in any case.
    pub mask: PcrMask,
    /// Send the transport key.
    pub with_key: bool,
    /// Send the logs, the IMA list from this entry on.
    pub logs_from: Option<u64>,
    /// Send systemd's log too.
    pub with_userspace_log: bool,
}

/// One quote and the logs that explain it.
#[derive(Debug)]
pub struct Snapshot {
    /// The quote.
    pub quote: BoundQuote,
    /// The transport key, PEM.
    pub pubkey: Option<String>,
    /// The IMA list, to be streamed.
    pub ima: Option<Reader>,
    /// base64 of the boot log.
    pub boot_log: Option<Bytes>,
    /// base64 of systemd's log.
    pub userspace_log: Option<String>,
    /// When the kernel booted, Unix seconds.
    pub boottime: Option<u64>,
}

/// Why there is no evidence. Everything here may succeed later.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvidenceError {
    /// The TPM.
    #[error(transparent)]
    Tpm(#[from] TpmError),
    /// A log exists but cannot be read.
    #[error("cannot read {path}: {source}")]
    Log {
        /// The file.
        path: String,
        /// The reason.
        source: io::Error,
    },
    /// The reading thread ended.
    #[error("reading the logs was interrupted")]
    Interrupted,
    /// It cannot be written as JSON.
    #[error("cannot be written: {0}")]
    Encode(serde_json::Error),
}

/// Collects evidence; one for all front doors.
#[derive(Debug)]
pub struct Collector {
    tpm: TpmHandle,
    template: AkTemplate,
    transport: Arc<TransportKey>,
    ima: Arc<ImaList>,
    boot_log: Arc<BootLog>,
    userspace_log: Arc<UserspaceLog>,
    boottime: Option<u64>,
    reporter: Reporter,
    /// A log could not be read last time.
    unreadable: AtomicBool,
}

impl Collector {
    /// A collector with the AK that was made from `template`. Each quote is told to `reporter`.
    pub fn new(
        tpm: TpmHandle,
        template: AkTemplate,
        transport: Arc<TransportKey>,
        ima: ImaList,
        boot_log: BootLog,
        userspace_log: UserspaceLog,
        reporter: Reporter,
    ) -> Self {
        let boottime = boot_time();
        Self {
            tpm,
            template,
            transport,
            ima: Arc::new(ima),
            boot_log: Arc::new(boot_log),
            userspace_log: Arc::new(userspace_log),
            boottime,
            reporter,
            unreadable: AtomicBool::new(false),
        }
    }

    /// What the AK was made from.
    pub fn template(&self) -> &AkTemplate {
        &self.template
    }

    /// Whom quotes are told to.
    pub fn reporter(&self) -> &Reporter {
        &self.reporter
    }

    /// The transport key.
    pub fn transport(&self) -> &TransportKey {
        &self.transport
    }

    /// Quotes, then opens the logs.
    pub async fn collect(&self, request: Request) -> Result<Snapshot, EvidenceError> {
        let quoted = self
            .tpm
            .quote(QuoteRequest {
                nonce: request.nonce,
                bank: self.template.hash,
                mask: request.mask,
                binding: self.transport.binding(self.template.hash),
            })
            .await?;
        self.reporter.quote_was_made();
        let mut snapshot = Snapshot {
            quote: quoted,
            pubkey: request
                .with_key
                .then(|| self.transport.public_pem().to_owned()),
            ima: None,
            boot_log: None,
            userspace_log: None,
            boottime: None,
        };
        if let Some(from) = request.logs_from {
            let with_boot_log = request.mask.contains(0);
            let (ima, boot_log) = (Arc::clone(&self.ima), Arc::clone(&self.boot_log));
            let userspace = request.with_userspace_log;
            let userspace = userspace.then(|| Arc::clone(&self.userspace_log));
            let logs = tokio::task::spawn_blocking(move || {
                let ima = ima
                    .read_from(from)
                    .map_err(|source| log_error(ima.path(), source))?;
                let boot_log = if with_boot_log {
                    boot_log
                        .base64()
                        .map_err(|source| log_error(boot_log.path(), source))?
                } else {
                    None
                };
                let userspace = userspace.and_then(|log| log.base64());
                Ok::<_, EvidenceError>((ima, boot_log, userspace))
            });
            let logs = logs.await.map_err(|_| EvidenceError::Interrupted)?;
            self.tell(logs.as_ref().err());
            (snapshot.ima, snapshot.boot_log, snapshot.userspace_log) = logs?;
            snapshot.boottime = self.boottime;
        }
        Ok(snapshot)
    }

    /// The same as an answer of the API's version. `client` is who asked.
    pub async fn answer(
        &self,
        request: Request,
        version: ApiVersion,
        client: String,
    ) -> Result<Answer, EvidenceError> {
        let snapshot = self.collect(request).await?;
        let head = QuoteResponse {
            quote: snapshot.quote.encode(),
            hash_alg: self.template.hash.name().to_owned(),
            enc_alg: version.key_name(self.template.kind).to_owned(),
            sign_alg: self.template.scheme.name().to_owned(),
            pubkey: snapshot.pubkey,
            userspace_measurement_list: snapshot.userspace_log,
            boottime: snapshot.boottime,
            ..QuoteResponse::default()
        };
        let receipt = self.reporter.receipt(client);
        answer::answer(&head, snapshot.ima, snapshot.boot_log, receipt).await
    }

    /// An entry of the journal when logs cannot be read any more: verifiers ask every few seconds.
    fn tell(&self, error: Option<&EvidenceError>) {
        let told = self.unreadable.swap(error.is_some(), Ordering::Relaxed);
        if let Some(EvidenceError::Log { path, source }) = error.filter(|_| !told) {
            tracing::error!(
                message_id = messages::LOG_UNREADABLE,
                path = path,
                "no evidence, cannot read {path}: {source}"
            );
        }
    }
}

fn log_error(path: &std::path::Path, source: io::Error) -> EvidenceError {
    EvidenceError::Log {
        path: path.display().to_string(),
        source,
    }
}

/// `btime` of /proc/stat; computed from the clocks where the sandbox hides that file.
///
/// Read once: the kernel derives it from the wall clock, and a step of that clock is no reboot.
fn boot_time() -> Option<u64> {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    parse_btime(&stat).or_else(|| {
        let now = SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .ok()?
            .as_secs();
        let up = rustix::time::clock_gettime(rustix::time::ClockId::Boottime).tv_sec;
        now.checked_sub(u64::try_from(up).ok()?)
    })
}

fn parse_btime(stat: &str) -> Option<u64> {
    stat.lines()
        .find_map(|line| line.strip_prefix("btime "))?
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn boot_time_is_read_from_proc() {
        assert_eq!(
            parse_btime("cpu 1 2\nbtime 1700000000\nprocesses 3\n"),
            Some(1_700_000_000)
        );
        assert_eq!(parse_btime("cpu 1 2\n"), None);
        assert!(boot_time().unwrap() > 1_500_000_000);
    }
}
