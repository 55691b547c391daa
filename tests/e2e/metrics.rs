//! What a cluster tells of itself to machines: metrics, health, the archive for a bug report, logs as JSON.

use crate::harness::{Cluster, Node, Writer, bash, eventually};
use flate2::read::GzDecoder;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// How long an answer may take; the daemon itself gives up sooner.
const ANSWER: Duration = Duration::from_secs(60);

/// The status and body of a request on a stream, which the server closes.
fn request(mut stream: impl Read + Write, method: &str, path: &str) -> std::io::Result<(u16, String)> {
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nhost: storageos\r\nconnection: close\r\n\r\n"
    )?;
    let mut text = Vec::new();
    stream.read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let (head, body) = text.split_once("\r\n\r\n").ok_or(std::io::ErrorKind::InvalidData)?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let body = if head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
        unchunked(body)
    } else {
        body.to_owned()
    };
    Ok((status.ok_or(std::io::ErrorKind::InvalidData)?, body))
}

fn unchunked(mut rest: &str) -> String {
    let mut body = String::new();
    while let Some((size, more)) = rest.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        body.push_str(&more[..size]);
        rest = more[size..].trim_start_matches("\r\n");
    }
    body
}

fn get(node: &Node, path: &str) -> (u16, String) {
    let stream = UnixStream::connect(node.socket()).unwrap();
    stream.set_read_timeout(Some(ANSWER)).unwrap();
    request(stream, "GET", path).unwrap()
}

/// One scrape: samples by their name with labels.
#[derive(Clone, Debug, Default)]
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(node: &Node) -> Self {
        let (status, text) = get(node, "/metrics");
        assert_eq!(status, 200, "{text}");
        Self::parse(&text)
    }

    /// The first scrape that meets a condition: a node's view is a moment behind.
    #[track_caller]
    fn until(node: &Node, what: &str, condition: impl Fn(&Self) -> bool) -> Self {
        eventually(what, || Some(Self::of(node)).filter(&condition))
    }

    fn parse(text: &str) -> Self {
        let samples = text.lines().filter(|line| !line.starts_with('#')).map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("not a sample: {line}"));
            (
                name.to_owned(),
                value.parse().unwrap_or_else(|_| panic!("no number: {line}")),
            )
        });
        Self(samples.collect())
    }

    /// The sum of the samples of a metric that have all of these labels.
    fn sum(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let found: Vec<f64> = self
            .0
            .iter()
            .filter(|(sample, _)| {
                let (of, rest) = sample.split_once('{').unwrap_or((sample, ""));
                of == name && labels.iter().all(|label| rest.contains(label))
            })
            .map(|(_, value)| *value)
            .collect();
        (!found.is_empty()).then(|| found.iter().sum())
    }

    /// The same, which must be there.
    #[track_caller]
    fn get(&self, name: &str, labels: &[&str]) -> f64 {
        self.sum(name, labels)
            .unwrap_or_else(|| panic!("{name} {labels:?} is not among {:#?}", self.0.keys()))
    }

    /// The names of all samples.
    fn names(&self) -> impl Iterator<Item = String> {
        self.0.keys().map(|sample| sample.split('{').next().unwrap().to_owned())
    }
}

/// Names of metrics in an expression of PromQL.
fn names_in(expression: &str) -> BTreeSet<String> {
    expression
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("storageos_") || word.starts_with("process_"))
        .map(str::to_owned)
        .collect()
}

/// Every `expr` in the dashboard, and the queries of its variables.
fn expressions_of_dashboard(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if ["expr", "query", "definition"].contains(&name.as_str()) => {
                        found.push(text.clone());
                    }
                    value => expressions_of_dashboard(value, found),
                }
            }
        }
        Value::Array(values) => values.iter().for_each(|value| expressions_of_dashboard(value, found)),
        _ => {}
    }
}

