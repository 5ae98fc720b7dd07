use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::OnceLock;

use super::document::{self, AnyOr, Document, Others};
use super::keys::{Key, Keys};
use crate::eventlog::content::Measured;
use crate::eventlog::{Event, EventType};
use crate::policy::pattern::{Pattern, PatternBudget};
use crate::policy::{MAX_SMALL_POLICY, PolicyError};
use crate::tpm::{Digest, HashAlgorithm};

/// The version of the format.
const VERSION: u64 = 1;
/// Most components of a policy: all events of one PCR are compared with all rules for it that are
/// not about digests alone.
const MAX_COMPONENTS: usize = 4_096;
/// PCRs that kernels' command lines are measured into: by GRUB, and by systemd-stub.
const COMMAND_LINE: u32 = 1 << 8 | 1 << 12;

/// A boot policy of ours: what may be measured in a boot, by component.
///
/// Written as TOML or JSON by people, see `docs/boot-policy.md`; sent and stored as JSON.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct BootRules {
    pub(super) document: Document,
    /// May PCRs that no rule speaks of hold what they like?
    pub(crate) others: bool,
    pub(crate) secure_boot: Option<SecureBoot>,
    pub(crate) components: Vec<Component>,
    /// Where in `components` a digest is allowed, ascending.
    by_digest: HashMap<Digest, Vec<usize>>,
    /// Components of each PCR that allow more than digests, ascending.
    by_more: [Vec<usize>; 16],
    /// The signers of all components.
    pub(crate) signers: Keys,
    /// The component of each of them.
    pub(crate) signer_of: Vec<usize>,
    pub(crate) phases: Option<Phases>,
    /// Names of the events of a PCR, in order.
    pub(crate) order: BTreeMap<u8, Vec<String>>,
    /// The PCRs that rules speak of.
    pub(crate) listed: u32,
}

/// What must be true of Secure Boot.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct SecureBoot {
    pub(crate) enabled: bool,
    /// The keys that a variable may have; variables that are not here may have any.
    pub(crate) allowed: Vec<(&'static str, Keys)>,
    pub(crate) dbx_at_least: Keys,
    /// Whose signatures may have let an image run; `None`: anybody's whom the variables allow.
    pub(crate) authorities: Option<Keys>,
    /// Least generation by component of SbatLevel.
    pub(crate) sbat: BTreeMap<String, u64>,
}

/// One rule: events of some PCRs that it accounts for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Component {
    pub(crate) name: String,
    pub(crate) pcrs: u32,
    /// Types of events; empty: all.
    pub(crate) events: Vec<EventType>,
    /// What the event must call itself, where that is part of the rule.
    pub(crate) called: Option<Called>,
    pub(crate) allowed: Allowed,
    pub(crate) min: u32,
    pub(crate) max: u32,
}

/// What an event calls itself. Nothing vouches for that.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Called {
    /// A variable of shim: MokList.
    Name(String),
    /// A kernel's command line, by GRUB or by systemd-stub.
    CommandLine,
}

/// What a component may be.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Allowed {
    pub(crate) any: bool,
    pub(crate) digests: HashSet<Digest>,
    pub(crate) text: Vec<Pattern>,
    pub(crate) signers: Vec<Key>,
}

/// The phases of PCR 11.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Phases {
    pub(crate) chain: Vec<String>,
    pub(crate) last: Vec<String>,
}

/// Where a kind of component is measured, and how often: its PCRs, its events (all, if empty), and
/// whether there is just one of it.
struct Kind {
    name: &'static str,
    pcr: u8,
    events: &'static [EventType],
    once: bool,
}

const fn kind(name: &'static str, pcr: u8, events: &'static [EventType], once: bool) -> Kind {
    Kind {
        name,
        pcr,
        events,
        once,
    }
}

/// Texts that firmware measures as EV_EFI_ACTION on its way, by PCR.
const ACTIONS: [(u32, &str); 5] = [
    (4, "Calling EFI Application from Boot Option"),
    (4, "Returning from EFI Application from Boot Option"),
    (5, "Exit Boot Services Invocation"),
    (5, "Exit Boot Services Returned with Failure"),
    (5, "Exit Boot Services Returned with Success"),
];

