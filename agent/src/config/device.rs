use std::path::Path;

use super::{
    Config, InvalidConfig,
    checked::{auth_value, persistent},
};
use crate::{
    identity::device::{
        CertificateFile, DeviceOptions, IAK_CERTIFICATE, IDEVID_CERTIFICATE, KeyOptions,
    },
    tpm::KeyKind,
};

impl Config {
    /// The device identity to register with, if any.
    pub fn device_identity(&self) -> Result<Option<DeviceOptions>, InvalidConfig> {
        if !self.enable_iak_idevid {
            return Ok(None);
        }
        let certificate = |configured: Option<&Path>, name: &str| match configured {
            None => CertificateFile::Default(self.state_dir.join(name)),
            Some(none) if none.as_os_str().is_empty() => CertificateFile::None,
            Some(file) => CertificateFile::Named(self.state_dir.join(file)),
        };
        Ok(Some(DeviceOptions {
            kind: self.device_kind()?,
            idevid: KeyOptions {
                handle: persistent("idevid_handle", self.idevid_handle.as_deref())?,
                auth: auth_value("idevid_password", &self.idevid_password)?,
                certificate: certificate(self.idevid_cert.as_deref(), IDEVID_CERTIFICATE),
            },
            iak: KeyOptions {
                handle: persistent("iak_handle", self.iak_handle.as_deref())?,
                auth: auth_value("iak_password", &self.iak_password)?,
                certificate: certificate(self.iak_cert.as_deref(), IAK_CERTIFICATE),
            },
        }))
    }

    /// Kind of IDevID and IAK; `None`: as their certificates say.
    fn device_kind(&self) -> Result<Option<KeyKind>, InvalidConfig> {
        let unknown = |option, value: &str, expected| InvalidConfig::Value {
            option,
            value: value.to_owned(),
            expected,
        };
        let (rsa, hash) = (
            self.iak_idevid_asymmetric_alg.as_str(),
            self.iak_idevid_name_alg.as_str(),
        );
        Ok(Some(match self.iak_idevid_template.as_deref() {
            None | Some("" | "default" | "detect") => return Ok(None),
            Some("H-1") => KeyKind::Rsa2048,
            Some("H-2") => KeyKind::EccP256,
            Some("H-3") => KeyKind::EccP384,
            Some("H-4") => KeyKind::EccP521,
            Some("manual") => match (rsa, hash) {
                ("rsa", "sha256") => KeyKind::Rsa2048,
                ("rsa", "sha384") => KeyKind::Rsa3072,
                ("rsa", "sha512") => KeyKind::Rsa4096,
                ("ecc", "sha256") => KeyKind::EccP256,
                ("ecc", "sha384") => KeyKind::EccP384,
                ("ecc", "sha512") => KeyKind::EccP521,
                ("rsa" | "ecc", other) => {
                    let expected = "use sha256, sha384 or sha512";
                    return Err(unknown("iak_idevid_name_alg", other, expected));
                }
                (other, _) => {
                    return Err(unknown(
                        "iak_idevid_asymmetric_alg",
                        other,
                        "use rsa or ecc",
                    ));
                }
            },
            Some(other) => {
                let expected = "use H-1, H-2, H-3, H-4, detect or manual (SM2 keys, H-5, are not \
                                supported)";
                return Err(unknown("iak_idevid_template", other, expected));
            }
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(change: impl FnOnce(&mut Config)) -> Result<Option<DeviceOptions>, InvalidConfig> {
        let mut config = Config {
            enable_iak_idevid: true,
            ..Config::default()
        };
        change(&mut config);
        config.device_identity()
    }

    #[test]
    fn no_device_identity_unless_asked_for() {
        assert!(Config::default().device_identity().unwrap().is_none());
    }

    #[test]
    fn templates_have_the_names_of_the_tcg_and_of_keylime() {
        let kind = |template: Option<&str>, rsa: &str, hash: &str| {
            with(|c| {
                c.iak_idevid_template = template.map(Into::into);
                c.iak_idevid_asymmetric_alg = rsa.into();
                c.iak_idevid_name_alg = hash.into();
            })
            .map(|options| options.unwrap().kind)
        };
        for detect in [None, Some(""), Some("default"), Some("detect")] {
            assert_eq!(kind(detect, "ecc", "sha384").unwrap(), None);
        }
        for (template, wanted) in [
            ("H-1", KeyKind::Rsa2048),
            ("H-2", KeyKind::EccP256),
            ("H-3", KeyKind::EccP384),
            ("H-4", KeyKind::EccP521),
        ] {
            assert_eq!(kind(Some(template), "x", "x").unwrap(), Some(wanted));
        }
        let manual = |rsa, hash| kind(Some("manual"), rsa, hash);
        assert_eq!(manual("rsa", "sha384").unwrap(), Some(KeyKind::Rsa3072));
        assert_eq!(manual("ecc", "sha512").unwrap(), Some(KeyKind::EccP521));
        for (option, error) in [
            ("iak_idevid_template", kind(Some("H-5"), "ecc", "sha256")),
            ("iak_idevid_asymmetric_alg", manual("dsa", "sha256")),
            ("iak_idevid_name_alg", manual("rsa", "sm3_256")),
        ] {
            let error = error.unwrap_err().to_string();
            assert!(error.starts_with(option), "{error}");
        }
    }

    #[test]
    fn certificates_are_looked_for_named_or_absent() {
        let file = |path: Option<&str>| {
            let options = with(|c| c.iak_cert = path.map(Into::into));
            options.unwrap().unwrap().iak.certificate
        };
        let path = "/var/lib/troth/iak-cert.crt";
        assert_eq!(file(None), CertificateFile::Default(path.into()));
        assert_eq!(file(Some("")), CertificateFile::None);
        let named = CertificateFile::Named("/etc/iak.der".into());
        assert_eq!(file(Some("/etc/iak.der")), named);
    }

    #[test]
    fn handles_and_passwords_are_checked_under_their_own_names() {
        let error = with(|c| c.iak_handle = Some("0x80000000".into())).unwrap_err();
        assert!(error.to_string().starts_with("iak_handle"), "{error}");
        let error = with(|c| c.idevid_password = "hex:s3cret".into()).unwrap_err();
        let shown = format!("{error} {error:?}");
        assert!(shown.starts_with("idevid_password"), "{shown}");
        assert!(!shown.contains("s3cret"), "{shown}");
        let options = with(|c| {
            c.iak_handle = Some("0x81010002".into());
            c.iak_password = "s3cret".into();
        });
        let options = options.unwrap().unwrap();
        assert_eq!(options.iak.handle, Some(0x8101_0002));
        assert_eq!(options.iak.auth.as_slice(), b"s3cret");
        assert!(!format!("{options:?}").contains("s3cret"));
    }
}
