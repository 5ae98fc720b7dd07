use rand::RngExt;
use rand::seq::IndexedRandom;
use serde_json::Value;
use troth_core::tpm::HashAlgorithm;

use super::host::{Host, line, template_data};
use super::keys::Key;

/// What happens on a host, by name.
pub(super) type Rule = (&'static str, fn(&mut Host<'_>));

macro_rules! rules {
    ($($rule:ident),* $(,)?) => { &[$((stringify!($rule), $rule)),*] };
}

/// A host with only these is accepted.
pub(super) const GOOD: &[Rule] = rules![
    listed,
    listed_with_other_digests,
    listed_by_other_hash,
    listed_in_upper_case,
    listed_under_template_ima,
    listed_twice_measured,
    odd_name,
    excluded,
    excluded_by_prefix,
    excluded_by_look_around,
    excluded_by_python_syntax,
    excluded_though_wrong,
    signed_by_site,
    signed_as_portable,
    signed_by_loaded_key,
    signed_by_loaded_certificate,
    signed_and_wrong_in_policy,
    signed_badly_but_listed,
    signed_by_stranger_but_listed,
    signed_and_excluded,
    unsigned_but_listed,
    key_listed,
    key_of_ignored_keyring,
    key_of_excluded_keyring,
    buffer_listed,
    buffer_excluded,
    violation,
    violation_of_unlisted,
    aggregate_of_the_boot,
    aggregate_in_the_policy,
    empty_lines,
];

/// A host with one of these is rejected.
pub(super) const BAD: &[Rule] = rules![
    unlisted,
    unlisted_under_template_ima,
    unlisted_odd_name,
    wrong_digest,
    wrong_digest_by_one_bit,
    digest_of_another_file,
    md5_digest,
    exclude_in_the_middle,
    exclude_with_other_case,
    signed_by_stranger,
    signed_with_anothers_id,
    signature_changed,
    signature_of_other_content,
    signature_for_other_hash,
    signature_of_other_type,
    signature_of_other_version,
    signed_by_ignored_key,
    unsigned,
    key_unlisted,
    key_wrong,
    buffer_unlisted,
    buffer_wrong,
    aggregate_unknown,
    template_hash_changed,
    name_changed_in_the_list,
    name_not_utf8,
    other_pcr,
    not_an_entry,
    unknown_template,
    entry_missing,
    entries_swapped,
    entry_twice,
    extend_without_entry,
    policy_without_a_member,
    policy_with_a_bad_digest,
    policy_with_an_empty_list,
];

/// Where the two differ on purpose, and whether Troth accepts; Keylime does the opposite.
pub(super) const DIFFERENT: &[(Rule, bool)] = &[
    (("numbered_back_reference", numbered_back_reference), true),
    (
        ("group_name_of_two_patterns", group_name_of_two_patterns),
        true,
    ),
    (("pattern_that_is_none", pattern_that_is_none), false),
    (
        (
            "buffer_that_is_not_its_digest",
            buffer_that_is_not_its_digest,
        ),
        false,
    ),
    (("entry_after_the_quote", entry_after_the_quote), true),
];

fn listed(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    host.measure("ima-ng", &digest, &path, None);
}

fn listed_with_other_digests(host: &mut Host<'_>) {
    let (path, content) = host.file();
    for n in 0..host.random.random_range(1..4_u8) {
        let other = host.digest(&[n]);
        host.allow(&path, &other);
    }
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    host.measure("ima-ng", &digest, &path, None);
}

fn listed_by_other_hash(host: &mut Host<'_>) {
    use HashAlgorithm::{Sha1, Sha384, Sha512};
    let (path, content) = host.file();
    let hash = *[Sha1, Sha384, Sha512].choose(&mut host.random).unwrap();
    let digest = format!("{}:{}", hash.name(), hash.digest(&[&content]));
    host.allow(&path, &digest);
    host.measure("ima-ng", &digest, &path, None);
}

