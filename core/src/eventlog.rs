//! TCG boot log. Stub: the implementer completes it (as a directory module).