/// The metrics that the examples use; `up` is Prometheus's own.
fn names_in_examples() -> BTreeSet<String> {
    let dashboard: Value =
        serde_json::from_str(include_str!("../../examples/monitoring/grafana-dashboard.json")).unwrap();
    let mut expressions = Vec::new();
    expressions_of_dashboard(&dashboard, &mut expressions);
    assert!(expressions.len() > 30);
    let rules = yaml_rust2::YamlLoader::load_from_str(include_str!("../../examples/monitoring/alerts.yml")).unwrap();
    let mut alerts = BTreeSet::new();
    for group in rules[0]["groups"].as_vec().unwrap() {
        for rule in group["rules"].as_vec().unwrap() {
            assert!(alerts.insert(rule["alert"].as_str().unwrap().to_owned()));
            assert!(rule["annotations"]["summary"].as_str().is_some(), "{alerts:?}");
            assert!(rule["labels"]["severity"].as_str().is_some(), "{alerts:?}");
            expressions.push(rule["expr"].as_str().unwrap().to_owned());
        }
    }
    assert!(alerts.len() > 10);
    expressions.iter().flat_map(|expression| names_in(expression)).collect()
}

/// A node's address for metrics: its own host.
fn monitoring(node: &Node) -> String {
    let host = node.address.rsplit_once(':').unwrap().0;
    format!("{host}:5705")
}

fn with_monitoring(count: usize) -> Cluster {
    let mut cluster = Cluster::prepare(count, |_| Vec::new());
    for node in &mut cluster.nodes {
        node.extra = vec!["--metrics".into(), monitoring(node)];
    }
    for node in &mut cluster.nodes {
        node.start();
    }
    cluster.wait_for_live_nodes(count);
    cluster
}

