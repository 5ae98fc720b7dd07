use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use troth_tests::fleet::Programs;
use troth_tests::keylime;
use troth_tests::process::{cannot_run, output_of};

/// `trothctl policy create runtime` with these options, and the digests of what it prints.
fn create<A: AsRef<std::ffi::OsStr>>(options: &[A]) -> Value {
    let programs = Programs::beside_this().unwrap();
    let mut command = programs.command("trothctl").unwrap();
    command.args(["policy", "create", "runtime"]).args(options);
    let policy: Value = serde_json::from_str(&output_of(&mut command).unwrap()).unwrap();
    policy["digests"].clone()
}

fn write(root: &Path, path: &str, content: &[u8]) -> PathBuf {
    let file = root.join(path);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, content).unwrap();
    file
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
}

#[test]
fn keylime_makes_the_same_digests_of_the_same_tree_and_lists() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let large: Vec<u8> = (0..700_000_u32).map(|n| (n % 253) as u8).collect();
    for (path, content) in [
        ("usr/bin/tool", &b"tool"[..]),
        ("usr/bin/with space", b"space"),
        ("usr/lib/large", &large),
        ("usr/lib/empty", b""),
        ("usr/share/größe", b"name"),
        ("var/lib/state", b"left out"),
        ("dev/null", b"left out"),
        ("opt/var/kept", b"kept"),
    ] {
        write(&root, path, content);
    }
    symlink("tool", root.join("usr/bin/link")).unwrap();
    symlink("/usr", root.join("usr/loop")).unwrap();
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/again")).unwrap();
    let allow = format!(
        "{}  /opt/a b\n{}  /usr/bin/tool\n",
        "ab".repeat(32),
        "cd".repeat(32)
    );
    let allow = write(directory.path(), "allow", allow.as_bytes());
    // Keylime also allows the zeros of a violation, as if they were a digest.
    let list = fixture("boots/grub/ima-ascii_runtime_measurements");
    let list = fs::read_to_string(list).unwrap();
    let (violations, list): (Vec<_>, Vec<_>) = list
        .lines()
        .partition(|line| line.contains(&"0".repeat(40)));
    assert_eq!(violations.len(), 2);
    let list = write(
        directory.path(),
        "list",
        (list.join("\n") + "\n").as_bytes(),
    );
    for algorithm in ["sha256", "sha512"] {
        // Keylime takes lists of 64 digits with no --algo alone: they may be SM3.
        let lists = algorithm == "sha256";
        let theirs = directory.path().join("keylime.json");
        let mut command = keylime::policy_tool().unwrap();
        command.args(["create", "runtime"]);
        if !lists {
            command.args(["--algo", algorithm]);
        }
        command
            .arg("--rootfs")
            .arg(&root)
            .arg("--output")
            .arg(&theirs);
        let mut options = vec!["--algorithm".into(), algorithm.into(), "--root".into()];
        options.push(root.clone().into_os_string());
        if lists {
            command.arg("--allowlist").arg(&allow);
            command.arg("--ima-measurement-list").arg(&list);
            options.extend(["--files-only".into(), "--allowlist".into()]);
            options.push(allow.clone().into_os_string());
            options.push("--ima-list".into());
            options.push(list.clone().into_os_string());
        }
        output_of(&mut command).unwrap();
        let theirs: Value = serde_json::from_slice(&fs::read(&theirs).unwrap()).unwrap();
        let ours = create(&options);
        assert_eq!(ours, theirs["digests"], "{algorithm}");
        let count = ours.as_object().unwrap().len();
        assert!(
            if lists { count > 1_000 } else { count == 7 },
            "{count} names"
        );
    }
}

