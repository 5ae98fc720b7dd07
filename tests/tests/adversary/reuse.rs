use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use hyper::Method;
use serde_json::json;

use crate::forge::Liar;
use crate::{Stage, operator_tls, raw, reason};

/// An address behind which hosts take turns, as behind a balancer or after a failover.
struct Switch {
    port: u16,
    behind: Arc<Mutex<Behind>>,
}

struct Behind {
    /// Who gets new connections.
    target: u16,
    open: Vec<Open>,
}

/// A connection that is open.
struct Open {
    client: TcpStream,
    /// Where the client's bytes go.
    server: Arc<Mutex<TcpStream>>,
}

impl Switch {
    fn to(liar: &Liar) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let behind = Arc::new(Mutex::new(Behind {
            target: liar.port(),
            open: Vec::new(),
        }));
        let shared = Arc::clone(&behind);
        // The threads end with the process: nobody is waited for at the end of a case.
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let mut behind = shared.lock().unwrap();
                if let Ok(server) = connect(behind.target) {
                    behind.open.push(Open::new(client, server));
                }
            }
        });
        Self { port, behind }
    }

    /// New connections lead to another host; open ones stay.
    fn turn(&self, liar: &Liar) {
        self.behind.lock().unwrap().target = liar.port();
    }

    /// Open connections too: what the client goes on to send comes out elsewhere.
    fn turn_open(&self, liar: &Liar) {
        self.turn(liar);
        for open in &self.behind.lock().unwrap().open {
            let server = connect(liar.port()).unwrap();
            pass_on(
                server.try_clone().unwrap(),
                open.client.try_clone().unwrap(),
            );
            *open.server.lock().unwrap() = server;
        }
    }

    /// An enrolment of the host at this address.
    fn enrol(&self, stage: &Stage, id: &str, liar: &Liar) {
        let mut body = liar.enrolment();
        body["cloudagent_port"] = json!(self.port);
        let reply = stage.operator.enrol(id, &body);
        assert_eq!(reply.status, 200, "{reply:?}");
    }
}

fn connect(port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port))?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

impl Open {
    fn new(client: TcpStream, server: TcpStream) -> Self {
        pass_on(server.try_clone().unwrap(), client.try_clone().unwrap());
        let open = Self {
            client: client.try_clone().unwrap(),
            server: Arc::new(Mutex::new(server)),
        };
        let (mut client, server) = (client, Arc::clone(&open.server));
        thread::spawn(move || {
            let current = || server.lock().unwrap().try_clone().unwrap();
            let mut buffer = [0; 16 << 10];
            while let Ok(length @ 1..) = client.read(&mut buffer) {
                if current().write_all(&buffer[..length]).is_err() {
                    break;
                }
            }
            let _ = current().shutdown(Shutdown::Both);
        });
        open
    }
}

/// Copies until `from` ends, and then ends both.
fn pass_on(mut from: TcpStream, mut to: TcpStream) {
    thread::spawn(move || {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Both);
    });
}

/// Two hosts have one address in turn. The connection that is kept to one of them is never taken
/// for one to the other: both are trusted, each by its own answers, when both can be reached.
///
/// Check: `verifier/src/poll/node.rs`: `client.get_or_insert_with(|| rules.connect(&shared))`
#[test]
fn two_nodes_at_one_address() {
    let stage = Stage::new();
    let [first, second] = [(); 2].map(|()| Liar::start(&stage.fleet.ca_dir()));
    let switch = Switch::to(&first);
    switch.enrol(&stage, "first", &first);
    stage.operator.wait_for_state("first", "trusted");
    switch.enrol(&stage, "second", &second);
    let node = stage
        .operator
        .wait_for("second", "is out of reach", |node| {
            assert_ne!(node["troth"]["state"], "failed", "{node:#}");
            node["troth"]["state"] == "unreachable"
        });
    assert!(reason(&node).contains("TLS"), "{node:#}");
    assert!(second.asked().is_empty());

    // The first is asked over its connection, the second over a new one.
    switch.turn(&second);
    stage.operator.wait_for_state("second", "trusted");
    first.asked();
    stage.operator.wait_for_attestations("first", 3);
    stage.operator.wait_for_attestations("second", 3);
    assert!(first.asked().len() >= 3, "still asked");
}

/// Who is in the middle leads a connection that is open to another good host.
///
/// Check: `daemon/src/tls.rs`: `*end_entity == self.certificate || renewed()`
#[test]
fn another_node_at_the_end_of_an_open_connection() {
    let stage = Stage::new();
    let [first, second] = [(); 2].map(|()| Liar::start(&stage.fleet.ca_dir()));
    let switch = Switch::to(&first);
    switch.enrol(&stage, "first", &first);
    stage.operator.wait_for_state("first", "trusted");
    switch.turn_open(&second);
    let node = stage.operator.wait_for("first", "is out of reach", |node| {
        assert_ne!(node["troth"]["state"], "failed", "{node:#}");
        node["troth"]["state"] == "unreachable" && reason(node).contains("TLS")
    });
    assert!(second.asked().is_empty(), "{node:#}");
    switch.turn(&first);
    stage.operator.wait_for_state("first", "trusted");
}

/// An id is enrolled anew, with the keys of another host, while the first still answers at the
/// address: it is not asked on its old connection.
///
/// Check: `verifier/src/poll/rules.rs`: `let trust = ServerTrust::Pinned(certificate);`
#[test]
fn another_host_under_an_id() {
    let stage = Stage::new();
    let [first, second] = [(); 2].map(|()| Liar::start(&stage.fleet.ca_dir()));
    let switch = Switch::to(&first);
    switch.enrol(&stage, "moved", &first);
    stage.operator.wait_for_state("moved", "trusted");
    let removed = stage
        .operator
        .verifier
        .send(Method::DELETE, "/v2.6/agents/moved", None);
    assert_eq!(removed.unwrap().status, 200);
    first.asked();
    switch.enrol(&stage, "moved", &second);
    stage.operator.wait_for("moved", "is out of reach", |node| {
        assert!(
            ["pending", "unreachable"]
                .iter()
                .any(|s| node["troth"]["state"] == *s),
            "{node:#}"
        );
        node["troth"]["state"] == "unreachable" && reason(node).contains("TLS")
    });
    assert!(first.asked().is_empty());
    switch.turn(&second);
    stage.operator.wait_for_state("moved", "trusted");
}

/// Requests of different identities on one connection with an operator's certificate: each is
/// judged by itself, whatever came before it.
///
/// Check: `verifier/src/authority.rs`: `if let Some(header) = request.headers().get(header::AUTHORIZATION) {`
#[test]
fn an_agents_token_on_an_operators_connection() {
    let stage = Stage::new();
    let request =
        |headers: &str| format!("GET /v2.6/agents/ HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    let token = "authorization: Bearer abc\r\n";
    let requests = [
        request(token),
        request(""),
        request(token),
        request("connection: close\r\n"),
    ];
    let ports = [
        stage.fleet.verifier_port(),
        stage.fleet.registrar_tls_port(),
    ];
    for port in ports {
        let tls = operator_tls(&stage.fleet.ca_dir());
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let all = requests.concat();
        let source = Ipv4Addr::LOCALHOST.into();
        let answers = runtime.block_on(raw::exchange(source, port, Some(tls), all.as_bytes()));
        let answers = String::from_utf8(answers).unwrap();
        let statuses: Vec<_> = answers
            .split("HTTP/1.1 ")
            .skip(1)
            .map(|answer| &answer[..3])
            .collect();
        assert_eq!(statuses, ["401", "200", "401", "200"], "{answers}");
    }
}
