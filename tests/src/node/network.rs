use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::process::{Process, output_of};

/// A network namespace with loopback and what it is connected to. It ends with its value, or with
/// the last process in it.
#[derive(Debug)]
pub struct Network {
    holder: Process,
}

/// The interface at either end of a cable.
const INTERFACE: &str = "lan";

impl Network {
    /// A new one; the log of the process that holds it is in `directory`.
    pub fn new(directory: &Path) -> Result<Self> {
        let script = "ip link set lo up && echo up && exec sleep 600";
        let mut holder = Process::start(
            "network",
            directory,
            Command::new("unshare").args(["--net", "sh", "-c", script]),
        )?;
        holder.wait_for_log(0, |log| log.contains("up").then_some(()))?;
        Ok(Self { holder })
    }

    /// Lays a cable to `other`; the ends have these addresses, of one network of 256.
    pub fn connect(&self, address: Ipv4Addr, other: &Self, others: Ipv4Addr) -> Result<()> {
        let peer = other.holder.id().to_string();
        let link = ["link", "add", INTERFACE, "type", "veth"];
        let end = ["peer", "name", INTERFACE, "netns", &peer];
        self.ip(&[&link[..], &end[..]].concat())?;
        for (network, address) in [(self, address), (other, others)] {
            network.ip(&["address", "add", &format!("{address}/24"), "dev", INTERFACE])?;
            network.ip(&["link", "set", INTERFACE, "up"])?;
        }
        Ok(())
    }

    /// What `/proc` shows it as.
    pub(super) fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/{}/ns/net", self.holder.id()))
    }

    /// A listener of this process on a port of the namespace's 127.0.0.1.
    pub(crate) fn listen(&self, port: u16) -> Result<TcpListener> {
        let namespace = File::open(self.path())?;
        // A thread that ends: what belongs to a namespace is its sockets, not those who use them.
        let there = thread::spawn(move || -> Result<TcpListener> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(TcpListener::bind((Ipv4Addr::LOCALHOST, port))?)
        });
        let listener = there
            .join()
            .map_err(|_| anyhow!("the thread ended early"))?;
        listener.with_context(|| format!("cannot listen on port {port} of another namespace"))
    }

    fn ip(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display()));
        output_of(command.arg("ip").args(arguments))
    }
}
