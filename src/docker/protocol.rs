//! The words of Docker's volume plugin protocol, version 1. Pure.
//!
//! Every call is a POST with a JSON object; all calls' fields are read by one type. Fields that are not known are passed over: Docker's newer
//! versions may send more. Every answer has `Err`, empty when all is well.

use crate::api::ApiError;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::time::Duration;

/// The media type of answers.
pub(super) const MEDIA_TYPE: &str = "application/vnd.docker.plugins.v1.2+json";
/// Longest id of a mount; Docker's have 64 bytes.
pub(super) const MAX_ID: usize = 256;

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Activate,
    Create,
    Remove,
    Mount,
    Unmount,
    Path,
    Get,
    List,
    Capabilities,
}

impl Call {
    /// All of them, with their paths.
    pub(super) const ALL: [(&'static str, Self); 9] = [
        ("/Plugin.Activate", Self::Activate),
        ("/VolumeDriver.Create", Self::Create),
        ("/VolumeDriver.Remove", Self::Remove),
        ("/VolumeDriver.Mount", Self::Mount),
        ("/VolumeDriver.Unmount", Self::Unmount),
        ("/VolumeDriver.Path", Self::Path),
        ("/VolumeDriver.Get", Self::Get),
        ("/VolumeDriver.List", Self::List),
        ("/VolumeDriver.Capabilities", Self::Capabilities),
    ];

    /// The call of a path.
    pub(super) fn of(path: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .find(|(known, _)| *known == path)
            .map(|(_, call)| *call)
    }

    /// How long an answer may take: less than Docker waits (two minutes for Create and Mount, one for the others), so that its user reads why.
    pub(super) fn deadline(self) -> Duration {
        match self {
            Self::Create | Self::Mount => Duration::from_secs(110),
            _ => Duration::from_secs(50),
        }
    }
}

/// A request; what a call does not need is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(super) struct Request {
    /// The volume.
    pub(super) name: String,
    /// Who mounts or unmounts; Docker makes one for each container and mount.
    #[serde(rename = "ID")]
    pub(super) id: String,
    /// The `--opt`s of `docker volume create`.
    pub(super) opts: Option<BTreeMap<String, String>>,
}

impl Request {
    /// Reads a body; an empty one stands for `{}`.
    pub(super) fn parse(body: &[u8]) -> Result<Self, serde_json::Error> {
        let body: &[u8] = if body.is_empty() { b"{}" } else { body };
        // An object first: a list would be taken for the fields in their order.
        let object: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(body)?;
        serde_json::from_value(object.into())
    }
}

/// A volume, as `docker volume inspect` shows it.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct DockerVolume {
    pub(super) name: String,
    /// Where it is mounted for containers of this node; empty: it is not.
    pub(super) mountpoint: String,
    pub(super) created_at: Timestamp,
    /// Whatever is worth knowing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) status: Option<serde_json::Map<String, serde_json::Value>>,
}

/// What the driver can do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Capabilities {
    /// `global`: a volume is the same one on every node.
    pub(super) scope: &'static str,
}

/// An answer.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Answer {
    /// What went wrong; empty: nothing.
    pub(super) err: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) implements: Option<[&'static str; 1]>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) mountpoint: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volume: Option<DockerVolume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) volumes: Option<Vec<DockerVolume>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) capabilities: Option<Capabilities>,
}

impl Answer {
    /// An answer that something went wrong.
    pub(super) fn failed(error: &ApiError) -> Self {
        Self {
            err: sentence(error),
            ..Self::default()
        }
    }
}

/// An error as one line, for Docker puts it between words of its own.
pub(super) fn sentence(error: &ApiError) -> String {
    let hint = error.hint.as_deref().unwrap_or_default();
    let lines: Vec<&str> = error.message.lines().chain(hint.lines()).map(str::trim).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_of_docker_are_read_and_unknown_fields_passed_over() {
        let create = br#"{"Name":"data","Opts":{"size":"15","storageos.feature.replicas":"2"},"Later":[1,{"a":null}]}"#;
        let create = Request::parse(create).unwrap();
        assert_eq!(create.name, "data");
        assert_eq!(create.opts.unwrap()["storageos.feature.replicas"], "2");
        let mount = Request::parse(br#"{"Name":"data","ID":"abc"}"#).unwrap();
        assert_eq!((mount.id.as_str(), mount.opts), ("abc", None));
        assert_eq!(Request::parse(br#"{"Name":"data","Opts":null}"#).unwrap().opts, None);
        assert_eq!(Request::parse(b"").unwrap(), Request::default());
        for garbage in [
            "{",
            "[]",
            "1",
            "\"x\"",
            r#"{"Name":1}"#,
            r#"{"Opts":{"size":15}}"#,
            "\u{0}",
        ] {
            assert!(Request::parse(garbage.as_bytes()).is_err(), "{garbage}");
        }
    }

    #[test]
    fn answers_are_as_docker_reads_them() {
        let text = |answer: &Answer| serde_json::to_string(answer).unwrap();
        assert_eq!(text(&Answer::default()), r#"{"Err":""}"#);
        let volume = DockerVolume {
            name: "data".into(),
            mountpoint: String::new(),
            created_at: "2026-01-31T12:00:00Z".parse().unwrap(),
            status: None,
        };
        let answer = Answer {
            volume: Some(volume),
            ..Answer::default()
        };
        assert_eq!(
            text(&answer),
            r#"{"Err":"","Volume":{"Name":"data","Mountpoint":"","CreatedAt":"2026-01-31T12:00:00Z"}}"#
        );
        let answer = Answer {
            capabilities: Some(Capabilities { scope: "global" }),
            ..Answer::default()
        };
        assert_eq!(text(&answer), r#"{"Err":"","Capabilities":{"Scope":"global"}}"#);
    }

    #[test]
    fn an_error_is_one_line_with_what_to_do() {
        let error = ApiError::conflict("volume default/v is in use\n  unmount it").hint("or stop\n  the container");
        assert_eq!(
            Answer::failed(&error).err,
            "volume default/v is in use; unmount it; or stop; the container"
        );
    }

    #[test]
    fn every_call_has_one_path_and_answers_before_docker_gives_up() {
        for (path, call) in Call::ALL {
            assert_eq!(Call::of(path), Some(call));
            let patience = match call {
                Call::Create | Call::Mount => 120,
                _ => 60,
            };
            assert!(call.deadline() < Duration::from_secs(patience));
        }
        assert_eq!(Call::of("/VolumeDriver.mount"), None);
        assert_eq!(Call::of("/"), None);
    }
}
