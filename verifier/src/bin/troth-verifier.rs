//! `troth-verifier`: asks enrolled nodes for evidence and judges it.
fn main() {}