#[test]
fn numbers_move_with_what_happens_and_the_examples_use_none_that_is_not_there() {
    let mut cluster = Cluster::start(3);
    cluster.create("data", 2);
    let mount = cluster.mount(0, "default/data");
    cluster.wait_for_copies("data", 3);
    let master = cluster.index(&cluster.master("data"));
    assert_eq!(master, 0, "the master comes to the mount");
    let volume = ["namespace=\"default\"", "volume=\"data\"", "node=\"n1\""];
    let before = Scrape::until(&cluster.nodes[0], "three copies in sync", |now| {
        now.sum("storageos_volume_copies", &["n1", "state=\"in_sync\""]) == Some(3.0)
    });
    assert_eq!(before.get("storageos_volume_mounted", &volume), 1.0);
    assert_eq!(before.get("storageos_volume_writable", &volume), 1.0);
    assert_eq!(before.get("storageos_volume_copies_wanted", &volume), 3.0);
    assert_eq!(before.get("storageos_control_voters", &[]), 3.0);
    assert_eq!(before.get("storageos_control_reachable", &[]), 1.0);
    assert_eq!(before.get("storageos_node_online", &[]), 3.0);
    assert!(before.get("storageos_node_lease_renewals_total", &[]) >= 1.0);
    let mut seen: BTreeSet<String> = before.names().collect();

    // Writes, flushes and reads.
    bash(&mount, "dd if=/dev/urandom of=f bs=64k count=32 conv=fsync status=none").ok();
    bash(&mount, "dd if=f of=/dev/null iflag=direct bs=64k status=none").ok();
    let written = 32.0 * 65536.0;
    let after = Scrape::of(&cluster.nodes[0]);
    let moved = |name: &str| after.get(name, &volume) - before.get(name, &volume);
    assert_eq!(moved("storageos_volume_frontend_write_bytes_total"), written);
    assert_eq!(moved("storageos_volume_frontend_read_bytes_total"), written);
    assert!(moved("storageos_volume_backend_write_bytes_total") >= written);
    // To two replicas.
    assert!(moved("storageos_volume_network_write_bytes_total") >= 2.0 * written);
    for name in [
        "storageos_volume_frontend_write_total",
        "storageos_volume_frontend_read_total",
        "storageos_volume_frontend_write_seconds_count",
        "storageos_volume_frontend_sync_seconds_count",
        "storageos_volume_backend_write_seconds_sum",
        "storageos_volume_backend_read_seconds_count",
        "storageos_volume_backend_flush_total",
        "storageos_volume_network_write_total",
        "storageos_volume_fuse_requests_total",
        "storageos_volume_utilisation_apparent_bytes",
        "storageos_volume_utilisation_actual_bytes",
    ] {
        assert!(moved(name) > 0.0, "{name}");
    }
    for name in ["read", "write", "sync"] {
        assert_eq!(moved(&format!("storageos_volume_frontend_{name}_error_total")), 0.0);
        let of = |what: &str| after.get(&format!("storageos_volume_frontend_{name}_seconds_{what}"), &["n1"]);
        assert_eq!(
            of("count"),
            after.get(
                &format!("storageos_volume_frontend_{name}_seconds_bucket"),
                &["n1", "le=\"+Inf\""]
            )
        );
    }

    // A replica is killed, and synced when it is back.
    let lost = 2;
    cluster.nodes[lost].kill();
    let writer = Writer::start(&mount.join("w"));
    writer.goes_on(20);
    eventually("the loss is told", || {
        let now = Scrape::of(&cluster.nodes[0]);
        seen.extend(now.names());
        let in_sync = now.get("storageos_volume_copies", &["n1", "state=\"in_sync\""]);
        let healthy = now.get("storageos_volume_health", &["n1", "health=\"healthy\""]);
        let drops = now.get("storageos_volume_replica_drops_total", &volume);
        let online = now.get("storageos_node_online", &["peer=\"n3\""]);
        let events = now.get("storageos_events_total", &["kind=\"nodeLost\""]);
        (in_sync == 2.0 && healthy == 0.0 && drops == 1.0 && online == 0.0 && events >= 1.0).then_some(())
    });
    assert!(Scrape::of(&cluster.nodes[0]).get("storageos_volume_epoch_changes_total", &volume) >= 1.0);
    // Enough to be seen under way.
    bash(
        &mount,
        "dd if=/dev/urandom of=big bs=1M count=64 conv=fsync status=none",
    )
    .ok();
    cluster.nodes[lost].spawn();
    eventually("the sync is told until it is done", || {
        let now = Scrape::of(&cluster.nodes[0]);
        seen.extend(now.names());
        let under_way = seen.contains("storageos_volume_sync_done_bytes");
        let done = now.get("storageos_volume_syncs_total", &volume) >= 1.0;
        let healthy = now.get("storageos_volume_health", &["n1", "health=\"healthy\""]) == 1.0;
        assert!(under_way || !done, "the sync was too quick to be seen");
        (done && healthy).then_some(())
    });
    writer.ends_well();
    let synced = Scrape::of(&cluster.nodes[0]);
    assert!(synced.get("storageos_volume_sync_sent_bytes_total", &volume) >= 64.0 * 1_048_576.0);
    assert_eq!(synced.sum("storageos_volume_sync_done_bytes", &volume), None);

    // Scrubs, and what only other nodes tell.
    cluster.cli(&["volume", "scrub", "data"]).ok();
    let scrubbed = Scrape::of(&cluster.nodes[0]);
    assert_eq!(scrubbed.get("storageos_volume_scrub_running", &volume), 0.0);
    assert!(scrubbed.get("storageos_volume_scrub_done_bytes", &volume) > 0.0);
    assert!(scrubbed.get("storageos_volume_scrub_finished_timestamp_seconds", &volume) > 1.6e9);
    seen.extend(scrubbed.names());
    let other = Scrape::until(&cluster.nodes[1], "another node tells of the volume, too", |now| {
        now.sum("storageos_volume_health", &["node=\"n2\"", "health=\"healthy\""]) == Some(1.0)
    });
    assert_eq!(
        other.get("storageos_node_volumes_total", &["volume_type=\"replica\""]),
        1.0
    );
    assert_eq!(other.sum("storageos_volume_backend_write_total", &[]), None);
    eventually("one node leads the control plane", || {
        let leads = |node: &Node| Scrape::of(node).get("storageos_control_leader", &[]);
        (cluster.nodes.iter().map(leads).sum::<f64>() == 1.0).then_some(())
    });

    let missing: Vec<_> = names_in_examples().difference(&seen).cloned().collect();
    assert!(missing.is_empty(), "used by the examples and not exported: {missing:?}");
    cluster.unmount(&mount);
    eventually("the unmounted volume has no mount", || {
        let now = Scrape::of(&cluster.nodes[0]);
        now.sum("storageos_volume_mounted", &[]).is_none().then_some(())
    });
}

