use std::{
    net::IpAddr,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, ValueEnum};
use hyper::Method;
use serde_json::json;
use tokio::{task::JoinSet, time::sleep};
use troth_core::wire::{Enrolment, Envelope, NodeStatus, SecretText};
use troth_daemon::{
    client::{Answer, Client},
    shutdown::Shutdown,
    tls::{Identity, ServerTrust, client_config, load_certificates},
};
use troth_tests::{
    ima_list::{ImaList, policy},
    software_ak::SoftwareAk,
    usage::Usage,
};

use crate::{
    Report, figure,
    node::{Common, Node, Place},
};

/// Different AKs; nodes share them, the verifier cannot know.
const AKS: usize = 4;
/// Connections to the verifier's API.
const OPERATORS: usize = 4;
/// For one request to the verifier's API: some hash a policy of hundreds of thousands of files.
const API_TIMEOUT: Duration = Duration::from_secs(300);
/// How long the verifier may ask no node at all before each was asked once.
const PATIENCE: Duration = Duration::from_secs(60);
/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(50);

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The verifier's API
    #[arg(long, value_name = "HOST:PORT")]
    verifier: String,
    /// CA directory of the verifier: cacert.crt, and an operator's client-cert.crt and
    /// client-private.pem
    #[arg(long, value_name = "DIR")]
    ca_dir: PathBuf,
    /// Simulated nodes; how often each is asked is the verifier's quote_interval
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// How many of them run a program that no policy has
    #[arg(long, default_value_t = 0)]
    tampered: usize,
    /// What their AKs are
    #[arg(long, value_enum, default_value_t = KeyKind::Rsa2048)]
    key: KeyKind,
    /// Files in the runtime policy that all nodes share; 0: no policy, and no IMA list
    #[arg(long, value_name = "FILES", default_value_t = 0)]
    policy: usize,
    /// IMA entries that are new in each answer
    #[arg(long, value_name = "COUNT", default_value_t = 0, requires = "policy")]
    entries: usize,
    /// Address that the nodes listen on, and that the verifier is told
    #[arg(long, default_value = "127.0.0.1")]
    listen: IpAddr,
    /// First port; each node has one of its own. 0: any free ports
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// Start of the nodes' ids
    #[arg(long, default_value = "load")]
    prefix: String,
    /// How long to measure, in seconds, once each node was asked
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    duration: f64,
    /// The verifier's process, when it runs on this machine: its CPU time and memory are measured
    #[arg(long)]
    pid: Option<u32>,
    /// Leave the nodes enrolled
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum KeyKind {
    Rsa2048,
    Ecc256,
}

