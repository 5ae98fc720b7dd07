//! Who this host is: its id, its AK, the key that secrets are sent to, its TLS certificate.

/// The AK that Keylime's agent left, to be taken over.
pub mod agent_data;
/// The AK, made once, saved, reloaded, never silently replaced.
pub mod ak;
/// The device identity that the manufacturer gave: IDevID and IAK.
pub mod device;
/// The agent id, from the EK, the host or the configuration.
pub mod id;
/// The TLS server certificate: self-signed, because the registrar vouches for it.
pub mod mtls;
/// What can be wrong with a saved AK, and what to do about it.
pub mod saved;
/// The payload transport key (NK), bound to the TPM by PCR 16.
pub mod transport;

/// Files of the state directory: written whole or not at all, readable by the agent alone.
mod state;

pub use state::StateError;
