use super::boot_policy::{Beyond, Wrong, Wrongs, digests, shown_text};
use crate::eventlog::content::{Content, Guid, Measured, SignatureLists, Variable, VariableValue};
use crate::eventlog::{Event, EventLog, EventType};
use crate::policy::refstate::{Digests, Firmware, KERNEL_CMDLINE, Kernel, Key, PCRS, Refstate};
use crate::tpm::{Digest, HashAlgorithm};

/// Texts that firmware measures as EV_EFI_ACTION, by PCR.
const ACTIONS: [(u32, &str); 6] = [
    (1, "Entering ROM Based Setup"),
    (4, "Calling EFI Application from Boot Option"),
    (4, "Returning from EFI Application from Boot Option"),
    (5, "Exit Boot Services Invocation"),
    (5, "Exit Boot Services Returned with Failure"),
    (5, "Exit Boot Services Returned with Success"),
];
/// How often firmware may measure its configuration.
const CONFIG_FLAGS: usize = 4;

/// Judges all events of a log by the rules of Keylime's engine `example`.
///
/// The log's PCRs 0 to 9 and 14 are the quoted ones, or there is a finding already; an event of
/// any other PCR is none that the engine knows.
pub(super) fn judge(
    state: &Refstate,
    log: &EventLog<'_>,
    bank: HashAlgorithm,
    beyond: &Beyond<'_>,
) -> Wrongs {
    let mut walk = Walk {
        state,
        bank,
        wrong: Wrongs::default(),
        once: Vec::new(),
        config_flags: 0,
        scrtms: Vec::new(),
        blobs: Vec::new(),
        applications: Vec::new(),
        initrds: Vec::new(),
        kernels: Vec::new(),
        command_lines: Vec::new(),
    };
    for event in log.unverified_events() {
        if let Err(reason) = walk.event(&event) {
            walk.wrong.push(|| Wrong::event(&event, bank, reason));
        }
    }
    // The engine knows of the firmware's log alone.
    for (pcr, measurement) in &beyond.measurements {
        if PCRS >> pcr & 1 == 1 {
            let explanation = "is none that the policy allows in this PCR";
            let wrong = || Wrong::measurement(*pcr, measurement, bank, explanation);
            walk.wrong.push(wrong);
        }
    }
    walk.firmware();
    walk.boot();
    walk.wrong
}

/// What is wrong with one event: the component, what was expected, and why.
pub(super) struct Reason {
    pub(super) component: String,
    pub(super) expected: Vec<String>,
    pub(super) explanation: String,
}

struct Walk<'s, 'l> {
    state: &'s Refstate,
    bank: HashAlgorithm,
    wrong: Wrongs,
    /// What may be there once, and was.
    once: Vec<&'static str>,
    config_flags: usize,
    scrtms: Vec<Event<'l>>,
    blobs: Vec<Event<'l>>,
    applications: Vec<Event<'l>>,
    initrds: Vec<Event<'l>>,
    kernels: Vec<Event<'l>>,
    command_lines: Vec<Event<'l>>,
}

