//! The command line's words and what it prints, against texts that scripts may rely on.

use super::args::{Cli, ClusterVerb, NodeVerb, Noun, VolumeVerb};
use super::output::{self, Format};
use super::{cluster, node, volume};
use crate::api::types::*;
use clap::{CommandFactory, Parser};
use serde_json::json;

fn parse(line: &str) -> Cli {
    Cli::try_parse_from(line.split(' ')).unwrap_or_else(|e| panic!("{line}: {e}"))
}

fn some_volume() -> VolumeInfo {
    serde_json::from_value(json!({
        "id": "3f2b8c1e-0000-4000-8000-000000000001", "name": "data", "size": 5_368_709_120_u64, "pool": "default",
        "description": "", "labels": {"storageos.com/replicas": "2"}, "namespace": "default", "nodeSelector": "",
        "master": {"id": "a", "node": "3f2b8c1e-0000-4000-8000-0000000000a1", "nodeName": "n1", "health": "healthy",
                   "status": "active", "createdAt": "2026-01-01T00:00:00Z"},
        "mounted": true, "mountpoint": "/mnt", "mountedAt": "2026-01-01T00:00:00Z", "mountedBy": "n2", "readOnly": false,
        "desiredReplicas": 2,
        "replicas": [
            {"id": "b", "node": "3f2b8c1e-0000-4000-8000-0000000000a2", "nodeName": "n2", "health": "healthy",
             "status": "active", "createdAt": "2026-01-01T00:00:00Z"},
            {"id": "c", "node": "3f2b8c1e-0000-4000-8000-0000000000a3", "nodeName": "n3", "health": "syncing",
             "status": "syncing", "createdAt": "2026-01-01T00:00:00Z",
             "sync": {"bytesDone": 25, "bytesTotal": 100, "bytesSent": 5, "bytesPerSecond": 1}},
        ],
        "health": "syncing", "status": "active", "statusMessage": "", "epoch": 4,
        "createdAt": "2026-01-01T00:00:00Z", "createdBy": "storageos",
    }))
    .unwrap()
}

#[test]
fn the_words_are_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn documented_command_lines_are_understood() {
    let cli = parse(
        "storageos volume create --namespace default --label storageos.com/replicas=2 --label storageos.com/failure.mode=alwayson volume-name",
    );
    let Noun::Volume(command) = cli.noun else { panic!() };
    let VolumeVerb::Create(options) = command.verb else {
        panic!()
    };
    assert_eq!(options.label.len(), 2);
    assert_eq!((options.volume.as_str(), options.size.as_str()), ("volume-name", "5"));
    for line in [
        "storageos volume create --namespace default --label storageos.feature.replicas=2 volume-name",
        "storageos volume update --label-add storageos.com/failure.mode=soft default/volume-name",
        "storageos volume update --label-add storageos.feature.replicas=1 default/volume-name",
        "storageos v list -q",
        "storageos volume ls --format json -n default -s app=db",
        "storageos volume rm -f default/a b",
        "storageos volume rm --all -n team",
        "storageos volume mount -t 30s -o ro,noatime default/v /mnt",
        "storageos volume unmount -f v",
        "storageos volume verify --deep v",
        "storageos volume check --format json default/v",
        "storageos ns create --display-name Team -d text --label a=b team",
        "storageos ns remove team",
        "storageos n cordon n1 n2",
        "storageos node drain --no-wait n1 n2",
        "storageos node drain --timeout 10m n1",
        "storageos node undrain n1",
        "storageos node delete n1 n2",
        "storageos node connectivity n1",
        "storageos cluster connectivity --format json",
        "storageos cluster recover --yes",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --voter-grace 2s --replace-after 5s",
        "storageos node run --docker --data-dir /d --listen 127.0.0.1:1",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --docker=/run/docker/plugins/n2.sock",
        "storageos node update --label-add iaas/failure-domain=a --label-rm b n1",
        "storageos c health --format summary",
        "storageos cluster join 10.0.0.1:5703",
        "storageos cluster join",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --control etcd://a:1,b:2/x --join",
        "storageos cluster export",
        "storageos cluster diagnostics",
        "storageos c diagnostics -o /tmp/x.tar.gz",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --metrics 0.0.0.0:5705",
        "storageos cluster import --control etcd://a:1 /tmp/x",
        "storageos cluster import --control embedded --data-dir /d /tmp/x",
        "storageos debug dump /tmp/x",
        "storageos -H unix:///tmp/s -D node ls",
        "storageos node run --data-dir /d --listen [::1]:5703 --name n --label a=b --socket none --control embedded --log-format json --init",
    ] {
        parse(line);
    }
    let Noun::Node(command) = parse("storageos node run --data-dir /d --listen 127.0.0.1:1 --join a:1,b:2").noun else {
        panic!()
    };
    let NodeVerb::Run(options) = command.verb else { panic!() };
    assert_eq!(options.join, Some(vec!["a:1".to_owned(), "b:2".to_owned()]));
    let Noun::Cluster(command) = parse("storageos cluster health").noun else {
        panic!()
    };
    assert!(matches!(command.verb, ClusterVerb::Health { .. }));
}

