use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::Signal;

use crate::node::Network;
use crate::process::{PATIENCE, Process, output_of};

/// The two PCR banks of the captured boots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bank {
    /// TPM_ALG_SHA1.
    Sha1,
    /// TPM_ALG_SHA256.
    Sha256,
}

impl Bank {
    /// Both, in the order of their algorithm ids.
    pub const ALL: [Self; 2] = [Self::Sha1, Self::Sha256];

    /// The TPM_ALG_ID (TCG Algorithm Registry).
    pub fn id(self) -> u16 {
        match self {
            Self::Sha1 => 0x0004,
            Self::Sha256 => 0x000b,
        }
    }

    /// The bank of a TPM_ALG_ID; `None` for those that no captured boot has.
    pub fn from_id(id: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|bank| bank.id() == id)
    }

    /// Length of a digest in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Sha1 => 20,
            Self::Sha256 => 32,
        }
    }

    /// The name in Linux and Keylime.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
        }
    }
}

/// A TPM 2.0 in software with an EK certificate from a certificate authority of its own.
///
/// swtpm serves one connection; [`Swtpm::tcti`] is that of a multiplexer before it, so that the
/// stage can extend PCRs, as a kernel would, while an agent holds the TPM open. There is no
/// resource manager in between, and handles are the TPM's own.
#[derive(Debug)]
pub struct Swtpm {
    directory: PathBuf,
    process: Option<Process>,
    mux: TpmMux,
}

impl Swtpm {
    /// Manufactures a TPM with SHA-1 and SHA-256 banks in `directory` and switches it on.
    pub fn manufacture(directory: &Path) -> Result<Self> {
        manufacture(directory)?;
        let mux = TpmMux::before(&directory.join("tpm.sock"))?;
        let mut tpm = Self {
            directory: directory.to_owned(),
            process: None,
            mux,
        };
        tpm.power_on()?;
        Ok(tpm)
    }

    /// TCTI configuration for libtss2: `swtpm:host=127.0.0.1,port=N`.
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.mux.port)
    }

    /// Makes the TPM reachable in another network namespace too, on `port` of its 127.0.0.1 and the
    /// next. Returns the TCTI configuration there.
    pub fn serve_in(&self, network: &Network, port: u16) -> Result<String> {
        let control = port.checked_add(1).context("no port after the last")?;
        let (data, control) = (network.listen(port)?, network.listen(control)?);
        self.mux.serve(data, control);
        Ok(format!("swtpm:host=127.0.0.1,port={port}"))
    }

    /// The certificate that issued the EK's.
    pub fn ek_issuer(&self) -> PathBuf {
        self.directory.join("ek-ca/issuercert.pem")
    }

    /// Time that the TPM itself has spent on commands so far, whoever sent them.
    pub fn busy(&self) -> Duration {
        Duration::from_nanos(self.mux.tpm.busy_nanos.load(Ordering::Relaxed))
    }

    /// Another client of this TPM, beside whoever holds [`Swtpm::tcti`] open.
    pub fn client(&self) -> TpmClient {
        TpmClient {
            tpm: Arc::clone(&self.mux.tpm),
        }
    }

    /// From the next command on, clients of [`Swtpm::tcti`] see a TPM with this fault;
    /// [`Swtpm::client`] sees none.
    pub fn misbehave(&self, fault: Fault) {
        *lock(&self.mux.tpm.fault) = fault;
    }

    /// Sends a signal to its process: a stopped one takes commands and does not answer.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        match &mut self.process {
            Some(process) => process.signal(signal),
            None => Ok(()),
        }
    }

    /// An orderly power off (TPM2_Shutdown, as every operating system sends it), then power on:
    /// PCRs start again, what is in NV stays.
    pub fn power_cycle(&mut self) -> Result<()> {
        self.client()
            .command(TPM_ST_NO_SESSIONS, TPM_CC_SHUTDOWN, &TPM_SU_CLEAR)?;
        if let Some(process) = &mut self.process {
            process.terminate()?;
        }
        self.process = None;
        self.power_on()
    }

    fn power_on(&mut self) -> Result<()> {
        let socket = self.directory.join("tpm.sock");
        let control = control_socket(&socket);
        for left in [&socket, &control] {
            if left.exists() {
                fs::remove_file(left)?;
            }
        }
        let mut process = Process::start(
            "swtpm",
            &self.directory,
            Command::new("swtpm")
                .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
                .arg("--tpmstate")
                .arg(format!("dir={}", self.directory.join("state").display()))
                .arg("--server")
                .arg(format!("type=unixio,path={}", socket.display()))
                .arg("--ctrl")
                .arg(format!("type=unixio,path={}", control.display())),
        )?;
        process.wait_for_log(0, |_| (socket.exists() && control.exists()).then_some(()))?;
        self.mux.tpm.connect()?;
        self.process = Some(process);
        Ok(())
    }
}

