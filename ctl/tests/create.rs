//! `trothctl policy create runtime` as a process: files in, a policy out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use serde_json::Value;
use troth_tests::process::cannot_run;

/// Runs as the tests do; `args` follow `policy create runtime`.
fn create(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

/// As an ordinary user; beside `directory`, which only its owner may enter, is a copy of the
/// program.
fn as_somebody(args: &[&str], directory: &Path) -> Output {
    let mut command = command(args);
    if !rustix::process::geteuid().is_root() {
        return command.output().unwrap();
    }
    let program = directory.with_extension("trothctl");
    fs::copy(env!("CARGO_BIN_EXE_trothctl"), &program).unwrap();
    let mut other = Command::new(&program);
    other.args(command.get_args()).stdin(Stdio::null());
    std::os::unix::process::CommandExt::uid(&mut other, 65534);
    command = other;
    let output = command.output().unwrap();
    fs::remove_file(&program).unwrap();
    output
}

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trothctl"));
    command
        .args(["policy", "create", "runtime"])
        .args(args)
        .env("SOURCE_DATE_EPOCH", "1700000000")
        .env_remove("TROTH_CA_DIR")
        .stdin(Stdio::null());
    command
}

/// The digests of the policy that was printed, by name.
fn digests(output: &Output) -> BTreeMap<String, Vec<String>> {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{stderr}");
    let policy: Value = serde_json::from_slice(&output.stdout).unwrap();
    serde_json::from_value(policy["digests"].clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// `sha256sum` of a file, and of other algorithms.
fn sum(program: &str, file: &Path) -> String {
    let output = Command::new(program).arg(file).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let hex = text.trim_start_matches('\\').split(' ').next();
    hex.unwrap().to_owned()
}

fn write(root: &Path, path: &str, content: &[u8]) -> PathBuf {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content).unwrap();
    file
}

/// Makes all files look as if they had been there for a while: only such are kept in a cache.
fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(2_100));
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn a_tree_gives_the_digests_of_its_regular_files() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    let large: Vec<u8> = (0..3_000_000_u32).map(|n| (n % 251) as u8).collect();
    for (path, content) in [
        ("usr/bin/tool", &b"#!/bin/sh\n"[..]),
        ("usr/bin/with space", b"space"),
        ("usr/lib/large", &large),
        ("usr/lib/exact", &large[..256 << 10]),
        ("usr/lib/empty", b""),
        ("usr/lib/line\nbreak", b"newline"),
        ("opt/skipped/file", b"skipped"),
        ("var/lib/state", b"left out"),
        ("usr/var/kept", b"only /var is left out"),
    ] {
        write(root, path, content);
    }
    symlink("tool", root.join("usr/bin/link")).unwrap();
    symlink("/", root.join("usr/everything")).unwrap();
    let status = Command::new("mkfifo").arg(root.join("usr/fifo")).status();
    assert!(status.unwrap().success());
    for (algorithm, program) in [
        ("sha256", "sha256sum"),
        ("sha1", "sha1sum"),
        ("sha512", "sha512sum"),
    ] {
        let output = create(&[
            "--root",
            text(root),
            "--all-owners",
            "--algorithm",
            algorithm,
            "--skip",
            "/opt/skipped",
        ]);
        let expected: BTreeMap<_, _> = [
            ("/usr/bin/tool", "usr/bin/tool"),
            ("/usr/bin/with_space", "usr/bin/with space"),
            ("/usr/lib/large", "usr/lib/large"),
            ("/usr/lib/exact", "usr/lib/exact"),
            ("/usr/lib/empty", "usr/lib/empty"),
            ("/usr/lib/line\nbreak", "usr/lib/line\nbreak"),
            ("/usr/var/kept", "usr/var/kept"),
        ]
        .into_iter()
        .map(|(name, path)| (name.to_owned(), vec![sum(program, &root.join(path))]))
        .collect();
        assert_eq!(digests(&output), expected);
    }
    let twice = [(); 2].map(|()| create(&["--root", text(root), "--all-owners"]).stdout);
    assert_eq!(twice[0], twice[1], "equal input, equal text");
}

