use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap, HashSet};

use super::Place;
use super::boot_policy::{Beyond, Wrong, describe, shown_text};
use super::boot_refstate::Reason;
use crate::eventlog::content::{
    Content, Guid, IplKind, Measured, Signature, SignatureLists, Variable, VariableValue,
};
use crate::eventlog::{Event, EventLog, EventType, Measurement, PcrMismatch, ReplayedLog};
use crate::policy::rules::{
    Allowed, BootRules, Called, Component, Key, SecureBoot, generation, is_action, is_section_name,
    subject,
};
use crate::tpm::{Digest, HashAlgorithm, PcrMask};

/// Most allowed values in a finding.
const SHOWN: usize = 16;
/// The PCR that holds a unified kernel image and the phases of the boot.
const PHASES_PCR: u8 = 11;
/// Name of separators where the order of events is given.
const SEPARATOR: &str = "separator";
/// Name of texts that every firmware measures.
const ACTION: &str = "action";
/// Name of the events that tell of a section of a unified kernel image, before its content.
const SECTION_NAME: &str = "section-name";

/// Judges the events that the quote vouches for: each must be accounted for by a rule, and each
/// rule by its events. So must what user space measured.
pub(super) fn judge(
    rules: &BootRules,
    log: &EventLog<'_>,
    bank: HashAlgorithm,
    beyond: &Beyond<'_>,
) -> Vec<Wrong> {
    let explained = match beyond.phase {
        Some(_) => beyond.explained.with(PHASES_PCR),
        None => beyond.explained,
    };
    let scope = scope(rules, explained);
    let events = || {
        log.unverified_events().filter(move |event| {
            let pcr = u8::try_from(event.pcr).unwrap_or(u8::MAX);
            let extends = event.kind != EventType::EV_NO_ACTION
                || (beyond.no_action.contains(pcr) && event.extends(bank));
            extends && scope.contains(pcr)
        })
    };
    let mut judge = Judge {
        rules,
        bank,
        authorities: match rules
            .components
            .iter()
            .any(|c| !c.allowed.signers.is_empty())
        {
            true => events()
                .filter_map(|event| authority(&event, bank))
                .collect(),
            false => Vec::new(),
        },
        db: events()
            .filter_map(|event| database(&event, bank))
            .flat_map(|lists| lists.signatures().map(|(_, key)| key.data))
            .collect(),
        counts: vec![0; rules.components.len()],
        seen: BTreeMap::new(),
        secure_boot: Vec::new(),
        section_names: Vec::new(),
        wrong: Vec::new(),
    };
    for event in events() {
        judge.event(event);
    }
    let mut phase = beyond.phase;
    for (pcr, measurement) in &beyond.measurements {
        if scope.contains(*pcr) {
            phase = judge.measurement(*pcr, measurement, phase);
        }
    }
    let mut wrong = judge.finish(scope);
    if scope.contains(PHASES_PCR) {
        wrong.extend(wrong_phase(rules, phase));
    }
    wrong
}

/// The last phase that PCR 11 holds, where the phases of the policy's chain up to it are all that
/// the firmware's log lacks: who knows what is measured need not be told.
pub(super) fn phase<'r>(
    rules: &'r BootRules,
    mismatch: &PcrMismatch,
    log: &ReplayedLog<'_>,
) -> Option<&'r str> {
    let phases = rules.phases.as_ref()?;
    if mismatch.pcr != PHASES_PCR {
        return None;
    }
    let bank = log.replayed().bank();
    let mut value = *log.replayed().get(PHASES_PCR)?;
    let mut chain = phases.chain.iter();
    let last = chain.find(|phase| {
        let digest = bank.digest(&[phase.as_bytes()]);
        value = value.extend(bank, digest.as_bytes());
        value == mismatch.quoted
    });
    last.map(String::as_str)
}

/// A phase in which the node may not be.
fn wrong_phase(rules: &BootRules, phase: Option<&str>) -> Option<Wrong> {
    let phases = rules.phases.as_ref()?;
    if phase.is_some_and(|phase| phases.last.iter().any(|last| last == phase)) {
        return None;
    }
    let mut wrong = Wrong::missing(
        PHASES_PCR,
        "the phase of the boot",
        "is not one that the node may be in",
    );
    wrong.expected = phases.last.iter().map(|last| shown_text(last)).collect();
    wrong.got = Some(phase.map_or_else(|| "none was measured".to_owned(), shown_text));
    Some(wrong)
}

