//! `storageos node …`, without `run`.

use super::args::NodeVerb;
use super::{connectivity, drain, for_each, output, print, volume::labels};
use crate::api::types::{NodeInfo, NodeUpdate};
use crate::api::{ApiError, Client, Code, escape};
use jiff::Timestamp;
use std::process::ExitCode;

pub(super) const COLUMNS: [&str; 8] = [
    "NAME",
    "ADDRESS",
    "HEALTH",
    "SCHEDULER",
    "VOLUMES",
    "TOTAL",
    "USED",
    "VERSION",
];

pub(super) async fn run(client: &Client, verb: NodeVerb) -> Result<ExitCode, ApiError> {
    match verb {
        // The caller has started the daemon instead of a client.
        NodeVerb::Run(_) | NodeVerb::Fdstore(_) => {
            return Err(ApiError::internal("the daemon is not started through its own API"));
        }
        NodeVerb::Ls(options) => {
            let nodes: Vec<NodeInfo> = client.get("/v1/nodes").await?;
            if options.quiet {
                print(&nodes.iter().map(|n| n.name.clone() + "\n").collect::<String>())?;
            } else {
                let now = Timestamp::now();
                print(&output::list(&options.format, &COLUMNS, &nodes, |n| row(n, now))?)?;
            }
        }
        NodeVerb::Inspect { nodes } => {
            let mut found = Vec::new();
            let code = for_each(&nodes, async |name| {
                found.push(get(client, name).await?);
                Ok(())
            })
            .await?;
            print(&output::json(&found)?)?;
            return Ok(code);
        }
        NodeVerb::Health { node } => {
            let info = get(client, &node).await?;
            print(&format!("{}\n", health(&info, Timestamp::now())))?;
            if info.health != "healthy" {
                return Ok(ExitCode::from(Code::Failed.exit_code()));
            }
        }
        NodeVerb::Cordon { nodes } => return cordon(client, &nodes, true).await,
        NodeVerb::Uncordon { nodes } => return cordon(client, &nodes, false).await,
        NodeVerb::Drain {
            no_wait,
            timeout,
            nodes,
        } => return drain::drain(client, &nodes, no_wait, timeout.as_deref()).await,
        NodeVerb::Delete { nodes } => {
            return for_each(&nodes, async |name| {
                client.delete(&format!("/v1/nodes/{}", escape(name))).await?;
                print(&format!("{name}\n"))
            })
            .await;
        }
        NodeVerb::Connectivity { list, node } => {
            let path = format!("/v1/nodes/{}/connectivity", escape(&node));
            return connectivity::show(client, &path, &list).await;
        }
        NodeVerb::Undrain { nodes } => return drain::undrain(client, &nodes).await,
        NodeVerb::Update {
            label_add,
            label_rm,
            node,
        } => {
            let update = NodeUpdate {
                label_add: labels(&label_add)?,
                label_remove: label_rm,
                ..NodeUpdate::default()
            };
            let info = change(client, &node, &update).await?;
            print(&format!("{}\n", info.name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn get(client: &Client, name: &str) -> Result<NodeInfo, ApiError> {
    client.get(&format!("/v1/nodes/{}", escape(name))).await
}

pub(super) async fn change(client: &Client, name: &str, update: &NodeUpdate) -> Result<NodeInfo, ApiError> {
    client.patch(&format!("/v1/nodes/{}", escape(name)), update).await
}

async fn cordon(client: &Client, nodes: &[String], cordoned: bool) -> Result<ExitCode, ApiError> {
    let update = NodeUpdate {
        cordoned: Some(cordoned),
        ..NodeUpdate::default()
    };
    for_each(nodes, async |name| {
        let info = change(client, name, &update).await?;
        print(&format!("{}\n", info.name))
    })
    .await
}

/// `Healthy 20 hours (drained,cordoned)`.
fn health(node: &NodeInfo, now: Timestamp) -> String {
    let mut text = match node.health.as_str() {
        "healthy" => "Healthy".to_owned(),
        "offline" => "Offline".to_owned(),
        other => other.to_owned(),
    };
    if let Some(since) = node.health_since {
        text.push(' ');
        text.push_str(&output::span(now.as_second() - since.as_second()));
    }
    let marks: Vec<&str> = [(node.drained, "drained"), (node.cordoned, "cordoned")]
        .into_iter()
        .filter_map(|(set, word)| set.then_some(word))
        .collect();
    if !marks.is_empty() {
        text.push_str(&format!(" ({})", marks.join(",")));
    }
    text
}

pub(super) fn row(node: &NodeInfo, now: Timestamp) -> Vec<String> {
    let used = node.capacity.saturating_sub(node.free);
    let percent = (u128::from(used) * 100)
        .checked_div(u128::from(node.capacity))
        .map_or_else(|| "-".to_owned(), |p| format!("{p}%"));
    vec![
        node.name.clone(),
        node.address.clone(),
        health(node, now),
        match node.voter {
            Some(true) => "voter",
            Some(false) => "learner",
            None => "-",
        }
        .to_owned(),
        format!("M: {}, R: {}", node.masters, node.replicas),
        output::bytes(node.capacity),
        percent,
        node.version.clone(),
    ]
}
