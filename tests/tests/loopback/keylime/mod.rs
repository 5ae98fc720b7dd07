/// REST bodies of Keylime's servers and of ours, side by side.
mod bodies;
/// Our agent at Keylime's registrar, verifier and tenant.
mod our_agent;
/// Keylime's tenant at our registrar and verifier.
mod our_servers;
/// Keylime's verifier asks every second, for minutes.
mod polling;
/// Keylime's agent at our registrar and verifier.
mod their_agent;
