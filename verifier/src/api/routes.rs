use hyper::Method;

use crate::{
    authority::{ANY, Class, Route},
    store::PolicyKind,
};

/// What a request is for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Endpoint {
    VersionRoot,
    Nodes,
    Node,
    Enrol,
    Remove,
    Reactivate,
    Stop,
    Evidence,
    Policies(PolicyKind),
    Policy(PolicyKind),
    VerifyIdentity,
    VerifyEvidence,
}

/// Every resource below `/v2.x/`, with Keylime's names for what is done to it.
pub(super) const ROUTES: &[Route<Endpoint>] = {
    use Class::{Admin, AgentOrAdmin, Public};
    use Endpoint::{
        Enrol, Evidence, Node, Nodes, Policies, Policy, Reactivate, Remove, Stop, VerifyEvidence,
        VerifyIdentity, VersionRoot,
    };
    use PolicyKind::{Boot, Runtime};
    const AGENTS: &[&str] = &["agents"];
    const AGENT: &[&str] = &["agents", ANY];
    const ALLOWLISTS: &[&str] = &["allowlists"];
    const ALLOWLIST: &[&str] = &["allowlists", ANY];
    const MB_POLICIES: &[&str] = &["mbpolicies"];
    const MB_POLICY: &[&str] = &["mbpolicies", ANY];
    &[
        Route::new(Method::GET, &[], Public, "read_version", VersionRoot),
        Route::new(Method::GET, AGENTS, Admin, "list_agents", Nodes),
        Route::new(Method::GET, AGENT, AgentOrAdmin, "read_agent", Node),
        Route::new(Method::POST, AGENT, Admin, "create_agent", Enrol),
        Route::new(Method::DELETE, AGENT, Admin, "delete_agent", Remove),
        Route::new(
            Method::PUT,
            &["agents", ANY, "reactivate"],
            Admin,
            "reactivate_agent",
            Reactivate,
        ),
        Route::new(
            Method::PUT,
            &["agents", ANY, "stop"],
            Admin,
            "stop_agent",
            Stop,
        ),
        // Not Keylime's.
        Route::new(
            Method::GET,
            &["agents", ANY, "evidence"],
            Admin,
            "read_evidence",
            Evidence,
        ),
        Route::new(
            Method::GET,
            ALLOWLISTS,
            Admin,
            "list_runtime_policies",
            Policies(Runtime),
        ),
        Route::new(
            Method::GET,
            ALLOWLIST,
            Admin,
            "read_runtime_policy",
            Policy(Runtime),
        ),
        Route::new(
            Method::POST,
            ALLOWLIST,
            Admin,
            "create_runtime_policy",
            Policy(Runtime),
        ),
        Route::new(
            Method::PUT,
            ALLOWLIST,
            Admin,
            "update_runtime_policy",
            Policy(Runtime),
        ),
        Route::new(
            Method::DELETE,
            ALLOWLIST,
            Admin,
            "delete_runtime_policy",
            Policy(Runtime),
        ),
        Route::new(
            Method::GET,
            MB_POLICIES,
            Admin,
            "list_mb_policies",
            Policies(Boot),
        ),
        Route::new(
            Method::GET,
            MB_POLICY,
            Admin,
            "read_mb_policy",
            Policy(Boot),
        ),
        Route::new(
            Method::POST,
            MB_POLICY,
            Admin,
            "create_mb_policy",
            Policy(Boot),
        ),
        Route::new(
            Method::PUT,
            MB_POLICY,
            Admin,
            "update_mb_policy",
            Policy(Boot),
        ),
        Route::new(
            Method::DELETE,
            MB_POLICY,
            Admin,
            "delete_mb_policy",
            Policy(Boot),
        ),
        Route::new(
            Method::GET,
            &["verify", "identity"],
            Public,
            "verify_identity",
            VerifyIdentity,
        ),
        Route::new(
            Method::POST,
            &["verify", "evidence"],
            Public,
            "verify_evidence",
            VerifyEvidence,
        ),
    ]
};
