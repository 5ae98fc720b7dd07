use std::{
    io::{self, Write},
    path::Path,
};

use clap::{Command, CommandFactory};
use clap_mangen::Man;

use super::{EXIT_STATUS, SECTIONS, examples};
use crate::{
    cli::Cli,
    error::{Error, Exit},
    output::Output,
};

/// Runs `trothctl man`.
pub(crate) fn run(directory: Option<&Path>, out: &Output) -> Result<Exit, Error> {
    let mut command = Cli::command();
    // Names the subcommands as they are typed.
    command.build();
    match directory {
        Some(directory) => pages(&command, "trothctl", directory)?,
        None => {
            let mut page = Vec::new();
            render(&command, "trothctl", &mut page).map_err(|source| Error::WriteFile {
                path: "standard output".into(),
                source,
            })?;
            out.text(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(Exit::Success)
}

/// The page of a command and of all below it.
fn pages(command: &Command, path: &str, directory: &Path) -> Result<(), Error> {
    for sub in command.get_subcommands() {
        pages(sub, &format!("{path} {}", sub.get_name()), directory)?;
    }
    let file = directory.join(format!("{}.1", path.replace(' ', "-")));
    let mut page = Vec::new();
    render(command, path, &mut page)
        .and_then(|()| std::fs::write(&file, page))
        .map_err(|source| Error::WriteFile { path: file, source })
}

fn render(command: &Command, path: &str, page: &mut dyn Write) -> io::Result<()> {
    let main = path == "trothctl";
    let man = Man::new(command.clone())
        .title(path.replace(' ', "-").to_uppercase())
        .source(format!("Troth {}", env!("CARGO_PKG_VERSION")))
        .manual("Troth");
    man.render_title(page)?;
    man.render_name_section(page)?;
    man.render_synopsis_section(page)?;
    man.render_description_section(page)?;
    man.render_options_section(page)?;
    if command.has_subcommands() {
        man.render_subcommands_section(page)?;
    }
    let examples: Vec<_> = examples::of(path)
        .iter()
        .map(|(what, words)| format!("{what}:\n\n    {words}"))
        .collect();
    if !examples.is_empty() {
        verbatim(page, "Examples", &examples.join("\n\n"))?;
    }
    if main {
        for (heading, text) in SECTIONS {
            verbatim(page, heading, text)?;
        }
        return Ok(());
    }
    verbatim(page, "Exit status", EXIT_STATUS)?;
    writeln!(
        page,
        ".SH \"SEE ALSO\"\n\\fBtrothctl\\fR(1) has the environment, the files, trothctl.toml and \
         the JSON of all commands."
    )
}

/// A section whose lines stay as they are.
fn verbatim(page: &mut dyn Write, heading: &str, text: &str) -> io::Result<()> {
    writeln!(page, ".SH \"{}\"\n.nf", heading.to_uppercase())?;
    for line in text.lines() {
        // A leading dot or quote would be a request to troff.
        let guard = if line.starts_with(['.', '\'']) {
            r"\&"
        } else {
            ""
        };
        let line = line.replace('\\', r"\e").replace('-', r"\-");
        writeln!(page, "{guard}{line}")?;
    }
    writeln!(page, ".fi")
}
