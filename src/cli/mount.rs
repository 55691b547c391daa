//! `storageos volume mount`: mounts in the caller's namespace and hands the descriptor to the daemon.

use crate::api::{ApiError, Client};
use std::path::Path;

pub(super) fn mount(
    client: &Client,
    volume: &str,
    directory: &Path,
    options: &str,
    timeout: &str,
) -> Result<(), ApiError> {
    let _ = (client, volume, directory, options, timeout);
    Err(ApiError::internal("unwired"))
}
