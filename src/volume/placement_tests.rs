//! Placement: tables for the obstacles and preferences, a property for every cluster.

use super::*;
use proptest::prelude::*;

fn run(nodes: &[Node], dead: &[u8], wanted: Wanted<'_>) -> Result<Vec<String>, PlacementError> {
    let candidates: Vec<_> = nodes
        .iter()
        .map(|node| Candidate {
            node,
            alive: !dead.iter().any(|n| node.id == NodeId::from_bytes([*n; 16])),
            copies: 0,
        })
        .collect();
    let picked = place(&wanted, &candidates, 7)?;
    Ok(picked
        .iter()
        .map(|id| nodes.iter().find(|n| n.id == *id).unwrap().name.clone())
        .collect())
}

fn want(copies: usize) -> Wanted<'static> {
    static NONE: BTreeSet<NodeId> = BTreeSet::new();
    Wanted {
        copies,
        holders: &NONE,
        selector: "",
        hint: None,
    }
}

#[test]
fn a_refusal_says_why_each_node_cannot_hold_a_copy() {
    let mut nodes: Vec<_> = (1..=7).map(Node::sample).collect();
    nodes[1].cordoned = true;
    nodes[2].drained = true;
    nodes[3]
        .labels
        .insert("storageos.com/deployment".into(), "computeonly".into());
    nodes[4].free = 0;
    nodes[5].labels.insert("disk".into(), "hdd".into());
    let wanted = Wanted {
        selector: "disk!=hdd",
        ..want(3)
    };
    let error = run(&nodes, &[7], wanted).unwrap_err();
    assert_eq!(
        error.to_string(),
        "3 copies wanted, each on a node of its own, but 1 of 7 nodes can hold one: n2 is cordoned; n3 is drained; \
         n4 is computeonly; n5 has no free space; n6 does not meet the node selector; n7 is offline"
    );
}

#[test]
fn the_hinted_node_comes_first_when_it_can() {
    let mut nodes: Vec<_> = (1..=3).map(Node::sample).collect();
    nodes[2].free = 1;
    for hint in ["n3", &NodeId::from_bytes([3; 16]).to_string()] {
        let wanted = Wanted {
            hint: Some(hint),
            ..want(2)
        };
        assert_eq!(run(&nodes, &[], wanted).unwrap()[0], "n3");
        assert_ne!(run(&nodes, &[3], wanted).unwrap()[0], "n3");
    }
}

#[test]
fn copies_are_spread_over_failure_domains_before_capacity_counts() {
    let mut nodes: Vec<_> = (1..=4).map(Node::sample).collect();
    for (i, domain) in ["a", "a", "b", "b"].iter().enumerate() {
        nodes[i].labels.insert("iaas/failure-domain".into(), (*domain).into());
    }
    nodes[2].free = 1;
    nodes[3].free = 2;
    let picked = run(&nodes, &[], want(2)).unwrap();
    assert!(picked.contains(&"n4".to_owned()), "{picked:?}");
    // The domains of the copies that are there count too.
    let holders = BTreeSet::from([nodes[0].id]);
    let wanted = Wanted {
        holders: &holders,
        ..want(1)
    };
    assert_eq!(run(&nodes, &[], wanted).unwrap(), ["n4"]);
}

#[test]
fn the_node_with_the_most_space_for_each_copy_is_preferred() {
    let nodes: Vec<_> = (1..=2).map(Node::sample).collect();
    let candidates = [(3, &nodes[0]), (2, &nodes[1])].map(|(copies, node)| Candidate {
        node,
        alive: true,
        copies,
    });
    assert_eq!(place(&want(1), &candidates, 1).unwrap(), [nodes[1].id]);
}

#[test]
fn selectors_are_read_and_matched() {
    let labels = BTreeMap::from([("a".to_owned(), "1".to_owned())]);
    for (text, matches) in [
        ("", true),
        ("a=1", true),
        ("a==1", true),
        ("a=2", false),
        ("a!=1", false),
        ("a=1, b!=2", true),
        ("b=2", false),
        ("b=", false),
    ] {
        assert_eq!(Selector::parse(text).unwrap().matches(&labels), matches, "{text}");
    }
    for bad in ["a", "=1", "!=1", "a=1,b"] {
        assert!(Selector::parse(bad).is_err(), "{bad}");
    }
}

proptest! {
    #[test]
    fn copies_land_on_distinct_able_nodes_or_the_numbers_are_told(
        facts in prop::collection::vec((any::<bool>(), any::<bool>(), any::<bool>(), 0_u64..5, 0_u8..3, 0_usize..4), 0..8),
        copies in 0_usize..7,
        seed: u64,
    ) {
        let nodes: Vec<_> = facts.iter().enumerate().map(|(i, (_, cordoned, drained, free, domain, _))| {
            let mut node = Node::sample(u8::try_from(i).unwrap());
            (node.cordoned, node.drained, node.free) = (*cordoned, *drained, *free);
            if *domain > 0 {
                node.labels.insert("iaas/failure-domain".into(), domain.to_string());
            }
            node
        }).collect();
        let candidates: Vec<_> = nodes.iter().zip(&facts).map(|(node, fact)| Candidate {
            node,
            alive: fact.0,
            copies: fact.5,
        }).collect();
        let able = |c: &&Candidate<'_>| c.alive && !c.node.cordoned && !c.node.drained && c.node.free > 0;
        let count = candidates.iter().filter(able).count();
        match place(&want(copies), &candidates, seed) {
            Ok(picked) => {
                prop_assert_eq!(picked.len(), copies);
                prop_assert_eq!(picked.iter().collect::<BTreeSet<_>>().len(), copies);
                for id in &picked {
                    prop_assert!(able(&candidates.iter().find(|c| c.node.id == *id).unwrap()));
                }
                prop_assert_eq!(place(&want(copies), &candidates, seed).unwrap(), picked);
            }
            Err(PlacementError::TooFew(few)) => {
                prop_assert!(count < copies);
                prop_assert_eq!((few.able, few.wanted, few.nodes), (count, copies, nodes.len()));
                prop_assert_eq!(few.others.len(), nodes.len() - count);
            }
            Err(other) => prop_assert!(false, "{}", other),
        }
    }
}
