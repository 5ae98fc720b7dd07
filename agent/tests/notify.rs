//! What the service manager is told by the process: readiness, status, watchdog, stop; and the exit
//! status. On swtpm: needs the packages swtpm and swtpm-tools (`cargo xtask setup`).
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use std::{
    fs,
    io::{Read, Write},
    net::{TcpListener, TcpStream},
    os::unix::net::UnixDatagram,
    path::Path,
    process::{Child, Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use troth_core::tpm::{Public, make_credential};
use troth_tests::tpm::Swtpm;

const PATIENCE: Duration = Duration::from_secs(30);

/// A registrar for one agent, over plain HTTP/1.1, that accepts everything.
fn registrar() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            thread::spawn(move || while answer(&stream).is_some() {});
        }
    });
    port
}

fn answer(mut stream: &TcpStream) -> Option<()> {
    let (mut request, mut byte) = (Vec::new(), [0]);
    while !request.ends_with(b"\r\n\r\n") {
        stream.read_exact(&mut byte).ok()?;
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).unwrap().to_lowercase();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body).ok()?;
    let results = if head.starts_with("get") {
        r#"{"current_version":"2.6","supported_versions":["2.6"]}"#.to_owned()
    } else if head.starts_with("post") {
        let body: Value = serde_json::from_slice(&body).unwrap();
        let key = |name: &str| {
            Public::from_tpm2b(&STANDARD.decode(body[name].as_str().unwrap()).unwrap()).unwrap()
        };
        let blob = make_credential(&key("ek_tpm"), &key("aik_tpm").name(), b"c").unwrap();
        format!(r#"{{"blob":"{}"}}"#, STANDARD.encode(blob.to_bytes()))
    } else {
        "{}".to_owned()
    };
    let body = format!(r#"{{"code":200,"status":"Success","results":{results}}}"#);
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .ok()
}

/// The way to a TPM, which can be made to swallow everything, or to break off.
struct Way {
    port: u16,
    blocked: Arc<AtomicBool>,
    broken: Arc<AtomicBool>,
}

impl Way {
    fn to(tcti: &str) -> Self {
        let target: u16 = tcti.rsplit_once("port=").unwrap().1.parse().unwrap();
        let (blocked, broken) = (Arc::default(), Arc::default());
        loop {
            let data = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = data.local_addr().unwrap().port();
            if let Ok(control) = TcpListener::bind(("127.0.0.1", port + 1)) {
                forward(data, target, &blocked, &broken);
                forward(control, target + 1, &blocked, &broken);
                return Self {
                    port,
                    blocked,
                    broken,
                };
            }
        }
    }
}

fn forward(
    listener: TcpListener,
    target: u16,
    blocked: &Arc<AtomicBool>,
    broken: &Arc<AtomicBool>,
) {
    let (blocked, broken) = (Arc::clone(blocked), Arc::clone(broken));
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            if broken.load(Ordering::SeqCst) {
                continue;
            }
            let tpm = TcpStream::connect(("127.0.0.1", target)).unwrap();
            let pairs = [
                (client.try_clone().unwrap(), tpm.try_clone().unwrap()),
                (tpm, client),
            ];
            for (mut from, mut to) in pairs {
                let (blocked, broken) = (Arc::clone(&blocked), Arc::clone(&broken));
                thread::spawn(move || {
                    let mut bytes = [0; 8192];
                    while let Ok(read @ 1..) = from.read(&mut bytes) {
                        if broken.load(Ordering::SeqCst) {
                            break;
                        }
                        if !blocked.load(Ordering::SeqCst) {
                            to.write_all(&bytes[..read]).ok();
                        }
                    }
                    to.shutdown(std::net::Shutdown::Both).ok();
                });
            }
        }
    });
}

struct Manager {
    socket: UnixDatagram,
    agent: Child,
}

impl Manager {
    fn start(directory: &Path, config: &str) -> Self {
        Self::start_logging_to(directory, config, Stdio::null())
    }

    fn start_logging_to(directory: &Path, config: &str, log: Stdio) -> Self {
        let mut command = agent(directory, config);
        command.stderr(log);
        Self::run(directory, &mut command)
    }

    fn run(directory: &Path, command: &mut Command) -> Self {
        let path = directory.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(1500)))
            .unwrap();
        command
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", "200000");
        let agent = command.spawn().unwrap();
        Self { socket, agent }
    }

    /// The next message; `None` when the agent has nothing to say.
    fn message(&self) -> Option<String> {
        let mut bytes = [0; 4096];
        let length = self.socket.recv(&mut bytes).ok()?;
        Some(String::from_utf8(bytes[..length].to_vec()).unwrap())
    }

    fn wait_for(&self, what: &str) -> Vec<String> {
        let start = Instant::now();
        let mut seen = Vec::new();
        while start.elapsed() < PATIENCE {
            seen.extend(self.message());
            if seen.last().is_some_and(|message| message.contains(what)) {
                return seen;
            }
        }
        panic!("no {what} in {seen:?}");
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.agent), signal).unwrap();
    }

    fn terminate(&mut self) -> Option<i32> {
        self.signal(Signal::TERM);
        self.agent.wait().unwrap().code()
    }
}

