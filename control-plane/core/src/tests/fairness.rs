//! Shares, quotas and guarantees of namespaces.

use proptest::prelude::*;

use super::*;

fn fill(cluster: &mut Cluster, path: &str, count: usize, request: &Resources) {
    for index in 0..count {
        let text = format!("{}-{index}", path.replace('/', "-"));
        cluster.unit_in(path, &text, wasm(request.clone()));
    }
}

fn placed_in(cluster: &Cluster, path: &str) -> usize {
    let path = namespace(path);
    cluster.count(|unit| unit.namespace.is_within(&path) && unit.status.state.is_on_node())
}

#[test]
fn namespaces_get_parts_by_weight_whoever_came_first() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(12_000, 64 * GI));
    cluster.namespace_like("one", |spec| spec.weight = Some(200));
    cluster.namespace_like("two", |_| {});
    fill(&mut cluster, "two", 20, &amount(1_000, MI));
    cluster.moment.now_ms += 1;
    fill(&mut cluster, "one", 20, &amount(1_000, MI));
    cluster.pass();
    assert_eq!((placed_in(&cluster, "one"), placed_in(&cluster, "two")), (8, 4));
}

#[test]
fn a_branch_has_one_share_however_many_namespaces_are_in_it() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(12_000, 64 * GI));
    for path in ["big", "big/x", "big/y", "small"] {
        cluster.namespace_like(path, |_| {});
    }
    for path in ["big/x", "big/y", "small"] {
        fill(&mut cluster, path, 12, &amount(1_000, MI));
    }
    cluster.pass();
    let placed = ["big", "big/x", "big/y", "small"].map(|path| placed_in(&cluster, path));
    assert_eq!(placed, [6, 3, 3, 6]);
}

#[test]
fn the_dominant_resource_counts() {
    // The example of the paper: 9 cores and 18 GiB; tasks of 1 core and 4 GiB against 3 cores and 1 GiB.
    let mut cluster = Cluster::new();
    cluster.node("a", amount(9_000, 18 * GI));
    fill(&mut cluster, "memory", 9, &amount(1_000, 4 * GI));
    fill(&mut cluster, "cpu", 9, &amount(3_000, GI));
    cluster.pass();
    assert_eq!((placed_in(&cluster, "memory"), placed_in(&cluster, "cpu")), (3, 2));
}

#[test]
fn who_is_within_a_guarantee_goes_first() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(6_000, 64 * GI));
    cluster.namespace_like("sure", |spec| {
        spec.guarantee = Some(amount(5_000, 0));
        spec.weight = Some(1);
    });
    fill(&mut cluster, "other", 6, &amount(1_000, MI));
    fill(&mut cluster, "sure", 6, &amount(1_000, MI));
    cluster.pass();
    assert_eq!((placed_in(&cluster, "sure"), placed_in(&cluster, "other")), (5, 1));
}

#[test]
fn what_is_idle_is_borrowed_and_given_back_when_it_is_needed() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(6_000, 64 * GI));
    for path in ["lender", "borrower"] {
        cluster.namespace_like(path, |spec| spec.guarantee = Some(amount(3_000, GI)));
    }
    let important = UnitTemplate { priority: 100, ..wasm(amount(1_000, MI)) };
    for index in 0..6 {
        cluster.unit_in("borrower", &format!("b{index}"), important.clone());
    }
    cluster.pass();
    cluster.nodes_work();
    assert_eq!(placed_in(&cluster, "borrower"), 6);
    fill(&mut cluster, "lender", 5, &amount(1_000, MI));
    cluster.settle();
    assert_eq!((placed_in(&cluster, "lender"), placed_in(&cluster, "borrower")), (3, 3));
}

#[test]
fn no_more_units_than_a_namespace_may_have() {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(6_000, 64 * GI));
    cluster.namespace_like("team", |spec| spec.max_units = Some(2));
    cluster.namespace_like("team/dev", |_| {});
    fill(&mut cluster, "team", 2, &amount(100, MI));
    fill(&mut cluster, "team/dev", 2, &amount(100, MI));
    let plan = cluster.pass();
    assert_eq!(placed_in(&cluster, "team"), 2);
    assert!(refusals(&plan).iter().all(|(_, reason, text)| {
        *reason == Reason::QuotaExceeded && text.contains("`team` has 2 units")
    }));
}

/// Tasks of one size for each tenant, many more than fit: the cluster's totals, each tenant's demand and weight.
#[derive(Debug, Clone)]
struct Market {
    total: (u64, u64),
    demands: Vec<(u64, u64)>,
    weights: Vec<u32>,
}

