//! The API's operations, done: names and values checked, the catalog asked, other nodes asked where they know more.

use super::admission;
use super::control::name;
use super::daemon::{Joined, Shared};
use super::inspect::{self, Told};
use super::plane::PlaneStatus;
use crate::api::types::*;
use crate::api::{ApiError, Code, Operations};
use crate::cluster::{Export, NewVolume, View, VolumeChange};
use crate::volume::{
    DEFAULT_NAMESPACE, EventKind, Known, Labels, Namespace, NoPromotion, Node, NodeId, Scope, Selector, Size,
    Staleness, Volume, VolumeRef, apply_labels, canonical_labels, merge_events, promote_stale,
};
use async_trait::async_trait;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;

fn labels(given: &Labels, scope: Scope) -> Result<Labels, ApiError> {
    canonical_labels(given.iter().map(|(k, v)| (k.as_str(), v.as_str())), scope)
        .map_err(|error| ApiError::invalid(error.to_string()))
}

/// A size that volumes may have.
fn checked(bytes: u64) -> Result<u64, ApiError> {
    let size = Size::from_bytes(bytes).map_err(|error| ApiError::invalid(error.to_string()))?;
    Ok(size.bytes())
}

fn reference(namespace: &str, volume: &str) -> Result<VolumeRef, ApiError> {
    VolumeRef::new(namespace, volume).map_err(|error| ApiError::invalid(error.to_string()))
}

pub(super) fn find_node(view: &View, node: &str) -> Result<Arc<Node>, ApiError> {
    view.node(node)
        .cloned()
        .ok_or_else(|| ApiError::not_found("node", node))
}

/// Names of the nodes that vote; with etcd, its endpoints.
fn voters(status: &PlaneStatus, view: &View) -> Vec<String> {
    match &status.etcd {
        Some(endpoints) => endpoints.iter().map(|endpoint| format!("etcd {endpoint}")).collect(),
        None => status.voters.iter().map(|node| view.node_name(*node)).collect(),
    }
}

impl Joined {
    /// What the nodes concerned tell of these volumes; those that do not answer in time tell nothing.
    async fn ask(&self, view: &View, volumes: impl Iterator<Item = &Volume>) -> Told {
        let asked = inspect::whom_to_ask(volumes, view)
            .into_iter()
            .map(|(node, volumes)| async move {
                if node == self.node {
                    let server = self.server.clone();
                    let looked = tokio::task::spawn_blocking(move || server.look(&volumes)).await;
                    return Some((node, looked.ok()?));
                }
                let address = view.nodes.get(&node)?.address.clone();
                Some((node, self.nodes.runtime(node, &address, volumes).await?))
            });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    async fn info(&self, volume: &Volume) -> VolumeInfo {
        let view = self.control.view();
        let told = self.ask(&view, std::iter::once(volume)).await;
        inspect::volume(volume, &view, &told)
    }

    fn node_info(&self, node: &Node, view: &View) -> NodeInfo {
        let status = self.status();
        let voter = status.etcd.is_none().then(|| status.voters.contains(&node.id));
        inspect::node(node, view, voter)
    }

    /// Where a node listens; it must be known.
    fn address(view: &View, node: NodeId) -> Result<String, ApiError> {
        let found = view.nodes.get(&node).map(|n| n.address.clone());
        found.ok_or_else(|| ApiError::unavailable(format!("node {node} is not known to the cluster any more")))
    }

    /// The node of a volume's master and where it listens; no address: it is this node.
    pub(super) fn master(&self, volume: &Volume, view: &View) -> Result<(NodeId, Option<String>), ApiError> {
        let master = volume
            .configuration
            .master
            .ok_or_else(|| ApiError::unavailable(format!("volume {} has no master yet", name(volume))))?;
        self.place(master, view)
    }

    /// A node and where it listens; no address: it is this node.
    pub(super) fn place(&self, node: NodeId, view: &View) -> Result<(NodeId, Option<String>), ApiError> {
        let elsewhere = node != self.node;
        let address = elsewhere.then(|| Self::address(view, node)).transpose()?;
        Ok((node, address))
    }

    /// Unmounts a volume wherever it is mounted.
    async fn unmount(&self, volume: &Volume, force: bool) -> Result<(), ApiError> {
        let Some(claim) = &volume.mount else {
            return Err(ApiError::conflict(format!("volume {} is not mounted", name(volume))));
        };
        let view = self.control.view();
        let asked = if claim.node == self.node {
            match self.mounts.get(volume.id) {
                Some(mount) => self.mounts.unmount(&mount, force).await,
                None => Ok(()),
            }
        } else {
            let address = Self::address(&view, claim.node)?;
            self.nodes.unmount(claim.node, &address, volume.id, force).await
        };
        let holder = view.node_name(claim.node);
        match asked {
            Ok(()) => {}
            Err(error) if !force => {
                return Err(if error.code == Code::Unavailable && claim.node != self.node {
                    error.hint(format!(
                        "if node {holder} is gone for good: storageos volume unmount --force {}",
                        name(volume)
                    ))
                } else {
                    error
                });
            }
            Err(error) => {
                tracing::warn!(volume = %name(volume), node = %holder, %error, "its mount's claim is dropped by force");
            }
        }
        // A claim that nobody stands behind any more, or that is dropped by force; a later number fences what is left of it.
        self.control
            .change_volume(volume.id, |now| {
                if now.mounts == volume.mounts && now.mount.is_some() {
                    now.mount = None;
                    now.mounts += 1;
                }
                Ok(())
            })
            .await
            .map(|_| ())
    }
}

#[async_trait]
impl Operations for Shared {
    async fn about(&self) -> Result<About, ApiError> {
        Ok(About {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            node: self.node,
            node_name: self.name.clone(),
            address: self.address.clone(),
            cluster: self.identity.cluster(),
        })
    }

