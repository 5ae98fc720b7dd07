//! The agent's interfaces on a D-Bus daemon of the test's own, with an agent that does as it is told.
//! polkit is met in the node tier: here, callers are the agent's own user.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

use std::{
    collections::HashMap,
    convert::Infallible,
    fs::{self, File},
    io::{Read, Seek, Write},
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::StreamExt;
use tempfile::TempDir;
use tokio::{
    sync::{Notify, broadcast, watch},
    task::JoinHandle,
    time::timeout,
};
use troth_ipc::{
    agent::{
        Action, Agent, Event, Mode, OperationError, PayloadState, Quote, QuoteRequest, Registered,
        State, Status,
    },
    bus::{self, Address},
    logs::{LogLevel, Logs},
    polkit::Polkit,
};
use troth_tests::bus::Bus;
use zbus::{
    Connection, DBusError, MatchRule, Message, MessageStream, OwnedVariant, Variant,
    connection::Builder, message::Type,
};

const PATIENCE: Duration = Duration::from_secs(30);
const NAME: &str = "org.troth.Agent1";
const PATH: &str = "/org/troth/Agent1";
const LOG_CONTROL: (&str, &str) = (
    "/org/freedesktop/LogControl1",
    "org.freedesktop.LogControl1",
);
const PROPERTIES: &str = "org.freedesktop.DBus.Properties";
const INVALID: &str = "org.freedesktop.DBus.Error.InvalidArgs";

/// An agent that does as it is told.
struct Puppet {
    status: watch::Sender<Status>,
    events: broadcast::Sender<Event>,
    /// What the next operation fails with.
    failure: Mutex<Option<OperationError>>,
    /// Lets a quote over the nonce `slow` end.
    answered: Notify,
}

impl Default for Puppet {
    fn default() -> Self {
        let status = Status {
            version: "1.2.3",
            agent_id: None,
            state: State::Starting,
            detail: "Waiting for the TPM".into(),
            mode: Mode::Pull,
            registrar: "registrar.example:8891".into(),
            tcti: "device:/dev/tpmrm0".into(),
            tpm_vendor: String::new(),
            tpm_firmware: String::new(),
            hash_algorithms: Vec::new(),
            last_quote_usec: 0,
            quote_count: 0,
            ima_entries: 0,
            payload_state: PayloadState::None,
            secure_mount: Some("/var/lib/troth/secure".into()),
        };
        Self {
            status: watch::Sender::new(status),
            events: broadcast::Sender::new(8),
            failure: Mutex::default(),
            answered: Notify::new(),
        }
    }
}

impl Puppet {
    fn fails(&self) -> Result<(), OperationError> {
        self.failure.lock().unwrap().take().map_or(Ok(()), Err)
    }
}

impl Agent for Puppet {
    fn status(&self) -> watch::Receiver<Status> {
        self.status.subscribe()
    }

    fn events(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    async fn quote(&self, request: QuoteRequest) -> Result<Quote, OperationError> {
        self.fails()?;
        if request.nonce == b"slow" {
            self.answered.notified().await;
        }
        Ok(Quote {
            message: [b"over ", &request.nonce[..]].concat(),
            signature: vec![2],
            hash_algorithm: "sha256".into(),
            pcrs: vec![(request.pcr_mask, vec![3; 32])],
            ak: vec![4],
        })
    }

    async fn collect_evidence(&self, nonce: String) -> Result<OwnedFd, OperationError> {
        self.fails()?;
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(nonce.as_bytes()).unwrap();
        file.rewind().unwrap();
        Ok(file.into())
    }

    async fn register(&self) -> Result<Registered, OperationError> {
        self.fails()?;
        Ok(Registered {
            agent_id: "node-1".into(),
            api_version: "2.6".into(),
        })
    }

    async fn list_actions(&self) -> Result<Vec<Action>, OperationError> {
        self.fails()?;
        Ok(vec![Action {
            name: "isolate".into(),
            description: "Cuts the host off".into(),
            sandbox: "system".into(),
        }])
    }

    async fn run_action(&self, name: String) -> Result<(), OperationError> {
        self.fails()?;
        match name.as_str() {
            "isolate" => Ok(()),
            _ => Err(OperationError::NoSuchAction(name)),
        }
    }
}

struct Log(Mutex<LogLevel>);

impl Logs for Log {
    fn level(&self) -> LogLevel {
        *self.0.lock().unwrap()
    }

    fn set_level(&self, level: LogLevel) {
        *self.0.lock().unwrap() = level;
    }

    fn target(&self) -> &'static str {
        "journal"
    }

    fn identifier(&self) -> &'static str {
        "troth-agent"
    }
}

