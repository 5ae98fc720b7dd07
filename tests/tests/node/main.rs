//! The node tier: hosts with systemd 257 as PID 1 on Debian, with a TPM in software. Needs root.
#![allow(clippy::unwrap_used, reason = "helpers of tests may end them")]

/// The stage itself: a container on a captured boot.
mod stage;