impl<'l> Walk<'_, 'l> {
    fn event(&mut self, event: &Event<'l>) -> Result<(), Reason> {
        use EventType as T;
        match (event.pcr, event.kind) {
            (0, T::EV_NO_ACTION) => self.once("the log's header"),
            (0, T::EV_S_CRTM_VERSION) => {
                self.scrtms.push(*event);
                Ok(())
            }
            (0, T::EV_EFI_PLATFORM_FIRMWARE_BLOB | T::EV_EFI_PLATFORM_FIRMWARE_BLOB2) => {
                self.blobs.push(*event);
                Ok(())
            }
            (1, T::EV_CPU_MICROCODE) => self.once("microcode"),
            (1, T::EV_EFI_HANDOFF_TABLES) => self.once("EV_EFI_HANDOFF_TABLES"),
            (1, T::EV_EFI_HANDOFF_TABLES2) => self.once("EV_EFI_HANDOFF_TABLES2"),
            (1, T::EV_PLATFORM_CONFIG_FLAGS) => {
                self.config_flags += 1;
                match self.config_flags <= CONFIG_FLAGS {
                    true => Ok(()),
                    false => Err(reason(
                        "firmware configuration",
                        "is there more than 4 times",
                    )),
                }
            }
            (1, T::EV_EFI_VARIABLE_BOOT) => boot_variable(event),
            (1 | 4 | 5, T::EV_EFI_ACTION) => self.action(event),
            (2, T::EV_EFI_BOOT_SERVICES_DRIVER) => Ok(()),
            (4, T::EV_EFI_BOOT_SERVICES_APPLICATION) => {
                self.applications.push(*event);
                Ok(())
            }
            (5, T::EV_EFI_GPT_EVENT) => self.once("the partition table"),
            (7, T::EV_EFI_VARIABLE_DRIVER_CONFIG) => self.secure_boot_variable(event),
            (7, T::EV_EFI_VARIABLE_AUTHORITY) => self.authority(event),
            (8, T::EV_IPL) => self.command(event),
            (9, T::EV_IPL) => self.file(event),
            (14, T::EV_IPL) => self.mok(event),
            (0..=7, T::EV_SEPARATOR) => match event.content() {
                Content::Separator(0) if self.is_of_data(event) => Ok(()),
                _ => Err(reason("separator", "is no separator of the firmware")),
            },
            _ => Err(reason(
                "event",
                "is none that the policy allows in this PCR",
            )),
        }
    }

    fn once(&mut self, what: &'static str) -> Result<(), Reason> {
        if self.once.contains(&what) {
            return Err(reason(what, "is there twice"));
        }
        self.once.push(what);
        Ok(())
    }

    fn is_of_data(&self, event: &Event<'_>) -> bool {
        event.measured(self.bank) == Measured::Data
    }

    fn action(&self, event: &Event<'_>) -> Result<(), Reason> {
        let known = ACTIONS
            .iter()
            .any(|(pcr, text)| *pcr == event.pcr && text.as_bytes() == event.data);
        match known && self.is_of_data(event) {
            true => Ok(()),
            false => Err(reason(
                "action",
                "is none that firmware measures into this PCR",
            )),
        }
    }

    fn secure_boot_variable(&mut self, event: &Event<'_>) -> Result<(), Reason> {
        let Content::Variable(variable) = event.content() else {
            return Err(reason("Secure Boot", "is a variable that cannot be read"));
        };
        if !self.is_of_data(event) {
            return Err(reason(
                "Secure Boot",
                "says something else than was measured",
            ));
        }
        let state = self.state;
        let named = |guid, name| variable.guid == guid && variable.name.is(name);
        if named(Guid::GLOBAL, "SecureBoot") {
            return self.is_enabled(&variable);
        }
        let x509: &[Guid] = &[Guid::CERT_X509];
        let both: &[Guid] = &[Guid::CERT_X509, Guid::CERT_SHA256];
        for (guid, name, types, keys) in [
            (Guid::GLOBAL, "PK", x509, &state.pk),
            (Guid::GLOBAL, "KEK", x509, &state.kek),
            (Guid::SECURITY_DATABASE, "db", both, &state.db),
            (Guid::SECURITY_DATABASE, "vendor_db", both, &state.vendor_db),
        ] {
            if named(guid, name) {
                self.once(name)?;
                return self.subset(name, &variable, types, keys);
            }
        }
        if named(Guid::SECURITY_DATABASE, "dbx") {
            self.once("dbx")?;
            return self.superset(&variable);
        }
        Err(reason(
            "Secure Boot",
            "is a variable that the policy does not know",
        ))
    }

    fn is_enabled(&self, variable: &Variable<'_>) -> Result<(), Reason> {
        let wanted = self.state.secure_boot;
        match variable.value {
            VariableValue::Boolean(on) if on == wanted && !variable.data.is_empty() => Ok(()),
            _ => Err(Reason {
                component: "Secure Boot".to_owned(),
                expected: vec![if wanted { "on" } else { "off" }.to_owned()],
                explanation: "is not in the state that the policy wants".to_owned(),
            }),
        }
    }

    /// Without Secure Boot its variables may be whatever they are where the policy names no key.
    fn is_left_out(&self, keys: &[Key]) -> bool {
        !self.state.secure_boot && keys.is_empty()
    }

    fn subset(
        &self,
        name: &'static str,
        variable: &Variable<'_>,
        types: &[Guid],
        keys: &[Key],
    ) -> Result<(), Reason> {
        if self.is_left_out(keys) {
            return Ok(());
        }
        let lists = lists(name, variable)?;
        let mut allowed: Vec<_> = keys.iter().map(|one| (one.owner, &one.data[..])).collect();
        allowed.sort_unstable();
        for (kind, signature) in lists.signatures() {
            let key = (signature.owner, signature.data);
            if !types.contains(&kind) || allowed.binary_search(&key).is_err() {
                let digest = HashAlgorithm::Sha256.digest(&[signature.data]);
                return Err(Reason {
                    component: name.to_owned(),
                    expected: key_list(keys),
                    explanation: format!(
                        "has a key that the policy does not allow: owner {}, SHA-256 {digest}",
                        signature.owner
                    ),
                });
            }
        }
        // A list without signatures has a type all the same.
        match lists.iter().all(|list| types.contains(&list.kind)) {
            true => Ok(()),
            false => Err(reason(name, "has a list of another type of keys")),
        }
    }

    fn superset(&self, variable: &Variable<'_>) -> Result<(), Reason> {
        let wanted = &self.state.dbx;
        if self.is_left_out(wanted) {
            return Ok(());
        }
        let lists = lists("dbx", variable)?;
        let mut all = lists.iter();
        let (Some(list), None) = (all.next(), all.next()) else {
            return Err(reason("dbx", "is not exactly one list"));
        };
        if list.kind != Guid::CERT_SHA256 {
            return Err(reason("dbx", "is not a list of SHA-256 digests"));
        }
        let mut there: Vec<_> = list.signatures().map(|one| (one.owner, one.data)).collect();
        there.sort_unstable();
        let missing: Vec<_> = wanted
            .iter()
            .filter(|key| {
                there
                    .binary_search(&(key.owner, key.data.as_slice()))
                    .is_err()
            })
            .collect();
        if missing.is_empty() {
            return Ok(());
        }
        Err(Reason {
            component: "dbx".to_owned(),
            expected: missing.iter().take(16).map(|key| key.describe()).collect(),
            explanation: format!(
                "lacks {} of the revocations that the policy wants",
                missing.len()
            ),
        })
    }

    fn authority(&mut self, event: &Event<'_>) -> Result<(), Reason> {
        let Content::Variable(variable) = event.content() else {
            return Err(reason("authority", "is a variable that cannot be read"));
        };
        if !self.is_of_data(event) {
            return Err(reason("authority", "says something else than was measured"));
        }
        let named = |guid, name| variable.guid == guid && variable.name.is(name);
        if named(Guid::SECURITY_DATABASE, "db") {
            return self.once("authority db");
        }
        if named(Guid::SECURITY_DATABASE, "vendor_db") {
            self.once("authority vendor_db")?;
            if self.is_left_out(&self.state.vendor_db) {
                return Ok(());
            }
            return match variable.value {
                VariableValue::Authority(signature)
                    if contains(&self.state.vendor_db, signature.owner, signature.data) =>
                {
                    Ok(())
                }
                _ => Err(Reason {
                    component: "vendor_db".to_owned(),
                    expected: key_list(&self.state.vendor_db),
                    explanation: "let an image run by a key that the policy does not allow"
                        .to_owned(),
                }),
            };
        }
        for (name, what) in [
            ("SbatLevel", "SbatLevel"),
            ("Shim", "authority Shim"),
            ("MokListRT", "MokListRT"),
        ] {
            if named(Guid::SHIM, name) {
                return self.once(what);
            }
        }
        if named(Guid::SHIM, "MokListTrusted") {
            self.once("authority MokListTrusted")?;
            return match variable.value {
                VariableValue::Boolean(_) if !variable.data.is_empty() => Ok(()),
                _ => Err(reason("MokListTrusted", "is neither on nor off")),
            };
        }
        Err(reason(
            "authority",
            "is a variable that the policy does not know",
        ))
    }

    /// PCR 8: what GRUB ran.
    fn command(&mut self, event: &Event<'l>) -> Result<(), Reason> {
        let text = text(event);
        if text.is_some_and(|text| text.starts_with("grub_cmd: ")) {
            return Ok(());
        }
        match text.filter(|text| text.starts_with(KERNEL_CMDLINE) && !text.contains('\n')) {
            Some(_) => {
                self.command_lines.push(*event);
                Ok(())
            }
            None => Err(reason(
                "GRUB",
                "is neither a command nor a kernel's command line",
            )),
        }
    }

    /// PCR 9: what GRUB read.
    fn file(&mut self, event: &Event<'l>) -> Result<(), Reason> {
        let text = text(event)
            .filter(|text| !text.contains('\n'))
            .unwrap_or_default();
        let has = |part: &str| text.contains(part);
        if has("/loader/entries") || has("/grub") {
            return Ok(());
        }
        if has("/vmlinuz") {
            self.kernels.push(*event);
            return Ok(());
        }
        if has("/initrd") || has("/initramfs") {
            self.initrds.push(*event);
            return Ok(());
        }
        Err(reason("file", "is no file that GRUB may read"))
    }

    fn mok(&mut self, event: &Event<'_>) -> Result<(), Reason> {
        match text(event) {
            Some("MokList") => self.mok_digest("MokList", event, &self.state.mok),
            Some("MokListX") => self.mok_digest("MokListX", event, &self.state.mokx),
            Some("MokListTrusted") => self.once("MokListTrusted"),
            _ => Err(reason("MOK", "is none that the policy knows")),
        }
    }

    fn mok_digest(&self, name: &str, event: &Event<'_>, allowed: &[Digests]) -> Result<(), Reason> {
        let allowed: Vec<_> = allowed
            .iter()
            .filter_map(|one| one.get(self.bank))
            .collect();
        let digest = event.digests.get(self.bank);
        if allowed.iter().any(|one| Some(**one) == digest) {
            return Ok(());
        }
        Err(Reason {
            component: name.to_owned(),
            expected: digests(allowed.into_iter()),
            explanation: "is not what the policy allows".to_owned(),
        })
    }

    /// One alternative must be right in both.
    fn firmware(&mut self) {
        let state = self.state;
        let judge = |one: &Firmware, wrong: &mut Wrongs| self.firmware_of(one, wrong);
        match closest(&state.firmware, judge) {
            Some(one) => {
                let mut wrong = std::mem::take(&mut self.wrong);
                self.firmware_of(one, &mut wrong);
                self.wrong = wrong;
            }
            None => self
                .wrong
                .push(|| Wrong::missing(0, "firmware", "no firmware is allowed")),
        }
    }

    fn firmware_of(&self, one: &Firmware, wrong: &mut Wrongs) {
        let bank = self.bank;
        let scrtm = [("firmware version", one.scrtm.get(bank))];
        compare(0, &scrtm, &self.scrtms, bank, wrong);
        let blobs = one.blobs.iter().map(|blob| ("firmware", blob.get(bank)));
        let blobs: Vec<_> = blobs.collect();
        compare(0, &blobs, &self.blobs, bank, wrong);
    }

    /// One alternative must be right in images, initrd, kernel and command line.
    fn boot(&mut self) {
        let state = self.state;
        let line = match self.command_lines.as_slice() {
            [event] => Some(CommandLine {
                event: *event,
                text: text(event).unwrap_or_default(),
                vouched: matches!(
                    event.measured(self.bank),
                    Measured::Data | Measured::Part(_)
                ),
            }),
            _ => None,
        };
        let line = line.as_ref();
        let judge = |kernel: &Kernel, wrong: &mut Wrongs| self.kernel(kernel, line, wrong);
        match closest(&state.kernels, judge) {
            Some(kernel) => {
                let mut wrong = std::mem::take(&mut self.wrong);
                self.kernel(kernel, line, &mut wrong);
                self.wrong = wrong;
            }
            None => self
                .wrong
                .push(|| Wrong::missing(4, "kernel", "no kernel is allowed")),
        }
    }

    fn kernel(&self, kernel: &Kernel, line: Option<&CommandLine<'_>>, wrong: &mut Wrongs) {
        let bank = self.bank;
        // The members of the refstate are SHA-256.
        let sha256 = |digest| (bank == HashAlgorithm::Sha256).then_some(digest);
        let mut images = vec![
            ("shim", sha256(&kernel.shim)),
            ("GRUB", sha256(&kernel.grub)),
        ];
        if self.state.secure_boot {
            images.push(("kernel", sha256(&kernel.kernel)));
            // shim and firmware may both measure it.
            if self.applications.len() == 4 {
                images.push(("kernel", sha256(&kernel.kernel)));
            }
        }
        compare(4, &images, &self.applications, bank, wrong);
        let initrd = [("initrd", sha256(&kernel.initrd))];
        compare(9, &initrd, &self.initrds, bank, wrong);
        match (self.state.secure_boot, self.kernels.as_slice()) {
            // Its image was compared above; there is one file of it.
            (true, [_]) => {}
            (true, files) => count("kernel file", 9, 1, files, bank, wrong),
            (false, files) => {
                let file = [("kernel file", sha256(&kernel.kernel))];
                compare(9, &file, files, bank, wrong);
            }
        }
        let Some(line) = line else {
            return count("command line", 8, 1, &self.command_lines, bank, wrong);
        };
        let explanation = match (kernel.cmdline.matches(line.text), line.vouched) {
            (true, true) => return,
            (true, false) => "says something else than was measured",
            (false, _) => "is not one that the policy allows",
        };
        wrong.push(|| {
            let reason = Reason {
                component: "command line".to_owned(),
                expected: vec![shown_text(kernel.cmdline.source())],
                explanation: explanation.to_owned(),
            };
            Wrong::event(&line.event, bank, reason)
        });
    }
}

