use std::collections::BTreeSet;
use std::fmt;

use x509_cert::der::{Decode, Encode};

use super::IdentityError;
use super::x509::Certificate;

/// Where certificates of TPMs in the field deviate from RFC 5280 and the TCG's profiles, and are
/// accepted nevertheless. Prints its id; [`Quirk::meaning`] says more.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
#[non_exhaustive]
pub enum Quirk {
    /// Strict DER is written otherwise: SETs in order, defaults left out, times before 2050 as
    /// UTCTime.
    NotStrictDer,
    /// The key is marked as id-RSAES-OAEP.
    OaepKey,
    /// The serial number is zero, negative, or over 20 octets.
    OddSerial,
    /// A CA without basicConstraints: an anchor, or one whose keyUsage has keyCertSign.
    NoBasicConstraints,
    /// A CA has expired since it issued.
    IssuerExpired,
    /// The key's certificate has expired, and [`super::Expiry::Accept`] was chosen.
    Expired,
}

impl Quirk {
    /// A short name that does not change.
    pub fn id(self) -> &'static str {
        match self {
            Self::NotStrictDer => "not-strict-der",
            Self::OaepKey => "oaep-key",
            Self::OddSerial => "odd-serial",
            Self::NoBasicConstraints => "no-basic-constraints",
            Self::IssuerExpired => "issuer-expired",
            Self::Expired => "expired",
        }
    }

    /// What it is, and why it is tolerated.
    pub fn meaning(self) -> &'static str {
        match self {
            Self::NotStrictDer => {
                "the certificate is not strict DER; its signature is over the bytes as they are"
            }
            Self::OaepKey => {
                "the key is marked as id-RSAES-OAEP (TCG Credential Profiles 1.2); it is the \
                 same RSA key"
            }
            Self::OddSerial => {
                "the serial number is not a positive number of 20 octets at most; nothing depends \
                 on it"
            }
            Self::NoBasicConstraints => {
                "a CA certificate has no basicConstraints; the store or its keyUsage says that it \
                 is a CA"
            }
            Self::IssuerExpired => {
                "a CA certificate has expired since it issued; it was valid then"
            }
            Self::Expired => "the certificate has expired; a TPM cannot renew it",
        }
    }
}

impl fmt::Display for Quirk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.id())
    }
}

/// How a certificate (DER) deviates by itself: see [`Quirk::NotStrictDer`], [`Quirk::OaepKey`],
/// [`Quirk::OddSerial`].
pub fn certificate_quirks(der: &[u8]) -> Result<BTreeSet<Quirk>, IdentityError> {
    Ok(own_quirks(&Certificate::parse(der)?))
}

pub(super) fn own_quirks(certificate: &Certificate<'_>) -> BTreeSet<Quirk> {
    let positive = matches!(certificate.serial, [first @ 0..0x80, rest @ ..] if *first != 0 || !rest.is_empty());
    // The reader sorts what is out of order, so that only writing shows it.
    let strict = x509_cert::Certificate::from_der(certificate.der)
        .and_then(|parsed| parsed.to_der())
        .is_ok_and(|written| written == certificate.der);
    [
        (Quirk::NotStrictDer, !strict),
        (Quirk::OaepKey, certificate.has_oaep_key()),
        (Quirk::OddSerial, !positive || certificate.serial.len() > 20),
    ]
    .into_iter()
    .filter_map(|(quirk, met)| met.then_some(quirk))
    .collect()
}