impl Drop for Manager {
    fn drop(&mut self) {
        self.agent.kill().ok();
        self.agent.wait().ok();
    }
}

fn agent(directory: &Path, config: &str) -> Command {
    let file = directory.join("agent.toml");
    fs::write(&file, config).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_troth-agent"));
    command.arg("--config").arg(file).stderr(Stdio::null());
    command
}

#[test]
fn the_service_manager_hears_of_readiness_and_of_a_tpm_that_hangs() {
    let directory = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
        .expect("swtpm is needed: install the packages swtpm and swtpm-tools");
    let way = Way::to(&swtpm.tcti());
    let config = format!(
        "state_dir = {:?}\nport = 0\nregistrar_port = {}\ntpm_encryption_alg = \"ecc\"\n\
         enable_agent_mtls = false\ntcti = \"swtpm:host=127.0.0.1,port={}\"\n",
        directory.path().join("state"),
        registrar(),
        way.port
    );
    let mut manager = Manager::start(directory.path(), &config);
    let seen = manager.wait_for("READY=1");
    assert!(seen[0].contains("STATUS=Waiting for the TPM"), "{seen:?}");
    assert!(
        seen.last().unwrap().contains("STATUS=Attesting as "),
        "{seen:?}"
    );
    assert!(
        !seen.iter().any(|message| message.contains("WATCHDOG=1")),
        "{seen:?}"
    );
    manager.wait_for("WATCHDOG=1");
    manager.wait_for("WATCHDOG=1");

    way.blocked.store(true, Ordering::SeqCst);
    let mut fed = 0;
    while let Some(message) = manager.message() {
        assert!(message.contains("WATCHDOG=1"), "{message}");
        fed += 1;
        assert!(fed < 5, "the watchdog is fed without the TPM");
    }
    manager.agent.kill().unwrap();
}

/// A registrar that is down holds up no boot, and the agent behind it is watched all the same.
#[test]
fn a_start_is_over_when_the_registrar_does_not_answer() {
    let directory = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
        .expect("swtpm is needed: install the packages swtpm and swtpm-tools");
    let unused = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = unused.local_addr().unwrap().port();
    drop(unused);
    let config = format!(
        "state_dir = {:?}\nport = 0\nregistrar_port = {port}\ntpm_encryption_alg = \"ecc\"\n\
         enable_agent_mtls = false\ntcti = {:?}\n",
        directory.path().join("state"),
        swtpm.tcti()
    );
    let mut manager = Manager::start(directory.path(), &config);
    let seen = manager.wait_for("READY=1");
    let last = seen.last().unwrap();
    assert!(
        last.contains("STATUS=Not registered, trying again"),
        "{seen:?}"
    );
    manager.wait_for("WATCHDOG=1");
    assert_eq!(manager.terminate(), Some(0));
}

#[test]
fn a_reload_is_answered_and_says_what_needs_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
        .expect("swtpm is needed: install the packages swtpm and swtpm-tools");
    let config = format!(
        "state_dir = {:?}\nport = 0\nregistrar_port = {}\ntpm_encryption_alg = \"ecc\"\n\
         enable_agent_mtls = false\ntcti = {:?}\n",
        directory.path().join("state"),
        registrar(),
        swtpm.tcti()
    );
    let log = fs::File::create(directory.path().join("log")).unwrap();
    let mut manager = Manager::start_logging_to(directory.path(), &config, log.into());
    manager.wait_for("READY=1");
    for (change, told) in [
        ("log = \"debug\"\n", "INFO configuration reloaded"),
        (
            "log = \"debug\"\nuuid = \"hostname\"\n",
            "a restart is needed for uuid",
        ),
        ("no_such_option = 1\n", "configuration not reloaded"),
        (
            "log = \"debgu\"\n",
            "all stays as it was: FILE: line 7: \"debgu\" is not a level",
        ),
        (
            "tpm_hash_alg = \"sha7\"\n",
            "all stays as it was: tpm_hash_alg = \"sha7\" is not known",
        ),
    ] {
        fs::write(
            directory.path().join("agent.toml"),
            format!("{config}{change}"),
        )
        .unwrap();
        manager.signal(Signal::HUP);
        let reloading = manager.wait_for("RELOADING=1");
        assert!(
            reloading.last().unwrap().contains("\nMONOTONIC_USEC="),
            "{reloading:?}"
        );
        manager.wait_for("READY=1");
        let text = fs::read_to_string(directory.path().join("log")).unwrap();
        let file = directory.path().join("agent.toml");
        let told = told.replace("FILE", file.to_str().unwrap());
        assert!(text.contains(&told), "{text}");
    }
    assert_eq!(manager.terminate(), Some(0));
}

