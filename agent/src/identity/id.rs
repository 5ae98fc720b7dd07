use std::{fs, io, path::PathBuf};

use aws_lc_rs::hmac;
use rand::Rng;
use troth_core::{
    identity::{AgentId, IdentityError},
    tpm::Public,
};

use crate::host_files::{HostFile, read_up_to};

/// systemd's id of this installation.
const MACHINE_ID: &str = "/etc/machine-id";

/// What the id derived from the machine id is an id of (machine-id(5): never expose the original).
const APPLICATION: &[u8] = b"org.troth.Agent1";

/// Bytes of the product uuid that are read: its text and room for blanks.
const DMI_LIMIT: usize = 64;

/// Why there is no agent id.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The id is longer than 80 characters or has others than `[A-Za-z0-9._-]`.
    #[error("uuid: {0}")]
    Invalid(#[from] IdentityError),
    /// No machine id.
    #[error("uuid = \"machine-id\": {MACHINE_ID}: {0}")]
    MachineId(io::Error),
    /// The product uuid cannot be read; the kernel lets only root.
    #[error(
        "uuid = \"dmidecode\": cannot read {}: {source}. Let this agent's user read it, or set \
         dmi_product_uuid_path to a readable copy",
        path.display()
    )]
    Dmi {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file's text identifies nothing.
    #[error(
        "uuid = \"dmidecode\": {} says {text:?}, which identifies no machine; set another uuid",
        path.display()
    )]
    DmiUnset {
        /// The file.
        path: PathBuf,
        /// Its text.
        text: String,
    },
}

/// The agent id that `uuid` asks for. `product_uuid` is the file with the DMI product uuid.
pub fn agent_id(uuid: &str, ek: &Public, product_uuid: &HostFile) -> Result<AgentId, IdError> {
    match uuid {
        "hash_ek" => Ok(AgentId::hash_ek(ek)),
        "hostname" => {
            let host = rustix::system::uname();
            Ok(AgentId::new(&host.nodename().to_string_lossy())?)
        }
        "generate" => Ok(AgentId::new(&random_uuid())?),
        "machine-id" | "machine_id" => {
            let text = fs::read_to_string(MACHINE_ID).map_err(IdError::MachineId)?;
            Ok(AgentId::new(&derived_uuid(text.trim()))?)
        }
        "dmidecode" => Ok(AgentId::new(&dmi_uuid(product_uuid)?)?),
        literal if is_uuid(literal) => Ok(AgentId::new(&literal.to_ascii_lowercase())?),
        literal => Ok(AgentId::new(literal)?),
    }
}

/// The system's UUID as its firmware tells (SMBIOS 3.7, 7.2.1), lower case as all our UUIDs.
fn dmi_uuid(file: &HostFile) -> Result<String, IdError> {
    let path = file.path();
    let open = file
        .open()
        .and_then(|file| file.ok_or_else(|| io::ErrorKind::NotFound.into()));
    let content = open
        .and_then(|file| read_up_to(DMI_LIMIT, &file))
        .map_err(|source| IdError::Dmi {
            path: path.to_owned(),
            source,
        })?;
    let text = String::from_utf8_lossy(&content)
        .trim()
        .to_ascii_lowercase();
    // All zeros and all ones mean "not set" and "not there"; hosts would share the id.
    let mut digits = text.bytes().filter(|&byte| byte != b'-');
    let first = digits.next();
    let unset = matches!(first, Some(b'0' | b'f')) && digits.all(|byte| Some(byte) == first);
    if unset || !is_uuid(&text) {
        return Err(IdError::DmiUnset {
            path: path.to_owned(),
            text,
        });
    }
    Ok(text)
}

fn random_uuid() -> String {
    let mut bytes = [0; 16];
    rand::rng().fill_bytes(&mut bytes);
    format_uuid(bytes)
}

fn derived_uuid(machine_id: &str) -> String {
    let key = hmac::Key::new(hmac::HMAC_SHA256, machine_id.as_bytes());
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&hmac::sign(&key, APPLICATION).as_ref()[..16]);
    format_uuid(bytes)
}

/// RFC 9562, version 4 and variant bits set.
fn format_uuid(mut bytes: [u8; 16]) -> String {
    bytes[6] = bytes[6] & 0x0F | 0x40;
    bytes[8] = bytes[8] & 0x3F | 0x80;
    let text = hex::encode(bytes);
    let (a, b, c, d, e) = (
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    );
    format!("{a}-{b}-{c}-{d}-{e}")
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36
        && text.bytes().enumerate().all(|(at, byte)| match at {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uuids_are_version_4_and_never_the_same() {
        let (one, two) = (random_uuid(), random_uuid());
        assert!(is_uuid(&one) && one.as_bytes()[14] == b'4', "{one}");
        assert_ne!(one, two);
    }

    #[test]
    fn the_product_uuid_is_the_id_if_it_is_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("product_uuid");
        let error = dmi_uuid(&path.clone().into()).unwrap_err().to_string();
        assert!(
            error.contains(path.to_str().unwrap()) && error.contains("dmi_product_uuid_path"),
            "{error}"
        );
        fs::write(&path, "4C4C4544-0042-3510-8052-B4C04F564433\n").unwrap();
        assert_eq!(
            dmi_uuid(&path.clone().into()).unwrap(),
            "4c4c4544-0042-3510-8052-b4c04f564433"
        );
        let long = "4".repeat(1000);
        for bad in [
            "",
            "Not Settable\n",
            "00000000-0000-0000-0000-000000000000\n",
            "FFFFFFFF-FFFF-FFFF-FFFF-FFFFFFFFFFFF\n",
            &long,
        ] {
            fs::write(&path, bad).unwrap();
            let error = dmi_uuid(&path.clone().into()).unwrap_err();
            assert!(matches!(error, IdError::DmiUnset { .. }), "{error}");
            assert!(error.to_string().len() < 400, "{error}");
        }
    }

    #[test]
    fn the_machine_id_is_stable_and_not_exposed() {
        let machine = "0123456789abcdef0123456789abcdef";
        let id = derived_uuid(machine);
        assert_eq!(id, derived_uuid(machine));
        assert!(!id.replace('-', "").contains(&machine[..12]));
        assert_ne!(id, derived_uuid("1123456789abcdef0123456789abcdef"));
    }
}