#[test]
fn only_files_of_root_unless_all_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(root, "bin/of-root", b"a");
    let other = write(root, "bin/of-nobody", b"b");
    if let Err(error) = std::os::unix::fs::chown(&other, Some(65534), None) {
        return cannot_run(&format_args!("only root gives files away: {error}"));
    }
    let names = |output: &Output| digests(output).into_keys().collect::<Vec<_>>();
    assert_eq!(names(&create(&["--root", text(root)])), ["/bin/of-root"]);
    let all = create(&["--root", text(root), "--all-owners"]);
    assert_eq!(names(&all), ["/bin/of-nobody", "/bin/of-root"]);
}

#[test]
fn what_cannot_be_read_is_told_and_fails_unless_that_is_accepted() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::set_permissions(root, PermissionsExt::from_mode(0o755)).unwrap();
    write(root, "bin/readable", b"a");
    let hidden = write(root, "bin/hidden", b"b");
    fs::set_permissions(&hidden, PermissionsExt::from_mode(0o000)).unwrap();
    // Root reads everything: become somebody else.
    let mut arguments = vec!["--root", text(root), "--all-owners"];
    let run = |arguments: &[&str]| as_somebody(arguments, directory.path());
    let refused = run(&arguments);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        refused.stdout.is_empty(),
        "half a policy looks like a whole one"
    );
    let told = stderr(&refused);
    assert!(told.contains("/bin/hidden: Permission denied"), "{told}");
    assert!(
        told.contains("1 files or directories cannot be read"),
        "{told}"
    );
    assert!(told.contains("--ignore-unreadable"), "{told}");
    arguments.push("--ignore-unreadable");
    let accepted = run(&arguments);
    assert!(digests(&accepted).contains_key("/bin/readable"));
    assert!(
        stderr(&accepted).contains("/bin/hidden"),
        "told all the same"
    );
}

#[test]
fn with_a_cache_only_what_changed_is_read_again() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    for number in 0..50 {
        write(
            &root,
            &format!("bin/{number}"),
            format!("program {number}").as_bytes(),
        );
    }
    settle();
    let cache = directory.path().join("cache");
    let run = || {
        create(&[
            "--root",
            text(&root),
            "--all-owners",
            "--cache",
            text(&cache),
        ])
    };
    let first = run();
    assert_eq!(digests(&first).len(), 50);
    let again = run();
    assert!(
        stderr(&again).contains("50 of them unchanged"),
        "{}",
        stderr(&again)
    );
    assert_eq!(first.stdout, again.stdout);
    // Of the same size, with the old time: only the kernel's own time stamp tells.
    let changed = root.join("bin/7");
    let time = fs::metadata(&changed).unwrap().modified().unwrap();
    fs::write(&changed, "program X").unwrap();
    fs::File::options()
        .write(true)
        .open(&changed)
        .unwrap()
        .set_modified(time)
        .unwrap();
    let third = run();
    assert!(
        stderr(&third).contains("49 of them unchanged"),
        "{}",
        stderr(&third)
    );
    assert_eq!(digests(&third)["/bin/7"], [sum("sha256sum", &changed)]);
    // A cache that was cut off is told and made anew.
    let half = fs::read(&cache).unwrap();
    fs::write(&cache, &half[..half.len() / 2]).unwrap();
    let fourth = run();
    assert!(
        stderr(&fourth).contains("is damaged"),
        "{}",
        stderr(&fourth)
    );
    assert_eq!(fourth.stdout, third.stdout);
}

