//! The words and flags, as clap reads them. Help texts are written to be read as a manual.

use super::output::Format;
use super::run::{filter, keep, patient};
use super::{mount, token};
use crate::cluster::{EtcdConfig, RaftSettings};
use crate::docker;
use crate::node::ControlConfig;
use clap::{Args, Parser, Subcommand};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

const ROOT_HELP: &str = "\
A cluster is a set of nodes, each with one daemon (storageos node run). A volume is a directory tree kept in
identical copies on several nodes: a master and 0 to 5 replicas. Mount it with
mount -t fuse.storageos NAMESPACE/NAME DIR, or with storageos volume mount.

Exit codes: 0 done; 1 the answer is no (unhealthy, copies differ) or it failed; 2 wrong usage; 3 not found;
4 conflict (exists, in use, too few nodes, another update came first); 5 value not allowed; 6 the daemon or the control
plane does not answer; 7 internal error; 8 a token gives no leave to join.

Examples:
  storageos node run --data-dir /var/lib/storageos --listen 10.0.0.1:5703 --name n1 --init
  storageos cluster token create > token        (on n1; take it to n2)
  storageos node run --data-dir /var/lib/storageos --listen 10.0.0.2:5703 --name n2 --join 10.0.0.1:5703 --token-file token
  storageos volume create --label storageos.com/replicas=2 --label storageos.com/failure.mode=alwayson data
  mount -t fuse.storageos default/data /mnt
  storageos volume verify data";

/// A replicated volume that looks like a directory.
#[derive(Debug, Parser)]
#[command(name = "storageos", version, disable_version_flag = true, after_help = ROOT_HELP, max_term_width = 120)]
pub(super) struct Cli {
    /// The daemon's socket: a path or unix:///PATH; or https://HOST:PORT, what a node's --api says [default: /run/storageos/storageos.sock]
    #[arg(
        short = 'H',
        long,
        env = "STORAGEOS_HOST",
        global = true,
        value_name = "HOST",
        hide_env_values = true
    )]
    pub(super) host: Option<String>,
    /// With https://HOST:PORT: the file that storageos cluster client create made
    #[arg(
        long,
        env = "STORAGEOS_CLIENT_CERT",
        global = true,
        value_name = "FILE",
        hide_env_values = true
    )]
    pub(super) client_cert: Option<PathBuf>,
    /// Say on stderr what is being done
    #[arg(short = 'D', long, global = true)]
    pub(super) debug: bool,
    /// Print the version
    #[arg(short = 'v', long, action = clap::ArgAction::Version)]
    version: Option<bool>,
    #[command(subcommand)]
    pub(super) noun: Noun,
}

#[derive(Debug, Subcommand)]
pub(super) enum Noun {
    /// Make, join and look at a cluster
    #[command(visible_alias = "c")]
    Cluster(ClusterCommand),
    /// Run this node's daemon; list and change nodes
    #[command(visible_alias = "n")]
    Node(NodeCommand),
    /// Group volumes by namespace
    #[command(visible_alias = "ns")]
    Namespace(NamespaceCommand),
    /// Create, mount, check and change volumes
    #[command(visible_alias = "v")]
    Volume(VolumeCommand),
    /// Show what happened to volumes and nodes
    #[command(after_help = EVENTS_HELP)]
    Events(EventsCommand),
    /// Look into files on disk
    Debug(DebugCommand),
}

const EVENTS_HELP: &str = "\
Every node keeps the events that it recorded, a few thousand of them; all nodes that answer are asked.

Examples:
  storageos events --since 2h
  storageos events --volume data --follow
  storageos events --format '{{.At}} {{.Kind}} {{.Message}}'";

