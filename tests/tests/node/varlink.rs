use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::Signal;
use serde_json::{Value, json};
use troth_tests::fleet::Answer;
use troth_tests::node::{Container, Host, TCTI};

use self::generated::{ErrorKind, State, VarlinkClient, VarlinkClientInterface};
use crate::{ID, Site, agent_toml, any_tpm};

/// What the `varlink` crate makes of our interface: a client that shares no code with our server.
#[allow(
    dead_code,
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::manual_let_else,
    clippy::unwrap_used,
    clippy::use_self,
    reason = "the macro wrote it"
)]
mod generated {
    // What the macro reads is no secret to cargo then.
    const _: &str = include_str!("../../../dbus/org.troth.Agent.varlink");
    varlink_derive::varlink_file!(org_troth_agent, "../dbus/org.troth.Agent.varlink");
    pub(super) use org_troth_agent::*;
}

const AGENT: &str = "/run/troth/org.troth.Agent";
const ACTIONS: &str = "/run/troth/org.troth.Actions";

const INTERFACES: [&str; 4] = [
    "io.systemd.Metrics",
    "io.systemd.service",
    "org.troth.Agent",
    "org.varlink.service",
];

/// A user who is nobody special, but may ask for quotes.
const USER: &str = "alice";
const RULES: (&str, &str) = (
    "/etc/polkit-1/rules.d/50-alice.rules",
    "polkit.addRule(function(action, subject) {\n\
         if (action.id == \"org.troth.agent1.quote\" && subject.user == \"alice\")\n\
             return polkit.Result.YES;\n\
     });\n",
);

/// A nonce as varlink has it.
const NONCE: &str = "AQID";

fn varlinkctl(os: &Container, arguments: &[&str]) -> Value {
    let command = [&["varlinkctl", "--json=short"][..], arguments].concat();
    serde_json::from_str(&os.output(&command).unwrap()).unwrap()
}

fn call(os: &Container, method: &str, parameters: &Value) -> Value {
    let method = format!("org.troth.Agent.{method}");
    varlinkctl(os, &["call", AGENT, &method, &parameters.to_string()])
}

fn add_user(os: &Container) {
    os.output(&["useradd", USER]).unwrap();
}

/// A command of the user's.
fn as_user(os: &Container, command: &[&str]) -> Answer {
    let run = ["runuser", "--user", USER, "--"];
    os.run(&[&run[..], command].concat()).unwrap()
}

/// A socket of the host's, as this process can reach it.
fn socket(os: &Container, path: &str) -> PathBuf {
    os.file(path)
}

fn client(os: &Container) -> VarlinkClient {
    let address = format!("unix:{}", socket(os, AGENT).display());
    VarlinkClient::new(varlink::Connection::with_address(&address).unwrap())
}

/// A host that is registered.
fn registered(files: &[(&str, &str)]) -> Site {
    let site = Site::new(TCTI, files);
    let start = ["systemctl", "start", "troth-agent"];
    site.host.os().output(&start).unwrap();
    site.wait_until_registered();
    site
}

