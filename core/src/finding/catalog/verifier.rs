use super::{
    AGENT_JOURNAL, Component, Kind, Origin, REACTIVATE, VERIFIER_JOURNAL, node, on_verifier,
    operator,
};

pub(super) const ROWS: &[Kind] = &[
    Kind {
        id: "internal.verifier.not_reachable",
        origin: Origin::Shared,
        component: Component::Verifier,
        title: "the node does not answer",
        meaning: "All attempts to get evidence failed. It is not known whether the node can still \
                  be trusted. Troth goes on asking; Keylime stops.",
        causes: &[
            "The host is down, or its network is.",
            "A firewall is between verifier and agent.",
            "The agent does not run, or has a new TLS key.",
        ],
        next: &[
            node("systemctl status troth-agent"),
            AGENT_JOURNAL,
            VERIFIER_JOURNAL,
        ],
    },
    Kind {
        id: "internal.verifier.exception",
        origin: Origin::Shared,
        component: Component::Verifier,
        title: "the verifier failed",
        meaning: "Judging the evidence ended in an error of the verifier itself, which says \
                  nothing about the node.",
        causes: &["A defect: please report it with the verifier's journal."],
        next: &[VERIFIER_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "internal.verifier.not_reachable_v",
        origin: Origin::Keylime,
        component: Component::Verifier,
        title: "the node did not take its share of the payload key",
        meaning: "All attempts to hand over the V share failed.",
        causes: &["The agent stopped answering between its first quote and the hand-over."],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "internal.verifier.no_quote",
        origin: Origin::Keylime,
        component: Component::Verifier,
        title: "the agent refused to quote",
        meaning: "The agent answered the request for a quote with an error.",
        causes: &[
            "The agent's TPM failed.",
            "The agent does not know the request.",
        ],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "internal.verifier.no_v",
        origin: Origin::Keylime,
        component: Component::Verifier,
        title: "the agent refused its share of the payload key",
        meaning: "The agent answered the hand-over of the V share with an error.",
        causes: &["The agent was restarted, and its key is another one."],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "internal.verifier.version_not_supported",
        origin: Origin::Keylime,
        component: Component::Verifier,
        title: "no common API version",
        meaning: "Agent and verifier speak no version of the API in common, or the agent offers an \
                  older one than before.",
        causes: &["The agent was downgraded, or the verifier is much newer."],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "tee_attestation.<name>",
        origin: Origin::Keylime,
        component: Component::Request,
        title: "evidence of a confidential virtual machine is not good",
        meaning: "A request to judge the evidence of a TEE failed.",
        causes: &["The report is not of the key, nonce or processor that the request names."],
        next: &[operator("trothctl agent list")],
    },
    Kind {
        id: "default.missing_param",
        origin: Origin::Shared,
        component: Component::Request,
        title: "the request lacks something",
        meaning: "A request to judge evidence lacks a member that is needed.",
        causes: &["The client is of another version."],
        next: &[on_verifier("journalctl -u troth-verifier -n 50")],
    },
    Kind {
        id: "default.missing_policy",
        origin: Origin::Shared,
        component: Component::Request,
        title: "the request has no policy",
        meaning: "A request to judge evidence came without any policy to judge it by.",
        causes: &["The client left out tpm_policy, runtime_policy and mb_policy."],
        next: &[on_verifier("journalctl -u troth-verifier -n 50")],
    },
];
