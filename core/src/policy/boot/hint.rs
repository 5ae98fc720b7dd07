/// Names that are less alike than this are no help.
const ALIKE: f64 = 0.6;

/// serde's words for an unknown key, with the nearest known one instead of all of them.
pub(super) fn explain(message: &str) -> String {
    // "unknown field `nam`, expected one of `name`, `kind` at line 3 column 4"
    let mut names = message.split('`').skip(1).step_by(2);
    let unknown = names
        .next()
        .filter(|_| message.starts_with("unknown field"));
    let Some(name) = unknown else {
        return message.trim_end().to_owned();
    };
    let place = message
        .rsplit_once(" at line ")
        .map(|(_, place)| format!(" at line {place}"));
    unknown_name("key", name, names) + &place.unwrap_or_default()
}

/// `name` is not known as a `what`; the nearest that is, or all when none is near.
pub(super) fn unknown_name<'n>(
    what: &str,
    name: &str,
    known: impl Iterator<Item = &'n str> + Clone,
) -> String {
    let name: String = name.chars().take(64).collect();
    let rated = known
        .clone()
        .map(|one| (strsim::normalized_damerau_levenshtein(&name, one), one));
    let nearest = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    match nearest.filter(|(alike, _)| *alike >= ALIKE) {
        Some((_, nearest)) => format!("unknown {what} `{name}`; did you mean `{nearest}`?"),
        None => {
            let known = known.collect::<Vec<_>>().join(", ");
            format!("unknown {what} `{name}`; there are: {known}")
        }
    }
}
