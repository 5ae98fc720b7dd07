use base64::{Engine, engine::general_purpose::STANDARD};

/// PEM text as OpenSSL writes it: 64 columns, LF, final LF.
pub fn encode(label: &str, der: &[u8]) -> String {
    let body = STANDARD.encode(der);
    let mut text = String::with_capacity(body.len() + body.len() / 64 + 2 * label.len() + 34);
    text.push_str("-----BEGIN ");
    text.push_str(label);
    text.push_str("-----\n");
    let mut rest = body.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = tail;
    }
    text.push_str("-----END ");
    text.push_str(label);
    text.push_str("-----\n");
    text
}

/// The first block of `label` in PEM text, decoded; `None` when there is none or it is damaged.
pub fn decode(label: &str, text: &str) -> Option<Vec<u8>> {
    let begin = format!("-----BEGIN {label}-----");
    let end = format!("-----END {label}-----");
    let after = text.find(&begin)? + begin.len();
    let length = text.get(after..)?.find(&end)?;
    let body: String = text
        .get(after..after + length)?
        .split_ascii_whitespace()
        .collect();
    STANDARD.decode(body).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_64_columns_and_end_with_lf() {
        let text = encode("TEST", &[7; 100]);
        assert!(text.starts_with("-----BEGIN TEST-----\n"));
        assert!(text.ends_with("\n-----END TEST-----\n"));
        assert!(text.lines().all(|line| line.len() <= 64));
        assert_eq!(decode("TEST", &text).unwrap(), [7; 100]);
    }

    #[test]
    fn damaged_text_is_none() {
        assert_eq!(
            decode("TEST", "-----BEGIN TEST-----\n??\n-----END TEST-----\n"),
            None
        );
        assert_eq!(decode("TEST", "-----BEGIN TEST-----\nAAAA\n"), None);
        assert_eq!(decode("TEST", ""), None);
    }
}
