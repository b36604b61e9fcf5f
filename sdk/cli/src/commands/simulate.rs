//! `simulate`: the answer in a sentence, how full the cluster is before and after, and what moves.

use brig_api::NamespacePath;
use brig_api::object::Kind;
use brig_api::simulate::{Addition, PlacedUnits, SimulateRequest, Simulation, subject};

use crate::arguments::{Output, Simulate};
use crate::failure::{DOES_NOT_FIT, Failure};
use crate::load;
use crate::output::{Field, Look, Row, column, json, print, printable, size, table, yaml};

use super::Session;
use super::consequences::{LINES_MAX, evictions};

/// How wide a bar is, in characters.
const BAR_WIDTH: u64 = 20;

pub(crate) async fn simulate(session: &Session<'_>, arguments: Simulate) -> Result<(), Failure> {
    let Simulate { lose, files, count, grow, output } = arguments;
    if lose.is_empty() && files.is_empty() && grow.is_empty() {
        let message = "say what happens: `--lose NODE`, `--lose rack=r1`, `-f FILE --count 40` or `--grow 3=NODE`";
        return Err(Failure::usage(message));
    }
    let add = if files.is_empty() { Vec::new() } else { additions(session, &files, count)? };
    let simulation = session.client.simulate(&SimulateRequest { lose, add, grow }).await?;
    match output {
        Output::Json => print(&json(&simulation)?)?,
        Output::Yaml => print(&yaml(&simulation)?)?,
        Output::Name => print(&format!("{}\n", printable(&simulation.answer)))?,
        Output::Table | Output::Wide => print(&rendered(&simulation, output == Output::Wide))?,
    }
    if simulation.fits { Ok(()) } else { Err(Failure::exit(DOES_NOT_FIT)) }
}

fn additions(
    session: &Session<'_>,
    files: &[std::path::PathBuf],
    count: Option<u32>,
) -> Result<Vec<Addition>, Failure> {
    let namespace = session.context.namespace.as_ref().map(NamespacePath::as_str);
    let manifests = load::manifests(files, namespace)?;
    let additions = manifests.into_iter().map(|manifest| {
        // What they need to run comes once.
        let is_counted = matches!(manifest.kind(), Kind::Unit | Kind::Service | Kind::Job);
        Addition { manifest, count: count.filter(|_| is_counted) }
    });
    Ok(additions.collect())
}

/// All of it in words, bars and lines.
fn rendered(simulation: &Simulation, is_whole: bool) -> String {
    let mut text = format!("{}\n\n{}", printable(&simulation.answer), bars(simulation));
    if !simulation.services.is_empty() {
        text.push_str(&format!("\n{}", services(simulation, is_whole)));
    }
    let lines = moves(simulation, if is_whole { usize::MAX } else { LINES_MAX });
    if !lines.is_empty() {
        text.push('\n');
        text.extend(lines.iter().map(|line| format!("{}\n", printable(line))));
    }
    text
}

fn bars(simulation: &Simulation) -> String {
    let (before, after) = (&simulation.before, &simulation.after);
    let number = |name: &str, before: u32, after: u32| Row {
        name: String::new(),
        fields: vec![name.into(), before.into(), after.into()],
    };
    let mut rows = vec![
        number("nodes", before.nodes, after.nodes),
        number("units", before.units, after.units),
    ];
    let mut add =
        |name: &str, amount: &dyn Fn(&brig_api::Resources) -> u64, shown: fn(u64) -> String| {
            let used = [amount(&before.used), amount(&after.used)];
            // Cpu and memory always; the rest where anybody asks for it.
            if matches!(name, "cpu" | "memory") || used != [0, 0] {
                let one = |used, total| bar(used, total, shown);
                let fields = vec![
                    name.into(),
                    one(used[0], amount(&before.total)),
                    one(used[1], amount(&after.total)),
                ];
                rows.push(Row { name: String::new(), fields });
            }
        };
    add("cpu", &|all| all.cpu.0, cores);
    add("memory", &|all| all.memory.0, size);
    add("disk", &|all| all.disk.0, size);
    let names = [&before.used, &after.used].into_iter().flat_map(|all| all.scalars.keys());
    for name in names.collect::<std::collections::BTreeSet<_>>() {
        let amount = |all: &brig_api::Resources| all.scalars.get(name).map_or(0, |one| one.0);
        add(name, &amount, |amount| brig_api::Milli(amount).to_string());
    }
    table(&[column(""), column("BEFORE"), column("AFTER")], &rows, false)
}

