use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;

use futures_util::StreamExt;
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::time::timeout;
use troth_core::tpm::{
    AttestationKey, Digest, Expected, HashAlgorithm, PcrMask, PcrValues, Public, Quote,
};
use troth_tests::fleet::Answer;
use troth_tests::node::{Container, TCTI};
use troth_tests::process::PATIENCE;
use zbus::connection::Builder;
use zbus::fdo::MonitoringProxy;
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedVariant};

use crate::{ID, SERVER, Site};

const NAME: &str = "org.troth.Agent1";
const PATH: &str = "/org/troth/Agent1";

/// An ordinary user.
const USER: &str = "alice";

/// What the administrator writes for polkit: what [`USER`] may do, and what not.
const RULES: &str = "/etc/polkit-1/rules.d/10-troth.rules";

/// A site whose agent is registered.
fn registered() -> Site {
    let site = Site::new(TCTI, &[]);
    let start = ["systemctl", "start", "troth-agent"];
    site.host.os().output(&start).unwrap();
    site.wait_until_registered();
    wait_for_property(site.host.os(), "State", "attesting");
    site
}

fn property(os: &Container, name: &str) -> anyhow::Result<Value> {
    let busctl = ["busctl", "--json=short", "get-property", NAME, PATH, NAME];
    let shown = os.output(&[&busctl[..], &[name]].concat())?;
    let mut shown: Value = serde_json::from_str(&shown)?;
    Ok(shown["data"].take())
}

fn wait_for_property(os: &Container, name: &str, value: &str) {
    let look = |os: &Container| property(os, name);
    os.wait_for(&format!("{name} is {value}"), look, |shown| shown == value)
        .unwrap();
}

/// A method call as root types it, and its result.
fn call(os: &Container, method: &str, arguments: &[&str]) -> Value {
    let busctl = ["busctl", "--json=short", "call", NAME, PATH, NAME, method];
    let reply = os.output(&[&busctl[..], arguments].concat()).unwrap();
    let mut reply: Value = serde_json::from_str(&reply).unwrap_or_default();
    reply["data"].take()
}

/// A method call as `user` makes it, by a program that prints the names of errors.
fn send(os: &Container, user: &str, method: &str, arguments: &[&str]) -> Answer {
    let method = format!("{NAME}.{method}");
    let destination = format!("--dest={NAME}");
    let send = ["runuser", "-u", user, "--", "dbus-send", "--system"];
    let to = ["--print-reply", &destination, PATH, &method];
    os.run(&[&send[..], &to, arguments].concat()).unwrap()
}

fn quote_for(os: &Container, user: &str) -> Answer {
    let arguments = ["array:byte:1,2,3", "uint32:0", "uint64:0"];
    send(os, user, "Quote", &arguments)
}

fn bytes(value: &Value) -> Vec<u8> {
    let bytes = value.as_array().unwrap().iter();
    bytes
        .map(|byte| u8::try_from(byte.as_u64().unwrap()).unwrap())
        .collect()
}

/// A client of the host's bus, which runs here.
async fn connect(os: &Container) -> Connection {
    let socket = os.file("/run/dbus/system_bus_socket");
    let address = format!("unix:path={}", socket.display());
    Builder::address(address.as_str()).build().await.unwrap()
}

async fn signals(bus: &Connection) -> MessageStream {
    let rule = MatchRule::builder().msg_type(Type::Signal).path(PATH);
    let stream = MessageStream::for_match_rule(rule.build().unwrap(), bus, None);
    stream.await.unwrap()
}

/// The next signal of this name; others are passed over.
async fn next(stream: &mut MessageStream, member: &str) -> Message {
    let next = async {
        loop {
            let message = stream.next().await.unwrap().unwrap();
            if message.header().member().is_some_and(|name| name == member) {
                return message;
            }
        }
    };
    timeout(PATIENCE, next).await.unwrap()
}

