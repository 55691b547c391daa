//! `storageos cluster client …`, and the file that a client proves itself with.

use super::args::ClientVerb;
use super::token::parse_life;
use super::{for_each, output, print, text_of};
use crate::api::types::{ClientCreate, ClientInfo, ClientMade};
use crate::api::{ApiError, Client, Code, escape};
use crate::trust::{ClientCredentials, Key};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use std::fmt;
use std::fs::File;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// More than such a file has.
const LONGEST: u64 = 64 << 10;

const COLUMNS: [&str; 4] = ["ID", "NAME", "CREATED", "EXPIRES"];

pub(super) async fn run(client: &Client, verb: ClientVerb) -> Result<ExitCode, ApiError> {
    match verb {
        ClientVerb::Create { ttl, output, name } => {
            let life = parse_life(&ttl)?.as_secs();
            create(client, life, output, &name).await?;
        }
        ClientVerb::Ls(options) => {
            let clients: Vec<ClientInfo> = client.get("/v1/cluster/clients").await?;
            if options.quiet {
                print(&clients.iter().map(|c| c.id.clone() + "\n").collect::<String>())?;
            } else {
                print(&output::list(&options.format, &COLUMNS, &clients, row)?)?;
            }
        }
        ClientVerb::Rm { ids } => {
            return for_each(&ids, async |id| {
                client.delete(&format!("/v1/cluster/clients/{}", escape(id))).await?;
                print(&format!("{id}\n"))
            })
            .await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(client: &ClientInfo) -> Vec<String> {
    vec![
        client.id.clone(),
        client.name.clone(),
        client.created_at.to_string(),
        client.expires_at.to_string(),
    ]
}

/// Makes a client. The file is made first: it would be a pity about a certificate that cannot be kept.
async fn create(client: &Client, ttl_seconds: u64, output: Option<PathBuf>, name: &str) -> Result<(), ApiError> {
    let path = output.unwrap_or_else(|| PathBuf::from(format!("{name}.pem")));
    let failed = |why: &dyn fmt::Display| ApiError::new(Code::Failed, format!("{}: {why}", path.display()));
    let file = if path.as_os_str() == "-" {
        None
    } else {
        let opened = File::options().write(true).create_new(true).mode(0o600).open(&path);
        Some(opened.map_err(|error| failed(&error))?)
    };
    let made = ask(client, ttl_seconds, name).await;
    let Some(mut file) = file else {
        return print(&made?.text());
    };
    let written = made.and_then(|made| {
        let kept = file.write_all(made.text().as_bytes()).and_then(|()| file.sync_all());
        kept.map(|()| made).map_err(|error| failed(&error))
    });
    match written {
        Ok(made) => {
            print(&format!("{}\n", path.display()))?;
            eprintln!(
                "client {} may use the API over the network until {}; keep the file secret",
                made.client, made.expires
            );
            Ok(())
        }
        Err(error) => {
            // Empty or in part: of no use.
            let _ = std::fs::remove_file(&path);
            Err(error)
        }
    }
}

async fn ask(client: &Client, ttl_seconds: u64, name: &str) -> Result<ClientCredentials, ApiError> {
    let unreadable = |why: &dyn fmt::Display| ApiError::internal(format!("the daemon's answer cannot be read: {why}"));
    let key = Key::generate().map_err(|error| ApiError::internal(error.to_string()))?;
    let wanted = ClientCreate {
        name: name.to_owned(),
        public_key: STANDARD.encode(key.public()),
        ttl_seconds,
    };
    let made: ClientMade = client.post("/v1/cluster/clients", &wanted).await?;
    let der = |text: &str| STANDARD.decode(text).map_err(|error| unreadable(&error));
    let id = made.id.parse().map_err(|error| unreadable(&error))?;
    Ok(ClientCredentials::new(
        (id, name.to_owned()),
        (made.cluster, der(&made.authority)?),
        (der(&made.certificate)?, made.expires_at),
        &key,
    ))
}

/// Reads the file of a client.
pub(super) fn credentials(path: &Path) -> Result<ClientCredentials, ApiError> {
    let failed = |why: &dyn fmt::Display| {
        ApiError::invalid(format!("client certificate {}: {why}", path.display()))
            .hint("make one on a node of the cluster: storageos cluster client create NAME")
    };
    let text = File::open(path).and_then(|file| text_of(file, LONGEST));
    let text = text.map_err(|error| failed(&error))?;
    ClientCredentials::parse(&text).map_err(|why| failed(&why))
}