fn listed_in_upper_case(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    let shouted = digest.to_uppercase().replace("SHA256", "sha256");
    host.measure("ima-ng", &shouted, &path, None);
}

fn listed_under_template_ima(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = HashAlgorithm::Sha1.digest(&[&content]).to_string();
    host.allow(&path, &digest);
    host.measure("ima", &digest, &path, None);
}

fn listed_twice_measured(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    for _ in 0..2 {
        host.measure("ima-ng", &digest, &path, None);
    }
}

/// The kernel writes spaces and control characters of a name as underscores, hashes it so, and
/// leaves everything else as it is.
const ODD_NAMES: [&str; 8] = [
    "/opt/my_file",
    "/opt/line_feed",
    "/opt/gr\u{fc}n/\u{65e5}\u{672c}",
    "memfd:x_(deleted)",
    "/opt/\u{2028}separator",
    "/opt/back\\slash\"quote",
    "/opt/%keyring:x",
    "/opt/.../*?[a]{1}",
];

fn odd_name(host: &mut Host<'_>) {
    let (suffix, content) = host.file();
    let name = format!("{}{suffix}", ODD_NAMES.choose(&mut host.random).unwrap());
    let digest = host.digest(&content);
    host.allow(&name, &digest);
    host.measure("ima-ng", &digest, &name, None);
}

/// Measured, with `pattern` among the excludes.
fn measured_beside(host: &mut Host<'_>, directory: &str, pattern: &str) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.excludes.push(pattern.to_owned());
    host.measure("ima-ng", &digest, &format!("{directory}{path}"), None);
}

fn excluded(host: &mut Host<'_>) {
    measured_beside(host, "/tmp", "/tmp/.*");
}

fn excluded_by_prefix(host: &mut Host<'_>) {
    measured_beside(host, "/srv", "/srv/usr/b");
}

fn excluded_by_look_around(host: &mut Host<'_>) {
    measured_beside(host, "/home/someone", r"/home/(?!root)\w+/(?=usr)");
}

fn excluded_by_python_syntax(host: &mut Host<'_>) {
    const PATTERNS: [&str; 5] = [
        r"/var/(?P<NAME>[a-z])(?P=NAME){,2}/",
        r"/var/(?#a comment)aa/usr/bin/program-\d+\Z",
        r"/var/[^]b]{2}/",
        r"/var/\141\x61/",
        r"/var/(?:a|b){2}/(?=usr)",
    ];
    let pattern = *PATTERNS.choose(&mut host.random).unwrap();
    // Keylime makes one expression of all patterns, in which no name may occur twice.
    let (name, _) = host.file();
    let pattern = pattern.replace("NAME", &name.replace(['/', '-'], "_"));
    measured_beside(host, "/var/aa", &pattern);
}

fn excluded_though_wrong(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let path = format!("/tmp{path}");
    let other = host.digest(b"other");
    host.allow(&path, &other);
    host.excludes.push("/tmp/.*".to_owned());
    let digest = host.digest(&content);
    host.measure("ima-ng", &digest, &path, None);
}

/// A file signed by `key`, which it names as `id`; `change` may do something to the signature.
fn signed(host: &mut Host<'_>, key: &Key, id: u32, change: impl FnOnce(&mut Vec<u8>)) -> String {
    let (path, content) = host.file();
    let digest = format!("{}:{}", key.hash.name(), key.hash.digest(&[&content]));
    let mut signature = key.sign(&content, id);
    change(&mut signature);
    host.measure("ima-sig", &digest, &path, Some(&signature));
    path
}

fn site_key<'k>(host: &mut Host<'k>) -> &'k Key {
    host.keys.site.choose(&mut host.random).unwrap()
}

fn signed_by_site(host: &mut Host<'_>) {
    let key = site_key(host);
    signed(host, key, key.id, |_| {});
}

fn signed_as_portable(host: &mut Host<'_>) {
    let key = site_key(host);
    signed(host, key, key.id, |signature| signature[0] = 5);
}