/// Sections of unified kernel images that systemd-stub measures (UAPI.5, `uki.h`).
const SECTIONS: [&str; 15] = [
    ".linux", ".osrel", ".cmdline", ".initrd", ".ucode", ".splash", ".dtb", ".dtbauto", ".hwids",
    ".efifw", ".uname", ".sbat", ".pcrsig", ".pcrpkey", ".profile",
];

const APPLICATION: &[EventType] = &[EventType::EV_EFI_BOOT_SERVICES_APPLICATION];
const IPL: &[EventType] = &[EventType::EV_IPL];
const TAG: &[EventType] = &[EventType::EV_EVENT_TAG];

/// Components that have their place by name.
const KINDS: [Kind; 31] = [
    kind("firmware", 0, &[], false),
    kind("firmware-config", 1, &[], false),
    kind(
        "boot-entry",
        1,
        &[
            EventType::EV_EFI_VARIABLE_BOOT,
            EventType::EV_EFI_VARIABLE_BOOT2,
        ],
        false,
    ),
    kind("microcode", 1, &[EventType::EV_CPU_MICROCODE], true),
    kind(
        "smbios",
        1,
        &[
            EventType::EV_EVENT_TAG,
            EventType::EV_EFI_HANDOFF_TABLES,
            EventType::EV_EFI_HANDOFF_TABLES2,
        ],
        false,
    ),
    kind("driver", 2, &[], false),
    kind("driver-config", 3, &[], false),
    kind("application", 4, APPLICATION, false),
    kind("shim", 4, APPLICATION, true),
    kind("boot-loader", 4, APPLICATION, true),
    kind("kernel", 4, APPLICATION, true),
    kind("uki", 4, APPLICATION, true),
    kind("addon", 4, APPLICATION, false),
    kind("loader-config", 5, TAG, false),
    kind("vendor", 6, &[], false),
    kind(
        "secure-boot-variable",
        7,
        &[EventType::EV_EFI_VARIABLE_DRIVER_CONFIG],
        false,
    ),
    kind(
        "authority",
        7,
        &[EventType::EV_EFI_VARIABLE_AUTHORITY],
        false,
    ),
    kind("loader-command", 8, IPL, false),
    kind("file", 9, IPL, false),
    kind("initrd", 9, &[], true),
    kind("load-options", 9, TAG, true),
    kind("nvpcr", 9, &[], false),
    kind("uki-section", 11, IPL, false),
    kind("kernel-config", 12, &[], false),
    kind("credential", 12, IPL, false),
    kind("addon-config", 12, TAG, false),
    kind("sysext", 13, &[], false),
    kind("mok", 14, IPL, false),
    kind("machine-id", 15, &[], true),
    kind("file-system", 15, &[], false),
    kind("volume-key", 15, &[], false),
];

impl BootRules {
    /// From JSON, as the verifier keeps it.
    ///
    /// # Errors
    /// What is wrong, with line and column or the rule's name; for an unknown key the nearest one
    /// that is known.
    pub fn from_json(json: &str) -> Result<Self, PolicyError> {
        PolicyError::check_size(json.len(), MAX_SMALL_POLICY)?;
        let document: Document = serde_json::from_str(json).map_err(|error| {
            if error.is_data() {
                PolicyError::Schema(super::hint::explain(&error.to_string()))
            } else {
                PolicyError::NotJson(error.to_string())
            }
        })?;
        Self::compile(document)
    }

