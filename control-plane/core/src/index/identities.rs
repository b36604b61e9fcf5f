//! Who units are to one another: identities (namespace, labels, owner), selectors over them, and how many of the selected
//! units are where.
//!
//! Units with one identity are matched by the same selectors, so a selector is matched against identities and never
//! against units. Counts are kept by domain for every topology in which a rule asks for them.

use std::collections::BTreeMap;
use std::sync::Arc;

use brig_api::NamespacePath;
use brig_api::object::Unit;
use brig_api::spec::Labels;

use super::nodes::Nodes;
use super::topologies::{Domain, NO_DOMAIN, Topologies, TopologyId};
use super::{NodeSlot, OwnerKey, owner_key};

/// The number of an identity.
pub(crate) type IdentityId = usize;
/// The number of a selector.
pub(crate) type SelectorId = usize;
/// The number of a term.
pub(crate) type TermId = usize;

type IdentityKey = (NamespacePath, Arc<Labels>, Option<OwnerKey>);

/// Which units are meant.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum SelectorKey {
    /// Those with all these labels in the namespace, or also below it.
    Labels { within: NamespacePath, is_exact: bool, labels: Labels },
    /// Those of one service or job.
    Owner(OwnerKey),
}

impl SelectorKey {
    fn matches(&self, (namespace, labels, owner): &IdentityKey) -> bool {
        match self {
            Self::Labels { within, is_exact, labels: wanted } => {
                let is_in =
                    if *is_exact { namespace == within } else { namespace.is_within(within) };
                is_in && wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
            }
            Self::Owner(wanted) => owner.as_ref() == Some(wanted),
        }
    }
}

#[derive(Debug, Clone)]
struct Identity {
    key: IdentityKey,
    /// Units that have it, on nodes or not.
    uses: usize,
    /// Units on nodes.
    nodes: BTreeMap<NodeSlot, u32>,
    selectors: Vec<SelectorId>,
}

#[derive(Debug, Clone)]
struct Selector {
    key: SelectorKey,
    uses: usize,
    total: u32,
    counts: BTreeMap<TopologyId, Vec<u32>>,
}

/// A rule that units hold against others: none that `selector` selects may be in a holder's domain.
#[derive(Debug, Clone)]
struct Term {
    selector: SelectorId,
    topology: TopologyId,
    uses: usize,
    holders: Vec<u32>,
}

/// All of it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Neighbourhoods {
    pub(crate) topologies: Topologies,
    identity_ids: BTreeMap<IdentityKey, IdentityId>,
    identities: Vec<Option<Identity>>,
    unused_identities: Vec<IdentityId>,
    selector_ids: BTreeMap<SelectorKey, SelectorId>,
    selectors: Vec<Option<Selector>>,
    unused_selectors: Vec<SelectorId>,
    term_ids: BTreeMap<(SelectorId, TopologyId), TermId>,
    terms: Vec<Option<Term>>,
    unused_terms: Vec<TermId>,
}

fn fill<T>(rows: &mut Vec<Option<T>>, unused: &mut Vec<usize>, row: T) -> usize {
    match unused.pop() {
        Some(id) => {
            rows[id] = Some(row);
            id
        }
        None => {
            rows.push(Some(row));
            rows.len() - 1
        }
    }
}

fn at_mut(counts: &mut Vec<u32>, domain: Domain) -> &mut u32 {
    if counts.len() <= domain {
        counts.resize(domain + 1, 0);
    }
    &mut counts[domain]
}

impl Neighbourhoods {
    /// The identity of a unit, used once more.
    pub(crate) fn identity(&mut self, unit: &Unit) -> IdentityId {
        let key = (unit.namespace.clone(), Arc::clone(&unit.labels), owner_key(unit));
        if let Some(id) = self.identity_ids.get(&key) {
            if let Some(identity) = &mut self.identities[*id] {
                identity.uses += 1;
            }
            return *id;
        }
        let selectors = self.selectors.iter().enumerate().filter_map(|(id, selector)| {
            selector.as_ref().filter(|selector| selector.key.matches(&key)).map(|_| id)
        });
        let identity = Identity {
            selectors: selectors.collect(),
            key: key.clone(),
            uses: 1,
            nodes: BTreeMap::new(),
        };
        let id = fill(&mut self.identities, &mut self.unused_identities, identity);
        self.identity_ids.insert(key, id);
        id
    }

