//! Takes secrets out of what goes into a bug report. Pure.
//!
//! What counts as one: a token by which a node joins; the value after a name that sounds like a secret (`token`, `password`, a label `db.password`, an option `--…-key`), user and
//! password in a URL, and private keys in PEM. Rather too much is taken than too little; another secret in the middle of free text is not recognised.

use crate::trust::TOKEN_PREFIX;
use serde_json::Value;

/// What stands in a secret's place.
pub(super) const REDACTED: &str = "[redacted]";

/// Whether what has this name is a secret.
fn is_secret(name: &str) -> bool {
    let name = name.trim_start_matches('-').to_ascii_lowercase();
    let parts = [
        "token",
        "secret",
        "password",
        "passwd",
        "passphrase",
        "credential",
        "private",
        "authorization",
        "apikey",
    ];
    parts.iter().any(|part| name.contains(part))
        || ["key", "pass", "pwd", "auth"].iter().any(|end| {
            name.strip_suffix(end)
                .is_some_and(|rest| !rest.ends_with(|c: char| c.is_ascii_alphanumeric()))
        })
}

/// The words of a command line, for others to see.
#[must_use]
pub fn words(words: impl IntoIterator<Item = String>) -> Vec<String> {
    let mut after = false;
    let redact = |word: String| {
        let secret = std::mem::take(&mut after);
        if secret && !word.starts_with('-') {
            return REDACTED.to_owned();
        }
        after = word.starts_with('-') && !word.contains('=') && is_secret(&word);
        text(&word)
    };
    words.into_iter().map(redact).collect()
}

/// A JSON value, whatever its form.
pub(super) fn json(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                // Numbers and flags are no secrets, and say much.
                if is_secret(name) && matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_)) {
                    *value = Value::String(REDACTED.to_owned());
                } else {
                    json(value);
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(json),
        Value::String(inner) => *inner = text(inner),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// A line of a log, in words or as JSON.
pub(super) fn line(line: &str) -> String {
    match serde_json::from_str::<Value>(line) {
        Ok(mut value @ Value::Object(_)) => {
            json(&mut value);
            value.to_string()
        }
        _ => text(line),
    }
}

/// Free text.
pub(super) fn text(text: &str) -> String {
    values(&urls(&tokens(&keys(text))))
}

/// Private keys in PEM.
fn keys(text: &str) -> String {
    const BEGIN: &str = "-----BEGIN ";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(BEGIN) {
        let (before, key) = rest.split_at(at);
        out.push_str(before);
        let kind = key[BEGIN.len()..].split("-----").next().unwrap_or_default();
        if !kind.contains("PRIVATE") {
            out.push_str(BEGIN);
            rest = &key[BEGIN.len()..];
            continue;
        }
        out.push_str(REDACTED);
        let end = format!("-----END {kind}-----");
        // A key that was cut off ends with the text.
        rest = key.find(&end).map_or("", |at| &key[at + end.len()..]);
    }
    out.push_str(rest);
    out
}

/// Tokens by which nodes join, wherever they stand.
fn tokens(text: &str) -> String {
    let mut parts = text.split(TOKEN_PREFIX);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || "-_".contains(c));
        out.push_str(REDACTED);
        out.push_str(rest);
    }
    out
}

/// Users and passwords in URLs.
fn urls(text: &str) -> String {
    const MARK: &str = "://";
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(MARK) {
        let (before, after) = rest.split_at(at + MARK.len());
        out.push_str(before);
        let end = after
            .find(|c: char| c.is_whitespace() || "/\"'`<>?#".contains(c))
            .unwrap_or(after.len());
        let (authority, more) = after.split_at(end);
        match authority.rfind('@') {
            Some(at) => {
                out.push_str(REDACTED);
                out.push_str(&authority[at..]);
            }
            None => out.push_str(authority),
        }
        rest = more;
    }
    out.push_str(rest);
    out
}

