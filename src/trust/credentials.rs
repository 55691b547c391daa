//! What a node proves itself with: its private key, its certificate, and the authority's; one file, `tls/node.pem`.
//!
//! The file is PEM with lines of plain text before it, as the format allows, that say whose it is and how long it holds. Invariants: it is replaced
//! as a whole, so key and certificate always belong together; only its owner can read it (0600, in a directory with 0700).

use super::proof::{Proof, line};
use super::{Issued, Key, TrustError};
use crate::os;
use crate::volume::{ClusterId, NodeId};
use jiff::Timestamp;
use std::fmt;
use std::fs::{self, DirBuilder};
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// The directory in a node's data directory.
pub const DIRECTORY: &str = "tls";
const FILE: &str = "node.pem";
/// More than such a file has.
const LONGEST: u64 = 64 << 10;

/// A node's key and certificate.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// Whose.
    pub node: NodeId,
    /// Of which cluster.
    pub cluster: ClusterId,
    /// When the certificate was issued.
    pub issued: Timestamp,
    /// Until when it holds.
    pub expires: Timestamp,
    /// See [`Issued::renewals`].
    pub renewals: u64,
    proof: Proof,
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Credentials({} of {} until {})",
            self.node, self.cluster, self.expires
        )
    }
}

impl Credentials {
    /// A key and what was issued for it by an authority with this certificate.
    #[must_use]
    pub fn new(node: NodeId, cluster: ClusterId, key: &Key, issued: Issued, authority: Vec<u8>) -> Self {
        Self {
            node,
            cluster,
            issued: issued.at,
            expires: issued.expires,
            renewals: issued.renewals,
            proof: Proof::new(key, issued.certificate, authority),
        }
    }

    /// The key and the certificates.
    #[must_use]
    pub fn proof(&self) -> &Proof {
        &self.proof
    }

    /// When it is to be replaced: two thirds of its time are over then.
    #[must_use]
    pub fn due(&self) -> Timestamp {
        let life = self.expires.duration_since(self.issued);
        self.issued.checked_add(life / 3 * 2).unwrap_or(self.issued)
    }

    /// The file's text.
    pub(super) fn text(&self) -> String {
        self.proof.text(format!(
            "Node: {}\nCluster: {}\nIssued: {}\nExpires: {}\nRenewals: {}\n",
            self.node, self.cluster, self.issued, self.expires, self.renewals
        ))
    }

    pub(super) fn parse(text: &str) -> Result<Self, String> {
        Ok(Self {
            node: line(text, "Node")?,
            cluster: line(text, "Cluster")?,
            issued: line(text, "Issued")?,
            expires: line(text, "Expires")?,
            renewals: line(text, "Renewals")?,
            proof: Proof::parse(text)?,
        })
    }

    /// Reads those in a data directory; `None`: there are none.
    ///
    /// # Errors
    /// [`TrustError::File`] names the file.
    pub fn load(data_dir: &Path) -> Result<Option<Self>, TrustError> {
        let path = data_dir.join(DIRECTORY).join(FILE);
        let failed = |why: &dyn fmt::Display| TrustError::File(format!("{}: {why}", path.display()));
        match fs::metadata(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
            Ok(found) if found.len() > LONGEST => return Err(failed(&"it is too long to be a node's certificate")),
            Ok(_) => {}
        }
        let text = fs::read_to_string(&path).map_err(|e| failed(&e))?;
        Self::parse(&text).map(Some).map_err(|e| failed(&e))
    }

    /// Keeps them in a data directory, in place of earlier ones.
    ///
    /// # Errors
    /// [`TrustError::File`] names the file.
    pub fn save(&self, data_dir: &Path) -> Result<(), TrustError> {
        let directory = data_dir.join(DIRECTORY);
        let write = || {
            match DirBuilder::new().mode(0o700).create(&directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => fs::set_permissions(&directory, fs::Permissions::from_mode(0o700))?,
            }
            os::file::replace(&directory.join(FILE), self.text().as_bytes(), 0o600)
        };
        write().map_err(|error| TrustError::File(format!("{}: {error}", directory.join(FILE).display())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trust::Authority;
    use std::time::Duration;

    fn credentials() -> Credentials {
        let (node, cluster) = (NodeId::random(), ClusterId::random());
        let now = Timestamp::from_second(1_800_000_000).unwrap();
        let authority = Authority::new(cluster, now).unwrap();
        let key = Key::generate().unwrap();
        let issued = authority
            .issue(node, key.public(), Duration::from_secs(3000), 4, now)
            .unwrap();
        Credentials::new(node, cluster, &key, issued, authority.certificate().to_vec())
    }

    #[test]
    fn they_are_read_as_they_were_kept_by_their_owner_alone() {
        let home = tempfile::tempdir().unwrap();
        assert_eq!(Credentials::load(home.path()).unwrap(), None);
        let kept = credentials();
        kept.save(home.path()).unwrap();
        let again = credentials();
        again.save(home.path()).unwrap();
        assert_eq!(Credentials::load(home.path()).unwrap(), Some(again.clone()));
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let directory = home.path().join(DIRECTORY);
        assert_eq!((mode(&directory), mode(&directory.join(FILE))), (0o700, 0o600));
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 1);
        assert_eq!(again.due().as_second() - again.issued.as_second(), 2000);
        assert!(!format!("{again:?}").contains("PRIVATE"));
    }

    #[test]
    fn the_file_is_the_documented_one() {
        let kept = credentials();
        let text = kept.text();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(' ')).collect();
        assert_eq!(
            lines,
            [
                &format!("Node: {}", kept.node),
                &format!("Cluster: {}", kept.cluster),
                "Issued: 2027-01-15T08:00:00Z",
                "Expires: 2027-01-15T08:50:00Z",
                "Renewals: 4",
                "-----BEGIN CERTIFICATE-----",
                "-----END CERTIFICATE-----",
                "-----BEGIN CERTIFICATE-----",
                "-----END CERTIFICATE-----",
                "-----BEGIN PRIVATE KEY-----",
                "-----END PRIVATE KEY-----",
            ]
        );
    }

    #[test]
    fn a_damaged_file_is_named() {
        let home = tempfile::tempdir().unwrap();
        credentials().save(home.path()).unwrap();
        let file = home.path().join(DIRECTORY).join(FILE);
        let good = fs::read_to_string(&file).unwrap();
        for bad in [
            "",
            &good[..good.len() / 2],
            &good.replace("Node: ", "Node: x"),
            &good.replace("PRIVATE", "PUBLIC"),
        ] {
            fs::write(&file, bad).unwrap();
            let error = Credentials::load(home.path()).unwrap_err();
            assert!(error.to_string().contains("node.pem"), "{error}");
        }
    }
}