    /// A unit with the identity is gone.
    pub(crate) fn release_identity(&mut self, id: IdentityId) {
        let Some(Some(identity)) = self.identities.get_mut(id) else { return };
        identity.uses -= 1;
        if identity.uses == 0 {
            let key = identity.key.clone();
            self.identity_ids.remove(&key);
            self.identities[id] = None;
            self.unused_identities.push(id);
        }
    }

    /// A selector whose units are counted in the topology, used once more.
    pub(crate) fn select(&mut self, key: SelectorKey, topology: TopologyId) -> SelectorId {
        let id = match self.selector_ids.get(&key) {
            Some(id) => *id,
            None => self.new_selector(key),
        };
        let Some(selector) = &mut self.selectors[id] else { return id };
        selector.uses += 1;
        let identities = &self.identities;
        let topologies = &self.topologies;
        selector.counts.entry(topology).or_insert_with(|| {
            let mut counts = Vec::new();
            for identity in identities.iter().flatten() {
                if identity.selectors.contains(&id) {
                    for (node, count) in &identity.nodes {
                        let domain = topologies.of(topology, *node);
                        if domain != NO_DOMAIN {
                            *at_mut(&mut counts, domain) += count;
                        }
                    }
                }
            }
            counts
        });
        id
    }

    fn new_selector(&mut self, key: SelectorKey) -> SelectorId {
        let matching = |identity: &&mut Identity| key.matches(&identity.key);
        let total = self.identities.iter_mut().flatten().filter(matching);
        let total = total.map(|identity| identity.nodes.values().sum::<u32>()).sum();
        let selector = Selector { key: key.clone(), uses: 0, total, counts: BTreeMap::new() };
        let id = fill(&mut self.selectors, &mut self.unused_selectors, selector);
        for identity in self.identities.iter_mut().flatten() {
            if key.matches(&identity.key) {
                identity.selectors.push(id);
            }
        }
        self.selector_ids.insert(key, id);
        id
    }

    /// A rule with the selector is gone.
    pub(crate) fn release_selector(&mut self, id: SelectorId) {
        let Some(Some(selector)) = self.selectors.get_mut(id) else { return };
        selector.uses -= 1;
        if selector.uses > 0 {
            return;
        }
        let key = selector.key.clone();
        self.selector_ids.remove(&key);
        self.selectors[id] = None;
        self.unused_selectors.push(id);
        for identity in self.identities.iter_mut().flatten() {
            identity.selectors.retain(|other| *other != id);
        }
    }

    /// A term of this selector, used once more. The term keeps the selector for itself.
    pub(crate) fn hold(&mut self, selector: SelectorId, topology: TopologyId) -> TermId {
        if let Some(id) = self.term_ids.get(&(selector, topology)) {
            if let Some(term) = &mut self.terms[*id] {
                term.uses += 1;
            }
            return *id;
        }
        if let Some(selector) = &mut self.selectors[selector] {
            selector.uses += 1;
        }
        let term = Term { selector, topology, uses: 1, holders: Vec::new() };
        let id = fill(&mut self.terms, &mut self.unused_terms, term);
        self.term_ids.insert((selector, topology), id);
        id
    }

    /// A shape with the term is gone.
    pub(crate) fn release_term(&mut self, id: TermId) {
        let Some(Some(term)) = self.terms.get_mut(id) else { return };
        term.uses -= 1;
        if term.uses == 0 {
            let (selector, topology) = (term.selector, term.topology);
            self.term_ids.remove(&(selector, topology));
            self.terms[id] = None;
            self.unused_terms.push(id);
            self.release_selector(selector);
        }
    }

