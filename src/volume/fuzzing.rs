//! Hostile text for names, sizes, labels and selectors; see [`crate::fuzzing`].

use super::{
    Bytes, ClusterId, Labels, NodeLabels, Scope, Selector, Size, VolumeLabels, VolumeRef, apply_labels,
    canonical_labels, check_name,
};

/// Labels as lines `key=value`; those that begin with `-` are to be removed.
pub(crate) fn labels(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let (removed, set): (Vec<&str>, Vec<&str>) = text.lines().partition(|line| line.starts_with('-'));
    let given: Labels = set
        .into_iter()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect();
    let removed: Vec<String> = removed.iter().map(|line| line[1..].to_owned()).collect();
    let mut understood = false;
    for scope in [Scope::Volume, Scope::Node, Scope::Namespace] {
        let labels = canonical_labels(given.iter().map(|(k, v)| (k.as_str(), v.as_str())), scope);
        // What is wrong is told in a text that a person reads.
        let Ok(labels) = labels.inspect_err(|error| assert!(error.to_string().len() < 4096 + text.len())) else {
            continue;
        };
        understood |= !labels.is_empty();
        let again = canonical_labels(labels.iter().map(|(k, v)| (k.as_str(), v.as_str())), scope);
        assert_eq!(again.as_ref(), Ok(&labels));
        let _ = apply_labels(&labels, &given, &removed, scope);
    }
    // Records may hold what an earlier or later version let in.
    let _ = (VolumeLabels::of(&given), NodeLabels::of(&given));
    understood
}

pub(crate) fn labels_seeds() -> Vec<Vec<u8>> {
    [
        "storageos.com/replicas=2\nstorageos.feature.failure-mode=hard\nstorageos.com/io.timeout=2m\nmy=own\n-a",
        "storageos.com/deployment=computeonly\niaas/failure-domain=z",
        "storageos.com/failure.tolerance=1\nstorageos.com/replicas=1\nstorageos.com/throttle=true\nstorageos.com/hint.master=n",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A name, a size, an id, or a selector.
pub(crate) fn text(input: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(input) else {
        return false;
    };
    let mut understood = check_name(text).is_ok();
    if let Ok(name) = text.parse::<VolumeRef>() {
        assert_eq!(name.to_string().parse().as_ref(), Ok(&name));
        understood = true;
    }
    if let Ok(size) = text.parse::<Size>() {
        assert!(size.bytes().is_multiple_of(4096));
        assert_eq!(Size::from_bytes(size.bytes()), Ok(size));
        understood = true;
    }
    if let Ok(number) = text.parse() {
        let _ = Bytes(number).to_string();
    }
    if let Ok(id) = text.parse::<ClusterId>() {
        assert_eq!(id.to_string().parse().ok(), Some(id));
    }
    if let Ok(selector) = Selector::parse(text) {
        let _ = selector.matches(&Labels::from([("a".into(), "b".into())]));
        understood |= text.contains('=');
    }
    understood
}

pub(crate) fn text_seeds() -> Vec<Vec<u8>> {
    [
        "ns/volume-1",
        "512MiB",
        "20 GiB",
        "2TB",
        "a=b,c!=d,e==f",
        "02020202-0202-0202-0202-020202020202",
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}