/// Makes a TPM with SHA-1 and SHA-256 banks, switched off: what it keeps in `directory/state`, the
/// authority that certified its EK in `directory/ek-ca`.
pub(crate) fn manufacture(directory: &Path) -> Result<()> {
    let state = directory.join("state");
    let authority = directory.join("ek-ca");
    for made in [directory, &state, &authority] {
        fs::create_dir_all(made)?;
    }
    let localca = crate::process::find_program("swtpm_localca")
        .context("swtpm_localca is missing: run `cargo xtask setup`")?;
    let (conf, options, setup) = (
        directory.join("localca.conf"),
        directory.join("localca.options"),
        directory.join("setup.conf"),
    );
    let ca = authority.display();
    fs::write(
        &conf,
        format!(
            "statedir = {ca}\nsigningkey = {ca}/signkey.pem\n\
             issuercert = {ca}/issuercert.pem\ncertserial = {ca}/certserial\n"
        ),
    )?;
    fs::write(
        &options,
        "--platform-manufacturer Troth\n--platform-version 1\n--platform-model test\n",
    )?;
    fs::write(
        &setup,
        format!(
            "create_certs_tool = {}\ncreate_certs_tool_config = {}\n\
             create_certs_tool_options = {}\nactive_pcr_banks = sha1,sha256\n",
            localca.display(),
            conf.display(),
            options.display()
        ),
    )?;
    output_of(
        Command::new("swtpm_setup")
            .args([
                "--tpm2",
                "--create-ek-cert",
                "--pcr-banks",
                "sha1,sha256",
                "--tpmstate",
            ])
            .arg(&state)
            .arg("--config")
            .arg(&setup),
    )
    .context("swtpm_setup could not make a TPM")
    .map(drop)
}

/// What is wrong with a TPM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Connections break at the next command.
    Gone,
    /// Every command succeeds, with bytes that mean nothing.
    Garbage,
    /// Each TPM2_Quote takes this much longer.
    Slow(Duration),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// swtpm's control channel beside a data channel at `socket`.
fn control_socket(socket: &Path) -> PathBuf {
    socket.with_added_extension("ctrl")
}

/// Sends single TPM commands, each whole, between those of other clients.
#[derive(Clone, Debug)]
pub struct TpmClient {
    tpm: Arc<Backend>,
}

const TPM_ST_NO_SESSIONS: u16 = 0x8001;
const TPM_ST_SESSIONS: u16 = 0x8002;
const TPM_CC_NV_UNDEFINE_SPACE: u32 = 0x122;
const TPM_CC_NV_DEFINE_SPACE: u32 = 0x12a;
const TPM_CC_NV_WRITE: u32 = 0x137;
const TPM_CC_NV_READ: u32 = 0x14e;
const TPM_CC_NV_READ_PUBLIC: u32 = 0x169;
const TPM_CC_CREATE_PRIMARY: u32 = 0x131;
const TPM_CC_FLUSH_CONTEXT: u32 = 0x165;
const TPM_CC_SHUTDOWN: u32 = 0x145;
const TPM_CC_QUOTE: u32 = 0x158;
const TPM_CC_PCR_READ: u32 = 0x17e;
const TPM_CC_GET_CAPABILITY: u32 = 0x17a;
const TPM_CC_PCR_EXTEND: u32 = 0x182;
const TPM_SU_CLEAR: [u8; 2] = [0, 0];
const TPM_CAP_HANDLES: u32 = 1;
const TPM_RH_ENDORSEMENT: u32 = 0x4000_000b;
const TPM_RH_PLATFORM: u32 = 0x4000_000c;
/// TPMA_NV: PPWRITE, PPREAD, OWNERREAD, AUTHREAD, NO_DA, PLATFORMCREATE; as manufacturers do.
const NV_OF_THE_PLATFORM: u32 = 0x4207_0001;
/// Bytes of an NV index that go into one command.
const NV_CHUNK: usize = 512;
/// Authorization area: 9 bytes with TPM_RS_PW, no nonce, no attributes, no password.
const EMPTY_PASSWORD: [u8; 13] = [0, 0, 0, 9, 0x40, 0, 0, 9, 0, 0, 0, 0, 0];
/// First handle of the range of loaded objects (TPM 2.0 Part 2, 7.2).
const TRANSIENT_FIRST: u32 = 0x8000_0000;

