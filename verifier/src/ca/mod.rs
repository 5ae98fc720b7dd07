//! The installation's certificate authority.
//!
//! Verifier and registrar share one directory with Keylime's file names; whichever starts first
//! makes what is missing, under a lock. Certificates satisfy strict RFC 5280 checks (critical
//! BasicConstraints and KeyUsage, subject and authority key identifiers), which Python's
//! `X509_STRICT` peers demand.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write},
    net::IpAddr,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SerialNumber,
};
use rustix::fs::{FlockOperation, flock};
use rustls::pki_types::DnsName;
use troth_daemon::tls::alternative_names;
use x509_cert::{
    Certificate,
    der::{DecodePem, Encode},
};
use zeroize::Zeroizing;

use crate::config::CaSubject;

const DAY: Duration = Duration::from_secs(86_400);
/// Lifetime of issued certificates.
const LEAF_LIFETIME: Duration = DAY.saturating_mul(730);
/// A certificate that ends sooner than this is replaced at the next start.
const RENEW_BEFORE: Duration = DAY.saturating_mul(365);
/// A running server whose certificate ends sooner than this says so.
const WARN_BEFORE: Duration = DAY.saturating_mul(90);
/// Names that one server may be configured with.
const MOST_CONFIGURED: usize = 50;
/// Names of a certificate beyond which those of the one before are left out. All those of two
/// servers fit, so that they never replace it in turns.
const MOST_NAMES: usize = 128;
/// Certificates begin this long before now, for peers whose clock is behind.
const BACKDATE: Duration = Duration::from_secs(3600);

/// Nobody else makes or replaces anything in a CA directory until this is dropped.
#[derive(Debug)]
pub(crate) struct CaLock {
    /// `None`: nobody can.
    _file: Option<File>,
}

/// A CA directory whose files all exist.
#[derive(Clone, Debug)]
pub struct CaDirectory {
    path: PathBuf,
}

impl CaDirectory {
    /// Opens the directory and makes what is missing: the CA, the server's and the client's
    /// certificate. Certificates that end within a year are replaced, with a new key, and so is a
    /// server's that is not for all of `names`.
    ///
    /// Blocks while another process does the same. `names` are added to the server certificate
    /// beside `localhost`, the loopback addresses and the machine's host name. One that is neither
    /// a DNS name nor an address, and more than 50, are errors.
    ///
    /// Where the CA's private key is not, nothing is made, and nothing has to be writable: that is a
    /// copy of what a CA elsewhere has issued. What should be replaced is told of.
    pub fn ensure(path: &Path, names: &[String]) -> Result<Self, CaError> {
        let (directory, _) = Self::ensure_locked(path, names, &CaSubject::default())?;
        Ok(directory)
    }