/// The command line of a kernel, where the log has just one.
struct CommandLine<'l> {
    event: Event<'l>,
    text: &'l str,
    /// Is it what was measured?
    vouched: bool,
}

/// The alternative with the least that is wrong; which is only counted for that.
fn closest<A>(alternatives: &[A], judge: impl Fn(&A, &mut Wrongs)) -> Option<&A> {
    alternatives.iter().min_by_key(|one| {
        let mut wrong = Wrongs::counted();
        judge(one, &mut wrong);
        wrong.total()
    })
}

/// Events against components with their digests, in order. A component without a digest of the
/// quoted bank is compared with nothing, and so is never what it should be.
fn compare(
    pcr: u8,
    wanted: &[(&str, Option<&Digest>)],
    events: &[Event<'_>],
    bank: HashAlgorithm,
    wrong: &mut Wrongs,
) {
    for (index, event) in events.iter().enumerate() {
        let Some((component, digest)) = wanted.get(index) else {
            let reason = || reason("component", "is more than the policy allows");
            wrong.push(|| Wrong::event(event, bank, reason()));
            continue;
        };
        if digest.is_some() && event.digests.get(bank).as_ref() == *digest {
            continue;
        }
        wrong.push(|| {
            let explanation = match digest {
                Some(_) => "is not the one that the policy allows".to_owned(),
                None => format!("cannot be compared: the policy has no {bank} digest of it"),
            };
            let reason = Reason {
                component: (*component).to_owned(),
                expected: digests(digest.iter().copied()),
                explanation,
            };
            Wrong::event(event, bank, reason)
        });
    }
    for (component, digest) in wanted.iter().skip(events.len()) {
        wrong.push(|| Wrong {
            expected: digests(digest.iter().copied()),
            ..Wrong::missing(pcr, component, "is missing")
        });
    }
}

/// What is too many of `events`, or missing.
fn count(
    component: &str,
    pcr: u8,
    wanted: usize,
    events: &[Event<'_>],
    bank: HashAlgorithm,
    wrong: &mut Wrongs,
) {
    if events.len() < wanted {
        wrong.push(|| Wrong::missing(pcr, component, "is missing"));
    }
    for event in events.iter().skip(wanted) {
        let reason = || reason(component, "is there more than once");
        wrong.push(|| Wrong::event(event, bank, reason()));
    }
}

fn boot_variable(event: &Event<'_>) -> Result<(), Reason> {
    let number = |name: &str| {
        let digits = name.strip_prefix("Boot").unwrap_or_default();
        !digits.is_empty() && digits.bytes().all(|digit| digit.is_ascii_hexdigit())
    };
    match event.content() {
        Content::Variable(variable)
            if variable.guid == Guid::GLOBAL
                && variable
                    .name
                    .decode()
                    .is_some_and(|name| name == "BootOrder" || number(&name)) =>
        {
            Ok(())
        }
        _ => Err(reason(
            "boot variable",
            "is neither BootOrder nor a boot entry",
        )),
    }
}

fn lists<'l>(name: &str, variable: &Variable<'l>) -> Result<SignatureLists<'l>, Reason> {
    match variable.value {
        VariableValue::SignatureLists(lists) if !variable.data.is_empty() => Ok(lists),
        _ => Err(reason(name, "holds no keys that can be read")),
    }
}

fn contains(keys: &[Key], owner: Guid, data: &[u8]) -> bool {
    keys.iter()
        .any(|key| key.data == data && key.owner == owner)
}

/// The text of an EV_IPL, without a final NUL.
fn text<'l>(event: &Event<'l>) -> Option<&'l str> {
    let bytes = event.data.strip_suffix(&[0]).unwrap_or(event.data);
    std::str::from_utf8(bytes).ok()
}

fn key_list(keys: &[Key]) -> Vec<String> {
    keys.iter().take(16).map(Key::describe).collect()
}

fn reason(component: &str, explanation: &str) -> Reason {
    Reason {
        component: component.to_owned(),
        expected: Vec::new(),
        explanation: explanation.to_owned(),
    }
}
