use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::geteuid;
use troth_tests::fleet::Programs;
use troth_tests::process::output_of;

const PACKAGES: [&str; 7] = [
    "troth-agent",
    "troth-common",
    "troth-ctl",
    "troth-firewalld",
    "troth-keylime-compat",
    "troth-registrar",
    "troth-verifier",
];

/// What SUSE's distributions define, so far that scriptlets show what was used and for which units.
const SUSE: &str = "\
%suse_version 1699
%service_add_pre() echo add-pre %*
%service_add_post() echo add-post %*
%service_del_preun() echo del-preun %*
%service_del_postun_without_restart() echo del-postun %*
%tmpfiles_create() echo tmpfiles %*
%sysusers_generate_pre() echo \"echo sysusers %3\" > %2.pre
";

const UNITS: &str = "/usr/lib/systemd/system/";

/// The install tree, and the packages that were made of it.
struct Packed {
    directory: tempfile::TempDir,
    /// By name.
    packages: BTreeMap<String, PathBuf>,
}

impl Packed {
    /// With further options of rpmbuild.
    fn new(rpmbuild: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let programs = at("programs");
        fs::create_dir(&programs).unwrap();
        for entry in fs::read_dir(Programs::beside_this().unwrap().directory()).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_file() && name.starts_with("troth") && !name.contains('.') {
                // What debuggers need is most of such a program.
                let mut strip = Command::new("strip");
                output_of(strip.arg("-o").arg(programs.join(name)).arg(&path)).unwrap();
            }
        }
        let mut install = xtask(&["install", "--set", "host", "--set", "keylime-compat"]);
        install.arg("--programs").arg(&programs);
        output_of(install.arg("--root").arg(at("tree"))).unwrap();
        let mut pack = xtask(&["rpm"]);
        pack.arg("--programs").arg(&programs);
        pack.arg("--output").arg(at("packages"));
        pack.args(["--", "--define", "_binary_payload w0.gzdio"]);
        output_of(pack.args(rpmbuild)).unwrap();
        let packages = fs::read_dir(at("packages")).unwrap().map(|entry| {
            let path = entry.unwrap().path();
            (query(&path, &["--queryformat", "%{NAME}"]), path)
        });
        let packages = packages.collect();
        Self {
            directory,
            packages,
        }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn scripts(&self, name: &str) -> String {
        query(&self.packages[name], &["--scripts"])
    }

    fn requires(&self, name: &str) -> String {
        query(&self.packages[name], &["--requires"])
    }

    /// Path, mode in octal and owner of all that a package has.
    fn entries(&self, name: &str) -> Vec<[String; 3]> {
        let format = "[%{FILENAMES}\t%{FILEMODES:octal}\t%{FILEUSERNAME}:%{FILEGROUPNAME}\n]";
        let text = query(&self.packages[name], &["--queryformat", format]);
        let lines = text.lines().map(|line| {
            let mut columns = line.split('\t').map(str::to_owned);
            [(); 3].map(|()| columns.next().unwrap())
        });
        lines.collect()
    }

    /// The package of each file and link.
    fn owners(&self) -> BTreeMap<String, String> {
        let mut owners = BTreeMap::new();
        for package in self.packages.keys() {
            for [path, mode, _] in self.entries(package) {
                if !mode.starts_with('4') {
                    let other = owners.insert(path.clone(), package.clone());
                    assert_eq!(other, None, "{path} is in {package}, too");
                }
            }
        }
        owners
    }
}

fn xtask(arguments: &[&str]) -> Command {
    let mut command = Programs::beside_this().unwrap().command("xtask").unwrap();
    command.args(arguments);
    command
}

fn query(package: &Path, what: &[&str]) -> String {
    let mut command = Command::new("rpm");
    command.args(["--query", "--package"]).args(what);
    output_of(command.arg(package)).unwrap()
}

/// What is below `directory`: names from there with mode, and content or target.
fn listed(directory: &Path) -> BTreeMap<String, (u32, Vec<u8>)> {
    fn walk(directory: &Path, top: &Path, found: &mut BTreeMap<String, (u32, Vec<u8>)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let about = fs::symlink_metadata(&path).unwrap();
            let content = if about.is_dir() {
                walk(&path, top, found);
                Vec::new()
            } else if about.is_symlink() {
                fs::read_link(&path)
                    .unwrap()
                    .into_os_string()
                    .into_encoded_bytes()
            } else {
                fs::read(&path).unwrap()
            };
            let name = path.strip_prefix(top).unwrap().display();
            found.insert(format!("/{name}"), (about.mode(), content));
        }
    }
    let mut found = BTreeMap::new();
    walk(directory, directory, &mut found);
    found
}

