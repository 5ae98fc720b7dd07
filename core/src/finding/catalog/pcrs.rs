use super::{AGENT_JOURNAL, Component, Kind, Origin, REACTIVATE, STATUS, node, operator};

const COMPONENT: Component = Component::Pcrs;

pub(super) const ROWS: &[Kind] = &[
    Kind {
        id: "pcr_validation.invalid_pcr_16",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "PCR 16 does not bind the agent's key",
        meaning: "The agent extends PCR 16 with its public key before each quote. The quoted value \
                  is not that of the key that came with it.",
        causes: &[
            "Something else extends PCR 16, the PCR for debugging.",
            "The key in the answer was replaced on the way.",
        ],
        next: &[
            node("systemctl restart troth-agent"),
            AGENT_JOURNAL,
            REACTIVATE,
        ],
    },
    Kind {
        id: "pcr_validation.missing_pcr_16",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "PCR 16 is not in the quote",
        meaning: "Without PCR 16 nothing ties the agent's key to the machine that quoted. (Troth says \
                  `pcr_validation.missing_pcrs` of it.)",
        causes: &["The agent does not add PCR 16 to what it is asked for."],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "pcr_validation.invalid_pcr_<n>",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "a PCR has a value that is not allowed",
        meaning: "The TPM policy of the node lists the values that this PCR may have, and the \
                  quoted one is none of them.",
        causes: &[
            "Firmware, its settings, the boot loader or the kernel was updated on purpose.",
            "Something booted that was not meant to.",
        ],
        next: &[
            node("systemd-analyze pcrs {pcr}"),
            node("trothctl inspect eventlog /sys/kernel/security/tpm0/binary_bios_measurements"),
            operator("trothctl agent update {node} --tpm-policy FILE"),
        ],
    },
    Kind {
        id: "pcr_validation.missing_pcrs",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "PCRs are missing in the quote",
        meaning: "The policies judge PCRs that the quote does not cover.",
        causes: &[
            "The node was enrolled with a mask that leaves them out.",
            "The TPM has no such bank or PCR.",
        ],
        next: &[STATUS, operator("trothctl agent update {node}")],
    },
    Kind {
        id: "pcr_validation.unused_pcr_<n>",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "a PCR is quoted without the log that explains it",
        meaning: "The quote covers the PCR, but the agent sent no list or log of what was measured \
                  into it.",
        causes: &[
            "PCR 10: the kernel has no IMA policy, or the agent may not read the list.",
            "Others: the host did not boot by UEFI, or the agent may not read the boot log.",
        ],
        next: &[
            node("ls -l /sys/kernel/security/ima /sys/kernel/security/tpm0"),
            node("cat /proc/cmdline"),
            AGENT_JOURNAL,
        ],
    },
    Kind {
        id: "pcr_validation.invalid_mb_policy",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "the boot policy cannot be read",
        meaning: "The node's boot policy at Keylime's verifier is not JSON. (Troth refuses such a \
                  policy when the node is enrolled.)",
        causes: &["The policy was changed by hand, or is of another tool."],
        next: &[operator("trothctl policy show boot {boot_policy}")],
    },
    Kind {
        id: "pcr_validation.invalid_measured_boot_evaluate",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "the verifier's measured_boot_evaluate is wrong",
        meaning: "`measured_boot_evaluate` in Keylime's verifier.conf is neither `once` nor \
                  `always`.",
        causes: &["A typing error in verifier.conf."],
        next: &[super::on_verifier(
            "grep -r measured_boot_evaluate /etc/keylime",
        )],
    },
];