impl TpmClient {
    /// TPM2_PCR_Extend with one digest per bank (TPM 2.0 Part 3, 22.2).
    pub fn extend(&self, pcr: u32, digests: &[(Bank, Vec<u8>)]) -> Result<()> {
        let mut body = pcr.to_be_bytes().to_vec();
        body.extend_from_slice(&EMPTY_PASSWORD);
        body.extend_from_slice(&u32::try_from(digests.len())?.to_be_bytes());
        for (bank, digest) in digests {
            ensure!(
                digest.len() == bank.size(),
                "a {} digest has {} bytes",
                bank.name(),
                bank.size()
            );
            body.extend_from_slice(&bank.id().to_be_bytes());
            body.extend_from_slice(digest);
        }
        self.command(TPM_ST_SESSIONS, TPM_CC_PCR_EXTEND, &body)
            .map(drop)
    }

    /// The present value of one PCR.
    pub fn read(&self, bank: Bank, pcr: u32) -> Result<Vec<u8>> {
        let mut body = 1_u32.to_be_bytes().to_vec();
        body.extend_from_slice(&bank.id().to_be_bytes());
        body.push(3);
        body.extend_from_slice(&(1_u32 << pcr).to_le_bytes()[..3]);
        let answer = self.command(TPM_ST_NO_SESSIONS, TPM_CC_PCR_READ, &body)?;
        // Update counter, selection of one bank, count of one, TPM2B_DIGEST's size.
        let value = answer
            .get(4 + 4 + 6 + 4 + 2..)
            .context("TPM2_PCR_Read: a short answer")?;
        ensure!(
            value.len() == bank.size(),
            "the TPM has no {} bank",
            bank.name()
        );
        Ok(value.to_vec())
    }

