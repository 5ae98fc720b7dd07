//! The loopback tier: processes, mTLS and TPMs as they are, on 127.0.0.1.

/// The stage itself: a captured boot in a software TPM.
mod stage;
