use std::{
    fs,
    path::{Path, PathBuf},
};

/// Name of the mount point in the state directory.
const NAME: &str = "secure";

/// Options of the mount without which nothing there is safe: as they stand in mountinfo, of the
/// mount and of the file system.
const MOUNT_OPTIONS: [&str; 3] = ["nosuid", "nodev", "noexec"];
const SWAP_OPTION: &str = "noswap";

/// The tmpfs for secrets in `state_dir`, if it is as it must be: never swapped, and nothing in it
/// can be run.
pub(crate) fn find(state_dir: &Path) -> Option<PathBuf> {
    let path = state_dir.join(NAME);
    let mounts = fs::read("/proc/self/mountinfo").ok()?;
    is_secure(&String::from_utf8_lossy(&mounts), &path).then_some(path)
}

/// What counts is the mount that was made last at this place (proc_pid_mountinfo(5)).
fn is_secure(mountinfo: &str, path: &Path) -> bool {
    let mut mounts = mountinfo.lines().filter_map(Mount::parse);
    let last = mounts.rfind(|mount| Path::new(&mount.point) == path);
    last.is_some_and(|mount| {
        let has = |options: &str, wanted: &str| options.split(',').any(|option| option == wanted);
        mount.kind == "tmpfs"
            && has(mount.super_options, SWAP_OPTION)
            && MOUNT_OPTIONS
                .iter()
                .all(|wanted| has(mount.options, wanted))
    })
}

/// One line.
struct Mount<'a> {
    point: String,
    options: &'a str,
    kind: &'a str,
    super_options: &'a str,
}

impl<'a> Mount<'a> {
    fn parse(line: &'a str) -> Option<Self> {
        let (mount, file_system) = line.split_once(" - ")?;
        let mut mount = mount.split(' ').skip(4);
        let mut file_system = file_system.split(' ');
        Some(Self {
            point: unescape(mount.next()?),
            options: mount.next()?,
            kind: file_system.next()?,
            super_options: file_system.nth(1)?,
        })
    }
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(text: &str) -> String {
    let escapes = [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ];
    let replace = |text: String, (escape, plain): &(&str, &str)| text.replace(escape, plain);
    escapes.iter().fold(text.to_owned(), replace)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECURE: &str = "611 58 0:45 / /var/lib/troth/secure rw,nosuid,nodev,noexec,relatime \
                          shared:310 - tmpfs tmpfs rw,size=1024k,mode=700,uid=993,noswap";

    fn secure(mountinfo: &str) -> bool {
        is_secure(mountinfo, Path::new("/var/lib/troth/secure"))
    }

    #[test]
    fn a_tmpfs_that_is_never_swapped_is_secure() {
        let root = "22 1 254:1 / / rw,relatime - ext4 /dev/vda1 rw";
        assert!(secure(&format!("{root}\n{SECURE}\n")));
        assert!(!secure(root));
        let elsewhere = Path::new("/var/lib/troth/secure2");
        assert!(!is_secure(SECURE, elsewhere));
    }

    #[test]
    fn what_can_be_swapped_or_run_or_hides_it_is_not() {
        for lacking in [",noswap", ",nosuid", ",nodev", ",noexec"] {
            assert!(!secure(&SECURE.replace(lacking, "")), "{lacking}");
        }
        assert!(!secure(&SECURE.replace(" - tmpfs ", " - ramfs ")));
        let over = SECURE.replace("noswap", "swap");
        assert!(!secure(&format!("{SECURE}\n{over}")));
        assert!(secure(&format!("{over}\n{SECURE}")));
    }

    #[test]
    fn odd_lines_are_no_mounts() {
        for odd in ["", " - ", "1 2 3", "a b c d /var/lib/troth/secure - tmpfs"] {
            assert!(!secure(odd), "{odd}");
        }
        let spaced = SECURE.replace("/troth/", "/tro\\040th\\134/");
        assert!(is_secure(&spaced, Path::new("/var/lib/tro th\\/secure")));
    }
}
