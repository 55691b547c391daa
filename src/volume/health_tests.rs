//! The words for each state of a volume.

use super::*;
use crate::volume::Configuration;
use proptest::prelude::*;

fn id(n: u8) -> NodeId {
    NodeId::from_bytes([n; 16])
}

fn ids(of: &[u8]) -> BTreeSet<NodeId> {
    of.iter().copied().map(id).collect()
}

fn volume(labels: &[(&str, &str)], in_sync: &[u8], syncing: &[u8], lost: &[u8]) -> Volume {
    let labels = labels
        .iter()
        .map(|(k, v)| (format!("storageos.com/{k}"), (*v).to_owned()));
    Volume {
        labels: labels.collect(),
        configuration: Configuration {
            epoch: 1,
            master: in_sync.first().copied().map(id),
            in_sync: ids(in_sync),
            syncing: ids(syncing),
            lost: lost.iter().map(|n| (id(*n), jiff::Timestamp::UNIX_EPOCH)).collect(),
            established: 2,
            ..Configuration::unplaced()
        },
        ..Volume::sample()
    }
}

fn words(volume: &Volume, live: &[u8]) -> String {
    let of = assess(volume, &ids(live), |n| format!("n{}", n.as_bytes()[0]));
    format!("{} {} {}: {}", of.status, of.health, of.healthy_replicas, of.message)
}

#[test]
fn every_state_of_a_volume_has_its_words() {
    let two = [("replicas", "2")];
    let v = |in_sync: &[u8], syncing: &[u8], lost: &[u8]| volume(&two, in_sync, syncing, lost);
    assert_eq!(words(&v(&[1, 2, 3], &[], &[]), &[1, 2, 3]), "active healthy 2: ");
    assert_eq!(words(&v(&[1, 2, 3], &[], &[]), &[1, 2]), "active suspect 1: n3 offline");
    assert_eq!(
        words(&v(&[1, 2], &[3], &[]), &[1, 2, 3]),
        "active syncing 1: syncing to n3"
    );
    assert!(words(&v(&[1, 2], &[3], &[]), &[1, 2]).starts_with("active degraded 1: 1 of 2 replicas"));
    assert!(words(&v(&[1, 2], &[], &[3]), &[1, 2]).starts_with("active degraded 1: 1 of 2 replicas"));
    assert_eq!(
        words(&v(&[1, 2, 3], &[], &[]), &[2, 3]),
        "unavailable degraded 2: n1, its master's node, is offline; a replica takes over shortly"
    );
    assert_eq!(
        words(&v(&[1, 2], &[3], &[]), &[3]),
        "unavailable offline 0: no node with an up-to-date copy is online; it returns as soon as one of n1, n2 does"
    );
    assert!(words(&v(&[], &[], &[]), &[1]).starts_with("pending offline 0: "));
}

#[test]
fn a_volume_that_may_not_be_written_says_why_and_what_would_free_it() {
    let hard = volume(&[("replicas", "2"), ("failure.mode", "hard")], &[1, 2], &[], &[3]);
    assert_eq!(
        words(&hard, &[1, 2, 3]),
        "unavailable degraded 1: not writable: 1 of 2 replicas lost, failure mode hard tolerates 0; it returns when n3 \
         or replacements are in sync, or with storageos.com/failure.mode=soft or alwayson"
    );
    let soft = volume(&[("replicas", "2"), ("failure.tolerance", "0")], &[1, 2], &[], &[3]);
    assert!(
        words(&soft, &[1, 2, 3])
            .ends_with("or with a higher storageos.com/failure.tolerance or storageos.com/failure.mode=alwayson")
    );
    let alwayson = volume(&[("replicas", "2"), ("failure.mode", "alwayson")], &[1], &[], &[2, 3]);
    assert!(words(&alwayson, &[1]).starts_with("active degraded 0"));
}

proptest! {
    /// Healthy means that nothing is missing, active that somebody can serve; and every trouble has a text.
    #[test]
    fn words_never_claim_more_than_is_there(states in prop::collection::vec(0_u8..6, 1..6), wanted in 0_u8..=5) {
        let mut v = volume(&[("replicas", &wanted.to_string())], &[], &[], &[]);
        let mut live = BTreeSet::new();
        for (i, state) in states.iter().enumerate() {
            let node = id(u8::try_from(i).unwrap());
            if state % 2 == 0 {
                live.insert(node);
            }
            match state / 2 {
                0 => { v.configuration.in_sync.insert(node); }
                1 => { v.configuration.syncing.insert(node); }
                _ => { v.configuration.lost.insert(node, jiff::Timestamp::UNIX_EPOCH); }
            }
        }
        v.configuration.master = v.configuration.in_sync.first().copied();
        prop_assert!(v.configuration.check());
        let of = assess(&v, &live, |n| n.to_string());
        prop_assert_eq!(of.copies.len(), states.len());
        prop_assert!(of.copies.iter().skip(1).all(|c| !c.master));
        let master_lives = v.configuration.master.is_some_and(|m| live.contains(&m));
        if of.status == VolumeStatus::Active {
            prop_assert!(master_lives);
        }
        if of.health == VolumeHealth::Healthy {
            prop_assert!(master_lives && of.healthy_replicas >= wanted);
        } else {
            prop_assert!(!of.message.is_empty());
        }
    }
}
