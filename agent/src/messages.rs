//! `MESSAGE_ID=` of journal entries, as 32 hexadecimal digits (sd-id128). Never reused, never
//! changed: `journalctl MESSAGE_ID=...` and alert rules depend on them.

/// The registrar took this host, and knows now that AK and EK share a TPM.
pub const HOST_REGISTERED: &str = "9ed740e588964076aaa743a452fec4c0";
/// A try to register failed, and is made again.
pub const NOT_REGISTERED: &str = "5de90972738c44ecaf1f5afb39299c69";
/// The registrar refuses this host for good.
pub const HOST_REFUSED: &str = "822dc02b3fc64fb896239c4be9399c7e";
/// The TPM does not answer any more.
pub const TPM_LOST: &str = "9296c70b33a94dc4885a7cdce28169c7";
/// The TPM answers again.
pub const TPM_BACK: &str = "aa19e0a04c66495f9a584774276835a2";
/// An AK was made: to registrar and verifiers this is another host than before.
pub const AK_MADE: &str = "05da353c013b4e2fa3340d75399e7897";
/// The TLS certificate was made anew.
pub const HOST_CERTIFICATE_RENEWED: &str = "ad90fab5fb764cf494198b1230a50f8a";
/// A TLS certificate that the agent does not renew ends soon.
pub const HOST_CERTIFICATE_ENDS: &str = "f2fbca90e12c42519c4c5e4eba00cb5d";
/// A log that belongs to the evidence exists and cannot be read.
pub const LOG_UNREADABLE: &str = "c2db5d9096c74d7998021d514ed43fe7";
