//! Which nodes get a volume's copies.
//!
//! A node can hold a copy when it is alive, not cordoned, drained or compute-only, has space, meets the volume's
//! selector and has no copy of it yet. Among those the copies are picked one by one: first the node that
//! `hint.master` names, then the least used failure domain (a node without one is its own), then the most free bytes for each copy
//! that the node would hold. Ties are broken by the seed, so that the same input gives the same answer.

use super::{Node, NodeId, NodeLabels};
use rand::{Rng, SeedableRng, rngs::SmallRng};
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

/// A node as placement sees it.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Its record.
    pub node: &'a Node,
    /// It holds its lease.
    pub alive: bool,
    /// Copies of any volume that it holds.
    pub copies: usize,
}

/// What is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// How many copies, besides those there are.
    pub copies: usize,
    /// Nodes that have a copy already.
    pub holders: &'a BTreeSet<NodeId>,
    /// The volume's node selector; see [`Selector::parse`].
    pub selector: &'a str,
    /// Name or id of the node that should come first, if it can.
    pub hint: Option<&'a str>,
}

/// Why a node cannot hold a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// Its lease ran out.
    Dead,
    /// It takes no new copies.
    Cordoned,
    /// Its copies are being moved off.
    Drained,
    /// Its label says so.
    ComputeOnly,
    /// It does not meet the volume's selector.
    Selector,
    /// It has one.
    Holder,
    /// No space.
    Full,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dead => "is offline",
            Self::Cordoned => "is cordoned",
            Self::Drained => "is drained",
            Self::ComputeOnly => "is computeonly",
            Self::Selector => "does not meet the node selector",
            Self::Holder => "holds a copy already",
            Self::Full => "has no free space",
        })
    }
}

/// Why copies could not be placed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// Not enough nodes.
    #[error("{}", .0)]
    TooFew(TooFew),
    /// The selector cannot be read.
    #[error(transparent)]
    Selector(#[from] SelectorError),
}

/// The numbers behind [`PlacementError::TooFew`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TooFew {
    /// Copies wanted.
    pub wanted: usize,
    /// Nodes that can hold one.
    pub able: usize,
    /// Nodes there are.
    pub nodes: usize,
    /// Name of each other node and why it cannot.
    pub others: Vec<(String, Obstacle)>,
}

impl fmt::Display for TooFew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let copies = if self.wanted == 1 { "copy" } else { "copies" };
        write!(
            f,
            "{} {copies} wanted, each on a node of its own, but {} of {} nodes can hold one",
            self.wanted, self.able, self.nodes
        )?;
        for (i, (name, obstacle)) in self.others.iter().enumerate() {
            write!(f, "{} {name} {obstacle}", if i == 0 { ":" } else { ";" })?;
        }
        Ok(())
    }
}

/// The selector cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a selector: expected terms `key=value` or `key!=value`, separated by commas")]
pub struct SelectorError(pub String);

/// Terms that labels must meet, all of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<(String, bool, String)>);

impl Selector {
    /// Parses `key=value` (also `==`) and `key!=value`, separated by commas; empty: everything matches.
    ///
    /// # Errors
    /// [`SelectorError`] names the term.
    pub fn parse(text: &str) -> Result<Self, SelectorError> {
        let mut terms = Vec::new();
        for term in text.split(',').map(str::trim).filter(|t| !t.is_empty()) {
            let bad = || SelectorError(term.to_owned());
            let (key, value) = term.split_once('=').ok_or_else(bad)?;
            let (key, equal) = key.strip_suffix('!').map_or((key, true), |key| (key, false));
            let key = key.trim();
            let value = value.strip_prefix('=').unwrap_or(value).trim();
            if key.is_empty() || key.contains('!') {
                return Err(bad());
            }
            terms.push((key.to_owned(), equal, value.to_owned()));
        }
        Ok(Self(terms))
    }

    /// Whether labels meet all terms. `key!=value` is met by labels without the key.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0
            .iter()
            .all(|(key, equal, value)| (labels.get(key) == Some(value)) == *equal)
    }
}

/// Picks nodes for the wanted copies, the one best fit for the master first.
///
/// # Errors
/// [`PlacementError`], with the reason for each node that cannot hold one.
pub fn place(wanted: &Wanted<'_>, candidates: &[Candidate<'_>], seed: u64) -> Result<Vec<NodeId>, PlacementError> {
    let selector = Selector::parse(wanted.selector)?;
    let mut able = Vec::new();
    let mut others = Vec::new();
    let mut domains = BTreeMap::<String, usize>::new();
    for candidate in candidates {
        let labels = NodeLabels::of(&candidate.node.labels);
        let domain = labels.failure_domain.unwrap_or_else(|| candidate.node.id.to_string());
        match obstacle(wanted, candidate, labels.compute_only, &selector) {
            None => able.push((candidate, domain)),
            Some(obstacle) => {
                if obstacle == Obstacle::Holder {
                    *domains.entry(domain).or_default() += 1;
                }
                others.push((candidate.node.name.clone(), obstacle));
            }
        }
    }
    if able.len() < wanted.copies {
        return Err(PlacementError::TooFew(TooFew {
            wanted: wanted.copies,
            able: able.len(),
            nodes: candidates.len(),
            others,
        }));
    }
    able.sort_by_key(|(c, _)| c.node.id);
    let mut rng = SmallRng::seed_from_u64(seed);
    let mut picked = Vec::with_capacity(wanted.copies);
    while picked.len() < wanted.copies {
        let first = picked.is_empty();
        let best = able.iter().enumerate().min_by_key(|(_, (candidate, domain))| {
            let hinted = first && wanted.hint.is_some_and(|hint| names(candidate.node, hint));
            let used = domains.get(domain).copied().unwrap_or(0);
            let share = candidate.node.free / (candidate.copies as u64).saturating_add(1);
            (!hinted, used, std::cmp::Reverse(share), rng.random::<u64>())
        });
        let Some((index, _)) = best else { break };
        let (candidate, domain) = able.swap_remove(index);
        *domains.entry(domain).or_default() += 1;
        picked.push(candidate.node.id);
    }
    Ok(picked)
}

/// Whether `hint` is the node's name or id.
fn names(node: &Node, hint: &str) -> bool {
    node.name == hint || node.id.to_string() == hint
}

fn obstacle(
    wanted: &Wanted<'_>,
    candidate: &Candidate<'_>,
    compute_only: bool,
    selector: &Selector,
) -> Option<Obstacle> {
    let node = candidate.node;
    [
        (wanted.holders.contains(&node.id), Obstacle::Holder),
        (!candidate.alive, Obstacle::Dead),
        (compute_only, Obstacle::ComputeOnly),
        (node.drained, Obstacle::Drained),
        (node.cordoned, Obstacle::Cordoned),
        (!selector.matches(&node.labels), Obstacle::Selector),
        (node.capacity > 0 && node.free == 0, Obstacle::Full),
    ]
    .into_iter()
    .find_map(|(applies, obstacle)| applies.then_some(obstacle))
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
