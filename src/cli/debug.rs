//! `storageos debug …`: reads files, asks no daemon.

use super::args::{DebugCommand, DebugVerb};
use super::{output, print};
use crate::api::{ApiError, Code};
use crate::block::CopyStore;
use std::process::ExitCode;

pub(super) fn run(command: &DebugCommand) -> Result<ExitCode, ApiError> {
    match &command.verb {
        DebugVerb::Dump { directory } => {
            let copy = CopyStore::describe(directory)
                .map_err(|e| ApiError::new(Code::Failed, format!("{}: {e}", directory.display())))?;
            let described = serde_json::json!({
                "volume": copy.volume,
                "epoch": copy.epoch,
                "blocks": copy.blocks,
                "bytes": copy.blocks * crate::block::BLOCK_SIZE as u64,
                "clean": copy.clean,
                "hotExtents": copy.hot,
                "allocatedExtents": copy.allocated_extents,
            });
            print(&output::json(&described)?)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