    /// From TOML, as people write it.
    ///
    /// # Errors
    /// As [`Self::from_json`].
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        PolicyError::check_size(text.len(), MAX_SMALL_POLICY)?;
        let document: Document = toml::from_str(text).map_err(|error| {
            let before = error.span().and_then(|span| text.get(..span.start));
            let line = before.map_or(1, |before| before.matches('\n').count() + 1);
            let reason = super::hint::explain(error.message());
            PolicyError::Schema(format!("line {line}: {reason}"))
        })?;
        Self::compile(document)
    }

    /// As the verifier keeps it.
    pub fn to_json(&self) -> String {
        serde_json::to_string(&self.document).unwrap_or_default()
    }

    /// As people read it.
    pub fn to_toml(&self) -> String {
        toml::to_string_pretty(&self.document).unwrap_or_default()
    }

    pub(crate) fn compile(document: Document) -> Result<Self, PolicyError> {
        if document.version != VERSION {
            let version = document.version;
            return Err(wrong(&format!(
                "version {version} is not known: use {VERSION}"
            )));
        }
        if document.component.len() > MAX_COMPONENTS {
            return Err(wrong(&format!("more than {MAX_COMPONENTS} components")));
        }
        let mut budget = PatternBudget::default();
        let mut components = Vec::new();
        components.extend(partition_table(&document)?);
        components.extend(command_line(&document, &mut budget)?);
        for (name, allowed) in &document.mok {
            components.push(Component::mok(name, allowed)?);
        }
        for component in &document.component {
            let component = Component::new(component, &mut budget)?;
            let twice = components.iter().any(|one: &Component| {
                one.name == component.name && one.pcrs & component.pcrs != 0
            });
            if twice {
                return Err(wrong(&format!(
                    "component {:?} is there twice",
                    component.name
                )));
            }
            components.push(component);
        }
        let secure_boot = document
            .secure_boot
            .as_ref()
            .map(SecureBoot::new)
            .transpose()?;
        let phases = document.phases.as_ref().map(Phases::new).transpose()?;
        if secure_boot
            .as_ref()
            .is_none_or(|secure_boot| !secure_boot.enabled)
            && let Some(component) = components.iter().find(|c| !c.allowed.signers.is_empty())
        {
            return Err(wrong(&format!(
                "component {:?}: signers mean something with `secure_boot.enabled = true` only",
                component.name
            )));
        }
        let order = order(&document)?;
        let mut by_digest: HashMap<Digest, Vec<usize>> = HashMap::new();
        let mut by_more: [Vec<usize>; 16] = Default::default();
        let (mut signers, mut signer_of) = (Vec::new(), Vec::new());
        for (place, component) in components.iter().enumerate() {
            let allowed = &component.allowed;
            for digest in &allowed.digests {
                by_digest.entry(*digest).or_default().push(place);
            }
            signers.extend(allowed.signers.iter().cloned());
            signer_of.resize(signers.len(), place);
            if allowed.any || !allowed.text.is_empty() || !allowed.signers.is_empty() {
                let pcrs = by_more.iter_mut().zip(0..);
                let pcrs = pcrs.filter(|(_, pcr)| component.pcrs >> pcr & 1 == 1);
                pcrs.for_each(|(places, _)| places.push(place));
            }
        }
        let mut listed = components.iter().fold(0, |listed, one| listed | one.pcrs);
        listed |= u32::from(secure_boot.is_some()) << 7;
        listed |= u32::from(phases.is_some()) << 11;
        listed |= order.keys().fold(0, |listed, pcr| listed | 1 << pcr);
        Ok(Self {
            others: document.others == Others::Allow,
            secure_boot,
            components,
            by_digest,
            by_more,
            signers: Keys::alone(signers),
            signer_of,
            phases,
            order,
            listed,
            document,
        })
    }
}

impl BootRules {
    /// Components that allow a digest, in the policy's order, with their places.
    pub(crate) fn with_digest(&self, digest: &Digest) -> impl Iterator<Item = (usize, &Component)> {
        let places = self.by_digest.get(digest).into_iter().flatten();
        self.at(places)
    }

    /// Components of a PCR that allow more than digests, likewise.
    pub(crate) fn with_more(&self, pcr: u32) -> impl Iterator<Item = (usize, &Component)> {
        let pcr = usize::try_from(pcr).unwrap_or(usize::MAX);
        self.at(self.by_more.get(pcr).into_iter().flatten())
    }

    fn at<'a>(
        &'a self,
        places: impl Iterator<Item = &'a usize>,
    ) -> impl Iterator<Item = (usize, &'a Component)> {
        places.filter_map(|place| Some((*place, self.components.get(*place)?)))
    }
}

