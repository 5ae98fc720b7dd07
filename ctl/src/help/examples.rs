use clap::Command;

/// What one wants, and the command line that does it.
type Example = (&'static str, &'static str);

/// Examples by command.
pub(super) const EXAMPLES: &[(&str, &[Example])] = &[
    (
        "trothctl agent add",
        &[
            (
                "Allow what runs on the node now, and demand that its boot log replays",
                "trothctl agent add web1 --ima-list web1.ima --boot-policy '{}'",
            ),
            (
                "Judge it by a policy that the verifier keeps, and by the value of PCR 7",
                "trothctl agent add web1 --runtime-policy-name base --tpm-policy pcr7.json",
            ),
            (
                "Take a virtual TPM that no vendor certified, if the inventory knows it",
                "trothctl agent add vm1 --require-ek-cert false --ek-check-script /usr/local/sbin/known-ek",
            ),
            (
                "The verifier reaches the agent by another address than this program",
                "trothctl agent add web1 --address 192.0.2.7 --address-for-verifier 10.0.0.7",
            ),
        ],
    ),
    (
        "trothctl agent update",
        &[
            (
                "Allow what runs there now, and go on where the verifier is",
                "trothctl agent update web1 --ima-list web1.ima",
            ),
            (
                "Judge it by another policy of the verifier's, and its boot log no more",
                "trothctl agent update web1 --runtime-policy-name base-2 --no-boot-policy",
            ),
            (
                "Enrol it anew with all that it has: its agent made a new certificate",
                "trothctl agent update web1",
            ),
        ],
    ),
    (
        "trothctl agent remove",
        &[(
            "Return when the node is gone, even if it is being attested",
            "trothctl agent remove --wait web1",
        )],
    ),
    (
        "trothctl agent reactivate",
        &[(
            "After the cause of a failure is mended",
            "trothctl agent reactivate web1",
        )],
    ),
    (
        "trothctl agent stop",
        &[("While the host is rebuilt", "trothctl agent stop web1")],
    ),
    (
        "trothctl agent status",
        &[
            ("Is it trusted, and why not?", "trothctl agent status web1"),
            (
                "All findings, for a program",
                "trothctl --json agent status web1",
            ),
        ],
    ),
    (
        "trothctl agent explain",
        &[
            (
                "What is wrong, and what do I run next?",
                "trothctl agent explain web1",
            ),
            ("Every single finding", "trothctl agent explain web1 --all"),
            (
                "For a program: the commands of all findings are in groups[].findings[].next",
                "trothctl --json agent explain web1",
            ),
        ],
    ),
    (
        "trothctl explain",
        &[
            (
                "What does this id in the journal mean?",
                "trothctl explain ima.validation.ima-ng.not_in_allowlist",
            ),
            ("Which findings are there?", "trothctl explain"),
        ],
    ),
    (
        "trothctl agent list",
        &[
            ("All nodes as a table", "trothctl agent list"),
            (
                "All nodes of another verifier, for a program",
                "trothctl --verifier https://192.0.2.1:8881 --json agent list",
            ),
        ],
    ),
    (
        "trothctl agent watch",
        &[
            ("Every change, until interrupted", "trothctl agent watch"),
            (
                "In a script: go on when both nodes are trusted, give up after a minute",
                "trothctl agent watch web1 web2 --until trusted --timeout 60",
            ),
        ],
    ),
    (
        "trothctl config show",
        &[
            (
                "What does the agent of this host go by, and who said so?",
                "trothctl config show agent",
            ),
            (
                "What will it go by in an image that is mounted?",
                "trothctl config show verifier --root /mnt",
            ),
        ],
    ),
    (
        "trothctl node status",
        &[("Is this host attested?", "trothctl node status")],
    ),
    (
        "trothctl node watch",
        &[(
            "See verifiers ask, for a program",
            "trothctl --json node watch",
        )],
    ),
    (
        "trothctl node quote",
        &[
            (
                "What was measured by Secure Boot and IMA",
                "trothctl node quote --pcrs 7,10",
            ),
            (
                "A quote to be checked elsewhere",
                "trothctl --json node quote --nonce for-you | jq -r .quote",
            ),
        ],
    ),
    (
        "trothctl node evidence",
        &[(
            "Keep what this host looks like now",
            "trothctl node evidence -o now.evidence",
        )],
    ),
    (
        "trothctl node register",
        &[("The registrar has lost this host", "trothctl node register")],
    ),
    (
        "trothctl node actions",
        &[(
            "What may this host be told to run?",
            "trothctl node actions",
        )],
    ),
    (
        "trothctl node check",
        &[("Before the agent is installed", "trothctl node check")],
    ),
    (
        "trothctl registrar list",
        &[("Who has registered?", "trothctl registrar list")],
    ),
    (
        "trothctl registrar show",
        &[(
            "Who issued the EK certificate, and where does the agent listen?",
            "trothctl registrar show web1",
        )],
    ),
    (
        "trothctl registrar compare",
        &[(
            "After all hosts registered anew: does each id still belong to the same TPM?",
            "trothctl registrar compare https://old.example:8891",
        )],
    ),
    (
        "trothctl registrar remove",
        &[(
            "After the host's TPM or mainboard was replaced",
            "trothctl registrar remove web1",
        )],
    ),
    (
        "trothctl inspect quote",
        &[(
            "Is this quote signed by that AK, over that nonce?",
            "trothctl inspect quote answer.json --ak ak.pub --nonce AbCdEfGhIj0123456789",
        )],
    ),
    (
        "trothctl inspect eventlog",
        &[(
            "What did this host boot?",
            "trothctl inspect eventlog /sys/kernel/security/tpm0/binary_bios_measurements",
        )],
    ),
    (
        "trothctl inspect ima",
        &[(
            "What has run on this host?",
            "trothctl inspect ima --entries /sys/kernel/security/ima/ascii_runtime_measurements",
        )],
    ),
    (
        "trothctl ca show",
        &[("Until when are the certificates valid?", "trothctl ca show")],
    ),
    (
        "trothctl policy create runtime",
        &[
            (
                "From what runs on a host, to be edited",
                "trothctl policy create runtime --ima-list web1.ima -o base.json",
            ),
            (
                "From all programs and libraries of this system",
                "trothctl policy create runtime --root -o base.json",
            ),
            (
                "From a snapshot, reading only what has changed since the last time",
                "trothctl policy create runtime --root /.snapshots/12/snapshot --cache digests -o base.json",
            ),
            (
                "Sign all programs and libraries of an image for IMA, and believe that key",
                "trothctl policy create runtime --root /mnt/image --write-xattr --sign-key ima.pem -o base.json",
            ),
            (
                "From a repository's packages, and from the initrds that boot them",
                "trothctl policy create runtime --rpm /srv/repo --ramdisk-dir /boot -o base.json",
            ),
        ],
    ),
    (
        "trothctl policy create tpm",
        &[
            (
                "Secure Boot's state, as it is on this system",
                "trothctl policy create tpm --pcr 7 -o pcr7.json",
            ),
            (
                "From a quote that this AK signed",
                "trothctl policy create tpm --quote answer.json --ak ak.pub --pcr 0,2,7",
            ),
            (
                "From what tpm2_pcrread printed elsewhere",
                "trothctl policy create tpm --pcrread pcrs.txt --mask 0x85",
            ),
        ],
    ),
    (
        "trothctl policy list",
        &[
            ("Policies of both kinds", "trothctl policy list"),
            ("Runtime policies only", "trothctl policy list runtime"),
        ],
    ),
    (
        "trothctl policy show",
        &[
            ("What is in this file?", "trothctl policy show base.json"),
            (
                "How large is the one that the verifier keeps?",
                "trothctl policy show runtime:base",
            ),
            (
                "Save it as the verifier has it",
                "trothctl policy show runtime:base -o base.json",
            ),
        ],
    ),
    (
        "trothctl policy diff",
        &[
            (
                "What would change for the nodes?",
                "trothctl policy diff runtime:base base-2.json",
            ),
            (
                "For a program",
                "trothctl --json policy diff base-1.json base-2.json",
            ),
        ],
    ),
    (
        "trothctl policy merge",
        &[(
            "What a distribution has, and what this site adds",
            "trothctl policy merge distribution.json site.json -o base.json",
        )],
    ),
    (
        "trothctl policy convert",
        &[
            (
                "A flat allowlist and its exclude file",
                "trothctl policy convert allowlist.txt --exclude exclude.txt -o base.json",
            ),
            (
                "The policy inside a signed one, if this key signed it",
                "trothctl policy convert signed.json --key signer.pub -o base.json",
            ),
            (
                "Back to a flat allowlist",
                "trothctl policy convert base.json --to allowlist",
            ),
        ],
    ),
    (
        "trothctl policy sign",
        &[
            (
                "With a new key, which stays here",
                "trothctl policy sign base.json --new-key signer.pem -o signed.json",
            ),
            (
                "With a key that a CA certified",
                "trothctl policy sign base.json --key signer.pem --cert signer.crt -o signed.json",
            ),
            (
                "A second person, too",
                "trothctl policy sign signed.json --key second.pem -o signed-twice.json",
            ),
        ],
    ),
    (
        "trothctl policy verify",
        &[
            (
                "Did this key sign it?",
                "trothctl policy verify signed.json --key signer.pub",
            ),
            (
                "Did anybody sign it whom our CA certified?",
                "trothctl policy verify runtime:base --ca policy-ca.pem",
            ),
        ],
    ),
    (
        "trothctl policy import runtime",
        &[
            (
                "A new policy",
                "trothctl policy import runtime base base.json",
            ),
            (
                "A new text for all nodes that use it",
                "trothctl policy import runtime base base.json --replace",
            ),
            (
                "One that `keylime-policy sign runtime` signed",
                "trothctl policy import runtime base signed.json --sig-key signer.pub",
            ),
            (
                "From a web server, known by its checksum",
                "trothctl policy import runtime base --url https://policies.example.org/base.json \
                 --checksum 3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7",
            ),
        ],
    ),
    (
        "trothctl policy import boot",
        &[(
            "Demand no more than that the boot log replays",
            "trothctl policy import boot replays '{}'",
        )],
    ),
    (
        "trothctl policy create boot",
        &[
            (
                "Allow what this host booted, and nothing else",
                "trothctl policy create boot -o web.toml",
            ),
            (
                "A refstate for Keylime's verifier, of another host's log",
                "trothctl policy create boot --event-log web1.bios --format keylime -o web1.json",
            ),
        ],
    ),
    (
        "trothctl policy remove",
        &[(
            "A policy that no node uses any more",
            "trothctl policy remove runtime:base",
        )],
    ),
    (
        "trothctl agent evidence",
        &[
            ("What the verifier has kept", "trothctl agent evidence web1"),
            (
                "Save the newest, with all that it takes to judge it again",
                "trothctl agent evidence web1 --last 1 --with-policies -o evidence",
            ),
        ],
    ),
    (
        "trothctl appraise",
        &[
            (
                "By the policies that came along, if the AK is the one that is known",
                "trothctl appraise web1.evidence.gz --embedded-policies --ak web1.ak",
            ),
            (
                "All that was kept of a node, in its order, by policies of the operator's",
                "trothctl appraise evidence --policy base.json --boot-policy '{}'",
            ),
        ],
    ),
    (
        "trothctl completions",
        &[(
            "For bash, from the next shell on",
            "trothctl completions bash > ~/.local/share/bash-completion/completions/trothctl",
        )],
    ),
    (
        "trothctl man",
        &[
            ("Read the main page", "trothctl man | man -l -"),
            (
                "Install all pages",
                "trothctl man /usr/local/share/man/man1",
            ),
        ],
    ),
];

