//! `storageos node drain` and `undrain`: gives the order, then waits until the nodes are empty or it is known that they will not be.
//!
//! The order is the node's record; the moving is the controller's, and goes on whether this command waits or not.

use super::mount::parse_time;
use super::{for_each, node, print};
use crate::api::types::{DrainInfo, NodeUpdate};
use crate::api::{ApiError, Client, Code, escape};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Between two looks at how far it is.
const LOOK: Duration = Duration::from_millis(500);
/// Looks in a row that must find nothing but stuck copies: a node may just be starting.
const CERTAIN: u32 = 4;

/// Drains nodes; all get the order before the first is waited for.
pub(super) async fn drain(
    client: &Client,
    nodes: &[String],
    no_wait: bool,
    timeout: Option<&str>,
) -> Result<ExitCode, ApiError> {
    let limit = timeout.map(parse_time).transpose()?;
    let deadline = limit.map(|limit| Instant::now() + limit);
    let mut ordered = Vec::new();
    let refused = order(client, nodes, true, async |name| {
        ordered.push(name);
        Ok(())
    })
    .await?;
    if no_wait {
        for name in &ordered {
            print(&format!("{name}\n"))?;
        }
        return Ok(refused);
    }
    let waited = for_each(&ordered, async |name| {
        let end = wait(client, name, deadline).await?;
        print(&format!("{name}\n"))?;
        eprintln!("{}", safe(&end));
        Ok(())
    })
    .await?;
    Ok(if refused == ExitCode::SUCCESS { waited } else { refused })
}

/// Takes the order back.
pub(super) async fn undrain(client: &Client, nodes: &[String]) -> Result<ExitCode, ApiError> {
    order(client, nodes, false, async |name| print(&format!("{name}\n"))).await
}

async fn order(
    client: &Client,
    nodes: &[String],
    drained: bool,
    mut done: impl AsyncFnMut(String) -> Result<(), ApiError>,
) -> Result<ExitCode, ApiError> {
    let update = NodeUpdate {
        drained: Some(drained),
        ..NodeUpdate::default()
    };
    for_each(nodes, async |name| {
        let info = node::change(client, name, &update).await?;
        done(info.name).await
    })
    .await
}

/// Returns when the node is empty.
async fn wait(client: &Client, name: &str, deadline: Option<Instant>) -> Result<DrainInfo, ApiError> {
    let mut stuck = 0;
    loop {
        let now: DrainInfo = client.get(&format!("/v1/nodes/{}/drain", escape(name))).await?;
        if now.empty {
            return Ok(now);
        }
        if !now.drained {
            return Err(ApiError::conflict(format!("node {name} was undrained meanwhile")));
        }
        stuck = if now.remaining.iter().all(|copy| copy.stuck) {
            stuck + 1
        } else {
            0
        };
        if stuck >= CERTAIN {
            return Err(unfinished(&now, Code::Conflict, "cannot be emptied"));
        }
        if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
            return Err(unfinished(&now, Code::Failed, "is not empty yet"));
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// That the node may be stopped, and what stopping it does.
fn safe(node: &DrainInfo) -> String {
    let mut text = format!("node {} holds no copies any more: it is safe to stop it", node.name);
    if !node.mounts.is_empty() {
        text.push_str(&format!(
            "\n  it has {} mounted, which ends with it; mount elsewhere first",
            node.mounts.join(", ")
        ));
    }
    text
}

/// Which volumes are left, and why.
fn unfinished(node: &DrainInfo, code: Code, what: &str) -> ApiError {
    let count = node.remaining.len();
    let copies = if count == 1 { "copy" } else { "copies" };
    let mut hint: Vec<String> = node
        .remaining
        .iter()
        .map(|copy| {
            let part = if copy.master { "master" } else { "replica" };
            format!("{} ({part}): {}", copy.volume, copy.message)
        })
        .collect();
    hint.push(if code == Code::Conflict {
        "add a node, uncordon one, or ask for fewer replicas; the draining goes on by itself then".to_owned()
    } else {
        "the draining goes on; see it with: storageos node drain or storageos volume ls".to_owned()
    });
    hint.push(format!(
        "take the order back with: storageos node undrain {}",
        node.name
    ));
    ApiError::new(code, format!("node {} {what}: {count} {copies} left on it", node.name)).hint(hint.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::types::RemainingCopy;

    #[test]
    fn the_end_of_a_drain_says_what_to_do() {
        let mut node = DrainInfo {
            name: "n1".into(),
            drained: true,
            empty: true,
            remaining: vec![],
            mounts: vec![],
        };
        assert_eq!(safe(&node), "node n1 holds no copies any more: it is safe to stop it");
        node.mounts.push("default/v".into());
        assert!(safe(&node).contains("default/v mounted"));
        node.remaining.push(RemainingCopy {
            volume: "default/v".into(),
            master: true,
            stuck: true,
            message: "no other node can take it".into(),
        });
        let error = unfinished(&node, Code::Conflict, "cannot be emptied");
        assert_eq!(error.message, "node n1 cannot be emptied: 1 copy left on it");
        let hint = error.hint.unwrap();
        assert!(
            hint.starts_with("default/v (master): no other node can take it\n"),
            "{hint}"
        );
        assert!(hint.ends_with("storageos node undrain n1"), "{hint}");
    }
}
