/// A host name, an IPv4 or an IPv6 address, by alphabet and length.
pub(crate) fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 255
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._:%[]".contains(&b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_names_and_addresses_of_both_families() {
        for host in [
            "node.example",
            "192.0.2.1",
            "::1",
            "[2001:db8::1]",
            "fe80::1%eth0",
            "a_b",
        ] {
            assert!(is_host(host), "{host}");
        }
        for other in [
            "",
            "a b",
            "u@h",
            "h/p",
            "h?q",
            "h#f",
            "h\r\n",
            "ü",
            &"a".repeat(256),
        ] {
            assert!(!is_host(other), "{other:?}");
        }
    }
}