#[test]
fn a_scrape_answers_while_writes_wait_and_says_so() {
    let mut cluster = Cluster::start(3);
    cluster.wait_for_voters(&["n1", "n2", "n3"]);
    cluster.create_with(
        "data",
        &[
            "storageos.com/replicas=2",
            "storageos.com/failure.mode=hard",
            "storageos.com/io.timeout=60m",
        ],
    );
    let mount = cluster.mount(0, "default/data");
    cluster.wait_for_copies("data", 3);
    let volume = ["volume=\"data\"", "node=\"n1\""];
    let writer = Writer::start(&mount.join("w"));
    writer.goes_on(5);
    cluster.nodes[2].kill();
    let told = Scrape::until(&cluster.nodes[0], "writes wait", |now| {
        now.sum("storageos_volume_writable", &volume) == Some(0.0)
    });
    assert_eq!(told.get("storageos_control_reachable", &[]), 1.0);
    // The node itself does what it can.
    assert_eq!(get(&cluster.nodes[0], "/readyz").0, 200);
    cluster.nodes[2].spawn();
    writer.goes_on(5);
    Scrape::until(&cluster.nodes[0], "writes go on", |now| {
        now.sum("storageos_volume_writable", &volume) == Some(1.0)
    });
    writer.ends_well();
    cluster.unmount(&mount);
}

#[test]
fn corruption_that_a_scrub_repairs_is_counted() {
    let mut cluster = Cluster::start(2);
    cluster.create("data", 1);
    let mount = cluster.mount(0, "default/data");
    bash(&mount, "dd if=/dev/urandom of=f bs=1M count=4 conv=fsync status=none").ok();
    cluster.unmount(&mount);
    let id = cluster.inspect("data")["id"].as_str().unwrap().to_owned();
    let replica = 1 - cluster.index(&cluster.master("data"));
    // One bit of every block that is not empty.
    let data = cluster.nodes[replica].directory.join("volumes").join(id).join("data");
    let flip = format!(
        "import os\nf = open({data:?}, 'r+b')\nsize = os.path.getsize({data:?})\n\
         for at in range(0, size, 4096):\n  f.seek(at)\n  b = f.read(1)\n  f.seek(at + 1)\n  c = f.read(4095)\n  \
         if b.strip(b'\\0') or c.strip(b'\\0'):\n    f.seek(at)\n    f.write(bytes([b[0] ^ 1]))\n    break\nf.close()",
    );
    bash(
        &cluster.directory,
        &format!("python3 -c \"{}\"", flip.replace('"', "'")),
    )
    .ok();
    cluster.cli(&["volume", "scrub", "data"]).ok();
    let master = cluster.index(&cluster.master("data"));
    let now = Scrape::of(&cluster.nodes[master]);
    assert!(now.get("storageos_volume_repaired_blocks_total", &[]) >= 1.0);
}

#[test]
fn the_tcp_address_serves_three_routes_and_nothing_else() {
    let cluster = with_monitoring(1);
    let node = &cluster.nodes[0];
    let ask = |method: &str, path: &str| {
        let stream = TcpStream::connect(monitoring(node)).unwrap();
        stream.set_read_timeout(Some(ANSWER)).unwrap();
        request(stream, method, path).unwrap()
    };
    let (status, text) = ask("GET", "/metrics");
    assert_eq!(status, 200);
    let scrape = Scrape::parse(&text);
    assert_eq!(scrape.get("storageos_build_info", &["version="]), 1.0);
    assert!(scrape.get("process_resident_memory_bytes", &[]) > 1e6);
    assert_eq!(ask("GET", "/healthz"), (200, "ok\n".to_owned()));
    eventually("the node is ready", || (ask("GET", "/readyz").0 == 200).then_some(()));
    for path in [
        "/v1",
        "/v1/volumes",
        "/v1/cluster/export",
        "/v1/cluster/diagnostics",
        "/",
        "/metrics/x",
    ] {
        assert_eq!(ask("GET", path).0, 404, "{path}");
    }
    for (method, path) in [("POST", "/metrics"), ("DELETE", "/readyz"), ("PUT", "/healthz")] {
        assert_eq!(ask(method, path).0, 400, "{method} {path}");
    }
    assert_eq!(ask("POST", "/v1/cluster/init").0, 404);

    // An address that is taken is an error, and without the option nothing listens.
    let mut second = Cluster::prepare(1, |_| vec!["--metrics".into(), monitoring(node)]);
    second.nodes[0].spawn();
    eventually("a daemon without its address for metrics ends", || {
        second.nodes[0]
            .whole_log()
            .contains("cannot serve metrics on")
            .then_some(())
    });
    let plain = Cluster::start(1);
    assert!(TcpStream::connect(monitoring(&plain.nodes[0])).is_err());
}

