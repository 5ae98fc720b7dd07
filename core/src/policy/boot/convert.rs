use super::document::{Component, Document, Key as KeyRule, SecureBoot};
use super::refstate::{self, Digests, Refstate};
use super::rules::BootRules;
use crate::eventlog::content::Guid;
use crate::policy::PolicyError;
use crate::tpm::{Digest, HashAlgorithm};

/// Banks that quotes are over.
const BANKS: [HashAlgorithm; 4] = [
    HashAlgorithm::Sha1,
    HashAlgorithm::Sha256,
    HashAlgorithm::Sha384,
    HashAlgorithm::Sha512,
];
/// A variable of shim that is on or off.
const MOK_LIST_TRUSTED: &str = "MokListTrusted";

/// A policy of ours from a refstate.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Converted {
    /// The policy.
    pub rules: BootRules,
    /// What it judges otherwise than the refstate does, a sentence each.
    pub differences: Vec<String>,
}

impl Refstate {
    /// A policy of ours that demands what Keylime's engine `example` does by this refstate, as far
    /// as a policy of ours can say it; what it judges otherwise is told with it.
    ///
    /// # Errors
    /// A refstate that allows no boot at all, and one that has more than a policy may have.
    pub fn to_rules(&self) -> Result<Converted, PolicyError> {
        if self.kernels.is_empty() || self.firmware.is_empty() {
            let reason = "refstate: it allows no boot: `kernels` or `scrtm_and_bios` is empty";
            return Err(PolicyError::Schema(reason.to_owned()));
        }
        let mut component = self.firmware();
        component.extend(configuration());
        component.extend(self.images());
        component.extend(self.variables());
        component.extend(self.files());
        component.extend(self.mok());
        let mut command_line = Vec::new();
        for kernel in &self.kernels {
            let source = kernel.cmdline.source();
            let source = source.strip_prefix(refstate::KERNEL_CMDLINE);
            let source = source.unwrap_or_default().to_owned();
            if !command_line.contains(&source) {
                command_line.push(source);
            }
        }
        let rules = BootRules::compile(Document {
            version: 1,
            command_line: Some(command_line),
            secure_boot: Some(self.secure_boot_rules()),
            component,
            ..Document::default()
        })?;
        Ok(Converted {
            rules,
            differences: self.differences(),
        })
    }

    fn firmware(&self) -> Vec<Component> {
        let scrtm = self.firmware.iter().map(|one| &one.scrtm);
        let version = Component {
            kind: Some("firmware".to_owned()),
            event: Some("EV_S_CRTM_VERSION".to_owned()),
            ..component("firmware-version", all(scrtm), 1, Some(1))
        };
        let counts = || self.firmware.iter().map(|one| one.blobs.len());
        let (least, most) = (counts().min(), counts().max());
        let blobs = all(self.firmware.iter().flat_map(|one| &one.blobs));
        let number = |count: Option<usize>| u32::try_from(count.unwrap_or(0)).unwrap_or(u32::MAX);
        let blobs = (!blobs.is_empty())
            .then(|| component("firmware", blobs, number(least), Some(number(most))));
        [version].into_iter().chain(blobs).collect()
    }

    /// PCR 4.
    fn images(&self) -> Vec<Component> {
        let kernels = || self.kernels.iter();
        let shim = sha256(kernels().map(|kernel| &kernel.shim));
        let grub = sha256(kernels().map(|kernel| &kernel.grub));
        let mut images = vec![
            component("shim", shim, 1, Some(1)),
            component("boot-loader", grub, 1, Some(1)),
        ];
        if self.secure_boot {
            // shim and firmware may both measure it.
            let kernel = sha256(kernels().map(|kernel| &kernel.kernel));
            images.push(component("kernel", kernel, 1, Some(2)));
        }
        images
    }

    fn secure_boot_rules(&self) -> SecureBoot {
        let wanted = |keys: &[refstate::Key]| self.secure_boot || !keys.is_empty();
        let keys = |keys: &[refstate::Key]| wanted(keys).then(|| key_rules(keys));
        SecureBoot {
            enabled: self.secure_boot,
            pk: keys(&self.pk),
            kek: keys(&self.kek),
            db: keys(&self.db),
            dbx_at_least: key_rules(&self.dbx),
            ..SecureBoot::default()
        }
    }

    /// PCR 7, beyond the table of Secure Boot.
    fn variables(&self) -> Vec<Component> {
        let trusted = [0, 1].map(|on| variable(Guid::SHIM, MOK_LIST_TRUSTED, &[on]));
        let trusted = trusted.iter().flat_map(|data| of_data(data)).collect();
        let mut components = vec![Component {
            pcr: Some(7),
            event: Some("EV_EFI_VARIABLE_AUTHORITY".to_owned()),
            ..component("authority MokListTrusted", trusted, 0, Some(1))
        }];
        if !self.secure_boot {
            components.push(any("secure-boot-variable", None));
        }
        components
    }

    /// PCR 8 and 9: what GRUB ran and read.
    fn files(&self) -> Vec<Component> {
        let kernels = || self.kernels.iter();
        let file = |name: &str, digests| Component {
            kind: Some("file".to_owned()),
            ..component(name, digests, 1, Some(1))
        };
        let mut files = vec![
            any("loader-command", None),
            file(
                "initrd-file",
                sha256(kernels().map(|kernel| &kernel.initrd)),
            ),
        ];
        if !self.secure_boot {
            let kernel = sha256(kernels().map(|kernel| &kernel.kernel));
            files.push(file("kernel-file", kernel));
        }
        files.push(any("file", None));
        files
    }