fn any_market() -> impl Strategy<Value = Market> {
    let weight = prop_oneof![2 => Just(100u32), 1 => Just(50), 1 => Just(200)];
    let tenant = ((1..5u64, 1..5u64), weight);
    ((60..120u64, 60..120u64), proptest::collection::vec(tenant, 2..5)).prop_map(
        |(total, tenants)| {
            let (demands, weights) = tenants.into_iter().unzip();
            Market { total, demands, weights }
        },
    )
}

impl Market {
    /// How many tasks each tenant gets when it says that its tasks are like `said`.
    fn allocate(&self, said: &[(u64, u64)]) -> Vec<u64> {
        let mut cluster = Cluster::new();
        cluster.node("a", amount(self.total.0, self.total.1 * MI));
        for (index, ((cpu, memory), weight)) in said.iter().zip(&self.weights).enumerate() {
            let path = format!("t{index}");
            cluster.namespace_like(&path, |spec| spec.weight = Some(*weight));
            fill(&mut cluster, &path, 130, &amount(*cpu, memory * MI));
        }
        cluster.pass();
        let count = |index| placed_in(&cluster, &format!("t{index}")) as u64;
        (0..said.len()).map(count).collect()
    }

    /// The dominant share of one task, in parts of `whole`.
    fn share(&self, (cpu, memory): (u64, u64)) -> u64 {
        (cpu * self.total.1).max(memory * self.total.0)
    }

    fn whole(&self) -> u64 {
        self.total.0 * self.total.1
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three of the four properties of the paper. Tasks are not divisible, so at any time a tenant's share by weight may be
    /// ahead of another's by one task, and what is proved of shares holds up to that one task and not a bit more.
    #[test]
    fn shares_have_the_properties_of_dominant_resource_fairness(market in any_market()) {
        let Market { demands, weights, .. } = &market;
        let got = market.allocate(demands);
        let weight = |index: usize| u64::from(weights[index]);
        let weights_sum: u64 = (0..weights.len()).map(weight).sum();
        let tasks_sum: u64 = demands.iter().map(|demand| market.share(*demand)).sum();
        for (index, (mine, demand)) in got.iter().zip(demands).enumerate() {
            // Sharing incentive: nobody has less than its part by weight of its dominant resource. A tenant is refused only
            // when something is used up, and then the shares of all together are at least the whole.
            let share = mine * market.share(*demand);
            let part = market.whole() * weight(index);
            let has_part = share * weights_sum + tasks_sum * weight(index) >= part;
            prop_assert!(has_part, "{got:?}: {index} has {share} of {part} by {weights_sum}");
            // Envy-freeness: nobody would do better with what another one has, by weight.
            for (other, (theirs, of_other)) in got.iter().zip(demands).enumerate() {
                let their_cpu = theirs * of_other.0 * weight(index) / weight(other);
                let their_memory = theirs * of_other.1 * weight(index) / weight(other);
                let with_theirs = (their_cpu / demand.0).min(their_memory / demand.1);
                // The other is ahead by one task, and by those that fit where one of this tenant is too large already.
                let left = ((demand.0 - 1) / of_other.0).max((demand.1 - 1) / of_other.1);
                let ahead = market.share(*of_other) * (1 + left) * weight(index);
                let is_content = with_theirs * market.share(*demand) * weight(other)
                    <= share * weight(other) + ahead;
                prop_assert!(is_content, "{got:?}: {index} had {with_theirs} with those of {other}");
            }
        }
        // Pareto efficiency: nobody can get another task without taking one from somebody.
        let used = got.iter().zip(demands).fold((0, 0), |used, (got, demand)| {
            (used.0 + got * demand.0, used.1 + got * demand.1)
        });
        for demand in demands {
            let fits = used.0 + demand.0 <= market.total.0 && used.1 + demand.1 <= market.total.1;
            prop_assert!(!fits, "{used:?} of {:?}", market.total);
        }
    }

    /// Strategy-proofness: asking for more than a task needs gives nobody more tasks, up to the one at the end.
    #[test]
    fn nobody_gains_by_asking_for_more(market in any_market(), more in (0..4u64, 0..4u64)) {
        let honest = market.allocate(&market.demands);
        let mut said = market.demands.clone();
        said[0] = (said[0].0 + more.0, said[0].1 + more.1);
        let lied = market.allocate(&said);
        prop_assert!(lied[0] <= honest[0] + 1, "{lied:?} against {honest:?}");
    }
}