#[test]
fn a_node_is_not_ready_while_the_control_planes_majority_is_gone() {
    let cluster = with_monitoring(3);
    cluster.wait_for_voters(&["n1", "n2", "n3"]);
    let ready = |node: &Node| {
        let (status, body) = get(node, "/readyz");
        let body: Value = serde_json::from_str(&body).unwrap_or_else(|_| panic!("{body}"));
        assert_eq!(body["ready"] == true, status == 200, "{body}");
        (status, body["reasons"].to_string())
    };
    for node in &cluster.nodes {
        eventually("all are ready", || (ready(node).0 == 200).then_some(()));
    }
    // Together: the voters must not follow one death after another.
    cluster.nodes[1].signal("-STOP");
    cluster.nodes[2].signal("-STOP");
    let reasons = eventually("the rest is not ready", || {
        let (status, reasons) = ready(&cluster.nodes[0]);
        (status == 503).then_some(reasons)
    });
    assert!(reasons.contains("control plane"), "{reasons}");
    assert_eq!(get(&cluster.nodes[0], "/healthz"), (200, "ok\n".to_owned()));
    let scrape = Scrape::of(&cluster.nodes[0]);
    assert_eq!(scrape.get("storageos_control_reachable", &[]), 0.0);

    // The archive works then, too, and says who is missing.
    let report = Report::of(&cluster, 0);
    assert!(report.err.contains("n2") && report.err.contains("n3"), "{}", report.err);
    let silent: Vec<&str> = report.manifest["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|node| node["error"].is_string())
        .filter_map(|node| node["name"].as_str())
        .collect();
    assert_eq!(silent.len(), 2, "{}", report.manifest);
    assert!(report.files.contains_key("nodes/n1/metrics.txt"));
    assert!(report.files.contains_key("nodes/n2/error.txt"));
    cluster.nodes[1].signal("-CONT");
    cluster.nodes[2].signal("-CONT");
    eventually("it is ready again", || {
        (ready(&cluster.nodes[0]).0 == 200).then_some(())
    });
}

/// What `cluster diagnostics` wrote.
struct Report {
    manifest: Value,
    /// By their names without the directory.
    files: BTreeMap<String, String>,
    err: String,
}

impl Report {
    #[track_caller]
    fn of(cluster: &Cluster, node: usize) -> Self {
        let file = cluster.directory.join("report.tar.gz");
        let said = cluster.nodes[node].cli(&["cluster", "diagnostics", "--output", file.to_str().unwrap()]);
        let err = said.err.clone();
        assert_eq!(said.ok().trim(), file.to_str().unwrap());
        let mode = bash(&cluster.directory, "stat -c %a report.tar.gz").ok();
        assert_eq!(mode.trim(), "600");
        let mut archive = tar::Archive::new(GzDecoder::new(std::fs::File::open(&file).unwrap()));
        let mut files = BTreeMap::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_string_lossy().into_owned();
            let (directory, name) = path.split_once('/').unwrap();
            assert!(directory.starts_with("storageos-diagnostics-"), "{path}");
            let mut text = String::new();
            entry.read_to_string(&mut text).unwrap();
            files.insert(name.to_owned(), text);
        }
        let manifest = serde_json::from_str(&files["manifest.json"]).unwrap();
        Self { manifest, files, err }
    }

    #[track_caller]
    fn json(&self, name: &str) -> Value {
        let text = self
            .files
            .get(name)
            .unwrap_or_else(|| panic!("{name} is not among {:?}", self.files.keys()));
        serde_json::from_str(text).unwrap()
    }
}

