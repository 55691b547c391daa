//! Tables of labels that are taken and refused.

use super::*;

fn volume(pairs: &[(&str, &str)]) -> Result<Labels, LabelError> {
    canonical(pairs.iter().copied(), Scope::Volume)
}

fn typed(pairs: &[(&str, &str)]) -> VolumeLabels {
    VolumeLabels::parse(&volume(pairs).unwrap()).unwrap()
}

#[test]
fn every_spelling_of_a_label_means_the_same() {
    for key in ["storageos.com/failure.mode", "storageos.com/failure-mode"] {
        assert_eq!(typed(&[(key, "hard")]).failure_mode, FailureMode::Hard);
    }
    for key in ["storageos.feature.failure.mode", "storageos.feature.failure-mode"] {
        assert_eq!(volume(&[(key, "alwayson")]).unwrap()[FAILURE_MODE], "alwayson");
    }
    for key in ["storageos.com/replicas", "storageos.feature.replicas"] {
        assert_eq!(typed(&[(key, "5")]).replicas, 5);
    }
    assert_eq!(volume(&[("app", "web, one")]).unwrap()["app"], "web, one");
}

#[test]
fn labels_left_out_have_the_documented_defaults() {
    let default = typed(&[]);
    assert_eq!(default, VolumeLabels::default());
    assert_eq!(default.io_timeout, Duration::from_secs(90));
    assert_eq!(default.failure_rule().tolerated(), 0);
}

#[test]
fn times_are_read_with_and_without_unit() {
    for (text, seconds) in [("90", 90), ("90s", 90), ("2m", 120), ("1", 1), ("60m", 3600)] {
        assert_eq!(typed(&[(IO_TIMEOUT, text)]).io_timeout, Duration::from_secs(seconds));
    }
    for bad in ["0", "", "s", "m", "61m", "-1", "1h", "1.5s", "99999999999999999999m"] {
        assert!(volume(&[(IO_TIMEOUT, bad)]).is_err(), "{bad}");
    }
}

#[test]
fn a_bad_value_is_refused_with_what_is_allowed() {
    for (key, value, part) in [
        (REPLICAS, "6", "0 to 5"),
        (REPLICAS, "+1", "0 to 5"),
        (REPLICAS, "", "0 to 5"),
        (FAILURE_MODE, "Soft", "`soft`, `hard` or `alwayson`"),
        (FAILURE_TOLERANCE, "5", "0 to 4"),
        (THROTTLE, "yes", "`true` or `false`"),
        (HINT_MASTER, " ", "a node's name or id"),
    ] {
        let text = volume(&[(key, value)]).unwrap_err().to_string();
        assert!(text.contains(part) && text.contains(key), "{text}");
    }
}

#[test]
fn an_unknown_label_of_ours_is_refused_with_the_list() {
    for key in [
        "storageos.com/replica",
        "storageos.feature.x",
        "storageos.replicas",
        "storageos.com/deployment",
    ] {
        let text = volume(&[(key, "1")]).unwrap_err().to_string();
        assert!(
            text.contains(key) && text.contains(REPLICAS) && text.contains(IO_TIMEOUT),
            "{text}"
        );
    }
    for key in ["nocompress", "nocache", "encryption"] {
        let key = format!("storageos.feature.{key}");
        let error = volume(&[(&key, "true")]).unwrap_err();
        assert!(matches!(error, LabelError::Unsupported(_)), "{error}");
    }
}

#[test]
fn labels_that_contradict_each_other_are_refused() {
    let error = volume(&[(REPLICAS, "1"), ("storageos.feature.replicas", "2")]).unwrap_err();
    assert!(matches!(error, LabelError::Twice { .. }));
    let error = volume(&[(REPLICAS, "1"), (FAILURE_TOLERANCE, "2")]).unwrap_err();
    assert_eq!(
        error,
        LabelError::Tolerance {
            tolerance: 2,
            replicas: 1
        }
    );
    assert!(volume(&[(REPLICAS, "1"), (FAILURE_TOLERANCE, "1")]).is_ok());
}

#[test]
fn keys_and_values_have_bounds() {
    for key in ["", "a b", "a=b", "a\n", &"k".repeat(254)] {
        assert!(matches!(volume(&[(key, "")]), Err(LabelError::Key(_))), "{key}");
    }
    assert!(volume(&[("k", &"v".repeat(1024))]).is_ok());
    assert_eq!(volume(&[("k", &"v".repeat(1025))]), Err(LabelError::Long("k".into())));
}

#[test]
fn updates_replace_and_remove_in_any_spelling() {
    let labels = volume(&[(REPLICAS, "2"), (FAILURE_TOLERANCE, "2"), ("a", "1")]).unwrap();
    let add = Labels::from([("storageos.feature.replicas".into(), "3".into())]);
    let changed = apply(&labels, &add, &["a".into(), "absent".into()], Scope::Volume).unwrap();
    assert_eq!(changed[REPLICAS], "3");
    assert!(!changed.contains_key("a"));
    let lowered = Labels::from([(REPLICAS.into(), "1".into())]);
    assert!(apply(&labels, &lowered, &[], Scope::Volume).is_err());
    let gone = ["storageos.feature.failure.tolerance".to_owned()];
    assert!(apply(&labels, &lowered, &gone, Scope::Volume).is_ok());
}

#[test]
fn node_labels_are_typed_too() {
    let node = |pairs: &[(&str, &str)]| canonical(pairs.iter().copied(), Scope::Node).map(|l| NodeLabels::of(&l));
    assert_eq!(node(&[]).unwrap(), NodeLabels::default());
    assert!(
        node(&[("storageos.feature.deployment", "computeonly")])
            .unwrap()
            .compute_only
    );
    assert!(node(&[("storageos.com/deployment", "none")]).is_err());
    assert!(node(&[(REPLICAS, "1")]).is_err());
    for key in DOMAINS {
        assert_eq!(node(&[(key, "a")]).unwrap().failure_domain.as_deref(), Some("a"));
    }
}
