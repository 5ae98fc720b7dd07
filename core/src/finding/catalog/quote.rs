use super::{AGENT_JOURNAL, Component, Kind, Origin, REACTIVATE, STATUS, operator};

const COMPONENT: Component = Component::Quote;

pub(super) const ROWS: &[Kind] = &[
    Kind {
        id: "qoute_validation.quote_validation",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the quote cannot be believed",
        meaning: "The TPM's statement is not signed by the enrolled AK, answers another nonce, \
                  does not fit the PCR values that came with it, or its clock went back. Nothing \
                  else in the answer was looked at.",
        causes: &[
            "The TPM was replaced or cleared, or the host was cloned: the AK is another one.",
            "The host lost power: the TPM does not vouch for its clock until it has run a while.",
            "An old answer was played back, or somebody is between verifier and agent.",
        ],
        next: &[
            operator("trothctl registrar show {node}"),
            AGENT_JOURNAL,
            REACTIVATE,
        ],
    },
    Kind {
        id: "qoute_validation.invalid_data",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the answer is no evidence",
        meaning: "The agent answered, but without a quote, or with something that is not the JSON \
                  of an answer.",
        causes: &[
            "The agent's TPM or its resource manager failed.",
            "Another service listens at the agent's address.",
            "Agent and verifier are of versions that do not understand each other.",
        ],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "qoute_validation.no_pubkey",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "no public key of the agent",
        meaning: "The agent sent no public key, and none is known that PCR 16 could be compared \
                  with.",
        causes: &[
            "The agent was restarted and lost its key.",
            "A proxy drops part of the answer.",
        ],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "qoute_validation.invalid_hash_alg",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "hash algorithm not accepted",
        meaning: "The quote is over a PCR bank that this node may not use.",
        causes: &[
            "The agent's `tpm_hash_alg` is not among the accepted ones.",
            "The node was enrolled before the site changed what it accepts.",
        ],
        next: &[
            STATUS,
            operator("trothctl agent update {node} --accept-hash ALG"),
        ],
    },
    Kind {
        id: "qoute_validation.invalid_enc_alg",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "AK algorithm not accepted",
        meaning: "The AK is of an algorithm that this node may not use.",
        causes: &[
            "The agent's `tpm_encryption_alg` is not among the accepted ones.",
            "The agent made a new AK of another kind.",
        ],
        next: &[
            STATUS,
            operator("trothctl agent update {node} --accept-encryption ALG"),
        ],
    },
    Kind {
        id: "qoute_validation.invalid_sign_alg",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "signature scheme not accepted",
        meaning: "The quote is signed in a scheme that this node may not use.",
        causes: &[
            "The agent's `tpm_signing_alg` is not among the accepted ones.",
            "Keylime's list of accepted schemes lacks `ecdsa`, which ECC keys sign with.",
        ],
        next: &[
            STATUS,
            operator("trothctl agent update {node} --accept-signing SCHEME"),
        ],
    },
    Kind {
        id: "qoute_validation.invalid_ima_entry_nb",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the IMA list starts at another entry than asked for",
        meaning: "The list in the answer starts neither where the verifier left off nor at entry \
                  0, so that entries could be missing in between.",
        causes: &["The agent is of another version or was changed."],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "qoute_validation.invalid_quote",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the evidence on demand could not be read",
        meaning: "A request to judge evidence had a quote or an AK that could not be used at all.",
        causes: &["The request is not what an agent's evidence looks like."],
        next: &[operator("trothctl inspect quote ANSWER.json --ak AK.pub")],
    },
];