#[test]
fn a_report_has_what_every_node_knows_and_no_secret() {
    let secret = "hunter2";
    let labels = move |_| {
        ["--label", &format!("db.password={secret}"), "--log-format", "json"]
            .map(str::to_owned)
            .into()
    };
    let cluster = Cluster::start_with(2, labels);
    cluster.create_with(
        "data",
        &[
            "storageos.com/replicas=1",
            &format!("app.token={secret}"),
            &format!("url=http://me:{secret}@host/"),
        ],
    );
    let token = cluster.cli(&["cluster", "token", "create"]).ok().trim().to_owned();
    let description = format!("join with {token}");
    cluster
        .cli(&["volume", "create", "--description", &description, "told"])
        .ok();
    cluster.wait_for_copies("data", 2);
    let mut secrets = vec![secret.to_owned(), token];
    for node in &cluster.nodes {
        let keys = std::fs::read_to_string(node.directory.join("tls/node.pem")).unwrap();
        let lines = keys.lines().filter(|line| line.len() > 40 && !line.contains(':'));
        secrets.extend(lines.map(str::to_owned));
    }
    assert!(secrets.len() > 4);
    eventually("both volumes are served", || {
        (get(&cluster.nodes[0], "/readyz").0 == 200).then_some(())
    });
    let report = Report::of(&cluster, 0);
    assert_eq!(report.err, "");
    for name in ["n1", "n2"] {
        let metrics = &report.files[&format!("nodes/{name}/metrics.txt")];
        assert!(
            metrics.contains(&format!("storageos_node_member{{node=\"{name}\"}} 1")),
            "{metrics}"
        );
        let log = &report.files[&format!("nodes/{name}/log.txt")];
        assert!(log.contains("this node is a member of its cluster"), "{log}");
        assert!(report.json(&format!("nodes/{name}/machine.json"))["kernel"].is_string());
        let daemon = report.json(&format!("nodes/{name}/daemon.json"));
        assert!(daemon["commandLine"].to_string().contains("--data-dir"), "{daemon}");
        assert!(
            daemon["commandLine"].to_string().contains("db.password=[redacted]"),
            "{daemon}"
        );
    }
    assert!(
        report
            .json("cluster/volumes.json")
            .to_string()
            .contains("\"name\":\"data\"")
    );
    assert_eq!(report.json("cluster/nodes.json").as_array().unwrap().len(), 2);
    assert_eq!(report.json("cluster/health.json")["nodes"].as_array().unwrap().len(), 2);
    assert_eq!(report.json("readiness.json")["ready"], true);
    for name in ["inspect", "namespaces", "events", "connectivity"] {
        report.json(&format!("cluster/{name}.json"));
    }
    let listed: Vec<&str> = report.manifest["files"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(Value::as_str)
        .collect();
    assert_eq!(listed.len() + 1, report.files.len());
    assert_eq!(report.manifest["answeredBy"], "n1");
    for (name, text) in &report.files {
        for secret in &secrets {
            assert!(!text.contains(secret), "{name}: {text}");
        }
    }
    // It was there to be found.
    assert!(cluster.inspect("data").to_string().contains(secret));
    assert!(cluster.inspect("told").to_string().contains(&secrets[1]));
}

#[test]
fn logs_as_json_are_one_object_a_line() {
    let mut cluster = Cluster::start_with(1, |_| vec!["--log-format".into(), "json".into()]);
    cluster.create("data", 0);
    eventually("the volume is served", || {
        cluster.nodes[0].whole_log().contains("serving as master").then_some(())
    });
    assert_eq!(cluster.nodes[0].stop(), 0);
    let log = cluster.nodes[0].whole_log();
    let mut messages = Vec::new();
    for line in log.lines() {
        let entry: Value = serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        let at = entry["timestamp"].as_str().unwrap();
        assert!(at.parse::<jiff::Timestamp>().is_ok(), "{line}");
        let level = entry["level"].as_str().unwrap();
        assert!(["ERROR", "WARN", "INFO", "DEBUG", "TRACE"].contains(&level), "{line}");
        assert!(entry["target"].is_string(), "{line}");
        messages.push(entry["fields"]["message"].as_str().unwrap_or_default().to_owned());
        if messages.last().unwrap() == "serving as master" {
            assert!(
                entry["fields"]["volume"].is_string() && entry["fields"]["epoch"].is_u64(),
                "{line}"
            );
        }
    }
    assert!(messages.iter().any(|message| message == "stopped"), "{messages:?}");
}
