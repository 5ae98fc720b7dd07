//! Files that the service manager has opened for this process: `OpenFile=` of systemd.service(5),
//! sd_listen_fds(3).

use std::{
    collections::BTreeMap,
    fs::File,
    io,
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// Open files by the names that the unit gives them.
#[derive(Debug, Default)]
pub struct Descriptors(BTreeMap<String, Vec<OwnedFd>>);

impl FromIterator<(String, OwnedFd)> for Descriptors {
    fn from_iter<I: IntoIterator<Item = (String, OwnedFd)>>(named: I) -> Self {
        let mut all = BTreeMap::<_, Vec<_>>::new();
        for (name, descriptor) in named {
            all.entry(name).or_default().push(descriptor);
        }
        Self(all)
    }
}

impl Descriptors {
    /// All that this process was started with; none in any later call. It has to come before
    /// anything else is opened.
    pub fn take_all() -> io::Result<Self> {
        static TAKEN: AtomicBool = AtomicBool::new(false);
        if TAKEN.swap(true, Ordering::SeqCst) {
            return Ok(Self::default());
        }
        let mut found = Vec::new();
        for (number, name) in sd_notify::listen_fds_with_names()? {
            // SAFETY: $LISTEN_PID says that the service manager has opened this descriptor for this
            // very process; that it is open was seen when it was made close-on-exec. Nothing else
            // here owns it: it is taken once, before the process opens any file. No crate offers
            // this as a safe call, as none can know the last part.
            #[expect(unsafe_code, reason = "a number becomes an owned descriptor")]
            let descriptor = unsafe { OwnedFd::from_raw_fd(number) };
            found.push((name, descriptor));
        }
        Ok(found.into_iter().collect())
    }

    /// The descriptor of this name, if there is one. Of several it is the first; the others, which
    /// somebody may be waiting for, are closed.
    pub fn take(&mut self, name: &str) -> Option<OwnedFd> {
        let mut all = self.0.remove(name)?.into_iter();
        let first = all.next();
        if all.len() > 0 {
            tracing::warn!(
                "{} more descriptors called {name}, where one is used: remove what was added to the \
                 unit or its socket, such as a second ListenStream=",
                all.len()
            );
        }
        first
    }

    /// The file of this name, if there is one.
    pub fn take_file(&mut self, name: &str) -> Option<File> {
        self.take(name).map(File::from)
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read, process::Command};

    use super::*;

    const CHILD: &str = "TROTH_TEST_DESCRIPTORS";

    /// Calls itself the way a service manager calls a service.
    #[test]
    fn what_the_service_manager_opened_is_found_by_name() {
        if std::env::var_os(CHILD).is_some() {
            return tell();
        }
        let directory = tempfile::tempdir().unwrap();
        let [one, two] = ["one", "two"].map(|name| {
            let path = directory.path().join(name);
            fs::write(&path, format!("content of {name}")).unwrap();
            path
        });
        let script = "exec env LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=first:second \"$0\" \
                      --exact --nocapture \
                      descriptors::tests::what_the_service_manager_opened_is_found_by_name \
                      3<\"$1\" 4<\"$2\"";
        let mut command = Command::new("sh");
        command.arg("-c").arg(script);
        command.arg(std::env::current_exe().unwrap());
        command.arg(&one).arg(&two).env(CHILD, "1");
        let output = command.output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{text}");
        assert!(
            text.contains("content of one, content of two, then nothing"),
            "{text}"
        );
    }

    fn tell() {
        let mut all = Descriptors::take_all().unwrap();
        let mut read = |name| {
            let mut text = String::new();
            all.take_file(name)
                .unwrap()
                .read_to_string(&mut text)
                .unwrap();
            text
        };
        let (one, two) = (read("first"), read("second"));
        assert!(all.take_file("first").is_none() && all.take_file("third").is_none());
        assert!(Descriptors::take_all().unwrap().0.is_empty());
        println!("{one}, {two}, then nothing");
    }

    #[test]
    fn of_two_with_one_name_the_first_is_used_and_the_other_closed() {
        let (first, peer_of_first) = std::os::unix::net::UnixStream::pair().unwrap();
        let (second, mut peer_of_second) = std::os::unix::net::UnixStream::pair().unwrap();
        let named = [first, second].map(|stream| ("varlink".to_owned(), OwnedFd::from(stream)));
        let mut all: Descriptors = named.into_iter().collect();
        let taken = all.take("varlink").unwrap();
        assert!(all.take("varlink").is_none());
        assert_eq!(peer_of_second.read(&mut [0]).unwrap(), 0);
        peer_of_first.set_nonblocking(true).unwrap();
        let waiting = (&peer_of_first).read(&mut [0]).unwrap_err();
        assert_eq!(waiting.kind(), io::ErrorKind::WouldBlock);
        drop(taken);
        assert_eq!((&peer_of_first).read(&mut [0]).unwrap(), 0);
    }

    #[test]
    fn a_process_that_nobody_opened_files_for_has_none() {
        assert!(Descriptors::take_all().unwrap().0.is_empty());
    }
}
