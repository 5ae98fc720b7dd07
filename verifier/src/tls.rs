use std::path::PathBuf;

use troth_daemon::{
    config::Secret,
    tls::{ClientAuth, Identity, RevocationFiles, ServerTls, load_certificates, server_config},
};

use crate::{
    ca::{CaDirectory, CaLock, InUse},
    config::{CertificateFiles, TlsOptions},
    server::StartError,
};

/// The TLS files of a server: those that are named, else those of the CA directory, which nobody
/// replaces as long as this lives.
#[derive(Debug)]
pub(crate) struct TlsFiles {
    server: Pair,
    /// `None`: it connects to nobody.
    client: Option<Pair>,
    authorities: Vec<PathBuf>,
    revocation: RevocationFiles,
    _lock: Option<CaLock>,
}

#[derive(Debug)]
struct Pair {
    certificate: PathBuf,
    key: PathBuf,
    password: Secret,
}

impl TlsFiles {
    /// Makes what is missing in the CA directory. That is left alone when all files are named.
    pub(crate) async fn open(options: TlsOptions) -> Result<Self, StartError> {
        let ca = CaDirectory::at(&options.ca_dir);
        let (server, client) = own(&ca, options.server, options.client)?;
        let mut authorities = options.trusted_client_ca;
        if authorities.is_empty() {
            authorities.push(ca.ca_certificate());
        }
        let revocation = RevocationFiles::new(options.client_crl, &[&options.ca_dir]);
        let mut files = Self {
            server,
            client,
            authorities,
            revocation,
            _lock: None,
        };
        if files.paths().any(|path| path.starts_with(&options.ca_dir)) {
            let (path, names, subject) = (options.ca_dir, options.names, options.subject);
            // Waits for a lock, and makes keys: not on an I/O task.
            let made = move || CaDirectory::ensure_locked(&path, &names, &subject);
            let made = tokio::task::spawn_blocking(made).await;
            let (_, lock) = made.map_err(|error| StartError::Task(error.to_string()))??;
            files._lock = Some(lock);
        }
        Ok(files)
    }

    /// Clients may present a certificate of our CAs; routes decide who must.
    pub(crate) fn server(&mut self) -> Result<ServerTls, StartError> {
        let mut roots = Vec::new();
        for path in &self.authorities {
            roots.extend(load_certificates(path)?);
        }
        let identity = self.server.load()?;
        let tls = server_config(&identity, ClientAuth::Optional(roots))?;
        if let Some(clients) = tls.clients() {
            self.revocation.apply(clients)?;
        }
        Ok(tls)
    }

    /// The lists of revoked certificates, to be followed by a server that loaded them; others may
    /// replace the files from now on.
    pub(crate) fn revocation(self) -> RevocationFiles {
        self.revocation
    }

    /// The certificate towards agents.
    pub(crate) fn client(&self) -> Result<Identity, StartError> {
        self.client.as_ref().unwrap_or(&self.server).load()
    }

    /// The certificates as they are now, to be watched by a server that loads them.
    pub(crate) fn in_use(&self) -> Result<Vec<InUse>, StartError> {
        let authorities = self.authorities.iter().map(|path| InUse::read(path, true));
        let own = self.pairs();
        let own = own.map(|pair| InUse::read(&pair.certificate, false));
        Ok(authorities.chain(own).collect::<Result<_, _>>()?)
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        let own = self.pairs();
        let own = own.flat_map(|pair| [&pair.certificate, &pair.key]);
        own.chain(&self.authorities)
    }

    fn pairs(&self) -> impl Iterator<Item = &Pair> {
        std::iter::once(&self.server).chain(&self.client)
    }
}

/// Whether the options name a certificate with its key, or neither. No file is looked at.
pub(crate) fn check(options: TlsOptions) -> Result<(), StartError> {
    let ca = CaDirectory::at(&options.ca_dir);
    own(&ca, options.server, options.client)?;
    Ok(())
}

fn own(
    ca: &CaDirectory,
    server: CertificateFiles,
    client: Option<CertificateFiles>,
) -> Result<(Pair, Option<Pair>), StartError> {
    let server = pair(server, ca.server(), ["server_cert", "server_key"])?;
    let client = client.map(|named| pair(named, ca.client(), ["client_cert", "client_key"]));
    Ok((server, client.transpose()?))
}

