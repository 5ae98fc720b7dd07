use std::collections::BTreeSet;

use serde::Serialize;

use super::document::{AnyOr, Component, Document, Key, Phases, SecureBoot};
use super::keys::subject;
use super::refstate::KERNEL_CMDLINE;
use super::rules::{BootRules, generations, is_section_name};
use crate::eventlog::content::{
    Content, Guid, IplKind, Measured, Node, Signature, Tag, Variable, VariableValue,
};
use crate::eventlog::{
    Event, EventLog, EventType, MAX_EVENTS, Measurement, Register, UserspaceLog,
};
use crate::policy::pattern::Pattern;
use crate::tpm::HashAlgorithm;

/// Media device path: a firmware volume, and a file in one.
const FIRMWARE_VOLUME: (u8, u8) = (4, 7);
const FIRMWARE_FILE: (u8, u8) = (4, 6);
/// PCR of a unified kernel image and of the phases of the boot.
const PHASES_PCR: u32 = 11;
/// What systemd calls a measurement of a phase.
const PHASE: &str = "phase";
/// The phases that systemd measures, in order (systemd-pcrphase.service).
const PHASES: [&str; 6] = [
    "enter-initrd",
    "leave-initrd",
    "sysinit",
    "ready",
    "shutdown",
    "final",
];
/// Name of EV_NO_ACTION events in a policy.
const NO_ACTION: &str = "no-action";
/// Longest note in a policy that was made, in characters.
const NOTE: usize = 200;

/// A log that no policy can be made from.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum CreateError {
    /// The boot was without Secure Boot, and nobody said that this is fine.
    #[error(
        "the host booted without Secure Boot; say --without-secureboot if that is as it should be"
    )]
    NoSecureBoot,
    /// The log has no digests of the bank, or of none that we know.
    #[error("the log has no digests of the hash that the policy is to have")]
    NoBank,
    /// The log has something that cannot be put into a policy.
    #[error("no policy can be made of this log: {0}")]
    Policy(String),
}

/// Keylime's reference state (`create measured-boot`) of the boot that a log tells of.
#[derive(Debug, Serialize)]
pub(crate) struct RefstateDocument {
    has_secureboot: bool,
    scrtm_and_bios: [FirmwareDocument; 1],
    pk: Vec<KeyDocument>,
    kek: Vec<KeyDocument>,
    db: Vec<KeyDocument>,
    dbx: Vec<KeyDocument>,
    vendor_db: Vec<KeyDocument>,
    mokdig: Vec<DigestDocument>,
    mokxdig: Vec<DigestDocument>,
    /// Left out where the boot was no chain of shim, GRUB and Linux; the engine then takes nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    kernels: Option<[KernelDocument; 1]>,
}

#[derive(Debug, Serialize)]
struct FirmwareDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    scrtm: Option<DigestDocument>,
    platform_firmware: Vec<DigestDocument>,
}

#[derive(Debug, Serialize)]
struct DigestDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    sha256: Option<String>,
}

#[derive(Debug, Serialize)]
struct KeyDocument {
    #[serde(rename = "SignatureOwner")]
    owner: String,
    #[serde(rename = "SignatureData")]
    data: String,
}

#[derive(Debug, Default, Serialize)]
struct KernelDocument {
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_authcode_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shim_authcode_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    grub_authcode_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    initrd_plain_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    vmlinuz_plain_sha256: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    kernel_cmdline: Option<String>,
}