struct Stage {
    agent: Arc<Puppet>,
    bus: Bus,
    served: JoinHandle<Infallible>,
    _directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let bus = Bus::start(directory.path()).unwrap();
        let agent = Arc::new(Puppet::default());
        let served = tokio::spawn(bus::serve(
            Arc::clone(&agent),
            Arc::new(Log(Mutex::new(LogLevel::Info))),
            Arc::new(Polkit::default()),
            Address::Other(bus.address()),
        ));
        Self {
            agent,
            bus,
            served,
            _directory: directory,
        }
    }

    /// A client, when the agent is on the bus.
    async fn client(&self) -> Client {
        let address = self.bus.address();
        let connection = Builder::address(address.as_str()).build().await.unwrap();
        let client = Client(connection);
        let there = async {
            while !client.agent_is_there().await {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(PATIENCE, there).await.unwrap();
        client
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        self.served.abort();
    }
}

struct Client(Connection);

impl Client {
    async fn agent_is_there(&self) -> bool {
        let bus = Some("org.freedesktop.DBus");
        let call = self.0.call_method(bus, "/", bus, "NameHasOwner", &NAME);
        call.await.unwrap().body().deserialize().unwrap()
    }

    async fn call<B>(&self, method: &str, body: &B) -> zbus::Result<Message>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let (name, interface) = (Some(NAME), Some(NAME));
        let call = self.0.call_method(name, PATH, interface, method, body);
        timeout(PATIENCE, call).await.unwrap()
    }

    /// The D-Bus name of the error that a call comes to.
    async fn refused<B>(&self, method: &str, body: &B) -> String
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        error_name(&self.call(method, body).await.unwrap_err())
    }

    async fn property(&self, name: &str) -> OwnedVariant {
        self.property_of((PATH, NAME), name).await
    }

    async fn property_of(&self, (path, interface): (&str, &str), name: &str) -> OwnedVariant {
        let body = (interface, name);
        let properties = Some(PROPERTIES);
        let call = self
            .0
            .call_method(Some(NAME), path, properties, "Get", &body);
        let reply = timeout(PATIENCE, call).await.unwrap().unwrap();
        reply.body().deserialize().unwrap()
    }

    async fn set_log_level(&self, level: &str) -> zbus::Result<Message> {
        let (path, interface) = LOG_CONTROL;
        let body = (interface, "LogLevel", Variant::from(level));
        let properties = Some(PROPERTIES);
        let call = self
            .0
            .call_method(Some(NAME), path, properties, "Set", &body);
        timeout(PATIENCE, call).await.unwrap()
    }

    async fn signals(&self) -> MessageStream {
        let rule = MatchRule::builder().msg_type(Type::Signal);
        let rule = rule.path(PATH).build().unwrap();
        let stream = MessageStream::for_match_rule(rule, &self.0, None);
        stream.await.unwrap()
    }

    async fn introspected(&self) -> String {
        let interface = Some("org.freedesktop.DBus.Introspectable");
        let call = self
            .0
            .call_method(Some(NAME), PATH, interface, "Introspect", &());
        call.await.unwrap().body().deserialize().unwrap()
    }
}

fn error_name(error: &zbus::Error) -> String {
    match error {
        zbus::Error::MethodError(name, ..) => name.to_string(),
        zbus::Error::FDO(error) => error.name().to_string(),
        other => panic!("{other:?}"),
    }
}

async fn next(stream: &mut MessageStream) -> Message {
    let message = timeout(PATIENCE, stream.next()).await.unwrap();
    message.unwrap().unwrap()
}

fn member(message: &Message) -> String {
    message.header().member().unwrap().to_string()
}

/// The checked-in XML is what packages install and what people read.
#[tokio::test]
async fn the_xml_is_what_is_served() {
    let stage = Stage::new();
    let served = stage.client().await.introspected().await;
    let begin = served.find("  <interface name=\"org.troth.Agent1\">");
    let served = &served[begin.unwrap()..];
    let end = "  </interface>\n";
    let served = &served[..served.find(end).unwrap() + end.len()];
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("org.troth.Agent1.xml");
    let known = fs::read_to_string(file).unwrap_or_default();
    let (head, known) = known.split_once("<node>\n").unwrap_or_default();
    assert_eq!(
        known,
        format!("{served}</node>\n"),
        "org.troth.Agent1.xml is not what is served, which is\n{served}"
    );
    assert!(head.contains("-//freedesktop//DTD D-BUS Object Introspection 1.0//EN"));
}