/// The kernel loads `key` into a keyring.
fn load(host: &mut Host<'_>, keyring: &str, key: &[u8], listed: bool) {
    let digest = host.digest(key);
    if listed {
        let hex = digest.replace("sha256:", "");
        let keyring = host.keyrings.entry(keyring.to_owned()).or_default();
        keyring.insert(hex);
    }
    host.measure("ima-buf", &digest, keyring, Some(key));
}

fn signed_by_loaded_key(host: &mut Host<'_>) {
    let key = &host.keys.loaded;
    load(host, ".ima", &key.public, true);
    signed(host, key, key.id, |_| {});
}

fn signed_by_loaded_certificate(host: &mut Host<'_>) {
    let key = &host.keys.loaded;
    let (certificate, id) = key.certificate.as_ref().unwrap();
    load(host, ".ima", certificate, true);
    signed(host, key, *id, |_| {});
}

fn signed_and_wrong_in_policy(host: &mut Host<'_>) {
    let key = site_key(host);
    let path = signed(host, key, key.id, |_| {});
    let other = host.digest(b"other");
    host.allow(&path, &other);
}

/// A signed file that the policy lists as well.
fn signed_and_listed(host: &mut Host<'_>, key: &Key, change: impl FnOnce(&mut Vec<u8>)) {
    let (path, content) = host.file();
    let digest = format!("{}:{}", key.hash.name(), key.hash.digest(&[&content]));
    host.allow(&path, &digest);
    let mut signature = key.sign(&content, key.id);
    change(&mut signature);
    host.measure("ima-sig", &digest, &path, Some(&signature));
}

fn signed_badly_but_listed(host: &mut Host<'_>) {
    let key = site_key(host);
    signed_and_listed(host, key, |signature| flip_last(signature));
}

fn signed_by_stranger_but_listed(host: &mut Host<'_>) {
    let key = &host.keys.stranger;
    signed_and_listed(host, key, |_| {});
}

fn signed_and_excluded(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let path = format!("/tmp{path}");
    let digest = host.digest(&content);
    host.excludes.push("/tmp/.*".to_owned());
    let mut signature = host.keys.site[0].sign(&content, host.keys.site[0].id);
    flip_last(&mut signature);
    host.measure("ima-sig", &digest, &path, Some(&signature));
}

fn unsigned_but_listed(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    host.measure("ima-sig", &digest, &path, Some(b""));
}

fn key_listed(host: &mut Host<'_>) {
    let key = host.keys.site[2].public.clone();
    load(host, ".builtin_trusted_keys", &key, true);
}

fn key_of_ignored_keyring(host: &mut Host<'_>) {
    let name = *[".evm", "*"].choose(&mut host.random).unwrap();
    host.ignored_keyrings.push(name.to_owned());
    let key = host.keys.site[0].public.clone();
    load(host, ".evm", &key, false);
}

fn key_of_excluded_keyring(host: &mut Host<'_>) {
    host.excludes.push(r"\.machine".to_owned());
    let key = host.keys.site[1].public.clone();
    load(host, ".machine", &key, false);
}

/// A measured buffer that is no key.
fn buffer(host: &mut Host<'_>, name: &str, listed: Option<&[u8]>) {
    let content = b"kernel_version=6.12.0;";
    let digest = host.digest(content);
    if let Some(listed) = listed {
        let hex = host.digest(listed).replace("sha256:", "");
        let digests = host.buffers.entry(name.to_owned()).or_default();
        digests.insert(hex);
    }
    host.measure("ima-buf", &digest, name, Some(content));
}

fn buffer_listed(host: &mut Host<'_>) {
    buffer(host, "kernel_info", Some(b"kernel_version=6.12.0;"));
}

fn buffer_excluded(host: &mut Host<'_>) {
    host.excludes.push("selinux".to_owned());
    buffer(host, "selinux-state", None);
}