    /// [`CaDirectory::ensure`] with another subject for what is made. Who then loads a certificate
    /// and its key holds the lock meanwhile: another server may replace both.
    pub(crate) fn ensure_locked(
        path: &Path,
        names: &[String],
        subject: &CaSubject,
    ) -> Result<(Self, CaLock), CaError> {
        let names = ServerNames::new(names)?;
        make_directory(path)?;
        let directory = Self {
            path: path.to_owned(),
        };
        if directory.ca_certificate().exists() && !directory.ca_key().exists() {
            read_certificate(&directory.ca_certificate())?;
            directory.warn_of("server", &names)?;
            directory.warn_of("client", &ServerNames::default())?;
            return Ok((directory, CaLock { _file: None }));
        }
        let lock_path = path.join(".lock");
        let lock = private_file(OpenOptions::new().create(true).truncate(false), &lock_path)
            .map_err(|source| CaError::Io {
                path: lock_path.clone(),
                source,
            })?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|errno| CaError::Io {
            path: lock_path,
            source: errno.into(),
        })?;
        directory.ensure_ca(subject)?;
        directory.ensure_leaf("server", subject, &names)?;
        directory.ensure_leaf("client", subject, &ServerNames::default())?;
        let lock = CaLock { _file: Some(lock) };
        Ok((directory, lock))
    }

    /// The directory as it is, for the names of its files.
    pub(crate) fn at(path: &Path) -> Self {
        Self {
            path: path.to_owned(),
        }
    }

    /// `cacert.crt`.
    pub fn ca_certificate(&self) -> PathBuf {
        self.path.join("cacert.crt")
    }

    /// `server-cert.crt` and `server-private.pem`.
    pub fn server(&self) -> (PathBuf, PathBuf) {
        self.leaf("server")
    }

    /// `client-cert.crt` and `client-private.pem`: the verifier towards agents, and operators.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        self.leaf("client")
    }

    fn leaf(&self, name: &str) -> (PathBuf, PathBuf) {
        (
            self.path.join(format!("{name}-cert.crt")),
            self.path.join(format!("{name}-private.pem")),
        )
    }

    fn ca_key(&self) -> PathBuf {
        self.path.join("ca-private.pem")
    }

    fn ensure_ca(&self, subject: &CaSubject) -> Result<(), CaError> {
        let certificate = self.ca_certificate();
        if certificate.exists() {
            return read_certificate(&certificate).map(drop);
        }
        let key = generate_key()?;
        let lifetime = DAY.saturating_mul(subject.cert_ca_lifetime.into());
        let mut params = parameters(&subject.cert_ca_name, subject, lifetime)?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let signed = params.self_signed(&key).map_err(CaError::Issue)?;
        // The key first: a key without a certificate is simply made again.
        write_atomically(
            &self.ca_key(),
            Zeroizing::new(key.serialize_pem()).as_bytes(),
        )?;
        write_atomically(&certificate, signed.pem().as_bytes())?;
        tracing::info!(path = %certificate.display(), "made a certificate authority");
        Ok(())
    }

    fn ensure_leaf(
        &self,
        name: &str,
        subject: &CaSubject,
        names: &ServerNames,
    ) -> Result<(), CaError> {
        let (certificate_path, key_path) = self.leaf(name);
        let mut names = names.clone();
        match self.leaf_condition(&certificate_path, &key_path, &names)? {
            Leaf::Good => return Ok(()),
            Leaf::Missing => {}
            Leaf::Renew(reason, before) => {
                tracing::info!(path = %certificate_path.display(), "replacing: {reason}");
                names.keep(before);
            }
        }
        let ca_key_path = self.ca_key();
        let ca_key =
            KeyPair::from_pem(&read_secret(&ca_key_path)?).map_err(|source| CaError::Key {
                path: ca_key_path,
                source,
            })?;
        let ca_pem = read(&self.ca_certificate())?;
        let issuer = Issuer::from_ca_cert_pem(&ca_pem, ca_key).map_err(|source| CaError::Key {
            path: self.ca_certificate(),
            source,
        })?;
        let key = generate_key()?;
        let mut params = parameters(name, subject, LEAF_LIFETIME)?;
        params.subject_alt_names = CertificateParams::new(names.all)
            .map_err(CaError::Issue)?
            .subject_alt_names;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![if name == "server" {
            ExtendedKeyUsagePurpose::ServerAuth
        } else {
            ExtendedKeyUsagePurpose::ClientAuth
        }];
        let signed = params.signed_by(&key, &issuer).map_err(CaError::Issue)?;
        write_atomically(&key_path, Zeroizing::new(key.serialize_pem()).as_bytes())?;
        write_atomically(&certificate_path, signed.pem().as_bytes())
    }

    /// What is issued elsewhere is replaced there.
    fn warn_of(&self, name: &str, names: &ServerNames) -> Result<(), CaError> {
        let (certificate, key) = self.leaf(name);
        if let Leaf::Renew(reason, _) = self.leaf_condition(&certificate, &key, names)? {
            tracing::warn!(
                path = %certificate.display(),
                "certificate should be replaced ({reason}), but ca-private.pem is not here"
            );
        }
        Ok(())
    }

    fn leaf_condition(
        &self,
        certificate: &Path,
        key: &Path,
        names: &ServerNames,
    ) -> Result<Leaf, CaError> {
        if !certificate.exists() || !key.exists() {
            return Ok(Leaf::Missing);
        }
        let parsed = read_certificate(certificate)?;
        let key_pair = KeyPair::from_pem(&read_secret(key)?).map_err(|source| CaError::Key {
            path: key.to_owned(),
            source,
        })?;
        let before = alternative_names(&parsed).unwrap_or_default();
        let renew = |reason: &str| Ok(Leaf::Renew(reason.to_owned(), before.clone()));
        let spki = parsed.tbs_certificate().subject_public_key_info().to_der();
        if !spki.is_ok_and(|spki| spki == key_pair.subject_public_key_info()) {
            // A crash between the two files of a renewal.
            return renew("the private key is not the certificate's");
        }
        let end = parsed
            .tbs_certificate()
            .validity()
            .not_after
            .to_unix_duration();
        if end < since_epoch().saturating_add(RENEW_BEFORE) {
            return renew("it ends within a year");
        }
        // What another CA issued is its business.
        let authority = read_certificate(&self.ca_certificate())?;
        let ours = parsed.tbs_certificate().issuer() == authority.tbs_certificate().subject();
        match names.missing_in(&before) {
            Some(missing) if ours => renew(&format!("it is not for {missing}")),
            _ => Ok(Leaf::Good),
        }
    }
}

