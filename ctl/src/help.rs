/// Command lines that do what people want.
mod examples;
/// The manual pages.
mod man;

use clap::CommandFactory;
use clap_complete::Shell;

pub(crate) use self::{examples::add as add_examples, man::run as man};
use crate::{
    cli::Cli,
    error::{Error, Exit},
    output::Output,
};

pub(crate) const LONG_ABOUT: &str = "\
Operate Troth: enrol Linux nodes for remote attestation and see which of them can be trusted.

A node's agent registers its TPM at the registrar. `trothctl agent add` checks that identity and \
hands the node with its policies to the verifier, which then asks the node for a TPM quote again \
and again. `trothctl agent status` says whether the node is trusted, and if not, why and what to \
do. The servers are Troth's or Keylime's: the interface is the same.";

pub(crate) const AFTER_HELP: &str = "\
`trothctl --help` explains exit statuses, JSON, environment and files; `trothctl COMMAND --help` \
explains a command.";

pub(crate) const AGENT_ADD: &str = "\
Check a registered node's identity and have the verifier attest it from now on.

In this order: read and check the policies; fetch the node's keys from the registrar; check that \
its EK and AK follow the TCG's templates, and that a CA of the store of TPM vendors certified that \
EK; contact the agent, which must show the certificate that it registered; have it quote PCR 16 \
over a fresh nonce, and check that quote with the registered AK; ask ek_check_script, if there is \
one; enrol the node at the verifier. Nothing is enrolled when a step fails.

The store must hold the CA that issued the EK certificate, unless --require-ek-cert is false. \
`trothctl registrar show` names that issuer; TPM vendors publish their CAs' certificates.

PCR 10 is quoted when there is a runtime policy, PCRs 0 to 9 and 11 to 15 when there is a boot \
policy, and every PCR that --tpm-policy names.";

pub(crate) const AGENT_UPDATE: &str = "\
Change policies, accepted algorithms or address of an enrolled node; the rest is kept.

A new text for the policy that is the node's own (enrolled without a name) is replaced in place at \
Troth's verifier: the node is judged by it from the next attestation on, no list is read again, and \
a node that had failed is attested again.

Any other change removes the node and adds it again with the identity checks of `agent add`, all \
of them made before anything is removed; its counters and its place in the IMA list begin again. \
Without options that is all that happens: of use when the agent registered a new certificate.

A policy that many nodes use by name is changed for all of them with `trothctl policy import \
--replace`.";

pub(crate) const POLICY_CREATE_RUNTIME: &str = "\
Print a runtime policy (Keylime's JSON) made from a system's files, packages or lists; sources may \
be combined.

--root reads regular files that belong to root, never follows symbolic links, and does not enter \
other types of file systems. It leaves out /sys, /run, /proc, /lost+found, /dev, /media, /snap, \
/mnt, /var, /tmp and /.snapshots. It needs no privilege beyond reading the files. With --cache, \
what was read is kept when the command is interrupted, and is not read again until it changes.

--rpm takes digests from the headers of packages, which are not unpacked; it checks the header's \
own SHA-256, and neither the signature of a package nor that of a repository (repomd.xml.asc): get \
packages by a way that does (docs/policies.md). Source packages are left out. --initrd reads archives (cpio) that are not compressed or compressed \
with gzip, xz, zstd or lz4; --uki finds them in the sections .ucode and .initrd.

--write-xattr labels what it reads for the kernel's appraisal (ima_appraise): with the file's \
digest, or with --sign-key with a signature (version 2, as evmctl makes them), whose key the \
policy then believes. A label that is right is not written again, and a signature by another key \
is kept.

The kernel measures with the algorithm that its option ima_hash names: --algorithm must name the \
same. With SOURCE_DATE_EPOCH in the environment, equal input gives equal text.";

pub(crate) const POLICY_IMPORT: &str = "\
Check a policy and have the verifier keep it under a name.

A runtime policy may come in every form that `trothctl policy convert` takes; of the present version, \
or signed, it is kept byte for byte. Two names of one text cost the verifier no more than one.

