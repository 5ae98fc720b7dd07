use super::{Check, Host, Seen, State, boot::securityfs};

const DIRECTORY: &str = "/sys/kernel/security/ima";

/// What makes IMA measure.
const SWITCH_ON: &str = "ima_policy=tcb on the kernel's command line measures all that root runs or \
                         reads; a policy of your own is loaded by systemd from /etc/ima/ima-policy";

/// The list of what ran, and the policy that it is made by.
pub(super) fn look(host: &Host) -> Vec<Check> {
    const NAME: &str = "IMA list";
    if !host.exists(DIRECTORY) {
        return vec![match host.exists("/sys/kernel/security") {
            false => securityfs(NAME),
            true => Check::new(NAME, State::Lacking, "the kernel is without IMA").advise(
                "use a kernel with CONFIG_IMA; without it files are not attested, the boot is",
            ),
        }];
    }
    let count = host.text(&format!("{DIRECTORY}/runtime_measurements_count"));
    let count: Option<u64> = count.and_then(|count| count.parse().ok());
    let list = match host.read(&format!("{DIRECTORY}/ascii_runtime_measurements")) {
        Seen::There(list) => list,
        Seen::Denied => {
            return vec![
                Check::good(NAME, "there; only root may read it"),
                policy(host, None),
            ];
        }
        Seen::Absent => Vec::new(),
    };
    let list = String::from_utf8_lossy(&list);
    // PCR, template hash, template, file hash.
    let mut first = list.lines().next().unwrap_or_default().split(' ').skip(2);
    let template = first.next().unwrap_or_default();
    let hash = first.next().and_then(|digest| digest.split(':').next());
    if template.is_empty() {
        let check = Check::new(NAME, State::Lacking, "it is empty");
        return vec![check.advise(SWITCH_ON), policy(host, count)];
    }
    let entries = count.map_or_else(String::new, |count| format!("{count} entries, "));
    let hash = hash.unwrap_or("unknown");
    let found = format!("{entries}template {template}, digests {hash}");
    let check = match hash {
        "sha1" | "md5" => Check::new(NAME, State::Lacking, found)
            .advise("ima_hash=sha256 on the kernel's command line: others can be forged"),
        _ if template == "ima" => Check::new(NAME, State::Lacking, found)
            .advise("ima_template=ima-ng on the kernel's command line: this template has SHA-1"),
        _ => Check::good(NAME, found),
    };
    vec![check, policy(host, count)]
}

fn policy(host: &Host, count: Option<u64>) -> Check {
    const NAME: &str = "IMA policy";
    let option = host.boot_option("ima_policy");
    let file = host.exists("/etc/ima/ima-policy");
    match (option, file, count) {
        (Some(option), _, _) => Check::good(NAME, format!("ima_policy={option}")),
        (None, true, _) => Check::good(NAME, "/etc/ima/ima-policy"),
        // boot_aggregate alone.
        (None, false, Some(0 | 1)) => {
            Check::new(NAME, State::Lacking, "none: nothing is measured").advise(SWITCH_ON)
        }
        (None, false, Some(_)) => Check::good(NAME, "one that was loaded otherwise"),
        (None, false, None) => {
            Check::new(NAME, State::Unknown, "none that this user can see").advise(SWITCH_ON)
        }
    }
}
