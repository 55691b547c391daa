//! One archive for a bug report: what every node that answers knows, gathered by one of them.
//!
//! `manifest.json` (what is in it, which nodes did not answer), `cluster/*.json` (the API's answers), `nodes/NAME/` (metrics, command line, machine,
//! the log's latest lines). A part that cannot be had is replaced by `….error.txt`. Secrets are taken out twice: by the node that tells,
//! before anything leaves it, and of the whole by the one that gathers. Changes nothing; no part waits longer than [`PATIENCE`].

use super::daemon::{Joined, Shared};
use super::{process, redact};
use crate::api::types::{DiagnosedNode, EventFilter, Manifest, VolumeFilter};
use crate::api::{ApiError, Operations};
use crate::rpc::{MAX_PAYLOAD, Payload};
use crate::volume::Node;
use flate2::Compression;
use flate2::read::GzDecoder;
use flate2::write::GzEncoder;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

/// How long each part may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most bytes of what a node tells of itself, unpacked.
const MAX_TOLD: u64 = 256 << 20;

/// What a node tells of itself.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct Diagnosis {
    version: String,
    command_line: Vec<String>,
    /// As JSON.
    machine: String,
    metrics: String,
    log: Vec<String>,
}

impl Diagnosis {
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn sample() -> Self {
        Self {
            machine: "{}".to_owned(),
            log: vec!["a line".to_owned()],
            ..Self::default()
        }
    }

    /// For the way to another node.
    pub(super) fn pack(mut self) -> io::Result<Payload> {
        let packed = self.packed()?;
        if packed.len() <= MAX_PAYLOAD {
            return Ok(packed.into());
        }
        self.metrics = "# too large to be sent: ask this node itself\n".to_owned();
        Ok(self.packed()?.into())
    }

    fn packed(&self) -> io::Result<Vec<u8>> {
        let mut packer = GzEncoder::new(Vec::new(), Compression::default());
        serde_json::to_writer(&mut packer, self)?;
        packer.finish()
    }

    /// What [`Self::pack`] made.
    pub(super) fn unpack(packed: &[u8]) -> io::Result<Self> {
        Ok(serde_json::from_reader(GzDecoder::new(packed).take(MAX_TOLD))?)
    }
}

/// The archive's files.
#[derive(Default)]
struct Files(Vec<(String, Vec<u8>)>);

impl Files {
    fn text(&mut self, name: String, text: String) {
        self.0.push((name, text.into_bytes()));
    }

    fn json(&mut self, name: &str, value: &impl Serialize) {
        let text = serde_json::to_value(value).and_then(|mut value| {
            redact::json(&mut value);
            serde_json::to_string_pretty(&value)
        });
        match text {
            Ok(text) => self.text(name.to_owned(), text + "\n"),
            Err(error) => self.text(format!("{name}.error.txt"), format!("{error}\n")),
        }
    }

    fn answer(&mut self, name: &str, answer: Result<impl Serialize, ApiError>) {
        match answer {
            Ok(value) => self.json(name, &value),
            Err(error) => self.text(format!("{name}.error.txt"), redact::text(&format!("{error}\n"))),
        }
    }

    fn node(&mut self, name: &str, told: &Diagnosis) {
        let place = format!("nodes/{name}");
        self.text(format!("{place}/metrics.txt"), redact::text(&told.metrics));
        let machine: serde_json::Value = serde_json::from_str(&told.machine).unwrap_or_default();
        self.json(&format!("{place}/machine.json"), &machine);
        let daemon = serde_json::json!({
            "version": told.version,
            "commandLine": redact::words(told.command_line.clone()),
        });
        self.json(&format!("{place}/daemon.json"), &daemon);
        let log: String = told.log.iter().map(|line| redact::line(line) + "\n").collect();
        self.text(format!("{place}/log.txt"), log);
    }

    /// Everything in one directory, as tar.gz.
    fn archive(self, directory: &str, at: Timestamp) -> io::Result<Vec<u8>> {
        let mut archive = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        for (name, bytes) in self.0 {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o600);
            header.set_mtime(u64::try_from(at.as_second()).unwrap_or(0));
            archive.append_data(&mut header, format!("{directory}/{name}"), bytes.as_slice())?;
        }
        let mut packer = archive.into_inner()?;
        packer.flush()?;
        packer.finish()
    }
}

async fn in_time<T>(answer: impl Future<Output = Result<T, ApiError>>) -> Result<T, ApiError> {
    tokio::time::timeout(PATIENCE, answer)
        .await
        .unwrap_or_else(|_| Err(ApiError::unavailable(format!("no answer within {PATIENCE:?}"))))
}

impl Shared {
    /// What this node tells of itself, without secrets.
    pub(super) async fn diagnosis(&self) -> Diagnosis {
        let log = self.config.log.as_ref().map(|log| log.lines()).unwrap_or_default();
        Diagnosis {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            command_line: self.config.command_line.clone(),
            machine: process::machine().to_string(),
            metrics: redact::text(&self.scrape().await),
            log: log.iter().map(|line| redact::line(line)).collect(),
        }
    }