/// Opened for writing while it was measured.
fn violated(host: &mut Host<'_>, path: &str) {
    let digest = format!("sha256:{}", "0".repeat(64));
    let line = line("10", &"0".repeat(40), "ima-ng", &digest, path, None);
    host.append(&line, &[0xff; 32]);
}

fn violation(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    violated(host, &path);
}

fn violation_of_unlisted(host: &mut Host<'_>) {
    let (path, _) = host.file();
    violated(host, &path);
}

fn aggregate_of_the_boot(host: &mut Host<'_>) {
    let pcrs = *[8, 10].choose(&mut host.random).unwrap();
    let digest = host.boot_aggregate(pcrs);
    host.measure("ima-ng", &digest, "boot_aggregate", None);
}

fn aggregate_in_the_policy(host: &mut Host<'_>) {
    let digest = host.digest(b"another boot");
    host.allow("boot_aggregate", &digest);
    host.measure("ima-ng", &digest, "boot_aggregate", None);
}

fn empty_lines(host: &mut Host<'_>) {
    host.edit(|lines| lines.insert(0, String::new()));
    host.edit(|lines| lines.push(String::new()));
}

fn unlisted(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.measure("ima-ng", &digest, &path, None);
}

fn unlisted_under_template_ima(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = HashAlgorithm::Sha1.digest(&[&content]).to_string();
    host.measure("ima", &digest, &path, None);
}

fn unlisted_odd_name(host: &mut Host<'_>) {
    let (suffix, content) = host.file();
    let name = format!("{}{suffix}", ODD_NAMES.choose(&mut host.random).unwrap());
    let digest = host.digest(&content);
    // The name as it is on disk is not what the kernel writes.
    host.allow(&name.replace('_', " "), &digest);
    host.measure("ima-ng", &digest, &(name + "_"), None);
}

fn wrong_digest(host: &mut Host<'_>) {
    let (path, content) = host.file();
    for n in 0..host.random.random_range(1..4_u8) {
        let other = host.digest(&[n]);
        host.allow(&path, &other);
    }
    let digest = host.digest(&content);
    host.measure("ima-ng", &digest, &path, None);
}

fn wrong_digest_by_one_bit(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    let mut bytes = hex::decode(&digest[7..]).unwrap();
    bytes[host.random.random_range(0..32)] ^= 1 << host.random.random_range(0..8);
    let digest = format!("sha256:{}", hex::encode(bytes));
    host.measure("ima-ng", &digest, &path, None);
}

fn digest_of_another_file(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&(path.clone() + ".so"), &digest);
    host.measure("ima-ng", &digest, &path, None);
}

fn md5_digest(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    let half = format!("md5:{}", &digest[7..39]);
    host.measure("ima-ng", &half, &path, None);
}

fn exclude_in_the_middle(host: &mut Host<'_>) {
    measured_beside(host, "/mnt", "usr/bin/.*");
}

fn exclude_with_other_case(host: &mut Host<'_>) {
    measured_beside(host, "/mnt", "/MNT/.*");
}

fn signed_by_stranger(host: &mut Host<'_>) {
    let key = &host.keys.stranger;
    signed(host, key, key.id, |_| {});
}

fn signed_with_anothers_id(host: &mut Host<'_>) {
    let (key, id) = (&host.keys.stranger, host.keys.site[0].id);
    signed(host, key, id, |_| {});
}

fn flip_last(signature: &mut [u8]) {
    if let Some(last) = signature.last_mut() {
        *last ^= 1;
    }
}

fn signature_changed(host: &mut Host<'_>) {
    let key = site_key(host);
    signed(host, key, key.id, |signature| flip_last(signature));
}

fn signature_of_other_content(host: &mut Host<'_>) {
    let key = site_key(host);
    let other = key.sign(b"other", key.id);
    signed(host, key, key.id, |signature| *signature = other);
}

fn signature_for_other_hash(host: &mut Host<'_>) {
    let key = &host.keys.site[0];
    signed(host, key, key.id, |signature| signature[2] = 6);
}

