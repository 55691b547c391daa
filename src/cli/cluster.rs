//! `storageos cluster …`

use super::args::{ClusterVerb, HealthFormat};
use super::{connectivity, diagnostics, output, print, token};
use crate::api::types::{
    ClusterHealth, ClusterInfo, InitRequest, JoinRequest, Membership, RecoverRequest, Recovery, RotateRequest,
};
use crate::api::{ApiError, Client, Code};
use crate::cluster::Export;
use crate::node::{self, ImportError};
use std::io::IsTerminal;
use std::process::ExitCode;

pub(super) async fn run(client: &Client, verb: ClusterVerb) -> Result<ExitCode, ApiError> {
    match verb {
        ClusterVerb::Init => {
            let member: Membership = client.post("/v1/cluster/init", &InitRequest {}).await?;
            print(&format!("{}\n", member.cluster))?;
        }
        ClusterVerb::Join { token, addresses } => {
            let token = token::read(token)?;
            let member: Membership = client
                .post("/v1/cluster/join", &JoinRequest { addresses, token })
                .await?;
            print(&format!("{}\n", member.cluster))?;
        }
        ClusterVerb::Client(command) => return super::client::run(client, command.verb).await,
        ClusterVerb::Token(command) => return token::run(client, command.verb).await,
        ClusterVerb::RotateCertificates => {
            let _: serde_json::Value = client.post("/v1/cluster/rotate", &RotateRequest {}).await?;
            eprintln!("every node that is up renews its certificate now, the others when they are back");
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
            eprintln!(
                "note: the key of the cluster's authority is in it; let nobody else read it, and delete it afterwards"
            );
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
        ClusterVerb::Diagnostics { output } => return diagnostics::run(client, output).await,
        ClusterVerb::Connectivity(list) => {
            return connectivity::show(client, "/v1/cluster/connectivity", &list).await;
        }
        ClusterVerb::Recover { yes } => {
            confirm(yes)?;
            let done: Recovery = client.post("/v1/cluster/recover", &RecoverRequest {}).await?;
            print(&format!("{}\n", done.node_name))?;
            eprintln!(
                "the control plane goes on from node {} with {} volumes; see: storageos cluster health",
                done.node_name, done.volumes
            );
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

/// The word that stands for having read the warning.
const WORD: &str = "recover";

/// Warns, and asks for a word unless told not to.
fn confirm(yes: bool) -> Result<(), ApiError> {
    eprintln!(
        "This makes this node's replica the cluster's control plane, without the voters that do not answer.\n\
         If they are alive behind a broken network, volumes may then be written on both sides, and one side's writes will be lost.\n\
         Make sure that they are down. What only they knew (the last changes of volumes and nodes) is lost."
    );
    if yes {
        return Ok(());
    }
    let refused = |why: &str| ApiError::new(Code::Usage, why).hint(format!("type {WORD} when asked, or give --yes"));
    if !std::io::stdin().is_terminal() {
        return Err(refused("nobody is there to confirm this"));
    }
    eprint!("Type {WORD} to go on: ");
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line);
    match read {
        Ok(_) if line.trim() == WORD => Ok(()),
        _ => Err(refused("not confirmed, nothing was done")),
    }
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
