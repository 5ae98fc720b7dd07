use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use aws_lc_rs::rand;
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use hyper::Method;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use tokio::task::JoinSet;
use troth_core::{
    identity::{AgentId, activation_tag},
    tpm::Public,
    wire::{Activation, Envelope, Registration, RegistrationChallenge},
};
use troth_daemon::client::{Answer, Client};
use troth_tests::{software_ak::rsa_public, software_ek::SoftwareEk, usage::Usage};

use crate::{Report, figure};

/// Different EKs; agents share them.
const EKS: usize = 4;
/// For one request.
const TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// The registrar's plain HTTP port
    #[arg(long, value_name = "HOST:PORT")]
    registrar: String,
    /// Agents to register and activate
    #[arg(long, default_value_t = 1000)]
    agents: usize,
    /// Kept connections that they share
    #[arg(long, default_value_t = 4)]
    connections: usize,
    /// Start of the agents' ids
    #[arg(long, default_value = "load")]
    prefix: String,
    /// The registrar's process, when it runs on this machine: its CPU time and memory are measured
    #[arg(long)]
    pid: Option<u32>,
}

pub(crate) async fn run(options: Options) -> Result<Report> {
    ensure!(options.agents > 0, "--agents must be at least 1");
    let (host, port) = crate::host_and_port(&options.registrar)?;
    let shared = Arc::new(Shared {
        eks: (0..EKS)
            .map(|_| SoftwareEk::generate())
            .collect::<Result<_>>()?,
        certificate: certificate()?,
        agents: options.agents,
        prefix: options.prefix,
        next: AtomicUsize::new(0),
    });
    let before = options.pid.map(Usage::of).transpose()?;
    let start = Instant::now();
    let mut tasks = JoinSet::new();
    for _ in 0..options.connections.max(1) {
        let client = Client::new(host, port, None, TIMEOUT);
        tasks.spawn(register_all(client, Arc::clone(&shared)));
    }
    while let Some(result) = tasks.join_next().await {
        result??;
    }
    let seconds = start.elapsed().as_secs_f64();
    let after = options.pid.map(Usage::of).transpose()?;
    let mut report: Report = vec![
        ("agents", options.agents.into()),
        ("measured_s", figure(seconds)),
        ("agents_per_s", figure(options.agents as f64 / seconds)),
    ];
    if let (Some(before), Some(after)) = (before, after) {
        let cpu = (after.cpu - before.cpu).as_secs_f64() / options.agents as f64;
        report.extend([
            ("cpu_ms_per_agent", figure(cpu * 1e3)),
            ("resident_bytes", after.resident.into()),
            ("proportional_bytes", after.proportional.into()),
        ]);
    }
    Ok(report)
}

struct Shared {
    eks: Vec<SoftwareEk>,
    /// PEM; the registrar only stores it.
    certificate: String,
    agents: usize,
    prefix: String,
    next: AtomicUsize,
}

async fn register_all(client: Client, shared: Arc<Shared>) -> Result<()> {
    loop {
        let number = shared.next.fetch_add(1, Ordering::Relaxed);
        if number >= shared.agents {
            return Ok(());
        }
        let id = format!("{}-{number:06}", shared.prefix);
        let id = AgentId::new(&id)?;
        let ek = &shared.eks[number % shared.eks.len()];
        register(&client, &id, ek, &shared.certificate)
            .await
            .with_context(|| format!("agent {id}"))?;
    }
}

async fn register(client: &Client, id: &AgentId, ek: &SoftwareEk, pem: &str) -> Result<()> {
    let ak = unused_ak()?;
    let registration = Registration {
        ek_tpm: Some(STANDARD.encode(ek.public.to_tpm2b())),
        ekcert: Some(STANDARD.encode(&ek.certificate)),
        aik_tpm: Some(STANDARD.encode(ak.to_tpm2b())),
        ip: Some("127.0.0.1".to_owned()),
        port: Some(9002),
        mtls_cert: Some(pem.to_owned()),
        ..Registration::default()
    };
    let path = format!("/v2.6/agents/{id}");
    let body = serde_json::to_string(&registration)?;
    let answer = client.send(Method::POST, &path, Some(body.into())).await?;
    let challenge: Envelope<RegistrationChallenge> = success(&answer)?.json()?;
    let challenge = challenge.results.context("no challenge")?;
    let credential = ek.activate(&ak.name(), &STANDARD.decode(challenge.blob)?)?;
    let auth_tag = activation_tag(&credential, id);
    let body = serde_json::to_string(&Activation { auth_tag })?;
    let answer = client.send(Method::PUT, &path, Some(body.into())).await?;
    success(&answer).map(drop)
}

fn success(answer: &Answer) -> Result<&Answer> {
    if answer.status != 200 {
        let text = String::from_utf8_lossy(&answer.body);
        bail!("the registrar answered {}: {text}", answer.status);
    }
    Ok(answer)
}

/// An AK of its own for each agent. It never signs, so any odd number will do as its modulus.
fn unused_ak() -> Result<Public> {
    let mut modulus = [0; 256];
    rand::fill(&mut modulus)?;
    modulus[0] |= 0x80;
    modulus[255] |= 1;
    rsa_public(&modulus)
}

fn certificate() -> Result<String> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    Ok(CertificateParams::default().self_signed(&key)?.pem())
}