#[test]
fn lists_a_base_policy_and_a_tree_combine_in_the_algorithm_of_the_lists() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let tool = write(&root, "bin/tool", b"tool");
    let lists = directory.path();
    let (a, b) = ("aa".repeat(20), "bb".repeat(20));
    let base = write(lists, "allow", format!("{a} /bin/base\n").as_bytes());
    let base_policy = lists.join("base.json");
    let made = create(&["--allowlist", text(&base), "-o", text(&base_policy)]);
    assert!(
        made.status.success() && made.stdout.is_empty(),
        "{}",
        stderr(&made)
    );
    let more = write(
        lists,
        "more",
        format!("{b} /bin/more\n{b} /bin/base\n").as_bytes(),
    );
    let exclude = write(lists, "exclude", b"# temporary\n/tmp/.*\n");
    let output = create(&[
        "--base-policy",
        text(&base_policy),
        "--allowlist",
        text(&more),
        "--exclude",
        text(&exclude),
        "--root",
        text(&root),
        "--all-owners",
        "--ignored-keyring",
        ".ima",
    ]);
    let found = digests(&output);
    assert_eq!(found["/bin/base"], [a, b.clone()]);
    assert_eq!(found["/bin/more"], [b]);
    assert_eq!(found["/bin/tool"], [sum("sha1sum", &tool)]);
    let policy: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(policy["excludes"], serde_json::json!(["/tmp/.*"]));
    assert_eq!(
        policy["ima"]["ignored_keyrings"],
        serde_json::json!([".ima"])
    );
    assert_eq!(policy["meta"]["timestamp"], "2023-11-14 22:13:20.000000");
}

#[test]
fn of_a_list_all_is_taken_or_its_files_alone() {
    let digest = "ab".repeat(32);
    let hash = "cd".repeat(20);
    let list = format!(
        "10 {hash} ima-ng sha256:{digest} /usr/bin/tool\n\
         10 {hash} ima-buf sha256:{digest} kernel_info 6162\n"
    );
    let directory = tempfile::tempdir().unwrap();
    let list = write(directory.path(), "list", list.as_bytes());
    for (more, buffers) in [(&[][..], 1), (&["--files-only"], 0)] {
        let output = create(&[&["--ima-list", text(&list)], more].concat());
        assert_eq!(digests(&output).len(), 1);
        let policy: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(policy["ima-buf"].as_object().unwrap().len(), buffers);
    }
}

#[test]
fn an_interrupted_command_keeps_what_it_has_read() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    for number in 0..64 {
        write(&root, &format!("bin/{number}"), b"small");
    }
    // Sparse, and longer than anybody waits.
    let large = write(&root, "lib/large", b"");
    fs::File::options()
        .write(true)
        .open(&large)
        .unwrap()
        .set_len(1 << 40)
        .unwrap();
    settle();
    let cache = directory.path().join("cache");
    let mut child = command(&[
        "--root",
        text(&root),
        "--all-owners",
        "--cache",
        text(&cache),
    ])
    .stderr(Stdio::piped())
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    // By the time that it is deep in the large file, the other threads have read the small ones.
    let deep = || {
        let open = fs::read_dir(format!("/proc/{}/fd", child.id())).ok()?;
        let mut open = open.flatten();
        let open = open.find(|entry| fs::read_link(entry.path()).is_ok_and(|to| to == large))?;
        let info = open.path().to_str()?.replace("/fd/", "/fdinfo/");
        let info = fs::read_to_string(info).ok()?;
        let position = info.lines().next()?.strip_prefix("pos:")?.trim();
        Some(position.parse::<u64>().ok()? > 256 << 20)
    };
    while deep() != Some(true) {
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    assert!(child.try_wait().unwrap().is_none());
    let process = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(process, rustix::process::Signal::INT).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(output.stdout.is_empty());
    assert!(
        stderr(&output).contains("interrupted after 64 files"),
        "{}",
        stderr(&output)
    );
    fs::remove_file(&large).unwrap();
    let again = create(&[
        "--root",
        text(&root),
        "--all-owners",
        "--cache",
        text(&cache),
    ]);
    assert!(
        stderr(&again).contains("64 of them unchanged"),
        "{}",
        stderr(&again)
    );
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures")
        .join(name)
}