#[test]
fn wrong_words_are_refused() {
    for line in [
        "storageos",
        "storageos volume",
        "storageos volume create",
        "storageos volume create --no-such-flag v",
        "storageos volume create --pool other v",
        "storageos volume rm",
        "storageos volume rm --all v",
        "storageos volume ls --format nonsense",
        "storageos volume ls --format {{.Name",
        "storageos node run --data-dir /d --listen nowhere",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --init --join a:1",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --control zookeeper://a:1",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --control etcds://a:1",
        "storageos node run --data-dir /d --listen 127.0.0.1:1 --docker=storageos",
    ] {
        assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
    }
}

#[test]
fn a_volume_may_be_named_with_or_without_its_namespace() {
    let name = |text: &str, namespace| volume::Name::parse(text, namespace).map(|n| n.to_string());
    assert_eq!(name("v", None).unwrap(), "default/v");
    assert_eq!(name("v", Some("team")).unwrap(), "team/v");
    assert_eq!(name("team/v", None).unwrap(), "team/v");
    assert_eq!(name("team/v", Some("team")).unwrap(), "team/v");
    assert!(name("team/v", Some("other")).is_err());
    assert!(name("a/b/c", None).is_err());
    assert!(name("/v", None).is_err());
    assert!(name("v/", None).is_err());
}

#[test]
fn labels_need_a_value_and_come_once() {
    let labels = |texts: &[&str]| volume::labels(&texts.iter().map(|t| (*t).to_owned()).collect::<Vec<_>>());
    assert_eq!(labels(&["a=b=c"]).unwrap()["a"], "b=c");
    assert!(labels(&["a"]).is_err());
    assert!(labels(&["a=1", "a=2"]).is_err());
}

#[test]
fn volume_ls_prints_these_columns() {
    let text = output::list(&Format::Table, &volume::COLUMNS, &[some_volume()], volume::row).unwrap();
    assert_eq!(
        text,
        "NAMESPACE/NAME  SIZE   MOUNT  SELECTOR  STATUS                REPLICAS  LOCATION\n\
         default/data    5 GiB  n2               active (syncing 25%)  1/2       n1 (healthy)\n"
    );
}

#[test]
fn node_ls_prints_these_columns() {
    let info: NodeInfo = serde_json::from_value(json!({
        "id": "3f2b8c1e-0000-4000-8000-0000000000a1", "name": "n1", "address": "10.0.0.1:5703", "health": "healthy",
        "healthSince": "2026-01-01T00:00:00Z", "labels": {}, "cordoned": true, "drained": false, "voter": true, "masters": 2,
        "replicas": 1, "capacity": 1_099_511_627_776_u64, "free": 549_755_813_888_u64, "version": "0.1.0",
        "createdAt": "2026-01-01T00:00:00Z",
    }))
    .unwrap();
    let now = "2026-01-01T20:00:00Z".parse().unwrap();
    let text = output::list(&Format::Table, &node::COLUMNS, &[info], |n| node::row(n, now)).unwrap();
    assert_eq!(
        text,
        "NAME  ADDRESS        HEALTH                       SCHEDULER  VOLUMES     TOTAL  USED  VERSION\n\
         n1    10.0.0.1:5703  Healthy 20 hours (cordoned)  voter      M: 2, R: 1  1 TiB  50%   0.1.0\n"
    );
}