    async fn cluster_init(&self) -> Result<Membership, ApiError> {
        self.init().await
    }

    async fn cluster_join(&self, request: JoinRequest) -> Result<Membership, ApiError> {
        let token = admission::given(request.token.as_deref())?;
        self.join(&request.addresses, token.as_ref()).await
    }

    async fn cluster_tokens(&self) -> Result<Vec<TokenInfo>, ApiError> {
        self.joined()?.tokens().await
    }

    async fn cluster_token_create(&self, create: TokenCreate) -> Result<TokenMade, ApiError> {
        self.joined()?.create_token(&create).await
    }

    async fn cluster_token_remove(&self, id: &str) -> Result<(), ApiError> {
        self.joined()?.remove_token(id).await
    }

    async fn cluster_clients(&self) -> Result<Vec<ClientInfo>, ApiError> {
        self.joined()?.clients().await
    }

    async fn cluster_client_create(&self, create: ClientCreate) -> Result<ClientMade, ApiError> {
        self.joined()?.create_client(&create).await
    }

    async fn cluster_client_remove(&self, id: &str) -> Result<(), ApiError> {
        self.joined()?.remove_client(id).await
    }

    async fn cluster_rotate(&self) -> Result<(), ApiError> {
        Ok(self.joined()?.control.catalog.renew_certificates().await?)
    }

    async fn cluster_health(&self) -> Result<ClusterHealth, ApiError> {
        let joined = self.joining()?;
        let view = joined.control.view();
        let status = joined.status();
        let leader = status.leader.map(|node| view.node_name(node));
        let (volumes, volume_problems) = inspect::volumes_health(&view);
        let mut problems = joined.plane_problems().await;
        let nodes: Vec<NodeHealth> = view
            .nodes
            .values()
            .map(|node| NodeHealth {
                name: node.name.clone(),
                address: node.address.clone(),
                health: inspect::node_health(node.id, &view).to_owned(),
                role: if status.leader == Some(node.id) {
                    "leader"
                } else if status.voters.contains(&node.id) {
                    "voter"
                } else if status.etcd.is_some() {
                    "member"
                } else {
                    "learner"
                }
                .to_owned(),
            })
            .collect();
        problems.extend(
            nodes
                .iter()
                .filter(|n| n.health != "healthy")
                .map(|n| format!("node {} is {}", n.name, n.health)),
        );
        problems.extend(volume_problems);
        Ok(ClusterHealth {
            id: joined.cluster,
            healthy: problems.is_empty(),
            leader,
            voters: voters(&status, &view),
            nodes,
            volumes,
            problems,
        })
    }

    async fn cluster_export(&self) -> Result<Export, ApiError> {
        Ok(self.joined()?.control.catalog.export().await?)
    }