#[test]
fn each_file_of_the_install_tree_is_in_one_package_and_nothing_is_outside_usr() {
    let packed = Packed::new(&[]);
    let names: Vec<_> = packed.packages.keys().map(String::as_str).collect();
    assert_eq!(names, PACKAGES);
    for package in PACKAGES {
        for [path, mode, owner] in packed.entries(package) {
            assert!(path.starts_with("/usr/"), "{package}: {path}");
            assert_eq!(owner, "root:root", "{package}: {path}");
            let expected = match mode.as_str() {
                "40755" => packed.at("tree").join(&path[1..]).is_dir(),
                "100755" => path.starts_with("/usr/bin/"),
                "100644" => !path.starts_with("/usr/bin/"),
                "120777" => package == "troth-keylime-compat",
                _ => false,
            };
            assert!(expected, "{package}: {path} has mode {mode}");
        }
    }

    let tree = listed(&packed.at("tree"));
    let files = tree
        .iter()
        .filter(|(_, (mode, _))| mode & 0o170_000 != 0o040_000);
    let files: BTreeSet<_> = files.map(|(path, _)| path.clone()).collect();
    let owners = packed.owners();
    assert_eq!(owners.keys().cloned().collect::<BTreeSet<_>>(), files);
    for (path, package) in &owners {
        let of_the_host = [
            "actiond",
            "/dbus-1/",
            "/polkit-1/",
            "/varlink/",
            "troth-agent",
        ];
        let of_the_host = of_the_host.iter().any(|part| path.contains(part));
        if of_the_host && !path.contains("trothctl") && !path.contains("/firewalld/") {
            assert_eq!(package, "troth-agent", "{path}");
        }
    }
    for (path, package) in [
        ("/usr/bin/trothctl", "troth-ctl"),
        ("/usr/bin/keylime_tenant", "troth-keylime-compat"),
        ("/usr/lib/firewalld/services/keylime.xml", "troth-firewalld"),
        ("/usr/lib/systemd/catalog/troth.catalog", "troth-common"),
        (
            "/usr/lib/systemd/system/troth-ca-init.service.d/10-verifier.conf",
            "troth-verifier",
        ),
        ("/usr/share/doc/troth/units.md", "troth-common"),
        ("/usr/share/man/man1/trothctl-registrar.1", "troth-ctl"),
    ] {
        assert_eq!(owners[path], package, "{path}");
    }

    // What rpm lays down is the tree.
    let host = packed.at("host");
    fs::create_dir(&host).unwrap();
    let mut install = Command::new("unshare");
    if !geteuid().is_root() {
        install.arg("--map-root-user");
    }
    install.args([
        "rpm",
        "--install",
        "--nodeps",
        "--noscripts",
        "--dbpath",
        "/rpmdb",
    ]);
    install.arg("--root").arg(&host);
    output_of(install.args(packed.packages.values())).unwrap();
    let mut laid = listed(&host);
    laid.retain(|path, _| !path.starts_with("/rpmdb"));
    for (path, entry) in &tree {
        assert!(
            laid.get(path) == Some(entry),
            "{path} is not what it is in the tree"
        );
    }
    let more: Vec<_> = laid
        .keys()
        .filter(|path| !tree.contains_key(*path))
        .collect();
    assert!(more.is_empty(), "{more:?}");
}

#[test]
fn packages_ask_for_what_they_need_and_start_nothing() {
    let packed = Packed::new(&[]);
    let version = format!("troth-common = {}-1", env!("CARGO_PKG_VERSION"));
    for daemon in ["troth-agent", "troth-registrar", "troth-verifier"] {
        let requires = packed.requires(daemon);
        assert!(requires.contains(&version), "{daemon}: {requires}");
        let tss = requires.contains("libtss2-esys.so.0");
        assert_eq!(tss, daemon == "troth-agent", "{daemon}: {requires}");
    }
    let agent = packed.requires("troth-agent");
    assert!(agent.contains("libtss2-tcti-device.so.0"), "{agent}");
    let ctl = packed.requires("troth-ctl");
    assert!(!ctl.contains("tss2") && !ctl.contains("systemd"), "{ctl}");

    let directory = tempfile::tempdir().unwrap();
    let macros = directory.path().join("macros.suse");
    fs::write(&macros, SUSE).unwrap();
    let suse = Packed::new(&["--load", macros.to_str().unwrap()]);
    for (packed, enabling) in [(&packed, "preset"), (&suse, "add-post")] {
        for package in PACKAGES {
            let scripts = packed.scripts(package);
            for word in ["restart", " start", " enable", "/var/"] {
                assert!(!scripts.contains(word), "{package}: {word}: {scripts}");
            }
        }
        // Whatever can be enabled is known to the package's scriptlets.
        let owners = packed.owners();
        let units = owners.iter().filter(|(path, _)| {
            let unit = path.starts_with(UNITS) && !path.contains(".service.d/");
            let text = || fs::read_to_string(packed.at("tree").join(&path[1..])).unwrap();
            unit && !path.contains("keylime_") && text().contains("[Install]")
        });
        let units: Vec<_> = units.collect();
        assert!(units.len() >= 3, "{units:?}");
        for (path, package) in units {
            let unit = path.trim_start_matches(UNITS);
            let scripts = packed.scripts(package);
            let line = scripts.lines().find(|line| line.contains(enabling));
            let named = line.is_some_and(|line| line.contains(unit));
            assert!(named, "{package} does not know {unit}: {scripts}");
        }
    }
    let common = suse.scripts("troth-common");
    assert!(common.contains("sysusers troth.conf"), "{common}");
    assert!(common.contains("tmpfiles troth.conf"), "{common}");
    assert!(common.contains("journalctl --update-catalog"), "{common}");
    let verifier = suse.scripts("troth-verifier");
    for word in ["add-pre", "add-post", "del-preun", "del-postun"] {
        let line = format!("echo {word} troth-verifier.service");
        assert!(verifier.contains(&line), "{verifier}");
    }
}
