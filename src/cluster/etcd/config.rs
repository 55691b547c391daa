//! Where etcd is: the address that operators give, as `etcd://10.0.0.1:2379,10.0.0.2:2379/storageos`. Pure.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The prefix of all keys when the address names none.
const DEFAULT_PREFIX: &str = "/storageos";
/// Longest prefix, in bytes.
const MAX_PREFIX: usize = 200;

/// Where the cluster's records are in etcd, and how long to wait for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EtcdConfig {
    /// `HOST:PORT` of members of one etcd cluster; at least one.
    pub endpoints: Vec<String>,
    /// What all keys begin with: `/` first, none at the end.
    pub prefix: String,
    /// How long a request tries to get an answer.
    pub deadline: Duration,
}

/// An address of etcd that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EtcdAddressError {
    /// Not of this form.
    #[error("{0} is not an address of etcd; it is etcd://HOST:PORT[,HOST:PORT…][/PREFIX]")]
    Form(String),
    /// Encrypted connections.
    #[error("etcds:// (TLS) is not supported: use etcd:// on a network that you trust")]
    Tls,
    /// A user and a password.
    #[error(
        "a user and password for etcd are not supported: use an etcd without authentication on a network that you trust"
    )]
    Credentials,
    /// An endpoint.
    #[error("{0} is not HOST:PORT")]
    Endpoint(String),
    /// The prefix.
    #[error(
        "{0} is not a prefix of keys: letters, digits, - _ . and single / between them, at most {MAX_PREFIX} bytes"
    )]
    Prefix(String),
}

impl FromStr for EtcdConfig {
    type Err = EtcdAddressError;

    fn from_str(text: &str) -> Result<Self, EtcdAddressError> {
        if text.starts_with("etcds://") {
            return Err(EtcdAddressError::Tls);
        }
        let rest = text
            .strip_prefix("etcd://")
            .ok_or_else(|| EtcdAddressError::Form(text.to_owned()))?;
        if rest.contains('@') {
            return Err(EtcdAddressError::Credentials);
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let mut endpoints: Vec<String> = Vec::new();
        for host in hosts.split(',') {
            if !endpoints.iter().any(|known| known == host) {
                endpoints.push(endpoint(host)?);
            }
        }
        Ok(Self {
            endpoints,
            prefix: prefix(path)?,
            deadline: Duration::from_secs(10),
        })
    }
}

impl fmt::Display for EtcdConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "etcd://{}{}", self.endpoints.join(","), self.prefix)
    }
}

fn endpoint(text: &str) -> Result<String, EtcdAddressError> {
    let wrong = || EtcdAddressError::Endpoint(text.to_owned());
    let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let inner = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let good = match inner {
        Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        }
    };
    if good && port != 0 {
        Ok(text.to_owned())
    } else {
        Err(wrong())
    }
}

fn prefix(path: &str) -> Result<String, EtcdAddressError> {
    let path = path.strip_suffix('/').unwrap_or(path);
    if path.is_empty() {
        return Ok(DEFAULT_PREFIX.to_owned());
    }
    let good = |part: &str| {
        !part.is_empty()
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
    };
    if path.len() < MAX_PREFIX && path.split('/').all(good) {
        Ok(format!("/{path}"))
    } else {
        Err(EtcdAddressError::Prefix(path.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_read() {
        for (text, endpoints, prefix) in [
            ("etcd://10.0.0.1:2379", &["10.0.0.1:2379"][..], "/storageos"),
            ("etcd://10.0.0.1:2379/", &["10.0.0.1:2379"], "/storageos"),
            (
                "etcd://a:1,b-2.x:2,[::1]:3,a:1/team/one/",
                &["a:1", "b-2.x:2", "[::1]:3"],
                "/team/one",
            ),
        ] {
            let config: EtcdConfig = text.parse().unwrap();
            assert_eq!(config.endpoints, endpoints);
            assert_eq!(config.prefix, prefix);
            assert_eq!(config.to_string().parse(), Ok(config));
        }
    }

    #[test]
    fn addresses_that_cannot_be_used_are_refused_with_a_reason() {
        for (text, says) in [
            ("http://a:1", "etcd://HOST:PORT"),
            ("etcds://a:1", "TLS"),
            ("etcd://user:secret@a:1", "password"),
            ("etcd://", " is not HOST:PORT"),
            ("etcd://a", "a is not HOST:PORT"),
            ("etcd://a:0", "HOST:PORT"),
            ("etcd://a:70000", "HOST:PORT"),
            ("etcd://a b:1", "HOST:PORT"),
            ("etcd://[::1:1", "HOST:PORT"),
            ("etcd://a:1,", "HOST:PORT"),
            ("etcd://a:1//x", "prefix"),
            ("etcd://a:1/x//y", "prefix"),
            ("etcd://a:1/x?y", "prefix"),
        ] {
            let error = text.parse::<EtcdConfig>().unwrap_err().to_string();
            assert!(error.contains(says), "{text}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
