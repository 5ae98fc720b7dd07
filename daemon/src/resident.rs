//! Less memory for processes that start once and serve for months.

use std::{ffi::c_void, fs};

use rustix::mm::{Advice, madvise};

/// Gives back the pages of program text that only the start needed: option parsing, key
/// generation, migrations, the initialisation of libcrypto below tpm2-tss. What is needed again
/// comes back from the page cache, page by page.
///
/// Without it a third of the agent's resident memory on every host would be code that never runs
/// again, and half of the registrar's.
pub fn release_start_up_code() {
    let maps = match fs::read_to_string("/proc/self/maps") {
        Ok(maps) => maps,
        Err(error) => return tracing::debug!(%error, "start-up code stays resident"),
    };
    for (start, length) in maps.lines().filter_map(text_mapping) {
        // SAFETY: The range is one whole private mapping of a file, readable and executable but
        // never writable, as the kernel lists it. Nothing in it differs from the file (text has no
        // relocations here), so dropping its pages loses nothing: the next access reads the same
        // bytes again. No crate offers this as a safe call, for a general mapping it cannot be one.
        #[expect(unsafe_code, reason = "madvise(2) has no safe form")]
        let released = unsafe { madvise(start as *mut c_void, length, Advice::LinuxDontNeed) };
        if let Err(error) = released {
            tracing::debug!(%error, "start-up code stays resident");
        }
    }
}

/// Address and length of a line of /proc/self/maps (proc_pid_maps(5)) that is program text from a
/// file: `start-end r-xp offset device inode path`.
fn text_mapping(line: &str) -> Option<(usize, usize)> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let (permissions, inode, path) = (fields.next()?, fields.nth(2)?, fields.next()?);
    if permissions != "r-xp" || inode == "0" || !path.starts_with('/') {
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
    fn only_text_that_comes_from_a_file_is_released() {
        let text = "7f00-9f00 r-xp 00001000 fe:00 12345   /usr/bin/troth-agent";
        assert_eq!(text_mapping(text), Some((0x7f00, 0x2000)));
        for other in [
            "7f00-9f00 r--p 00001000 fe:00 12345   /usr/bin/troth-agent",
            "7f00-9f00 rw-p 00001000 fe:00 12345   /usr/bin/troth-agent",
            "7f00-9f00 rwxp 00001000 fe:00 12345   /usr/bin/troth-agent",
            "7ffd-7fff r-xp 00000000 00:00 0       [vdso]",
            "7f00-9f00 r-xp 00000000 00:00 0",
            "",
        ] {
            assert_eq!(text_mapping(other), None, "{other}");
        }
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