/// Adds to `--help` of each command its examples; `path` is the command's name with those above it.
pub(crate) fn add(mut command: Command, path: &str) -> Command {
    let names: Vec<_> = command
        .get_subcommands()
        .map(|sub| sub.get_name().to_owned())
        .collect();
    for name in names {
        command = command.mut_subcommand(&name, |sub| add(sub, &format!("{path} {name}")));
    }
    match of(path) {
        [] => command,
        examples => {
            let examples: Vec<_> = examples
                .iter()
                .map(|(what, words)| format!("  {what}:\n    {words}"))
                .collect();
            command.after_long_help(format!("Examples:\n{}", examples.join("\n\n")))
        }
    }
}

/// The examples of a command.
pub(super) fn of(path: &str) -> &'static [Example] {
    EXAMPLES
        .iter()
        .find(|(command, _)| *command == path)
        .map_or(&[], |(_, examples)| examples)
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;
    use crate::cli::Cli;

    /// Words of a shell's command, up to a pipe or redirection.
    fn words(line: &str) -> Vec<String> {
        line.split(' ')
            .take_while(|word| !["|", ">"].contains(word))
            .map(|word| word.trim_matches('\'').to_owned())
            .collect()
    }

    #[test]
    fn every_example_is_a_command_that_is_understood() {
        for (command, examples) in EXAMPLES {
            for (_, line) in *examples {
                if let Err(error) = Cli::try_parse_from(words(line)) {
                    panic!("{line}: {error}");
                }
                let plain: Vec<_> = command.split(' ').collect();
                let found = plain.iter().all(|word| line.split(' ').any(|w| w == *word));
                assert!(found, "{line} is no example of {command}");
            }
        }
    }

    #[test]
    fn every_command_has_an_example() {
        fn visit(command: &Command, path: &str, leaves: &mut Vec<String>) {
            if !command.has_subcommands() {
                leaves.push(path.to_owned());
            }
            for sub in command.get_subcommands() {
                visit(sub, &format!("{path} {}", sub.get_name()), leaves);
            }
        }
        let mut leaves = Vec::new();
        visit(&Cli::command(), "trothctl", &mut leaves);
        for leaf in &leaves {
            assert!(!of(leaf).is_empty(), "{leaf} has no example");
        }
        assert_eq!(leaves.len(), EXAMPLES.len());
    }
}