#[derive(Debug, Args)]
pub(super) struct EventsCommand {
    /// Only those of this volume: a name, or namespace/name
    #[arg(long, value_name = "VOLUME")]
    pub(super) volume: Option<String>,
    /// Only those of this node, or recorded by it: a name or id
    #[arg(long, value_name = "NODE")]
    pub(super) node: Option<String>,
    /// Only those since then: a span before now, as 10m or 48h, or a time, as 2026-01-31T12:00:00Z
    #[arg(long, value_name = "TIME")]
    pub(super) since: Option<String>,
    /// Go on showing events as they happen, until interrupted; JSON is then one event a line
    #[arg(short, long)]
    pub(super) follow: bool,
    /// table, json, or a template as '{{.At}} {{.Kind}}'
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(super) format: Format,
}

/// How a list is printed.
#[derive(Debug, Args)]
pub(super) struct ListOptions {
    /// Print names only
    #[arg(short, long)]
    pub(super) quiet: bool,
    /// table, json, or a template as '{{.Name}} {{.Health}}'
    #[arg(long, default_value = "table", value_name = "FORMAT")]
    pub(super) format: Format,
}

#[derive(Debug, Args)]
pub(super) struct ClusterCommand {
    #[command(subcommand)]
    pub(super) verb: ClusterVerb,
}

/// How the cluster's health is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum HealthFormat {
    /// One line.
    Summary,
    /// Nodes, volumes and problems.
    Detailed,
    /// The API's JSON.
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum ClusterVerb {
    /// Make a new cluster of this node alone
    #[command(
        after_help = "Example:\n  storageos cluster init\nThen, for each other node, a token: storageos cluster token create"
    )]
    Init,
    /// Join this node to the cluster of the member at ADDR:PORT
    #[command(
        after_help = "Example:\n  storageos -H /var/lib/storageos/storageos.sock cluster join --token-file token 10.0.0.1:5703"
    )]
    Join {
        #[command(flatten)]
        token: TokenOptions,
        /// Where any member's daemon listens (its --listen); several may be given. With etcd, none is needed
        #[arg(value_name = "ADDR:PORT")]
        addresses: Vec<String>,
    },
    /// Make and list tokens, by which nodes may join
    Token(TokenCommand),
    /// Make and list clients, which may use the API over the network
    Client(ClientCommand),
    /// Let all nodes renew their certificates now; they do so by themselves long before these expire
    RotateCertificates,
    /// Say whether the control plane, the nodes and the volumes are well; exit code 0 if so, 1 if not
    Health {
        /// summary, detailed or json
        #[arg(long, value_enum, default_value = "detailed", hide_possible_values = true)]
        format: HealthFormat,
    },
    /// Print the cluster as JSON
    Inspect,
    /// Print all records, to move them to another control store; no volume may be mounted
    #[command(after_help = "Example:\n  storageos cluster export > records.json")]
    Export,
    /// Put exported records into another control store, while no daemon runs
    #[command(after_help = IMPORT_HELP)]
    Import {
        /// Where to: embedded, or etcd://HOST:PORT,…/PREFIX
        #[arg(long, value_name = "STORE", value_parser = control_store)]
        control: ControlConfig,
        /// With embedded: the data directory of the node that begins
        #[arg(long, value_name = "DIR")]
        data_dir: Option<PathBuf>,
        /// What storageos cluster export printed
        #[arg(value_name = "FILE")]
        file: PathBuf,
    },
    /// Go on from this node's replica of the control plane after a majority of its voters is lost for good
    #[command(
        after_help = "Only when the lost nodes are down and stay so until this command is through: if they are merely cut off, there would be two\n\
        control planes, and a volume could be written on both sides. What only the lost nodes knew is lost: the last changes of volumes and nodes\n\
        that had not reached this node. Run it on the survivor that has been in touch longest; a survivor that knows more is named. Lost nodes that\n\
        return join the recovered control plane by themselves.\n\nExample:\n  storageos cluster recover --yes"
    )]
    Recover {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Say which node reaches which; exit code 0 if all do, 1 if not
    Connectivity(ListOptions),
    /// Write an archive for a bug report: what every node that answers knows, without secrets
    #[command(after_help = DIAGNOSTICS_HELP)]
    Diagnostics {
        /// Where to: a file, or - for standard output [default: storageos-diagnostics-TIME.tar.gz]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
    },
}

