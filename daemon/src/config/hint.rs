use std::fmt::Write as _;

/// Names that are less alike than this are no help.
const ALIKE: f64 = 0.6;

/// serde's words for an unknown key, with the nearest known one instead of all of them.
pub(super) fn explain(message: &str) -> String {
    // "unknown field `prot`, expected one of `ip`, `port`": names are every second part.
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names
        .next()
        .filter(|_| message.starts_with("unknown field"));
    match unknown {
        Some(unknown) => unknown_option(unknown, names),
        None => message.trim_end().to_owned(),
    }
}

/// `unknown` is no option; the nearest of those that are, or all when none is near.
pub(super) fn unknown_option<'a>(
    unknown: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> String {
    let mut text = format!("unknown option `{unknown}`; ");
    match nearest(unknown, known.clone()) {
        Some(name) => {
            let _ = write!(text, "did you mean `{name}`?");
        }
        None => {
            let known = known.collect::<Vec<_>>().join(", ");
            let _ = write!(text, "the options are: {known}");
        }
    }
    text
}

fn nearest<'a>(wanted: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let rated = known.map(|name| (strsim::normalized_damerau_levenshtein(wanted, name), name));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(alike, _)| *alike >= ALIKE)
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_error_gets_the_nearest_name_and_nonsense_the_list() {
        let message = |name| format!("unknown field `{name}`, expected one of `port`, `uuid`");
        assert_eq!(
            explain(&message("prot")),
            "unknown option `prot`; did you mean `port`?"
        );
        assert_eq!(
            explain(&message("colour")),
            "unknown option `colour`; the options are: port, uuid"
        );
        assert_eq!(explain("invalid type: `port`\n"), "invalid type: `port`");
    }
}