impl super::Refstate {
    /// The JSON of a reference state that allows the boot that `log` tells of, as `keylime-policy
    /// create measured-boot` makes it. **Nothing vouches for the log**: it must be of a host that
    /// is trusted.
    ///
    /// A boot that was no chain of shim, GRUB and Linux gives a state without `kernels`, which
    /// the engine refuses; so does Keylime's.
    ///
    /// # Errors
    /// [`CreateError::NoSecureBoot`], unless `without_secure_boot` says that this is fine.
    pub fn json_from_log(
        log: &EventLog<'_>,
        without_secure_boot: bool,
    ) -> Result<String, CreateError> {
        let events = || log.unverified_events();
        let secure_boot = is_secure(log);
        if !secure_boot && !without_secure_boot {
            return Err(CreateError::NoSecureBoot);
        }
        let of_kind = |kind| move |event: &Event<'_>| event.kind == kind;
        let scrtm = events().find(of_kind(EventType::EV_S_CRTM_VERSION));
        let blobs = events().filter(|event| {
            let kinds = [
                EventType::EV_EFI_PLATFORM_FIRMWARE_BLOB,
                EventType::EV_EFI_PLATFORM_FIRMWARE_BLOB2,
            ];
            kinds.contains(&event.kind)
        });
        let mok = |name| {
            let ipls = events().filter(of_kind(EventType::EV_IPL));
            ipls.filter(|event| text(event) == name)
                .map(|event| sha256(&event))
                .collect()
        };
        let document = RefstateDocument {
            has_secureboot: secure_boot,
            scrtm_and_bios: [FirmwareDocument {
                scrtm: scrtm.as_ref().map(sha256),
                platform_firmware: blobs.map(|event| sha256(&event)).collect(),
            }],
            pk: keys(log, "pk"),
            kek: keys(log, "kek"),
            db: keys(log, "db"),
            dbx: keys(log, "dbx"),
            vendor_db: vendor_db(log),
            mokdig: mok("MokList"),
            mokxdig: mok("MokListX"),
            kernels: kernel(log, secure_boot).map(|kernel| [kernel]),
        };
        serde_json::to_string_pretty(&document)
            .map_err(|error| CreateError::Policy(error.to_string()))
    }
}

fn is_secure(log: &EventLog<'_>) -> bool {
    let first = log
        .unverified_events()
        .find_map(|event| match event.content() {
            Content::Variable(variable)
                if event.kind == EventType::EV_EFI_VARIABLE_DRIVER_CONFIG
                    && variable.name.is("SecureBoot") =>
            {
                Some(variable.value == VariableValue::Boolean(true))
            }
            _ => None,
        });
    first.unwrap_or(false)
}

fn sha256(event: &Event<'_>) -> DigestDocument {
    let digest = event.digests.get(HashAlgorithm::Sha256);
    DigestDocument {
        sha256: digest.map(|digest| format!("0x{digest}")),
    }
}

/// Text of an EV_IPL without its final NUL.
fn text<'l>(event: &Event<'l>) -> std::borrow::Cow<'l, str> {
    String::from_utf8_lossy(event.data.strip_suffix(&[0]).unwrap_or(event.data))
}

/// The keys of a variable; of several events of one name the last counts.
fn keys(log: &EventLog<'_>, name: &str) -> Vec<KeyDocument> {
    let variables = log
        .unverified_events()
        .filter_map(|event| match event.content() {
            Content::Variable(variable)
                if event.kind == EventType::EV_EFI_VARIABLE_DRIVER_CONFIG
                    && variable.name.to_string().eq_ignore_ascii_case(name) =>
            {
                match variable.value {
                    VariableValue::SignatureLists(lists) if !variable.data.is_empty() => {
                        Some(lists)
                    }
                    _ => None,
                }
            }
            _ => None,
        });
    let lists = variables.last();
    let keys = lists.iter().flat_map(|lists| lists.signatures());
    keys.map(|(_, key)| KeyDocument::of(&key)).collect()
}

fn vendor_db(log: &EventLog<'_>) -> Vec<KeyDocument> {
    let keys = log
        .unverified_events()
        .filter_map(|event| match event.content() {
            Content::Variable(Variable {
                name,
                value: VariableValue::Authority(key),
                ..
            }) if name.to_string().eq_ignore_ascii_case("vendor_db") => Some(key),
            _ => None,
        });
    keys.map(|key| KeyDocument::of(&key)).collect()
}

impl KeyDocument {
    fn of(key: &Signature<'_>) -> Self {
        Self {
            owner: key.owner.to_string(),
            data: format!("0x{}", hex::encode(key.data)),
        }
    }
}