impl Component {
    fn new(
        document: &document::Component,
        budget: &mut PatternBudget,
    ) -> Result<Self, PolicyError> {
        let name = &document.name;
        let fail = |reason: &str| wrong(&format!("component {name:?}: {reason}"));
        if name.is_empty() || name.len() > 255 || name.contains(char::is_control) {
            return Err(fail(
                "a name has 1 to 255 characters, none of them a control character",
            ));
        }
        let named = document.kind.as_deref().unwrap_or(name);
        let known = KINDS.iter().find(|kind| kind.name == named);
        if known.is_none() && document.kind.is_some() {
            let names = KINDS.iter().map(|kind| kind.name);
            return Err(fail(&super::hint::unknown_name("kind", named, names)));
        }
        let pcr = document
            .pcr
            .or_else(|| known.map(|kind| kind.pcr))
            .ok_or_else(|| {
                let names = KINDS.iter().map(|kind| kind.name);
                let hint = super::hint::unknown_name("kind", named, names);
                fail(&format!("say its `kind` or its `pcr`; as a kind, {hint}"))
            })?;
        if pcr > 15 || pcr == crate::ima::IMA_PCR {
            return Err(fail(&format!(
                "PCR {pcr} is none of a measured boot (0 to 9, 11 to 15)"
            )));
        }
        let events = match &document.event {
            Some(name) => {
                let event = EventType::from_name(name)
                    .ok_or_else(|| fail(&format!("no type of event is called {name:?}")))?;
                vec![event]
            }
            None => known.map_or_else(Vec::new, |kind| kind.events.to_vec()),
        };
        let allowed = Allowed {
            any: document.any,
            digests: digests(&document.digests).map_err(|reason| fail(&reason))?,
            text: patterns(&document.text, budget).map_err(|reason| fail(&reason))?,
            signers: keys(&document.signers).map_err(|reason| fail(&reason))?,
        };
        let rules = [!allowed.digests.is_empty(), !allowed.text.is_empty()];
        let rules = rules.contains(&true) || !allowed.signers.is_empty();
        if rules == allowed.any {
            return Err(fail(
                "say `any = true`, or give `digests`, `text` or `signers`",
            ));
        }
        if !allowed.signers.is_empty() && pcr != 4 {
            return Err(fail("signers are known of images in PCR 4 only"));
        }
        let min = document.min.unwrap_or(1);
        let once = known.is_some_and(|kind| kind.once);
        let max = document
            .max
            .unwrap_or_else(|| if once { min.max(1) } else { u32::MAX });
        if max == 0 || max < min {
            return Err(fail("`max` is at least 1, and at least `min`"));
        }
        Ok(Self {
            name: name.clone(),
            pcrs: 1 << pcr,
            events,
            called: None,
            allowed,
            min,
            max,
        })
    }

    /// What shim measures of a variable of its own.
    fn mok(name: &str, allowed: &AnyOr) -> Result<Self, PolicyError> {
        Ok(Self {
            name: name.to_owned(),
            pcrs: 1 << 14,
            events: IPL.to_vec(),
            called: Some(Called::Name(name.to_owned())),
            allowed: any_or(allowed).map_err(|reason| wrong(&format!("mok.{name}: {reason}")))?,
            min: 1,
            max: u32::MAX,
        })
    }
}

/// Is there a kind of components of this name?
pub(super) fn is_kind(name: &str) -> bool {
    KINDS.iter().any(|kind| kind.name == name)
}

fn partition_table(document: &Document) -> Result<Option<Component>, PolicyError> {
    let Some(allowed) = &document.partition_table else {
        return Ok(None);
    };
    let allowed = any_or(allowed);
    Ok(Some(Component {
        name: "partition-table".to_owned(),
        pcrs: 1 << 5,
        events: vec![EventType::EV_EFI_GPT_EVENT, EventType::EV_EFI_GPT_EVENT2],
        called: None,
        allowed: allowed.map_err(|reason| wrong(&format!("partition_table: {reason}")))?,
        min: 1,
        max: u32::MAX,
    }))
}

