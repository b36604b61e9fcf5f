//! What can be in the way of a unit on a node.

/// What a filter found in the way. The order is the order in which filters are asked; a node is counted for the first that
/// turns it down.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Obstacle {
    /// The node is out of touch.
    Ready,
    /// It lacks a runtime.
    Runtime,
    /// A constraint on its attributes does not hold.
    Attributes,
    /// It has a taint that the unit does not tolerate.
    Taints,
    /// It does not offer a directory that the unit mounts.
    Volumes,
    /// It does not hold all that the unit would run there, and must.
    Artifacts,
    /// A port is taken, or too few are left.
    Ports,
    /// There is too little of a resource.
    Resources,
    /// What is free is kept for a gang that waits.
    Kept,
    /// The units that it must be near are elsewhere.
    Near,
    /// A unit is there that it must be away from, or that must be away from it.
    Away,
    /// There are too many of its kind already.
    Spread,
}

impl Obstacle {
    /// All of them, in their order.
    pub(crate) const ALL: [Self; 12] = [
        Self::Ready,
        Self::Runtime,
        Self::Attributes,
        Self::Taints,
        Self::Volumes,
        Self::Artifacts,
        Self::Ports,
        Self::Resources,
        Self::Kept,
        Self::Near,
        Self::Away,
        Self::Spread,
    ];

    /// The filter's name in explanations.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Runtime => "runtime",
            Self::Attributes => "attributes",
            Self::Taints => "taints",
            Self::Volumes => "volumes",
            Self::Artifacts => "artifacts",
            Self::Ports => "ports",
            Self::Resources => "resources",
            Self::Kept => "kept",
            Self::Near => "near",
            Self::Away => "away",
            Self::Spread => "spread",
        }
    }

    /// Its position in [`Self::ALL`].
    pub(crate) fn position(self) -> usize {
        match self {
            Self::Ready => 0,
            Self::Runtime => 1,
            Self::Attributes => 2,
            Self::Taints => 3,
            Self::Volumes => 4,
            Self::Artifacts => 5,
            Self::Ports => 6,
            Self::Resources => 7,
            Self::Kept => 8,
            Self::Near => 9,
            Self::Away => 10,
            Self::Spread => 11,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn obstacles_stand_where_they_say() {
        for (position, obstacle) in Obstacle::ALL.into_iter().enumerate() {
            assert_eq!(obstacle.position(), position);
        }
        assert!(Obstacle::ALL.is_sorted());
    }
}