/// A certificate that a running server has loaded; its file may have been renewed since.
#[derive(Clone, Debug)]
pub struct InUse {
    path: PathBuf,
    is_ca: bool,
    /// Since the Unix epoch.
    end: Duration,
}

impl InUse {
    /// The first certificate of a PEM file.
    pub(crate) fn read(path: &Path, is_ca: bool) -> Result<Self, CaError> {
        let certificate = read_certificate(path)?;
        let validity = certificate.tbs_certificate().validity();
        Ok(Self {
            path: path.to_owned(),
            is_ca,
            end: validity.not_after.to_unix_duration(),
        })
    }

    /// What an operator has to do in the next 90 days, if anything.
    pub fn warning(&self) -> Option<String> {
        self.warning_at(since_epoch())
    }

    fn warning_at(&self, now: Duration) -> Option<String> {
        let left = self.end.saturating_sub(now);
        if left >= WARN_BEFORE {
            return None;
        }
        let days = left.as_secs() / DAY.as_secs();
        let action = if self.is_ca {
            "make a new authority: move its directory away, restart registrar and verifier, and \
             bring the new cacert.crt to all agents and operators"
        } else {
            "restart this server, which renews it"
        };
        let path = self.path.display();
        Some(format!("{path} ends in {days} days: {action}"))
    }
}

/// What is to be done about an issued certificate.
enum Leaf {
    Good,
    Missing,
    /// Why, and the names that it is for.
    Renew(String, Vec<String>),
}

/// What a server certificate is for.
#[derive(Clone, Debug, Default)]
struct ServerNames {
    all: Vec<String>,
    /// How many of them make a certificate that lacks one useless, the first.
    needed: usize,
}

impl ServerNames {
    fn new(configured: &[String]) -> Result<Self, CaError> {
        if configured.len() > MOST_CONFIGURED {
            return Err(CaError::Names(configured.len()));
        }
        let mut all: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(String::from).into();
        let mut anywhere = false;
        for name in configured {
            match name.parse::<IpAddr>() {
                Ok(ip) if ip.is_unspecified() => anywhere = true,
                Ok(ip) => add(&mut all, ip.to_string()),
                Err(_) if is_name(name) => add(&mut all, name.clone()),
                Err(_) => return Err(CaError::Name(name.clone())),
            }
        }
        let mut needed = all.len();
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        if is_name(&host) {
            add(&mut all, host);
        }
        // Who listens on all addresses is asked by name; others may be renamed.
        if anywhere {
            needed = all.len();
        }
        Ok(Self { all, needed })
    }

    fn missing_in(&self, names: &[String]) -> Option<&str> {
        let needed = self.all.iter().take(self.needed);
        needed
            .into_iter()
            .find(|needed| !names.iter().any(|name| name.eq_ignore_ascii_case(needed)))
            .map(String::as_str)
    }

    /// Another server of the same directory may need what the certificate before was for.
    fn keep(&mut self, before: Vec<String>) {
        for name in before {
            if self.all.len() < MOST_NAMES && (is_name(&name) || name.parse::<IpAddr>().is_ok()) {
                add(&mut self.all, name);
            }
        }
    }
}

fn add(names: &mut Vec<String>, name: String) {
    if !names.iter().any(|known| known.eq_ignore_ascii_case(&name)) {
        names.push(name);
    }
}

/// A name that a client can ask for.
fn is_name(text: &str) -> bool {
    DnsName::try_from(text).is_ok()
}