fn command_line(
    document: &Document,
    budget: &mut PatternBudget,
) -> Result<Option<Component>, PolicyError> {
    let Some(sources) = &document.command_line else {
        return Ok(None);
    };
    let fail = |reason: String| wrong(&format!("command_line: {reason}"));
    if sources.is_empty() {
        return Err(fail("no pattern".to_owned()));
    }
    Ok(Some(Component {
        name: "command-line".to_owned(),
        pcrs: COMMAND_LINE,
        events: IPL.to_vec(),
        called: Some(Called::CommandLine),
        allowed: Allowed {
            text: patterns(sources, budget).map_err(fail)?,
            ..Allowed::default()
        },
        min: 1,
        max: u32::MAX,
    }))
}

fn order(document: &Document) -> Result<BTreeMap<u8, Vec<String>>, PolicyError> {
    let entries = document.order.iter();
    let entry = |(pcr, names): (&String, &Vec<String>)| {
        let number = pcr
            .parse::<u8>()
            .ok()
            .filter(|number| number.to_string() == *pcr);
        match number {
            Some(number) if number < 16 && number != crate::ima::IMA_PCR => {
                Ok((number, names.clone()))
            }
            _ => Err(wrong(&format!(
                "order: {pcr:?} is no PCR of a measured boot"
            ))),
        }
    };
    entries.map(entry).collect()
}

impl SecureBoot {
    fn new(document: &document::SecureBoot) -> Result<Self, PolicyError> {
        let list = |name: &str, list: &[document::Key]| {
            keys(list).map_err(|reason| wrong(&format!("secure_boot.{name}: {reason}")))
        };
        let mut allowed = Vec::new();
        for (name, keys) in [
            ("PK", &document.pk),
            ("KEK", &document.kek),
            ("db", &document.db),
            ("dbx", &document.dbx),
        ] {
            if let Some(keys) = keys {
                allowed.push((name, Keys::of_lists(list(name, keys)?)));
            }
        }
        let authorities = document.authorities.as_deref();
        Ok(Self {
            enabled: document.enabled,
            allowed,
            dbx_at_least: Keys::of_lists(list("dbx_at_least", &document.dbx_at_least)?),
            authorities: authorities
                .map(|keys| list("authorities", keys).map(Keys::alone))
                .transpose()?,
            sbat: document.sbat.clone(),
        })
    }
}

impl Phases {
    fn new(document: &document::Phases) -> Result<Self, PolicyError> {
        let fail = |reason: String| Err(wrong(&format!("phases: {reason}")));
        let chain = &document.chain;
        if chain.is_empty() || chain.len() > 64 {
            return fail("`chain` has 1 to 64 phases".to_owned());
        }
        if let Some(stranger) = document.last.iter().find(|last| !chain.contains(last)) {
            return fail(format!("{stranger:?} in `last` is not in `chain`"));
        }
        let last = match document.last.is_empty() {
            true => chain.clone(),
            false => document.last.clone(),
        };
        Ok(Self {
            chain: chain.clone(),
            last,
        })
    }
}

/// Generations of the components in SbatLevel, by the first line of each that has one; of `sbat`
/// itself the date of the list.
pub(crate) fn generations(text: &str) -> HashMap<&str, u64> {
    let mut generations = HashMap::new();
    for line in text.lines() {
        let mut fields = line.trim_end_matches('\0').split(',');
        let component = fields.next().unwrap_or_default();
        let generation = fields.next().and_then(|number| number.trim().parse().ok());
        let generation = match (component, generation, fields.next()) {
            ("sbat", Some(_), Some(date)) => date.trim().parse().ok(),
            (_, generation, _) => generation,
        };
        if let Some(generation) = generation {
            generations.entry(component).or_insert(generation);
        }
    }
    generations
}

/// Is it a text that every firmware measures, and no other?
pub(crate) fn is_action(event: &Event<'_>, bank: HashAlgorithm) -> bool {
    ACTIONS
        .iter()
        .any(|(pcr, text)| *pcr == event.pcr && text.as_bytes() == event.data)
        && event.measured(bank) == Measured::Data
}