fn kernel(log: &EventLog<'_>, secure_boot: bool) -> Option<KernelDocument> {
    let of = |kind, pcr| {
        let events = log.unverified_events();
        events.filter(move |event| event.kind == kind && event.pcr == pcr)
    };
    let images: Vec<_> = log
        .unverified_events()
        .filter(|event| event.kind == EventType::EV_EFI_BOOT_SERVICES_APPLICATION)
        .filter(|event| !is_of_firmware(event))
        .collect();
    let image = |index: usize| images.get(index).and_then(|event| sha256(event).sha256);
    let expected = if secure_boot { 3..=4 } else { 2..=2 };
    if !expected.contains(&images.len()) {
        return None;
    }
    let file = |names: &[&str]| {
        let mut files = of(EventType::EV_IPL, 9);
        let file = files.find(|event| names.iter().any(|name| text(event).contains(name)));
        file.and_then(|event| sha256(&event).sha256)
    };
    let mut commands = of(EventType::EV_IPL, 8).map(|event| text(&event));
    let cmdline = commands.find(|text| text.contains("kernel_cmdline"));
    Some(KernelDocument {
        kernel_authcode_sha256: secure_boot.then(|| image(2)).flatten(),
        shim_authcode_sha256: image(0),
        grub_authcode_sha256: image(1),
        initrd_plain_sha256: file(&["initrd", "initramfs"]),
        vmlinuz_plain_sha256: (!secure_boot).then(|| file(&["vmlinuz"])).flatten(),
        kernel_cmdline: cmdline.map(|text| {
            let start = text.char_indices().nth(KERNEL_CMDLINE.len());
            Pattern::escape(start.map_or("", |(at, _)| &text[at..]))
        }),
    })
}

