use std::fs;
use std::path::{Path, PathBuf};

/// As many as there were when somebody last looked; the suite only grows.
const LEAST: usize = 155;

/// A test function with the lines of its doc comment.
struct Case {
    place: String,
    documentation: Vec<String>,
}

fn sources(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if !path.ends_with("cases.rs") {
            found.push(path);
        }
    }
    found
}

fn cases(file: &Path) -> Vec<Case> {
    let text = fs::read_to_string(file).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let tests = (0..lines.len()).filter(|&number| lines[number] == "#[test]");
    tests
        .map(|number| {
            let above = lines[..number].iter().rev();
            let mut documentation: Vec<_> = above
                .map_while(|line| line.strip_prefix("///"))
                .map(|line| line.trim().to_owned())
                .collect();
            documentation.reverse();
            Case {
                place: format!("{}:{}", file.display(), number + 1),
                documentation,
            }
        })
        .collect()
}

/// The `FILE` and `TEXT` of the paragraph that begins with `Check:`.
fn check(case: &Case) -> Option<(String, String)> {
    let lines = &case.documentation;
    let start = lines.iter().position(|line| line.starts_with("Check: "))?;
    let paragraph = lines[start..].join(" ");
    let mut quoted = paragraph.split('`').skip(1).step_by(2);
    Some((quoted.next()?.to_owned(), quoted.next()?.to_owned()))
}

#[test]
fn every_case_names_the_check_that_it_is_about() {
    let workspace = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let mut count = 0;
    let mut wrong = Vec::new();
    for file in sources(&workspace.join("tests/tests/adversary")) {
        for case in cases(&file) {
            count += 1;
            let place = &case.place;
            match check(&case) {
                None => wrong.push(format!(
                    "{place}: the comment lacks \"Check: `FILE`: `TEXT`\""
                )),
                Some((file, text)) => match fs::read_to_string(workspace.join(&file)) {
                    Ok(source) if source.contains(&text) => {}
                    Ok(_) => wrong.push(format!("{place}: {file} has no {text:?}")),
                    Err(error) => wrong.push(format!("{place}: {file}: {error}")),
                },
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count >= LEAST, "{count} cases");
}
