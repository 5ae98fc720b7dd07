use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashSet};

use super::Place;
use super::boot_policy::{Beyond, Wrong, Wrongs, describe, shown_text};
use super::boot_refstate::Reason;
use crate::eventlog::content::{
    Content, Guid, IplKind, Measured, Signature, SignatureLists, Variable, VariableValue,
};
use crate::eventlog::{Event, EventLog, EventType, Measurement, PcrMismatch, ReplayedLog};
use crate::policy::keys::{Key, Keys, ShownKey, subject};
use crate::policy::rules::{
    BootRules, Called, Component, SecureBoot, generations, is_action, is_section_name,
};
use crate::tpm::{Digest, HashAlgorithm, PcrMask};

/// Most allowed values in a finding.
const SHOWN: usize = 16;
/// Most bytes of texts that are compared with patterns, for each pattern; the texts of a boot have
/// some kilobytes, and a policy a few patterns.
const MAX_TEXTS: usize = 64 << 20;
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
) -> Wrongs {
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
        signed: signed(rules, || {
            events().filter_map(|event| authority(&event, bank))
        }),
        db: match rules.signers.is_empty() && is_open(rules) {
            true => events()
                .filter_map(|event| database(&event, bank))
                .flat_map(|lists| lists.signatures().map(|(_, key)| key.data))
                .collect(),
            false => HashSet::new(),
        },
        counts: vec![0; rules.components.len()],
        seen: BTreeMap::new(),
        secure_boot: Vec::new(),
        section_names: Vec::new(),
        texts: Some(MAX_TEXTS),
        wrong: Wrongs::default(),
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
    if scope.contains(PHASES_PCR)
        && let Some(wrong_phase) = wrong_phase(rules, phase)
    {
        wrong.push(|| wrong_phase);
    }
    wrong
}

/// May whatever the db lets run run?
fn is_open(rules: &BootRules) -> bool {
    let secure_boot = rules.secure_boot.as_ref();
    secure_boot.is_some_and(|secure_boot| secure_boot.authorities.is_none())
}

