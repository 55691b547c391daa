//! `storageos node connectivity` and `storageos cluster connectivity`: who reaches whom, a line for each pair.

use super::args::ListOptions;
use super::{output, print};
use crate::api::types::Connectivity;
use crate::api::{ApiError, Client, Code};
use std::process::ExitCode;

pub(super) const COLUMNS: [&str; 6] = ["SOURCE", "NAME", "ADDRESS", "LATENCY", "STATUS", "MESSAGE"];

/// Prints the pairs of a route; exit code 1 if one of them is not well.
pub(super) async fn show(client: &Client, path: &str, list: &ListOptions) -> Result<ExitCode, ApiError> {
    let pairs: Vec<Connectivity> = client.get(path).await?;
    if list.quiet {
        let bad = pairs.iter().filter(|pair| pair.status != "ok");
        print(
            &bad.map(|pair| format!("{} {}\n", pair.source, pair.name))
                .collect::<String>(),
        )?;
    } else {
        print(&output::list(&list.format, &COLUMNS, &pairs, row)?)?;
    }
    Ok(if pairs.iter().all(|pair| pair.status == "ok") {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(Code::Failed.exit_code())
    })
}

pub(super) fn row(pair: &Connectivity) -> Vec<String> {
    let latency = pair.latency_micros.map_or_else(
        || "-".to_owned(),
        |micros| format!("{}.{:03} ms", micros / 1000, micros % 1000),
    );
    vec![
        pair.source.clone(),
        pair.name.clone(),
        pair.address.clone(),
        latency,
        pair.status.clone(),
        pair.message.clone(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_are_the_documented_ones() {
        let pair = |name: &str, latency_micros, status: &str, message: &str| Connectivity {
            source: "n1".into(),
            name: name.into(),
            address: "10.0.0.2:5703".into(),
            latency_micros,
            status: status.into(),
            message: message.into(),
        };
        let pairs = [pair("n2", Some(1234), "ok", ""), pair("n3", None, "failed", "refused")];
        assert_eq!(
            output::list(&output::Format::Table, &COLUMNS, &pairs, row).unwrap(),
            "SOURCE  NAME  ADDRESS        LATENCY   STATUS  MESSAGE\n\
             n1      n2    10.0.0.2:5703  1.234 ms  ok\n\
             n1      n3    10.0.0.2:5703  -         failed  refused\n"
        );
    }
}