#[test]
fn packages_are_read_one_by_one_or_below_a_directory() {
    let package = fixture("packages/troth-test-1-1.noarch.rpm");
    let one = create(&["--rpm", text(&package)]);
    let found = digests(&one);
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    let expected = [
        "/usr/bin/troth-test",
        "/usr/lib/troth-test/lib.so",
        "/usr/share/empty",
        "/usr/share/troth_test/a_b",
    ];
    assert_eq!(names, expected);
    let content = "bfdeaeb08cffb6a36438bcd12dda25417e3cdd36f1e7e482a2849d539225288b";
    assert_eq!(found["/usr/bin/troth-test"], [content]);

    let repository = tempfile::tempdir().unwrap();
    fs::create_dir(repository.path().join("noarch")).unwrap();
    fs::copy(&package, repository.path().join("noarch/a.rpm")).unwrap();
    fs::write(repository.path().join("noarch/a.txt"), "no package").unwrap();
    let all = create(&["--rpm", text(repository.path())]);
    assert_eq!(all.stdout, one.stdout);
    fs::write(repository.path().join("b.rpm"), "no package").unwrap();
    let refused = create(&["--rpm", text(repository.path())]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(
        stderr(&refused).contains("b.rpm: lead: "),
        "{}",
        stderr(&refused)
    );
    let told = stderr(&refused);
    assert!(
        told.contains("1 files are malformed") && told.contains("`rpm -K`"),
        "{told}"
    );
    assert!(!told.contains("as a user who may read"), "{told}");
    let taken = create(&["--rpm", text(repository.path()), "--ignore-unreadable"]);
    assert_eq!(taken.stdout, one.stdout);
    let other = create(&["--rpm", text(&package), "--algorithm", "sha1"]);
    assert!(
        stderr(&other).contains("its digests are not sha1"),
        "{}",
        stderr(&other)
    );
}

#[test]
fn source_packages_are_left_out_and_told() {
    let repository = tempfile::tempdir().unwrap();
    let source = "troth-test-1-1.src.rpm";
    let package = fixture("packages/troth-test-1-1.noarch.rpm");
    fs::copy(&package, repository.path().join("a.rpm")).unwrap();
    let one = create(&["--rpm", text(repository.path())]);
    fs::copy(
        fixture("packages").join(source),
        repository.path().join(source),
    )
    .unwrap();
    let both = create(&["--rpm", text(repository.path())]);
    assert_eq!(both.status.code(), Some(0), "{}", stderr(&both));
    assert_eq!(both.stdout, one.stdout);
    let told = stderr(&both);
    assert!(
        told.contains("left out, a source package: ") && told.contains(source),
        "{told}"
    );
    assert!(told.contains("1 packages: "), "{told}");
    let alone = create(&["--rpm", text(&repository.path().join(source))]);
    assert_eq!(alone.status.code(), Some(2), "{}", stderr(&alone));
    assert!(
        stderr(&alone).contains("no source packages"),
        "{}",
        stderr(&alone)
    );
}

#[test]
fn a_source_with_nothing_in_it_is_an_error_that_says_what_was_looked_for() {
    let directory = tempfile::tempdir().unwrap();
    let empty = directory.path().join("empty");
    fs::create_dir(&empty).unwrap();
    let package = fixture("packages/troth-test-1-1.noarch.rpm");
    let list = write(directory.path(), "list", b"# nothing yet\n");
    let measured = write(directory.path(), "measured", b"");
    let output = directory.path().join("policy.json");
    for (source, wanted) in [
        (["--rpm", text(&empty)], "packages (*.rpm"),
        (
            ["--ramdisk-dir", text(&empty)],
            "initrds (files named initr*)",
        ),
        (
            ["--root", text(&empty)],
            "regular files that belong to root",
        ),
        (["--allowlist", text(&list)], "lines of `DIGEST PATH`"),
        (["--ima-list", text(&measured)], "entries of an IMA list"),
    ] {
        // Another source does not hide it.
        let others = ["--rpm", text(&package)];
        for more in [&[][..], &others] {
            let rest = ["-o", text(&output)];
            let refused = create(&[&source[..], more, &rest].concat());
            let told = stderr(&refused);
            assert_eq!(refused.status.code(), Some(2), "{source:?}: {told}");
            let expected = format!("{} has no {wanted}", source[1]);
            assert!(told.contains(&expected), "{expected}: {told}");
            assert!(!output.exists());
        }
    }
}

#[test]
fn a_skip_that_leaves_nothing_out_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    write(root, "bin/tool", b"a");
    write(root, "opt/other/tool", b"b");
    let run = |skip: &str| {
        let output = create(&["--root", text(root), "--all-owners", "--skip", skip]);
        assert!(digests(&output).contains_key("/bin/tool"));
        stderr(&output)
    };
    for used in ["/opt", "/opt/other/tool", "/opt/other/"] {
        let told = run(used);
        assert!(!told.contains("--skip"), "{told}");
        assert!(told.contains("1 files"), "{told}");
    }
    for unused in ["/otp", "/bin/tool/x", "/var/lib"] {
        let told = run(unused);
        let expected = format!("--skip {unused}: nothing was left out by it");
        assert!(told.contains(&expected), "{told}");
    }
    let wrong = create(&["--root", text(root), "--skip", "opt"]);
    assert_eq!(wrong.status.code(), Some(2));
}

