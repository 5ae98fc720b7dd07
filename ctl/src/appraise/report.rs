use std::path::PathBuf;

use serde::Serialize;
use troth_core::{
    bundle::{Head, Link, Outcome, Word},
    wire::BootQuirk,
};

use super::{
    policies::{Source, Sources},
    rules::Told,
};
use crate::{
    error::{Error, Exit},
    output::{Output, Tone, clean, now_ms, span, utc},
};

/// All bundles of a command.
pub(super) struct Report {
    ak_given: bool,
    nonce_given: bool,
    appraised: Vec<Appraised>,
}

/// One bundle, judged.
pub(super) struct Appraised {
    pub(super) file: PathBuf,
    pub(super) head: Head,
    pub(super) sources: Sources,
    pub(super) rules: Told,
    pub(super) link: Link,
    /// What [`troth_core::appraise::Verdict::Trusted`] says.
    pub(super) trusted: bool,
    pub(super) outcome: Outcome,
    /// What the bundle says was found; `None`: nobody had judged it.
    pub(super) recorded: Option<Outcome>,
    /// Is that the same?
    pub(super) same_as_recorded: Option<bool>,
    /// PCRs that the boot log explains only with a known quirk of the firmware.
    pub(super) boot_quirks: Vec<BootQuirk>,
    /// Hex.
    pub(super) ak_name: String,
}

/// `appraise --json`.
#[derive(Serialize)]
struct View<'r> {
    /// trusted, failed or rebooted, over all bundles.
    verdict: &'static str,
    /// Does each bundle continue from the evidence before it?
    complete: bool,
    /// What the verdict rests on that is not shown by the evidence, for people.
    not_proved: Vec<String>,
    bundles: Vec<BundleView<'r>>,
}

#[derive(Serialize)]
struct BundleView<'r> {
    file: String,
    node: &'r str,
    maker: &'r str,
    sequence: Option<u64>,
    time_ms: u64,
    nonce: &'r str,
    ima_entry: u64,
    /// `start`, `continued` or `claimed`.
    link: &'static str,
    /// TPM name of the AK, hex.
    ak_name: &'r str,
    #[serde(flatten)]
    sources: &'r Sources,
    /// What else was judged by.
    rules: &'r Told,
    /// What was found: the members that a verifier records.
    outcome: &'r Outcome,
    /// The verdict that a verifier had come to; null: none had judged it.
    recorded_verdict: Option<&'static str>,
    /// Is the recorded outcome the same in all its parts?
    same_as_recorded: Option<bool>,
    /// PCRs that the boot log explains only with a known quirk of the firmware.
    boot_quirks: &'r [BootQuirk],
}