/// Where a token is.
#[derive(Debug, Args)]
pub(super) struct TokenOptions {
    /// What storageos cluster token create printed; others on this machine can see a command line: better --token-file, or
    /// STORAGEOS_TOKEN
    #[arg(
        long,
        value_name = "TOKEN",
        env = "STORAGEOS_TOKEN",
        hide_env_values = true,
        conflicts_with = "token_file"
    )]
    pub(super) token: Option<Secret>,
    /// The file that the token is in; - for standard input. It is read only while the node is in no cluster
    #[arg(long, value_name = "FILE")]
    pub(super) token_file: Option<PathBuf>,
}

/// A text that is not shown.
#[derive(Clone)]
pub(super) struct Secret(pub(super) String);

impl std::str::FromStr for Secret {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(Self(text.to_owned()))
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

#[derive(Debug, Args)]
pub(super) struct TokenCommand {
    #[command(subcommand)]
    pub(super) verb: TokenVerb,
}

#[derive(Debug, Subcommand)]
pub(super) enum TokenVerb {
    /// Make a token by which a node may join, once, and print it
    #[command(
        after_help = "The token is a secret: whoever has it before it is used or expires can become a node, and a node can do everything.\n\n\
        Examples:\n  storageos cluster token create > token\n  storageos cluster token create --ttl 15m --uses 3"
    )]
    Create {
        /// How long it lives, as 30m, 1h or 7d
        #[arg(long, value_name = "TIME", default_value = "1h")]
        ttl: String,
        /// How many nodes may join by it
        #[arg(long, value_name = "N", default_value = "1")]
        uses: u32,
    },
    /// List the tokens that have not expired or were removed; not the secrets
    #[command(visible_alias = "list")]
    Ls(ListOptions),
    /// Take tokens away; nodes that joined by them stay
    #[command(visible_alias = "remove")]
    Rm {
        /// Ids, as storageos cluster token ls shows them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct ClientCommand {
    #[command(subcommand)]
    pub(super) verb: ClientVerb,
}

#[derive(Debug, Subcommand)]
pub(super) enum ClientVerb {
    /// Make a client, and a file with its key and certificate, which is a secret
    #[command(
        after_help = "Whoever has the file can do all that storageos does with volumes and nodes, from anywhere where a node's --api can be reached, until the\n\
        certificate expires or the client is removed; but not let others in, nor mount.\n\n\
        Examples:\n  storageos cluster client create laptop\n  storageos -H https://10.0.0.1:5704 --client-cert laptop.pem volume ls"
    )]
    Create {
        /// How long the certificate holds, as 12h or 90d
        #[arg(long, value_name = "TIME", default_value = "90d")]
        ttl: String,
        /// The file, which must not be there; - for standard output [default: NAME.pem]
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// What to call it
        #[arg(value_name = "NAME")]
        name: String,
    },
    /// List the clients whose certificates have not expired
    #[command(visible_alias = "list")]
    Ls(ListOptions),
    /// Remove clients: nothing is served to them from now on
    #[command(visible_alias = "remove")]
    Rm {
        /// Ids, as storageos cluster client ls shows them
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
}

const DIAGNOSTICS_HELP: &str = "\
In it: versions, health, nodes, volumes, events, and of every node its metrics, command line, kernel and latest log lines. Tokens, passwords and keys
are taken out where they can be recognised; names, addresses and labels are in it. A node that does not answer is named on stderr and in the archive.

Example:
  storageos cluster diagnostics --output report.tar.gz";

const IMPORT_HELP: &str = "\
The whole procedure is in docs/operations.md, \"From one control store to another\".

Examples:
  storageos cluster import --control etcd://10.0.1.1:2379 records.json
  storageos cluster import --control embedded --data-dir /var/lib/storageos records.json";

#[derive(Debug, Args)]
pub(super) struct NodeCommand {
    #[command(subcommand)]
    pub(super) verb: NodeVerb,
}