#[test]
fn machines_are_told_what_was_not_read_too() {
    let directory = tempfile::tempdir().unwrap();
    let package = fixture("packages/troth-test-1-1.noarch.rpm");
    fs::copy(&package, directory.path().join("a.rpm")).unwrap();
    let broken = write(directory.path(), "b.rpm", b"no package");
    let policy = directory.path().join("policy.json");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_trothctl"));
        command.args(["--json", "policy", "create", "runtime", "--rpm"]);
        let output = command.arg(directory.path()).args(more).output().unwrap();
        (output.status.code().unwrap(), output.stdout, output.stderr)
    };
    let json = |text: &[u8]| serde_json::from_slice::<Value>(text).unwrap();
    let names_it = |files: &Value| {
        let files = files.as_array().unwrap();
        assert_eq!(files.len(), 1, "{files:?}");
        let told = files[0].as_str().unwrap();
        assert!(
            told.contains(text(&broken)) && told.contains("malformed"),
            "{told}"
        );
    };
    let (status, _, told) = run(&[]);
    assert_eq!(status, 1);
    names_it(&json(&told)["error"]["files"]);
    let (status, made, told) = run(&["--ignore-unreadable"]);
    assert_eq!(status, 0);
    assert!(json(&made)["digests"].is_object());
    names_it(&json(&told)["sources"][0]["unreadable"]);
    let (status, report, told) = run(&["--ignore-unreadable", "-o", text(&policy)]);
    assert_eq!((status, told.len()), (0, 0));
    names_it(&json(&report)["sources"][0]["unreadable"]);
    assert_eq!(json(&report)["sources"][0]["files"], 4);
}

#[test]
fn an_initrd_that_cannot_be_read_is_told_with_the_place_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let image = fs::read(fixture("initrds/zstd.img")).unwrap();
    let uki = fs::read(fixture("../fuzz/corpus/pe/uki")).unwrap();
    for (option, content, reason) in [
        (
            "--initrd",
            image[..image.len() - 9].to_vec(),
            "zstd at byte 1024, byte ",
        ),
        (
            "--initrd",
            b"BZh91AY&SY".to_vec(),
            "byte 0: compressed with bzip2, which is not read",
        ),
        (
            "--initrd",
            b"\x89LZO\0\r\n\x1a\n".to_vec(),
            "byte 0: compressed with lzo, which is",
        ),
        ("--initrd", Vec::new(), "there are no files in it"),
        ("--uki", uki[..uki.len() / 2].to_vec(), "section at byte "),
    ] {
        let file = write(directory.path(), "image", &content);
        let refused = create(&[option, text(&file)]);
        let told = stderr(&refused);
        assert_eq!(refused.status.code(), Some(1), "{told}");
        let expected = format!("malformed: {}: ", file.display());
        assert!(
            told.contains(&expected) && told.contains(reason),
            "{reason}: {told}"
        );
        assert!(!told.contains("as a user who may read"), "{told}");
    }
    let missing = directory.path().join("none");
    let told = stderr(&create(&["--initrd", text(&missing)]));
    assert!(
        told.contains("cannot read ") && told.contains("as a user who may"),
        "{told}"
    );
}