fn pair(
    named: CertificateFiles,
    default: (PathBuf, PathBuf),
    [certificate, key]: [&'static str; 2],
) -> Result<Pair, StartError> {
    let password = named.password;
    let (certificate, key) = match (named.certificate, named.key) {
        (Some(certificate), Some(key)) => (certificate, key),
        (None, None) => default,
        (Some(_), None) => {
            let (present, missing) = (certificate, key);
            return Err(StartError::Half { present, missing });
        }
        (None, Some(_)) => {
            let (present, missing) = (key, certificate);
            return Err(StartError::Half { present, missing });
        }
    };
    Ok(Pair {
        certificate,
        key,
        password,
    })
}

impl Pair {
    fn load(&self) -> Result<Identity, StartError> {
        Ok(Identity::load_encrypted(
            &self.certificate,
            &self.key,
            &self.password,
        )?)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rustix::fs::{FlockOperation, flock};

    use super::*;
    use crate::config::CaSubject;

    /// A key as OpenSSL encrypts it, with the password `correct`.
    const ENCRYPTED: &str = include_str!("../../daemon/tests/fixtures/encrypted-key.pem");
    const PLAIN: &str = include_str!("../../daemon/tests/fixtures/plain-key.pem");

    /// Files that somebody else made, in a directory that is not the CA's.
    fn options(directory: &std::path::Path) -> TlsOptions {
        let key = rcgen::KeyPair::from_pem(PLAIN).unwrap();
        let params = rcgen::CertificateParams::new(["verifier.example".to_owned()]).unwrap();
        let certificate = params.self_signed(&key).unwrap().pem();
        let (path, key) = (directory.join("cert.pem"), directory.join("key.pem"));
        fs::write(&path, certificate).unwrap();
        fs::write(&key, ENCRYPTED).unwrap();
        let pair = CertificateFiles {
            certificate: Some(path.clone()),
            key: Some(key),
            password: "correct".into(),
        };
        TlsOptions {
            ca_dir: directory.join("cv_ca"),
            server: pair.clone(),
            client: Some(pair),
            client_crl: Vec::new(),
            trusted_client_ca: vec![path],
            names: Vec::new(),
            subject: CaSubject::default(),
        }
    }

    #[tokio::test]
    async fn no_ca_is_made_when_all_files_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let options = options(directory.path());
        let ca_dir = options.ca_dir.clone();
        let mut files = TlsFiles::open(options.clone()).await.unwrap();
        files.server().unwrap();
        files.client().unwrap();
        assert_eq!(files.in_use().unwrap().len(), 3);
        assert!(!ca_dir.exists());

        let client = Some(CertificateFiles::default());
        let files = TlsFiles::open(TlsOptions { client, ..options })
            .await
            .unwrap();
        files.client().unwrap();
        assert!(ca_dir.join("client-cert.crt").exists());
    }

    #[tokio::test]
    async fn a_key_without_its_certificate_or_its_password_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let mut half = options(directory.path());
        half.server.certificate = None;
        let error = TlsFiles::open(half).await.unwrap_err().to_string();
        assert!(
            error.contains("server_key is set, but server_cert is not"),
            "{error}"
        );

        for (password, reason) in [("", "set its password"), ("wrong", "does not open")] {
            let mut closed = options(directory.path());
            closed.server.password = password.into();
            let error = TlsFiles::open(closed).await.unwrap().server().unwrap_err();
            let text = error.to_string();
            assert!(text.contains("key.pem") && text.contains(reason), "{text}");
            assert!(error.is_configuration());
        }
    }

    /// Else it might load the certificate that another server made, and the key of the one before.
    #[tokio::test]
    async fn no_other_server_replaces_a_certificate_while_it_is_loaded() {
        let directory = tempfile::tempdir().unwrap();
        let named = |name: &str| TlsOptions {
            server: CertificateFiles::default(),
            names: vec![name.to_owned()],
            ..options(directory.path())
        };
        let mut first = TlsFiles::open(named("registrar.example")).await.unwrap();
        let lock = fs::File::open(named("").ca_dir.join(".lock")).unwrap();
        let try_lock = || flock(&lock, FlockOperation::NonBlockingLockExclusive);
        assert!(try_lock().is_err());
        first.server().unwrap();
        let before = first.in_use().unwrap();
        assert!(try_lock().is_err());
        drop(first.revocation());
        try_lock().unwrap();
        flock(&lock, FlockOperation::Unlock).unwrap();
        let mut second = TlsFiles::open(named("verifier.example")).await.unwrap();
        second.server().unwrap();
        assert_eq!(second.in_use().unwrap().len(), before.len());
    }

    #[tokio::test]
    async fn a_name_that_no_certificate_can_be_for_is_a_matter_of_the_configuration() {
        let directory = tempfile::tempdir().unwrap();
        let options = TlsOptions {
            server: CertificateFiles::default(),
            names: vec!["*.example".to_owned()],
            ..options(directory.path())
        };
        let error = TlsFiles::open(options).await.unwrap_err();
        assert!(error.is_configuration());
        let text = error.to_string();
        let named = "cert_subject_alternative_names: \"*.example\"";
        assert!(text.contains(named), "{text}");
    }

    #[tokio::test]
    async fn a_list_of_revoked_clients_that_is_configured_must_be_there() {
        let directory = tempfile::tempdir().unwrap();
        let mut options = options(directory.path());
        options.client_crl = vec![directory.path().join("revoked.pem")];
        let error = TlsFiles::open(options).await.unwrap().server().unwrap_err();
        assert!(error.is_configuration());
        let text = error.to_string();
        assert!(
            text.contains("revoked.pem: No such file") && text.contains("client_crl"),
            "{text}"
        );
    }
}
