//! What Docker's options ask for, and what it is shown. Pure; the calls themselves are in `server_tests`.

use super::*;
use serde_json::json;

fn asked(opts: &[(&str, &str)]) -> Result<Asked, ApiError> {
    Asked::parse(opts.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect())
}

fn volume(size: u64, labels: &[(&str, &str)]) -> VolumeInfo {
    let labels: BTreeMap<_, _> = labels.iter().copied().collect();
    let node = "3f2b8c1e-0000-4000-8000-0000000000a1";
    let copy = |name: &str, health: &str| {
        json!({"id": name, "node": node, "nodeName": name, "health": health, "status": "active",
               "createdAt": "2026-01-01T00:00:00Z"})
    };
    serde_json::from_value(json!({
        "id": node, "name": "data", "size": size, "pool": "default", "description": "", "labels": labels,
        "namespace": "default", "nodeSelector": "", "master": copy("n1", "healthy"), "mounted": true, "mountpoint": "/mnt",
        "mountedAt": "2026-01-01T00:00:00Z", "mountedBy": "n2", "readOnly": false, "desiredReplicas": 1,
        "replicas": [copy("n2", "syncing")], "health": "syncing", "status": "active", "statusMessage": "", "epoch": 4,
        "usedBytes": 1 << 20, "createdAt": "2026-01-01T00:00:00Z", "createdBy": "storageos",
    }))
    .unwrap()
}

#[test]
fn options_are_those_of_volume_create_and_everything_else_is_a_label() {
    let wish = asked(&[
        ("size", "15"),
        ("storageos.feature.replicas", "2"),
        ("storageos.com/failure-mode", "hard"),
        ("app", "db"),
        ("description", "for orders"),
        ("pool", "default"),
        ("fstype", "ext4"),
    ])
    .unwrap();
    assert_eq!(wish.size, Some(15 << 30));
    assert_eq!(wish.description, "for orders");
    let labels: Vec<_> = wish.labels.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        labels,
        [
            ("app", "db"),
            ("storageos.com/failure.mode", "hard"),
            ("storageos.com/replicas", "2"),
        ]
    );
    assert_eq!(asked(&[]).unwrap(), Asked::default());
    // The sizes of the command line, and no option becomes a label by its case.
    assert_eq!(asked(&[("Size", "512MiB")]).unwrap().size, Some(512 << 20));
    assert_eq!(asked(&[("size", "20GiB")]).unwrap().size, Some(20 << 30));
}

#[test]
fn what_is_not_allowed_is_named() {
    for (key, value, says) in [
        ("size", "big", "option size: `big` is not a size"),
        ("size", "0", "option size: a volume's size must be greater than 0"),
        ("size", "-1", "is not a size"),
        ("storageos.com/replicas", "6", "expected 0 to 5"),
        ("storageos.com/replica", "1", "unknown label"),
        ("a=b", "1", "is not a label's key"),
        ("pool", "ssd", "there is one pool"),
    ] {
        let error = asked(&[(key, value)]).unwrap_err();
        assert_eq!(error.code, Code::Invalid);
        assert!(error.message.contains(says), "{error}");
    }
    for name in ["", "a/b", "..", "-v", "a b", &"x".repeat(65)] {
        assert_eq!(check(name).unwrap_err().code, Code::Invalid, "{name}");
    }
    // Docker's own name for a volume without one.
    check(&"0123456789abcdef".repeat(4)).unwrap();
    assert!(check_id("").is_err() && check_id(&"x".repeat(MAX_ID + 1)).is_err());
}

#[test]
fn a_volume_that_exists_will_do_if_it_has_what_was_asked_for() {
    let found = volume(5 << 30, &[("storageos.com/replicas", "1"), ("app", "db")]);
    let differs = |opts: &[(&str, &str)]| asked(opts).unwrap().differs_from(&found);
    assert_eq!(differs(&[]), None);
    assert_eq!(differs(&[("size", "5"), ("storageos.feature.replicas", "1")]), None);
    assert_eq!(differs(&[("size", "6")]).unwrap(), "its size is 5 GiB, not 6 GiB");
    assert_eq!(
        differs(&[("storageos.com/replicas", "2")]).unwrap(),
        "its label storageos.com/replicas is 1, not 2"
    );
    assert_eq!(differs(&[("team", "a")]).unwrap(), "it has no label team");
    assert_eq!(differs(&[("node-selector", "a=b")]).unwrap(), "its node selector is ``");
}

#[test]
fn docker_shows_how_a_volume_is() {
    let shown = Value::Object(status(&volume(15 << 30, &[("app", "db")])));
    assert_eq!(
        shown,
        json!({
            "health": "syncing", "status": "active", "size": "15 GiB", "used": "1 MiB", "master": "n1 (healthy)",
            "desiredReplicas": 1, "replicas": ["n2 (syncing)"], "labels": {"app": "db"}, "mountedOn": "n2:/mnt",
        })
    );
}