/// PCRs whose events are judged. Those that the log does not explain have findings already.
fn scope(rules: &BootRules, explained: PcrMask) -> PcrMask {
    let all = explained.iter();
    all.filter(|pcr| !rules.others || rules.listed >> pcr & 1 == 1)
        .fold(PcrMask::default(), PcrMask::with)
}

struct Judge<'r, 'l> {
    rules: &'r BootRules,
    bank: HashAlgorithm,
    /// What let images run, if a component asks who did.
    authorities: Vec<Signature<'l>>,
    /// Certificates and digests of the db that was measured.
    db: HashSet<&'l [u8]>,
    /// Events of each component.
    counts: Vec<u32>,
    /// Events of each PCR, with the names that account for them.
    seen: BTreeMap<u8, Vec<Seen<'r, 'l>>>,
    /// Variables of Secure Boot that were judged.
    secure_boot: Vec<&'static str>,
    /// Digests of the names of sections: an image has each once at most.
    section_names: Vec<Digest>,
    wrong: Vec<Wrong>,
}

struct Seen<'r, 'l> {
    event: Event<'l>,
    /// `None`: nothing accounts for it.
    name: Option<Cow<'r, str>>,
}

impl<'r, 'l> Judge<'r, 'l> {
    fn event(&mut self, event: Event<'l>) {
        let name = self.account(&event);
        let pcr = u8::try_from(event.pcr).unwrap_or(u8::MAX);
        self.seen.entry(pcr).or_default().push(Seen { event, name });
    }