    /// Objects loaded in the TPM. What an agent leaves behind is found here.
    pub fn loaded_objects(&self) -> Result<Vec<u32>> {
        let mut body = TPM_CAP_HANDLES.to_be_bytes().to_vec();
        body.extend_from_slice(&TRANSIENT_FIRST.to_be_bytes());
        body.extend_from_slice(&64_u32.to_be_bytes());
        let answer = self.command(TPM_ST_NO_SESSIONS, TPM_CC_GET_CAPABILITY, &body)?;
        // "More data" flag, capability, count.
        let handles = answer
            .get(1 + 4 + 4..)
            .context("TPM2_GetCapability: a short answer")?;
        Ok(handles
            .chunks_exact(4)
            .map(|bytes| u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
            .collect())
    }

    /// TPM2_CreatePrimary in the endorsement hierarchy, flushed again. `template` is TPMT_PUBLIC;
    /// so is what is returned.
    pub fn endorsement_primary(&self, template: &[u8]) -> Result<Vec<u8>> {
        let mut body = TPM_RH_ENDORSEMENT.to_be_bytes().to_vec();
        body.extend_from_slice(&EMPTY_PASSWORD);
        // No authValue and no data for the key itself.
        body.extend_from_slice(&[0, 4, 0, 0, 0, 0]);
        body.extend_from_slice(&u16::try_from(template.len())?.to_be_bytes());
        body.extend_from_slice(template);
        // No outside info, no creation PCRs.
        body.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
        let answer = self.command(TPM_ST_SESSIONS, TPM_CC_CREATE_PRIMARY, &body)?;
        let (handle, rest) = answer.split_at_checked(4).context("no handle")?;
        self.command(TPM_ST_NO_SESSIONS, TPM_CC_FLUSH_CONTEXT, handle)?;
        // Size of the parameters, then TPM2B_PUBLIC.
        let public = rest.get(4..).and_then(|rest| {
            let (size, rest) = rest.split_first_chunk::<2>()?;
            rest.get(..usize::from(u16::from_be_bytes(*size)))
        });
        Ok(public
            .context("TPM2_CreatePrimary: a short answer")?
            .to_vec())
    }

    /// Writes a whole NV index as the platform does; what was there before is gone.
    pub fn write_nv(&self, index: u32, content: &[u8]) -> Result<()> {
        // An index that is not there yet cannot be removed.
        let _ = self.remove_nv(index);
        let mut public = index.to_be_bytes().to_vec();
        public.extend_from_slice(&Bank::Sha256.id().to_be_bytes());
        public.extend_from_slice(&NV_OF_THE_PLATFORM.to_be_bytes());
        public.extend_from_slice(&[0, 0]);
        public.extend_from_slice(&u16::try_from(content.len())?.to_be_bytes());
        // No authValue.
        let mut parameters = vec![0, 0];
        parameters.extend_from_slice(&u16::try_from(public.len())?.to_be_bytes());
        parameters.extend_from_slice(&public);
        self.as_platform(TPM_CC_NV_DEFINE_SPACE, &[], &parameters)?;
        for (number, chunk) in content.chunks(NV_CHUNK).enumerate() {
            let mut parameters = u16::try_from(chunk.len())?.to_be_bytes().to_vec();
            parameters.extend_from_slice(chunk);
            let offset = u16::try_from(number * NV_CHUNK)?;
            parameters.extend_from_slice(&offset.to_be_bytes());
            self.as_platform(TPM_CC_NV_WRITE, &index.to_be_bytes(), &parameters)?;
        }
        Ok(())
    }

    /// The whole content of an NV index that the platform may read.
    pub fn read_nv(&self, index: u32) -> Result<Vec<u8>> {
        let handle = index.to_be_bytes();
        let about = self.command(TPM_ST_NO_SESSIONS, TPM_CC_NV_READ_PUBLIC, &handle)?;
        // TPM2B_NV_PUBLIC, which ends with the size, before the name.
        let (size, rest) = about
            .split_first_chunk::<2>()
            .context("no NV public area")?;
        let public = rest.get(..usize::from(u16::from_be_bytes(*size)));
        let size = public.and_then(<[u8]>::last_chunk::<2>);
        let size = usize::from(u16::from_be_bytes(*size.context("no size")?));
        let mut content = Vec::new();
        while content.len() < size {
            let length = u16::try_from((size - content.len()).min(NV_CHUNK))?;
            let offset = u16::try_from(content.len())?;
            let parameters = [length.to_be_bytes(), offset.to_be_bytes()].concat();
            let answer = self.as_platform(TPM_CC_NV_READ, &handle, &parameters)?;
            // Size of the parameters, then TPM2B_MAX_NV_BUFFER.
            let end = 4 + 2 + usize::from(length);
            content.extend_from_slice(answer.get(6..end).context("a short NV answer")?);
        }
        Ok(content)
    }

    /// Removes an NV index of the platform.
    pub fn remove_nv(&self, index: u32) -> Result<()> {
        self.as_platform(TPM_CC_NV_UNDEFINE_SPACE, &index.to_be_bytes(), &[])
            .map(drop)
    }

    /// A command of the platform hierarchy, which has no password in a TPM that just started.
    fn as_platform(&self, code: u32, handle: &[u8], parameters: &[u8]) -> Result<Vec<u8>> {
        let platform = TPM_RH_PLATFORM.to_be_bytes();
        let body = [&platform, handle, &EMPTY_PASSWORD, parameters].concat();
        self.command(TPM_ST_SESSIONS, code, &body)
    }

    fn command(&self, tag: u16, code: u32, body: &[u8]) -> Result<Vec<u8>> {
        let mut command = tag.to_be_bytes().to_vec();
        command.extend_from_slice(&u32::try_from(HEADER + body.len())?.to_be_bytes());
        command.extend_from_slice(&code.to_be_bytes());
        command.extend_from_slice(body);
        let answer = self.tpm.exchange(&command)?;
        let status = u32::from_be_bytes([answer[6], answer[7], answer[8], answer[9]]);
        if status != 0 {
            bail!("TPM command {code:#x} failed: response code {status:#x}");
        }
        Ok(answer[HEADER..].to_vec())
    }
}

/// A response that says success (tag without sessions, its own size, TPM_RC_SUCCESS) and no more.
const GARBAGE: [u8; 16] = [
    0x80, 1, 0, 0, 0, 16, 0, 0, 0, 0, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5, 0xa5,
];

/// Length of a command's or response's header: tag, size, code.
const HEADER: usize = 10;

/// The one connection that swtpm serves.
#[derive(Debug)]
struct Backend {
    socket: PathBuf,
    connection: Mutex<Option<UnixStream>>,
    busy_nanos: AtomicU64,
    fault: Mutex<Fault>,
}

impl Backend {
    fn connect(&self) -> Result<()> {
        let start = Instant::now();
        let stream = loop {
            match UnixStream::connect(&self.socket) {
                Ok(stream) => break stream,
                Err(error) if start.elapsed() > PATIENCE => {
                    return Err(error).context("swtpm does not answer");
                }
                Err(_) => thread::sleep(Duration::from_millis(5)),
            }
        };
        *lock(&self.connection) = Some(stream);
        Ok(())
    }