pub(crate) async fn run(options: Options) -> Result<Report> {
    ensure!(options.nodes > 0, "--nodes must be at least 1");
    ensure!(
        options.tampered == 0 || options.entries > 0,
        "--tampered nodes are found by their IMA lists: give --policy and --entries too"
    );
    let (_trigger, shutdown) = Shutdown::new();
    let common = Arc::new(Common {
        aks: aks(options.key)?,
        list: Mutex::new(ImaList::new(options.policy)),
        tampered: Mutex::new(ImaList::tampered(options.policy)),
        new_entries: options.entries,
        quotes: AtomicU64::new(0),
        shutdown,
    });
    let nodes = start_nodes(&options, &common).await?;
    let api = Arc::new(Api::new(&options)?);
    let policy_name = format!("{}-policy", options.prefix);
    if options.policy > 0 {
        let body = json!({"runtime_policy": STANDARD.encode(policy(options.policy).to_string())});
        let path = format!("/v2.6/allowlists/{policy_name}");
        api.send(Method::POST, &path, Some(body.to_string()))
            .await?;
    }

    let before = usage(options.pid)?;
    let start = Instant::now();
    let (enrolling, policy_of_all) = (Arc::clone(&api), policy_name.clone());
    let (ip, with_policy) = (options.listen, options.policy > 0);
    each(&nodes, move |node| {
        let (api, name) = (Arc::clone(&enrolling), policy_of_all.clone());
        async move {
            let body = enrolment(&node, ip, with_policy.then_some(name));
            let path = format!("/v2.6/agents/{}", node.id);
            let body = serde_json::to_string(&body)?;
            api.send(Method::POST, &path, Some(body)).await.map(drop)
        }
    })
    .await?;
    wait_until_all_were_asked(&nodes, &common).await?;
    let enrolled_in = start.elapsed();
    let enrolled = usage(options.pid)?;

    let (quotes, start) = (common.quotes.load(Ordering::Relaxed), Instant::now());
    sleep(Duration::from_secs_f64(options.duration)).await;
    let after = usage(options.pid)?;
    let quotes = common.quotes.load(Ordering::Relaxed) - quotes;
    let seconds = start.elapsed().as_secs_f64();

    let states = states(&api, &nodes).await?;
    if !options.keep {
        let removing = Arc::clone(&api);
        each(&nodes, move |node| {
            let api = Arc::clone(&removing);
            async move {
                let path = format!("/v2.6/agents/{}", node.id);
                api.send(Method::DELETE, &path, None).await.map(drop)
            }
        })
        .await?;
        if options.policy > 0 {
            let path = format!("/v2.6/allowlists/{policy_name}");
            if let Err(error) = api.send(Method::DELETE, &path, None).await {
                // Keylime's verifier forgets a node when its turn comes, not before.
                eprintln!("troth-load: the policy {policy_name} is left behind: {error:#}");
            }
        }
    }

    let count = u32::try_from(options.nodes)?;
    let mut report: Report = vec![
        ("nodes", options.nodes.into()),
        ("entries_per_answer", options.entries.into()),
        ("policy_files", options.policy.into()),
        ("attested", states[0].into()),
        ("failed", states[1].into()),
        ("other", states[2].into()),
        ("enrolled_in_s", figure(enrolled_in.as_secs_f64())),
        ("measured_s", figure(seconds)),
        ("answers", quotes.into()),
        ("answers_per_s", figure(quotes as f64 / seconds)),
    ];
    if let (Some(before), Some(enrolled), Some(after)) = (before, enrolled, after) {
        let enrolment = (enrolled.cpu - before.cpu) / count;
        let cpu = (after.cpu - enrolled.cpu).as_secs_f64();
        report.extend([
            ("enrolment_cpu_ms", figure(enrolment.as_secs_f64() * 1e3)),
            (
                "cpu_us_per_answer",
                figure(cpu * 1e6 / quotes.max(1) as f64),
            ),
            ("cores", figure(cpu / seconds)),
            ("resident_bytes", after.resident.into()),
            ("proportional_bytes", after.proportional.into()),
        ]);
    }
    Ok(report)
}

fn aks(kind: KeyKind) -> Result<Vec<SoftwareAk>> {
    let make = |_| match kind {
        KeyKind::Rsa2048 => SoftwareAk::generate(),
        KeyKind::Ecc256 => SoftwareAk::generate_ecc(),
    };
    (0..AKS).map(make).collect()
}

async fn start_nodes(options: &Options, common: &Arc<Common>) -> Result<Vec<Arc<Node>>> {
    let authorities = load_certificates(&options.ca_dir.join("cacert.crt"))?;
    let mut nodes = Vec::with_capacity(options.nodes);
    for number in 0..options.nodes {
        let port = match options.port {
            0 => 0,
            first => u16::try_from(usize::from(first) + number).context("ports end at 65535")?,
        };
        let place = Place {
            id: format!("{}-{number:06}", options.prefix),
            number,
            ip: options.listen,
            port,
            tampered: number < options.tampered,
        };
        nodes.push(Node::start(common, place, &authorities).await?);
    }
    Ok(nodes)
}

/// What a tenant would post for the node.
fn enrolment(node: &Node, ip: IpAddr, policy: Option<String>) -> Enrolment {
    let mask = if policy.is_some() { "0x400" } else { "0x0" };
    let list = |names: &[&str]| names.iter().map(|&name| name.to_owned()).collect();
    Enrolment {
        cloudagent_ip: Some(ip.to_string()),
        cloudagent_port: Some(node.port),
        tpm_policy: json!({"mask": mask}).to_string(),
        metadata: "{}".to_owned(),
        runtime_policy: Some(String::new()),
        runtime_policy_name: policy,
        runtime_policy_key: Some(String::new()),
        ima_sign_verification_keys: Some(String::new()),
        revocation_key: Some(SecretText::default()),
        accept_tpm_hash_algs: list(&["sha512", "sha384", "sha256"]),
        accept_tpm_encryption_algs: list(&["ecc", "rsa"]),
        accept_tpm_signing_algs: list(&["ecdsa", "rsassa"]),
        ak_tpm: STANDARD.encode(node.ak().public().to_tpm2b()),
        mtls_cert: Some(node.certificate.clone()),
        supported_version: Some("2.6".to_owned()),
        ..Enrolment::default()
    }
}