fn signature_of_other_type(host: &mut Host<'_>) {
    let key = site_key(host);
    signed(host, key, key.id, |signature| signature[0] = 4);
}

fn signature_of_other_version(host: &mut Host<'_>) {
    let key = site_key(host);
    let version = *[0, 1, 4, 255].choose(&mut host.random).unwrap();
    signed(host, key, key.id, |signature| signature[1] = version);
}

fn signed_by_ignored_key(host: &mut Host<'_>) {
    let key = &host.keys.stranger;
    host.ignored_keyrings.push(".secondary".to_owned());
    load(host, ".secondary", &key.public, false);
    signed(host, key, key.id, |_| {});
}

fn unsigned(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.measure("ima-sig", &digest, &path, Some(b""));
}

fn key_unlisted(host: &mut Host<'_>) {
    host.no_wildcard = true;
    let key = host.keys.stranger.public.clone();
    load(host, ".unlisted", &key, false);
}

fn key_wrong(host: &mut Host<'_>) {
    host.no_wildcard = true;
    let hex = host.digest(b"another key").replace("sha256:", "");
    host.keyrings.insert(".wrong".to_owned(), [hex].into());
    let key = host.keys.stranger.public.clone();
    load(host, ".wrong", &key, false);
}

fn buffer_unlisted(host: &mut Host<'_>) {
    buffer(host, "kexec-cmdline", None);
}

fn buffer_wrong(host: &mut Host<'_>) {
    buffer(host, "kexec-load", Some(b"another kernel"));
}

fn aggregate_unknown(host: &mut Host<'_>) {
    let digest = host.digest(b"nobody's boot");
    host.measure("ima-ng", &digest, "boot_aggregate", None);
}

/// A listed file, whose line is made by `make` of template data and template hash.
fn listed_line(host: &mut Host<'_>, make: impl FnOnce(&str, &str, &str) -> String) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    host.allow(&path, &digest);
    let data = template_data("ima-ng", &digest, &path, None);
    let hash = HashAlgorithm::Sha1.digest(&[&data]).to_string();
    let extended = HashAlgorithm::Sha256.digest(&[&data]);
    host.append(&make(&hash, &digest, &path), extended.as_bytes());
}

fn template_hash_changed(host: &mut Host<'_>) {
    listed_line(host, |hash, digest, path| {
        let first = if hash.starts_with('0') { "1" } else { "0" };
        line(
            "10",
            &format!("{first}{}", &hash[1..]),
            "ima-ng",
            digest,
            path,
            None,
        )
    });
}

fn name_changed_in_the_list(host: &mut Host<'_>) {
    let (path, _) = host.file();
    let other = host.digest(b"other");
    host.allow(&path, &other);
    listed_line(host, |hash, digest, _| {
        line("10", hash, "ima-ng", digest, &path, None)
    });
}

/// The bytes that are no UTF-8 were replaced on the way, so that the hash is that of another name.
fn name_not_utf8(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    let shown = format!("{path}-\u{fffd}");
    host.allow(&shown, &digest);
    let mut data = template_data("ima-ng", &digest, &path, None);
    data.push(0xe9);
    let hash = HashAlgorithm::Sha1.digest(&[&data]).to_string();
    let line = line("10", &hash, "ima-ng", &digest, &shown, None);
    host.append(&line, HashAlgorithm::Sha256.digest(&[&data]).as_bytes());
}

fn other_pcr(host: &mut Host<'_>) {
    let pcr = *["11", "9", "0"].choose(&mut host.random).unwrap();
    listed_line(host, |hash, digest, path| {
        line(pcr, hash, "ima-ng", digest, path, None)
    });
}

fn not_an_entry(host: &mut Host<'_>) {
    const LINES: [&str; 5] = [
        "10",
        "10 zz ima-ng sha256:00 /x",
        "10 0011 ima-ng sha256:00",
        "10 0011 ima-ng sha256:0 /x",
        "nothing of the kind",
    ];
    let line = *LINES.choose(&mut host.random).unwrap();
    host.edit(|lines| lines.insert(0, line.to_owned()));
}

