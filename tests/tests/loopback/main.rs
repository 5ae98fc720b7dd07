//! The loopback tier: processes, mTLS and TPMs as they are, on 127.0.0.1.

#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

/// The stage itself: a captured boot in a software TPM.
mod stage;
