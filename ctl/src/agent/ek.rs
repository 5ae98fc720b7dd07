use base64::{Engine, prelude::BASE64_STANDARD};
use serde::Serialize;
use serde_json::Value;
use troth_core::{
    identity::{self, CertifiedEk, ChainError, Expiry, IdentityError, Trust, TrustAnchors},
    tpm::Public,
    wire::RegistrarRecord,
};
use troth_daemon::cert_store;

use super::script::{self, Question};
use crate::{
    config::Config,
    error::Error,
    output::{Output, now_ms},
};

/// What is known about the EK, in the shape of `--json`.
#[derive(Debug, Serialize)]
pub(super) struct EkFindings {
    /// `certified`: a CA of the store vouches for the registered EK; `matches`: there is an EK
    /// certificate for it, whose issuer was not looked at; `absent`: there is none.
    ek_certificate: &'static str,
    /// Subjects from the EK certificate to the CA of the store; empty unless certified.
    ek_path: Vec<String>,
    /// The program that accepted the EK; null: none is configured.
    ek_check_script: Option<String>,
}

/// The EK of a registrar's record, checked as far as the certificate goes.
pub(super) struct Ek<'a> {
    id: &'a str,
    record: &'a RegistrarRecord,
    key: Public,
    /// DER; `None`: there is none.
    certificate: Option<Vec<u8>>,
    certified: Option<CertifiedEk>,
}

impl<'a> Ek<'a> {
    /// Checks key and certificate, and with `require_ek_cert` who issued it.
    pub(super) fn check(
        config: &Config,
        id: &'a str,
        record: &'a RegistrarRecord,
        key: Public,
    ) -> Result<Self, Error> {
        let refused = |what: &'static str| {
            move |source: IdentityError| Error::Identity {
                id: id.to_owned(),
                what,
                source,
            }
        };
        identity::check_ek(&key).map_err(refused("EK"))?;
        let text = record.ekcert.as_deref().unwrap_or_default().as_bytes();
        let unreadable = refused("EK certificate");
        let certificate = identity::normalise_ek_certificate(text).map_err(unreadable)?;
        let mut ek = Self {
            id,
            record,
            key,
            certificate,
            certified: None,
        };
        if let Some(der) = &ek.certificate {
            let matches = identity::certificate_matches_key(der, &ek.key);
            if !matches.map_err(refused("EK certificate"))? {
                return Err(Error::ForeignEkCertificate { id: id.to_owned() });
            }
        }
        if config.require_ek_cert {
            ek.certified = Some(ek.certify(config)?);
        }
        Ok(ek)
    }

    fn certify(&self, config: &Config) -> Result<CertifiedEk, Error> {
        let der = self
            .certificate
            .as_deref()
            .ok_or_else(|| Error::NoEkCertificate {
                id: self.id.to_owned(),
            })?;
        let store = config.tpm_cert_store();
        let mut anchors = TrustAnchors::default();
        cert_store::load(&store, |der| anchors.add(der))?;
        let trust = Trust {
            anchors: &anchors,
            at: now_ms() / 1000,
            // A TPM that is older than its certificate's makers thought is still that TPM.
            expired: Expiry::Accept,
        };
        // The CAs' certificates that the agent sent with its own, as our registrar keeps them.
        let chain: Vec<_> = self
            .record
            .ekcert_chain
            .iter()
            .filter_map(|text| identity::normalise_ek_certificate(text.as_bytes()).ok()?)
            .collect();
        identity::certify_ek(&self.key, der, &chain, &trust).map_err(|source: ChainError| {
            Error::EkNotCertified {
                id: self.id.to_owned(),
                store,
                source,
            }
        })
    }

    /// Asks the site's own program, if there is one.
    pub(super) async fn ask(
        &self,
        config: &Config,
        provider_keys: &Value,
        out: &Output,
    ) -> Result<Option<String>, Error> {
        let Some(program) = config.ek_check_script() else {
            return Ok(None);
        };
        let der = self.certificate.as_deref().unwrap_or_default();
        let question = Question {
            agent_uuid: self.id,
            ek: self.key.to_spki_pem(),
            ek_tpm: &self.record.ek_tpm,
            ek_cert: BASE64_STANDARD.encode(der),
            provkeys: provider_keys.to_string(),
            tpm_cert_store: config.tpm_cert_store(),
        };
        script::ask(config, &program, &question, out).await?;
        Ok(Some(program.display().to_string()))
    }

    /// What is worth knowing, and what to be wary of.
    pub(super) fn findings(&self, ek_check_script: Option<String>) -> (EkFindings, Vec<String>) {
        let mut warnings = Vec::new();
        let findings = match (&self.certified, &self.certificate) {
            (Some(certified), _) => {
                let quirks = certified.quirks().iter();
                warnings.extend(quirks.map(|quirk| format!("EK certificate: {}", quirk.meaning())));
                EkFindings {
                    ek_certificate: "certified",
                    ek_path: certified.path().to_vec(),
                    ek_check_script,
                }
            }
            (None, certificate) => EkFindings {
                ek_certificate: if certificate.is_some() {
                    "matches"
                } else {
                    "absent"
                },
                ek_path: Vec::new(),
                ek_check_script,
            },
        };
        if self.certified.is_none() && findings.ek_check_script.is_none() {
            warnings.push(
                "nobody vouches for the node's EK (require_ek_cert is false and there is no \
                 ek_check_script): it may be that of a software TPM"
                    .to_owned(),
            );
        }
        (findings, warnings)
    }
}

impl EkFindings {
    /// One line for people.
    pub(super) fn describe(&self) -> String {
        let certificate = match self.ek_certificate {
            "certified" => {
                let path = self
                    .ek_path
                    .iter()
                    .skip(1)
                    .map(|name| crate::output::clean(name));
                let path: Vec<_> = path.collect();
                format!("the EK is certified by {}", path.join(", by "))
            }
            "matches" => {
                "the EK certificate is for the registered EK (its issuer is not checked)".to_owned()
            }
            _ => "no EK certificate".to_owned(),
        };
        match &self.ek_check_script {
            Some(script) => format!("{certificate}\naccepted by {script}"),
            None => certificate,
        }
    }
}