    /// One whole command, one whole response, with no other client's in between.
    fn exchange(&self, command: &[u8]) -> io::Result<Vec<u8>> {
        let mut connection = lock(&self.connection);
        let stream = connection.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let start = Instant::now();
        stream.write_all(command)?;
        let answer = read_message(stream)?;
        let nanos = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
        self.busy_nanos.fetch_add(nanos, Ordering::Relaxed);
        answer.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
    }
}

/// Reads a command or a response by its header's size; `None` at the end of the stream.
fn read_message(stream: &mut impl Read) -> io::Result<Option<Vec<u8>>> {
    let mut message = vec![0; HEADER];
    if stream.read(&mut message[..1])? == 0 {
        return Ok(None);
    }
    stream.read_exact(&mut message[1..])?;
    let size = u32::from_be_bytes([message[2], message[3], message[4], message[5]]);
    let size = usize::try_from(size).unwrap_or(usize::MAX);
    if !(HEADER..=8192).contains(&size) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "not a TPM message",
        ));
    }
    message.resize(size, 0);
    stream.read_exact(&mut message[HEADER..])?;
    Ok(Some(message))
}

/// Listens as swtpm does (data on a port, control on the next) and passes whole commands on to
/// the one connection that swtpm serves. Its threads end with the process.
#[derive(Debug)]
struct TpmMux {
    port: u16,
    tpm: Arc<Backend>,
}

impl TpmMux {
    fn before(socket: &Path) -> Result<Self> {
        let (data, control, port) = port_pair()?;
        let tpm = Arc::new(Backend {
            socket: socket.to_owned(),
            connection: Mutex::new(None),
            busy_nanos: AtomicU64::new(0),
            fault: Mutex::default(),
        });
        let mux = Self { port, tpm };
        mux.serve(data, control);
        Ok(mux)
    }

    fn serve(&self, data: TcpListener, control: TcpListener) {
        let backend = Arc::clone(&self.tpm);
        serve(data, move |client| serve_data(client, &backend));
        let control_path = control_socket(&self.tpm.socket);
        serve(control, move |client| serve_control(&client, &control_path));
    }
}

/// Two listeners on neighbouring ports, held from the start so that nobody comes in between.
fn port_pair() -> Result<(TcpListener, TcpListener, u16)> {
    for _ in 0..100 {
        let data = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let port = data.local_addr()?.port();
        let Some(next) = port.checked_add(1) else {
            continue;
        };
        if let Ok(control) = TcpListener::bind((Ipv4Addr::LOCALHOST, next)) {
            return Ok((data, control, port));
        }
    }
    bail!("no two neighbouring ports are free")
}

fn serve<F>(listener: TcpListener, client: F)
where
    F: Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
{
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let client = client.clone();
            // A client that breaks off is its own affair.
            thread::spawn(move || client(stream).ok());
        }
    });
}

fn serve_data(mut client: TcpStream, tpm: &Backend) -> io::Result<()> {
    client.set_nodelay(true)?;
    while let Some(command) = read_message(&mut client)? {
        let fault = *lock(&tpm.fault);
        match fault {
            Fault::Slow(delay) if command[6..HEADER] == TPM_CC_QUOTE.to_be_bytes() => {
                thread::sleep(delay);
            }
            Fault::None | Fault::Slow(_) => {}
            Fault::Gone => return Ok(()),
            Fault::Garbage => {
                client.write_all(&GARBAGE)?;
                continue;
            }
        }
        client.write_all(&tpm.exchange(&command)?)?;
    }
    Ok(())
}

/// Control commands (set locality, cancel) are rare and short: each connection gets its own.
fn serve_control(client: &TcpStream, control: &Path) -> io::Result<()> {
    let tpm = UnixStream::connect(control)?;
    let (mut from_client, mut to_client) = (client.try_clone()?, client.try_clone()?);
    let (mut to_tpm, mut from_tpm) = (tpm.try_clone()?, tpm.try_clone()?);
    let answers = thread::spawn(move || io::copy(&mut from_tpm, &mut to_client));
    io::copy(&mut from_client, &mut to_tpm)?;
    tpm.shutdown(std::net::Shutdown::Write)?;
    answers.join().map_err(|_| io::ErrorKind::Other)??;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_cut_by_their_own_size() {
        let mut stream: &[u8] = &[0x80, 1, 0, 0, 0, 12, 0, 0, 0, 0, 7, 8, 0x80];
        let message = read_message(&mut stream).unwrap().unwrap();
        assert_eq!(message.len(), 12);
        assert_eq!(stream.len(), 1);
        let mut short: &[u8] = &[0x80, 1, 0, 0, 0, 9, 0, 0, 0, 0];
        assert!(read_message(&mut short).is_err());
    }
}
