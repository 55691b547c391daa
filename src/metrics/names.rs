//! Every metric that a node exports. Names are StorageOS's where it had one, and follow Prometheus's conventions otherwise.
//!
//! To add one: a line here, its value in `node::telemetry`, a row in `docs/monitoring.md` (a test compares).
//!
//! Labels: `node` is the node that tells, `volume` and `namespace` name a volume, `copy` is the node of a copy, `peer` another node.

use std::fmt;

/// How a metric behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows, and begins at zero with the daemon or with a new master.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Durations in buckets.
    Histogram,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram => "histogram",
        })
    }
}

macro_rules! metrics {
    ($($variant:ident $kind:ident $name:literal $help:literal;)*) => {
        /// A metric.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Metric {
            $(#[doc = $help] $variant,)*
        }

        impl Metric {
            /// All of them, in the order in which they are exported.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// Its name.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// How it behaves.
            #[must_use]
            pub fn kind(self) -> Kind {
                match self { $(Self::$variant => Kind::$kind,)* }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

metrics! {
    BuildInfo Gauge "storageos_build_info" "Always 1; the label version is the daemon's.";

    NodeMember Gauge "storageos_node_member" "1 once the node is a working member of its cluster.";
    NodeOnline Gauge "storageos_node_online" "1 while the lease of the node peer runs, as the telling node sees it.";
    NodeCapacity Gauge "storageos_node_device_capacity_bytes" "Bytes of the file system with the node's copies.";
    NodeFree Gauge "storageos_node_device_free_bytes" "Bytes free there.";
    NodeVolumes Gauge "storageos_node_volumes_total" "Volumes with a copy on the node, by volume_type: master or replica.";
    NodeLeaseRenewals Counter "storageos_node_lease_renewals_total" "Times that the node renewed its lease.";
    NodeLeaseFailures Counter "storageos_node_lease_failures_total" "Times that the node could not renew its lease.";
    NodeLeaseAge Gauge "storageos_node_lease_age_seconds" "Seconds since the node last renewed its lease.";
    NodeLeaseDuration Gauge "storageos_node_lease_duration_seconds" "Seconds after which a lease that is not renewed ends.";

    CertificateExpires Gauge "storageos_node_certificate_expires_timestamp_seconds" "Until when the node's certificate holds, in Unix time.";
    CertificateRenewal Gauge "storageos_node_certificate_renewal_timestamp_seconds" "From when it is to be renewed, in Unix time.";

    ControlHasLeader Gauge "storageos_control_has_leader" "1 if the node knows a leader of the control plane.";
    ControlLeader Gauge "storageos_control_leader" "1 if the node is that leader.";
    ControlVoter Gauge "storageos_control_voter" "1 if the node votes; never with etcd.";
    ControlVoters Gauge "storageos_control_voters" "Voters of the control plane; with etcd, its endpoints.";
    ControlReachable Gauge "storageos_control_reachable" "1 if the control plane answered this scrape's question within 2 s.";
    ControlAnswer Gauge "storageos_control_answer_seconds" "Seconds that this answer took.";

    Events Counter "storageos_events_total" "Events that this daemon recorded, by kind.";

    VolumeHealth Gauge "storageos_volume_health" "1 for the present health of the volume, 0 for the others.";
    VolumeWritable Gauge "storageos_volume_writable" "1 if writes are taken, as far as the telling node knows.";
    VolumeCopies Gauge "storageos_volume_copies" "Copies by state: in_sync (the master's included), syncing, lost.";
    VolumeCopiesWanted Gauge "storageos_volume_copies_wanted" "Copies asked for, the master's included.";
    VolumeEpoch Gauge "storageos_volume_epoch" "Epoch of the volume's configuration.";
    VolumeEpochChanges Counter "storageos_volume_epoch_changes_total" "Changes of that epoch that this daemon saw.";
    VolumeCapacity Gauge "storageos_volume_capacity_bytes" "Bytes for file data.";
    VolumeActual Gauge "storageos_volume_utilisation_actual_bytes" "Bytes that the copy on the telling node takes on its disk.";
    VolumeApparent Gauge "storageos_volume_utilisation_apparent_bytes" "Bytes that files take; told by the node with the mount.";
    VolumeMounted Gauge "storageos_volume_mounted" "1 on the node that has the volume mounted.";

    VolumeFrontendReads Counter "storageos_volume_frontend_read_total" "Read requests of the mount.";
    VolumeFrontendReadBytes Counter "storageos_volume_frontend_read_bytes_total" "Bytes that they returned.";
    VolumeFrontendReadErrors Counter "storageos_volume_frontend_read_error_total" "Those that failed.";
    VolumeFrontendReadSeconds Histogram "storageos_volume_frontend_read_seconds" "How long they took.";
    VolumeFrontendWrites Counter "storageos_volume_frontend_write_total" "Write requests of the mount.";
    VolumeFrontendWriteBytes Counter "storageos_volume_frontend_write_bytes_total" "Bytes that they wrote.";
    VolumeFrontendWriteErrors Counter "storageos_volume_frontend_write_error_total" "Those that failed.";
    VolumeFrontendWriteSeconds Histogram "storageos_volume_frontend_write_seconds" "How long they took.";
    VolumeFrontendSyncErrors Counter "storageos_volume_frontend_sync_error_total" "Fsync requests of the mount that failed.";
    VolumeFrontendSyncSeconds Histogram "storageos_volume_frontend_sync_seconds" "How long fsync requests of the mount took.";
    VolumeFuseRequests Counter "storageos_volume_fuse_requests_total" "Requests of the mount by kind.";

    VolumeBackendReads Counter "storageos_volume_backend_read_total" "Reads of blocks that the master has done.";
    VolumeBackendReadBytes Counter "storageos_volume_backend_read_bytes_total" "Bytes of them.";
    VolumeBackendReadErrors Counter "storageos_volume_backend_read_error_total" "Reads of blocks that failed.";
    VolumeBackendReadSeconds Histogram "storageos_volume_backend_read_seconds" "How long reads of blocks took.";
    VolumeBackendWrites Counter "storageos_volume_backend_write_total" "Writes of blocks that are on every copy in sync.";
    VolumeBackendWriteBytes Counter "storageos_volume_backend_write_bytes_total" "Bytes of them, once whatever the number of copies.";
    VolumeBackendWriteErrors Counter "storageos_volume_backend_write_error_total" "Writes of blocks that failed.";
    VolumeBackendWriteSeconds Histogram "storageos_volume_backend_write_seconds" "How long writes of blocks took, on every copy.";
    VolumeBackendFlushes Counter "storageos_volume_backend_flush_total" "Flushes of every copy, those of a write included.";
    VolumeBackendFlushSeconds Histogram "storageos_volume_backend_flush_seconds" "How long flushes without a write took.";
    VolumeBackendDiscards Counter "storageos_volume_backend_discard_total" "Discards of blocks.";

    VolumeNetworkWrites Counter "storageos_volume_network_write_total" "Writes, flushes and discards that the master sent to replicas.";
    VolumeNetworkWriteBytes Counter "storageos_volume_network_write_bytes_total" "Bytes of blocks in them, without syncs.";
    VolumeNetworkWriteErrors Counter "storageos_volume_network_write_error_total" "Those that failed or were not answered in time.";
    VolumeNetworkReads Counter "storageos_volume_network_read_total" "Reads that the master asked of replicas, since its own copy could not serve them.";
    VolumeNetworkReadBytes Counter "storageos_volume_network_read_bytes_total" "Bytes of blocks that they returned.";
    VolumeNetworkReadErrors Counter "storageos_volume_network_read_error_total" "Those that failed.";

    VolumeSyncDone Gauge "storageos_volume_sync_done_bytes" "Bytes compared and made equal by the sync of a copy that runs.";
    VolumeSyncSize Gauge "storageos_volume_sync_size_bytes" "Bytes that it has to compare.";
    VolumeSyncIdle Gauge "storageos_volume_sync_idle_seconds" "Seconds since it last got on.";
    VolumeSyncAttempts Gauge "storageos_volume_sync_attempts" "Times that it was begun.";
    VolumeSyncs Counter "storageos_volume_syncs_total" "Syncs completed.";
    VolumeSyncSent Counter "storageos_volume_sync_sent_bytes_total" "Bytes that differed and were sent by syncs.";
    VolumeDrops Counter "storageos_volume_replica_drops_total" "Replicas dropped from the in-sync set.";

    VolumeCorrupt Counter "storageos_volume_corrupt_blocks_total" "Blocks of 4 KiB that did not match their hashes.";
    VolumeRepaired Counter "storageos_volume_repaired_blocks_total" "Blocks replaced by another copy's.";
    VolumeScrubRunning Gauge "storageos_volume_scrub_running" "1 while a scrub goes on.";
    VolumeScrubDone Gauge "storageos_volume_scrub_done_bytes" "Bytes of the volume that the present or last scrub has done.";
    VolumeScrubSize Gauge "storageos_volume_scrub_size_bytes" "Bytes of the volume that it has to do.";
    VolumeScrubFinished Gauge "storageos_volume_scrub_finished_timestamp_seconds" "When the last scrub ended, in Unix time.";

    Activation Histogram "storageos_volume_activation_seconds" "How long it took, from when this node was to be a volume's master, until it served.";

    ProcessCpu Counter "process_cpu_seconds_total" "Seconds of processor time that the daemon used.";
    ProcessMemory Gauge "process_resident_memory_bytes" "Bytes of memory that the daemon has resident.";
    ProcessFds Gauge "process_open_fds" "File descriptors that the daemon has open.";
    ProcessMaxFds Gauge "process_max_fds" "File descriptors that it may have open.";
    ProcessThreads Gauge "process_threads" "Threads of the daemon.";
    ProcessStart Gauge "process_start_time_seconds" "When the daemon started, in Unix time.";
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn names_follow_the_conventions_and_are_unique() {
        let names: BTreeSet<_> = Metric::ALL.iter().map(|metric| metric.name()).collect();
        assert_eq!(names.len(), Metric::ALL.len());
        for (index, metric) in Metric::ALL.iter().enumerate() {
            let name = metric.name();
            assert_eq!(*metric as usize, index);
            assert!(name.starts_with("storageos_") || name.starts_with("process_"), "{name}");
            assert!(name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{name}");
            // StorageOS's own name.
            let counted = name.ends_with("_total") && *metric != Metric::NodeVolumes;
            assert_eq!(counted, metric.kind() == Kind::Counter, "{name}");
            assert!(metric.kind() != Kind::Histogram || name.ends_with("_seconds"), "{name}");
            assert!(metric.help().ends_with('.'), "{name}");
        }
    }

    /// The rows of the manual's tables: name and type.
    fn documented() -> Vec<(String, String)> {
        let manual = include_str!("../../docs/monitoring.md");
        let cells = |line: &str| -> Vec<String> { line.split('|').map(|cell| cell.trim().to_owned()).collect() };
        manual
            .lines()
            .filter(|line| line.starts_with("| `storageos_") || line.starts_with("| `process_"))
            .map(|line| {
                let cells = cells(line);
                (cells[1].trim_matches('`').to_owned(), cells[2].clone())
            })
            .collect()
    }

    #[test]
    fn the_manual_has_every_metric_with_its_type_and_no_other() {
        let mut documented = documented();
        let mut exported: Vec<(String, String)> = Metric::ALL
            .iter()
            .map(|metric| (metric.name().to_owned(), metric.kind().to_string()))
            .collect();
        documented.sort();
        exported.sort();
        assert_eq!(documented, exported);
    }
}