/// As `OpenFile=` hands them over: the agent needs no right to open them.
#[test]
fn files_that_the_service_manager_opened_are_read() {
    let directory = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
        .expect("swtpm is needed: install the packages swtpm and swtpm-tools");
    let id = "4c4c4544-0042-3510-8052-b4c04f564433";
    let entry = format!(
        "10 {} ima-ng sha256:{} /usr/bin/x",
        "a".repeat(40),
        "b".repeat(64)
    );
    let [list, uuid] = [("list", &*entry), ("uuid", id)].map(|(name, text)| {
        let path = directory.path().join(name);
        fs::write(&path, format!("{text}\n")).unwrap();
        path
    });
    let file = directory.path().join("agent.toml");
    let config = format!(
        "state_dir = {:?}\nport = 0\nregistrar_port = {}\ntpm_encryption_alg = \"ecc\"\n\
         enable_agent_mtls = false\ntcti = {:?}\nuuid = \"dmidecode\"\n",
        directory.path().join("state"),
        registrar(),
        swtpm.tcti()
    );
    fs::write(&file, config).unwrap();
    let script = "exec env LISTEN_PID=$$ LISTEN_FDS=2 LISTEN_FDNAMES=ima-list:product-uuid \
                  \"$0\" --config \"$1\" 3<\"$2\" 4<\"$3\"";
    let mut command = Command::new("sh");
    command.arg("-c").arg(script);
    command.arg(env!("CARGO_BIN_EXE_troth-agent"));
    command
        .arg(&file)
        .arg(&list)
        .arg(&uuid)
        .stderr(Stdio::null());
    let mut manager = Manager::run(directory.path(), &mut command);
    let ready = manager.wait_for("READY=1").pop().unwrap();
    let (_, serving) = ready.split_once("STATUS=Attesting as ").unwrap();
    let (found, address) = serving.trim().split_once(" on ").unwrap();
    assert_eq!(found, id);

    let mut stream = TcpStream::connect(address).unwrap();
    let query = "nonce=abcd&mask=0x400&partial=0&ima_ml_entry=0";
    write!(
        stream,
        "GET /v2.6/quotes/integrity?{query} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains(&entry), "{answer}");
    assert_eq!(manager.terminate(), Some(0));
}

#[test]
fn the_status_follows_the_tpm_that_goes_away_and_comes_back() {
    let directory = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
        .expect("swtpm is needed: install the packages swtpm and swtpm-tools");
    let way = Way::to(&swtpm.tcti());
    let config = format!(
        "state_dir = {:?}\nport = 0\nregistrar_port = {}\ntpm_encryption_alg = \"ecc\"\n\
         enable_agent_mtls = false\ntcti = \"swtpm:host=127.0.0.1,port={}\"\n",
        directory.path().join("state"),
        registrar(),
        way.port
    );
    let manager = Manager::start(directory.path(), &config);
    manager.wait_for("READY=1");
    way.broken.store(true, Ordering::SeqCst);
    manager.wait_for("STATUS=No quotes, the TPM does not answer: ");
    way.broken.store(false, Ordering::SeqCst);
    manager.wait_for("STATUS=Attesting as ");
}

#[test]
fn a_stop_is_announced_and_clean() {
    let directory = tempfile::tempdir().unwrap();
    let swtpm = Swtpm::manufacture(&directory.path().join("tpm"))
        .expect("swtpm is needed: install the packages swtpm and swtpm-tools");
    let config = format!(
        "state_dir = {:?}\nport = 0\nregistrar_port = {}\ntpm_encryption_alg = \"rsa\"\n\
         enable_agent_mtls = false\ntcti = {:?}\n",
        directory.path().join("state"),
        registrar(),
        swtpm.tcti()
    );
    // Room for three objects: a start that leaks is not followed by a third one.
    for _ in 0..3 {
        fs::remove_file(directory.path().join("notify")).ok();
        let mut manager = Manager::start(directory.path(), &config);
        manager.wait_for("READY=1");
        assert_eq!(manager.terminate(), Some(0));
        manager.wait_for("STOPPING=1");
        assert_eq!(swtpm.client().loaded_objects().unwrap(), [0; 0]);
    }
}

#[test]
fn a_configuration_that_cannot_work_is_exit_status_78_with_one_clear_line() {
    let directory = tempfile::tempdir().unwrap();
    for (config, named) in [
        ("no_such_option = 1", "no_such_option"),
        ("tpm_hash_alg = \"md5\"", "md5"),
        ("contact_ip = \"0.0.0.0\"", "0.0.0.0"),
        (
            "trusted_client_ca = [\"/nonexistent/ca.crt\"]",
            "/nonexistent/ca.crt",
        ),
    ] {
        let Output { status, stderr, .. } = agent(directory.path(), config)
            .stderr(Stdio::piped())
            .output()
            .unwrap();
        let text = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(78), "{text}");
        assert!(text.contains(named), "{config}: {text}");
    }
}