    /// The name of what accounts for an event.
    fn account(&mut self, event: &Event<'l>) -> Option<Cow<'r, str>> {
        // What has no digest of the quoted bank was measured into no quoted PCR.
        let digest = event.digests.get(self.bank)?;
        if event.pcr < 8 && event.kind == EventType::EV_SEPARATOR && self.is_separator(event) {
            return Some(SEPARATOR.into());
        }
        if event.kind == EventType::EV_EFI_ACTION && is_action(event, self.bank) {
            return Some(ACTION.into());
        }
        if event.pcr == 7
            && let Some(secure_boot) = &self.rules.secure_boot
            && let Some(name) = self.variable(secure_boot, event)
        {
            return Some(name.into());
        }
        if is_section_name(event, self.bank) && !self.section_names.contains(&digest) {
            self.section_names.push(digest);
            return Some(SECTION_NAME.into());
        }
        let measured = Words::of(event, self.bank);
        let rules = self.rules;
        for (component, count) in rules.components.iter().zip(&mut self.counts) {
            if *count < component.max
                && measured.are(component, event)
                && allows(&component.allowed, digest, &measured, &self.authorities)
            {
                *count += 1;
                return Some(component.name.as_str().into());
            }
        }
        None
    }

    /// Accounts for what user space measured; the phase after it.
    fn measurement<'p>(
        &mut self,
        pcr: u8,
        measurement: &'p Measurement,
        phase: Option<&'p str>,
    ) -> Option<&'p str> {
        let digest = measurement.digest(self.bank);
        let vouched = measurement.vouches_for_text(self.bank);
        let text = measurement.text.as_deref().filter(|_| vouched);
        if let (Some(phases), Some(text), PHASES_PCR) = (&self.rules.phases, text, pcr) {
            let chain = &phases.chain;
            let at = phase.and_then(|phase| chain.iter().position(|one| one == phase));
            if chain
                .get(at.map_or(0, |at| at + 1))
                .is_some_and(|next| next == text)
            {
                return Some(text);
            }
        }
        let words = Words {
            called: text.map(Cow::Borrowed),
            ipl: None,
            measured: Measured::Data.into(),
            event: None,
        };
        let components = self.rules.components.iter().zip(&mut self.counts);
        for (component, count) in components {
            let fits = component.pcrs >> pcr & 1 == 1
                && component.events.is_empty()
                && component.called.is_none()
                && *count < component.max;
            let allowed = digest.is_some_and(|digest| {
                allows(&component.allowed, digest, &words, &self.authorities)
            });
            if fits && allowed {
                *count += 1;
                return phase;
            }
        }
        let explanation = "is something that nobody allowed";
        let wrong = Wrong::measurement(pcr, measurement, self.bank, explanation);
        self.wrong.push(wrong);
        phase
    }

    fn is_separator(&self, event: &Event<'_>) -> bool {
        matches!(
            event.believed(self.bank),
            Some(Content::Separator(0 | u32::MAX))
        )
    }

    /// Judges a variable of Secure Boot; `None` for one that the table says nothing of.
    fn variable(&mut self, rules: &SecureBoot, event: &Event<'l>) -> Option<&'static str> {
        let Some(Content::Variable(variable)) = event.believed(self.bank) else {
            return None;
        };
        match event.kind {
            EventType::EV_EFI_VARIABLE_DRIVER_CONFIG => self.state(rules, &variable, event),
            EventType::EV_EFI_VARIABLE_AUTHORITY => self.authority(rules, &variable, event),
            _ => None,
        }
    }

    fn state(
        &mut self,
        rules: &SecureBoot,
        variable: &Variable<'l>,
        event: &Event<'l>,
    ) -> Option<&'static str> {
        let named = |guid, name| variable.guid == guid && variable.name.is(name);
        if named(Guid::GLOBAL, "SecureBoot") {
            self.secure_boot.push("SecureBoot");
            let word = |on| if on { "on" } else { "off" };
            if variable.value != VariableValue::Boolean(rules.enabled) {
                let expected = vec![word(rules.enabled).to_owned()];
                self.wrong(
                    event,
                    "Secure Boot",
                    expected,
                    "is not in the state it has to be in",
                );
            }
            return Some("SecureBoot");
        }
        let name = [
            (Guid::GLOBAL, "PK"),
            (Guid::GLOBAL, "KEK"),
            (Guid::SECURITY_DATABASE, "db"),
            (Guid::SECURITY_DATABASE, "dbx"),
        ]
        .into_iter()
        .find(|(guid, name)| named(*guid, name))
        .map(|(_, name)| name)?;
        // What cannot be read may be allowed by its digest.
        let VariableValue::SignatureLists(lists) = variable.value else {
            return None;
        };
        self.secure_boot.push(name);
        let allowed = rules.allowed.iter().find(|(allowed, _)| *allowed == name);
        if let Some((_, allowed)) = allowed {
            let stranger = lists
                .signatures()
                .find(|(kind, key)| !allowed.iter().any(|one| one.is(Some(*kind), key)));
            if let Some((_, key)) = stranger {
                let explanation = format!("has a key that is not allowed: {}", which(&key));
                self.wrong(event, name, key_list(allowed), &explanation);
            }
        }
        if name == "dbx" && !rules.dbx_at_least.is_empty() {
            let there: Vec<_> = lists.signatures().collect();
            let missing: Vec<_> = missing(&rules.dbx_at_least, &there);
            if !missing.is_empty() {
                let explanation = format!("lacks {} of the revocations", missing.len());
                let expected = missing
                    .iter()
                    .take(SHOWN)
                    .map(|key| key.describe())
                    .collect();
                self.wrong(event, name, expected, &explanation);
            }
        }
        Some(name)
    }

    fn authority(
        &mut self,
        rules: &SecureBoot,
        variable: &Variable<'l>,
        event: &Event<'l>,
    ) -> Option<&'static str> {
        match variable.value {
            VariableValue::Sbat(text) => {
                self.secure_boot.push("SbatLevel");
                let text = text.decode().unwrap_or_default();
                let expected: Vec<_> = rules
                    .sbat
                    .iter()
                    .filter(|(component, least)| {
                        generation(&text, component).is_none_or(|got| got < **least)
                    })
                    .map(|(component, least)| format!("{component} {least} or later"))
                    .collect();
                if !expected.is_empty() {
                    self.wrong(event, "SbatLevel", expected, "is older than it has to be");
                }
                Some("SbatLevel")
            }
            VariableValue::Authority(signature) => {
                let components = self.rules.components.iter();
                let signers = components.flat_map(|component| &component.allowed.signers);
                let allowed: Vec<_> = rules.authorities.iter().flatten().chain(signers).collect();
                let open = rules.authorities.is_none() && allowed.is_empty();
                let of_shim = variable.guid == Guid::SHIM || variable.name.is("vendor_db");
                let is_allowed = match open {
                    false => allowed.iter().any(|key| key.is(None, &signature)),
                    // shim's own keys are in no variable that is measured as a whole.
                    true if of_shim => subject(signature.data).is_some(),
                    true => self.db.contains(signature.data),
                };
                if !is_allowed {
                    let expected = allowed
                        .iter()
                        .take(SHOWN)
                        .map(|key| key.describe())
                        .collect();
                    let explanation = format!(
                        "let an image run by a key that is not allowed: {}",
                        which(&signature)
                    );
                    self.wrong(event, "Secure Boot", expected, &explanation);
                }
                Some("authority")
            }
            _ => None,
        }
    }

    fn wrong(&mut self, event: &Event<'l>, component: &str, expected: Vec<String>, reason: &str) {
        let reason = Reason {
            component: component.to_owned(),
            expected,
            explanation: reason.to_owned(),
        };
        self.wrong.push(Wrong::event(event, self.bank, reason));
    }

    /// What no rule accounts for, what is missing, and what is not in order.
    fn finish(mut self, scope: PcrMask) -> Vec<Wrong> {
        let mut named = Vec::new();
        for (pcr, seen) in std::mem::take(&mut self.seen) {
            let order = self.rules.order.get(&pcr).map(Vec::as_slice);
            let before = self.wrong.len();
            for (position, one) in seen.iter().enumerate() {
                if one.name.is_some() {
                    continue;
                }
                let wanted = order.and_then(|order| order.get(position));
                let wanted = match wanted {
                    // Only what is there nowhere can be what was expected here.
                    Some(name) => self.unmet(pcr, &one.event).find(|c| c.name == *name),
                    None => None,
                }
                .or_else(|| self.unmet(pcr, &one.event).next());
                named.extend(wanted.map(|component| (pcr, component.name.as_str())));
                let wrong = self.unaccounted(&one.event, wanted);
                self.wrong.push(wrong);
            }
            self.wrong.extend(name_alone(pcr, &seen, self.bank));
            if let Some(order) = order
                && self.wrong.len() == before
            {
                self.wrong
                    .extend(out_of_order(pcr, order, &seen, self.bank));
            }
        }
        for pcr in scope.iter() {
            self.missing(pcr, &named);
        }
        if let Some(rules) = &self.rules.secure_boot
            && scope.contains(7)
        {
            let judged = |name: &str| rules.allowed.iter().any(|(allowed, _)| *allowed == name);
            let wanted = [
                ("SecureBoot", true),
                ("PK", judged("PK")),
                ("KEK", judged("KEK")),
                ("db", judged("db")),
                ("dbx", judged("dbx") || !rules.dbx_at_least.is_empty()),
                ("SbatLevel", !rules.sbat.is_empty()),
            ];
            for (name, wanted) in wanted {
                if wanted && !self.secure_boot.contains(&name) {
                    self.wrong.push(Wrong::missing(7, name, "was not measured"));
                }
            }
        }
        self.wrong
    }

    /// Components that have less events than they need, and of whose kind the event is.
    fn unmet(&self, pcr: u8, event: &Event<'l>) -> impl Iterator<Item = &'r Component> {
        let measured = Words::of(event, self.bank);
        let components = self.rules.components.iter().zip(&self.counts);
        components
            .filter(|(component, count)| **count < component.min)
            .map(|(component, _)| component)
            .filter(move |component| {
                component.pcrs >> pcr & 1 == 1 && measured.are(component, event)
            })
            .collect::<Vec<_>>()
            .into_iter()
    }

    fn unaccounted(&self, event: &Event<'l>, wanted: Option<&Component>) -> Wrong {
        let reason = match wanted {
            Some(component) => Reason {
                component: component.name.clone(),
                expected: allowed_list(component),
                explanation: format!(
                    "is not what it has to be: event {} is the first that no rule accounts for \
                     in its place",
                    event.index
                ),
            },
            None => Reason {
                component: format!("event {}", event.index),
                expected: Vec::new(),
                explanation: "is an event that nobody allowed".to_owned(),
            },
        };
        Wrong::event(event, self.bank, reason)
    }

    /// Components of a PCR that were not there; `named` were told of with another event already.
    fn missing(&mut self, pcr: u8, named: &[(u8, &str)]) {
        let components = self.rules.components.iter().zip(&self.counts);
        for (component, count) in components {
            // One that may be in several PCRs is missing in the first of them.
            let first = component.pcrs.trailing_zeros() == u32::from(pcr);
            let told = named
                .iter()
                .any(|(pcr, name)| component.pcrs >> pcr & 1 == 1 && *name == component.name);
            if !first || *count >= component.min || told {
                continue;
            }
            let explanation = match count {
                0 => "was not measured".to_owned(),
                count => format!("was measured {count} times instead of {}", component.min),
            };
            let mut wrong = Wrong::missing(pcr, &component.name, &explanation);
            wrong.expected = allowed_list(component);
            self.wrong.push(wrong);
        }
    }
}

