//! A tournament tree: the best of many keys, kept through changes of single keys.

/// Keys at numbered places; the best is known at any time, and a change costs the logarithm of their number.
#[derive(Debug, Clone)]
pub(crate) struct Tournament<K> {
    places: usize,
    /// The winner of everything at 1; the children of `n` at `2n` and `2n + 1`; places from `places` on.
    keys: Vec<K>,
}

impl<K: Copy + Ord> Tournament<K> {
    /// A tree of these keys; `none` stands for nothing and is below every other key.
    pub(crate) fn new(of_places: impl ExactSizeIterator<Item = K>, none: K) -> Self {
        let places = of_places.len();
        let mut keys = vec![none; places];
        keys.extend(of_places);
        for node in (1..places).rev() {
            keys[node] = keys[2 * node].max(keys[2 * node + 1]);
        }
        Self { places, keys }
    }

    /// Changes the key at a place.
    pub(crate) fn set(&mut self, place: usize, key: K) {
        let mut node = self.places + place;
        if self.keys[node] == key {
            return;
        }
        self.keys[node] = key;
        while node > 1 {
            node /= 2;
            let winner = self.keys[2 * node].max(self.keys[2 * node + 1]);
            if self.keys[node] == winner {
                break;
            }
            self.keys[node] = winner;
        }
    }

    /// The best key; None for a tree without places.
    pub(crate) fn best(&self) -> Option<K> {
        // With one place its key is the winner already.
        self.keys.get(1).copied()
    }

    /// Adds the best keys to `found`, best first, at most `count` of them, none that is not above `none`.
    pub(crate) fn best_few(&self, count: usize, none: K, found: &mut Vec<K>) {
        let mut open: Vec<(K, usize)> = Vec::with_capacity(2 * count + 32);
        if let Some(best) = self.best() {
            open.push((best, 1));
        }
        let enough = found.len() + count;
        while found.len() < enough {
            let Some(next) = (0..open.len()).max_by_key(|index| open[*index]) else { break };
            let (key, node) = open.swap_remove(next);
            if key <= none {
                break;
            }
            if node >= self.places {
                found.push(key);
                continue;
            }
            for child in [2 * node, 2 * node + 1] {
                // What is not above nothing is never looked at again.
                if self.keys[child] > none {
                    open.push((self.keys[child], child));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_best_are_those_that_sorting_finds(
            start in proptest::collection::vec(0..50i64, 0..40),
            changes in proptest::collection::vec((0..40usize, 0..50i64), 0..60),
        ) {
            let mut plain: Vec<i64> = start;
            let mut tree = Tournament::new(plain.iter().copied(), i64::MIN);
            for (place, key) in changes {
                if place < plain.len() {
                    let key = if key == 0 { i64::MIN } else { key };
                    plain[place] = key;
                    tree.set(place, key);
                }
            }
            prop_assert_eq!(tree.best(), plain.iter().copied().max());
            let mut sorted: Vec<_> = plain.into_iter().filter(|key| *key > i64::MIN).collect();
            sorted.sort_unstable_by(|left, right| right.cmp(left));
            sorted.truncate(3);
            let mut found = Vec::new();
            tree.best_few(3, i64::MIN, &mut found);
            prop_assert_eq!(found, sorted);
        }
    }
}