#[test]
fn keys_that_signed_a_packages_files_are_told_and_believed_when_named() {
    let package = fixture("packages/troth-test-signed-1-1.noarch.rpm");
    let without = create(&["--rpm", text(&package)]);
    let told = stderr(&without);
    assert!(
        told.contains("4 files of packages are signed for IMA, by key 8e01ee36"),
        "{told}"
    );
    assert!(told.contains("--verification-key"), "{told}");
    let key = fixture("packages/ima.pem");
    let with = create(&["--rpm", text(&package), "--verification-key", text(&key)]);
    assert!(
        !stderr(&with).contains("--verification-key"),
        "{}",
        stderr(&with)
    );
    let policy: Value = serde_json::from_slice(&with.stdout).unwrap();
    let keys: Value = serde_json::from_str(policy["verification-keys"].as_str().unwrap()).unwrap();
    assert_eq!(keys["keyids"], serde_json::json!([0x8e01_ee36_u32]));
}

#[test]
fn initrds_are_read_alone_in_a_directory_and_in_a_unified_kernel_image() {
    let image = fixture("initrds/zstd.img");
    let one = create(&["--initrd", text(&image)]);
    let found = digests(&one);
    let names: Vec<_> = found.keys().map(String::as_str).collect();
    let expected = [
        "/etc/caf\u{fffd}",
        "/etc/empty",
        "/etc/with_space",
        "/kernel/x86/microcode/GenuineIntel.bin",
        "/usr/bin/init",
        "/usr/bin/sh",
        "/usr/lib/zeros",
    ];
    assert_eq!(names, expected);
    assert_eq!(found["/usr/bin/init"], found["/usr/bin/sh"]);
    let directory = tempfile::tempdir().unwrap();
    fs::copy(&image, directory.path().join("initrd-6.12")).unwrap();
    fs::copy(
        fixture("initrds/xz.img"),
        directory.path().join("initrd-6.13"),
    )
    .unwrap();
    fs::write(directory.path().join("vmlinuz"), "a kernel").unwrap();
    let all = create(&["--ramdisk-dir", text(directory.path())]);
    assert_eq!(all.stdout, one.stdout, "{}", stderr(&all));
    let uki = fixture("../fuzz/corpus/pe/uki");
    let uki = create(&["--uki", text(&uki)]);
    assert_eq!(uki.stdout, one.stdout, "{}", stderr(&uki));
    let wrong = create(&["--uki", text(&image)]);
    assert!(
        stderr(&wrong).contains("does not begin with MZ"),
        "{}",
        stderr(&wrong)
    );
}

/// The value of `security.ima`, in hex; `None` without one.
fn label(file: &Path) -> Option<String> {
    let mut value = [0; 1024];
    let length = rustix::fs::lgetxattr(file, "security.ima", &mut value).ok()?;
    Some(hex::encode(&value[..length]))
}

/// Writes a label. False, which is an error in CI, where nobody can.
fn set_label(file: &Path, value: &[u8]) -> bool {
    let flags = rustix::fs::XattrFlags::empty();
    let set = rustix::fs::lsetxattr(file, "security.ima", value, flags);
    if let Err(error) = set {
        cannot_run(&format_args!("{}: security.ima: {error}", file.display()));
    }
    set.is_ok()
}

