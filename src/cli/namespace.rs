//! `storageos namespace …`

use super::args::NamespaceVerb;
use super::{for_each, output, print, volume::labels};
use crate::api::types::{NamespaceCreate, NamespaceInfo};
use crate::api::{ApiError, Client, escape};
use std::process::ExitCode;

pub(super) async fn run(client: &Client, verb: NamespaceVerb) -> Result<ExitCode, ApiError> {
    match verb {
        NamespaceVerb::Create {
            display_name,
            description,
            label,
            name,
        } => {
            let create = NamespaceCreate {
                name,
                display_name,
                description,
                labels: labels(&label)?,
            };
            let made: NamespaceInfo = client.post("/v1/namespaces", &create).await?;
            print(&format!("{}\n", made.name))?;
        }
        NamespaceVerb::Ls(options) => {
            let all: Vec<NamespaceInfo> = client.get("/v1/namespaces").await?;
            if options.quiet {
                print(&all.iter().map(|n| n.name.clone() + "\n").collect::<String>())?;
            } else {
                print(&output::list(
                    &options.format,
                    &["NAME", "DISPLAY NAME", "VOLUMES", "DESCRIPTION"],
                    &all,
                    |n| {
                        vec![
                            n.name.clone(),
                            n.display_name.clone(),
                            n.volumes.to_string(),
                            n.description.clone(),
                        ]
                    },
                )?)?;
            }
        }
        NamespaceVerb::Inspect { namespaces } => {
            let mut found: Vec<NamespaceInfo> = Vec::new();
            let code = for_each(&namespaces, async |name| {
                found.push(client.get(&format!("/v1/namespaces/{}", escape(name))).await?);
                Ok(())
            })
            .await?;
            print(&output::json(&found)?)?;
            return Ok(code);
        }
        NamespaceVerb::Rm { namespaces } => {
            return for_each(&namespaces, async |name| {
                client.delete(&format!("/v1/namespaces/{}", escape(name))).await?;
                print(&format!("{name}\n"))
            })
            .await;
        }
    }
    Ok(ExitCode::SUCCESS)
}