/// What stands after a secret's name: `name=…`, `name: …`, `"name": "…"`, `Bearer …`.
fn values(text: &str) -> String {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "._-/".contains(c);
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find(is_name) {
        out.push_str(&rest[..start]);
        rest = &rest[start..];
        let end = rest.find(|c| !is_name(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        out.push_str(name);
        rest = after;
        let bearer = name.eq_ignore_ascii_case("bearer") || name.eq_ignore_ascii_case("basic");
        if !bearer && !is_secret(name) {
            continue;
        }
        let unquoted = after.trim_start_matches(['"', '\'', '\\']);
        let spaced = unquoted.trim_start();
        let value = match spaced.strip_prefix(['=', ':']) {
            Some(value) => value,
            None if bearer && spaced.len() < unquoted.len() => spaced,
            None => continue,
        };
        // A header's value is all that follows.
        let whole = name.eq_ignore_ascii_case("authorization");
        let value = value.trim_start_matches([' ', '\t']);
        let length = length(value, whole);
        if length == 0 {
            continue;
        }
        out.push_str(&after[..after.len() - value.len()]);
        out.push_str(REDACTED);
        rest = &value[length..];
    }
    out.push_str(rest);
    out
}

/// How much of a text is the value that it begins with.
fn length(text: &str, whole: bool) -> usize {
    if let Some(quote) = text.chars().next().filter(|c| "\"'".contains(*c)) {
        let mut escaped = false;
        for (at, c) in text.char_indices().skip(1) {
            match c {
                _ if escaped => escaped = false,
                '\\' => escaped = true,
                c if c == quote => return at + 1,
                _ => {}
            }
        }
        return text.len();
    }
    let ends = |c: char| c == '\n' || (!whole && (c.is_whitespace() || ",;\"'}])&".contains(c)));
    text.find(ends).unwrap_or(text.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn secrets_in_text_are_taken_out_and_the_rest_stays() {
        for (given, expected) in [
            (
                "nothing here: a=b, n1 at 10.0.0.1:5703",
                "nothing here: a=b, n1 at 10.0.0.1:5703",
            ),
            ("etcd://u:p@a:1,v:q@b:2/x is away", "etcd://[redacted]@b:2/x is away"),
            (
                "http://user@host/a@b http://h/p",
                "http://[redacted]@host/a@b http://h/p",
            ),
            ("token=abc, next=1", "token=[redacted], next=1"),
            ("db.password: hunter2 is wrong", "db.password: [redacted] is wrong"),
            (r#"{"join_token":"a\"b","n":1}"#, r#"{"join_token":[redacted],"n":1}"#),
            (r#"secret="a b" c"#, r#"secret=[redacted] c"#),
            ("Authorization: Bearer a.b.c\nnext", "Authorization: [redacted]\nnext"),
            ("sent Bearer abc to n1", "sent Bearer [redacted] to n1"),
            ("--tls-key=/etc/k.pem", "--tls-key=[redacted]"),
            ("the key is not known, monkey=1", "the key is not known, monkey=1"),
            ("iaas/failure-domain=a", "iaas/failure-domain=a"),
            ("join with storageos1_AZ-_09, soon", "join with [redacted], soon"),
            ("token", "token"),
            ("token=", "token="),
            (
                "x -----BEGIN EC PRIVATE KEY-----\nMHc\n-----END EC PRIVATE KEY----- y",
                "x [redacted] y",
            ),
            ("-----BEGIN PRIVATE KEY-----\ncut", "[redacted]"),
            (
                "-----BEGIN CERTIFICATE-----\nMI\n-----END CERTIFICATE-----",
                "-----BEGIN CERTIFICATE-----\nMI\n-----END CERTIFICATE-----",
            ),
        ] {
            assert_eq!(text(given), expected);
        }
    }

    #[test]
    fn options_and_their_values_on_a_command_line() {
        let given = [
            "node",
            "run",
            "--join-token",
            "abc",
            "--token-file",
            "--init",
            "--label",
            "db.password=x",
            "--name",
            "n1",
        ];
        let expected = [
            "node",
            "run",
            "--join-token",
            REDACTED,
            "--token-file",
            "--init",
            "--label",
            "db.password=[redacted]",
            "--name",
            "n1",
        ];
        assert_eq!(words(given.map(str::to_owned)), expected);
    }

    #[test]
    fn fields_of_json_at_any_depth_and_lines_of_json() {
        let mut value = json!({
            "labels": {"db.password": "hunter2", "app": "db"},
            "list": ["http://u:p@h/"], "tokens": 3, "keys": ["a"], "secrets": ["a", "b"],
        });
        super::json(&mut value);
        let expected = json!({
            "labels": {"db.password": REDACTED, "app": "db"},
            "list": ["http://[redacted]@h/"], "tokens": 3, "keys": ["a"], "secrets": REDACTED,
        });
        assert_eq!(value, expected);
        assert_eq!(
            line(r#"{"fields":{"token":"abc"}}"#),
            r#"{"fields":{"token":"[redacted]"}}"#
        );
        assert_eq!(line("INFO token=abc"), "INFO token=[redacted]");
    }
}
