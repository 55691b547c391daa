//! `storageos cluster diagnostics`: writes the archive for a bug report that the daemon made, and says which nodes are missing in it.

use super::print;
use crate::api::types::Manifest;
use crate::api::{ApiError, Client, Code};
use flate2::read::GzDecoder;
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Writes it to a file, `-` for standard output.
pub(super) async fn run(client: &Client, output: Option<PathBuf>) -> Result<ExitCode, ApiError> {
    let archive = client.get_bytes("/v1/cluster/diagnostics").await?;
    let manifest = manifest(&archive)
        .map_err(|error| ApiError::internal(format!("the daemon's archive cannot be read: {error}")))?;
    let file = output.unwrap_or_else(|| {
        let name = Timestamp::now().strftime("storageos-diagnostics-%Y%m%dT%H%M%SZ.tar.gz");
        name.to_string().into()
    });
    let written = if file.as_os_str() == "-" {
        io::stdout().lock().write_all(&archive)
    } else {
        write(&file, &archive)
    };
    written.map_err(|error| ApiError::new(Code::Failed, format!("{}: {error}", file.display())))?;
    for node in &manifest.nodes {
        if let Some(error) = &node.error {
            eprintln!("storageos: note: without node {}: {error}", node.name);
        }
    }
    if file.as_os_str() != "-" {
        print(&format!("{}\n", file.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// For its owner only: a report shows names and addresses.
fn write(file: &Path, archive: &[u8]) -> io::Result<()> {
    let mut file = File::options()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(file)?;
    if file.metadata()?.is_file() {
        file.set_permissions(PermissionsExt::from_mode(0o600))?;
    }
    file.write_all(archive)
}

/// The archive's first file.
fn manifest(archive: &[u8]) -> io::Result<Manifest> {
    let mut archive = tar::Archive::new(GzDecoder::new(archive));
    let mut entries = archive.entries()?;
    let first = entries.next().ok_or(io::ErrorKind::UnexpectedEof)??;
    let mut text = String::new();
    first.take(16 << 20).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