fn parameters(
    common_name: &str,
    subject: &CaSubject,
    lifetime: Duration,
) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let mut name = DistinguishedName::new();
    for (kind, value) in [
        (DnType::CountryName, &subject.cert_country),
        (DnType::StateOrProvinceName, &subject.cert_state),
        (DnType::LocalityName, &subject.cert_locality),
        (DnType::OrganizationName, &subject.cert_organization),
        (DnType::OrganizationalUnitName, &subject.cert_org_unit),
    ] {
        if !value.is_empty() {
            name.push(kind, value);
        }
    }
    name.push(DnType::CommonName, common_name);
    params.distinguished_name = name;
    let now = rcgen::date_time_ymd(1970, 1, 1) + since_epoch();
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    params.use_authority_key_identifier_extension = true;
    let mut serial = [0u8; 16];
    aws_lc_rs::rand::fill(&mut serial).map_err(|_| CaError::Random)?;
    // Positive and without a leading zero byte, as DER wants it.
    serial[0] = serial[0] & 0x7f | 0x40;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    Ok(params)
}

fn generate_key() -> Result<KeyPair, CaError> {
    KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(CaError::Issue)
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

fn read_certificate(path: &Path) -> Result<Certificate, CaError> {
    let text = read(path)?;
    Certificate::from_pem(text.as_bytes()).map_err(|error| CaError::Certificate {
        path: path.to_owned(),
        reason: error.to_string(),
    })
}

fn read(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|source| CaError::Io {
        path: path.to_owned(),
        source,
    })
}

fn read_secret(path: &Path) -> Result<Zeroizing<String>, CaError> {
    read(path).map(Zeroizing::new)
}

/// Makes `path` with its parents, readable by this user alone. Existing ones are left as they are.
pub(crate) fn make_directory(path: &Path) -> Result<(), CaError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| CaError::Io {
            path: path.to_owned(),
            source,
        })
}

fn private_file(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    options.write(true).mode(0o600).open(path)
}

/// Writes a file that is either whole or not there, after a crash too.
fn write_atomically(path: &Path, content: &[u8]) -> Result<(), CaError> {
    let failed = |source| CaError::Io {
        path: path.to_owned(),
        source,
    };
    let temporary = path.with_extension("new");
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file = private_file(OpenOptions::new().create_new(true), &temporary).map_err(failed)?;
    file.write_all(content)
        .and_then(|()| file.sync_all())
        .map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    if let Some(parent) = path.parent() {
        File::open(parent)
            .and_then(|directory| directory.sync_all())
            .map_err(failed)?;
    }
    Ok(())
}