#[tokio::test]
async fn properties_are_what_the_agent_says() {
    let stage = Stage::new();
    let client = stage.client().await;
    stage.agent.status.send_modify(|status| {
        status.agent_id = Some("node-1".into());
        status.state = State::TpmUnavailable;
        status.hash_algorithms = vec!["sha1".into(), "sha256".into()];
        status.tpm_vendor = "IFX".into();
        status.tpm_firmware = "7.85".into();
        status.last_quote_usec = u64::MAX;
        status.quote_count = 3;
        status.ima_entries = 4;
        status.payload_state = PayloadState::KeyReceived;
    });
    for (name, value) in [
        ("Version", "1.2.3"),
        ("AgentId", "node-1"),
        ("State", "tpm-unavailable"),
        ("Mode", "pull"),
        ("Registrar", "registrar.example:8891"),
        ("Tcti", "device:/dev/tpmrm0"),
        ("TpmVendor", "IFX"),
        ("TpmFirmware", "7.85"),
        ("PayloadState", "key-received"),
        ("SecureMount", "/var/lib/troth/secure"),
    ] {
        let shown = String::try_from(client.property(name).await).unwrap();
        assert_eq!(shown, value, "{name}");
    }
    for (name, value) in [
        ("LastQuoteUSec", u64::MAX),
        ("QuoteCount", 3),
        ("ImaEntries", 4),
    ] {
        let shown = u64::try_from(client.property(name).await).unwrap();
        assert_eq!(shown, value, "{name}");
    }
    let banks: Vec<String> = client.property("HashAlgorithms").await.try_into().unwrap();
    assert_eq!(banks, ["sha1", "sha256"]);
}

#[tokio::test]
async fn what_changes_is_signalled_together_and_counters_are_not() {
    let stage = Stage::new();
    let client = stage.client().await;
    let mut signals = client.signals().await;
    let quoted = |status: &mut Status| status.quote_count += 1;
    stage.agent.status.send_modify(quoted);
    tokio::task::yield_now().await;
    stage.agent.status.send_modify(|status| {
        status.agent_id = Some("node-1".into());
        status.state = State::Registering;
        status.quote_count += 1;
    });
    let signal = next(&mut signals).await;
    assert_eq!(member(&signal), "PropertiesChanged");
    let body = signal.body();
    let (interface, changed, invalidated): (String, HashMap<String, OwnedVariant>, Vec<String>) =
        body.deserialize().unwrap();
    assert_eq!((interface.as_str(), invalidated.len()), (NAME, 0));
    let changed: HashMap<_, _> = changed
        .into_iter()
        .map(|(name, value)| (name, String::try_from(value).unwrap()))
        .collect();
    let expected = [("AgentId", "node-1"), ("State", "registering")];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(changed, HashMap::from(expected));

    let event = Event::QuoteServed {
        client: "192.0.2.7".into(),
        ima_entries: 12,
    };
    stage.agent.events.send(event).unwrap();
    let signal = next(&mut signals).await;
    assert_eq!(member(&signal), "QuoteServed");
    let body: (String, u64) = signal.body().deserialize().unwrap();
    assert_eq!(body, ("192.0.2.7".to_owned(), 12));
}

type Quoted = (Vec<u8>, Vec<u8>, String, Vec<(u32, Vec<u8>)>, Vec<u8>);

#[tokio::test]
async fn methods_do_what_the_agent_does() {
    let stage = Stage::new();
    let client = stage.client().await;
    let reply = client.call("Quote", &(&b"nonce"[..], 7_u32, 0_u64)).await;
    let quote: Quoted = reply.unwrap().body().deserialize().unwrap();
    assert_eq!(quote.0, b"over nonce");
    assert_eq!(quote.1, [2]);
    assert_eq!(quote.2, "sha256");
    assert_eq!(quote.3, [(7, vec![3; 32])]);
    assert_eq!(quote.4, [4]);

    let reply = client.call("CollectEvidence", &("of-mine", 0_u64)).await;
    let bundle: zbus::OwnedFd = reply.unwrap().body().deserialize().unwrap();
    let mut content = String::new();
    let mut bundle = File::from(OwnedFd::from(bundle));
    bundle.read_to_string(&mut content).unwrap();
    assert_eq!(content, "of-mine");

    let reply = client.call("Register", &0_u64).await.unwrap();
    let registered: (String, String) = reply.body().deserialize().unwrap();
    assert_eq!(registered, ("node-1".to_owned(), "2.6".to_owned()));

    let reply = client.call("ListActions", &0_u64).await.unwrap();
    let actions: Vec<(String, String, String)> = reply.body().deserialize().unwrap();
    assert_eq!(actions[0].0, "isolate");
    assert_eq!(actions[0].2, "system");
    client.call("RunAction", &("isolate", 0_u64)).await.unwrap();
}

