/// A TPM structure that does not parse: which one, where, and why.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("{structure} at byte {offset}: {reason}")]
pub struct StructureError {
    /// TCG name of the structure, e.g. `TPMS_ATTEST`.
    pub structure: &'static str,
    /// Offset from the start of the structure, in bytes.
    pub offset: usize,
    /// What is wrong there.
    pub reason: &'static str,
}
