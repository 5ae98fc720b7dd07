//! `MESSAGE_ID=` of journal entries, as 32 hexadecimal digits (sd-id128). Never reused, never
//! changed: `journalctl MESSAGE_ID=...` and alert rules depend on them.

/// The registrar activated an agent: its AK is bound to its TPM.
pub const REGISTERED: &str = "778e6ce1b0c040e6966032fe72d766b9";
/// A registration was refused because the id belongs to another TPM.
pub const IDENTITY_CONFLICT: &str = "100e372168f843d7991b3977492a2273";
/// A node passed for the first time since it was enrolled.
pub const FIRST_TRUSTED: &str = "4ff0ce4f7eb3480db5219e84d1f2e45c";
/// A node failed: at least one finding.
pub const FAILED: &str = "a2175e97ab2b4b8792c2551e5b06e422";
/// A node passed again after it had failed or had not answered.
pub const RECOVERED: &str = "8acf22dc3ff74bde92df9c5c6ab08395";
/// A node does not answer; it is not known whether it can still be trusted.
pub const UNREACHABLE: &str = "80ad69f53bca4850b32e8fb6aa3d502b";
/// A certificate that the server uses ends soon.
pub const CERTIFICATE_ENDS: &str = "abff027369c64f7d9d91a55c79b75968";
/// A list of revoked client certificates is out of date, or could not be read again.
pub use troth_daemon::tls::REVOCATION_LIST;
/// Evidence is not kept, as its directory cannot be written or not fast enough.
pub const EVIDENCE_LOST: &str = "464afa0431dd4eed8e523f8464437cdd";
/// A registration was refused because of what the agent sent.
pub const REGISTRATION_REFUSED: &str = "efdf6b1a4dc44099aa40a6644bdd1eef";
/// An operator had the registrar forget an agent.
pub const REGISTRATION_REMOVED: &str = "4819b264ed1049b2837a3d47083cab93";
/// An operator enrolled a node: it is attested from now on.
pub const ENROLLED: &str = "96cb949d90754cccb8f73b1816cfd039";
/// An operator removed a node: it is not attested any more.
pub const REMOVED: &str = "e2338bb885cc4840a7e873db247f564a";
/// An operator had a node attested again.
pub const REACTIVATED: &str = "95866229d1214de7bf453965a85a0cd5";
/// An operator stopped the attestation of a node.
pub const STOPPED: &str = "463758321888457fb4762cb922cea60c";
/// An operator added, replaced or removed a policy that nodes use by name.
pub const POLICY_CHANGED: &str = "ef58755780d94048ab377de66c2b743a";
/// The database does not answer, or takes no verdicts.
pub const DATABASE_LOST: &str = "0f584daecb9843df881543e2dca4d3ea";