    /// The archive.
    pub(super) async fn archive(&self) -> Result<Vec<u8>, ApiError> {
        let mut files = Files::default();
        // The last are asked of every node.
        let (health, cluster, nodes, namespaces, volumes, events, connectivity) = tokio::join!(
            in_time(self.cluster_health()),
            in_time(self.cluster_inspect()),
            in_time(Operations::nodes(self)),
            in_time(self.namespaces()),
            in_time(self.volumes(VolumeFilter::default())),
            in_time(self.events(EventFilter::default())),
            in_time(self.cluster_connectivity()),
        );
        files.answer("cluster/health.json", health);
        files.answer("cluster/inspect.json", cluster);
        files.answer("cluster/nodes.json", nodes);
        files.answer("cluster/namespaces.json", namespaces);
        files.answer("cluster/volumes.json", volumes);
        files.answer("cluster/events.json", events);
        files.answer("cluster/connectivity.json", connectivity);
        let mut asked = vec![DiagnosedNode {
            name: self.name.clone(),
            address: self.address.clone(),
            error: None,
        }];
        files.node(&self.name, &self.diagnosis().await);
        files.answer("readiness.json", Ok(self.readiness().await));
        if let Ok(joined) = self.joining() {
            for (node, told) in others(&joined).await {
                match &told {
                    Ok(told) => files.node(&node.name, told),
                    Err(error) => files.text(
                        format!("nodes/{}/error.txt", node.name),
                        redact::text(&format!("{error}\n")),
                    ),
                }
                asked.push(DiagnosedNode {
                    name: node.name.clone(),
                    address: node.address.clone(),
                    error: told.err().map(|error| redact::text(&error.message)),
                });
            }
        }
        let at = Timestamp::now();
        let manifest = Manifest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            created_at: at,
            answered_by: self.name.clone(),
            cluster: self.identity.cluster(),
            nodes: asked,
            files: files.0.iter().map(|(name, _)| name.clone()).collect(),
        };
        files.json("manifest.json", &manifest);
        // First, so that a reader of the stream meets it first.
        files.0.rotate_right(1);
        let directory = at.strftime("storageos-diagnostics-%Y%m%dT%H%M%SZ").to_string();
        let packed = tokio::task::spawn_blocking(move || files.archive(&directory, at)).await;
        match packed {
            Ok(Ok(archive)) => Ok(archive),
            Ok(Err(error)) => Err(ApiError::internal(format!("the archive could not be made: {error}"))),
            Err(error) => Err(ApiError::internal(format!("the archive was interrupted: {error}"))),
        }
    }
}

/// What the other nodes tell, those included that do not answer.
async fn others(joined: &Joined) -> Vec<(Arc<Node>, Result<Diagnosis, ApiError>)> {
    let view = joined.control.view();
    let nodes = view.nodes.values().filter(|node| node.id != joined.node);
    let asked = nodes.map(|node| async {
        let told = in_time(joined.nodes.diagnose(node.id, &node.address)).await;
        (node.clone(), told)
    });
    futures::future::join_all(asked).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_node_tells_arrives_and_rubbish_is_an_error() {
        let told = Diagnosis {
            version: "1".into(),
            log: vec!["a".into(), "b".into()],
            ..Diagnosis::default()
        };
        let packed = told.pack().unwrap();
        assert_eq!(Diagnosis::unpack(&packed).unwrap().log, ["a", "b"]);
        assert!(Diagnosis::unpack(&packed[..packed.len() / 2]).is_err());
        assert!(Diagnosis::unpack(b"no gzip").is_err());
    }

    #[test]
    fn no_secret_of_any_part_is_in_the_files() {
        let secret = "hunter2";
        let mut files = Files::default();
        files.json("a.json", &serde_json::json!({"labels": {"db.password": secret}}));
        files.answer("b.json", Err::<(), _>(ApiError::internal(format!("token={secret}"))));
        let told = Diagnosis {
            command_line: vec!["--join-token".into(), secret.into()],
            machine: format!("{{\"url\": \"http://a:{secret}@b/\"}}"),
            metrics: format!("# http://a:{secret}@b/"),
            log: vec![
                format!("INFO password={secret}"),
                format!("{{\"fields\":{{\"secret\":\"{secret}\"}}}}"),
            ],
            ..Diagnosis::default()
        };
        files.node("n1", &told);
        assert_eq!(files.0.len(), 6);
        for (name, bytes) in &files.0 {
            assert!(!String::from_utf8_lossy(bytes).contains(secret), "{name}");
        }
        let archive = files.archive("d", Timestamp::UNIX_EPOCH).unwrap();
        let mut archive = tar::Archive::new(GzDecoder::new(archive.as_slice()));
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_string_lossy().into_owned())
            .collect();
        assert!(names.contains(&"d/b.json.error.txt".to_owned()), "{names:?}");
    }
}