/// A CA directory that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CaError {
    /// A file that should be a PEM certificate is not.
    #[error("{}: not a PEM certificate: {reason}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What the parser said.
        reason: String,
    },
    /// A file or directory cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A certificate could not be made.
    #[error("cannot issue a certificate: {0}")]
    Issue(rcgen::Error),
    /// A private key or CA certificate cannot be used to issue.
    #[error("{}: {source}", path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: rcgen::Error,
    },
    /// A configured name that no certificate can be for.
    #[error(
        "cert_subject_alternative_names: {0:?} is neither a DNS name nor an IP address; wildcards \
         are not supported"
    )]
    Name(String),
    /// More names than a certificate made here is for.
    #[error("cert_subject_alternative_names: {0} names with ip, but at most 50 are taken")]
    Names(usize),
    /// The system gave no random numbers.
    #[error("no random numbers from the system")]
    Random,
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, thread};

    use x509_cert::ext::pkix::{
        AuthorityKeyIdentifier, BasicConstraints, KeyUsage, SubjectKeyIdentifier,
    };

    use super::*;

    fn files(directory: &Path) -> Vec<(String, Vec<u8>)> {
        let mut files: Vec<_> = fs::read_dir(directory)
            .unwrap()
            .map(|entry| {
                let entry = entry.unwrap();
                let name = entry.file_name().into_string().unwrap();
                (name, fs::read(entry.path()).unwrap())
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn concurrent_starts_make_one_ca_and_later_starts_keep_it() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("state/cv_ca");
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let path = path.clone();
                thread::spawn(move || CaDirectory::ensure(&path, &[]).map(drop))
            })
            .collect();
        for thread in threads {
            thread.join().unwrap().unwrap();
        }
        let before = files(&path);
        CaDirectory::ensure(&path, &[]).unwrap();
        assert_eq!(before, files(&path));
        let names: Vec<_> = before.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            [
                ".lock",
                "ca-private.pem",
                "cacert.crt",
                "client-cert.crt",
                "client-private.pem",
                "server-cert.crt",
                "server-private.pem"
            ]
        );
        for (name, _) in &before {
            let mode = fs::metadata(path.join(name)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{name}");
        }
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
    }

    #[test]
    fn certificates_satisfy_strict_checks() {
        let root = tempfile::tempdir().unwrap();
        let directory = CaDirectory::ensure(root.path(), &["10.1.2.3".into()]).unwrap();
        let ca = read_certificate(&directory.ca_certificate()).unwrap();
        let ca = ca.tbs_certificate();
        let (critical, constraints) = ca.get_extension::<BasicConstraints>().unwrap().unwrap();
        assert!(critical && constraints.ca);
        let (critical, usage) = ca.get_extension::<KeyUsage>().unwrap().unwrap();
        assert!(critical && usage.key_cert_sign() && usage.crl_sign());
        let (_, ca_ski) = ca.get_extension::<SubjectKeyIdentifier>().unwrap().unwrap();
        for (certificate, _) in [directory.server(), directory.client()] {
            let leaf = read_certificate(&certificate).unwrap();
            let leaf = leaf.tbs_certificate();
            let (critical, constraints) =
                leaf.get_extension::<BasicConstraints>().unwrap().unwrap();
            assert!(critical && !constraints.ca);
            let (critical, usage) = leaf.get_extension::<KeyUsage>().unwrap().unwrap();
            assert!(critical && usage.digital_signature() && !usage.key_cert_sign());
            let (_, aki) = leaf
                .get_extension::<AuthorityKeyIdentifier>()
                .unwrap()
                .unwrap();
            assert_eq!(aki.key_identifier.unwrap(), ca_ski.0);
            assert!(
                leaf.get_extension::<SubjectKeyIdentifier>()
                    .unwrap()
                    .is_some()
            );
        }
    }

    #[test]
    fn half_written_pair_is_made_again() {
        let root = tempfile::tempdir().unwrap();
        let directory = CaDirectory::ensure(root.path(), &[]).unwrap();
        let (certificate, key) = directory.server();
        let other = generate_key().unwrap();
        fs::write(&key, other.serialize_pem()).unwrap();
        let before = fs::read(&certificate).unwrap();
        CaDirectory::ensure(root.path(), &[]).unwrap();
        assert_ne!(before, fs::read(&certificate).unwrap());
        assert!(matches!(
            directory.leaf_condition(&certificate, &key, &ServerNames::default()),
            Ok(Leaf::Good)
        ));
    }

    /// Verifier and registrar share the certificate: each has its own address.
    #[test]
    fn a_server_certificate_is_for_all_names_of_all_its_servers() {
        let root = tempfile::tempdir().unwrap();
        let names = |configured: &[&str]| {
            let configured: Vec<_> = configured.iter().map(ToString::to_string).collect();
            let directory = CaDirectory::ensure(root.path(), &configured).unwrap();
            let certificate = read_certificate(&directory.server().0).unwrap();
            alternative_names(&certificate).unwrap()
        };
        let host = rustix::system::uname()
            .nodename()
            .to_string_lossy()
            .into_owned();
        let always = ["localhost", "127.0.0.1", "::1"];
        let first = names(&["192.0.2.1", "verifier.example"]);
        for name in always
            .iter()
            .chain(&["192.0.2.1", "verifier.example", &host])
        {
            assert!(first.iter().any(|known| known == name), "{name}: {first:?}");
        }
        let both = names(&["2001:DB8:0::1"]);
        for name in first.iter().map(String::as_str).chain(["2001:db8::1"]) {
            assert!(both.iter().any(|known| known == name), "{name}: {both:?}");
        }
        let before = files(root.path());
        for unchanged in [&["192.0.2.1"][..], &["0.0.0.0", "VERIFIER.example"], &[]] {
            names(unchanged);
            assert_eq!(files(root.path()), before, "{unchanged:?}");
        }
        let many: Vec<_> = (0..200)
            .map(|number| format!("h{number}.example"))
            .collect();
        for some in many.chunks(40) {
            let some: Vec<_> = some.iter().map(String::as_str).collect();
            assert!(names(&some).iter().any(|name| name == some[0]));
        }
        assert!(names(&[]).len() <= MOST_NAMES);
    }

    #[test]
    fn two_servers_with_many_names_each_do_not_replace_their_certificate_in_turns() {
        let root = tempfile::tempdir().unwrap();
        let names = |server: &str| -> Vec<_> {
            (0..MOST_CONFIGURED)
                .map(|number| format!("{server}{number}.example"))
                .collect()
        };
        for server in ["registrar", "verifier"] {
            CaDirectory::ensure(root.path(), &names(server)).unwrap();
        }
        let before = files(root.path());
        for server in ["registrar", "verifier"] {
            CaDirectory::ensure(root.path(), &names(server)).unwrap();
            assert!(files(root.path()) == before, "{server}");
        }
        let error = CaDirectory::ensure(root.path(), &vec!["a.example".to_owned(); 51]);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("cert_subject_alternative_names: 51 names"),
            "{error}"
        );
    }

    #[test]
    fn a_name_that_no_client_can_ask_for_is_an_error_before_anything_is_made() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("cv_ca");
        for name in ["*.example", "not a name", "", "192.0.2.300", "a..example"] {
            let error = CaDirectory::ensure(&path, &[name.to_owned()]).unwrap_err();
            let named = format!("cert_subject_alternative_names: {name:?} is neither");
            assert!(error.to_string().contains(&named), "{error}");
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_server_certificate_of_another_ca_stays_whatever_it_is_for() {
        let root = tempfile::tempdir().unwrap();
        let directory = CaDirectory::ensure(root.path(), &[]).unwrap();
        let (certificate, key) = directory.server();
        let own = generate_key().unwrap();
        let mut params = parameters("x", &CaSubject::default(), LEAF_LIFETIME).unwrap();
        params.subject_alt_names = CertificateParams::new(["corp.example".to_owned()])
            .unwrap()
            .subject_alt_names;
        fs::write(&certificate, params.self_signed(&own).unwrap().pem()).unwrap();
        fs::write(&key, own.serialize_pem()).unwrap();
        let before = files(root.path());
        CaDirectory::ensure(root.path(), &["192.0.2.1".into()]).unwrap();
        assert_eq!(files(root.path()), before);
    }

    #[test]
    fn running_servers_warn_of_the_end_of_what_they_loaded() {
        let root = tempfile::tempdir().unwrap();
        let directory = CaDirectory::ensure(root.path(), &[]).unwrap();
        let warnings = |days: u32| {
            let now = since_epoch() + DAY * days;
            let leaves = [directory.server().0, directory.client().0];
            let leaves = leaves.iter().map(|path| InUse::read(path, false));
            let in_use = std::iter::once(InUse::read(&directory.ca_certificate(), true));
            let texts = in_use
                .chain(leaves)
                .filter_map(|used| used.unwrap().warning_at(now));
            texts.collect::<Vec<_>>()
        };
        assert_eq!(warnings(600), [""; 0]);
        let [server, client] = warnings(700).try_into().unwrap();
        assert!(
            server.contains("server-cert.crt ends in 29 days: restart"),
            "{server}"
        );
        assert!(client.contains("client-cert.crt ends in"), "{client}");
        let [ca, server, _] = warnings(3649).try_into().unwrap();
        assert!(ca.contains("cacert.crt ends in 0 days: make a new"), "{ca}");
        assert!(server.contains("ends in 0 days"), "{server}");
    }

    /// What a unit hands over: certificates and keys as credentials, in a directory that is nobody's
    /// to write to, and to the registrar no client's.
    #[test]
    fn a_copy_without_the_cas_key_is_used_as_it_is() {
        let root = tempfile::tempdir().unwrap();
        let made = CaDirectory::ensure(&root.path().join("made"), &[]).unwrap();
        let path = root.path().join("copy");
        fs::create_dir(&path).unwrap();
        let (server, key) = made.server();
        for file in [&made.ca_certificate(), &server, &key] {
            fs::copy(file, path.join(file.file_name().unwrap())).unwrap();
        }
        let before = files(&path);
        let copy = CaDirectory::ensure(&path, &["192.0.2.1".into()]).unwrap();
        assert_eq!(
            files(&path),
            before,
            "neither a lock nor a certificate is made"
        );
        fs::write(copy.ca_certificate(), "not a certificate").unwrap();
        let error = CaDirectory::ensure(&path, &[]).unwrap_err().to_string();
        assert!(error.contains("cacert.crt"), "{error}");
    }

    #[test]
    fn damaged_ca_certificate_is_an_error_that_names_the_file() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cacert.crt"), "not a certificate").unwrap();
        let error = CaDirectory::ensure(root.path(), &[]).unwrap_err();
        assert!(error.to_string().contains("cacert.crt"), "{error}");
    }
}