    /// A unit came onto a node.
    pub(crate) fn charge(&mut self, identity: IdentityId, node: NodeSlot, held: &[TermId]) {
        self.change(identity, node, held, |count| *count = count.wrapping_add(1));
    }

    /// A unit left a node.
    pub(crate) fn uncharge(&mut self, identity: IdentityId, node: NodeSlot, held: &[TermId]) {
        self.change(identity, node, held, |count| *count = count.wrapping_sub(1));
    }

    fn change(
        &mut self,
        identity: IdentityId,
        node: NodeSlot,
        held: &[TermId],
        change: impl Fn(&mut u32),
    ) {
        let Some(Some(identity)) = self.identities.get_mut(identity) else { return };
        let here = identity.nodes.entry(node).or_default();
        change(here);
        if *here == 0 {
            identity.nodes.remove(&node);
        }
        for id in &identity.selectors {
            let Some(selector) = &mut self.selectors[*id] else { continue };
            change(&mut selector.total);
            for (topology, counts) in &mut selector.counts {
                let domain = self.topologies.of(*topology, node);
                if domain != NO_DOMAIN {
                    change(at_mut(counts, domain));
                }
            }
        }
        for id in held {
            let Some(term) = &mut self.terms[*id] else { continue };
            let domain = self.topologies.of(term.topology, node);
            if domain != NO_DOMAIN {
                change(at_mut(&mut term.holders, domain));
            }
        }
    }

    /// A node came, went or changed; nothing is charged to it at the moment.
    pub(crate) fn node_changed(&mut self, slot: NodeSlot, nodes: &Nodes) {
        self.topologies.node_changed(slot, nodes);
    }

    /// How many selected units are in a domain.
    pub(crate) fn count(&self, selector: SelectorId, topology: TopologyId, domain: Domain) -> u32 {
        let selector = self.selectors.get(selector).and_then(Option::as_ref);
        let counts = selector.and_then(|selector| selector.counts.get(&topology));
        counts.and_then(|counts| counts.get(domain)).copied().unwrap_or(0)
    }

    /// How many selected units are on nodes at all.
    pub(crate) fn total(&self, selector: SelectorId) -> u32 {
        self.selectors.get(selector).and_then(Option::as_ref).map_or(0, |selector| selector.total)
    }

    /// Does the selector mean units of this identity?
    pub(crate) fn is_selected(&self, selector: SelectorId, identity: IdentityId) -> bool {
        let identity = self.identities.get(identity).and_then(Option::as_ref);
        identity.is_some_and(|identity| identity.selectors.contains(&selector))
    }

    /// The terms that others may hold against units of this identity, each with its topology.
    pub(crate) fn terms_against(&self, identity: IdentityId) -> Vec<(TermId, TopologyId)> {
        let Some(Some(identity)) = self.identities.get(identity) else { return Vec::new() };
        let held = identity
            .selectors
            .iter()
            .flat_map(|selector| self.term_ids.range((*selector, 0)..=(*selector, usize::MAX)));
        held.map(|((_, topology), term)| (*term, *topology)).collect()
    }

    /// How many units in the domain hold the term.
    pub(crate) fn holders(&self, term: TermId, domain: Domain) -> u32 {
        let term = self.terms.get(term).and_then(Option::as_ref);
        term.and_then(|term| term.holders.get(domain)).copied().unwrap_or(0)
    }

    /// The selector in words.
    pub(crate) fn describe(&self, selector: SelectorId) -> String {
        match self.selectors.get(selector).and_then(Option::as_ref).map(|selector| &selector.key) {
            Some(SelectorKey::Labels { labels, .. }) => {
                let pairs: Vec<_> =
                    labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
                format!("units with {}", pairs.join(", "))
            }
            Some(SelectorKey::Owner((_, kind, name))) => format!("units of {kind} `{name}`"),
            None => String::new(),
        }
    }

    /// The selector of a term.
    pub(crate) fn selector_of(&self, term: TermId) -> SelectorId {
        self.terms.get(term).and_then(Option::as_ref).map_or(0, |term| term.selector)
    }
}
