use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use serde::de::DeserializeOwned;
use toml::Value;
use zeroize::Zeroizing;

use super::{Component, ConfigError, Layer, Source, files, nest, spelt};

/// Largest credential in bytes; longer than any password or URL.
const LIMIT: u64 = 64 * 1024;

/// The credentials `troth.NAME.KEY` in `directory`. One line end at the end of a file is not part of
/// its text. A secret is that text; of any other option it is the value, as in a variable.
pub(super) fn read<T: DeserializeOwned>(
    component: &Component,
    directory: &Path,
) -> Result<Vec<Layer>, ConfigError> {
    let prefix = format!("troth.{}.", component.short_name());
    let mut found = Vec::new();
    for path in files::entries(directory)? {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Some(key) = name.strip_prefix(&prefix) else {
            continue;
        };
        let secret = component.secrets.contains(&key);
        let table = read_file(&path, secret)
            .map_err(|error| error.to_string())
            .and_then(|text| {
                if secret {
                    Ok(nest(key, Value::String(text)))
                } else {
                    spelt::<T>(&key.replace('.', "__"), &text)
                }
            });
        match table {
            Ok(table) => found.push(Layer {
                table,
                source: Source::Credential(path),
            }),
            Err(reason) => return Err(ConfigError::Credential { path, reason }),
        }
    }
    Ok(found)
}

fn read_file(path: &Path, secret: bool) -> io::Result<String> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a file"));
    }
    // The group's bits are the mask of systemd's access control list.
    if secret && metadata.permissions().mode() & 0o007 != 0 {
        let reason = "every user may read it: it is a secret no more; change it, then chmod 0400";
        return Err(io::Error::other(reason));
    }
    if metadata.len() > LIMIT {
        return Err(io::Error::other(format!("larger than {LIMIT} bytes")));
    }
    // Room for all of it at once: growing would leave copies behind.
    let room = usize::try_from(LIMIT).map_err(io::Error::other)?;
    let mut text = Zeroizing::new(String::with_capacity(room));
    file.take(LIMIT).read_to_string(&mut text)?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(std::mem::take(&mut *text))
}