#[test]
fn root_reads_every_property_and_calls_every_method() {
    let site = registered();
    let os = site.host.os();
    let shown = |name: &str| property(os, name).unwrap();
    assert_eq!(shown("Version"), env!("CARGO_PKG_VERSION"));
    assert_eq!(shown("AgentId"), ID);
    assert_eq!(shown("Mode"), "pull");
    assert_eq!(shown("Registrar"), format!("{SERVER}:8890"));
    assert_eq!(shown("Tcti"), TCTI);
    let vendor = shown("TpmVendor");
    assert!(vendor.as_str().unwrap().contains("SW TPM"), "{vendor}");
    assert_ne!(shown("TpmFirmware"), "");
    let banks = shown("HashAlgorithms");
    assert!(banks.as_array().unwrap().contains(&"sha256".into()));
    assert_eq!(shown("PayloadState"), "none");
    assert_eq!(shown("SecureMount"), "/var/lib/troth/secure");
    assert_eq!(
        (shown("QuoteCount"), shown("LastQuoteUSec")),
        (0.into(), 0.into())
    );

    // A quote of PCR 10 and, as in each, of PCR 16.
    let quote = call(os, "Quote", &["ayut", "3", "7", "8", "9", "1024", "0"]);
    let ak = Public::from_tpm2b(&bytes(&quote[4])).unwrap();
    let mut values = PcrValues::new(HashAlgorithm::Sha256);
    for pcr in quote[3].as_array().unwrap() {
        let number = u8::try_from(pcr[0].as_u64().unwrap()).unwrap();
        values.set(number, Digest::from_slice(&bytes(&pcr[1])).unwrap());
    }
    let text = Quote::encode(&bytes(&quote[0]), &bytes(&quote[1]), &values);
    let expected = Expected {
        nonce: &[7, 8, 9],
        hash: HashAlgorithm::Sha256,
        mask: PcrMask::from_bits(1 << 10 | 1 << 16).unwrap(),
    };
    let key = AttestationKey::new(&ak).unwrap();
    Quote::parse(&text)
        .unwrap()
        .verify(&key, &expected)
        .unwrap();
    assert_eq!(shown("QuoteCount"), 1);
    assert!(shown("LastQuoteUSec").as_u64().unwrap() > 1_700_000_000_000_000);

    let registered = call(os, "Register", &["t", "0"]);
    assert_eq!(registered[0], ID);
    let start = ["systemctl", "start", "troth-actiond.socket"];
    os.output(&start).unwrap();
    let action = "description = \"Cut it off\"\ncommand = [\"/usr/sbin/nft\"]\n";
    os.write("/etc/troth/actions.d/isolate.toml", action)
        .unwrap();
    let actions = call(os, "ListActions", &["t", "0"]);
    assert_eq!(actions, json!([[["isolate", "Cut it off", "strict"]]]));
    let run = send(os, "root", "RunAction", &["string:isolate", "uint64:0"]);
    let error = "org.troth.Agent1.Error.ActionsUnavailable";
    assert!(run.stderr.contains(error), "{run:?}");

    let installed = "/usr/share/dbus-1/interfaces/org.troth.Agent1.xml";
    assert!(os.file(installed).exists());
    let introspect = ["busctl", "--no-pager", "introspect", NAME, PATH, NAME];
    let introspected = os.output(&introspect).unwrap();
    for (member, flag) in [
        (".Version", "const"),
        (".State", "emits-change"),
        (".QuoteCount", "-"),
    ] {
        let line = introspected.lines().find(|line| line.starts_with(member));
        let line = line.unwrap_or_else(|| panic!("{introspected}"));
        assert_eq!(line.split_whitespace().last(), Some(flag), "{line}");
    }
}