#[tokio::test]
async fn what_goes_wrong_has_a_name() {
    let stage = Stage::new();
    let client = stage.client().await;
    let fail_with = |error| *stage.agent.failure.lock().unwrap() = Some(error);
    let why = || "reason".to_owned();
    for (error, name) in [
        (OperationError::NotReady(why()), "NotReady"),
        (OperationError::TpmBusy(why()), "TpmBusy"),
        (OperationError::TpmFailed(why()), "TpmFailed"),
        (
            OperationError::RegistrationFailed(why()),
            "RegistrationFailed",
        ),
        (
            OperationError::ActionsUnavailable(why()),
            "ActionsUnavailable",
        ),
        (OperationError::Host(why()), "HostFailed"),
    ] {
        fail_with(error);
        let refused = client.refused("Register", &0_u64).await;
        assert_eq!(refused, format!("org.troth.Agent1.Error.{name}"));
    }
    let unknown = client.refused("RunAction", &("reboot", 0_u64)).await;
    assert_eq!(unknown, "org.troth.Agent1.Error.NoSuchAction");
    fail_with(OperationError::InvalidArgument {
        argument: "nonce",
        reason: why(),
    });
    let quote = (&b""[..], 0_u32, 0_u64);
    let error = client.call("Quote", &quote).await.unwrap_err();
    assert!(error.to_string().contains("nonce: reason"), "{error}");
    assert_eq!(error_name(&error), INVALID);
}

#[tokio::test]
async fn flags_that_nobody_knows_and_arguments_of_other_types_are_refused() {
    let stage = Stage::new();
    let client = stage.client().await;
    let refused = [
        client.refused("Register", &1_u64).await,
        client.refused("ListActions", &2_u64).await,
        client.refused("RunAction", &("isolate", 1_u64 << 63)).await,
        client.refused("CollectEvidence", &("", 1_u64)).await,
        client.refused("Quote", &(&b"n"[..], 0_u32, 1_u64)).await,
        client.refused("Register", &"0").await,
        client.refused("Quote", &()).await,
    ];
    for name in refused {
        assert_eq!(name, INVALID);
    }
    let unknown = client.refused("Reboot", &()).await;
    assert_eq!(unknown, "org.freedesktop.DBus.Error.UnknownMethod");
}

#[tokio::test]
async fn a_slow_quote_blocks_nothing() {
    let stage = Stage::new();
    let client = stage.client().await;
    let slow = (&b"slow"[..], 0_u32, 0_u64);
    let quote = client.call("Quote", &slow);
    let meanwhile = async {
        let fast = (&b"fast"[..], 0_u32, 0_u64);
        client.call("Quote", &fast).await.unwrap();
        let state = client.property("State").await;
        assert_eq!(String::try_from(state).unwrap(), "starting");
        client.set_log_level("debug").await.unwrap();
        stage.agent.answered.notify_one();
    };
    let (quote, ()) = tokio::join!(quote, meanwhile);
    quote.unwrap();
}

#[tokio::test]
async fn a_bus_that_was_lost_is_joined_again() {
    let mut stage = Stage::new();
    let client = stage.client().await;
    stage.bus.stop().unwrap();
    timeout(PATIENCE, client.0.closed()).await.unwrap();
    // What happens meanwhile is known afterwards.
    let quoted = |status: &mut Status| status.quote_count = 9;
    stage.agent.status.send_modify(quoted);
    stage.bus.start_again().unwrap();
    let client = stage.client().await;
    let count = client.property("QuoteCount").await;
    assert_eq!(u64::try_from(count).unwrap(), 9);
    let mut signals = client.signals().await;
    let attesting = |status: &mut Status| status.state = State::Attesting;
    stage.agent.status.send_modify(attesting);
    assert_eq!(member(&next(&mut signals).await), "PropertiesChanged");
}

#[tokio::test]
async fn the_log_is_turned_up_by_name() {
    let stage = Stage::new();
    let client = stage.client().await;
    let read = async |name: &str| {
        let value = client.property_of(LOG_CONTROL, name).await;
        String::try_from(value).unwrap()
    };
    assert_eq!(read("LogLevel").await, "info");
    assert_eq!(read("LogTarget").await, "journal");
    assert_eq!(read("SyslogIdentifier").await, "troth-agent");
    for (level, shown) in [("debug", "debug"), ("4", "warning"), ("err", "err")] {
        client.set_log_level(level).await.unwrap();
        assert_eq!(read("LogLevel").await, shown);
    }
    let refused = client.set_log_level("loud").await.unwrap_err();
    assert_eq!(error_name(&refused), INVALID);
    assert_eq!(read("LogLevel").await, "err");
}