impl Report {
    pub(super) fn new(ak_given: bool, nonce_given: bool) -> Self {
        Self {
            ak_given,
            nonce_given,
            appraised: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, appraised: Appraised) {
        self.appraised.push(appraised);
    }

    pub(super) fn show(&self, out: &Output) -> Result<(), Error> {
        let view = View {
            verdict: self.verdict().as_str(),
            complete: self.complete(),
            not_proved: self.not_proved(),
            bundles: self.appraised.iter().map(Appraised::view).collect(),
        };
        out.result(&view, || self.describe(out))
    }

    pub(super) fn exit(&self) -> Exit {
        match self.verdict() {
            Word::Trusted => Exit::Success,
            Word::Failed => Exit::Untrusted,
            Word::Rebooted => Exit::Pending,
        }
    }

    /// Failed, if any is; else what the last is.
    fn verdict(&self) -> Word {
        let rebooted = |appraised: &Appraised| appraised.outcome.verdict == Word::Rebooted;
        match self.appraised.last() {
            Some(last)
                if rebooted(last) && self.appraised.iter().all(|a| a.trusted || rebooted(a)) =>
            {
                Word::Rebooted
            }
            Some(_) if self.appraised.iter().all(|a| a.trusted || rebooted(a)) => Word::Trusted,
            _ => Word::Failed,
        }
    }

    fn complete(&self) -> bool {
        self.appraised.iter().all(|a| a.link != Link::Claimed)
    }

    /// What a reader must not take from a good verdict.
    fn not_proved(&self) -> Vec<String> {
        let mut notes = Vec::new();
        let nonce = match self.nonce_given {
            true => "with the given nonce",
            false => "with the nonce in the bundle",
        };
        notes.push(format!(
            "Freshness: the quote was made for whoever asked {nonce}, at a time that the bundle \
             alone says; nothing here is about the node since."
        ));
        if !self.ak_given {
            notes.push(
                "Whose: the AK is the one in the bundle, which anybody may have made. Compare it \
                 with the registrar's record, or name it with --ak."
                    .to_owned(),
            );
        }
        for appraised in &self.appraised {
            if appraised.link == Link::Claimed && appraised.trusted {
                notes.push(format!(
                    "IMA entries 0 to {} of {}: they were judged with evidence that is not here; \
                     that they passed, and led to the PCR 10 that is continued from, is the \
                     bundle's word.",
                    appraised.head.ima_entry.saturating_sub(1),
                    appraised.file.display()
                ));
            }
        }
        let own = |source: &Source| matches!(source, Source::Bundle { .. });
        let from_bundles = self.appraised.iter().any(|appraised| {
            let Sources {
                runtime_policy,
                boot_policy,
                tpm_policy,
            } = &appraised.sources;
            own(runtime_policy) || own(boot_policy) || own(tpm_policy)
        });
        if from_bundles {
            notes.push(
                "By which rules: policies are the bundle's own, and whoever made it chose them. \
                 Name yours, or compare their SHA-256 (--json has them)."
                    .to_owned(),
            );
        }
        for appraised in &self.appraised {
            let file = appraised.file.display();
            let from_bundle = appraised.rules.chosen_by_bundle();
            if !from_bundle.is_empty() {
                notes.push(format!(
                    "By which rules: {file} chose itself: {}.",
                    from_bundle.join("; ")
                ));
            }
            let ignored = &appraised.rules.ignored;
            if !ignored.is_empty() {
                notes.push(format!(
                    "Whether another verifier judged so: {file} says by {}, which does not count \
                     without --embedded-policies.",
                    ignored.join("; ")
                ));
            }
        }
        let judged = |source: &Source| *source != Source::None;
        if let Some(appraised) = self.appraised.iter().find(|appraised| {
            let Sources {
                runtime_policy,
                boot_policy,
                tpm_policy,
            } = &appraised.sources;
            !(judged(runtime_policy) || judged(boot_policy) || judged(tpm_policy))
        }) {
            notes.push(format!(
                "What the node runs: {} was judged by no policy.",
                appraised.file.display()
            ));
        }
        notes
    }

    fn describe(&self, out: &Output) -> String {
        let mut text = String::new();
        match &self.appraised[..] {
            [one] => text.push_str(&one.describe(out)),
            several => {
                let rows = several.iter().map(|appraised| appraised.row()).collect();
                let heading = [
                    "BUNDLE", "ANSWERED", "VERDICT", "RECORDED", "IMA LIST", "POLICIES",
                ];
                text.push_str(&out.table(&heading, rows));
                for appraised in several {
                    text.push_str(&appraised.findings(out));
                }
            }
        }
        text.push_str(&out.paint(Tone::Strong, "\nNot proved by this:\n"));
        for note in self.not_proved() {
            text.push_str(&format!("  * {}\n", clean(&note)));
        }
        text
    }
}

impl Appraised {
    fn view(&self) -> BundleView<'_> {
        BundleView {
            file: self.file.display().to_string(),
            node: self.head.node.as_str(),
            maker: &self.head.maker,
            sequence: self.head.sequence,
            time_ms: self.head.time_ms,
            nonce: &self.head.nonce,
            ima_entry: self.head.ima_entry,
            link: self.link.as_str(),
            ak_name: &self.ak_name,
            sources: &self.sources,
            rules: &self.rules,
            outcome: &self.outcome,
            recorded_verdict: self.recorded.as_ref().map(|r| r.verdict.as_str()),
            same_as_recorded: self.same_as_recorded,
            boot_quirks: &self.boot_quirks,
        }
    }

    fn verdict(&self) -> (Tone, String) {
        match self.outcome.verdict {
            Word::Trusted => (Tone::Good, "trusted".to_owned()),
            Word::Failed => (Tone::Bad, "NOT TRUSTED".to_owned()),
            Word::Rebooted => (
                Tone::Warn,
                "the host had booted again: neither trusted nor failed".to_owned(),
            ),
        }
    }

