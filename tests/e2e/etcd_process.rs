//! An etcd for tests, of Debian's package `etcd-server`: on free ports of an address of its own, in a temporary directory, killed by its pid.
//!
//! Compiled twice: the unit tests of `cluster::etcd` have this file, too.

use std::fs::{self, File};
use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use tempfile::TempDir;

/// Killed when dropped; when a test has failed, the end of its log is printed.
pub struct EtcdProcess {
    /// Where clients reach it, `HOST:PORT`.
    pub client: String,
    peer: String,
    directory: TempDir,
    child: Option<Child>,
}

impl EtcdProcess {
    /// Chooses free ports of a host; [`Self::spawn`] starts it.
    pub fn on(host: &str) -> Self {
        let free = || TcpListener::bind((host, 0)).unwrap();
        // Both are held until both are chosen.
        let (client, peer) = (free(), free());
        Self {
            client: client.local_addr().unwrap().to_string(),
            peer: peer.local_addr().unwrap().to_string(),
            directory: tempfile::tempdir().unwrap(),
            child: None,
        }
    }

    /// Starts it with what it kept, without waiting until it serves.
    pub fn spawn(&mut self) {
        let (client, peer) = (format!("http://{}", self.client), format!("http://{}", self.peer));
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.directory.path().join("log"))
            .unwrap();
        let child = Command::new("etcd")
            .arg("--data-dir")
            .arg(self.directory.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--name", "t", "--initial-cluster", &format!("t={peer}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("these tests need etcd (Debian: apt-get install etcd-server)");
        self.child = Some(child);
    }

    /// SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Kills it; all that it kept is gone.
    pub fn lose_data(&mut self) {
        self.kill();
        fs::remove_dir_all(self.directory.path().join("data")).unwrap();
    }
}

impl Drop for EtcdProcess {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- etcd\n{}", lines[lines.len().saturating_sub(20)..].join("\n"));
        }
        self.kill();
    }
}
