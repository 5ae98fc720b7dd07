use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::sync::OnceLock;

use super::document;
use crate::eventlog::content::{Guid, Signature, SignatureLists};
use crate::tpm::{Digest, HashAlgorithm};

/// Longest subject that is shown, in characters.
const SUBJECT_SHOWN: usize = 500;

/// A key of a Secure Boot variable: everything that is given must be so.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Key {
    owner: Option<Guid>,
    kind: Option<Guid>,
    digest: Option<Digest>,
    subject: Option<String>,
    certified: Certified,
}

/// Has the certificate of a key's digest the key's subject? The same for ever, so it is read once
/// for a policy, and not with each boot.
#[derive(Clone, Debug, Default)]
struct Certified(OnceLock<bool>);

/// It follows from the rest of the key.
impl PartialEq for Certified {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Certified {}

/// Keys of a policy, which are found by what is said of them: a log may show as many keys as it
/// likes, and is compared with each of the policy's at the cost of a few look-ups.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct Keys {
    list: Vec<Key>,
    /// By what is said of a key: its place in the list.
    index: HashMap<Said, Vec<usize>>,
    /// What is said of any of them.
    forms: BTreeSet<Form>,
}

/// What is said of a key; of one whose digest is given, without the subject.
type Said = (Option<Guid>, Option<Guid>, Option<Digest>, Option<String>);

/// Which of owner, type, digest and subject are in a [`Said`].
type Form = [bool; 4];

/// A key that a log shows. Its digest and its subject are made once, when somebody asks.
pub(crate) struct ShownKey<'l> {
    pub(crate) key: Signature<'l>,
    digest: OnceCell<Option<Digest>>,
    subject: OnceCell<Option<String>>,
}

impl Key {
    pub(super) fn new(document: &document::Key) -> Result<Self, String> {
        let guid = |text: &str| Guid::parse(text).ok_or_else(|| format!("{text:?} is no GUID"));
        let kind = |text: &str| match text {
            "x509" => Ok(Guid::CERT_X509),
            "sha256" => Ok(Guid::CERT_SHA256),
            text => guid(text),
        };
        let digest = document.sha256.as_deref().map(|text| {
            let digest = super::rules::digest(text)?;
            match digest.as_bytes().len() {
                32 => Ok(digest),
                _ => Err(format!("{text:?} is no SHA-256 digest")),
            }
        });
        let key = Self {
            owner: document.owner.as_deref().map(guid).transpose()?,
            kind: document.kind.as_deref().map(kind).transpose()?,
            digest: digest.transpose()?,
            subject: document.subject.clone(),
            certified: Certified::default(),
        };
        match key {
            Self {
                owner: None,
                kind: None,
                digest: None,
                subject: None,
                ..
            } => Err("a key of which nothing is said is every key".to_owned()),
            key => Ok(key),
        }
    }

    /// Is it this one, of a list of this type?
    pub(crate) fn is(&self, kind: Guid, shown: &ShownKey<'_>) -> bool {
        self.owner.is_none_or(|owner| owner == shown.key.owner)
            && self.kind.is_none_or(|wanted| wanted == kind)
            && self
                .digest
                .is_none_or(|digest| Some(digest) == shown.digest())
            && self.has_subject_of(shown)
    }

    /// Is the subject, if it is given, the one of a key of which all else is as it has to be?
    fn has_subject_of(&self, shown: &ShownKey<'_>) -> bool {
        let Some(wanted) = self.subject.as_deref() else {
            return true;
        };
        let compare = || shown.subject() == Some(wanted);
        // An entry that is a digest itself may be of the same digest as a certificate.
        match self.digest.is_some() && !shown.is_digest() {
            true => *self.certified.0.get_or_init(compare),
            false => compare(),
        }
    }

    /// All that is said of it.
    pub(super) fn full(&self) -> String {
        let kind = self.kind.map(|kind| match kind {
            Guid::CERT_X509 => "type x509".to_owned(),
            Guid::CERT_SHA256 => "type sha256".to_owned(),
            kind => format!("type {kind}"),
        });
        let digest = self.digest.as_ref().map(super::rules::named);
        let owner = self.owner.map(|owner| format!("owner {owner}"));
        // In quotes, it cannot pass for the other parts.
        let subject = self.subject.as_ref().map(|subject| format!("{subject:?}"));
        let parts = [subject, digest, owner, kind];
        parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// The shortest text that tells which it is.
    pub(crate) fn describe(&self) -> String {
        let subject = self.subject.as_deref();
        let subject = subject.map(|text| text.chars().take(SUBJECT_SHOWN).collect());
        let digest = self.digest.map(|digest| format!("sha256:{digest}"));
        let owner = self.owner.map(|owner| format!("owner {owner}"));
        let parts: Vec<String> = [subject, digest, owner].into_iter().flatten().collect();
        match parts.is_empty() {
            true => format!(
                "type {}",
                self.kind.map_or_else(String::new, |kind| kind.to_string())
            ),
            false => parts.join(", "),
        }
    }
}

impl Keys {
    /// Keys of lists in variables, which have a type.
    pub(super) fn of_lists(list: Vec<Key>) -> Self {
        Self::new(list, true)
    }

    /// Keys that stand alone, whose type nothing tells.
    pub(super) fn alone(list: Vec<Key>) -> Self {
        Self::new(list, false)
    }