    async fn cluster_inspect(&self) -> Result<ClusterInfo, ApiError> {
        let joined = self.joining()?;
        let view = joined.control.view();
        let status = joined.status();
        Ok(ClusterInfo {
            id: joined.cluster,
            leader: status.leader.map(|node| view.node_name(node)),
            voters: voters(&status, &view),
            nodes: view.nodes.len(),
            volumes: view.volumes.len(),
            namespaces: view.namespaces.len(),
            answered_by: self.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    async fn nodes(&self) -> Result<Vec<NodeInfo>, ApiError> {
        let joined = self.joined()?;
        let view = joined.control.look().await?;
        let mut nodes: Vec<NodeInfo> = view.nodes.values().map(|node| joined.node_info(node, &view)).collect();
        nodes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(nodes)
    }

    async fn node(&self, node: &str) -> Result<NodeInfo, ApiError> {
        let joined = self.joined()?;
        let view = joined.control.look().await?;
        Ok(joined.node_info(&*find_node(&view, node)?, &view))
    }

    async fn node_update(&self, node: &str, update: NodeUpdate) -> Result<NodeInfo, ApiError> {
        let joined = self.joined()?;
        let view = joined.control.view();
        let id = find_node(&view, node)?.id;
        let add = labels(&update.label_add, Scope::Node)?;
        let changed = joined
            .control
            .catalog
            .update_node(id, |node| {
                node.labels = apply_labels(&node.labels, &add, &update.label_remove, Scope::Node)?;
                node.cordoned = update.cordoned.unwrap_or(node.cordoned);
                node.drained = update.drained.unwrap_or(node.drained);
                Ok(())
            })
            .await?;
        Ok(joined.node_info(&changed, &view))
    }

    async fn cluster_recover(&self) -> Result<Recovery, ApiError> {
        // A member that is not ready may be just what has to be recovered.
        self.joining()?.recover(&self.name).await
    }

    async fn node_delete(&self, node: &str) -> Result<(), ApiError> {
        self.joined()?.delete_node(node).await
    }

    async fn node_connectivity(&self, node: &str) -> Result<Vec<Connectivity>, ApiError> {
        self.joined()?.connectivity_of(node).await
    }

    async fn cluster_connectivity(&self) -> Result<Vec<Connectivity>, ApiError> {
        self.joined()?.connectivity().await
    }

    async fn node_drain(&self, node: &str) -> Result<DrainInfo, ApiError> {
        let joined = self.joined()?;
        // As of now: the drain that was just ordered is in it.
        let view = joined.control.now().await?;
        let node = find_node(&view, node)?;
        Ok(inspect::drain(&node, &view))
    }

    async fn namespaces(&self) -> Result<Vec<NamespaceInfo>, ApiError> {
        let joined = self.joined()?;
        let view = joined.control.look().await?;
        Ok(view.namespaces.values().map(|n| namespace_info(n, &view)).collect())
    }

    async fn namespace(&self, namespace: &str) -> Result<NamespaceInfo, ApiError> {
        let joined = self.joined()?;
        let view = joined.control.look().await?;
        let found = view
            .namespaces
            .get(namespace)
            .ok_or_else(|| ApiError::not_found("namespace", namespace))?;
        Ok(namespace_info(found, &view))
    }

    async fn namespace_create(&self, create: NamespaceCreate) -> Result<NamespaceInfo, ApiError> {
        let joined = self.joined()?;
        let namespace = Namespace {
            name: create.name,
            display_name: create.display_name,
            description: create.description,
            labels: labels(&create.labels, Scope::Namespace)?,
            created_at: Timestamp::now(),
        };
        joined.control.catalog.create_namespace(&namespace).await?;
        tracing::info!(namespace = %namespace.name, "namespace created");
        Ok(namespace_info(&namespace, &View::default()))
    }

    async fn namespace_remove(&self, namespace: &str) -> Result<(), ApiError> {
        self.joined()?.control.catalog.remove_namespace(namespace).await?;
        tracing::info!(namespace, "namespace removed");
        Ok(())
    }

    async fn volumes(&self, filter: VolumeFilter) -> Result<Vec<VolumeInfo>, ApiError> {
        let joined = self.joined()?;
        let selector = Selector::parse(filter.selector.as_deref().unwrap_or_default())
            .map_err(|error| ApiError::invalid(error.to_string()))?;
        // As of now: what this very user just created is in it.
        let view = joined.control.look().await?;
        if let Some(namespace) = &filter.namespace
            && !view.namespaces.contains_key(namespace)
        {
            return Err(ApiError::not_found("namespace", namespace));
        }
        let mut chosen: Vec<&Volume> = view
            .volumes
            .values()
            .map(|volume| &**volume)
            .filter(|v| filter.namespace.as_ref().is_none_or(|n| *n == v.namespace) && selector.matches(&v.labels))
            .collect();
        chosen.sort_by(|a, b| (&a.namespace, &a.name).cmp(&(&b.namespace, &b.name)));
        let told = joined.ask(&view, chosen.iter().copied()).await;
        Ok(chosen
            .into_iter()
            .map(|volume| inspect::volume(volume, &view, &told))
            .collect())
    }

    async fn volume(&self, namespace: &str, volume: &str) -> Result<VolumeInfo, ApiError> {
        let joined = self.joined()?;
        let wanted = reference(namespace, volume)?;
        let view = joined.control.look().await?;
        let found = view
            .volume(&wanted)
            .ok_or_else(|| ApiError::not_found("volume", &wanted))?;
        let told = joined.ask(&view, std::iter::once(&**found)).await;
        Ok(inspect::volume(found, &view, &told))
    }

    async fn volume_create(&self, create: VolumeCreate) -> Result<VolumeInfo, ApiError> {
        let joined = self.joined()?;
        let new = NewVolume {
            name: reference(&create.namespace, &create.name)?,
            description: create.description,
            size: checked(create.size)?,
            labels: labels(&create.labels, Scope::Volume)?,
            node_selector: create.node_selector,
        };
        let made = joined.control.catalog.create_volume(&new, rand::random()).await?;
        let view = joined.control.view();
        tracing::info!(
            volume = %new.name, size = made.size,
            copies = %made.configuration.in_sync.iter().map(|n| view.node_name(*n)).collect::<Vec<_>>().join(","),
            "volume created"
        );
        Ok(joined.info(&made).await)
    }

    async fn volume_update(&self, namespace: &str, volume: &str, update: VolumeUpdate) -> Result<VolumeInfo, ApiError> {
        let joined = self.joined()?;
        let target = reference(namespace, volume)?;
        if let Some(expected) = update.epoch {
            let now = joined.control.find_volume(&target).await?.configuration.epoch;
            if now != expected {
                return Err(ApiError::conflict(format!(
                    "volume {target} was changed meanwhile: it is at epoch {now}, not {expected}"
                ))
                .hint("look at it again, then repeat"));
            }
        }
        let wish = VolumeChange {
            description: update.description,
            size: update.size.map(checked).transpose()?,
            // Checked together with those that the volume has: a tolerance alone says nothing.
            add: update.label_add,
            remove: update.label_remove,
            force: update.force,
        };
        let changed = joined.control.catalog.change_volume(&target, &wish).await?;
        tracing::info!(volume = %target, "volume updated");
        Ok(joined.info(&changed).await)
    }

    async fn volume_remove(&self, namespace: &str, volume: &str, force: bool) -> Result<(), ApiError> {
        let joined = self.joined()?;
        let target = reference(namespace, volume)?;
        if force {
            let now = joined.control.find_volume(&target).await?;
            if now.mount.is_some() {
                joined.unmount(&now, true).await?;
            }
        }
        joined.control.catalog.remove_volume(&target, force).await?;
        tracing::info!(volume = %target, "volume removed");
        Ok(())
    }

    async fn volume_unmount(&self, namespace: &str, volume: &str, force: bool) -> Result<(), ApiError> {
        let joined = self.joined()?;
        let found = joined.control.find_volume(&reference(namespace, volume)?).await?;
        joined.unmount(&found, force).await
    }

    async fn volume_promote(
        &self,
        namespace: &str,
        volume: &str,
        request: PromoteRequest,
    ) -> Result<Promotion, ApiError> {
        let joined = self.joined()?;
        let found = joined.control.find_volume(&reference(namespace, volume)?).await?;
        // As of now: who lives decides.
        let view = joined.control.catalog.view().await?;
        let node = find_node(&view, &request.copy)?;
        let told = joined.ask(&view, std::iter::once(&found)).await;
        let of = |node: &NodeId| told.get(node).and_then(|volumes| volumes.get(&found.id));
        let is_broken = |node: &&NodeId| of(node).is_some_and(|r| r.copy_bytes.is_none() || r.copy_failed.is_some());
        let known = Known {
            live: &view.live,
            broken: &view.live.iter().filter(is_broken).copied().collect(),
        };
        let decide = |record: &Volume| {
            promote_stale(record, node.id, known, Timestamp::now()).map_err(|why| refusal(&why, record, &node, &view))
        };
        let (_, staleness) = decide(&found)?;
        let explanation = loss(&found, &staleness, &node, &view);
        if !request.accept_data_loss {
            return Err(ApiError::conflict(format!("nothing was done: {explanation}"))
                .hint("if that is to be, repeat it with --accept-data-loss"));
        }
        let epoch = found.configuration.epoch;
        let changed = joined.control.change_volume(found.id, |record| {
            if record.configuration.epoch == epoch + 1 && record.configuration.master == Some(node.id) {
                // Our own first attempt, whose answer was lost.
                return Ok(());
            }
            if record.configuration.epoch != epoch {
                return Err(ApiError::conflict(
                    "the volume's copies changed meanwhile; look at it again",
                ));
            }
            (*record, _) = decide(record)?;
            Ok(())
        });
        changed.await?;
        tracing::warn!(volume = %name(&found), node = %node.name, %explanation, "a copy that is out of date was made the master");
        let journal = &joined.server.journal;
        journal.record(EventKind::DataLossAccepted, Some(found.id), Some(node.id), &explanation);
        Ok(Promotion {
            volume: name(&found),
            node_name: node.name.clone(),
            explanation,
        })
    }

    async fn volume_scrub(&self, namespace: &str, volume: &str, start: bool) -> Result<ScrubInfo, ApiError> {
        let joined = self.joined()?;
        let found = joined.control.find_volume(&reference(namespace, volume)?).await?;
        let view = joined.control.view();
        let (master, address) = joined.master(&found, &view)?;
        let pass = match address {
            None => joined.server.scrubbed(found.id, start)?,
            Some(address) => joined.nodes.scrub(master, &address, found.id, start).await?,
        };
        let pass = pass.ok_or_else(|| {
            let on = view.node_name(master);
            ApiError::new(
                Code::NotFound,
                format!("volume {} was not scrubbed by its master's node {on} yet", name(&found)),
            )
            .hint(format!("start it: storageos volume scrub {}", name(&found)))
        })?;
        Ok(inspect::scrub(&pass, &view))
    }

    async fn volume_verify(
        &self,
        namespace: &str,
        volume: &str,
        request: VerifyRequest,
    ) -> Result<VerifyReport, ApiError> {
        let joined = self.joined()?;
        let found = joined.control.find_volume(&reference(namespace, volume)?).await?;
        let view = joined.control.view();
        let (master, address) = joined.master(&found, &view)?;
        let compared = match address {
            None => joined.server.compare(found.id, request.deep).await?,
            Some(address) => joined.nodes.verify(master, &address, found.id, request.deep).await?,
        };
        let differing: BTreeSet<NodeId> = compared
            .copies
            .iter()
            .filter(|c| !c.differing_extents.is_empty())
            .map(|c| c.node)
            .collect();
        let copies = compared
            .copies
            .into_iter()
            .map(|c| VerifiedCopy {
                node_name: view.node_name(c.node),
                result: if c.error.is_some() {
                    "unchecked"
                } else if differing.contains(&c.node) {
                    "differs"
                } else if !c.corrupt_blocks.is_empty() {
                    "corrupt"
                } else {
                    "identical"
                }
                .to_owned(),
                node: c.node,
                master: c.master,
                differing_extents: c.differing_extents,
                corrupt_blocks: c.corrupt_blocks,
                error: c.error,
            })
            .collect();
        Ok(VerifyReport {
            volume: name(&found),
            copies,
            deep: request.deep,
            extents: compared.extents,
        })
    }

    async fn volume_check(&self, namespace: &str, volume: &str) -> Result<VolumeCheck, ApiError> {
        self.joined()?.check(&reference(namespace, volume)?).await
    }

    async fn metrics(&self) -> String {
        self.scrape().await
    }

    async fn readiness(&self) -> Readiness {
        // The one of `node::readiness`.
        Shared::readiness(self).await
    }

    async fn diagnostics(&self) -> Result<Vec<u8>, ApiError> {
        self.archive().await
    }

    async fn events(&self, filter: EventFilter) -> Result<EventList, ApiError> {
        let joined = self.joined()?;
        // Also without the control plane: what happened to it is among the events.
        let view = joined.control.view();
        let node = filter.node.as_deref().map(|node| find_node(&view, node)).transpose()?;
        let volume = match &filter.volume {
            Some(volume) => {
                let wanted = VolumeRef::parse(volume, DEFAULT_NAMESPACE)
                    .map_err(|error| ApiError::invalid(error.to_string()))?;
                // A removed volume's events are still there, by its name.
                Some((view.volume(&wanted).map(|v| v.id), wanted.to_string()))
            }
            None => None,
        };
        let asked = view.nodes.values().map(|node| async {
            if node.id == self.node {
                return Ok(joined.server.journal.since(filter.since));
            }
            if !view.live.contains(&node.id) {
                return Err(node.name.clone());
            }
            let events = joined.nodes.events(node.id, &node.address, filter.since).await;
            events.ok_or_else(|| node.name.clone())
        });
        let (mut events, mut silent_nodes) = (Vec::new(), Vec::new());
        for answer in futures::future::join_all(asked).await {
            match answer {
                Ok(told) => events.extend(told),
                Err(name) => silent_nodes.push(name),
            }
        }
        let mut events = merge_events(events);
        events.retain(|event| {
            let of_node = node
                .as_ref()
                .is_none_or(|n| event.node == Some(n.id) || event.recorder == n.id);
            let of_volume = volume.as_ref().is_none_or(|(id, name)| {
                (id.is_some() && event.volume == *id) || event.volume_name.as_ref() == Some(name)
            });
            of_node && of_volume
        });
        Ok(EventList { events, silent_nodes })
    }
}

/// Why a copy is not made the master.
fn refusal(why: &NoPromotion, volume: &Volume, node: &Node, view: &View) -> ApiError {
    let (volume, copy) = (name(volume), &node.name);
    match why {
        NoPromotion::InSync(nodes) => {
            let names: Vec<String> = nodes.iter().map(|n| view.node_name(*n)).collect();
            let names = names.join(", ");
            ApiError::conflict(format!(
                "volume {volume} has an up-to-date copy that can be used, on {names}"
            ))
            .hint("nothing needs to be lost: see storageos volume inspect")
        }
        NoPromotion::NoCopy => ApiError::conflict(format!("node {copy} has no out-of-date copy of volume {volume}"))
            .hint(format!(
                "see which nodes have copies: storageos volume inspect {volume}"
            )),
        NoPromotion::Offline => {
            ApiError::conflict(format!("the copy of volume {volume} on node {copy} cannot be used now"))
                .hint("its node has to be online, with the copy in its data directory")
        }
        NoPromotion::Mounted(at) => ApiError::conflict(format!(
            "volume {volume} is mounted on node {}, which remembers what the copy does not have",
            view.node_name(*at)
        ))
        .hint(format!("unmount it first: storageos volume unmount --force {volume}")),
    }
}

/// What is lost by making a copy the master, for people.
fn loss(volume: &Volume, staleness: &Staleness, node: &Node, view: &View) -> String {
    let old: Vec<String> = volume
        .configuration
        .in_sync
        .iter()
        .map(|n| view.node_name(*n))
        .collect();
    let (copy, old) = (&node.name, old.join(", "));
    let what = match staleness {
        Staleness::Since(at) => {
            format!("the copy on {copy} was in sync until {at}: everything written since then is lost")
        }
        Staleness::Mixed => format!(
            "the copy on {copy} was being brought up to date: some of it is newer than the rest, so files may be damaged"
        ),
    };
    format!(
        "{what}. The up-to-date data is on {old}; it is overwritten when they return, so try to bring one of them back first"
    )
}

fn namespace_info(namespace: &Namespace, view: &View) -> NamespaceInfo {
    NamespaceInfo {
        name: namespace.name.clone(),
        display_name: namespace.display_name.clone(),
        description: namespace.description.clone(),
        labels: namespace.labels.clone(),
        volumes: view.volumes.values().filter(|v| v.namespace == namespace.name).count(),
        created_at: namespace.created_at,
    }
}