    /// PCR 14.
    fn mok(&self) -> Vec<Component> {
        let mok = |name: &str, digests: Vec<String>, most| Component {
            kind: Some("mok".to_owned()),
            ..component(name, digests, 0, most)
        };
        let trusted = [0, 1].iter().flat_map(|on| of_data(&[*on])).collect();
        let all = [
            mok("MokList", all(self.mok.iter()), None),
            mok("MokListX", all(self.mokx.iter()), None),
            mok(MOK_LIST_TRUSTED, trusted, Some(1)),
        ];
        all.into_iter()
            .filter(|one| !one.digests.is_empty())
            .collect()
    }

    fn differences(&self) -> Vec<String> {
        let mut told = vec![
            "the order of firmware parts (PCR 0) and of images (PCR 4) is not compared",
            "GRUB may read more than one kernel and initrd, and have more than one command line \
             measured, as long as an allowed one is among them: list its files and commands to \
             change that",
            "files that GRUB reads and boot entries (PCR 9, 1) may have any name, which nothing \
             vouches for",
            "the variables SecureBoot and, if revocations are wanted, dbx must have been measured",
        ];
        if self.firmware.len() > 1 || self.kernels.len() > 1 {
            told.push(
                "parts of several alternatives of `scrtm_and_bios` or `kernels` may be combined: \
                 make a policy for each to keep them apart",
            );
        }
        if self.secure_boot || !self.vendor_db.is_empty() {
            told.push(
                "`vendor_db`: any key that let an image run is accepted (give `authorities` to \
                 change that), and a variable vendor_db is not",
            );
        }
        if !self.secure_boot {
            told.push("variables of Secure Boot that the refstate does not know are accepted");
        }
        told.into_iter().map(str::to_owned).collect()
    }
}

/// PCR 1, 2 and 5: what the engine lets be whatever it is.
fn configuration() -> Vec<Component> {
    let of = |name: &str, pcr, event: &str, max| Component {
        pcr: Some(pcr),
        event: Some(event.to_owned()),
        ..any(name, max)
    };
    vec![
        any("microcode", Some(1)),
        of("handoff-tables", 1, "EV_EFI_HANDOFF_TABLES", Some(1)),
        of("handoff-tables-2", 1, "EV_EFI_HANDOFF_TABLES2", Some(1)),
        of("config-flags", 1, "EV_PLATFORM_CONFIG_FLAGS", Some(4)),
        of("boot-entry", 1, "EV_EFI_VARIABLE_BOOT", None),
        Component {
            pcr: Some(1),
            event: Some("EV_EFI_ACTION".to_owned()),
            text: vec!["Entering ROM Based Setup".to_owned()],
            ..component("setup", Vec::new(), 0, None)
        },
        of("driver", 2, "EV_EFI_BOOT_SERVICES_DRIVER", None),
        of("partitions", 5, "EV_EFI_GPT_EVENT", Some(1)),
    ]
}

fn component(name: &str, digests: Vec<String>, min: u32, max: Option<u32>) -> Component {
    Component {
        name: name.to_owned(),
        digests,
        min: Some(min),
        max,
        ..Component::default()
    }
}

fn any(name: &str, max: Option<u32>) -> Component {
    Component {
        any: true,
        ..component(name, Vec::new(), 0, max)
    }
}

fn key_rules(keys: &[refstate::Key]) -> Vec<KeyRule> {
    let rule = |key: &refstate::Key| {
        let (kind, sha256) = match key.data.len() {
            32 => ("sha256", hex::encode(&key.data)),
            _ => (
                "x509",
                HashAlgorithm::Sha256.digest(&[&key.data]).to_string(),
            ),
        };
        KeyRule {
            owner: Some(key.owner.to_string()),
            kind: Some(kind.to_owned()),
            sha256: Some(format!("sha256:{sha256}")),
            subject: None,
        }
    };
    keys.iter().map(rule).collect()
}

/// Digests of all banks, each once.
fn all<'d>(digests: impl Iterator<Item = &'d Digests>) -> Vec<String> {
    once(digests.flat_map(|one| one.iter().map(|(bank, digest)| format!("{bank}:{digest}"))))
}

fn sha256<'d>(digests: impl Iterator<Item = &'d Digest>) -> Vec<String> {
    once(digests.map(|digest| format!("sha256:{digest}")))
}

fn once(texts: impl Iterator<Item = String>) -> Vec<String> {
    let mut texts: Vec<_> = texts.collect();
    texts.sort_unstable();
    texts.dedup();
    texts
}

/// The digests of some data in each bank.
fn of_data(data: &[u8]) -> Vec<String> {
    BANKS
        .iter()
        .map(|bank| format!("{bank}:{}", bank.digest(&[data])))
        .collect()
}

/// UEFI_VARIABLE_DATA (PC Client profile, "Measuring UEFI Variables").
fn variable(guid: Guid, name: &str, value: &[u8]) -> Vec<u8> {
    let mut data = guid.0.to_vec();
    data.extend((name.encode_utf16().count() as u64).to_le_bytes());
    data.extend((value.len() as u64).to_le_bytes());
    data.extend(name.encode_utf16().flat_map(u16::to_le_bytes));
    data.extend(value);
    data
}