#[test]
fn labels_are_the_digests_of_contents_and_are_written_once() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let tool = write(&root, "bin/tool", b"tool");
    let signed = write(&root, "bin/signed", b"signed");
    symlink("/etc/passwd", root.join("bin/link")).unwrap();
    let vendor = [3, 2, 4, 1, 2, 3, 4, 0, 1, 9];
    if !set_label(&signed, &vendor) {
        return;
    }
    let run = |more: &[&str]| {
        let output = create(&[&["--root", text(&root), "--write-xattr"], more].concat());
        assert_eq!(digests(&output).len(), 2);
        stderr(&output)
    };
    let told = run(&["--dry-run"]);
    assert!(
        told.contains("1 would be written, 0 were right, 1 are signatures by other"),
        "{told}"
    );
    assert_eq!(label(&tool), None);
    let told = run(&[]);
    assert!(told.contains("security.ima: 1 written"), "{told}");
    assert_eq!(
        label(&tool).unwrap(),
        format!("0404{}", sum("sha256sum", &tool))
    );
    assert_eq!(
        label(&signed).unwrap(),
        hex::encode(vendor),
        "a vendor's signature is kept"
    );
    assert!(run(&[]).contains("security.ima: 0 written, 1 were right"));
    fs::write(&tool, "changed").unwrap();
    assert!(run(&["--algorithm", "sha512"]).contains("1 written"));
    assert_eq!(
        label(&tool).unwrap(),
        format!("0406{}", sum("sha512sum", &tool))
    );
}

#[test]
fn what_was_labelled_is_not_read_again_unless_it_changed() {
    let directory = tempfile::tempdir().unwrap();
    if !set_label(&write(directory.path(), "probe", b""), &[4, 4]) {
        return;
    }
    let root = directory.path().join("root");
    for number in 0..20 {
        let content = format!("program {number}");
        write(&root, &format!("bin/{number}"), content.as_bytes());
    }
    settle();
    let cache = directory.path().join("cache");
    let options = [
        "--root",
        text(&root),
        "--cache",
        text(&cache),
        "--write-xattr",
    ];
    let first = create(&options);
    assert!(stderr(&first).contains("20 written"), "{}", stderr(&first));
    for options in [&options[..], &options[..4]] {
        let again = create(options);
        assert_eq!(digests(&again), digests(&first));
        let told = stderr(&again);
        assert!(told.contains("20 of them unchanged"), "{told}");
    }
    // Another content of that size and time, under a label that is right no more.
    let changed = root.join("bin/7");
    let time = fs::metadata(&changed).unwrap().modified().unwrap();
    fs::write(&changed, "program X").unwrap();
    let file = fs::File::options().write(true).open(&changed).unwrap();
    file.set_modified(time).unwrap();
    let third = create(&options);
    let told = stderr(&third);
    assert!(told.contains("19 of them unchanged"), "{told}");
    assert!(told.contains("1 written, 19 were right"), "{told}");
    let sum = sum("sha256sum", &changed);
    assert_eq!(digests(&third)["/bin/7"], [sum.as_str()]);
    assert_eq!(label(&changed).unwrap(), format!("0404{sum}"));
}

#[test]
fn only_root_labels() {
    let directory = tempfile::tempdir().unwrap();
    let output = as_somebody(&["--root", "/etc", "--write-xattr"], directory.path());
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    let told = stderr(&output);
    assert!(
        told.contains("--write-xattr: only root may write security.ima"),
        "{told}"
    );
}

#[test]
fn a_file_system_without_such_attributes_is_told() {
    let directory = tempfile::tempdir().unwrap();
    if !set_label(&write(directory.path(), "probe", b""), &[4, 4]) {
        return;
    }
    // procfs has regular files of root, and no attributes.
    let output = create(&["--root", "/proc/sys/kernel/random", "--write-xattr"]);
    assert_eq!(output.status.code(), Some(1));
    let told = stderr(&output);
    assert!(told.contains("cannot label /"), "{told}");
    assert!(told.contains("keeps no extended attributes"), "{told}");
}
