use std::{
    cell::RefCell, collections::BTreeMap, future::Future, io, os::fd::OwnedFd, pin::pin, rc::Rc,
    sync::Arc, time::Duration,
};

use serde_json::{Value, json};
use tokio::{
    net::{UnixListener, UnixStream},
    task::{JoinSet, LocalSet},
    time::timeout,
};
use zlink::{
    Connection, Error, Reply,
    connection::{ReadConnection, WriteConnection, socket::Socket},
};

use super::{
    Interface,
    message::{Fault, Message, Parameters},
    socket::Bounded,
};

/// Connections of one user at a time. There is one call at a time on each, and so one stream.
const CONNECTIONS_OF_A_USER: usize = 16;

/// Connections of all users together. Root and the service's own user always find a place.
const CONNECTIONS: usize = 64;

/// How long no connection is taken after the system had no descriptor for one.
const PAUSE: Duration = Duration::from_millis(200);

pub(super) const SERVICE: Interface = Interface {
    name: "org.varlink.service",
    description: include_str!("../../org.varlink.service.varlink"),
};

/// What is served on a socket.
pub trait Service: 'static {
    /// What the product is called that `org.varlink.service.GetInfo` names.
    fn product(&self) -> &'static str;

    /// What it offers beside `org.varlink.service`.
    fn interfaces(&self) -> &[Interface];

    /// Answers a call of one of its interfaces. Replies before the last are sent through `replies`.
    fn call(
        &self,
        call: Call<'_>,
        replies: &mut Replies<'_>,
    ) -> impl Future<Output = Result<Answer, Fault>>;
}

/// A call of a method.
#[derive(Debug)]
pub struct Call<'a> {
    /// One of the service's.
    pub interface: &'a str,
    /// Which may be unknown.
    pub method: &'a str,
    /// Its parameters.
    pub parameters: Parameters,
    /// Who calls.
    pub caller: &'a Caller,
    more: bool,
}

impl Call<'_> {
    /// Of a method without parameters.
    pub fn without_parameters(self) -> Result<(), Fault> {
        self.parameters.end()
    }

    /// Of a method without parameters that answers with a stream.
    pub fn of_a_stream(self) -> Result<(), Fault> {
        if !self.more {
            return Err(Fault::EXPECTED_MORE);
        }
        self.parameters.end()
    }

    /// Interface and method.
    pub fn name(&self) -> String {
        format!("{}.{}", self.interface, self.method)
    }
}

/// The process at the other end, as the kernel knows it from when it connected.
#[derive(Clone, Debug)]
pub struct Caller {
    /// Its user.
    pub uid: u32,
    /// The process itself; `None` before Linux 6.5, and for one outside of this PID namespace.
    pub process: Option<Arc<OwnedFd>>,
}

impl Caller {
    /// Whether this is root, or a process of the service's own user.
    pub fn is_root_or_self(&self) -> bool {
        self.uid == 0 || self.uid == own_uid()
    }
}

fn own_uid() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// The last reply to a call, or the only one.
#[derive(Debug)]
pub struct Answer {
    parameters: Value,
    descriptors: Vec<OwnedFd>,
}

impl Answer {
    /// One without parameters.
    pub fn empty() -> Self {
        Self::from(json!({}))
    }

    /// One with a descriptor, to which the parameters refer as number 0.
    pub fn with_descriptor(parameters: Value, descriptor: OwnedFd) -> Self {
        Self {
            parameters,
            descriptors: vec![descriptor],
        }
    }
}

impl From<Value> for Answer {
    fn from(parameters: Value) -> Self {
        Self {
            parameters,
            descriptors: Vec::new(),
        }
    }
}

/// Where a method sends replies that are followed by others.
#[derive(Debug)]
pub struct Replies<'a> {
    write: &'a mut WriteConnection<<Bounded as Socket>::WriteHalf>,
    oneway: bool,
}

impl Replies<'_> {
    /// Sends one; returns when the peer takes it. Who is gone is noticed elsewhere.
    pub async fn send(&mut self, parameters: Value) {
        if !self.oneway {
            let reply = Reply::new(Some(parameters)).set_continues(Some(true));
            let _ = self.write.send_reply(&reply, Vec::new()).await;
        }
    }
}

