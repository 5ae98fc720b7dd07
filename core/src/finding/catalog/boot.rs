use super::{AGENT_JOURNAL, Component, Kind, Next, Origin, REACTIVATE, STATUS, node, operator};

const COMPONENT: Component = Component::Boot;
const LOG: Next =
    node("trothctl inspect eventlog /sys/kernel/security/tpm0/binary_bios_measurements");

pub(super) const ROWS: &[Kind] = &[
    Kind {
        id: "measured_boot.invalid_pcr_<n>",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the boot log does not explain a PCR",
        meaning: "What the boot log says was measured does not add up to the quoted value of this \
                  PCR: the log lacks something, or was changed.",
        causes: &[
            "Something extends the PCR after boot, without a log.",
            "The firmware writes a log that is not what it measured.",
            "The log was changed to hide what booted.",
        ],
        next: &[
            LOG,
            node("systemd-analyze pcrs {pcr}"),
            node("fwupdmgr security"),
        ],
    },
    Kind {
        id: "measured_boot.missing_pcrs",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "PCRs of the boot are missing in the quote",
        meaning: "The boot policy is about PCRs that the quote does not cover.",
        causes: &["The node was enrolled with a mask that leaves them out."],
        next: &[
            STATUS,
            operator("trothctl agent update {node} --boot-policy-name {boot_policy}"),
        ],
    },
    Kind {
        id: "measured_boot.policy_<name>",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the boot policy does not allow what booted",
        meaning: "The boot log is genuine, but tells of something that the boot policy does not \
                  allow.",
        causes: &[
            "Firmware, boot loader, kernel, initrd or command line was updated on purpose.",
            "Secure Boot or its keys were changed.",
            "Something booted that was not meant to.",
        ],
        next: &[
            LOG,
            operator("trothctl policy show boot {boot_policy}"),
            REACTIVATE,
        ],
    },
    Kind {
        id: "measured_boot.missing_log",
        origin: Origin::Troth,
        component: COMPONENT,
        title: "no boot log",
        meaning: "The boot policy needs the boot log, and the agent sent none.",
        causes: &[
            "The host did not boot by UEFI, or its firmware has the TPM switched off.",
            "The agent may not read the log.",
        ],
        next: &[
            node("ls -l /sys/kernel/security/tpm0/binary_bios_measurements /sys/firmware/efi"),
            AGENT_JOURNAL,
        ],
    },
    Kind {
        id: "measured_boot.parser.log.base64decode",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the boot log is not base64",
        meaning: "The boot log in the agent's answer cannot be decoded.",
        causes: &["Agent and verifier are of versions that do not understand each other."],
        next: &[AGENT_JOURNAL, REACTIVATE],
    },
    Kind {
        id: "measured_boot.parser.eventlog",
        origin: Origin::Troth,
        component: COMPONENT,
        title: "the boot log cannot be parsed",
        meaning: "The boot log is not one of the TCG's formats; the finding says which event and \
                  byte.",
        causes: &[
            "The firmware writes a damaged log.",
            "The log was changed on the way.",
        ],
        next: &[LOG, node("fwupdmgr get-devices")],
    },
    Kind {
        id: "measured_boot.parser.userspace_log",
        origin: Origin::Troth,
        component: COMPONENT,
        title: "systemd's log cannot be parsed",
        meaning: "systemd's log of what user space measured, which explains PCRs 9, 11 and 15, is \
                  not what systemd writes; the finding says which record and byte.",
        causes: &[
            "The node's systemd writes a form of the log that is not known yet.",
            "The log was changed.",
        ],
        next: &[node("systemd-analyze pcrs"), AGENT_JOURNAL],
    },
    Kind {
        id: "measured_boot.parser.tpm2_eventlog.error",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "tpm2_eventlog failed",
        meaning: "The program that Keylime's verifier parses boot logs with ended with an error.",
        causes: &[
            "The log is damaged.",
            "tpm2-tools is missing or too old at the verifier.",
        ],
        next: &[LOG],
    },
    Kind {
        id: "measured_boot.parser.<reason>",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "the boot log cannot be used",
        meaning: "Keylime's verifier could not make use of what tpm2_eventlog printed.",
        causes: &["The log is damaged, or has events that Keylime does not know."],
        next: &[LOG],
    },
];
