use std::path::Path;

use troth_core::policy::{PolicyDocument, PolicyError};

use super::{
    super::{read_file, read_ima_list, read_text},
    keys::Key,
};
use crate::{cli::ListArgs, error::Error};

/// The policy to begin with, and all that was written down in lists.
pub(super) fn document(args: &ListArgs, timestamp: u64) -> Result<PolicyDocument, Error> {
    let mut document = match &args.base_policy {
        Some(path) => {
            let mut base = PolicyDocument::parse_any_version(&read_file(path)?, timestamp)
                .map_err(unusable(path))?;
            base.set_timestamp(timestamp);
            base
        }
        None => PolicyDocument::new(timestamp),
    };
    if let Some(path) = &args.ima_list {
        let list = PolicyDocument::from_ima_list(&read_ima_list(path)?, timestamp);
        let list = list.map_err(unusable(path))?;
        let buffers = list.ima_buf().len() + list.keyrings().len();
        if list.digests().is_empty() && (args.files_only || buffers == 0) {
            return Err(nothing(path, "entries of an IMA list"));
        }
        if args.base_policy.is_none() {
            document.set_log_hash_alg(list.log_hash_alg());
        }
        add(&mut document, list, args.files_only).map_err(unusable(path))?;
    }
    if let Some(path) = &args.allowlist {
        let list = PolicyDocument::from_allowlist(&read_text(path)?, "", timestamp);
        let mut list = list.map_err(unusable(path))?;
        if list.digests().is_empty() && list.keyrings().is_empty() {
            return Err(nothing(path, "lines of `DIGEST PATH`"));
        }
        list.set_log_hash_alg(document.log_hash_alg());
        add(&mut document, list, false).map_err(unusable(path))?;
    }
    if let Some(path) = &args.exclude {
        let patterns = read_text(path)?;
        document
            .add_exclude_file(&patterns)
            .map_err(unusable(path))?;
    }
    for keyring in &args.ignored_keyring {
        document.add_ignored_keyring(keyring);
    }
    for path in &args.verification_key {
        let key = Key::read(path)?;
        let added = document.add_verification_key(key.id, &key.spki);
        added.map_err(unusable(path))?;
    }
    Ok(document)
}

fn add(
    document: &mut PolicyDocument,
    list: PolicyDocument,
    files_only: bool,
) -> Result<(), PolicyError> {
    if !files_only {
        *document = document.merge(list)?;
        return Ok(());
    }
    for (name, digests) in list.digests().iter() {
        for digest in digests {
            document.add_digest(name, *digest)?;
        }
    }
    Ok(())
}

fn nothing(path: &Path, what: &'static str) -> Error {
    Error::NothingFound {
        place: path.to_owned(),
        what,
        advice: "name a list that has them; where none is meant, leave the option out",
    }
}

fn unusable(path: &Path) -> impl Fn(PolicyError) -> Error {
    move |source| Error::Policy {
        what: path.display().to_string(),
        source,
    }
}
