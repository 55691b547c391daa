//! `storageos volume …`

use super::args::{CreateOptions, VolumeVerb};
use super::output::{self, Format};
use super::{for_each, mount, on_terminal, print, scrub, watch};
use crate::api::types::*;
use crate::api::{ApiError, Client, Code, escape};
use crate::volume::Size;
use std::collections::BTreeMap;
use std::process::ExitCode;

pub(super) const COLUMNS: [&str; 7] = [
    "NAMESPACE/NAME",
    "SIZE",
    "MOUNT",
    "SELECTOR",
    "STATUS",
    "REPLICAS",
    "LOCATION",
];

pub(super) async fn run(client: &Client, verb: VolumeVerb) -> Result<ExitCode, ApiError> {
    match verb {
        VolumeVerb::Create(options) => create(client, options).await?,
        VolumeVerb::Ls {
            list,
            selector,
            namespace,
        } => {
            let volumes = client.volumes(&VolumeFilter { namespace, selector }).await?;
            if list.quiet {
                print(&volumes.iter().map(|v| full_name(v) + "\n").collect::<String>())?;
            } else {
                print(&output::list(&list.format, &COLUMNS, &volumes, row)?)?;
            }
        }
        VolumeVerb::Inspect { volumes, namespace } => {
            let mut found: Vec<VolumeInfo> = Vec::new();
            let code = for_each(&volumes, async |name| {
                let name = Name::parse(name, namespace.as_deref())?;
                found.push(client.get(&name.path()).await?);
                Ok(())
            })
            .await?;
            print(&output::json(&found)?)?;
            return Ok(code);
        }
        VolumeVerb::Update {
            description,
            size,
            label_add,
            label_rm,
            force,
            volume,
        } => {
            let name = Name::parse(&volume, None)?;
            let update = VolumeUpdate {
                description,
                size: size.as_deref().map(bytes_of).transpose()?,
                label_add: labels(&label_add)?,
                label_remove: label_rm,
                force,
                epoch: None,
            };
            let changed: VolumeInfo = client.patch(&name.path(), &update).await?;
            print(&format!("{}\n", full_name(&changed)))?;
        }
        VolumeVerb::Rm {
            force,
            all,
            namespace,
            volumes,
        } => return remove(client, force, all, namespace, volumes).await,
        VolumeVerb::Mount {
            options,
            timeout,
            volume,
            directory,
        } => {
            let name = Name::parse(&volume, None)?;
            mount::mount(client, &name.to_string(), &directory, &options, &timeout)?;
            print(&format!("{name}\n"))?;
        }
        VolumeVerb::Unmount { force, volume } => {
            let name = Name::parse(&volume, None)?;
            let path = format!("{}/unmount?force={force}", name.path());
            let _: serde_json::Value = client.post(&path, &serde_json::json!({})).await?;
            print(&format!("{name}\n"))?;
        }
        VolumeVerb::Promote {
            copy,
            accept_data_loss,
            volume,
        } => {
            let request = PromoteRequest { copy, accept_data_loss };
            let path = format!("{}/promote", Name::parse(&volume, None)?.path());
            let done: Promotion = client.post(&path, &request).await?;
            eprintln!("storageos: note: {}", done.explanation);
            print(&format!("{}\n", done.volume))?;
        }
        VolumeVerb::Scrub { format, volume } => {
            return scrub::scrub(client, &Name::parse(&volume, None)?, &format).await;
        }
        VolumeVerb::Watch { timeout, volume } => {
            let timeout = timeout.as_deref().map(mount::parse_time).transpose()?;
            return watch::watch(client, &Name::parse(&volume, None)?, timeout).await;
        }
        VolumeVerb::Check { format, volume } => {
            return check(client, &Name::parse(&volume, None)?, &format).await;
        }
        VolumeVerb::Verify { deep, format, volume } => {
            let name = Name::parse(&volume, None)?;
            return verify(client, &name, deep, &format).await;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A volume's name as typed: `name` or `namespace/name`. The daemon checks what is in it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    namespace: String,
    name: String,
}

impl Name {
    /// `namespace` is that of `--namespace`.
    pub(super) fn parse(text: &str, namespace: Option<&str>) -> Result<Self, ApiError> {
        let Some((before, name)) = text.split_once('/') else {
            return Ok(Self {
                namespace: namespace.unwrap_or("default").to_owned(),
                name: text.to_owned(),
            });
        };
        if namespace.is_some_and(|n| n != before) {
            return Err(ApiError::new(
                Code::Usage,
                format!("{text} is in namespace {before}, --namespace says another"),
            ));
        }
        if before.is_empty() || name.is_empty() || name.contains('/') {
            return Err(ApiError::invalid(format!(
                "{text:?} is not a volume's name: expected NAME or NAMESPACE/NAME, with one / at most"
            )));
        }
        Ok(Self {
            namespace: before.to_owned(),
            name: name.to_owned(),
        })
    }

    pub(super) fn path(&self) -> String {
        format!("/v1/volumes/{}/{}", escape(&self.namespace), escape(&self.name))
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// `--label KEY=VALUE`, repeated. Two values for a key are a mistake.
pub(super) fn labels(texts: &[String]) -> Result<BTreeMap<String, String>, ApiError> {
    let mut labels = BTreeMap::new();
    for text in texts {
        let Some((key, value)) = text.split_once('=') else {
            return Err(ApiError::new(
                Code::Usage,
                format!("label {text:?} has no value: expected KEY=VALUE"),
            ));
        };
        if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(ApiError::new(Code::Usage, format!("label {key} is given twice")));
        }
    }
    Ok(labels)
}

/// A size as users write it.
fn bytes_of(text: &str) -> Result<u64, ApiError> {
    let size: Size = text
        .parse()
        .map_err(|e: crate::volume::SizeError| ApiError::invalid(e.to_string()))?;
    Ok(size.bytes())
}

async fn create(client: &Client, options: CreateOptions) -> Result<(), ApiError> {
    if let Some(fstype) = &options.fstype {
        eprintln!(
            "storageos: note: --fstype {fstype} is ignored: a volume is a directory tree and needs no other file system"
        );
    }
    let name = Name::parse(&options.volume, options.namespace.as_deref())?;
    let create = VolumeCreate {
        size: bytes_of(&options.size)?,
        namespace: name.namespace,
        name: name.name,
        description: options.description,
        labels: labels(&options.label)?,
        node_selector: options.node_selector,
    };
    let made: VolumeInfo = client.post("/v1/volumes", &create).await?;
    print(&format!("{}\n", full_name(&made)))
}

async fn remove(
    client: &Client,
    force: bool,
    all: bool,
    namespace: Option<String>,
    volumes: Vec<String>,
) -> Result<ExitCode, ApiError> {
    let names = if all {
        let filter = VolumeFilter {
            namespace: namespace.clone(),
            selector: None,
        };
        client.volumes(&filter).await?.iter().map(full_name).collect()
    } else {
        volumes
    };
    for_each(&names, async |name| {
        let name = Name::parse(name, namespace.as_deref())?;
        client.delete(&format!("{}?force={force}", name.path())).await?;
        print(&format!("{name}\n"))
    })
    .await
}

/// Exit code 1 says that something was found; whatever kept a command from looking has another one.
fn not_done(mut error: ApiError) -> ApiError {
    if error.code == Code::Failed {
        error.code = Code::Internal;
    }
    error
}

async fn verify(client: &Client, name: &Name, deep: bool, format: &Format) -> Result<ExitCode, ApiError> {
    if on_terminal() {
        eprintln!("comparing the copies of {name}…");
    }
    let report: VerifyReport = client
        .post(&format!("{}/verify", name.path()), &VerifyRequest { deep })
        .await
        .map_err(not_done)?;
    print(&match format {
        Format::Json => output::json(&report)?,
        _ => output::list(format, &["COPY", "ROLE", "RESULT"], &report.copies, verified_row)?,
    })?;
    let differ = report
        .copies
        .iter()
        .any(|c| c.result == "differs" || c.result == "corrupt");
    let unchecked = report.copies.iter().any(|c| c.result == "unchecked");
    Ok(ExitCode::from(if differ {
        Code::Failed.exit_code()
    } else if unchecked {
        Code::Unavailable.exit_code()
    } else {
        0
    }))
}

async fn check(client: &Client, name: &Name, format: &Format) -> Result<ExitCode, ApiError> {
    if on_terminal() {
        eprintln!("checking the file system of {name}…");
    }
    let found: VolumeCheck = client
        .post(&format!("{}/check", name.path()), &CheckRequest {})
        .await
        .map_err(not_done)?;
    print(&match format {
        Format::Table => checked(&found),
        Format::Json => output::json(&found)?,
        Format::Template(_) => output::list(format, &[], std::slice::from_ref(&found), |_| Vec::new())?,
    })?;
    Ok(ExitCode::from(if found.problems.is_empty() {
        0
    } else {
        Code::Failed.exit_code()
    }))
}

/// What a check found, for people.
pub(super) fn checked(found: &VolumeCheck) -> String {
    let count = found.problems.len() as u64 + found.unlisted_problems;
    let count = match count {
        0 => "no problem".to_owned(),
        1 => "1 problem".to_owned(),
        more => format!("{more} problems"),
    };
    let inodes = match found.inodes {
        1 => "1 inode".to_owned(),
        more => format!("{more} inodes"),
    };
    let mut text = format!(
        "{}: {count} found, {inodes}, {} used of {} ({} on {})\n",
        found.volume,
        output::bytes(found.used_bytes),
        output::bytes(found.capacity),
        if found.mounted {
            "mounted"
        } else {
            "not mounted, checked"
        },
        found.node_name,
    );
    for problem in &found.problems {
        text.push_str(&format!("  {problem}\n"));
    }
    if found.unlisted_problems > 0 {
        text.push_str(&format!("  and {} more\n", found.unlisted_problems));
    }
    text
}

/// The columns of one copy; which extents differ are named, a few in full.
pub(super) fn verified_row(copy: &VerifiedCopy) -> Vec<String> {
    const SHOWN: usize = 16;
    let listed = |numbers: &[u64]| {
        let mut text = numbers
            .iter()
            .take(SHOWN)
            .map(u64::to_string)
            .collect::<Vec<_>>()
            .join(",");
        if numbers.len() > SHOWN {
            text.push_str(&format!(" and {} more", numbers.len() - SHOWN));
        }
        text
    };
    let mut findings = Vec::new();
    if !copy.differing_extents.is_empty() {
        findings.push(format!("extents that differ: {}", listed(&copy.differing_extents)));
    }
    if !copy.corrupt_blocks.is_empty() {
        let mut extents: Vec<u64> = copy
            .corrupt_blocks
            .iter()
            .map(|b| b / crate::block::EXTENT_BLOCKS)
            .collect();
        extents.dedup();
        findings.push(format!(
            "{} blocks do not match their sums, in extents: {}",
            copy.corrupt_blocks.len(),
            listed(&extents)
        ));
    }
    findings.extend(copy.error.clone());
    let result = if findings.is_empty() {
        copy.result.clone()
    } else {
        format!("{} ({})", copy.result, findings.join("; "))
    };
    vec![
        copy.node_name.clone(),
        (if copy.master { "master" } else { "replica" }).to_owned(),
        result,
    ]
}

fn full_name(volume: &VolumeInfo) -> String {
    format!("{}/{}", volume.namespace, volume.name)
}

pub(super) fn row(volume: &VolumeInfo) -> Vec<String> {
    let healthy = volume.replicas.iter().filter(|r| r.health == "healthy").count();
    let mut status = volume.status.clone();
    // The slowest sync is the one that people wait for.
    let syncs = volume.replicas.iter().filter_map(|r| r.sync.as_ref());
    let slowest = syncs.min_by_key(|s| (watch::percent(s.bytes_done, s.bytes_total), s.seconds_left));
    if let Some(sync) = slowest {
        let percent = watch::percent(sync.bytes_done, sync.bytes_total);
        let left = sync.seconds_left.and_then(|left| i64::try_from(left).ok());
        let left = left
            .map(|left| format!(", {} left", output::span(left)))
            .unwrap_or_default();
        status.push_str(&format!(" (syncing {percent}%{left})"));
    }
    vec![
        full_name(volume),
        output::bytes(volume.size),
        volume.mounted_by.clone(),
        volume.node_selector.clone(),
        status,
        format!("{healthy}/{}", volume.desired_replicas),
        volume
            .master
            .as_ref()
            .map_or_else(|| "-".to_owned(), |m| format!("{} ({})", m.node_name, m.health)),
    ]
}
