//! The control plane as the daemon's parts use it: the catalog, a view that is kept fresh, and errors that name what to do.

use crate::api::{ApiError, Code, list_of};
use crate::cluster::{Catalog, CatalogError, View};
use crate::volume::{Volume, VolumeId, VolumeRef};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// The one place where the control plane's errors become the API's.
impl From<CatalogError> for ApiError {
    fn from(error: CatalogError) -> Self {
        let message = error.to_string();
        match error {
            CatalogError::NotFound { kind, .. } => {
                Self::new(Code::NotFound, message).hint(format!("see: {}", list_of(kind)))
            }
            CatalogError::Exists { .. }
            | CatalogError::Conflict(_)
            | CatalogError::Epoch(_)
            | CatalogError::InUse(_)
            | CatalogError::Deleted(_) => Self::conflict(message),
            CatalogError::Refused(_) => {
                Self::conflict(message).hint("wait until its replicas are back, or insist with --force")
            }
            CatalogError::Placement(_) => Self::conflict(message).hint(
                "add nodes, uncordon some (storageos node ls), or ask for fewer replicas (storageos.com/replicas)",
            ),
            CatalogError::Denied(_) => Self::new(Code::Denied, message)
                .hint("make a new token on a node of the cluster: storageos cluster token create"),
            CatalogError::Invalid(_) => Self::invalid(message),
            CatalogError::Unavailable(_) => Self::unavailable(message)
                .hint("a majority of the control plane's voters, or etcd, must answer; see: storageos cluster health"),
        }
    }
}

/// How long a look at the cluster waits for the control plane.
const LOOK: Duration = Duration::from_secs(3);

/// See the module's text. Clones share everything.
#[derive(Clone)]
pub(crate) struct Control {
    pub(crate) catalog: Catalog,
    view: watch::Receiver<Arc<View>>,
}

impl Control {
    pub(crate) fn new(catalog: Catalog, view: watch::Receiver<Arc<View>>) -> Self {
        Self { catalog, view }
    }

    /// The view's changes.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    /// The view as last heard of: may be old, never goes back.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// All records as of now; when the control plane does not answer in time, as last heard of, so that an operator can still
    /// look at the cluster.
    pub(crate) async fn look(&self) -> Result<Arc<View>, ApiError> {
        match tokio::time::timeout(LOOK, self.catalog.view()).await {
            Ok(Ok(view)) => Ok(Arc::new(view)),
            failed => {
                let known = self.view();
                if known.revision > 0 {
                    tracing::warn!(
                        "the control plane does not answer: an answer of the API shows what was last heard of"
                    );
                    return Ok(known);
                }
                match failed {
                    Ok(Err(error)) => Err(error.into()),
                    _ => Err(CatalogError::Unavailable("it does not answer".to_owned()).into()),
                }
            }
        }
    }

    /// All records as of now.
    pub(crate) async fn now(&self) -> Result<View, ApiError> {
        Ok(self.catalog.view().await?)
    }

    /// A volume as of now (linearizable); `None`: there is no such volume.
    pub(crate) async fn volume(&self, volume: VolumeId) -> Result<Option<Volume>, ApiError> {
        Ok(self.catalog.volume_by_id(volume).await?)
    }

    /// A volume by its name as of now; not found is an error.
    pub(crate) async fn find_volume(&self, name: &VolumeRef) -> Result<Volume, ApiError> {
        Ok(self.catalog.volume(name).await?)
    }

    /// Changes a volume by a compare-and-swap: `change` sees it as it is now and is called again when another change came
    /// first. Returns what is stored now.
    pub(crate) async fn change_volume(
        &self,
        volume: VolumeId,
        change: impl Fn(&mut Volume) -> Result<(), ApiError>,
    ) -> Result<Volume, ApiError> {
        // The catalog's errors have no place for a hint: the refusal is kept beside.
        let refused = Mutex::new(None);
        let changed = self
            .catalog
            .update_volume(volume, |record| {
                change(record).map_err(|error| {
                    let text = error.message.clone();
                    *refused.lock() = Some(error);
                    CatalogError::InUse(text)
                })
            })
            .await;
        match (changed, refused.into_inner()) {
            (Err(CatalogError::InUse(_)), Some(error)) => Err(error),
            (result, _) => Ok(result?),
        }
    }
}

/// `namespace/name`.
pub(crate) fn name(volume: &Volume) -> String {
    format!("{}/{}", volume.namespace, volume.name)
}