/// Does `work` for each node, several at a time.
async fn each<F, W>(nodes: &[Arc<Node>], work: F) -> Result<()>
where
    F: Fn(Arc<Node>) -> W + Clone + Send + 'static,
    W: Future<Output = Result<()>> + Send + 'static,
{
    let next = Arc::new(AtomicUsize::new(0));
    let nodes: Arc<[Arc<Node>]> = nodes.into();
    let mut tasks = JoinSet::new();
    for _ in 0..OPERATORS {
        let (next, nodes, work) = (Arc::clone(&next), Arc::clone(&nodes), work.clone());
        tasks.spawn(async move {
            while let Some(node) = nodes.get(next.fetch_add(1, Ordering::Relaxed)) {
                work(Arc::clone(node)).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    Ok(())
}

async fn wait_until_all_were_asked(nodes: &[Arc<Node>], common: &Common) -> Result<()> {
    let (mut seen, mut since) = (0, Instant::now());
    loop {
        let waiting = nodes
            .iter()
            .filter(|node| node.quotes.load(Ordering::Relaxed) == 0)
            .count();
        if waiting == 0 {
            return Ok(());
        }
        let quotes = common.quotes.load(Ordering::Relaxed);
        if quotes != seen {
            (seen, since) = (quotes, Instant::now());
        }
        ensure!(
            since.elapsed() < PATIENCE,
            "{waiting} of {} nodes were not asked for a quote: see the verifier's log",
            nodes.len()
        );
        sleep(LOOK).await;
    }
}

/// How many nodes the verifier attests, has failed, and shows otherwise.
async fn states(api: &Api, nodes: &[Arc<Node>]) -> Result<[usize; 3]> {
    let mut counts = [0; 3];
    for node in nodes {
        let path = format!("/v2.6/agents/{}", node.id);
        let answer = api.send(Method::GET, &path, None).await?;
        let status: Envelope<NodeStatus> = answer.json()?;
        let state = status.results.and_then(|status| status.operational_state);
        // Keylime's numbers: attested periodically, and invalid quote.
        counts[match state {
            Some(3) => 0,
            Some(9) => 1,
            _ => 2,
        }] += 1;
    }
    Ok(counts)
}

fn usage(pid: Option<u32>) -> Result<Option<Usage>> {
    pid.map(Usage::of).transpose()
}

/// The verifier's API, as several operators use it.
struct Api {
    clients: Vec<Client>,
    next: AtomicUsize,
}

impl Api {
    fn new(options: &Options) -> Result<Self> {
        let (host, port) = crate::host_and_port(&options.verifier)?;
        let directory = &options.ca_dir;
        let operator = Identity::load(
            &directory.join("client-cert.crt"),
            &directory.join("client-private.pem"),
        )?;
        let roots = load_certificates(&directory.join("cacert.crt"))?;
        let tls = client_config(ServerTrust::Roots(roots), Some(&operator))?;
        let client = || Client::new(host, port, Some(Arc::clone(&tls)), API_TIMEOUT);
        Ok(Self {
            clients: (0..OPERATORS).map(|_| client()).collect(),
            next: AtomicUsize::new(0),
        })
    }

    async fn send(&self, method: Method, path: &str, body: Option<String>) -> Result<Answer> {
        let turn = self.next.fetch_add(1, Ordering::Relaxed) % self.clients.len();
        let answer = self.clients[turn]
            .send(method.clone(), path, body.map(Into::into))
            .await?;
        if !(200..300).contains(&answer.status) {
            let text = String::from_utf8_lossy(&answer.body).into_owned();
            bail!(
                "{method} {path}: the verifier answered {}: {text}",
                answer.status
            );
        }
        Ok(answer)
    }
}