/// Thousandths of a core as cores, with one digit behind the point.
fn cores(cpu: u64) -> String {
    format!("{}.{}", cpu / 1_000, cpu % 1_000 / 100)
}

/// `████░░░░ 50% 2 of 4`: full only when nothing is left.
fn bar(used: u64, total: u64, shown: fn(u64) -> String) -> Field {
    let part = |of: u64| u128::from(used) * u128::from(of) / u128::from(total.max(1));
    let filled = usize::try_from(part(BAR_WIDTH).min(BAR_WIDTH.into())).unwrap_or(0);
    let rest = usize::try_from(BAR_WIDTH).unwrap_or(0).saturating_sub(filled);
    let percent = part(100);
    let look = match percent {
        0..80 => Look::Good,
        80..95 => Look::Waiting,
        _ => Look::Bad,
    };
    let (full, empty) = ("█".repeat(filled), "░".repeat(rest));
    Field { text: format!("{full}{empty} {percent:>3}% {} of {}", shown(used), shown(total)), look }
}

fn services(simulation: &Simulation, is_whole: bool) -> String {
    let columns = [
        column("SERVICE"),
        column("NAMESPACE"),
        column("REPLICAS"),
        column("BEFORE"),
        column("LOWEST"),
        column("AFTER"),
    ];
    let shown = if is_whole { usize::MAX } else { LINES_MAX };
    let rows = simulation.services.iter().take(shown).map(|service| {
        let after = Field {
            text: service.after.to_string(),
            look: if service.after < service.replicas { Look::Bad } else { Look::Good },
        };
        let namespace = service.key.namespace.as_ref().map(ToString::to_string);
        let fields = vec![
            (&service.key.name).into(),
            namespace.unwrap_or_default().into(),
            service.replicas.into(),
            service.before.into(),
            service.lowest.into(),
            after,
        ];
        Row { name: String::new(), fields }
    });
    let mut text = table(&columns, &rows.collect::<Vec<_>>(), false);
    if simulation.services.len() > shown {
        text.push_str(&format!("… and {} services more\n", simulation.services.len() - shown));
    }
    text
}