/// Does an event tell of the section of a unified kernel image whose content comes next?
/// systemd-stub measures the name in 8-bit characters with its NUL.
pub(crate) fn is_section_name(event: &Event<'_>, bank: HashAlgorithm) -> bool {
    static NAMES: OnceLock<HashSet<Digest>> = OnceLock::new();
    if event.pcr != 11 || event.kind != EventType::EV_IPL {
        return false;
    }
    let names = NAMES.get_or_init(|| {
        let banks = HashAlgorithm::ALL.into_iter();
        banks
            .flat_map(|bank| SECTIONS.map(|name| bank.digest(&[name.as_bytes(), &[0]])))
            .collect()
    });
    let digest = event.digests.get(bank);
    digest.is_some_and(|digest| names.contains(&digest))
}

fn keys(documents: &[document::Key]) -> Result<Vec<Key>, String> {
    documents.iter().map(Key::new).collect()
}

fn patterns(sources: &[String], budget: &mut PatternBudget) -> Result<Vec<Pattern>, String> {
    let compile = |source: &String| {
        Pattern::compile(source, budget)
            .map_err(|reason| format!("the pattern {source:?} {reason}"))
    };
    sources.iter().map(compile).collect()
}

fn digests(texts: &[String]) -> Result<HashSet<Digest>, String> {
    texts.iter().map(|text| digest(text)).collect()
}

/// `HASH:HEX` of a digest, whose length tells the hash.
pub(super) fn named(digest: &Digest) -> String {
    let size = digest.as_bytes().len();
    match HashAlgorithm::ALL
        .into_iter()
        .find(|one| one.size() == size)
    {
        Some(algorithm) => format!("{algorithm}:{digest}"),
        None => digest.to_string(),
    }
}

/// `HASH:HEX`, or hex alone whose length tells the hash.
pub(super) fn digest(text: &str) -> Result<Digest, String> {
    let (name, hex) = match text.split_once(':') {
        Some((name, hex)) => (Some(name), hex),
        None => (None, text),
    };
    let algorithm = match name {
        Some(name) => HashAlgorithm::from_name(name),
        None => [
            HashAlgorithm::Sha1,
            HashAlgorithm::Sha256,
            HashAlgorithm::Sha384,
            HashAlgorithm::Sha512,
        ]
        .into_iter()
        .find(|algorithm| hex.len() == 2 * algorithm.size()),
    };
    algorithm
        .filter(|algorithm| hex.len() == 2 * algorithm.size())
        .and_then(|_| Digest::from_hex(hex))
        .ok_or_else(|| {
            let text: String = text.chars().take(140).collect();
            format!("{text:?} is no digest: write sha256:HEX")
        })
}

fn any_or(document: &AnyOr) -> Result<Allowed, String> {
    match document {
        AnyOr::Any => Ok(Allowed {
            any: true,
            ..Allowed::default()
        }),
        AnyOr::Digests(texts) if texts.is_empty() => {
            Err("no digests: write \"any\", or those that are allowed".to_owned())
        }
        AnyOr::Digests(texts) => Ok(Allowed {
            digests: digests(texts)?,
            ..Allowed::default()
        }),
    }
}

fn wrong(reason: &str) -> PolicyError {
    PolicyError::Schema(format!("boot policy: {reason}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However many components a policy has, an event is compared with those that may allow it.
    #[test]
    fn components_are_looked_up_by_digest_and_pcr() {
        let digest = |number: usize| format!("sha256:{number:064x}");
        let mut component: Vec<_> = (0..MAX_COMPONENTS - 1)
            .map(|number| document::Component {
                name: format!("file {number}"),
                pcr: Some(9),
                digests: vec![digest(number)],
                ..document::Component::default()
            })
            .collect();
        component.push(document::Component {
            name: "command".to_owned(),
            pcr: Some(8),
            any: true,
            ..document::Component::default()
        });
        let rules = BootRules::compile(Document {
            version: VERSION,
            component,
            ..Document::default()
        })
        .unwrap();
        let wanted = super::digest(&digest(4_000)).unwrap();
        let places: Vec<_> = rules.with_digest(&wanted).map(|(place, _)| place).collect();
        assert_eq!(places, [4_000]);
        assert_eq!(rules.with_more(9).count(), 0);
        let names: Vec<_> = rules.with_more(8).map(|(_, one)| &*one.name).collect();
        assert_eq!(names, ["command"]);
    }
}
