/// REST bodies of Keylime's servers and of ours, side by side.
mod bodies;
/// Boot logs as their verifier reads them, and as ours does.
mod boot_logs;
/// Hosts and policies of every kind, judged by Keylime's functions and by ours.
mod judgement;
/// Our agent at Keylime's registrar, verifier and tenant.
mod our_agent;
/// Keylime's tenant and verifier at our registrar.
mod our_registrar;
/// Keylime's tenant at our registrar and verifier.
mod our_servers;
/// Patterns of excludes as Python reads them, and as ours are.
mod patterns;
/// Keylime's verifier asks every second, for minutes.
mod polling;
/// Refstates as their engine judges by them, and as ours does.
mod refstates;
/// Signed policies of either side at the other.
mod signed;
/// Keylime's agent at our registrar and verifier.
mod their_agent;