fn unknown_template(host: &mut Host<'_>) {
    listed_line(host, |hash, digest, path| {
        line("10", hash, "ima-next", digest, path, None)
    });
}

fn entry_missing(host: &mut Host<'_>) {
    unlisted(host);
    host.edit(|lines| lines.truncate(lines.len() - 1));
    listed(host);
}

fn entries_swapped(host: &mut Host<'_>) {
    listed(host);
    listed(host);
    host.edit(|lines| {
        let last = lines.len() - 1;
        lines.swap(last - 1, last);
    });
}

fn entry_twice(host: &mut Host<'_>) {
    listed(host);
    host.edit(|lines| lines.insert(0, lines[lines.len() - 1].clone()));
}

fn extend_without_entry(host: &mut Host<'_>) {
    host.extend(&[0x42; 32]);
}

/// The policy, after a change that no policy may have.
fn change_policy(host: &mut Host<'_>, change: impl FnOnce(&mut Value)) {
    let mut policy: Value = serde_json::from_str(&host.policy()).unwrap();
    change(&mut policy);
    host.other_policy = Some(policy.to_string());
}

fn policy_without_a_member(host: &mut Host<'_>) {
    const MEMBERS: [&str; 8] = [
        "meta",
        "release",
        "digests",
        "excludes",
        "keyrings",
        "ima",
        "ima-buf",
        "verification-keys",
    ];
    let member = *MEMBERS.choose(&mut host.random).unwrap();
    change_policy(host, |policy| {
        policy.as_object_mut().unwrap().remove(member);
    });
}

fn policy_with_a_bad_digest(host: &mut Host<'_>) {
    const DIGESTS: [&str; 3] = ["", "00", "ABCDEFABCDEFABCDEFABCDEFABCDEFABCDEFABCD"];
    let digest = *DIGESTS.choose(&mut host.random).unwrap();
    change_policy(host, |policy| policy["digests"]["/x"] = [digest].into());
}

fn policy_with_an_empty_list(host: &mut Host<'_>) {
    change_policy(host, |policy| {
        policy["digests"]["/x"] = Value::Array(Vec::new())
    });
}

/// `\1` is the first group of its own pattern.
fn numbered_back_reference(host: &mut Host<'_>) {
    host.excludes.push("/tmp/.*".to_owned());
    measured_beside(host, "/var/aa", r"/var/(a)\1/");
}

fn group_name_of_two_patterns(host: &mut Host<'_>) {
    host.excludes.push("/tmp/(?P<name>x)(?P=name)".to_owned());
    measured_beside(host, "/var/aa", "/var/(?P<name>a)(?P=name)/");
}

/// Such a policy is refused: with none of its patterns in force it would mean something else.
fn pattern_that_is_none(host: &mut Host<'_>) {
    const PATTERNS: [&str; 4] = ["/x(", "*", "/[z-a]", "/a{2,1}"];
    let pattern = *PATTERNS.choose(&mut host.random).unwrap();
    host.excludes.push(pattern.to_owned());
    listed(host);
}

fn buffer_that_is_not_its_digest(host: &mut Host<'_>) {
    let digest = host.digest(b"what is listed");
    let hex = digest.replace("sha256:", "");
    host.buffers.insert("kernel_info".to_owned(), [hex].into());
    host.measure("ima-buf", &digest, "kernel_info", Some(b"what is there"));
}

/// Measured after the quote was made: judged with the next answer.
fn entry_after_the_quote(host: &mut Host<'_>) {
    let (path, content) = host.file();
    let digest = host.digest(&content);
    let data = template_data("ima-ng", &digest, &path, None);
    let hash = HashAlgorithm::Sha1.digest(&[&data]).to_string();
    let late = line("10", &hash, "ima-ng", &digest, &path, None);
    host.edit(|lines| lines.push(late));
}