#[test]
fn evidence_of_the_host_is_judged_and_what_happens_is_signalled() {
    let site = Site::new(TCTI, &[]);
    let os = site.host.os();
    Runtime::new().unwrap().block_on(async {
        let bus = connect(os).await;
        let mut signals = signals(&bus).await;
        os.output(&["systemctl", "start", "troth-agent"]).unwrap();
        let mut told = HashMap::new();
        while told.get("State").is_none_or(|state| state != "attesting") {
            let signal = next(&mut signals, "PropertiesChanged").await;
            let body = signal.body();
            let (_, changed, _): (String, HashMap<String, OwnedVariant>, Vec<String>) =
                body.deserialize().unwrap();
            let texts = changed.into_iter();
            told.extend(
                texts.filter_map(|(name, value)| Some((name, String::try_from(value).ok()?))),
            );
        }
        assert_eq!(told["AgentId"], ID);

        let body = ("of-mine", 0_u64);
        let name = Some(NAME);
        let reply = bus.call_method(name, PATH, name, "CollectEvidence", &body);
        let reply = timeout(PATIENCE, reply).await.unwrap().unwrap();
        let bundle: zbus::OwnedFd = reply.body().deserialize().unwrap();
        let signal = next(&mut signals, "QuoteServed").await;
        let (client, entries): (String, u64) = signal.body().deserialize().unwrap();
        let list = std::fs::read(site.host.machine().unwrap().ima_list()).unwrap();
        let lines = list.iter().filter(|byte| **byte == b'\n').count();
        assert_eq!((client.as_str(), entries), ("local", lines as u64));
        assert_eq!(property(os, "ImaEntries").unwrap(), lines as u64);

        let mut content = Vec::new();
        let mut bundle = File::from(OwnedFd::from(bundle));
        bundle.read_to_end(&mut content).unwrap();
        os.write("/root/bundle", content).unwrap();
    });
    let policy = site.host.machine().unwrap().runtime_policy().unwrap();
    os.write("/root/policy.json", policy.to_string()).unwrap();
    let appraise = |nonce| {
        let appraise = ["trothctl", "--json", "appraise", "/root/bundle"];
        let options = ["--policy", "/root/policy.json", "--nonce", nonce];
        os.run(&[&appraise[..], &options].concat()).unwrap()
    };
    let trusted = appraise("of-mine").success().unwrap().json().unwrap();
    assert_eq!(trusted["verdict"], "trusted", "{trusted:#}");
    assert_eq!(trusted["bundles"][0]["node"], ID);
    assert!(!appraise("of-another").status.success());
}

/// Subject (kind and details), action, details, flags, and an id to cancel it by.
type Question = (
    (String, HashMap<String, OwnedVariant>),
    String,
    HashMap<String, String>,
    u32,
    String,
);

#[test]
fn polkit_says_what_an_ordinary_user_may_do() {
    let site = registered();
    let os = site.host.os();
    os.output(&["useradd", "--create-home", USER]).unwrap();
    let refused = |name: &str| {
        let answer = quote_for(os, USER);
        let error = format!("org.freedesktop.DBus.Error.{name}");
        assert!(answer.stderr.contains(&error), "{answer:?}");
    };
    // As it is installed, an administrator has to be asked, and nobody is there who could.
    refused("InteractiveAuthorizationRequired");
    quote_for(os, "root").success().unwrap();
    quote_for(os, "troth").success().unwrap();

    let rule = |action: &str, result: &str| {
        let rule = format!(
            "polkit.addRule(function(action, subject) {{\n\
             if (action.id == \"{action}\" && subject.user == \"{USER}\")\n\
             return polkit.Result.{result};\n}});\n"
        );
        os.write(RULES, rule).unwrap();
        os.output(&["systemctl", "restart", "polkit"]).unwrap();
    };
    rule("org.troth.agent1.quote", "NO");
    refused("AccessDenied");
    rule("org.troth.agent1.evidence", "YES");
    refused("InteractiveAuthorizationRequired");
    rule("org.troth.agent1.quote", "YES");
    quote_for(os, USER).success().unwrap();

    // polkit may ask the user if the call says so, and only then.
    let flags = Runtime::new().unwrap().block_on(async {
        let bus = connect(os).await;
        let monitoring = MonitoringProxy::new(&bus).await.unwrap();
        monitoring.become_monitor(&[], 0).await.unwrap();
        let mut messages = MessageStream::from(&bus);
        for allowed in ["yes", "no"] {
            let interactive = format!("--allow-interactive-authorization={allowed}");
            let busctl = ["runuser", "-u", USER, "--", "busctl", &interactive, "call"];
            let method = [NAME, PATH, NAME, "Quote", "ayut", "1", "5", "0", "0"];
            os.output(&[&busctl[..], &method].concat()).unwrap();
        }
        let mut flags = Vec::new();
        while flags.len() < 2 {
            let question = next(&mut messages, "CheckAuthorization").await;
            let question: Question = question.body().deserialize().unwrap();
            if question.1 == "org.troth.agent1.quote" {
                assert_eq!(question.0.0, "system-bus-name");
                flags.push(question.3);
            }
        }
        flags
    });
    assert_eq!(flags, [1, 0]);

    // Without polkit nothing is granted.
    os.output(&["systemctl", "mask", "--now", "polkit"])
        .unwrap();
    refused("AccessDenied");
    quote_for(os, "root").success().unwrap();
}