/// A name of a section that its content does not follow.
fn name_alone(pcr: u8, seen: &[Seen<'_, '_>], bank: HashAlgorithm) -> Option<Wrong> {
    let is_name = |one: &Seen<'_, '_>| one.name.as_deref() == Some(SECTION_NAME);
    let mut rest = seen.iter().enumerate();
    let (_, alone) = rest.find(|(at, one)| {
        pcr == PHASES_PCR && is_name(one) && seen.get(at + 1).is_none_or(is_name)
    })?;
    let reason = Reason {
        component: SECTION_NAME.to_owned(),
        expected: Vec::new(),
        explanation: "is not followed by the content of its section".to_owned(),
    };
    Some(Wrong::event(&alone.event, bank, reason))
}

/// The first event that is not the one whose turn it is.
fn out_of_order(
    pcr: u8,
    order: &[String],
    seen: &[Seen<'_, '_>],
    bank: HashAlgorithm,
) -> Option<Wrong> {
    let names = seen
        .iter()
        .map(|one| one.name.as_deref().unwrap_or_default());
    let at = names.zip(order).position(|(got, wanted)| got != *wanted);
    let at = at.or_else(|| {
        let shorter = seen.len().min(order.len());
        (seen.len() != order.len()).then_some(shorter)
    })?;
    let wanted = order.get(at).map(|name| shown_text(name));
    match seen.get(at) {
        Some(one) => Some(Wrong {
            place: Place::BootEvent {
                event: one.event.index,
                pcr,
            },
            component: one.name.as_deref().unwrap_or_default().to_owned(),
            explanation: match &wanted {
                Some(wanted) => format!("comes where {wanted} has to come first"),
                None => "comes after the last event that is allowed".to_owned(),
            },
            expected: wanted.into_iter().collect(),
            got: Some(describe(&one.event, bank)),
        }),
        None => Some(Wrong {
            expected: wanted.iter().cloned().collect(),
            ..Wrong::missing(pcr, &wanted.unwrap_or_default(), "was not measured")
        }),
    }
}