/// Serves connections. With `idle` it returns when there were none for that long; else it never
/// does, but for a listener that fails.
pub async fn serve<S: Service>(
    listener: OwnedFd,
    service: S,
    idle: Option<Duration>,
) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    // Replies may be streams that a service makes of what it holds, so none needs to be Send.
    LocalSet::new()
        .run_until(accept(listener, Rc::new(service), idle))
        .await
}

async fn accept<S: Service>(
    listener: UnixListener,
    service: Rc<S>,
    idle: Option<Duration>,
) -> io::Result<()> {
    let places = Rc::new(Places::default());
    let mut conversations = JoinSet::new();
    loop {
        let accepted = match idle {
            Some(idle) if conversations.is_empty() => {
                match timeout(idle, listener.accept()).await {
                    Ok(accepted) => accepted,
                    Err(_) => return Ok(()),
                }
            }
            _ => tokio::select! {
                accepted = listener.accept() => accepted,
                Some(_) = conversations.join_next() => continue,
            },
        };
        match accepted {
            Ok((stream, _)) => {
                let (service, places) = (Rc::clone(&service), Rc::clone(&places));
                conversations.spawn_local(async move {
                    if let Err(error) = converse(stream, &*service, &places).await {
                        tracing::debug!(%error, "varlink connection ended");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "cannot take a varlink connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

type ReadHalf = ReadConnection<<Bounded as Socket>::ReadHalf>;

/// What comes next on a connection.
enum Next {
    Call(zlink::Call<Message>),
    TooLong,
    End,
}

async fn receive(read: &mut ReadHalf) -> Result<Next, Error> {
    match read.receive_call::<Message>().await {
        Ok((call, _)) => Ok(Next::Call(call)),
        Err(Error::UnexpectedEof) => Ok(Next::End),
        Err(Error::Json(_)) if read.read_half().was_cut() => Ok(Next::TooLong),
        Err(error) => Err(error),
    }
}

/// Serves one connection until its peer ends it, or sends what is no varlink.
///
/// zlink's own server waits for replies of a stream alone, so it would not notice a peer that is
/// gone before there is something to be told.
async fn converse<S: Service>(
    stream: UnixStream,
    service: &S,
    places: &Places,
) -> Result<(), Error> {
    let peer = stream.peer_cred()?;
    let stream = zlink::tokio::unix::Stream::try_from(stream)?;
    let mut connection = Connection::new(Bounded(stream));
    let caller = Caller {
        uid: peer.uid(),
        process: match peer.pid() {
            Some(1..) => process(&mut connection).await,
            // It is outside of this PID namespace.
            _ => None,
        },
    };
    let Some(_place) = places.take(&caller) else {
        tracing::debug!(uid = caller.uid, "too many varlink connections");
        return Ok(());
    };
    let (mut read, mut write) = connection.split();
    let mut following = None;
    loop {
        let next = match following.take() {
            Some(next) => next,
            None => receive(&mut read).await?,
        };
        let call = match next {
            Next::Call(call) => call,
            Next::TooLong => {
                let fault = Fault::invalid_parameter("parameters");
                write.send_error(&fault, Vec::new()).await?;
                continue;
            }
            Next::End => return Ok(()),
        };
        let streams = call.more();
        let mut answered = pin!(answer(service, call, &caller, &mut write));
        loop {
            tokio::select! {
                answered = &mut answered => break answered?,
                next = receive(&mut read), if following.is_none() => match next? {
                    // Nobody reads the stream.
                    Next::End if streams => return Ok(()),
                    next => following = Some(next),
                },
            }
        }
    }
}

/// The process that has connected, unless it has ended since, or the kernel is too old to tell.
async fn process(connection: &mut Connection<Bounded>) -> Option<Arc<OwnedFd>> {
    let credentials = connection.peer_credentials().await.ok()?;
    let process = credentials.process_fd()?.try_clone_to_owned().ok()?;
    Some(Arc::new(process))
}

async fn answer<S: Service>(
    service: &S,
    call: zlink::Call<Message>,
    caller: &Caller,
    write: &mut WriteConnection<<Bounded as Socket>::WriteHalf>,
) -> Result<(), Error> {
    let oneway = call.oneway();
    let answer = dispatch(service, call, caller, write).await;
    match answer {
        _ if oneway => Ok(()),
        Ok(answer) => {
            let reply = Reply::new(Some(answer.parameters));
            write.send_reply(&reply, answer.descriptors).await
        }
        Err(fault) => write.send_error(&fault, Vec::new()).await,
    }
}

async fn dispatch<S: Service>(
    service: &S,
    call: zlink::Call<Message>,
    caller: &Caller,
    write: &mut WriteConnection<<Bounded as Socket>::WriteHalf>,
) -> Result<Answer, Fault> {
    let (more, oneway) = (call.more(), call.oneway());
    if call.upgrade() {
        return Err(Fault::invalid_parameter("upgrade"));
    }
    let Message { method, parameters } = call.method();
    let Value::String(full) = method else {
        return Err(Fault::invalid_parameter("method"));
    };
    let (interface, method) = full.rsplit_once('.').unwrap_or(("", full));
    let call = Call {
        interface,
        method,
        parameters: Parameters::new(parameters.clone())?,
        caller,
        more,
    };
    if interface == SERVICE.name {
        return about(service, call);
    }
    if !service.interfaces().iter().any(|i| i.name == interface) {
        return Err(Fault::interface_not_found(interface));
    }
    service.call(call, &mut Replies { write, oneway }).await
}

/// `org.varlink.service`.
fn about<S: Service>(service: &S, mut call: Call<'_>) -> Result<Answer, Fault> {
    let interfaces = [SERVICE];
    let mut interfaces = interfaces.iter().chain(service.interfaces());
    match call.method {
        "GetInfo" => {
            call.without_parameters()?;
            let names: Vec<_> = interfaces.map(|interface| interface.name).collect();
            Ok(Answer::from(json!({
                "vendor": "Troth",
                "product": service.product(),
                "version": env!("CARGO_PKG_VERSION"),
                "url": "file:///usr/share/doc/troth/local-interfaces.md",
                "interfaces": names,
            })))
        }
        "GetInterfaceDescription" => {
            let name: String = call.parameters.required("interface")?;
            call.without_parameters()?;
            let found = interfaces.find(|interface| interface.name == name);
            let found = found.ok_or_else(|| Fault::interface_not_found(&name))?;
            Ok(Answer::from(json!({ "description": found.description })))
        }
        _ => Err(Fault::method_not_found(&call.name())),
    }
}

/// Who is connected, by user.
#[derive(Debug, Default)]
struct Places(RefCell<BTreeMap<u32, usize>>);

impl Places {
    /// A place for a connection, unless its user or all users together have too many.
    fn take(&self, caller: &Caller) -> Option<Place<'_>> {
        let mut taken = self.0.borrow_mut();
        let all: usize = taken.values().sum();
        let own = taken.get(&caller.uid).copied().unwrap_or_default();
        let full = own >= CONNECTIONS_OF_A_USER || all >= CONNECTIONS;
        if full && !caller.is_root_or_self() {
            return None;
        }
        taken.insert(caller.uid, own + 1);
        Some(Place {
            places: self,
            uid: caller.uid,
        })
    }
}

struct Place<'a> {
    places: &'a Places,
    uid: u32,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut taken = self.places.0.borrow_mut();
        if let Some(count) = taken.get_mut(&self.uid) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(uid: u32) -> Caller {
        Caller { uid, process: None }
    }

    #[test]
    fn no_user_takes_all_places_and_root_always_finds_one() {
        let places = Places::default();
        let mut held = Vec::new();
        for uid in 70_001..70_006 {
            held.extend((0..100).map_while(|_| places.take(&caller(uid))));
        }
        assert_eq!(held.len(), CONNECTIONS);
        let of_the_first = held.iter().filter(|place| place.uid == 70_001).count();
        assert_eq!(of_the_first, CONNECTIONS_OF_A_USER);
        assert!(places.take(&caller(70_009)).is_none());
        held.push(places.take(&caller(0)).unwrap());
        held.push(places.take(&caller(own_uid())).unwrap());
        drop(held);
        assert!(places.0.borrow().is_empty());
        assert!(places.take(&caller(70_009)).is_some());
    }
}