    /// Beside the verdict of the bundle's verifier.
    fn compared(&self) -> (Tone, String) {
        match (&self.recorded, self.same_as_recorded) {
            (_, Some(true)) => (Tone::Good, "the same".to_owned()),
            (Some(recorded), _) if recorded.verdict == self.outcome.verdict => (
                Tone::Warn,
                format!("{}, but other in its parts", recorded.verdict.as_str()),
            ),
            (Some(recorded), _) => (Tone::Bad, recorded.verdict.as_str().to_owned()),
            (None, _) => (Tone::Dim, "not judged before".to_owned()),
        }
    }

    fn list(&self) -> (Tone, String) {
        let from = self.head.ima_entry;
        match self.link {
            Link::Start => (Tone::Plain, "from its first entry".to_owned()),
            Link::Continued => (Tone::Plain, format!("from entry {from}, continued")),
            Link::Claimed => (Tone::Warn, format!("from entry {from}, CLAIMED")),
        }
    }

    fn row(&self) -> Vec<(Tone, String)> {
        let verdict = match self.outcome.verdict {
            Word::Rebooted => (Tone::Warn, "rebooted".to_owned()),
            _ => self.verdict(),
        };
        let Sources {
            runtime_policy,
            boot_policy,
            tpm_policy,
        } = &self.sources;
        let other = [runtime_policy, boot_policy, tpm_policy]
            .iter()
            .any(|source| source.differs());
        let policies = match other {
            true => (Tone::Warn, "NOT those judged by".to_owned()),
            false => (Tone::Plain, "as named".to_owned()),
        };
        let sequence = self.head.sequence;
        let name = self.file.file_name().unwrap_or(self.file.as_os_str());
        let bundle = sequence.map_or_else(
            || name.to_string_lossy().into_owned(),
            |sequence| sequence.to_string(),
        );
        vec![
            (Tone::Plain, bundle),
            (Tone::Plain, utc(self.head.time_ms / 1000)),
            verdict,
            self.compared(),
            self.list(),
            policies,
        ]
    }

    fn describe(&self, out: &Output) -> String {
        let painted = |(tone, text): (Tone, String)| out.paint(tone, &clean(&text));
        let Head {
            maker,
            node,
            time_ms,
            sequence,
            nonce,
            ..
        } = &self.head;
        let age = span(now_ms().saturating_sub(*time_ms));
        let number = sequence.map_or_else(String::new, |number| format!(" {number}"));
        let mut fields = vec![
            ("Bundle", clean(&self.file.display().to_string())),
            ("Node", node.to_string()),
            ("Made by", format!("{}{number}", clean(maker))),
            ("Answered", format!("{} ({age} ago)", utc(time_ms / 1000))),
            ("Nonce", clean(nonce)),
            ("AK", self.ak_name.clone()),
            ("IMA list", painted(self.list())),
            (
                "Runtime policy",
                painted(self.sources.runtime_policy.describe()),
            ),
            ("Boot policy", painted(self.sources.boot_policy.describe())),
            ("TPM policy", painted(self.sources.tpm_policy.describe())),
            ("Verdict", painted(self.verdict())),
            ("Recorded", painted(self.compared())),
        ];
        let quirks = self.boot_quirks.iter();
        fields.extend(quirks.map(|quirk| ("Firmware", clean(&quirk.to_string()))));
        format!("{}{}", out.fields(&fields), self.findings(out))
    }

    fn findings(&self, out: &Output) -> String {
        let findings = &self.outcome.findings;
        let mut text = String::new();
        for (index, finding) in findings.iter().enumerate() {
            text.push_str(&format!(
                "\n{}",
                out.finding(index, findings.len(), finding, None)
            ));
        }
        let total = usize::try_from(self.outcome.findings_total).unwrap_or(usize::MAX);
        if total > findings.len() {
            text.push_str(&format!("\nand {} more findings\n", total - findings.len()));
        }
        text
    }
}

impl Source {
    /// Is it another policy than the one that was judged by?
    fn differs(&self) -> bool {
        matches!(
            self,
            Self::Given {
                as_recorded: Some(false),
                ..
            }
        )
    }

    fn describe(&self) -> (Tone, String) {
        match self {
            Self::None => (Tone::Dim, "none".to_owned()),
            Self::Given {
                name, as_recorded, ..
            } => match as_recorded {
                Some(true) => (Tone::Plain, format!("{name}, as the bundle names it")),
                None => (Tone::Plain, name.clone()),
                Some(false) => (
                    Tone::Warn,
                    format!("{name}, which is NOT the one that was judged by"),
                ),
            },
            Self::Bundle { name, .. } => (Tone::Plain, format!("{name}, from the bundle")),
        }
    }
}
