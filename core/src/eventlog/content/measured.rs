use super::{Content, IplKind, Variable};
use crate::eventlog::{Event, EventType};
use crate::tpm::{Digest, HashAlgorithm};

/// Most bytes behind a variable that are tried to be left out.
const SURPLUS: usize = 8;

/// Which part of an event's data its digest is made of.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Measured<'l> {
    /// All of the data that [`super::Content`] is decoded from (a final NUL, which some loaders
    /// leave out, aside).
    Data,
    /// These bytes of the data alone: the value of a boot variable, GRUB's command without its
    /// label. What stands beside them (the variable's name, the label) is hearsay.
    Part(&'l [u8]),
    /// Something that is not in the log, by the event's type: an image, a table, a file. The data
    /// say where it came from, and are hearsay.
    Elsewhere,
    /// By its type it should be the data, but it is not.
    Mismatch,
    /// There is no digest of this bank.
    NoDigest,
}

impl<'l> Event<'l> {
    /// Which part of the data the digest of `bank` is made of.
    ///
    /// Only if the event itself is believed (it is one of [`crate::eventlog::ReplayedLog::events`]
    /// and `bank` is the quoted one) does the answer mean anything.
    pub fn measured(&self, bank: HashAlgorithm) -> Measured<'l> {
        self.measured_whole(bank)
            .unwrap_or_else(|digest| self.measured_part(bank, digest, &self.content()))
    }

    /// The content, if the digest of `bank` vouches for all of it ([`Measured::Data`]); the same
    /// reservation as for [`Self::measured`].
    pub fn believed(&self, bank: HashAlgorithm) -> Option<Content<'l>> {
        if self.kind == EventType::EV_NO_ACTION {
            return None;
        }
        let content = self.content();
        let measured = self
            .measured_whole(bank)
            .unwrap_or_else(|digest| self.measured_part(bank, digest, &content));
        (measured == Measured::Data).then_some(content)
    }

    /// What can be told without a look at the content; else the digest.
    fn measured_whole(&self, bank: HashAlgorithm) -> Result<Measured<'l>, Digest> {
        match self.digests.get(bank) {
            None => Ok(Measured::NoDigest),
            Some(digest) if bank.digest(&[self.data]) == digest => Ok(Measured::Data),
            Some(digest) => Err(digest),
        }
    }

    fn measured_part(
        &self,
        bank: HashAlgorithm,
        digest: Digest,
        content: &Content<'l>,
    ) -> Measured<'l> {
        let is = |data: &[&[u8]]| bank.digest(data) == digest;
        match content {
            Content::Variable(variable) => self.variable(&is, variable),
            Content::Ipl(ipl) => match ipl.kind {
                IplKind::GrubCommand | IplKind::KernelCommandLine | IplKind::ModuleCommandLine => {
                    let argument = ipl.argument().as_bytes();
                    if is(&[argument]) {
                        Measured::Part(argument)
                    } else {
                        Measured::Mismatch
                    }
                }
                // Of the two events of a section the first is of its name, in 8-bit characters.
                IplKind::Section if is_name(ipl.text.decode().as_deref(), bank, digest) => {
                    Measured::Data
                }
                IplKind::CommandLine if is(&[ipl.text.as_bytes()]) => Measured::Data,
                IplKind::CommandLine => Measured::Mismatch,
                _ => Measured::Elsewhere,
            },
            Content::Text(text) if is(&[text.as_bytes()]) => Measured::Data,
            _ if is_of_data(self.kind) => Measured::Mismatch,
            _ => Measured::Elsewhere,
        }
    }

    fn variable(&self, is: &impl Fn(&[&[u8]]) -> bool, variable: &Variable<'l>) -> Measured<'l> {
        // shim logs some bytes more than it measures; the structure itself is among what it does.
        let whole = self.data.len().saturating_sub(variable.surplus);
        let mut shorter = (whole..self.data.len()).take(SURPLUS);
        if shorter.any(|end| is(&[&self.data[..end]])) {
            Measured::Data
        } else if self.kind == EventType::EV_EFI_VARIABLE_BOOT && is(&[variable.data]) {
            Measured::Part(variable.data)
        } else {
            Measured::Mismatch
        }
    }
}

/// Is it the name of a section of systemd-stub's image, with its NUL?
fn is_name(name: Option<&str>, bank: HashAlgorithm, digest: Digest) -> bool {
    name.is_some_and(|name| bank.digest(&[name.as_bytes(), &[0]]) == digest)
}

/// Types whose digest is of the event's data (PC Client profile, table "Events").
fn is_of_data(kind: EventType) -> bool {
    matches!(
        kind,
        EventType::EV_SEPARATOR
            | EventType::EV_ACTION
            | EventType::EV_EFI_ACTION
            | EventType::EV_S_CRTM_VERSION
            | EventType::EV_NONHOST_INFO
            | EventType::EV_OMIT_BOOT_DEVICE_EVENTS
            | EventType::EV_EFI_GPT_EVENT
            | EventType::EV_EFI_GPT_EVENT2
            | EventType::EV_EFI_VARIABLE_DRIVER_CONFIG
            | EventType::EV_EFI_VARIABLE_BOOT
            | EventType::EV_EFI_VARIABLE_BOOT2
            | EventType::EV_EFI_VARIABLE_AUTHORITY
            | EventType::EV_EFI_SPDM_DEVICE_POLICY
            | EventType::EV_EFI_SPDM_DEVICE_AUTHORITY
    )
}