#[test]
fn rpm_lists_the_digests_that_are_read_from_a_package_it_has_just_built() {
    let directory = tempfile::tempdir().unwrap();
    let spec = "\
Name: built\nVersion: 2\nRelease: 3\nSummary: Files of a test\nLicense: Apache-2.0\n\
BuildArch: noarch\n%description\nFiles of a test.\n%install\n\
mkdir -p %{buildroot}/usr/bin %{buildroot}/usr/share/built\n\
for n in $(seq 1 300); do echo $n > %{buildroot}/usr/share/built/file-$n; done\n\
echo tool > %{buildroot}/usr/bin/built\nln -s built %{buildroot}/usr/bin/link\n\
%files\n/usr/bin/built\n/usr/bin/link\n/usr/share/built\n%ghost /var/lib/built.state\n";
    for algorithm in [("8", "sha256"), ("10", "sha512"), ("2", "sha1")] {
        let spec = write(directory.path(), "built.spec", spec.as_bytes());
        let top = directory.path().join(algorithm.1);
        let mut build = Command::new("rpmbuild");
        build
            .arg("-bb")
            .arg("--define")
            .arg(format!("_topdir {}", top.display()));
        for define in [
            "_binary_filedigest_algorithm",
            "_source_filedigest_algorithm",
        ] {
            build
                .arg("--define")
                .arg(format!("{define} {}", algorithm.0));
        }
        output_of(build.arg(&spec)).unwrap();
        let package = top.join("RPMS/noarch/built-2-3.noarch.rpm");
        let mut query = Command::new("rpm");
        query.args([
            "-qp",
            "--qf",
            "[%{FILEMODES:octal} %{FILEDIGESTS} %{FILENAMES}\\n]",
        ]);
        let listed = output_of(query.arg(&package)).unwrap();
        let mut expected = serde_json::Map::new();
        for line in listed.lines() {
            let words: Vec<_> = line.split(' ').collect();
            if let [mode, digest, name] = words[..]
                && mode.starts_with("100")
                && !digest.is_empty()
            {
                expected.insert(name.to_owned(), serde_json::json!([digest]));
            }
        }
        assert_eq!(expected.len(), 301);
        let repository = top.as_os_str();
        let ours = create(&[
            "--rpm".as_ref(),
            repository,
            "--algorithm".as_ref(),
            algorithm.1.as_ref(),
        ]);
        assert_eq!(ours, Value::Object(expected));
    }
}

#[test]
fn evmctl_accepts_the_signatures_and_digests_that_are_written() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let file = write(&root, "usr/bin/tool", b"a program");
    let flags = rustix::fs::XattrFlags::empty();
    if let Err(error) = rustix::fs::lsetxattr(&file, "security.ima", &[4, 4], flags) {
        let place = directory.path().display();
        return cannot_run(&format_args!("security.ima in {place}: {error}"));
    }
    let openssl = |words: &str| {
        let mut command = Command::new("openssl");
        output_of(command.args(words.split(' ')).current_dir(directory.path())).unwrap()
    };
    openssl("genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out rsa.pem");
    openssl("ecparam -name prime256v1 -genkey -noout -out ec.pem");
    openssl("genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-384 -out ec384.pem");
    for (key, algorithm) in [
        ("rsa", "sha256"),
        ("rsa", "sha512"),
        ("ec", "sha256"),
        ("ec384", "sha384"),
    ] {
        let private = directory.path().join(format!("{key}.pem"));
        let certificate = directory.path().join("certificate.der");
        openssl(&format!(
            "req -new -x509 -key {key}.pem -subj /CN={key} -outform DER -out certificate.der"
        ));
        let mut options = vec!["--write-xattr", "--algorithm", algorithm, "--sign-key"];
        options.extend([private.to_str().unwrap(), "--root", root.to_str().unwrap()]);
        create(&options);
        let verify = |file: &Path| {
            let mut command = Command::new("evmctl");
            command.args(["ima_verify", "-a", algorithm, "--key"]);
            command.arg(&certificate).arg(file).output().unwrap()
        };
        let accepted = verify(&file);
        let told = String::from_utf8_lossy(&accepted.stderr);
        assert!(accepted.status.success(), "{key}, {algorithm}: {told}");
        fs::write(&file, format!("another program after {key} {algorithm}")).unwrap();
        assert!(!verify(&file).status.success(), "{key}, {algorithm}");
        // What comes next has another key: signatures by this one would be kept.
        rustix::fs::lremovexattr(&file, "security.ima").unwrap();
    }
    create(&["--write-xattr", "--root", root.to_str().unwrap()]);
    let mut value = [0; 64];
    let length = rustix::fs::lgetxattr(&file, "security.ima", &mut value).unwrap();
    let ours = value[..length].to_vec();
    rustix::fs::lremovexattr(&file, "security.ima").unwrap();
    output_of(
        Command::new("evmctl")
            .args(["ima_hash", "-a", "sha256"])
            .arg(&file),
    )
    .unwrap();
    let length = rustix::fs::lgetxattr(&file, "security.ima", &mut value).unwrap();
    assert_eq!(ours, value[..length]);
}