#[test]
fn a_template_prints_fields_and_names_unknown_ones() {
    let format: Format = "{{.Name}}\\t{{ .master.nodename }}:{{.Epoch}}".parse().unwrap();
    let text = output::list(&format, &[], &[some_volume()], volume::row).unwrap();
    assert_eq!(text, "data\tn1:4\n");
    let format: Format = "{{.Nothing}}".parse().unwrap();
    let error = output::list(&format, &[], &[some_volume()], volume::row).unwrap_err();
    assert_eq!(error.code, crate::api::Code::Usage);
    assert!(error.hint.unwrap().contains("namespace"));
}

#[test]
fn verify_names_the_copy_and_the_extents() {
    let copy: VerifiedCopy = serde_json::from_value(json!({
        "node": "3f2b8c1e-0000-4000-8000-0000000000a1", "nodeName": "n2", "master": false, "result": "differs",
        "differingExtents": [3, 7], "corruptBlocks": [],
    }))
    .unwrap();
    assert_eq!(volume::verified_row(&copy)[2], "differs (extents that differ: 3,7)");
    let copy = VerifiedCopy {
        result: "corrupt".into(),
        differing_extents: vec![],
        corrupt_blocks: vec![1024, 1025, 5000],
        ..copy
    };
    assert_eq!(
        volume::verified_row(&copy)[2],
        "corrupt (3 blocks do not match their sums, in extents: 1,4)"
    );
    let copy = VerifiedCopy {
        result: "identical".into(),
        corrupt_blocks: vec![],
        ..copy
    };
    assert_eq!(volume::verified_row(&copy), ["n2", "replica", "identical"]);
}

#[test]
fn check_says_what_it_found() {
    let mut found: VolumeCheck = serde_json::from_value(json!({
        "volume": "default/data", "nodeName": "n1", "mounted": true, "inodes": 12, "usedBytes": 1_048_576,
        "capacity": 5_368_709_120_u64, "problems": [], "unlistedProblems": 0,
    }))
    .unwrap();
    assert_eq!(
        volume::checked(&found),
        "default/data: no problem found, 12 inodes, 1 MiB used of 5 GiB (mounted on n1)\n"
    );
    found.mounted = false;
    found.problems = vec!["inode 7 counts 2 links, there are 1".to_owned()];
    assert_eq!(
        volume::checked(&found),
        "default/data: 1 problem found, 12 inodes, 1 MiB used of 5 GiB (not mounted, checked on n1)\n  \
         inode 7 counts 2 links, there are 1\n"
    );
    found.unlisted_problems = 5;
    let text = volume::checked(&found);
    assert!(
        text.contains("6 problems found") && text.ends_with("  and 5 more\n"),
        "{text}"
    );
}

#[test]
fn cluster_health_says_what_is_wrong() {
    let health: ClusterHealth = serde_json::from_value(json!({
        "id": "3f2b8c1e-0000-4000-8000-0000000000c1", "healthy": false, "leader": "n1", "voters": ["n1", "n2", "n3"],
        "nodes": [
            {"name": "n1", "address": "10.0.0.1:1", "health": "healthy", "role": "leader"},
            {"name": "n2", "address": "10.0.0.2:1", "health": "offline", "role": "voter"},
        ],
        "volumes": {"healthy": 1, "degraded": 1}, "problems": ["node n2 is offline"],
    }))
    .unwrap();
    assert_eq!(
        cluster::detailed(&health),
        "unhealthy: 1/2 nodes healthy, 3 voters, leader n1, 1/2 volumes healthy\n\n\
         NODE  ADDRESS     HEALTH   CONTROL\n\
         n1    10.0.0.1:1  healthy  leader\n\
         n2    10.0.0.2:1  offline  voter\n\n\
         VOLUMES  HEALTH\n\
         1        degraded\n\
         1        healthy\n\n\
         Problems:\n  node n2 is offline\n"
    );
}

#[test]
fn sizes_and_spans_are_short() {
    for (count, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (5 << 30, "5 GiB"),
        (u64::MAX, "15.9 EiB"),
    ] {
        assert_eq!(output::bytes(count), text);
    }
    assert_eq!(output::span(1), "1 second");
    assert_eq!(output::span(7200), "2 hours");
    assert_eq!(output::span(-5), "0 seconds");
}