/// Which components name a key that let an image run.
fn signed<'l, A: Iterator<Item = Signature<'l>>>(
    rules: &BootRules,
    authorities: impl Fn() -> A,
) -> Vec<bool> {
    let mut signed = vec![false; rules.components.len()];
    if rules.signers.is_empty() {
        return signed;
    }
    let mut known = HashSet::new();
    for authority in authorities().filter(|one| known.insert((one.owner, one.data))) {
        for place in rules.signers.places(None, &ShownKey::new(authority)) {
            let component = rules.signer_of.get(place);
            if let Some(signed) = component.and_then(|component| signed.get_mut(*component)) {
                *signed = true;
            }
        }
    }
    signed
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
    /// Of each component: has it a signer that let an image run?
    signed: Vec<bool>,
    /// Certificates and digests of the db that was measured, where they decide who may let images
    /// run.
    db: HashSet<&'l [u8]>,
    /// Events of each component.
    counts: Vec<u32>,
    /// Events of each PCR, with the names that account for them.
    seen: BTreeMap<u8, Vec<Seen<'r, 'l>>>,
    /// Variables of Secure Boot that were judged.
    secure_boot: Vec<&'static str>,
    /// Digests of the names of sections: an image has each once at most.
    section_names: Vec<Digest>,
    /// Bytes of texts that may still be compared with a pattern; `None`: there were too many.
    texts: Option<usize>,
    wrong: Wrongs,
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
        let words = Words::of(event, self.bank);
        let fits = |component: &Component| words.are(component, event);
        let component = self.component(digest, event.pcr, &words, fits)?;
        Some(component.name.as_str().into())
    }

    /// The first component that `fits` and allows what was measured once more.
    fn component(
        &mut self,
        digest: Digest,
        pcr: u32,
        words: &Words<'_, '_>,
        fits: impl Fn(&Component) -> bool,
    ) -> Option<&'r Component> {
        let rules = self.rules;
        let counts = &self.counts;
        let has_room = |place: usize, component: &Component| {
            counts
                .get(place)
                .is_some_and(|count| *count < component.max)
        };
        let by_digest = rules
            .with_digest(&digest)
            .find(|(place, component)| has_room(*place, component) && fits(component));
        let before = by_digest.map_or(usize::MAX, |(place, _)| place);
        let by_more = rules
            .with_more(pcr)
            .take_while(|(place, _)| *place < before)
            .filter(|(place, component)| has_room(*place, component) && fits(component))
            .find(|(place, component)| {
                component.allowed.any
                    || self.signed.get(*place) == Some(&true)
                    || matches(component, words, &mut self.texts)
            });
        let (place, component) = by_more.or(by_digest)?;
        if let Some(count) = self.counts.get_mut(place) {
            *count += 1;
        }
        Some(component)
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
        let words = Words::Measurement(text);
        let fits = |component: &Component| {
            component.pcrs >> pcr & 1 == 1
                && component.events.is_empty()
                && component.called.is_none()
        };
        let component =
            digest.and_then(|digest| self.component(digest, u32::from(pcr), &words, fits));
        if component.is_none() {
            let explanation = "is something that nobody allowed";
            let bank = self.bank;
            self.wrong
                .push(|| Wrong::measurement(pcr, measurement, bank, explanation));
        }
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
        let judge = match event.kind {
            EventType::EV_EFI_VARIABLE_DRIVER_CONFIG => Self::state,
            EventType::EV_EFI_VARIABLE_AUTHORITY => Self::authority,
            _ => return None,
        };
        match event.believed(self.bank)? {
            Content::Variable(variable) => judge(self, rules, &variable, event),
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
                self.wrong(event, "Secure Boot", || {
                    let expected = vec![word(rules.enabled).to_owned()];
                    (expected, "is not in the state it has to be in".to_owned())
                });
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
                .find(|(kind, key)| !allowed.have(Some(*kind), &ShownKey::new(*key)));
            if let Some((_, key)) = stranger {
                self.wrong(event, name, || {
                    let reason = format!("has a key that is not allowed: {}", which(&key));
                    (key_list(allowed.list()), reason)
                });
            }
        }
        if name == "dbx" && !rules.dbx_at_least.is_empty() {
            let missing = rules.dbx_at_least.missing(&lists);
            if !missing.is_empty() {
                self.wrong(event, name, || {
                    let reason = format!("lacks {} of the revocations", missing.len());
                    (key_list(missing), reason)
                });
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
                let there = generations(&text);
                let mut old = rules
                    .sbat
                    .iter()
                    .filter(|(component, least)| {
                        there.get(component.as_str()).is_none_or(|got| got < *least)
                    })
                    .map(|(component, least)| format!("{component} {least} or later"))
                    .peekable();
                if old.peek().is_some() {
                    self.wrong(event, "SbatLevel", || {
                        let expected = old.take(SHOWN).collect();
                        (expected, "is older than it has to be".to_owned())
                    });
                }
                Some("SbatLevel")
            }
            VariableValue::Authority(signature) => {
                let signers = &self.rules.signers;
                let of_shim = variable.guid == Guid::SHIM || variable.name.is("vendor_db");
                let shown = ShownKey::new(signature);
                let is_allowed = match &rules.authorities {
                    // shim's own keys are in no variable that is measured as a whole.
                    None if signers.is_empty() && of_shim => subject(signature.data).is_some(),
                    None if signers.is_empty() => self.db.contains(signature.data),
                    authorities => {
                        let listed = authorities.as_ref();
                        listed.is_some_and(|keys| keys.have(None, &shown))
                            || signers.have(None, &shown)
                    }
                };
                if !is_allowed {
                    self.wrong(event, "Secure Boot", || {
                        let listed = rules.authorities.iter().flat_map(Keys::list);
                        let reason = format!(
                            "let an image run by a key that is not allowed: {}",
                            which(&signature)
                        );
                        (key_list(listed.chain(signers.list())), reason)
                    });
                }
                Some("authority")
            }
            _ => None,
        }
    }

    /// `told` is what was expected, and why it is wrong.
    fn wrong(
        &mut self,
        event: &Event<'l>,
        component: &str,
        told: impl FnOnce() -> (Vec<String>, String),
    ) {
        let bank = self.bank;
        self.wrong.push(|| {
            let (expected, explanation) = told();
            let reason = Reason {
                component: component.to_owned(),
                expected,
                explanation,
            };
            Wrong::event(event, bank, reason)
        });
    }

    /// What no rule accounts for, what is missing, and what is not in order.
    fn finish(mut self, scope: PcrMask) -> Wrongs {
        if self.texts.is_none() {
            self.wrong.push(|| Wrong {
                place: Place::BootLog,
                component: "the boot log".to_owned(),
                expected: vec![format!("at most {MAX_TEXTS} bytes")],
                got: None,
                explanation: "has more text than is compared with the policy's patterns".to_owned(),
            });
        }
        let mut named = Vec::new();
        for (pcr, seen) in std::mem::take(&mut self.seen) {
            let order = self.rules.order.get(&pcr).map(Vec::as_slice);
            let before = self.wrong.total();
            for (position, one) in seen.iter().enumerate() {
                if one.name.is_some() {
                    continue;
                }
                // What is not told need not be compared with what was expected.
                if !self.wrong.has_room() {
                    self.wrong.count();
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
                self.wrong.push(|| wrong);
            }
            if let Some(alone) = name_alone(pcr, &seen, self.bank) {
                self.wrong.push(|| alone);
            }
            if let Some(order) = order
                && self.wrong.total() == before
                && let Some(wrong) = out_of_order(pcr, order, &seen, self.bank)
            {
                self.wrong.push(|| wrong);
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
                    self.wrong
                        .push(|| Wrong::missing(7, name, "was not measured"));
                }
            }
        }
        self.wrong
    }

    /// Components that have less events than they need, and of whose kind the event is.
    fn unmet(&self, pcr: u8, event: &Event<'l>) -> impl Iterator<Item = &'r Component> {
        let words = Words::of(event, self.bank);
        let components = self.rules.components.iter().zip(&self.counts);
        components
            .filter(|(component, count)| **count < component.min)
            .map(|(component, _)| component)
            .filter(move |component| component.pcrs >> pcr & 1 == 1 && words.are(component, event))
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
            if !first || *count >= component.min {
                continue;
            }
            let told = named
                .iter()
                .any(|(pcr, name)| component.pcrs >> pcr & 1 == 1 && *name == component.name);
            if told {
                continue;
            }
            self.wrong.push(|| {
                let explanation = match count {
                    0 => "was not measured".to_owned(),
                    count => format!("was measured {count} times instead of {}", component.min),
                };
                Wrong {
                    expected: allowed_list(component),
                    ..Wrong::missing(pcr, &component.name, &explanation)
                }
            });
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

/// What was measured says of itself in words. Most rules do not ask, and what they ask is made once.
enum Words<'e, 'l> {
    Event {
        event: &'e Event<'l>,
        bank: HashAlgorithm,
        said: OnceCell<Said<'l>>,
        /// Does the digest vouch for what was said?
        vouched: OnceCell<bool>,
    },
    /// User space's, of which the digest vouches for the text.
    Measurement(Option<&'l str>),
}

struct Said<'l> {
    text: Option<Cow<'l, str>>,
    ipl: Option<IplKind>,
}

impl<'e, 'l> Words<'e, 'l> {
    fn of(event: &'e Event<'l>, bank: HashAlgorithm) -> Self {
        Self::Event {
            event,
            bank,
            said: OnceCell::new(),
            vouched: OnceCell::new(),
        }
    }

    /// The text, if the digest vouches for it.
    fn text(&self) -> Option<&str> {
        match self {
            Self::Measurement(text) => *text,
            Self::Event {
                event,
                bank,
                said,
                vouched,
            } => {
                let text = said.get_or_init(|| Said::of(event)).text.as_deref()?;
                let vouches =
                    || matches!(event.measured(*bank), Measured::Data | Measured::Part(_));
                vouched.get_or_init(vouches).then_some(text)
            }
        }
    }

    /// Is it called so? Nothing vouches for that.
    fn are_called(&self, called: &Called) -> bool {
        let Self::Event { event, said, .. } = self else {
            return false;
        };
        let said = said.get_or_init(|| Said::of(event));
        match called {
            Called::CommandLine => matches!(
                said.ipl,
                Some(IplKind::KernelCommandLine | IplKind::CommandLine)
            ),
            Called::Name(name) => said.text.as_deref() == Some(name),
        }
    }

    /// Is it an event of this component's kind?
    fn are(&self, component: &Component, event: &Event<'_>) -> bool {
        component.pcrs.checked_shr(event.pcr).unwrap_or(0) & 1 == 1
            && (component.events.is_empty() || component.events.contains(&event.kind))
            && component
                .called
                .as_ref()
                .is_none_or(|called| self.are_called(called))
    }
}

impl<'l> Said<'l> {
    fn of(event: &Event<'l>) -> Self {
        // Texts are in these alone.
        let (ipl, text) = match (event.kind, event.content()) {
            (EventType::EV_IPL, Content::Ipl(ipl)) => (Some(ipl.kind), Some(ipl.argument())),
            (EventType::EV_EVENT_TAG, Content::Tag(tag)) => (None, tag.text),
            (EventType::EV_IPL | EventType::EV_EVENT_TAG, _) => (None, None),
            (_, Content::Text(text)) => (None, Some(text)),
            _ => (None, None),
        };
        let text = text.and_then(|text| text.decode());
        Self { text, ipl }
    }
}

/// Does a pattern of a component match? `budget` is how many bytes of texts may still be compared
/// with a pattern; what is left over when it is spent matches none.
fn matches(component: &Component, words: &Words<'_, '_>, budget: &mut Option<usize>) -> bool {
    let patterns = &component.allowed.text;
    let Some(text) = words.text().filter(|_| !patterns.is_empty()) else {
        return false;
    };
    patterns.iter().any(|pattern| {
        *budget = budget.and_then(|left| left.checked_sub(text.len()));
        budget.is_some() && pattern.matches(text)
    })
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

fn key_list<'k>(keys: impl IntoIterator<Item = &'k Key>) -> Vec<String> {
    keys.into_iter().take(SHOWN).map(Key::describe).collect()
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
