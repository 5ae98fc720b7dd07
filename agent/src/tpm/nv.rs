use troth_core::{
    identity::{certificate_matches_key, normalise_ek_certificate},
    tpm::Public,
};

use super::{KeyKind, Tpm, TpmError};

/// First and last NV index of EK certificate chains (EK Credential Profile 2.5, 2.2.1.6). The
/// platform certificate lives behind them, at 0x01C08000: it is not the EK's.
const CHAIN_INDICES: (u32, u32) = (0x01C0_0100, 0x01C0_01FF);

/// The EK certificate as NV has it, and the certificates of its issuers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct EkCertificates {
    /// DER of the EK certificate: original bytes, padding and wrapper removed.
    pub ek: Option<Vec<u8>>,
    /// DER of the chain, in the order of NV.
    pub chain: Vec<Vec<u8>>,
}

impl EkCertificates {
    /// PEM text for the registrar: the EK certificate, then the chain from the last in NV to the
    /// first. Empty when the TPM has no EK certificate, even if it has a chain.
    pub fn to_pem(&self) -> String {
        self.ek
            .iter()
            .chain(self.chain.iter().rev().filter(|_| self.ek.is_some()))
            .map(|der| crate::pem::encode("CERTIFICATE", der))
            .collect()
    }
}

/// Reads the EK certificate of `kind` and the chain. Absence is normal; what cannot be read, or is
/// of another key than `ek`, is logged and left out, because the registrar decides whether it is
/// needed.
pub fn ek_certificates(
    tpm: &mut dyn Tpm,
    kind: KeyKind,
    ek: &Public,
) -> Result<EkCertificates, TpmError> {
    let index = kind.certificate_index();
    let mut found = EkCertificates::default();
    if tpm.nv_indices(index, index)?.is_empty() {
        tracing::info!("the TPM has no EK certificate at NV index {index:#010x}");
        return Ok(found);
    }
    let Some(content) = read(tpm, index)? else {
        return Ok(found);
    };
    let certificate = match normalise_ek_certificate(&content) {
        Ok(Some(certificate)) => certificate,
        Ok(None) => return Ok(found),
        Err(error) => {
            tracing::warn!("EK certificate at NV index {index:#010x}: {error}");
            return Ok(found);
        }
    };
    match certificate_matches_key(&certificate, ek) {
        Ok(true) => {}
        Ok(false) => {
            tracing::warn!(
                "the certificate at NV index {index:#010x} is not of this TPM's EK; registering \
                 without an EK certificate"
            );
            return Ok(found);
        }
        // A registrar may read what this agent cannot.
        Err(error) => tracing::warn!("EK certificate at NV index {index:#010x}: {error}"),
    }
    found.ek = Some(certificate);
    let mut chain = Vec::new();
    for index in tpm.nv_indices(CHAIN_INDICES.0, CHAIN_INDICES.1)? {
        chain.extend(read(tpm, index)?.unwrap_or_default());
    }
    found.chain = split_der(&chain).into_iter().map(<[u8]>::to_vec).collect();
    Ok(found)
}

fn read(tpm: &mut dyn Tpm, index: u32) -> Result<Option<Vec<u8>>, TpmError> {
    match tpm.nv_read(index) {
        Ok(content) => Ok(Some(content)),
        Err(error) if error.needs_reopening() => Err(error),
        Err(error) => {
            tracing::warn!("NV index {index:#010x} cannot be read, going on without it: {error}");
            Ok(None)
        }
    }
}

/// Splits concatenated DER SEQUENCEs; stops at the first byte that starts none (padding).
fn split_der(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some(length) = sequence_length(bytes) {
        let (one, rest) = bytes.split_at(length);
        found.push(one);
        bytes = rest;
    }
    found
}

/// Length of the DER SEQUENCE at the start of `bytes`, header included, if it is all there.
fn sequence_length(bytes: &[u8]) -> Option<usize> {
    let (&tag, rest) = bytes.split_first()?;
    let (&first, rest) = rest.split_first()?;
    if tag != 0x30 {
        return None;
    }
    let (header, content) = match first {
        0..=0x7F => (2, usize::from(first)),
        0x81 => (3, usize::from(*rest.first()?)),
        0x82 => (
            4,
            usize::from(u16::from_be_bytes([*rest.first()?, *rest.get(1)?])),
        ),
        _ => return None,
    };
    let length = header + content;
    (length <= bytes.len()).then_some(length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_is_split_at_its_sequences_and_padding_ends_it() {
        let mut bytes = vec![0x30, 2, 5, 0];
        bytes.extend([0x30, 0x81, 1, 7]);
        bytes.extend([0xFF; 9]);
        assert_eq!(
            split_der(&bytes),
            [&[0x30, 2, 5, 0][..], &[0x30, 0x81, 1, 7][..]]
        );
        assert!(
            split_der(&[0x30, 0x82, 0xFF, 0xFF, 0]).is_empty(),
            "cut short"
        );
        assert!(split_der(&[]).is_empty());
    }

    #[test]
    fn without_an_ek_certificate_the_chain_is_not_sent() {
        let chain = vec![vec![0x30, 0]];
        assert_eq!(EkCertificates { ek: None, chain }.to_pem(), "");
    }

    #[test]
    fn the_ek_certificate_comes_first_and_the_chain_backwards() {
        let certificates = EkCertificates {
            ek: Some(vec![0x30, 0]),
            chain: vec![vec![0x30, 1, 1], vec![0x30, 1, 2]],
        };
        let pem = certificates.to_pem();
        let bodies: Vec<&str> = pem.lines().filter(|line| !line.starts_with('-')).collect();
        assert_eq!(bodies, ["MAA=", "MAEC", "MAEB"]);
    }
}
