use std::{
    fmt::Display,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::pki_types::UnixTime;

use super::{Clients, RevocationError, RevocationLists, ServerTls};
use crate::watch::{Stamp, Watch, stamp};

/// `MESSAGE_ID=` of a list of revoked client certificates that is out of date, or could not be read
/// again.
pub const REVOCATION_LIST: &str = "54740f8fc86949b49523e7c141173edc";

/// Keylime's names of the list in a CA directory.
const DEFAULT: [&str; 2] = ["cacrl.pem", "cacrl.der"];
/// How often a list that its CA should have renewed is told of.
const REMINDER: Duration = Duration::from_secs(86_400);

/// Files of certificate revocation lists, and what they were like when they were read.
#[derive(Debug)]
pub struct RevocationFiles {
    paths: Vec<PathBuf>,
    /// They are lists that a CA directory may have.
    optional: bool,
    seen: Vec<Option<Stamp>>,
    /// Whose lists apply.
    in_force: Vec<PathBuf>,
    lists: RevocationLists,
    reminded: Option<Instant>,
}

impl RevocationFiles {
    /// Those that are configured, which must exist; else those of the CA directories, if there are
    /// any.
    pub fn new(configured: Vec<PathBuf>, ca_dirs: &[&Path]) -> Self {
        let optional = configured.is_empty();
        let paths = match optional {
            true => ca_dirs
                .iter()
                .flat_map(|directory| DEFAULT.map(|name| directory.join(name)))
                .collect(),
            false => configured,
        };
        Self {
            paths,
            optional,
            seen: Vec::new(),
            in_force: Vec::new(),
            lists: RevocationLists::default(),
            reminded: None,
        }
    }

    /// Reads them for a server that starts: a list that cannot be used is an error, as nobody knows
    /// whom it would have named.
    pub fn apply(&mut self, clients: &Clients) -> Result<(), RevocationError> {
        self.seen = self.stamps();
        self.in_force = self.wanted();
        self.lists = read(&self.in_force, clients)?;
        Ok(())
    }

    /// Takes over those that are replaced while a server runs, for as long as it does.
    pub async fn follow(mut self, tls: ServerTls) {
        let Some(clients) = tls.clients() else {
            return;
        };
        let mut watch = Watch::new(self.paths.iter().cloned());
        loop {
            self.look(clients).await;
            watch.changed().await;
        }
    }

    /// Reads them again if one has changed. What cannot be used does not take the place of what was
    /// read before, nor does a file that is gone.
    async fn look(&mut self, clients: &Arc<Clients>) {
        let stamps = self.stamps();
        if stamps != self.seen {
            self.seen = stamps;
            self.read_again(clients).await;
        }
        self.remind();
    }

    async fn read_again(&mut self, clients: &Arc<Clients>) {
        let paths = self.wanted();
        let (wanted, judge) = (paths.clone(), Arc::clone(clients));
        // A large list takes a while: not on an I/O task.
        let lists = tokio::task::spawn_blocking(move || read(&wanted, &judge)).await;
        match lists {
            Ok(Ok(lists)) => {
                tracing::info!(lists = lists.len(), "revoked certificates were read again");
                self.lists = lists;
                self.in_force = paths;
                self.reminded = None;
            }
            Ok(Err(error)) => kept(&error),
            Err(error) => kept(&error),
        }
    }

    /// All that are configured; of the CA directory those that exist, or existed.
    fn wanted(&self) -> Vec<PathBuf> {
        let paths = self.paths.iter().zip(&self.seen);
        paths
            .filter(|(path, seen)| !self.optional || seen.is_some() || self.in_force.contains(path))
            .map(|(path, _)| path.clone())
            .collect()
    }

    fn stamps(&self) -> Vec<Option<Stamp>> {
        self.paths.iter().map(|path| stamp(path)).collect()
    }

    fn remind(&mut self) {
        if self.reminded.is_some_and(|last| last.elapsed() < REMINDER) {
            return;
        }
        self.reminded = Some(Instant::now());
        for warning in self.lists.overdue(UnixTime::now()) {
            tracing::warn!(message_id = REVOCATION_LIST, "{warning}");
        }
    }
}

fn kept(error: &dyn Display) {
    tracing::error!(
        message_id = REVOCATION_LIST,
        "{error}; the lists that were read before stay in force"
    );
}

fn read(paths: &[PathBuf], clients: &Clients) -> Result<RevocationLists, RevocationError> {
    let lists = RevocationLists::load(paths, clients.authorities())?;
    clients.revoke(lists.clone());
    Ok(lists)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rcgen::{
        BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer,
        IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams, SerialNumber,
        date_time_ymd,
    };
    use rustls::{pki_types::CertificateDer, server::danger::ClientCertVerifier};

    use super::*;

    const SERIAL: u64 = 77;

    /// A CA directory, and a server that takes the clients of its CA.
    struct Site {
        ca: CertifiedIssuer<'static, KeyPair>,
        directory: tempfile::TempDir,
        clients: Arc<Clients>,
        client: CertificateDer<'static>,
    }

    impl Site {
        fn new() -> Self {
            let mut params = CertificateParams::default();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
            let key = KeyPair::generate().unwrap();
            let ca = CertifiedIssuer::self_signed(params, key).unwrap();
            let mut params = CertificateParams::default();
            params.serial_number = Some(SerialNumber::from(SERIAL));
            let client = params
                .signed_by(&KeyPair::generate().unwrap(), &ca)
                .unwrap();
            let roots = vec![ca.der().clone()];
            Self {
                client: client.der().clone(),
                clients: Arc::new(Clients::new(roots, false).unwrap()),
                directory: tempfile::tempdir().unwrap(),
                ca,
            }
        }

        fn path(&self) -> &Path {
            self.directory.path()
        }

        /// A list that names the client, or nobody.
        fn list(&self, year: i32, client: bool) -> Vec<u8> {
            let revoked = client.then(|| RevokedCertParams {
                serial_number: SerialNumber::from(SERIAL),
                revocation_time: date_time_ymd(year, 1, 1),
                reason_code: None,
                invalidity_date: None,
            });
            let params = CertificateRevocationListParams {
                this_update: date_time_ymd(year, 1, 1),
                next_update: date_time_ymd(year, 1, 2),
                crl_number: 1.into(),
                issuing_distribution_point: None,
                revoked_certs: revoked.into_iter().collect(),
                key_identifier_method: KeyIdMethod::Sha256,
            };
            params.signed_by(&self.ca).unwrap().der().to_vec()
        }

        fn write(&self, name: &str, bytes: &[u8]) {
            fs::write(self.path().join(name), bytes).unwrap();
        }

        fn is_taken(&self) -> bool {
            let now = UnixTime::now();
            let verified = self.clients.verify_client_cert(&self.client, &[], now);
            verified.is_ok()
        }
    }

    #[tokio::test]
    async fn a_list_that_comes_to_the_ca_directory_applies_until_a_better_one_comes() {
        let site = Site::new();
        let mut files = RevocationFiles::new(Vec::new(), &[site.path()]);
        files.apply(&site.clients).unwrap();
        assert!(site.is_taken());
        for (name, bytes, taken) in [
            ("cacrl.der", site.list(2020, true), false),
            // Neither of these says that the client is good.
            ("cacrl.der", b"half a fi".to_vec(), false),
            ("cacrl.pem", site.list(2019, false), false),
            ("cacrl.der", site.list(2020, true), false),
            ("cacrl.pem", site.list(2021, false), true),
        ] {
            site.write(name, &bytes);
            files.look(&site.clients).await;
            assert_eq!(site.is_taken(), taken, "{name}");
        }
    }

    #[tokio::test]
    async fn a_list_that_is_gone_stays_in_force() {
        let site = Site::new();
        site.write("cacrl.pem", &site.list(2020, true));
        let mut files = RevocationFiles::new(Vec::new(), &[site.path()]);
        files.apply(&site.clients).unwrap();
        fs::remove_file(site.path().join("cacrl.pem")).unwrap();
        files.look(&site.clients).await;
        site.write("cacrl.der", &site.list(2019, false));
        files.look(&site.clients).await;
        assert!(!site.is_taken());
    }

    #[test]
    fn a_list_that_is_configured_must_be_there() {
        let site = Site::new();
        let path = site.path().join("revoked.pem");
        let mut files = RevocationFiles::new(vec![path.clone()], &[site.path()]);
        let error = files.apply(&site.clients).unwrap_err();
        assert!(
            error.to_string().contains("revoked.pem: No such file"),
            "{error}"
        );
        fs::write(path, site.list(2020, true)).unwrap();
        files.apply(&site.clients).unwrap();
        assert!(!site.is_taken());
    }
}