/// What would happen, a line each, at most so many of a kind.
fn moves(simulation: &Simulation, lines_max: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut section = |all: Vec<String>| {
        let more = all.len().saturating_sub(lines_max);
        lines.extend(all.into_iter().take(lines_max));
        if more > 0 {
            lines.push(format!("… and {more} lines more: `-o wide` shows all"));
        }
    };
    let placed = |PlacedUnits { key, node, units }: &PlacedUnits| {
        format!("{} would run on {node}", subject(key, *units))
    };
    section(simulation.placements.iter().map(placed).collect());
    let mut leavers = Vec::new();
    evictions(&simulation.evictions, &mut leavers);
    section(leavers);
    let lost = simulation.lost.iter().map(|lost| {
        let message = lost.message.as_deref().map(|message| format!(": {message}"));
        format!("{} would be lost{}", lost.key, message.unwrap_or_default())
    });
    section(lost.collect());
    let waits = simulation.waits.iter().map(|waits| {
        let reason = waits.reason.map(|reason| format!(" ({})", reason.as_str()));
        let (who, reason) = (subject(&waits.key, waits.units), reason.unwrap_or_default());
        format!("{who} would wait{reason}: {}", waits.message)
    });
    section(waits.collect());
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    use brig_api::lifecycle::Reason;
    use brig_api::object::ObjectKey;
    use brig_api::request::PlannedEviction;
    use brig_api::simulate::{Capacity, ServiceOutcome, WaitingUnits};
    use brig_api::{Bytes, MilliCpu, NodeName, Resources, Revision};

    fn key(kind: Kind, name: &str) -> ObjectKey {
        let namespace = Some(NamespacePath::default_namespace());
        ObjectKey { kind, namespace, name: name.to_owned() }
    }

    fn capacity(nodes: u32, units: u32, cores: u64) -> Capacity {
        let amount = |cpu: u64, gib: u64| Resources {
            cpu: MilliCpu(cpu),
            memory: Bytes(gib << 30),
            ..Resources::default()
        };
        let total = amount(u64::from(nodes) * 4_000, u64::from(nodes) * 8);
        Capacity { nodes, units, used: amount(cores, 3), total }
    }

    #[test]
    fn a_lost_rack_is_told_from_the_answer_down_to_each_move() {
        let web = key(Kind::Service, "web");
        let node = |name: &str| NodeName::new(name).unwrap();
        let alone = PlannedEviction {
            key: key(Kind::Unit, "alone"),
            owner: None,
            node: Some(node("a1")),
            reason: Reason::NodeLost,
            message: Some("node `a1` has been out of reach for 60 s".into()),
        };
        let placed = |number: u32| PlacedUnits {
            key: web.clone(),
            node: node(&format!("b{number}")),
            units: number,
        };
        let simulation = Simulation {
            revision: Revision(7),
            fits: false,
            answer: "No: 2 units of service `web` would\u{1b}wait".into(),
            is_settled: true,
            passes: 3,
            elapsed_ms: 60_000,
            lost_nodes: vec![node("a1")],
            before: capacity(2, 5, 5_500),
            after: capacity(1, 3, 3_900),
            placements: (1..=12).map(placed).collect(),
            evictions: vec![],
            lost: vec![alone],
            waits: vec![WaitingUnits {
                key: web.clone(),
                units: 2,
                reason: Some(Reason::Unschedulable),
                message: "every node is short of cpu".into(),
            }],
            still_waiting: 0,
            services: vec![ServiceOutcome {
                key: web,
                replicas: 5,
                before: 5,
                lowest: 2,
                after: 3,
            }],
            quotas: vec![],
        };
        let text = rendered(&simulation, false);
        let expected = "\
No: 2 units of service `web` would wait

        BEFORE                                           AFTER
nodes   2                                                1
units   5                                                3
cpu     █████████████░░░░░░░  68% 5.5 of 8.0             ███████████████████░  97% 3.9 of 4.0
memory  ███░░░░░░░░░░░░░░░░░  18% 3.00 GiB of 16.00 GiB  ███████░░░░░░░░░░░░░  37% 3.00 GiB of 8.00 GiB

SERVICE  NAMESPACE  REPLICAS  BEFORE  LOWEST  AFTER
web      default    5         5       2       3

1 unit of service `web` in namespace `default` would run on b1
2 units of service `web` in namespace `default` would run on b2
3 units of service `web` in namespace `default` would run on b3
4 units of service `web` in namespace `default` would run on b4
5 units of service `web` in namespace `default` would run on b5
6 units of service `web` in namespace `default` would run on b6
7 units of service `web` in namespace `default` would run on b7
8 units of service `web` in namespace `default` would run on b8
9 units of service `web` in namespace `default` would run on b9
10 units of service `web` in namespace `default` would run on b10
… and 2 lines more: `-o wide` shows all
unit `alone` in namespace `default` would be lost: node `a1` has been out of reach for 60 s
2 units of service `web` in namespace `default` would wait (Unschedulable): every node is short of cpu
";
        assert_eq!(text, expected);
        assert!(rendered(&simulation, true).contains("12 units of service `web`"));
    }
}
