use super::{Entry, EntryError, Template, raw, split};
use crate::tpm::{Digest, HashAlgorithm};

/// Longest name with line feeds that is put together again, in bytes: twice the kernel's PATH_MAX.
const MAX_JOINED: usize = 8_192;

/// What one entry takes of a list: a line, or several where the name has line feeds, which the
/// kernel writes as they are.
#[derive(Debug)]
pub(super) struct Record<'l> {
    /// The lines, without the last line feed.
    pub(super) text: &'l str,
    /// How many they are.
    pub(super) lines: u64,
    /// What follows.
    pub(super) after: &'l str,
    pub(super) entry: Result<Entry<'l>, EntryError>,
    /// Hash of the template data; `None` when there is no entry.
    pub(super) hash: Option<Digest>,
}

/// Takes the record that `list`, which is not empty, begins with. Its template data are in `data`
/// then. `log_hash` is the hash that template hashes are printed in.
///
/// Where a line by itself is no entry that has its template hash, and what follows does not begin
/// an entry either, they are tried as one. What is taken for an entry has the hash that the kernel
/// printed, or is reported as an entry that has not.
pub(super) fn next<'l>(
    list: &'l str,
    index: u64,
    log_hash: HashAlgorithm,
    data: &mut Vec<u8>,
) -> Record<'l> {
    let (text, after) = split::at(list, b'\n').unwrap_or((list, ""));
    let alone = read(text, index, log_hash, data);
    if alone.is_whole() && !alone.is_violation() {
        return alone.record(text, 1, after);
    }
    let Some((joined, lines, behind)) = join(list, text) else {
        return alone.record(text, 1, after);
    };
    let whole = read(joined, index, log_hash, data);
    if whole.is_whole() {
        return whole.record(joined, lines, behind);
    }
    // Once more, for the template data that are left behind.
    read(text, index, log_hash, data).record(text, 1, after)
}

/// The first line with those that follow it up to where an entry begins, how many lines, and what
/// follows them. `None`: an entry begins right behind it, or the line is not where one begins.
///
/// No line that is walked over here is walked over again: none of them begins an entry.
fn join<'l>(list: &'l str, first: &str) -> Option<(&'l str, u64, &'l str)> {
    if !begins_entry(first) {
        return None;
    }
    let mut end = first.len();
    let mut lines = 1;
    while let Some(rest) = list.get(end + 1..).filter(|rest| !rest.is_empty()) {
        let line = rest.split('\n').next().unwrap_or_default();
        if begins_entry(line) || end - first.len() + line.len() > MAX_JOINED {
            break;
        }
        end += 1 + line.len();
        lines += 1;
    }
    let after = list.get(end + 1..).unwrap_or_default();
    (lines > 1).then(|| (&list[..end], lines, after))
}

/// Does the line look like the beginning of an entry?
fn begins_entry(line: &str) -> bool {
    let mut parts = line.strip_prefix(' ').unwrap_or(line).split(' ');
    let mut next = || parts.next().unwrap_or_default();
    let (pcr, hash, template) = (next(), next(), next());
    pcr.parse::<u32>().is_ok()
        && hash.len() >= 32
        && hash.bytes().all(|byte| byte.is_ascii_hexdigit())
        && Template::from_name(template).is_some()
}

/// An entry, and whether its template hash is what was printed.
struct Read<'l> {
    entry: Result<Entry<'l>, EntryError>,
    hash: Option<Digest>,
}

fn read<'l>(text: &'l str, index: u64, log_hash: HashAlgorithm, data: &mut Vec<u8>) -> Read<'l> {
    let mut entry = Entry::parse(text, index);
    if let Ok(parsed) = &entry
        && let Err(error) = parsed.template_data(data, false)
    {
        entry = Err(error);
    }
    let mut hash = entry.is_ok().then(|| log_hash.digest(&[data]));
    if let Ok(entry) = &entry
        && hash != Some(entry.template_hash)
        && raw::is_in(entry.name)
    {
        let mut other = Vec::new();
        let digest = entry
            .template_data(&mut other, true)
            .map(|()| log_hash.digest(&[&other]));
        if digest.as_ref() == Ok(&entry.template_hash) {
            *data = other;
            hash = Some(entry.template_hash);
        }
    }
    Read { entry, hash }
}

impl<'l> Read<'l> {
    fn is_violation(&self) -> bool {
        self.entry.as_ref().is_ok_and(Entry::is_violation)
    }

    /// Is it an entry that the kernel has written? A violation has no hash to tell.
    fn is_whole(&self) -> bool {
        let of = |entry: &Entry<'_>| entry.is_violation() || self.hash == Some(entry.template_hash);
        self.entry.as_ref().is_ok_and(of)
    }

    fn record(self, text: &'l str, lines: u64, after: &'l str) -> Record<'l> {
        Record {
            text,
            lines,
            after,
            entry: self.entry,
            hash: self.hash,
        }
    }
}
