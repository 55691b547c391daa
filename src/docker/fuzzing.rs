//! Hostile bytes for what Docker says and for the ledger's file; see [`crate::fuzzing`].

use super::driver::Asked;
use super::ledger;
use super::protocol::Request;
use std::path::Path;

/// A request's body, with the options in it.
pub(crate) fn request(input: &[u8]) -> bool {
    let Ok(request) = Request::parse(input) else {
        return false;
    };
    if let Some(opts) = request.opts {
        let _ = Asked::parse(opts);
    }
    true
}

pub(crate) fn request_seeds() -> Vec<Vec<u8>> {
    [
        r#"{"Name":"data","Opts":{"size":"15","storageos.feature.replicas":"2","pool":"default","fstype":"ext4"}}"#,
        r#"{"Name":"data","ID":"abc"}"#,
        "",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// The file with who uses which mount.
pub(crate) fn ledger(input: &[u8]) -> bool {
    ledger::parse(Path::new("docker.json"), input).is_ok_and(|users| !users.is_empty())
}

pub(crate) fn ledger_seeds() -> Vec<Vec<u8>> {
    vec![br#"{"format":1,"volumes":{"v":{"abc":null,"def":{"pid":7,"started":9}}}}"#.to_vec()]
}
