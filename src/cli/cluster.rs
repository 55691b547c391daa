//! `storageos cluster …`

use super::args::{ClusterVerb, HealthFormat};
use super::{output, print};
use crate::api::types::{ClusterHealth, ClusterInfo, InitRequest, JoinRequest, Membership};
use crate::api::{ApiError, Client, Code};
use crate::cluster::Export;
use crate::node::{self, ImportError};
use std::process::ExitCode;

pub(super) async fn run(client: &Client, verb: ClusterVerb) -> Result<ExitCode, ApiError> {
    match verb {
        ClusterVerb::Init => {
            let member: Membership = client.post("/v1/cluster/init", &InitRequest {}).await?;
            print(&format!("{}\n", member.cluster))?;
        }
        ClusterVerb::Join { addresses } => {
            let member: Membership = client.post("/v1/cluster/join", &JoinRequest { addresses }).await?;
            print(&format!("{}\n", member.cluster))?;
        }
        ClusterVerb::Health { format } => {
            let health: ClusterHealth = client.get("/v1/cluster/health").await?;
            print(&match format {
                HealthFormat::Json => output::json(&health)?,
                HealthFormat::Summary => summary(&health),
                HealthFormat::Detailed => detailed(&health),
            })?;
            if !health.healthy {
                return Ok(ExitCode::from(Code::Failed.exit_code()));
            }
        }
        ClusterVerb::Export => {
            let export: Export = client.get("/v1/cluster/export").await?;
            print(&output::json(&export)?)?;
        }
        ClusterVerb::Import {
            control,
            data_dir,
            file,
        } => {
            let failed =
                |code, error: &dyn std::fmt::Display| ApiError::new(code, format!("{}: {error}", file.display()));
            let text = std::fs::read(&file).map_err(|e| failed(Code::Failed, &e))?;
            let export = Export::parse(&text).map_err(|e| failed(Code::Invalid, &e))?;
            node::import(&control, data_dir.as_deref(), &export)
                .await
                .map_err(refused)?;
            print(&format!("{}\n", export.cluster))?;
        }
        ClusterVerb::Inspect => {
            let cluster: ClusterInfo = client.get("/v1/cluster").await?;
            print(&output::json(&[cluster])?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What a refused import is to whoever asked for it.
fn refused(error: ImportError) -> ApiError {
    let code = match error {
        ImportError::Catalog(error) => return error.into(),
        ImportError::NoDataDir => Code::Usage,
        ImportError::DataDir(_) | ImportError::OtherCluster { .. } | ImportError::Used(_) => Code::Conflict,
        ImportError::UnknownNode(_) => Code::Invalid,
        ImportError::Store(_) => Code::Unavailable,
    };
    ApiError::new(code, error.to_string())
}

/// One line.
pub(super) fn summary(health: &ClusterHealth) -> String {
    let alive = health.nodes.iter().filter(|n| n.health == "healthy").count();
    let volumes: usize = health.volumes.values().sum();
    let well = health.volumes.get("healthy").copied().unwrap_or(0);
    format!(
        "{}: {alive}/{} nodes healthy, {} voters, leader {}, {well}/{volumes} volumes healthy\n",
        if health.healthy { "healthy" } else { "unhealthy" },
        health.nodes.len(),
        health.voters.len(),
        health.leader.as_deref().unwrap_or("none"),
    )
}

/// The summary, the nodes, and what is not well.
pub(super) fn detailed(health: &ClusterHealth) -> String {
    let mut text = summary(health);
    text.push('\n');
    text.push_str(&output::table(
        &["NODE", "ADDRESS", "HEALTH", "CONTROL"],
        health
            .nodes
            .iter()
            .map(|n| vec![n.name.clone(), n.address.clone(), n.health.clone(), n.role.clone()]),
    ));
    if !health.volumes.is_empty() {
        text.push('\n');
        text.push_str(&output::table(
            &["VOLUMES", "HEALTH"],
            health
                .volumes
                .iter()
                .map(|(word, count)| vec![count.to_string(), word.clone()]),
        ));
    }
    if !health.problems.is_empty() {
        text.push_str("\nProblems:\n");
        for problem in &health.problems {
            text.push_str(&format!("  {problem}\n"));
        }
    }
    text
}