#[test]
fn the_log_is_turned_up_by_root_alone() {
    let site = registered();
    let os = site.host.os();
    let level = ["systemctl", "service-log-level", "troth-agent"];
    assert_eq!(os.output(&level).unwrap(), "info\n");
    let target = ["systemctl", "service-log-target", "troth-agent"];
    assert_eq!(os.output(&target).unwrap(), "journal\n");
    let debug = |os: &Container| os.journal(&["--unit=troth-agent", "--priority=debug..debug"]);
    quote_for(os, "root").success().unwrap();
    assert_eq!(debug(os).unwrap(), [Value::Null; 0]);

    os.output(&["useradd", "--create-home", USER]).unwrap();
    let as_user = [&["runuser", "-u", USER, "--"], &level[..], &["debug"]].concat();
    let refused = os.run(&as_user).unwrap();
    assert!(refused.stderr.contains("Access denied"), "{refused:?}");
    assert_eq!(os.output(&level).unwrap(), "info\n");

    os.output(&[&level[..], &["debug"]].concat()).unwrap();
    assert_eq!(os.output(&level).unwrap(), "debug\n");
    quote_for(os, "root").success().unwrap();
    let found = os.wait_for("there are debug messages", debug, |found| !found.is_empty());
    let found = found.unwrap();
    assert_eq!(found[0]["SYSLOG_IDENTIFIER"], "troth-agent", "{found:#?}");
    // As the configuration has it, again.
    os.output(&["systemctl", "reload", "troth-agent"]).unwrap();
    assert_eq!(os.output(&level).unwrap(), "info\n");
}

#[test]
fn a_tpm_that_hangs_blocks_no_property() {
    let mut site = registered();
    let level = ["systemctl", "service-log-level", "troth-agent", "debug"];
    site.host.os().output(&level).unwrap();
    let tpm = site.host.machine_mut().unwrap().tpm_mut();
    tpm.signal(Signal::STOP).unwrap();
    let os = site.host.os();
    let run = ["systemd-run", "--unit=slow-quote", "busctl", "call"];
    let method = [NAME, PATH, NAME, "Quote", "ayut", "1", "5", "0", "0"];
    os.output(&[&run[..], &method].concat()).unwrap();
    let asked = |os: &Container| os.journal(&["--unit=troth-agent", "--grep=asked on the bus"]);
    os.wait_for("the quote was asked for", asked, |found| !found.is_empty())
        .unwrap();
    assert_eq!(property(os, "QuoteCount").unwrap(), 0);
    assert_eq!(property(os, "State").unwrap(), "attesting");
    assert_eq!(os.property("slow-quote", "ActiveState").unwrap(), "active");

    let tpm = site.host.machine_mut().unwrap().tpm_mut();
    tpm.signal(Signal::CONT).unwrap();
    let os = site.host.os();
    let count = |os: &Container| property(os, "QuoteCount");
    os.wait_for("the quote was made", count, |count| *count == 1)
        .unwrap();
}

#[test]
fn whoever_asks_for_an_enabled_agent_starts_it() {
    let site = Site::new(TCTI, &[]);
    let os = site.host.os();
    let ask = ["busctl", "get-property", NAME, PATH, NAME, "Version"];
    let asked = os.run(&ask).unwrap();
    assert!(!asked.status.success(), "not enabled: {asked:?}");
    assert_eq!(
        os.property("troth-agent", "ActiveState").unwrap(),
        "inactive"
    );

    os.output(&["systemctl", "enable", "troth-agent"]).unwrap();
    let version = os.output(&ask).unwrap();
    assert_eq!(version, format!("s \"{}\"\n", env!("CARGO_PKG_VERSION")));
    wait_for_property(os, "State", "attesting");
}
