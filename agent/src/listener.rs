//! Where verifiers connect. The service manager keeps the listener while the agent restarts
//! (`FileDescriptorStoreMax=` in systemd.service(5)): who connects meanwhile is not refused, but
//! answered a little later.

use std::{
    io,
    net::{self, Shutdown, SocketAddr, TcpStream},
    os::fd::{AsFd, OwnedFd},
};

use tokio::net::TcpListener;
use troth_daemon::notify;

/// Its name in the unit's file descriptor store.
pub(crate) const NAME: &str = "listener";

/// Listens on `address`: with the listener that was kept, if it is one of this address, else with a
/// new one, which is kept from now on. Must run inside a tokio runtime.
pub(crate) async fn listen(kept: Option<OwnedFd>, address: SocketAddr) -> io::Result<TcpListener> {
    if let Some(kept) = kept.map(net::TcpListener::from) {
        if is_of(&kept, address) {
            kept.set_nonblocking(true)?;
            return TcpListener::from_std(kept);
        }
        close(kept);
    }
    let listener = TcpListener::bind(address).await?;
    notify::keep(NAME, listener.as_fd());
    Ok(listener)
}

/// Is it what the configuration asks for? Port 0 is any.
fn is_of(listener: &net::TcpListener, address: SocketAddr) -> bool {
    listener.local_addr().is_ok_and(|bound| {
        bound.ip() == address.ip() && [0, bound.port()].contains(&address.port())
    })
}

/// Closes it for the service manager, too, which has it open until it has read that it need not:
/// the new address may be one that this one takes up.
fn close(listener: net::TcpListener) {
    notify::forget(NAME);
    // It listens no more, whoever holds it.
    if let Err(error) = TcpStream::from(OwnedFd::from(listener)).shutdown(Shutdown::Both) {
        tracing::warn!("the listener of the last start is not closed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, TcpStream};

    use super::*;

    const ANY_PORT: SocketAddr = SocketAddr::new(net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

    /// A listener of an earlier start, and the service manager's duplicate of it.
    fn earlier() -> (SocketAddr, OwnedFd, net::TcpListener) {
        let listener = net::TcpListener::bind(ANY_PORT).unwrap();
        let address = listener.local_addr().unwrap();
        (address, listener.try_clone().unwrap().into(), listener)
    }

    #[tokio::test]
    async fn who_connected_before_the_start_is_served() {
        for any_port in [false, true] {
            let (address, kept, _manager) = earlier();
            let early = TcpStream::connect(address).unwrap();
            let wanted = if any_port { ANY_PORT } else { address };
            let listener = listen(Some(kept), wanted).await.unwrap();
            assert_eq!(listener.local_addr().unwrap(), address);
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!(peer, early.local_addr().unwrap());
        }
    }

    #[tokio::test]
    async fn a_listener_of_another_address_is_closed_for_everybody() {
        let (old, kept, manager) = earlier();
        let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, old.port()));
        let listener = listen(Some(kept), everywhere).await.unwrap();
        assert_eq!(listener.local_addr().unwrap(), everywhere);
        drop(listener);
        TcpStream::connect(old).expect_err("somebody listens at the old address");
        drop(manager);
    }
}
