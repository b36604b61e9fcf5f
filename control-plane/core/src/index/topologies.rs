//! Topologies: which nodes are neighbours, by node or by an attribute such as `zone`.

use std::collections::BTreeMap;

use brig_api::placement::OVER_NODE;

use super::NodeSlot;
use super::nodes::Nodes;

/// The number of a topology.
pub(crate) type TopologyId = usize;
/// The number of a value of a topology's attribute: a zone, a rack, a node.
pub(crate) type Domain = usize;

/// The domain of a node that lacks the attribute.
pub(crate) const NO_DOMAIN: Domain = usize::MAX;
/// The topology in which each node is a domain of its own; its domains are the slots of nodes.
pub(crate) const NODE: TopologyId = 0;

/// The values of one attribute.
#[derive(Debug, Clone, Default)]
pub(crate) struct Topology {
    key: String,
    values: BTreeMap<String, Domain>,
    names: Vec<String>,
    of_node: Vec<Domain>,
}

/// All topologies that rules name.
#[derive(Debug, Clone)]
pub(crate) struct Topologies {
    rows: Vec<Topology>,
}

impl Default for Topologies {
    fn default() -> Self {
        Self { rows: vec![Topology { key: OVER_NODE.to_owned(), ..Topology::default() }] }
    }
}

impl Topologies {
    /// The topology of that key.
    pub(crate) fn intern(&mut self, key: &str, nodes: &Nodes) -> TopologyId {
        if let Some(known) = self.rows.iter().position(|row| row.key == key) {
            return known;
        }
        self.rows.push(Topology { key: key.to_owned(), ..Topology::default() });
        let id = self.rows.len() - 1;
        for slot in 0..nodes.slots() {
            self.place(id, slot, nodes);
        }
        id
    }

    /// `node` or the attribute.
    pub(crate) fn key(&self, id: TopologyId) -> &str {
        &self.rows[id].key
    }

    /// How many values it has had so far; for nodes, how many slots.
    pub(crate) fn domains(&self, id: TopologyId, nodes: &Nodes) -> usize {
        if id == NODE { nodes.slots() } else { self.rows[id].names.len() }
    }

    /// The value that a domain stands for.
    pub(crate) fn name(&self, id: TopologyId, domain: Domain) -> &str {
        self.rows[id].names.get(domain).map_or("", String::as_str)
    }

    /// The domain that a node is in.
    pub(crate) fn of(&self, id: TopologyId, slot: NodeSlot) -> Domain {
        if id == NODE {
            return slot;
        }
        self.rows[id].of_node.get(slot).copied().unwrap_or(NO_DOMAIN)
    }

    /// A node came, went or changed. Nothing may be counted on it meanwhile.
    pub(crate) fn node_changed(&mut self, slot: NodeSlot, nodes: &Nodes) {
        for id in 1..self.rows.len() {
            self.place(id, slot, nodes);
        }
    }

    fn place(&mut self, id: TopologyId, slot: NodeSlot, nodes: &Nodes) {
        let row = &mut self.rows[id];
        let value = nodes.get(slot).and_then(|node| node.facts.attributes.get(&row.key));
        let domain = match value {
            None => NO_DOMAIN,
            Some(value) => match row.values.get(value) {
                Some(domain) => *domain,
                None => {
                    row.names.push(value.clone());
                    row.values.insert(value.clone(), row.names.len() - 1);
                    row.names.len() - 1
                }
            },
        };
        if row.of_node.len() <= slot {
            row.of_node.resize(slot + 1, NO_DOMAIN);
        }
        row.of_node[slot] = domain;
    }
}
