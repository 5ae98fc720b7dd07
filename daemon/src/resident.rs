//! Less memory for processes that start once and serve for months.

use std::{ffi::c_void, fs, path::Path};

use rustix::mm::{Advice, madvise};

/// Gives back the pages of program text and constants that only the start needed: option parsing,
/// key generation, migrations, the initialisation of libcrypto below tpm2-tss. What is needed again
/// comes back from the page cache, page by page.
///
/// Without it a third to a half of a daemon's resident memory would be code that never runs again.
pub fn release_start_up_code() {
    let maps = fs::read_link("/proc/self/exe")
        .and_then(|program| Ok((program, fs::read_to_string("/proc/self/smaps")?)));
    let (program, smaps) = match maps {
        Ok(maps) => maps,
        Err(error) => return tracing::debug!(%error, "start-up code stays resident"),
    };
    for (start, length) in unchanged_mappings(&smaps, &program) {
        // SAFETY: The range is one whole private mapping of a file that nobody writes to, and the
        // kernel counts no page in it that differs from the file. Dropping its pages loses
        // nothing: the next access reads the same bytes again. No crate offers this as a safe
        // call, for a general mapping it cannot be one.
        #[expect(unsafe_code, reason = "madvise(2) has no safe form")]
        let released = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "start-up code stays resident");
        }
    }
}

/// Address and length of all mappings in /proc/self/smaps (proc_pid_smaps(5)) that are as their
/// files are: text, and the constants of `program`. Those with relocations are not: the dynamic
/// linker has written to them before it made them read-only. It may be about to do so in a library.
fn unchanged_mappings(smaps: &str, program: &Path) -> Vec<(usize, usize)> {
    let mut found = Vec::new();
    let mut current = None;
    for line in smaps.lines() {
        if let Some(count) = line.strip_prefix("Anonymous:") {
            found.extend(current.take().filter(|_| count.trim() == "0 kB"));
        } else if !line
            .split_whitespace()
            .next()
            .is_some_and(|word| word.ends_with(':'))
        {
            current = file_mapping(line, program);
        }
    }
    found
}

/// Address and length by a mapping's first line, `start-end r-xp offset device inode path`.
fn file_mapping(line: &str, program: &Path) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (permissions, inode, path) = (fields.next()?, fields.nth(2)?, fields.next()?);
    let constant = permissions == "r--p" && Path::new(path) == program;
    if !(permissions == "r-xp" || constant) || inode == "0" || !path.starts_with('/') {
        return None;
    }
    let start = usize::from_str_radix(start, 16).ok()?;
    let end = usize::from_str_radix(end, 16).ok()?;
    Some((start, end.checked_sub(start)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_as_its_file_is_released() {
        let program = Path::new("/usr/bin/troth-agent");
        let text = "7f00-9f00 r-xp 00001000 fe:00 12345   /usr/bin/troth-agent";
        let constants = "a000-b000 r--p 00001000 fe:00 12345   /usr/bin/troth-agent";
        for (first, anonymous, expected) in [
            (text, 0, Some((0x7f00, 0x2000))),
            (constants, 0, Some((0xa000, 0x1000))),
            // Relocated.
            (text, 4, None),
            (constants, 40, None),
            (
                "7f00-9f00 r--p 00001000 fe:00 12345   /usr/lib/libc.so.6",
                0,
                None,
            ),
            (
                "7f00-9f00 rw-p 00001000 fe:00 12345   /usr/bin/troth-agent",
                0,
                None,
            ),
            (
                "7f00-9f00 rwxp 00001000 fe:00 12345   /usr/bin/troth-agent",
                0,
                None,
            ),
            (
                "7f00-9f00 r--s 00001000 fe:00 12345   /usr/bin/troth-agent",
                0,
                None,
            ),
            ("7ffd-7fff r-xp 00000000 00:00 0       [vdso]", 0, None),
            ("7f00-9f00 r-xp 00000000 00:00 0", 0, None),
            ("", 0, None),
        ] {
            let smaps = format!(
                "{first}\nSize: 8 kB\nRss: 8 kB\nAnonymous:  {anonymous} kB\nVmFlags: rd ex mr\n\
                 c000-d000 rw-p 00000000 00:00 0 [heap]\nSize: 4 kB\nAnonymous: 0 kB\n"
            );
            let found = unchanged_mappings(&smaps, program);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{smaps}");
        }
        let cut = format!("{text}\nSize: 8 kB\n");
        assert!(unchanged_mappings(&cut, program).is_empty());
    }

    #[test]
    fn the_program_runs_on() {
        release_start_up_code();
        assert_eq!(
            "1,2"
                .split(',')
                .filter_map(|n| n.parse::<u8>().ok())
                .sum::<u8>(),
            3
        );
    }
}