/// Is it a part of the firmware (a boot menu) and not of the boot?
fn is_of_firmware(event: &Event<'_>) -> bool {
    let Content::Image(image) = event.content() else {
        return false;
    };
    let mut nodes = image
        .path
        .nodes()
        .map(|node: Node<'_>| (node.kind, node.subtype));
    nodes.next() == Some(FIRMWARE_VOLUME) && nodes.next() == Some(FIRMWARE_FILE)
}

impl BootRules {
    /// A policy that allows the boot that `log` tells of, event by event and in its order, and
    /// nothing else. **Nothing vouches for the log**: it must be of a host that is trusted.
    ///
    /// `userspace` is systemd's log of the same boot, if it has one. What it tells of is allowed
    /// too; of the phases, also those that it does not tell of yet, up to the end of the boot.
    ///
    /// Its digests are of `bank`; `None`: SHA-256 where the log has it, else its last bank.
    ///
    /// # Errors
    /// [`CreateError::NoSecureBoot`], unless `without_secure_boot` says that this is fine;
    /// [`CreateError::NoBank`] and [`CreateError::Policy`].
    pub fn from_log(
        log: &EventLog<'_>,
        userspace: Option<&UserspaceLog>,
        bank: Option<HashAlgorithm>,
        without_secure_boot: bool,
    ) -> Result<Self, CreateError> {
        if !without_secure_boot && !is_secure(log) {
            return Err(CreateError::NoSecureBoot);
        }
        let bank = match bank {
            Some(bank) => log.banks().find(|one| *one == bank),
            None => {
                let sha256 = log.banks().find(|bank| *bank == HashAlgorithm::Sha256);
                sha256.or_else(|| log.banks().last())
            }
        };
        let bank = bank.ok_or(CreateError::NoBank)?;
        if log.len() > MAX_EVENTS {
            let reason = format!("it has more than {MAX_EVENTS} events");
            return Err(CreateError::Policy(reason));
        }
        let mut maker = Maker {
            bank,
            document: Document {
                version: 1,
                ..Document::default()
            },
            images: Images::of(log),
            no_action: BTreeSet::new(),
        };
        if let Some(enabled) = secure_boot_state(log, bank) {
            maker.document.secure_boot = Some(SecureBoot {
                enabled,
                ..SecureBoot::default()
            });
        }
        for event in log.unverified_events() {
            match event.kind {
                EventType::EV_NO_ACTION => maker.no_action(&event),
                _ if event.digests.get(bank).is_some() => maker.event(&event),
                _ => {}
            }
        }
        maker.unordered();
        if let Some(userspace) = userspace {
            maker.userspace(userspace)?;
        }
        Self::compile(maker.document).map_err(|error| CreateError::Policy(error.to_string()))
    }
}

/// The state of Secure Boot that was measured, if it was.
fn secure_boot_state(log: &EventLog<'_>, bank: HashAlgorithm) -> Option<bool> {
    let mut events = log
        .unverified_events()
        .filter(|event| event.pcr == 7 && event.kind == EventType::EV_EFI_VARIABLE_DRIVER_CONFIG);
    events.find_map(|event| match event.believed(bank) {
        Some(Content::Variable(Variable {
            guid: Guid::GLOBAL,
            name,
            value: VariableValue::Boolean(on),
            ..
        })) if name.is("SecureBoot") => Some(on),
        _ => None,
    })
}

/// What the images of PCR 4 are, by their place in the chain.
struct Images {
    secure_boot: bool,
    grub: bool,
    sections: bool,
    /// Images that are not the firmware's own.
    count: usize,
    next: usize,
}

impl Images {
    fn of(log: &EventLog<'_>) -> Self {
        let ipl = |wanted: IplKind| {
            log.unverified_events().any(|event| match event.content() {
                Content::Ipl(ipl) => ipl.kind == wanted,
                _ => false,
            })
        };
        let images = log.unverified_events().filter(|event| {
            event.kind == EventType::EV_EFI_BOOT_SERVICES_APPLICATION && !is_of_firmware(event)
        });
        Self {
            secure_boot: is_secure(log),
            grub: ipl(IplKind::GrubCommand),
            sections: ipl(IplKind::Section),
            count: images.count(),
            next: 0,
        }
    }

    /// The name of the next image.
    fn name(&mut self, event: &Event<'_>) -> &'static str {
        if is_of_firmware(event) {
            return "application";
        }
        let index = self.next;
        self.next += 1;
        let file = match event.content() {
            Content::Image(image) => image.path.file().map(|file| file.to_string()),
            _ => None,
        };
        let file = file.unwrap_or_default().to_ascii_lowercase();
        let left = self.count.saturating_sub(index);
        match () {
            () if file.ends_with(".addon.efi") => "addon",
            // A chain of systemd-stub ends with its image and the kernel in it.
            () if self.sections && left == 1 => "kernel",
            () if self.sections && left == 2 => "uki",
            () if self.grub && self.secure_boot && index == 0 => "shim",
            () if self.grub && index <= usize::from(self.secure_boot) => "boot-loader",
            () if self.grub => "kernel",
            () if file.contains("shim") => "shim",
            () if ["grub", "systemd-boot"]
                .iter()
                .any(|name| file.contains(name)) =>
            {
                "boot-loader"
            }
            () if self.sections => "boot-loader",
            () => "application",
        }
    }
}

struct Maker {
    bank: HashAlgorithm,
    document: Document,
    images: Images,
    /// PCRs of EV_NO_ACTION events that have a digest.
    no_action: BTreeSet<u32>,
}

/// Something that was measured, for a component.
struct What {
    pcr: u32,
    digest: String,
    note: String,
}

impl Maker {
    fn event(&mut self, event: &Event<'_>) {
        let name = self.name(event);
        self.document
            .order
            .entry(event.pcr.to_string())
            .or_default()
            .push(name);
    }

    /// An event that should extend nothing, but has a digest: some firmware extends it all the
    /// same, which the log does not tell.
    fn no_action(&mut self, event: &Event<'_>) {
        let of_boot = event.pcr < 16 && event.pcr != u32::from(crate::ima::IMA_PCR);
        if of_boot && event.extends(self.bank) {
            self.component(event, NO_ACTION, "");
            self.no_action.insert(event.pcr);
        }
    }

    /// Where such events are, they may be there or not, and so not in an order.
    fn unordered(&mut self) {
        for pcr in std::mem::take(&mut self.no_action) {
            self.document.order.remove(&pcr.to_string());
        }
        for component in &mut self.document.component {
            let rest = component.name.strip_prefix(NO_ACTION);
            if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
                component.min = Some(0);
            }
        }
    }

    /// Puts an event into the policy; the name that it has there.
    fn name(&mut self, event: &Event<'_>) -> String {
        let bank = self.bank;
        let content = event.content();
        let measured = event.measured(bank);
        let vouched = matches!(measured, Measured::Data | Measured::Part(_));
        match (event.pcr, event.kind, &content) {
            (0..=7, EventType::EV_SEPARATOR, Content::Separator(0 | u32::MAX)) if vouched => {
                "separator".to_owned()
            }
            (4 | 5, EventType::EV_EFI_ACTION, _) if super::rules::is_action(event, bank) => {
                "action".to_owned()
            }
            (0, EventType::EV_S_CRTM_VERSION, _) => {
                self.component(event, "firmware-version", "firmware")
            }
            (0, ..) => self.component(event, "firmware", "firmware"),
            (1, EventType::EV_CPU_MICROCODE, _) => self.component(event, "microcode", "microcode"),
            (1, _, Content::Variable(variable)) => {
                let name = variable.name.to_string();
                self.component(event, &name, "firmware-config")
            }
            (1, ..) => self.component(event, "firmware-config", "firmware-config"),
            (2, ..) => self.component(event, "driver", "driver"),
            (3, ..) => self.component(event, "driver-config", "driver-config"),
            (4, EventType::EV_EFI_BOOT_SERVICES_APPLICATION, _) => {
                let name = self.images.name(event);
                self.component(event, name, name)
            }
            (5, EventType::EV_EFI_GPT_EVENT | EventType::EV_EFI_GPT_EVENT2, _) => {
                let digest = self.digest(event);
                add(
                    self.document
                        .partition_table
                        .get_or_insert(AnyOr::Digests(Vec::new())),
                    digest,
                );
                "partition-table".to_owned()
            }
            (7, kind, Content::Variable(variable)) if measured == Measured::Data => {
                match self.variable(kind, variable) {
                    Some(name) => name,
                    None => self.component(event, &variable.name.to_string(), ""),
                }
            }
            (8 | 12, _, Content::Ipl(ipl))
                if vouched
                    && [IplKind::KernelCommandLine, IplKind::CommandLine].contains(&ipl.kind) =>
            {
                match ipl.argument().decode() {
                    Some(text) => self.command_line(&text),
                    None => self.component(event, "kernel-config", ""),
                }
            }
            (8, ..) => self.component(event, "loader-command", "loader-command"),
            (9, _, Content::Tag(tag)) if tag.id == Tag::LINUX_INITRD => {
                self.component(event, "initrd", "initrd")
            }
            (9, _, Content::Tag(tag)) if tag.id == Tag::LINUX_LOAD_OPTIONS => {
                self.component(event, "load-options", "load-options")
            }
            (9, EventType::EV_IPL, Content::Ipl(ipl)) => {
                let path = ipl.text.to_string();
                let name = match () {
                    () if path.contains("vmlinuz") => "kernel-file",
                    () if path.contains("initr") => "initrd-file",
                    () => "file",
                };
                self.component(event, name, "file")
            }
            (11, _, Content::Ipl(ipl)) if ipl.kind == IplKind::Section => {
                match is_section_name(event, self.bank) {
                    true => "section-name".to_owned(),
                    false => self.component(event, &ipl.text.to_string(), "uki-section"),
                }
            }
            (13, ..) => self.component(event, "sysext", "sysext"),
            (14, EventType::EV_IPL, Content::Ipl(ipl)) if ipl.text.decode().is_some() => {
                let name = ipl.text.decode().unwrap_or_default().into_owned();
                let digest = self.digest(event);
                let entry = self.document.mok.entry(name.clone());
                add(entry.or_insert(AnyOr::Digests(Vec::new())), digest);
                name
            }
            _ => {
                let name = event.kind.name().unwrap_or("event");
                self.component(event, name, "")
            }
        }
    }

    /// Puts what user space measured into the policy.
    fn userspace(&mut self, log: &UserspaceLog) -> Result<(), CreateError> {
        if log.is_torn() {
            let reason = "systemd's log has a record that was begun and never ended, and may lack \
                          what was measured";
            return Err(CreateError::Policy(reason.to_owned()));
        }
        let mut phases: Vec<&str> = Vec::new();
        for measurement in log.unverified_measurements() {
            let Register::Pcr(pcr) = measurement.register else {
                continue;
            };
            let phase = measurement.text.as_deref().filter(|_| {
                pcr == PHASES_PCR
                    && measurement.event_type.as_deref() == Some(PHASE)
                    && measurement.vouches_for_text(self.bank)
            });
            match phase {
                Some(phase) if phases.contains(&phase) => {
                    let reason = format!("the phase {phase:?} of the boot was measured twice");
                    return Err(CreateError::Policy(reason));
                }
                Some(phase) => phases.push(phase),
                None => self.measurement(pcr, measurement)?,
            }
        }
        if let Some(last) = phases.last() {
            let known = PHASES.iter().position(|phase| phase == last);
            let later = known.map_or(&[][..], |known| &PHASES[known + 1..]);
            let later = later.iter().filter(|phase| !phases.contains(phase));
            let later: Vec<_> = later.copied().collect();
            let chain = phases.into_iter().chain(later).map(str::to_owned);
            self.document.phases = Some(Phases {
                chain: chain.collect(),
                last: Vec::new(),
            });
        }
        Ok(())
    }

    fn measurement(&mut self, pcr: u32, measurement: &Measurement) -> Result<(), CreateError> {
        let digest = measurement.digest(self.bank).ok_or_else(|| {
            let (index, bank) = (measurement.index, self.bank);
            CreateError::Policy(format!(
                "record {index} of systemd's log has no {bank} digest"
            ))
        })?;
        let event_type = measurement.event_type.as_deref().unwrap_or("measurement");
        let kind = match (pcr, event_type) {
            (9, _) => "nvpcr",
            (12, _) => "kernel-config",
            (13, _) => "sysext",
            (15, "machine-id") => "machine-id",
            (15, "filesystem") => "file-system",
            (15, "volume-key") => "volume-key",
            _ => "",
        };
        let text = measurement.text.as_deref().unwrap_or("no text");
        let what = What {
            pcr,
            digest: format!("{}:{digest}", self.bank),
            note: format!("{event_type} by user space: {text}"),
        };
        self.put(
            what,
            if kind.is_empty() { "user-space" } else { kind },
            kind,
        );
        Ok(())
    }

    fn digest(&self, event: &Event<'_>) -> String {
        let digest = event.digests.get(self.bank);
        digest.map_or_else(String::new, |digest| format!("{}:{digest}", self.bank))
    }

    fn command_line(&mut self, text: &str) -> String {
        let pattern = Pattern::escape(text);
        let patterns = self.document.command_line.get_or_insert_default();
        if !patterns.contains(&pattern) {
            patterns.push(pattern);
        }
        "command-line".to_owned()
    }

    /// One more event of a component: the one of this digest, or a new one of another name.
    fn component(&mut self, event: &Event<'_>, base: &str, kind: &str) -> String {
        let what = What {
            pcr: event.pcr,
            digest: self.digest(event),
            note: format!("{}: {}", event.kind, event.content()),
        };
        self.put(what, base, kind)
    }

    fn put(&mut self, what: What, base: &str, kind: &str) -> String {
        let What { pcr, digest, note } = what;
        let pcr = u8::try_from(pcr).unwrap_or(u8::MAX);
        let mut base: String = base.chars().filter(|c| !c.is_control()).take(64).collect();
        if base.is_empty() {
            base.push_str("event");
        }
        let mut others = 0;
        for component in &mut self.document.component {
            let family = component.name.strip_prefix(&base);
            let family = family.filter(|_| component.pcr == Some(pcr));
            let number = family.map(|rest| rest.strip_prefix('-').unwrap_or(rest));
            if !number.is_some_and(|rest| rest.bytes().all(|digit| digit.is_ascii_digit())) {
                continue;
            }
            if component.digests.first() == Some(&digest) {
                let times = component.min.unwrap_or(1) + 1;
                component.min = Some(times);
                component.max = Some(times);
                return component.name.clone();
            }
            others += 1;
        }
        let name = match others {
            0 => base,
            others => format!("{base}-{}", others + 1),
        };
        self.document.component.push(Component {
            kind: (!kind.is_empty() && kind != name).then(|| kind.to_owned()),
            pcr: Some(pcr),
            note: note.chars().take(NOTE).collect(),
            digests: vec![digest],
            min: Some(1),
            max: Some(1),
            name: name.clone(),
            ..Component::default()
        });
        name
    }

    /// Puts a variable into the table of Secure Boot; `None` for one that it says nothing of.
    fn variable(&mut self, kind: EventType, variable: &Variable<'_>) -> Option<String> {
        let table = self.document.secure_boot.as_mut()?;
        match (kind, variable.value) {
            (EventType::EV_EFI_VARIABLE_DRIVER_CONFIG, VariableValue::Boolean(_)) => {
                let named = variable.guid == Guid::GLOBAL && variable.name.is("SecureBoot");
                named.then(|| "SecureBoot".to_owned())
            }
            (EventType::EV_EFI_VARIABLE_DRIVER_CONFIG, VariableValue::SignatureLists(lists)) => {
                let name = ["PK", "KEK", "db", "dbx"]
                    .into_iter()
                    .find(|n| variable.name.is(n))?;
                let keys = lists
                    .signatures()
                    .map(|(kind, key)| Key::of(Some(kind), &key));
                match name {
                    "PK" => table.pk = Some(keys.collect()),
                    "KEK" => table.kek = Some(keys.collect()),
                    "db" => table.db = Some(keys.collect()),
                    _ => table.dbx_at_least = keys.collect(),
                }
                Some(name.to_owned())
            }
            (EventType::EV_EFI_VARIABLE_AUTHORITY, VariableValue::Authority(key)) => {
                let key = Key::of(None, &key);
                let authorities = table.authorities.get_or_insert_default();
                if !authorities.contains(&key) {
                    authorities.push(key);
                }
                Some("authority".to_owned())
            }
            (EventType::EV_EFI_VARIABLE_AUTHORITY, VariableValue::Sbat(text)) => {
                let text = text.decode()?;
                let generations = generations(&text);
                let components = text.lines().filter_map(|line| line.split(',').next());
                for component in components.filter(|component| !component.is_empty()) {
                    let generation = *generations.get(component)?;
                    table.sbat.insert(component.to_owned(), generation);
                }
                Some("SbatLevel".to_owned())
            }
            _ => None,
        }
    }
}

fn add(list: &mut AnyOr, digest: String) {
    match list {
        AnyOr::Digests(digests) if !digests.contains(&digest) => digests.push(digest),
        _ => {}
    }
}

impl Key {
    fn of(kind: Option<Guid>, key: &Signature<'_>) -> Self {
        let is_digest = kind == Some(Guid::CERT_SHA256);
        let sha256 = match is_digest {
            true => hex::encode(key.data),
            false => HashAlgorithm::Sha256.digest(&[key.data]).to_string(),
        };
        let sha256 = Some(format!("sha256:{sha256}"));
        if is_digest {
            return Self {
                sha256,
                ..Self::default()
            };
        }
        Self {
            owner: Some(key.owner.to_string()),
            kind: kind.map(|kind| match kind {
                Guid::CERT_X509 => "x509".to_owned(),
                kind => kind.to_string(),
            }),
            sha256,
            subject: subject(key.data).filter(|subject| !subject.contains(char::is_control)),
        }
    }
}