/// What an event says of itself in words.
struct Words<'l> {
    /// All of it, which nothing vouches for.
    called: Option<Cow<'l, str>>,
    ipl: Option<IplKind>,
    /// Which part of it was measured, once somebody asked: telling costs a hash of the data.
    measured: OnceCell<Measured<'l>>,
    event: Option<(Event<'l>, HashAlgorithm)>,
}

impl<'l> Words<'l> {
    fn of(event: &Event<'l>, bank: HashAlgorithm) -> Self {
        // Texts are in these alone.
        let (ipl, text) = match (event.kind, event.content()) {
            (EventType::EV_IPL, Content::Ipl(ipl)) => (Some(ipl.kind), Some(ipl.argument())),
            (EventType::EV_EVENT_TAG, Content::Tag(tag)) => (None, tag.text),
            (EventType::EV_IPL | EventType::EV_EVENT_TAG, _) => (None, None),
            (_, Content::Text(text)) => (None, Some(text)),
            _ => (None, None),
        };
        Self {
            called: text.and_then(|text| text.decode()),
            ipl,
            measured: OnceCell::new(),
            event: Some((*event, bank)),
        }
    }

    fn measured(&self) -> Measured<'l> {
        *self.measured.get_or_init(|| match &self.event {
            Some((event, bank)) => event.measured(*bank),
            None => Measured::NoDigest,
        })
    }

    /// The text, if the digest vouches for it.
    fn text(&self) -> Option<&str> {
        let text = self.called.as_deref()?;
        matches!(self.measured(), Measured::Data | Measured::Part(_)).then_some(text)
    }

    fn are_command_line(&self) -> bool {
        matches!(
            self.ipl,
            Some(IplKind::KernelCommandLine | IplKind::CommandLine)
        )
    }

    /// Is it an event of this component's kind?
    fn are(&self, component: &Component, event: &Event<'_>) -> bool {
        component.pcrs.checked_shr(event.pcr).unwrap_or(0) & 1 == 1
            && (component.events.is_empty() || component.events.contains(&event.kind))
            && match &component.called {
                None => true,
                Some(Called::CommandLine) => self.are_command_line(),
                Some(Called::Name(name)) => self.called.as_deref() == Some(name),
            }
    }
}

