//! `storageos cluster token …`, and where a command gets its token from.

use super::args::{Secret, TokenOptions, TokenVerb};
use super::mount::in_units;
use super::{for_each, output, print, text_of};
use crate::api::types::{TokenCreate, TokenInfo, TokenMade};
use crate::api::{ApiError, Client, Code, escape};
use crate::node::TokenSource;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

/// More than a token has.
const LONGEST: u64 = 4096;

const COLUMNS: [&str; 5] = ["ID", "CREATED", "EXPIRES", "USES", "USED BY"];

pub(super) async fn run(client: &Client, verb: TokenVerb) -> Result<ExitCode, ApiError> {
    match verb {
        TokenVerb::Create { ttl, uses } => {
            let wanted = TokenCreate {
                ttl_seconds: parse_life(&ttl)?.as_secs(),
                uses,
            };
            let made: TokenMade = client.post("/v1/cluster/tokens", &wanted).await?;
            print(&format!("{}\n", made.token))?;
            let nodes = if made.uses == 1 {
                "one node".to_owned()
            } else {
                format!("{} nodes", made.uses)
            };
            eprintln!(
                "token {} lets {nodes} join until {}; keep it secret",
                made.id, made.expires_at
            );
        }
        TokenVerb::Ls(options) => {
            let tokens: Vec<TokenInfo> = client.get("/v1/cluster/tokens").await?;
            if options.quiet {
                print(&tokens.iter().map(|t| t.id.clone() + "\n").collect::<String>())?;
            } else {
                print(&output::list(&options.format, &COLUMNS, &tokens, row)?)?;
            }
        }
        TokenVerb::Rm { ids } => {
            return for_each(&ids, async |id| {
                client.delete(&format!("/v1/cluster/tokens/{}", escape(id))).await?;
                print(&format!("{id}\n"))
            })
            .await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(token: &TokenInfo) -> Vec<String> {
    let used: Vec<&str> = token.used.iter().map(|used| used.node_name.as_str()).collect();
    vec![
        token.id.clone(),
        token.created_at.to_string(),
        token.expires_at.to_string(),
        format!("{}/{}", token.used.len(), token.uses),
        if used.is_empty() {
            "-".to_owned()
        } else {
            used.join(",")
        },
    ]
}

/// An empty variable of the environment is none.
fn given(token: Option<Secret>) -> Option<String> {
    token.map(|token| token.0).filter(|token| !token.is_empty())
}

/// Where the daemon finds its token. Standard input is read now.
pub(super) fn source(options: TokenOptions) -> Result<TokenSource, ApiError> {
    Ok(match (given(options.token), options.token_file) {
        (Some(token), _) => TokenSource::Text(token),
        (None, Some(path)) if path.as_os_str() == "-" => TokenSource::Text(from(Path::new("-"))?),
        (None, Some(path)) => TokenSource::File(path),
        (None, None) => TokenSource::None,
    })
}

/// The token's text, for a command that needs it now.
pub(super) fn read(options: TokenOptions) -> Result<Option<String>, ApiError> {
    match (given(options.token), options.token_file) {
        (Some(token), _) => Ok(Some(token)),
        (None, Some(path)) => from(&path).map(Some),
        (None, None) => Ok(None),
    }
}

fn from(path: &Path) -> Result<String, ApiError> {
    let read = if path.as_os_str() == "-" {
        text_of(std::io::stdin(), LONGEST)
    } else {
        std::fs::File::open(path).and_then(|file| text_of(file, LONGEST))
    };
    read.map_err(|error| ApiError::invalid(format!("token file {}: {error}", path.display())))
}

/// A time of seconds to years: `90s`, `30m`, `1h`, `7d`.
pub(super) fn parse_life(text: &str) -> Result<Duration, ApiError> {
    let units = [("s", 1), ("m", 60), ("h", 3600), ("d", 86400)].map(|(name, n)| (name, Duration::from_secs(n)));
    // Ten years: far from where adding to a date could overflow.
    let longest = Duration::from_secs(3650 * 86400);
    let life = in_units(text, &units).filter(|life| !life.is_zero() && *life <= longest);
    life.ok_or_else(|| {
        ApiError::new(
            Code::Usage,
            format!("{text:?} is not a time: expected as 30m, 1h or 7d, ten years at most"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lives_are_read_as_people_write_them() {
        for (text, seconds) in [("90s", 90), ("30m", 1800), ("1h", 3600), ("365d", 365 * 86400)] {
            assert_eq!(parse_life(text).unwrap(), Duration::from_secs(seconds));
        }
        for wrong in [
            "",
            "1",
            "h",
            "0d",
            "-1h",
            "3651d",
            "1w",
            "99999999999999999999d",
            "1h30m",
        ] {
            assert_eq!(parse_life(wrong).unwrap_err().code, Code::Usage, "{wrong}");
        }
    }
}