Nodes use it with `trothctl agent add --runtime-policy-name NAME` or --boot-policy-name. With \
--replace, all nodes that use it are judged by the new text from their next attestation on.";

pub(crate) const APPRAISE: &str = "\
Judge evidence that was kept, without any server; the exit status is the verdict.

A bundle has what a node was asked and what it answered. It is judged as a verifier does it, from \
the AK's signature on, and the outcome is compared with the one in the bundle: verdict, findings \
and resulting state are the same, byte for byte, when the same policies are given. Those are known \
by their SHA-256: `trothctl policy show -o` saves the verifier's text of one, `trothctl agent \
evidence --with-policies` puts it into the bundle, where --embedded-policies finds it.

Several bundles of one node are judged in their order. What the verifier had of a node's IMA list \
it did not ask for again: such an answer continues from what came before, and with all bundles \
since one that has the list from its first entry, that is judged too.

What is not proved is said below the verdict. It is always about the past: a nonce that is not \
yours proves no freshness. Without --ak the bundle itself says whose TPM it was.";

pub(crate) const POLICY_SHOW: &str = "\
Show what a policy holds.

What kind of policy a file is, is recognised by its content: a runtime policy of any version, signed \
or not; a flat allowlist; an IMA list; a TPM policy; a boot policy. runtime:NAME and boot:NAME are \
policies that the verifier keeps; a file of such a name is ./runtime:NAME. Signatures are shown as \
they are, and not checked. Of a boot policy all that may be measured is shown, by PCR and component; \
--json has what the table cuts short.";

pub(crate) const POLICY_DIFF: &str = "\
Show what distinguishes two policies of one kind.

The exit status is 0 if they judge alike, 1 if they do not, and 2 if one of them cannot be read. The \
time at which they were made is shown, but makes no difference.

Boot policies are compared by PCR and component, wherever it stands; a refstate with a policy of ours \
as the policy that `trothctl policy convert --to boot-toml` makes of it.";

pub(crate) const POLICY_MERGE: &str = "\
Print a policy that allows what any of several policies allows.

Of runtime policies all sets are united: digests, excludes, keyrings, buffers and keys; the later time \
stays. What contradicts, such as log_hash_alg, is an error. Of TPM policies the values of each PCR and \
the masks are united. The order of the policies makes no difference. Signatures are left out.

Boot policies are united by component, PCR and name: digests, signers and patterns of either are \
allowed, each once. A component that only one of them has may be absent, and the order of a PCR's \
events counts where it is the same in both; what is demanded less than before is told on standard \
error. All that contradicts is told at once, and nothing is written. The result is TOML; that of \
refstates is JSON.";

pub(crate) const POLICY_CONVERT: &str = "\
Print a policy in another format.

Taken are a flat allowlist (lines of `DIGEST PATH`; `%keyring:NAME` in the place of the path), an IMA \
list, Keylime's JSON allow list (with `hashes`), runtime policies of older versions, and signed ones, \
whose signer must be named. Printed is a runtime policy of the present version, sorted, one name a \
line; or, with --to, a flat allowlist or its exclude file. A TPM policy is normalised.";

pub(crate) const POLICY_SIGN: &str = "\
Sign a runtime policy as Keylime does: a DSSE envelope, ECDSA with SHA-256.

Signed are the bytes of the file. A signed policy gets one signature more; a key that signed it before \
signs it anew. With --cert or --cert-out the signature carries the key's certificate (backend x509), \
else the digest of the public key (backend ecdsa). What a verifier takes is said by its options \
require_allow_list_signatures, runtime_policy_key and runtime_policy_ca.";

pub(crate) const POLICY_VERIFY: &str = "\
Check who signed a runtime policy.

The exit status is 0 if one of its signatures is by a --key, or by the key of a certificate that a \
--ca issued and that is valid now; else 3. A certificate with an extendedKeyUsage must have codeSigning \
in it, so that those of a CA's servers sign no policies.";

pub(crate) const POLICY_CREATE_TPM: &str = "\
Print a TPM policy made of PCR values, for --tpm-policy of `trothctl agent add`.

