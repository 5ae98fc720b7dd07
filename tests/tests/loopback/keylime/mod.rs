/// Our agent at Keylime's registrar, verifier and tenant.
mod our_agent;
/// Keylime's verifier asks every second, for minutes.
mod polling;
/// Keylime's agent at our registrar and verifier.
mod their_agent;