#[derive(Debug, Subcommand)]
pub(super) enum NodeVerb {
    /// Run this node's daemon until SIGTERM
    #[command(after_help = RUN_HELP)]
    Run(Box<RunOptions>),
    /// Hold a daemon's mounts; daemons start this themselves
    #[command(hide = true)]
    Fdstore(HoldOptions),
    /// List the nodes
    #[command(visible_alias = "list")]
    Ls(ListOptions),
    /// Print nodes as a JSON array
    Inspect {
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Say whether a node is well; exit code 0 if so, 1 if not
    Health {
        /// Name or id
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Place no new copies on nodes
    Cordon {
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Place new copies on nodes again
    Uncordon {
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Move all copies off nodes, one volume at a time, so that they can be stopped; done when they are empty
    #[command(
        after_help = "A drained node takes no new copies until storageos node undrain. A copy goes only when its successor on another node is in\n\
        sync; a volume whose master is there gets another one, and stays in use meanwhile. The command waits, and ends when the nodes\n\
        are safe to stop (0), when what is left cannot move (4), or after --timeout (1); the draining goes on then.\n\n\
        Example:\n  storageos node drain n3"
    )]
    Drain {
        /// Do not wait until the nodes are empty
        #[arg(long)]
        no_wait: bool,
        /// How long to wait at most, as 30s or 10m [default: as long as it takes]
        #[arg(short, long, value_name = "TIME", conflicts_with = "no_wait")]
        timeout: Option<String>,
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Delete nodes that are offline for good and hold no copies; their names are free then
    #[command(
        after_help = "A deleted node that comes back is refused. To use the machine again, remove the daemon's data directory and join.\n\n\
        Example:\n  storageos node drain n3        (if it still runs)\n  storageos node delete n3"
    )]
    Delete {
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Say whether a node reaches the others; exit code 0 if it reaches all, 1 if not
    Connectivity {
        #[command(flatten)]
        list: ListOptions,
        /// Name or id
        #[arg(value_name = "NODE")]
        node: String,
    },
    /// Let drained nodes hold copies again
    Undrain {
        /// Names or ids
        #[arg(required = true, value_name = "NODE")]
        nodes: Vec<String>,
    },
    /// Change a node's labels
    #[command(after_help = "Example:\n  storageos node update --label-add storageos.com/deployment=computeonly n3")]
    Update {
        /// Set a label; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        label_add: Vec<String>,
        /// Take a label away; may be repeated
        #[arg(long, value_name = "KEY")]
        label_rm: Vec<String>,
        /// Name or id
        #[arg(value_name = "NODE")]
        node: String,
    },
}

/// A number of days, also a part of one.
#[derive(Clone, Copy, Debug)]
pub(super) struct Days(pub(super) f64);

fn days(text: &str) -> Result<Days, String> {
    let days = text.parse().ok().filter(|days| (0.0..=3650.0).contains(days));
    days.map(Days).ok_or_else(|| "expected 0 to 3650".to_owned())
}

const RUN_HELP: &str = "\
The daemon keeps everything in --data-dir: node.json (who it is), tls/ (its key and certificate), control/ (its part of the
control plane), volumes/ (its copies), storageos.sock (its API). A fresh node is in no cluster: make one with --init or storageos
cluster init, or join one with --join or storageos cluster join, for which it needs a token (storageos cluster token create on a
member). A node that is in a cluster ignores --init, --join and the token, so scripts may always give them.

SIGTERM unmounts the volumes mounted here and stops. If a mount is busy, the daemon says which and goes on serving it until
it is free, a second SIGTERM, or 60 seconds have passed; then everything is committed and the mount is detached.
SIGHUP stops the daemon and leaves its mounts: programs wait until the next one, perhaps of a newer version, has started, and go on. So do
they when the daemon is killed (--keep-mounts).

Logs go to stderr; --log-filter or RUST_LOG chooses what (default info), as RUST_LOG=storageos::replication=debug,info.

Examples:
  storageos node run --data-dir /var/lib/storageos --listen 10.0.0.1:5703 --name n1 --init
  storageos node run --data-dir /var/lib/storageos --listen 10.0.0.3:5703 --name n3 --join 10.0.0.1:5703,10.0.0.2:5703 \\
      --token-file /run/token --label storageos.com/deployment=computeonly
  storageos node run --data-dir /var/lib/storageos --listen 10.0.0.1:5703 --name n1 --init --docker
  storageos node run --config /etc/storageos/config.toml
  storageos node run --config /etc/storageos/config.toml --check && systemctl restart storageos
  storageos node run --data-dir /var/lib/storageos --listen 10.0.0.1:5703 --name n1 --init \\
      --control etcd://10.0.1.1:2379,10.0.1.2:2379,10.0.1.3:2379";

/// The value of `--control`.
fn control_store(text: &str) -> Result<ControlConfig, String> {
    if text == "embedded" {
        return Ok(ControlConfig::Embedded(RaftSettings::default()));
    }
    if !text.starts_with("etcd") {
        return Err("it is embedded, or etcd://HOST:PORT[,HOST:PORT…][/PREFIX]".to_owned());
    }
    let config: EtcdConfig = text
        .parse()
        .map_err(|e: crate::cluster::EtcdAddressError| e.to_string())?;
    Ok(ControlConfig::Etcd(config))
}

/// Of the process that holds mounts for a daemon.
#[derive(Debug, Args)]
pub(super) struct HoldOptions {
    /// Its socket
    #[arg(long, value_name = "PATH")]
    pub(super) socket: PathBuf,
    /// Seconds until it lets go when no daemon comes
    #[arg(long, value_name = "SECONDS")]
    pub(super) wait: u64,
}

/// The value of `--docker`.
fn docker_socket(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    let error = || {
        format!(
            "expected an absolute path that ends in NAME.sock, as {}",
            docker::DEFAULT_SOCKET
        )
    };
    docker::is_driver_socket(&path).then_some(path).ok_or_else(error)
}

/// Each but --config, --check and --token is also a key of the configuration file (see [`super::config_file`]).
#[derive(Debug, Args)]
pub(super) struct RunOptions {
    /// A file with options, as lease = "5s" (storageos-config(5)); what the command line or the environment says wins over it
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Only say whether the options, also those in --config, are understood: before a restart with changed ones
    #[arg(long)]
    pub(super) check: bool,
    /// Directory of everything the daemon keeps
    #[arg(long, value_name = "DIR", required = false, required_unless_present = "config")]
    pub(super) data_dir: PathBuf,
    /// Where to listen for the other nodes
    #[arg(long, value_name = "ADDR:PORT", required = false, required_unless_present = "config")]
    pub(super) listen: SocketAddr,
    /// Address that the other nodes use, if not --listen's
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) advertise: Option<SocketAddr>,
    /// The node's name, unique in the cluster; given at the first start [default: the name kept in the data directory]
    #[arg(long, value_name = "NAME")]
    pub(super) name: Option<String>,
    /// A label of the node; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) label: Vec<String>,
    /// Second API socket, beside the one in the data directory; "none" for no other [default: /run/storageos/storageos.sock,
    /// if free]
    #[arg(long, value_name = "PATH")]
    pub(super) socket: Option<PathBuf>,
    /// Be Docker's volume driver on this node: the socket where Docker finds it, whose name is the driver's [without a value:
    /// /run/docker/plugins/storageos.sock]
    #[arg(
        long,
        value_name = "SOCKET",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = docker::DEFAULT_SOCKET,
        value_parser = docker_socket
    )]
    pub(super) docker: Option<PathBuf>,
    /// A group whose members may use the API, besides root: they can do everything with the cluster
    #[arg(long, value_name = "GROUP")]
    pub(super) socket_group: Option<String>,
    /// Where the cluster's state is kept: embedded (Raft among the nodes), or etcd://HOST:PORT,…/PREFIX (etcd 3.4 or newer; several endpoints and
    /// the prefix may be left out), the same on every node
    #[arg(long, value_name = "STORE", default_value = "embedded", value_parser = control_store)]
    pub(super) control: ControlConfig,
    /// Make a new cluster if this node is in none
    #[arg(long, conflicts_with = "join")]
    pub(super) init: bool,
    /// With a new cluster: how long the certificates of its nodes hold, as 90d; they are renewed when two thirds of it are over
    #[arg(long, value_name = "TIME", default_value = "365d", value_parser = token::parse_life)]
    pub(super) certificate_validity: Duration,
    /// After so long without a sign of life a node counts as dead, one whose port refuses connections sooner; the same on every node
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = patient)]
    pub(super) lease: Duration,
    /// After so long without an answer a replica is left out, if the failure mode allows
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = patient)]
    pub(super) replica_deadline: Duration,
    /// How long a voter of the control plane may be away before another node votes in its place; the same on every node
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = mount::parse_time)]
    pub(super) voter_grace: Duration,
    /// How long a lost copy's node may be away before a new copy takes its place elsewhere, and before its mounts are
    /// released; the same on every node
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = mount::parse_time)]
    pub(super) replace_after: Duration,
    /// Join the cluster of one of these members if this node is in none; tried until one answers. With etcd: the cluster that it
    /// holds, no address and no token needed
    #[arg(long, value_name = "ADDR:PORT,…", value_delimiter = ',', num_args = 0..=1)]
    pub(super) join: Option<Vec<String>>,
    /// How long the mounts of a daemon that died, or was told to with SIGHUP, wait for the next daemon to go on with them; 0s: they end
    /// with the daemon
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = keep)]
    pub(super) keep_mounts: Duration,
    #[command(flatten)]
    pub(super) token: TokenOptions,
    /// Also serve the API on this TCP address, to clients with a certificate (storageos cluster client create) [default: only on the sockets]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) api: Option<SocketAddr>,
    /// Also serve /metrics, /healthz and /readyz on this TCP address, read-only, in plain HTTP and to whoever asks [default: only on the socket]
    #[arg(long, value_name = "ADDR:PORT")]
    pub(super) metrics: Option<SocketAddr>,
    /// Days in which every copy is read once and compared with its hashes, in the background; 0: only when asked to
    #[arg(long, value_name = "DAYS", default_value = "30", value_parser = days)]
    pub(super) scrub_days: Days,
    /// text or json
    #[arg(long, value_name = "FORMAT", default_value = "text", value_parser = ["text", "json"])]
    pub(super) log_format: String,
    /// What is logged, as debug, or storageos::replication=debug,info; else RUST_LOG says it [default: info]
    #[arg(long, value_name = "FILTER", value_parser = filter)]
    pub(super) log_filter: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct NamespaceCommand {
    #[command(subcommand)]
    pub(super) verb: NamespaceVerb,
}