#[test]
fn varlinkctl_calls_every_method_and_polkit_decides_about_users() {
    let site = registered(&[RULES]);
    let os = site.host.os();
    for link in ["/run/varlink/registry", "/run/systemd/report"] {
        let target = os.output(&["readlink", "-f", &format!("{link}/org.troth.Agent")]);
        assert_eq!(target.unwrap().trim_end(), AGENT);
    }
    let about = varlinkctl(os, &["info", AGENT]);
    assert_eq!(about["vendor"], "Troth");
    let mut interfaces: Vec<_> = about["interfaces"].as_array().unwrap().clone();
    interfaces.sort_by_key(Value::to_string);
    assert_eq!(interfaces, INTERFACES);
    for interface in INTERFACES {
        let shown = os.output(&["varlinkctl", "introspect", AGENT, interface]);
        let shown = shown.unwrap();
        assert!(shown.contains(&format!("interface {interface}")), "{shown}");
    }
    let methods = os.output(&["varlinkctl", "list-methods", AGENT, "org.troth.Agent"]);
    let methods = methods.unwrap();
    for method in [
        "GetStatus",
        "Subscribe",
        "Quote",
        "CollectEvidence",
        "RunAction",
    ] {
        let method = format!("org.troth.Agent.{method}");
        assert!(methods.contains(&method), "{methods}");
    }

    let status = call(os, "GetStatus", &json!({}));
    assert_eq!(status["runtime"]["agentId"], ID);
    assert_eq!(status["runtime"]["state"], "attesting");
    assert_eq!(status["context"]["tcti"], TCTI);
    let quote = call(os, "Quote", &json!({ "nonce": NONCE, "pcrs": [0, 10] }));
    let pcrs = quote["pcrs"].as_array().unwrap().iter();
    let pcrs: Vec<_> = pcrs.map(|pcr| pcr["index"].as_u64().unwrap()).collect();
    // The last one binds the agent's key.
    assert_eq!(pcrs, [0, 10, 16]);
    let evidence = call(os, "CollectEvidence", &json!({}));
    assert_eq!(evidence["bundleFileDescriptor"], 0);
    assert_eq!(call(os, "Register", &json!({}))["agentId"], ID);
    assert_eq!(
        call(os, "ListActions", &json!({})),
        json!({ "actions": [] })
    );
    let pinged = varlinkctl(os, &["call", AGENT, "io.systemd.service.Ping", "{}"]);
    assert_eq!(pinged, json!({}));
    for method in ["List", "Describe"] {
        let method = format!("io.systemd.Metrics.{method}");
        let told = os.output(&["varlinkctl", "--more", "call", AGENT, &method, "{}"]);
        assert!(told.unwrap().contains("org.troth.Agent.QuotesTotal"));
    }
    let set_level = [
        "call",
        AGENT,
        "io.systemd.service.SetLogLevel",
        r#"{"level":7}"#,
    ];
    varlinkctl(os, &set_level);
    let level = ["systemctl", "service-log-level", "troth-agent"];
    assert_eq!(os.output(&level).unwrap(), "debug\n");
    let environment = ["call", AGENT, "io.systemd.service.GetEnvironment", "{}"];
    let environment = varlinkctl(os, &environment)["environment"].clone();
    assert!(
        environment
            .as_array()
            .unwrap()
            .contains(&"STATE_DIRECTORY=/var/lib/troth".into()),
        "{environment}"
    );
    varlinkctl(os, &["call", AGENT, "io.systemd.service.Reload", "{}"]);
    let reloaded = |os: &Container| os.journal(&["--unit=troth-agent", "--grep=reloaded"]);
    os.wait_for(
        "the agent reads its configuration again",
        reloaded,
        |entries| !entries.is_empty(),
    )
    .unwrap();
    // With the configuration, the level is the configured one again.
    assert_eq!(os.output(&level).unwrap(), "info\n");

    add_user(os);
    let ask = |method: &str, parameters: Value| {
        let (method, parameters) = (method.to_owned(), parameters.to_string());
        as_user(os, &["varlinkctl", "call", AGENT, &method, &parameters])
    };
    let own = |method: &str| format!("org.troth.Agent.{method}");
    ask(&own("GetStatus"), json!({})).success().unwrap();
    ask(&own("ListActions"), json!({})).success().unwrap();
    ask("io.systemd.service.Ping", json!({})).success().unwrap();
    ask(&own("Quote"), json!({ "nonce": NONCE }))
        .success()
        .unwrap();
    let challenge = "io.systemd.InteractiveAuthenticationRequired";
    for (method, parameters, error) in [
        (own("CollectEvidence"), json!({}), challenge),
        (own("Register"), json!({}), challenge),
        (own("RunAction"), json!({ "name": "x" }), challenge),
        (
            "io.systemd.service.Reload".to_owned(),
            json!({}),
            "PermissionDenied",
        ),
        (
            "io.systemd.service.GetEnvironment".to_owned(),
            json!({}),
            "PermissionDenied",
        ),
        (
            "io.systemd.service.SetLogLevel".to_owned(),
            json!({ "level": 7 }),
            "PermissionDenied",
        ),
    ] {
        let refused = ask(&method, parameters);
        assert!(!refused.status.success(), "{method}");
        assert!(refused.stderr.contains(error), "{method}: {refused:?}");
    }
}