fn allows(
    allowed: &Allowed,
    digest: Digest,
    words: &Words<'_>,
    authorities: &[Signature<'_>],
) -> bool {
    let signed = |signer: &Key| authorities.iter().any(|one| signer.is(None, one));
    allowed.any
        || allowed.digests.contains(&digest)
        || allowed
            .text
            .iter()
            .any(|pattern| words.text().is_some_and(|text| pattern.matches(text)))
        || allowed.signers.iter().any(signed)
}

/// The key that let an image run, if the event tells of one.
fn authority<'l>(event: &Event<'l>, bank: HashAlgorithm) -> Option<Signature<'l>> {
    if event.pcr != 7 || event.kind != EventType::EV_EFI_VARIABLE_AUTHORITY {
        return None;
    }
    match event.believed(bank)? {
        Content::Variable(Variable {
            value: VariableValue::Authority(signature),
            ..
        }) => Some(signature),
        _ => None,
    }
}

/// The keys of db, if the event tells of them.
fn database<'l>(event: &Event<'l>, bank: HashAlgorithm) -> Option<SignatureLists<'l>> {
    if event.pcr != 7 || event.kind != EventType::EV_EFI_VARIABLE_DRIVER_CONFIG {
        return None;
    }
    match event.believed(bank)? {
        Content::Variable(Variable {
            guid: Guid::SECURITY_DATABASE,
            name,
            value: VariableValue::SignatureLists(lists),
            ..
        }) if name.is("db") => Some(lists),
        _ => None,
    }
}

/// Keys that are not there. Most are digests, of which a dbx has hundreds: these are looked up,
/// unless all stand in the order of the policy, as in the dbx that it was made of.
fn missing<'k>(wanted: &'k [Key], there: &[(Guid, Signature<'_>)]) -> Vec<&'k Key> {
    let mut rest = there.iter();
    let in_order = |key: &Key| rest.any(|(kind, one)| key.is(Some(*kind), one));
    if wanted.iter().all(in_order) {
        return Vec::new();
    }
    let digests: HashMap<_, _> = there.iter().map(|entry| (entry.1.data, entry)).collect();
    let is_there = |key: &&Key| {
        let found = key
            .digest()
            .and_then(|digest| digests.get(digest.as_bytes()));
        found.is_some_and(|(kind, one)| key.is(Some(*kind), one))
            || there.iter().any(|(kind, one)| key.is(Some(*kind), one))
    };
    wanted.iter().filter(|key| !is_there(key)).collect()
}

fn allowed_list(component: &Component) -> Vec<String> {
    let allowed = &component.allowed;
    let mut digests: Vec<_> = allowed.digests.iter().map(Digest::to_string).collect();
    digests.sort_unstable();
    let text = allowed
        .text
        .iter()
        .map(|pattern| shown_text(pattern.source()));
    let signers = allowed
        .signers
        .iter()
        .map(|key| format!("signed by {}", key.describe()));
    digests
        .into_iter()
        .chain(text)
        .chain(signers)
        .take(SHOWN)
        .collect()
}

fn key_list(keys: &[Key]) -> Vec<String> {
    keys.iter().take(SHOWN).map(Key::describe).collect()
}

/// Which key it is, for people.
fn which(key: &Signature<'_>) -> String {
    match subject(key.data) {
        Some(subject) => shown_text(&subject),
        None => format!(
            "SHA-256 {}, owner {}",
            HashAlgorithm::Sha256.digest(&[key.data]),
            key.owner
        ),
    }
}
