use super::{AGENT_JOURNAL, Component, Kind, Next, Origin, REACTIVATE, STATUS, node, operator};

const COMPONENT: Component = Component::Files;
const LIST: Next =
    node("trothctl inspect ima --entries /sys/kernel/security/ima/ascii_runtime_measurements");
const PROBLEMS: Next =
    node("trothctl inspect ima /sys/kernel/security/ima/ascii_runtime_measurements");
const DIGEST: Next = node("sha256sum -- {file}");
const OWNER: Next = node("rpm -qf -- {file} || dpkg -S {file}");
const POLICY: Next = operator("trothctl policy show runtime {runtime_policy} -o policy.json");

pub(super) const ROWS: &[Kind] = &[
    Kind {
        id: "ima.validation.ima-ng.not_in_allowlist",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "a file that the policy does not list was used",
        meaning: "The kernel measured a file, key or buffer that the runtime policy does not know \
                  by name and does not exclude.",
        causes: &[
            "Software was installed or updated after the policy was made.",
            "A program writes files that it then runs or maps (caches, plug-ins, containers).",
            "Somebody ran a program that does not belong on the node.",
        ],
        next: &[OWNER, DIGEST, POLICY],
    },
    Kind {
        id: "ima.validation.ima-ng.runtime_policy_hash",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "a file has another content than the policy lists",
        meaning: "The kernel measured a file, key or buffer whose digest is none of those that the \
                  runtime policy has for its name.",
        causes: &[
            "The software was updated after the policy was made.",
            "The file was changed: tampering, or a damaged disk.",
        ],
        next: &[OWNER, DIGEST, POLICY],
    },
    Kind {
        id: "ima.validation.no_validator",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "no rule for entries of this template",
        meaning: "The IMA list has an entry of a template that the verifier has no rule for.",
        causes: &["The kernel runs with an unusual ima_template."],
        next: &[LIST, node("cat /proc/cmdline")],
    },
    Kind {
        id: "ima.validator.ima-sig.invalid_signature",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "a file's signature is not good",
        meaning: "The file's IMA signature was not made by a key of the policy, or not over this \
                  content.",
        causes: &[
            "The file was changed after it was signed.",
            "It is signed by a key that the policy's `verification-keys` lack.",
        ],
        next: &[node("getfattr -m - -e hex -d -- {file}"), OWNER, POLICY],
    },
    Kind {
        id: "ima.validator.ima-sig.<reason>",
        origin: Origin::Keylime,
        component: COMPONENT,
        title: "a file's signature cannot be used",
        meaning: "The file's IMA signature is not one that can be checked.",
        causes: &["The file was signed by a tool of another version, or the signature is damaged."],
        next: &[node("getfattr -m - -e hex -d -- {file}"), OWNER, POLICY],
    },
    Kind {
        id: "ima.validation.ima_hash",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the template hash of an entry is wrong",
        meaning: "An entry's template hash is not the hash of the entry's fields.",
        causes: &[
            "`ima.log_hash_alg` of the runtime policy is not the hash that the list uses.",
            "The list was changed.",
        ],
        next: &[PROBLEMS, POLICY],
    },
    Kind {
        id: "ima.validation.ima_pcr",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "an entry is of another PCR than 10",
        meaning: "An entry of the IMA list was extended into another PCR, which the list does not \
                  explain.",
        causes: &["The node's IMA policy has a `pcr=` option."],
        next: &[node("grep -r pcr= /etc/ima"), LIST],
    },
    Kind {
        id: "ima.validation.tomtou",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "a file was open for writing while it was measured",
        meaning: "The kernel recorded a violation: a file was written to while it was read, or was \
                  opened for writing while measured, so that its digest says nothing.",
        causes: &[
            "Log files and databases, which are read while they are written.",
            "A program was replaced in place while it ran.",
        ],
        next: &[node("fuser -v -- {file}"), LIST, STATUS],
    },
    Kind {
        id: "ima.too_many_keys",
        origin: Origin::Troth,
        component: COMPONENT,
        title: "more keys were added to keyrings than are remembered",
        meaning: "The kernel measured keys that the policy allows, more than the verifier keeps of \
                  one node: signatures by the later ones would not be known.",
        causes: &["Keyrings that sign no files are measured too (.platform, .machine)."],
        next: &[LIST, POLICY],
    },
    Kind {
        id: "ima.validation.ima-buf.digest",
        origin: Origin::Troth,
        component: COMPONENT,
        title: "a measured buffer has another digest than its entry says",
        meaning: "The content of a measured key or buffer is in the list, and its digest is not \
                  the one beside it. No kernel writes such an entry.",
        causes: &["The list was changed."],
        next: &[LIST, STATUS],
    },
    Kind {
        id: "ima.validation.dm.<reason>",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the block devices are not what the policy asks for",
        meaning: "An event of the kernel's device mapper cannot be read (`parsing_failed`), a device \
                  was not resumed as its rule wants (`device_invalid_state`), or there is no \
                  device by a rule that is required (`required_policy_not_in_use`).",
        causes: &[
            "The node is still setting up its devices.",
            "Devices were set up in another way than when the policy was made.",
        ],
        next: &[node("dmsetup table"), node("dmsetup ls --tree"), LIST],
    },
    Kind {
        id: "ima.validation.dm.<event>.<reason>",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "a block device is not set up as the policy says",
        meaning: "A device of the kernel's device mapper was loaded, resumed, renamed, cleared or \
                  removed in a way that the device-mapper policy does not allow.",
        causes: &["Devices were set up in another way than when the policy was made."],
        next: &[node("dmsetup table"), node("dmsetup ls --tree"), LIST],
    },
    Kind {
        id: "ima.parser.entry",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "an entry of the IMA list cannot be read",
        meaning: "A line of the list is not one of the kernel's templates, or the list is longer \
                  than an answer may be. What cannot be read is not replayed.",
        causes: &[
            "The kernel runs with an ima_template that is not supported.",
            "The list was changed.",
        ],
        next: &[PROBLEMS, node("cat /proc/cmdline")],
    },
    Kind {
        id: "ima.invalid_key",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "a key of an unknown algorithm was added to a keyring",
        meaning: "A key that is neither RSA nor EC was added to one of the kernel's keyrings.",
        causes: &["Software loads keys of another kind."],
        next: &[node("cat /proc/keys"), LIST],
    },
    Kind {
        id: "ima.pcr_mismatch",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "the IMA list does not lead to PCR 10",
        meaning: "No entry of the list leads to the quoted value of PCR 10: entries are missing, \
                  changed or out of order, or something else extended the PCR.",
        causes: &[
            "The list was changed to hide what ran.",
            "A container or virtual machine shares the TPM, but not the list.",
            "After kexec the list begins anew, while PCR 10 goes on.",
        ],
        next: &[PROBLEMS, node("systemd-analyze pcrs 10"), REACTIVATE],
    },
    Kind {
        id: "ima.quote_progress",
        origin: Origin::Shared,
        component: COMPONENT,
        title: "entries of the list are never covered by a quote",
        meaning: "The last answer had entries beyond its quote, and this quote does not cover them \
                  either: PCR 10 was not extended with them.",
        causes: &[
            "The list was changed.",
            "The TPM does not take the kernel's extends.",
        ],
        next: &[PROBLEMS, node("journalctl -k -g tpm")],
    },
    Kind {
        id: "ima.nothing_measured",
        origin: Origin::Troth,
        component: COMPONENT,
        title: "the kernel measures no files",
        meaning: "The runtime policy is about files, and the kernel has measured none since boot: \
                  anything could run there unseen.",
        causes: &[
            "The kernel has no IMA policy: it was booted without ima_policy=tcb and there is no \
             /etc/ima/ima-policy.",
            "The kernel is built without IMA, or booted with ima=off.",
        ],
        next: &[
            node("cat /proc/cmdline /etc/ima/ima-policy"),
            node("wc -l /sys/kernel/security/ima/ascii_runtime_measurements"),
            AGENT_JOURNAL,
        ],
    },
];