#[test]
fn the_varlink_crates_client_meets_an_agent_whose_tpm_may_hang() {
    let mut site = registered(&[]);
    let os = site.host.os();
    let told = client(os).get_status().call().unwrap();
    assert_eq!(told.runtime.agentId.as_deref(), Some(ID));
    assert!(matches!(told.runtime.state, State::attesting));
    let (mut watching, mut asking) = (client(os), client(os));
    let mut stream = watching.subscribe();
    let stream = stream.more().unwrap();
    let first = stream.next().unwrap().unwrap();
    assert_eq!(first.runtime.unwrap().agentId.as_deref(), Some(ID));

    let nonce = STANDARD.encode([7; 64]);
    let quote = asking.quote(nonce, Some(vec![7]), None).call().unwrap();
    assert_eq!(quote.hashAlgorithm, "sha256");
    let message = STANDARD.decode(&quote.message).unwrap();
    assert!(message.windows(64).any(|part| part == [7; 64]));
    let quoted = stream.find_map(|update| update.unwrap().event).unwrap();
    assert_eq!(quoted.quoteServed.unwrap().client, "local");
    assert_eq!(asking.register(None).call().unwrap().agentId, ID);
    let refused = asking.run_action("x".to_owned(), None).call().unwrap_err();
    assert!(
        !matches!(refused.kind(), ErrorKind::Varlink_Error),
        "{refused}"
    );
    let refused = asking.quote(String::new(), None, None).call();
    assert!(refused.is_err());
    asking.get_status().call().unwrap();

    // As a peer that is written by hand would see it.
    let mut peer = UnixStream::connect(socket(os, AGENT)).unwrap();
    let mut ask = |message: String| {
        peer.write_all(format!("{message}\0").as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut byte = [0];
        while peer.read(&mut byte).unwrap() == 1 && byte != [0] {
            answer.extend(byte);
        }
        serde_json::from_slice::<Value>(&answer).unwrap()
    };
    let long = "x".repeat(1 << 20);
    for (message, error) in [
        (
            json!({ "method": "a.b.C" }).to_string(),
            "InterfaceNotFound",
        ),
        (
            json!({ "method": "org.troth.Agent.C" }).to_string(),
            "MethodNotFound",
        ),
        (
            json!({ "method": "org.troth.Agent.Subscribe" }).to_string(),
            "ExpectedMore",
        ),
        (json!({ "method": long }).to_string(), "InvalidParameter"),
    ] {
        let answer = ask(message);
        assert_eq!(answer["error"], format!("org.varlink.service.{error}"));
    }
    let ping = json!({ "method": "io.systemd.service.Ping" }).to_string();
    assert_eq!(ask(ping), json!({ "parameters": {} }));

    // The TPM holds up nobody but those who ask for a quote.
    let mut slow = client(site.host.os());
    let mut others = client(site.host.os());
    let tpm = site.host.machine_mut().unwrap().tpm_mut();
    tpm.signal(Signal::STOP).unwrap();
    let hanging = thread::spawn(move || slow.quote(NONCE.to_owned(), None, None).call());
    for _ in 0..200 {
        others.get_status().call().unwrap();
    }
    assert!(!hanging.is_finished());
    let tpm = site.host.machine_mut().unwrap().tpm_mut();
    tpm.signal(Signal::CONT).unwrap();
    // It was answered, or told that the TPM was busy for too long.
    match hanging.join().unwrap() {
        Ok(quote) => assert_eq!(quote.pcrs.len(), 24),
        Err(error) => assert!(matches!(error.kind(), ErrorKind::TpmBusy(_)), "{error}"),
    }
}

#[test]
fn trothctl_tells_of_its_own_host_and_the_agents_evidence_is_accepted() {
    let site = registered(&[]);
    let os = site.host.os();
    let node =
        |arguments: &[&str]| os.run(&[&["trothctl", "--json", "node"][..], arguments].concat());
    let ok = |arguments: &[&str]| node(arguments).unwrap().success().unwrap().json().unwrap();
    let status = ok(&["status"]);
    assert_eq!(
        (&status["state"], &status["agent_id"]),
        (&json!("attesting"), &json!(ID))
    );
    let shown = os.output(&["trothctl", "node", "status"]).unwrap();
    assert!(shown.contains("attesting") && shown.contains(ID), "{shown}");
    assert_eq!(ok(&["register"])["agent_id"], ID);

    let quote = ok(&["quote", "--nonce", "for-you", "--pcrs", "7,10"]);
    let pcrs: Vec<_> = quote["pcrs"].as_object().unwrap().keys().collect();
    assert_eq!(pcrs, ["10", "16", "7"]);
    let ak = STANDARD.decode(quote["ak"].as_str().unwrap()).unwrap();
    os.write("/root/ak", ak).unwrap();
    os.write("/root/quote", quote["quote"].as_str().unwrap())
        .unwrap();
    let inspect = [
        "trothctl",
        "inspect",
        "quote",
        "/root/quote",
        "--ak",
        "/root/ak",
    ];
    os.output(&[&inspect[..], &["--nonce", "for-you"]].concat())
        .unwrap();
    let registered = site
        .trothctl(&["--json", "registrar", "show", ID])
        .json()
        .unwrap();
    assert!(
        registered
            .to_string()
            .contains(quote["ak_name"].as_str().unwrap()),
        "{registered}"
    );

    ok(&[
        "evidence",
        "--nonce",
        "for-them",
        "--output",
        "/root/now.evidence",
    ]);
    let policy = site.host.machine().unwrap().runtime_policy().unwrap();
    os.write("/root/policy.json", policy.to_string()).unwrap();
    let appraise = [
        "trothctl",
        "--json",
        "appraise",
        "/root/now.evidence",
        "--policy",
        "/root/policy.json",
    ];
    let judged = os
        .run(&[&appraise[..], &["--nonce", "for-them"]].concat())
        .unwrap();
    let judged = judged.success().unwrap().json().unwrap();
    assert_eq!(judged["verdict"], "trusted", "{judged:#}");
    let other = os.run(&[&appraise[..], &["--nonce", "for-others"]].concat());
    assert_eq!(other.unwrap().status.code(), Some(3));

    // Whoever watches is told the state at once, and quotes as they are made.
    let watches = [
        ("trothctl --json node watch", r#""quote":{"client":"local""#),
        (
            "varlinkctl --json=short --more call /run/troth/org.troth.Agent \
             org.troth.Agent.Subscribe {}",
            r#""quoteServed":{"client":"local""#,
        ),
    ];
    for (command, quoted) in watches {
        let watch = format!("{command} > /root/watched 2>&1 & echo $! > /root/watch.pid");
        os.output(&["sh", "-c", &watch]).unwrap();
        let lines = |os: &Container| os.output(&["cat", "/root/watched"]);
        os.wait_for("the state is told", lines, |lines| {
            lines.contains("attesting")
        })
        .unwrap();
        ok(&["quote"]);
        os.wait_for("the quote is told", lines, |lines| lines.contains(quoted))
            .unwrap();
        os.output(&["sh", "-c", "kill $(cat /root/watch.pid)"])
            .unwrap();
    }

    add_user(os);
    let refused = as_user(os, &["trothctl", "node", "register"]);
    assert_eq!(refused.status.code(), Some(1));
    for word in ["what to do:", "root"] {
        assert!(refused.stderr.contains(word), "{refused:?}");
    }
    os.output(&[
        "systemctl",
        "stop",
        "troth-agent.service",
        "troth-agent.socket",
    ])
    .unwrap();
    let gone = node(&["status"]).unwrap();
    assert_eq!(gone.status.code(), Some(7));
    assert!(
        gone.stderr.contains("systemctl enable --now troth-agent"),
        "{gone:?}"
    );
}

#[test]
fn a_host_that_nobody_knows_lists_its_actions_and_says_what_it_lacks() {
    let directory = tempfile::tempdir().unwrap();
    let agent = agent_toml(TCTI) + "contact_ip = \"127.0.0.1\"\nenable_agent_mtls = false\n";
    let dropins = any_tpm();
    let action = "description = \"Cut it off\"\ncommand = [\"/usr/sbin/nft\"]\n";
    let mut files = vec![
        ("/etc/troth/agent.toml", agent.as_str()),
        ("/etc/troth/actions.d/isolate.toml", action),
        ("/etc/troth/actions.d/others.toml", action),
        ("/usr/lib/troth/actions.d/isolate.toml", "nonsense"),
    ];
    files.extend(
        dropins
            .iter()
            .map(|(path, content)| (path.as_str(), content.as_str())),
    );
    let host = Host::with_tpm(directory.path(), "actions", &files).unwrap();
    let os = host.os();
    os.output(&["chmod", "0664", "/etc/troth/actions.d/others.toml"])
        .unwrap();
    let list = ["call", ACTIONS, "org.troth.Actions.List", "{}"];
    os.output(&["systemctl", "start", "troth-actiond.socket"])
        .unwrap();
    let listed = varlinkctl(os, &list);
    let actions = listed["actions"].as_array().unwrap();
    assert_eq!(actions.len(), 1, "{listed:#}");
    assert_eq!(actions[0]["name"], "isolate");
    assert_eq!(actions[0]["path"], "/etc/troth/actions.d/isolate.toml");
    let broken = &listed["broken"][0];
    assert_eq!(broken["path"], "/etc/troth/actions.d/others.toml");
    assert!(
        broken["reason"].as_str().unwrap().contains("0664"),
        "{broken}"
    );
    add_user(os);
    let refused = as_user(os, &[&["varlinkctl"][..], &list].concat());
    assert!(refused.stderr.contains("Permission denied"), "{refused:?}");

    // The agent may ask, though it is not root.
    os.output(&["systemctl", "start", "troth-agent"]).unwrap();
    let actions = ["trothctl", "--json", "node", "actions"];
    let told: Value = serde_json::from_str(&os.output(&actions).unwrap()).unwrap();
    assert_eq!(told["actions"][0]["name"], "isolate");
    assert_eq!(told["actions"][0]["sandbox"], "strict");
    let parameters = r#"{"name":"isolate"}"#;
    for (socket, method, error) in [
        (ACTIONS, "org.troth.Actions.Run", "MethodNotImplemented"),
        (AGENT, "org.troth.Agent.RunAction", "ActionsUnavailable"),
    ] {
        let refused = os.run(&["varlinkctl", "call", socket, method, parameters]);
        let refused = refused.unwrap();
        assert!(refused.stderr.contains(error), "{refused:?}");
    }
    // There is no registrar.
    let status = os.run(&["trothctl", "node", "status"]).unwrap();
    assert_eq!(status.status.code(), Some(6), "{status:?}");
    assert!(status.stdout.contains("unregistered"), "{status:?}");

    // The kernel of a container has no TPM; any user may look.
    let checked = as_user(os, &["trothctl", "--json", "node", "check"]);
    assert_eq!(checked.status.code(), Some(1), "{checked:?}");
    let checked = checked.json().unwrap();
    assert_eq!(checked["attestable"], false);
    assert_eq!(checked["checks"][0]["state"], "missing", "{checked:#}");
}