The values are those of a quote, of what `tpm2_pcrread` printed, or of this system as the kernel shows \
them in /sys/class/tpm/tpm0. PCR 10 (the IMA list) and PCR 16 (the agent's key) are left out.";

pub(crate) const CONFIG_SHOW: &str = "\
Show each option of a program, its value, and who set it.

The program itself is asked (`troth-agent --show-config`), so it must be installed. While its service \
runs, root sees what that unit's environment and credentials set; else those of the calling process \
count. A file that was changed since the service read it is shown as it is now. Options with an \
effect on nothing are told of below the table, as the program's log does.

What passwords and URLs of databases are is never shown, only where they come from. `-` is an option \
that nobody set and whose default depends on others: docs/configuration.md says how.";

pub(crate) const AGENT_WATCH: &str = "\
Print a line whenever a node's state changes, with the time since the command started.

The first line of a node is the state it is in. The command ends with --until, with --timeout, \
or when it is interrupted; a verifier that restarts meanwhile does not end it.";

pub(crate) const AGENT_EXPLAIN: &str = "\
Explain why a node is not trusted, finding by finding, with what to do and to run next.

Findings of one kind stand together, the most severe first: what is wrong and why it matters, then \
for each where it is, what was expected, what was found, and the commands to run next with their \
words filled in; a remark after a command says where it is run. The exit status is the verdict, as \
that of `agent status`.

Keylime's verifier tells no more than the id of its last event, which is explained.";

pub(crate) const NODE_QUOTE: &str = "\
Have this host's TPM quote its PCRs, and check the quote.

The quote is over a nonce of yours or a random one, and is checked as a verifier does it: the AK's \
signature, the nonce, the PCRs and their digest. That the AK is this host's, only the registrar can \
say: compare its name with `trothctl registrar show`. Who may do this is polkit's to say \
(org.troth.agent1.quote), by default root.";

pub(crate) const NODE_EVIDENCE: &str = "\
Save evidence of this host's state now, for `trothctl appraise`.

The bundle has a quote, PCRs, the IMA list and the boot logs. It tells which programs ran here: the \
file is for its owner alone, and who may do this is polkit's to say (org.troth.agent1.evidence), by \
default root.";

pub(crate) const NODE_CHECK: &str = "\
Say whether this host can be attested, and what to switch on; needs no agent.

Looked at are the TPM (2.0, 1.2 or none), its maker and PCR banks, the way to it, the boot log, \
systemd's log of user space, Secure Boot, and the kernel's IMA with its policy. A host is attested \
by its TPM; what else is lacking makes the evidence say less. Any user may do it; what only root may \
read is said.";

pub(crate) const EXPLAIN: &str = "\
Say what a finding means and what to do about it, by its id as logs have it.

Needs no server. The ids are those of Troth's journal entries (TROTH_FINDING=) and of Keylime's events; \
docs/findings.md has all of them.";

pub(crate) const REGISTRAR_COMPARE: &str = "\
Compare every node's EK and AK with those that another registrar has of it.

A registrar begins empty, and whoever registers an id first has it from then on. When one takes the \
place of another, this tells whether each id still belongs to the same TPM: ask the new one with \
--registrar, and name the old one, which may be Keylime's. An id with other keys is exit status 3: \
somebody else came first, or the host's TPM was replaced meanwhile. `registrar remove` frees the \
id, and the host registers at its agent's next start.";

pub(crate) const INSPECT_QUOTE: &str = "\
Print a quote's structures; with --ak, check its signature and PCR digest.

FILE holds Keylime's quote string (r...:...:...) or the JSON answer of an agent to \
/quotes/identity or /quotes/integrity, from which the quote and the key bound to PCR 16 are \
taken. Without --ak nothing is checked: everything printed is what the file claims.";

/// Heading and text of what the main manual page and `--help` say beyond the options.
const SECTIONS: [(&str, &str); 5] = [
    ("Exit status", EXIT_STATUS),
    ("JSON", JSON),
    ("Configuration", CONFIGURATION),
    ("Environment", ENVIRONMENT),
    ("Files", FILES),
];

const EXIT_STATUS: &str = "\
0  done; agent status, agent explain, appraise: trusted; node status: it is attested
1  an error without a status of its own (appraise: a policy is missing); policy diff: the policies
   differ; node check: this host cannot be attested
2  wrong use of the command line, such as a source of a policy with nothing in it; policy diff: a
   policy cannot be read
3  not to be trusted: a node or a bundle failed attestation; a quote, log, identity or signature
   failed its check; registrar compare: an id with other keys
4  agent status, agent explain: the node is unreachable, or its last verdict is too old to count;
   node status: the TPM does not answer
5  no such node, policy or finding
6  agent status, agent explain: no verdict (not attested yet, stopped, being removed); appraise:
   the host had booted again; node status: not registered (yet)
7  verifier, registrar or agent cannot be reached
8  agent watch: --timeout ended the wait";

const JSON: &str = "\
With --json a result is one JSON object on standard output (agent watch, node watch: one object a
line), and an error is one on standard error: {\"error\": {\"message\", \"advice\", \"exit_status\", \"findings\",
\"files\"}}; files are those that could not be read or labelled, and why.
Members may be added; those named here stay.

agent list      {\"agents\": [NODE]}
agent status    NODE
agent explain   {\"id\", \"state\", \"reason\", \"since_ms\", \"judged_at_ms\", \"due_at_ms\",
                \"severity\", \"last_event\", \"findings_total\", \"groups\": [{\"id\",
                \"severity\", KNOWN, \"findings\": [{\"where\", FINDING, \"next\": NEXT}],
                \"next\": NEXT}]}
explain         {\"id\", KNOWN, \"next\": NEXT}; without an id {\"findings\": [...]} of these
agent add       {\"id\", \"result\", \"verifier\", \"agent\", \"api_version\", \"ak_name\",
                \"ek_certificate\", \"ek_path\", \"ek_check_script\", \"tpm_policy\",
                \"has_runtime_policy\", \"has_boot_policy\", \"warnings\"}; ek_certificate is
                certified, matches (issuer not looked at) or absent
agent update    {\"id\", \"result\", \"how\", \"verifier\"}, how is in_place or enrolled_anew, and
                then with the members of agent add
agent remove    {\"id\", \"result\"}, result is removed or accepted
agent reactivate, agent stop
                {\"id\", \"result\"}, result is reactivated or stopped
agent watch     {\"elapsed_ms\", \"time_ms\", \"id\", \"previous\", \"state\", \"reason\",
                \"findings\", \"findings_total\"}
agent evidence  {\"id\", \"evidence\": [{\"sequence\", \"time_ms\", \"verdict\", \"bytes\", \"file\"}]}
appraise        {\"verdict\", \"complete\", \"not_proved\", \"bundles\": [{\"file\", \"node\", \"maker\",
                \"sequence\", \"time_ms\", \"nonce\", \"ima_entry\", \"link\", \"ak_name\",
                \"runtime_policy\", \"boot_policy\", \"tpm_policy\", \"rules\": {\"boot_engine\",
                \"tomtou\", \"ima_keys\", \"accept\"}, \"outcome\", \"recorded_verdict\",
                \"same_as_recorded\", \"boot_quirks\"}]}; verdict is trusted, failed or rebooted
node status     STATUS: {\"state\", \"detail\", \"agent_id\", \"version\", \"mode\", \"registrar\",
                \"tcti\", \"tpm_vendor\", \"tpm_firmware\", \"hash_algorithms\", \"last_quote_ms\",
                \"quote_count\", \"ima_entries\", \"payload_state\", \"secure_mount\"}; state is
                starting, registering, unregistered, attesting or tpm_unavailable
node watch      {\"time_ms\", \"status\": STATUS, \"quote\": {\"client\", \"ima_entries\"}}, null where
                there is no news
node quote      {\"nonce_hex\", \"quote\", \"ak\", \"ak_name\", \"hash_algorithm\", \"pcrs\"}; quote is
                what inspect quote reads
node evidence   {\"file\", \"bytes\"}
node register   {\"agent_id\", \"api_version\"}
node actions    {\"actions\": [{\"name\", \"description\", \"sandbox\"}]}
node check      {\"attestable\", \"checks\": [{\"check\", \"state\", \"found\", \"to_do\"}]}; state is
                good, lacking (less is attested), missing (nothing is) or unknown
registrar list  {\"agents\": [ID]}
registrar show  {\"id\", \"address\", \"port\", \"regcount\", \"ek\", \"ak\", \"ek_certificate\",
                \"ek_certificate_matches\", \"mtls_certificate\", \"tls_disabled\"}
registrar compare
                {\"with\", \"agents\": [{\"id\", \"keys\"}]}; keys are same, other, only_there or
                only_here
registrar remove {\"id\", \"result\"}, result is removed
policy list     {\"policies\": [{\"kind\", \"name\", \"sha256\", \"bytes\", \"nodes\"}]}; the last
                three are null if the verifier does not say (Keylime's)
policy show     {\"kind\", \"name\", \"file\", \"bytes\", \"sha256\", \"problem\", \"summary\",
                \"signatures\": [{\"keyid\", \"certificate\"}], \"policy\"}
policy create runtime
                the policy; with --output, or else on standard error, {\"sources\": [{\"place\",
                \"files\", \"cached\", \"unreadable\", \"unreadable_total\"}], \"notes\"}
policy merge    the policy; what has to be known about it is {\"notes\"} on standard error
policy diff     {\"old\", \"new\", \"kind\", \"same\", \"digests\", \"keyrings\", \"ima_buf\", \"pcrs\",
                \"components\": {NAME: {\"kind\", \"removed\", \"added\"}}, \"excludes\",
                \"ignored_keyrings\", \"verification_keys\": {\"removed\", \"added\"}, \"order\": {PCR:
                {\"event\", \"names\", \"events\"}}, \"members\": {POINTER: [OLD, NEW]}}; the kind of a
                change is added, removed or changed; order is where that of a PCR's events begins
                to differ
policy verify   {\"policy\", \"verified\", \"payload_sha256\", \"signatures\": [{\"keyid\",
                \"certificate\", \"by\", \"reason\"}]}
policy sign     {\"keyid\", \"public_key\", \"signatures\"}, with --output
policy import, policy remove
                {\"kind\", \"name\", \"result\", \"same_as\": [NAME]}, result is imported, replaced or
                removed
inspect quote   {\"verified\", \"failure\", \"nonce_checked\", \"nonce\", \"nonce_hex\", \"clock_ms\",
                \"selection\", \"pcr_digest\", \"pcr_digest_matches\", \"bank\", \"pcrs\",
                \"pubkey_bound\", ...}
inspect eventlog {\"format\", \"banks\", \"startup_locality\", \"events\": [{\"index\", \"pcr\", \"type\",
                \"digests\", \"size\", \"data\"}], \"pcrs\", \"boot_aggregates\"}
inspect ima     {\"entries\", \"templates\", \"names\", \"log_hash\", \"boot_aggregate\", \"pcr10\",
                \"violations\", \"device_mapper\": [{\"line\", \"event\", \"fields\",
                \"targets\", \"problem\"}], \"problems\", \"problems_total\", \"list\"}
config show     {\"program\", \"unit\", \"options\": [{\"name\", \"value\", \"secret\", \"origin\":
                {\"kind\", \"file\", \"line\", \"variable\", \"option\", \"argument\"}}], \"notes\":
                [{\"warning\", \"text\"}]}; kind is default, unit, file, keylime, variable,
                credential or argument, and the other members are those that belong to it
ca show         {\"directory\", \"ca\": FILE, \"issued\": [FILE]}

NODE: id, state, reason, since_ms, judged_at_ms, last_trusted_ms, due_at_ms, period, attestation_count,
ima_entries, address, severity, last_event, tpm_policy, has_runtime_policy, runtime_policy,
has_boot_policy, boot_policy, boot_quirks: [{\"pcr\", \"id\", \"reason\"}],
hash_algorithm, encryption_algorithm, signing_algorithm, verifier, findings, findings_total.
state: trusted, failed, unreachable, stale, pending, stopped, removed, unknown.
FINDING: id, recoverable, place, expected, got, explanation, action, severity (of a node's
findings).
KNOWN: kind, origin, component, title, meaning, causes: what the catalogue has of the id.
NEXT: [{\"host\", \"command\"}], host is operator, node or verifier: where it is run.
Members in _ms are Unix milliseconds; 0 is never.";

const ENVIRONMENT: &str = "\
TROTH_VERIFIER   as --verifier
TROTH_REGISTRAR  as --registrar
TROTH_CA_DIR     as --ca-dir
TROTH_CTL_NAME   option NAME of trothctl.toml, e.g. TROTH_CTL_REQUEST_TIMEOUT=5
SSL_CERT_FILE    CAs of web servers, for policies that are downloaded
NO_COLOR         not empty: no colour. Without a terminal there is none anyway";

const FILES: &str = "\
/etc/troth/trothctl.toml                 configuration, above /run/troth and /usr/lib/troth, below
/etc/troth/trothctl.toml.d/*.toml        its drop-ins, the environment, and the options
/etc/keylime/tenant.conf                 or /etc/keylime.conf: read where there is no trothctl.toml
/var/lib/troth/tpm_cert_store/           certificates of TPM vendors' CAs
/var/lib/troth/cv_ca/cacert.crt          the CA that verifier and registrar use
/var/lib/troth/cv_ca/client-cert.crt     the operator's certificate
/var/lib/troth/cv_ca/client-private.pem  its private key";

const CONFIGURATION: &str = "\
state_dir                    /var/lib/troth
verifier_ip, verifier_port   127.0.0.1, 8881
registrar_ip, registrar_port 127.0.0.1, 8891
verifier_tls_name, registrar_tls_name
                             name that the server's certificate must have, by default the _ip
ca_dir                       <state_dir>/cv_ca
client_cert, client_key      client-cert.crt and client-private.pem of ca_dir
client_key_password          of an encrypted client_key
trusted_server_ca            list of files, by default cacert.crt of ca_dir
request_timeout              60, seconds; also \"500ms\", \"5min\"
max_retries, retry_interval  5, 0.5: how often and when a busy or silent agent is asked again
exponential_backoff          true: retry_interval is doubled each time, up to a minute
accept_tpm_hash_algs         [\"sha256\", \"sha384\", \"sha512\"]
accept_tpm_encryption_algs   [\"rsa2048\", \"rsa3072\", \"rsa4096\", \"ecc256\", \"ecc384\", \"ecc521\"]
accept_tpm_signing_algs      [\"rsassa\", \"rsapss\", \"ecdsa\"]
require_ek_cert              true: a CA of the store must have certified a node's EK
tpm_cert_store               <state_dir>/tpm_cert_store: certificates of TPM vendors' CAs, one or
                             more a file, *.pem, *.crt, *.der, *.cer
ek_check_script              program that has the last word about an EK, by default none; relative
                             to state_dir. It gets AGENT_UUID, EK (PEM), EK_TPM (base64
                             TPM2B_PUBLIC), EK_CERT (base64 DER or nothing), PROVKEYS (JSON) and
                             TPM_CERT_STORE, and PATH; exit status 0 accepts
ek_check_timeout             60
mb_refstate                  file for --boot-policy default, by default none";

/// The sections as `--help` shows them.
pub(crate) fn after_long_help() -> String {
    let mut help = String::new();
    for (heading, text) in SECTIONS {
        if !help.is_empty() {
            help.push_str("\n\n");
        }
        help.push_str(heading);
        help.push(':');
        for line in text.lines() {
            help.push_str("\n  ");
            help.push_str(line);
        }
    }
    help
}

/// Runs `trothctl completions`.
pub(crate) fn completions(shell: Shell, out: &Output) -> Result<Exit, Error> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "trothctl", &mut script);
    out.text(&String::from_utf8_lossy(&script))?;
    Ok(Exit::Success)
}
