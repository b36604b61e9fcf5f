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

/// Tasks of one size for each tenant, many more than fit: the cluster's totals, and each tenant's demand.
#[derive(Debug, Clone)]
struct Market {
    total: (u64, u64),
    demands: Vec<(u64, u64)>,
}

fn any_market() -> impl Strategy<Value = Market> {
    let demand = (1..5u64, 1..5u64);
    ((60..120u64, 60..120u64), proptest::collection::vec(demand, 2..5))
        .prop_map(|(total, demands)| Market { total, demands })
}

/// How many tasks each tenant gets when it says that its tasks are like `said`.
fn allocate(market: &Market, said: &[(u64, u64)]) -> Vec<u64> {
    let mut cluster = Cluster::new();
    cluster.node("a", amount(market.total.0, market.total.1 * MI));
    for (index, (cpu, memory)) in said.iter().enumerate() {
        fill(&mut cluster, &format!("t{index}"), 130, &amount(*cpu, memory * MI));
    }
    cluster.pass();
    let count = |index| placed_in(&cluster, &format!("t{index}")) as u64;
    (0..said.len()).map(count).collect()
}

/// Tasks of one kind that can be made of that much.
fn tasks_of((cpu, memory): (u64, u64), (wanted_cpu, wanted_memory): (u64, u64)) -> u64 {
    (cpu / wanted_cpu).min(memory / wanted_memory)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// The four properties of the paper, each up to one task of each tenant: tasks are not divisible.
    #[test]
    fn shares_have_the_properties_of_dominant_resource_fairness(market in any_market()) {
        let demands = &market.demands;
        let got = allocate(&market, demands);
        let tenants = demands.len() as u64;
        // Sharing incentive: nobody would do better with the n-th part of everything for itself.
        // Each of the others may be ahead by one task.
        let sum = demands.iter().fold((0, 0), |sum, demand| (sum.0 + demand.0, sum.1 + demand.1));
        for (got, demand) in got.iter().zip(demands) {
            let alone = tasks_of((market.total.0 / tenants, market.total.1 / tenants), *demand);
            let ahead = (sum.0 / demand.0).max(sum.1 / demand.1);
            prop_assert!(got + 1 + ahead >= alone, "{got} but {alone} alone");
        }
        // Envy-freeness: nobody would do better with what another one has.
        for (mine, demand) in got.iter().zip(demands) {
            for (theirs, other) in got.iter().zip(demands) {
                let with_theirs = tasks_of((theirs * other.0, theirs * other.1), *demand);
                let step = tasks_of(*other, *demand).max(1);
                prop_assert!(*mine + 1 + step >= with_theirs, "{mine} but {with_theirs} with theirs");
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

    /// Strategy-proofness: asking for more than a task needs gives nobody more tasks.
    #[test]
    fn nobody_gains_by_asking_for_more(market in any_market(), more in (0..4u64, 0..4u64)) {
        let honest = allocate(&market, &market.demands);
        let mut said = market.demands.clone();
        said[0] = (said[0].0 + more.0, said[0].1 + more.1);
        let lied = allocate(&market, &said);
        prop_assert!(lied[0] <= honest[0] + 1, "{lied:?} against {honest:?}");
    }
}