#[derive(Debug, Subcommand)]
pub(super) enum NamespaceVerb {
    /// Create a namespace
    Create {
        /// Name for people
        #[arg(long, value_name = "TEXT", default_value = "")]
        display_name: String,
        /// What it is for
        #[arg(short, long, value_name = "TEXT", default_value = "")]
        description: String,
        /// A label; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        label: Vec<String>,
        /// Its name
        #[arg(value_name = "NAMESPACE")]
        name: String,
    },
    /// List the namespaces
    #[command(visible_alias = "list")]
    Ls(ListOptions),
    /// Print namespaces as a JSON array
    Inspect {
        /// Names
        #[arg(required = true, value_name = "NAMESPACE")]
        namespaces: Vec<String>,
    },
    /// Remove empty namespaces
    #[command(visible_alias = "remove")]
    Rm {
        /// Names
        #[arg(required = true, value_name = "NAMESPACE")]
        namespaces: Vec<String>,
    },
}

#[derive(Debug, Args)]
pub(super) struct DebugCommand {
    #[command(subcommand)]
    pub(super) verb: DebugVerb,
}

#[derive(Debug, Subcommand)]
pub(super) enum DebugVerb {
    /// Describe the copy of a volume in a directory, as JSON; the daemon need not run
    #[command(after_help = "Example:\n  storageos debug dump /var/lib/storageos/volumes/ID")]
    Dump {
        /// The copy's directory: DATA_DIR/volumes/ID
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
}

#[derive(Debug, Args)]
pub(super) struct VolumeCommand {
    #[command(subcommand)]
    pub(super) verb: VolumeVerb,
}

const CREATE_HELP: &str = "\
Labels: storageos.com/replicas=0..5; storageos.com/failure.mode=soft|hard|alwayson; storageos.com/failure.tolerance=0..4;
storageos.com/hint.master=NODE; storageos.com/io.timeout=90s. The spelling storageos.feature.X works for each.

Examples:
  storageos volume create data
  storageos volume create --namespace default --size 20 --label storageos.com/replicas=2 \\
      --label storageos.com/failure.mode=alwayson volume-name
  storageos volume create --size 512MiB team/small";

#[derive(Debug, Subcommand)]
pub(super) enum VolumeVerb {
    /// Create a volume
    #[command(after_help = CREATE_HELP)]
    Create(CreateOptions),
    /// List volumes
    #[command(visible_alias = "list")]
    Ls {
        #[command(flatten)]
        list: ListOptions,
        /// Only volumes whose labels meet these terms: key=value, key!=value or key, separated by commas
        #[arg(short, long, value_name = "TERMS")]
        selector: Option<String>,
        /// Only this namespace
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: Option<String>,
    },
    /// Print volumes as a JSON array
    Inspect {
        /// Names, or namespace/name
        #[arg(required = true, value_name = "VOLUME")]
        volumes: Vec<String>,
        /// Namespace of names without one [default: default]
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: Option<String>,
    },
    /// Change a volume's size, description or labels, also while it is mounted
    #[command(
        after_help = "Examples:\n  storageos volume update --label-add storageos.com/failure.mode=hard default/data\n  \
        storageos volume update --label-add storageos.com/replicas=1 data\n  \
        storageos volume update --size 40GiB data\n  \
        storageos volume update --label-rm storageos.com/failure.tolerance data"
    )]
    Update {
        /// What it is for
        #[arg(short, long, value_name = "TEXT")]
        description: Option<String>,
        /// New size, in GiB or with a unit; not less than now
        #[arg(short, long, value_name = "SIZE")]
        size: Option<String>,
        /// Set a label; may be repeated
        #[arg(long, value_name = "KEY=VALUE")]
        label_add: Vec<String>,
        /// Take a label away; may be repeated
        #[arg(long, value_name = "KEY")]
        label_rm: Vec<String>,
        /// Also when the volume could not be written then, or when there are too few nodes for its copies
        #[arg(short, long)]
        force: bool,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Remove volumes with everything on them
    #[command(visible_alias = "remove")]
    Rm {
        /// Mounted ones too
        #[arg(short, long)]
        force: bool,
        /// Every volume, of --namespace if given
        #[arg(long, conflicts_with = "volumes")]
        all: bool,
        /// Namespace of names without one [default: default]
        #[arg(short, long, value_name = "NAMESPACE")]
        namespace: Option<String>,
        /// Names, or namespace/name
        #[arg(value_name = "VOLUME", required_unless_present = "all")]
        volumes: Vec<String>,
    },
    /// Mount a volume on a directory of this machine
    #[command(
        after_help = "The same as: mount -t fuse.storageos NAMESPACE/NAME DIR\n\nExample:\n  \
        storageos volume mount -o ro,noatime default/data /mnt"
    )]
    Mount {
        /// Mount options, as ro,noatime
        #[arg(short, value_name = "OPTIONS", default_value = "")]
        options: String,
        /// How long to wait for the volume to become usable, as 20s or 2m
        #[arg(short, long, value_name = "TIME", default_value = "20s")]
        timeout: String,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
        /// An existing directory
        #[arg(value_name = "DIR")]
        directory: PathBuf,
    },
    /// Unmount a volume, wherever it is mounted; done when everything written is on its copies
    Unmount {
        /// Also when it is busy, or when the node that mounted it is gone
        #[arg(short, long)]
        force: bool,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Show how copies are brought up to date, until the volume is healthy; exit code 1 if it is not within --timeout
    #[command(after_help = "Example:\n  storageos volume watch --timeout 10m default/data")]
    Watch {
        /// How long to wait, as 30s or 10m, an hour at most [default: for ever]
        #[arg(short, long, value_name = "TIME")]
        timeout: Option<String>,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Last resort: make a copy that is out of date the master, when no in-sync copy is left
    #[command(
        after_help = "What was written since that copy was in sync is lost. Without --accept-data-loss nothing is done and the loss is explained. Refused \
        while an in-sync copy can be used; the daemons never do this by themselves.\n\nExample:\n  \
        storageos volume promote --copy n3 --accept-data-loss default/data"
    )]
    Promote {
        /// The node whose copy it is: a name or id
        #[arg(long, value_name = "NODE")]
        copy: String,
        /// Give up what was written since the copy was in sync
        #[arg(long)]
        accept_data_loss: bool,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Read all data of all copies, compare it with its hashes and repair what is bad; exit code 1 if something could not be
    #[command(
        after_help = "Goes on in the daemon when this command is interrupted; the command then joins it again. Daemons also do this slowly in \
        the background (storageos node run --scrub-days).\n\nExample:\n  storageos volume scrub default/data"
    )]
    Scrub {
        /// table or json
        #[arg(long, default_value = "table", value_name = "FORMAT")]
        format: Format,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Check the file system on a volume; exit code 0 no problem found, 1 some found, higher: could not be checked
    #[command(
        after_help = "Nothing is changed, and nothing has to be stopped: a mounted volume is checked as it is at one moment, by the node that mounted \
        it, any other one by its master's node.\n\nExample:\n  storageos volume check default/data"
    )]
    Check {
        /// table or json
        #[arg(long, default_value = "table", value_name = "FORMAT")]
        format: Format,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
    /// Compare all copies; exit code 0 identical, 1 some differ, higher: could not be checked
    #[command(
        after_help = "Copies that are in use are compared while no write is under way. Copies that are not in sync are not compared.\n\n\
        Example:\n  storageos volume verify --deep default/data"
    )]
    Verify {
        /// Also read all data again and compare it with its hashes, on every copy
        #[arg(long)]
        deep: bool,
        /// table or json
        #[arg(long, default_value = "table", value_name = "FORMAT")]
        format: Format,
        /// Name, or namespace/name
        #[arg(value_name = "VOLUME")]
        volume: String,
    },
}

#[derive(Debug, Args)]
pub(super) struct CreateOptions {
    /// What it is for
    #[arg(short, long, value_name = "TEXT", default_value = "")]
    pub(super) description: String,
    /// Size in GiB, or with a unit: 20, 512MiB, 2TiB
    #[arg(short, long, value_name = "SIZE", default_value = "5")]
    pub(super) size: String,
    /// The pool; there is one
    #[arg(short, long, value_name = "POOL", default_value = "default", value_parser = ["default"])]
    pub(super) pool: String,
    /// Its namespace [default: default]
    #[arg(short, long, value_name = "NAMESPACE")]
    pub(super) namespace: Option<String>,
    /// Accepted for old scripts; a volume is a directory tree and needs no other file system
    #[arg(short, long, value_name = "TYPE")]
    pub(super) fstype: Option<String>,
    /// Only nodes whose labels meet these terms hold copies: key=value, key!=value or key, separated by commas
    #[arg(long, value_name = "TERMS", default_value = "")]
    pub(super) node_selector: String,
    /// A label; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    pub(super) label: Vec<String>,
    /// Its name, or namespace/name
    #[arg(value_name = "VOLUME")]
    pub(super) volume: String,
}