    fn new(list: Vec<Key>, typed: bool) -> Self {
        let mut index: HashMap<Said, Vec<usize>> = HashMap::with_capacity(list.len());
        let mut forms = BTreeSet::new();
        for (place, key) in list.iter().enumerate() {
            let kind = key.kind.filter(|_| typed);
            let subject = key.subject.clone().filter(|_| key.digest.is_none());
            forms.insert([
                key.owner.is_some(),
                kind.is_some(),
                key.digest.is_some(),
                subject.is_some(),
            ]);
            let said = (key.owner, kind, key.digest, subject);
            index.entry(said).or_default().push(place);
        }
        Self { list, index, forms }
    }

    pub(crate) fn list(&self) -> &[Key] {
        &self.list
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// Places in the list of those that a key of a log is. `kind` is the type of its list.
    pub(crate) fn places(&self, kind: Option<Guid>, shown: &ShownKey<'_>) -> Vec<usize> {
        let mut places = Vec::new();
        for [owner, of_kind, digest, subject] in &self.forms {
            let said = (
                Some(shown.key.owner).filter(|_| *owner),
                kind.filter(|_| *of_kind),
                digest.then(|| shown.digest()).flatten(),
                subject
                    .then(|| shown.subject().map(str::to_owned))
                    .flatten(),
            );
            // What the key lacks is nothing that a key of the policy could leave open.
            if said.2.is_some() != *digest || said.3.is_some() != *subject {
                continue;
            }
            let found = self.index.get(&said).into_iter().flatten();
            let found = found.filter(|place| {
                let key = self.list.get(**place);
                key.is_some_and(|key| key.has_subject_of(shown))
            });
            places.extend(found);
        }
        places
    }

    /// Is a key of a log among them?
    pub(crate) fn have(&self, kind: Option<Guid>, shown: &ShownKey<'_>) -> bool {
        !self.places(kind, shown).is_empty()
    }

    /// Those of them that are not in a log.
    pub(crate) fn missing(&self, there: &SignatureLists<'_>) -> Vec<&Key> {
        // Most are digests, of which a dbx has hundreds; and most stand in the order of the policy,
        // as in the dbx that it was made of.
        let mut rest = there.signatures();
        let in_order = |key: &Key| rest.any(|(kind, one)| key.is(kind, &ShownKey::new(one)));
        if self.list.iter().all(in_order) {
            return Vec::new();
        }
        let mut found = vec![false; self.list.len()];
        for (kind, one) in there.signatures() {
            for place in self.places(Some(kind), &ShownKey::new(one)) {
                if let Some(found) = found.get_mut(place) {
                    *found = true;
                }
            }
        }
        let keys = self.list.iter().zip(found);
        keys.filter(|(_, found)| !found)
            .map(|(key, _)| key)
            .collect()
    }
}

impl<'l> ShownKey<'l> {
    pub(crate) fn new(key: Signature<'l>) -> Self {
        Self {
            key,
            digest: OnceCell::new(),
            subject: OnceCell::new(),
        }
    }

    /// Is the entry a digest itself?
    fn is_digest(&self) -> bool {
        self.key.data.len() == 32
    }

    fn digest(&self) -> Option<Digest> {
        *self.digest.get_or_init(|| match self.is_digest() {
            true => Digest::from_slice(self.key.data),
            false => Some(HashAlgorithm::Sha256.digest(&[self.key.data])),
        })
    }

    fn subject(&self) -> Option<&str> {
        let subject = self.subject.get_or_init(|| subject(self.key.data));
        subject.as_deref()
    }
}

/// The subject of a certificate (RFC 4514); `None` for what is none.
pub(crate) fn subject(der: &[u8]) -> Option<String> {
    use x509_cert::der::Decode;
    let certificate = x509_cert::Certificate::from_der(der).ok()?;
    Some(certificate.tbs_certificate().subject().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(owner: Option<&str>, sha256: String, subject: Option<&str>) -> Key {
        let document = document::Key {
            owner: owner.map(str::to_owned),
            sha256: Some(sha256).filter(|text| !text.is_empty()),
            subject: subject.map(str::to_owned),
            ..document::Key::default()
        };
        Key::new(&document).unwrap()
    }

    /// However many keys a policy has, one of a log costs a look-up for each way in which they are
    /// told, and a comparison with those that it may be.
    #[test]
    fn a_key_is_looked_up_and_not_searched_for() {
        let owner = Some("77fa9abd-0359-4d32-bd60-28f4e78f784b");
        let mut list = Vec::new();
        for number in 0..3_000_u32 {
            let digest = HashAlgorithm::Sha256.digest(&[&number.to_le_bytes()]);
            list.push(key(None, format!("sha256:{digest}"), None));
            list.push(key(owner, format!("sha256:{digest}"), Some("CN=one")));
            list.push(key(None, String::new(), Some(&format!("CN={number}"))));
        }
        let keys = Keys::of_lists(list);
        assert_eq!(keys.forms.len(), 3);
        assert!(keys.index.values().all(|places| places.len() == 1));
        let data = 7_u32.to_le_bytes();
        let shown = ShownKey::new(Signature {
            owner: Guid::parse("77fa9abd-0359-4d32-bd60-28f4e78f784b").unwrap(),
            data: &data,
        });
        // It is no certificate: of its two digests' keys, the one with a subject is another.
        assert_eq!(keys.places(None, &shown), [21]);
        assert!(keys.have(Some(Guid::CERT_X509), &shown));
    }
}
