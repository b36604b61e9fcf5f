//! What a new revision asks for that the old one did not: what whoever approves a change wants to read first.
//!
//! Only what is *more* is told: a capability that goes, or a smaller request, needs nobody's consent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::object::{Object, ObjectKey};
use crate::unit_spec::{EnvValue, Mount, Program, Runtime, Task, UnitTemplate, WasmProgram};
use crate::wasm::{WasmFacts, capabilities_told};
use crate::{Bytes, Resources};

/// One thing that a manifest asks for anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ask {
    /// The service, job or unit.
    pub key: ObjectKey,
    /// The task, where it is one task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// What kind of thing.
    pub kind: AskKind,
    /// What exactly, such as `memory 64Mi -> 256Mi` or `outgoing HTTP to api.example.com`.
    pub text: String,
}

/// What kinds of thing a unit can ask for.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum AskKind {
    /// More units.
    Units,
    /// More of a resource, for each unit.
    Resources,
    /// Outgoing requests to a host.
    Host,
    /// A directory of the node, or the right to write to it.
    HostDirectory,
    /// A secret, as variable or file.
    Secret,
    /// A config, as variable or file.
    Config,
    /// A bucket of `wasi:keyvalue`.
    Bucket,
    /// A port of the node.
    Port,
    /// A place before others: a higher priority, or no longer being revocable.
    Priority,
    /// A node that keeps others away.
    Toleration,
    /// Another program.
    Program,
    /// A capability that the program imports: that it is granted is another matter.
    Capability,
    /// More memory at the start of the program.
    InitialMemory,
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = &self.text;
        match &self.task {
            Some(task) => write!(f, "task `{task}`: {text}"),
            None => f.write_str(text),
        }
    }
}

/// What is known of programs, by the reference that a unit names them by.
pub type ProgramFacts = BTreeMap<String, Arc<WasmFacts>>;

/// What `after` asks for that `before` did not; everything it asks for when there was nothing before.
#[must_use]
pub fn new_asks(before: Option<&Object>, after: &Object, programs: &ProgramFacts) -> Vec<Ask> {
    let Some((units, template)) = asked(after) else { return Vec::new() };
    let old = before.and_then(asked);
    let mut asks = Asks { key: after.key(), task: None, found: Vec::new(), programs };
    let old_units = old.map_or(0, |(units, _)| units);
    if old.is_some() && units > old_units {
        asks.add(AskKind::Units, format!("units {old_units} -> {units}"));
    }
    compare_units(old.map(|(_, template)| template), template, &mut asks);
    asks.found
}

/// How many units at a time, and what each of them runs.
fn asked(object: &Object) -> Option<(u32, &UnitTemplate)> {
    match object {
        Object::Service(service) => Some((service.spec.replicas, &service.spec.unit)),
        Object::Job(job) => Some((job.spec.parallelism.min(job.spec.completions), &job.spec.unit)),
        Object::Unit(unit) => Some((1, &*unit.template)),
        Object::Namespace(_)
        | Object::Node(_)
        | Object::Secret(_)
        | Object::Config(_)
        | Object::Artifact(_) => None,
    }
}

/// The references of all programs that an object's units run.
pub fn program_references(object: &Object) -> impl Iterator<Item = &str> {
    let tasks = asked(object).into_iter().flat_map(|(_, template)| &template.tasks);
    tasks.flat_map(|task| task.variants.iter().map(Program::reference))
}

struct Asks<'a> {
    key: ObjectKey,
    task: Option<String>,
    found: Vec<Ask>,
    programs: &'a ProgramFacts,
}

impl Asks<'_> {
    fn add(&mut self, kind: AskKind, text: impl Into<String>) {
        let (key, task) = (self.key.clone(), self.task.clone());
        self.found.push(Ask { key, task, kind, text: text.into() });
    }

    /// What is in `after` but not in `before`, each with its words.
    fn add_new<T: Ord>(
        &mut self,
        kind: AskKind,
        before: &BTreeSet<T>,
        after: &BTreeSet<T>,
        words: impl Fn(&T) -> String,
    ) {
        for new in after.difference(before) {
            self.add(kind, words(new));
        }
    }
}

fn compare_units(before: Option<&UnitTemplate>, after: &UnitTemplate, asks: &mut Asks<'_>) {
    let priority = before.map_or(0, |before| before.priority);
    if after.priority > priority {
        asks.add(AskKind::Priority, format!("priority {priority} -> {}", after.priority));
    }
    if before.is_some_and(|before| before.revocable) && !after.revocable {
        asks.add(AskKind::Priority, "revocable -> room of its own");
    }
    let tolerations = |template: &UnitTemplate| -> BTreeSet<_> {
        template.placement.tolerations.iter().cloned().collect()
    };
    let known = before.map(tolerations).unwrap_or_default();
    asks.add_new(AskKind::Toleration, &known, &tolerations(after), |toleration| {
        let part = |part: Option<&str>| part.map(str::to_owned);
        let value = part(toleration.value.as_deref()).map(|value| format!("={value}"));
        let effect = part(toleration.effect.map(crate::placement::TaintEffect::as_str));
        let effect = effect.map(|effect| format!(":{effect}"));
        let key = &toleration.key;
        format!("nodes with taint {key}{}{}", value.unwrap_or_default(), effect.unwrap_or_default())
    });
    for task in &after.tasks {
        let known = before.and_then(|before| before.tasks.iter().find(|old| old.name == task.name));
        asks.task = Some(task.name.to_string());
        compare_tasks(known, task, asks);
    }
    asks.task = None;
}

fn compare_tasks(before: Option<&Task>, after: &Task, asks: &mut Asks<'_>) {
    if let Some(before) = before {
        compare_references(before, after, asks);
    }
    compare_programs(before, after, asks);
    let nothing = Resources::default();
    let (request, limits) =
        before.map_or((&nothing, &nothing), |before| (&before.resources, &before.limits));
    compare_resources("", request, &after.resources, asks);
    if after.limits != after.resources {
        compare_resources("limit of ", limits, &after.limits, asks);
    }
    let of = |pick: fn(&Task) -> BTreeSet<String>| before.map(pick).unwrap_or_default();
    asks.add_new(AskKind::Host, &of(hosts), &hosts(after), |host| match host.contains("://") {
        true => format!("connections to {host}"),
        false => format!("outgoing HTTP to {host}"),
    });
    asks.add_new(AskKind::HostDirectory, &of(directories), &directories(after), String::clone);
    asks.add_new(AskKind::Secret, &of(secrets), &secrets(after), |name| format!("secret `{name}`"));
    asks.add_new(AskKind::Config, &of(configs), &configs(after), |name| format!("config `{name}`"));
    asks.add_new(AskKind::Bucket, &of(buckets), &buckets(after), |name| {
        format!("key-value bucket `{name}` of its node")
    });
    asks.add_new(AskKind::Port, &of(fixed_ports), &fixed_ports(after), |port| {
        format!("port {port} of its node")
    });
    let open = (before.map_or(0, open_ports), open_ports(after));
    if open.1 > open.0 {
        asks.add(AskKind::Port, format!("chosen ports of its node {} -> {}", open.0, open.1));
    }
}

/// Which other programs there are: by runtime, where either leaves a choice.
fn compare_references(before: &Task, after: &Task, asks: &mut Asks<'_>) {
    let has_choice = before.variants.are_several() || after.variants.are_several();
    for program in after.variants.iter() {
        let new = program.reference();
        let old = match has_choice {
            true => before.variants.of(program.runtime()),
            false => Some(before.program()),
        };
        match old.map(Program::reference) {
            Some(old) if old == new => {}
            Some(old) => asks.add(AskKind::Program, format!("runs {new} instead of {old}")),
            None => {
                let runtime = program.runtime().as_str();
                asks.add(AskKind::Program, format!("runs {new} too, as {runtime}"));
            }
        }
    }
}

/// What the program itself imports and begins with, where that is known. Of a program that was not known before
/// nothing can be said to be new.
fn compare_programs(before: Option<&Task>, after: &Task, asks: &mut Asks<'_>) {
    let programs = asks.programs;
    // Only wasm programs are known, and a task has one at most.
    let of =
        |task: &Task| task.variants.iter().find_map(|program| programs.get(program.reference()));
    let Some(new) = of(after) else { return };
    let Some(before) = before else {
        let needs = capabilities_told(&new.capabilities);
        if !needs.is_empty() {
            asks.add(AskKind::Capability, format!("imports {needs}"));
        }
        return;
    };
    let Some(old) = of(before) else { return };
    let more: BTreeSet<_> = new.capabilities.difference(&old.capabilities).copied().collect();
    if !more.is_empty() {
        let more = capabilities_told(&more);
        asks.add(AskKind::Capability, format!("now also imports {more}"));
    }
    if new.memory.initial_bytes > old.memory.initial_bytes {
        let [old, new] = [old, new].map(|facts| Bytes(facts.memory.initial_bytes));
        asks.add(AskKind::InitialMemory, format!("memory begins at {new} (was {old})"));
    }
}

fn compare_resources(what: &str, before: &Resources, after: &Resources, asks: &mut Asks<'_>) {
    let old = |amount: String, is_none: bool| if is_none { "none".to_owned() } else { amount };
    let mut add = |name: &str, old: String, new: String| {
        asks.add(AskKind::Resources, format!("{what}{name} {old} -> {new}"));
    };
    if after.cpu > before.cpu {
        add("cpu", old(before.cpu.to_string(), before.cpu.0 == 0), after.cpu.to_string());
    }
    for (name, before, after) in
        [("memory", before.memory, after.memory), ("disk", before.disk, after.disk)]
    {
        if after > before {
            add(name, old(before.to_string(), before.0 == 0), after.to_string());
        }
    }
    for (name, amount) in &after.scalars {
        let known = before.scalars.get(name).copied().unwrap_or_default();
        if *amount > known {
            add(name, old(known.to_string(), known.0 == 0), amount.to_string());
        }
    }
}

/// The task's wasm program, if it has one.
fn wasm(task: &Task) -> Option<&WasmProgram> {
    match task.variants.of(Runtime::Wasm)? {
        Program::Wasm(wasm) => Some(wasm),
        Program::Oci(_) => None,
    }
}

/// A container is on its node's network, and reaches what that reaches.
fn hosts(task: &Task) -> BTreeSet<String> {
    wasm(task).map(|wasm| wasm.allow_hosts.iter().cloned().collect()).unwrap_or_default()
}

fn directories(task: &Task) -> BTreeSet<String> {
    let one = |mount: &Mount| {
        let how = if mount.read_only { "read" } else { "read and write" };
        mount.host.as_ref().map(|host| format!("{how} {} of its node", host.display()))
    };
    task.mounts.iter().filter_map(one).collect()
}

fn secrets(task: &Task) -> BTreeSet<String> {
    let mounted = task.mounts.iter().filter_map(|mount| mount.secret.as_ref());
    let named = task.values().filter_map(|(_, value)| match value {
        EnvValue::Secret(key) => Some(&key.secret),
        _ => None,
    });
    mounted.chain(named).map(ToString::to_string).collect()
}

fn configs(task: &Task) -> BTreeSet<String> {
    let mounted = task.mounts.iter().filter_map(|mount| mount.config.as_ref());
    let named = task.values().filter_map(|(_, value)| match value {
        EnvValue::Config(key) => Some(&key.config),
        _ => None,
    });
    mounted.chain(named).map(ToString::to_string).collect()
}

fn buckets(task: &Task) -> BTreeSet<String> {
    let buckets = wasm(task).map(|wasm| wasm.keyvalue.iter().map(ToString::to_string).collect());
    buckets.unwrap_or_default()
}

fn fixed_ports(task: &Task) -> BTreeSet<String> {
    let of = |program: &Program| {
        let own = program.ports().iter().copied().filter(|port| *port != 0);
        program.http_port().into_iter().chain(own).collect::<Vec<_>>()
    };
    task.variants.iter().flat_map(of).map(|port| port.to_string()).collect()
}

/// Of several variants, those of the one with most: only one of them runs.
fn open_ports(task: &Task) -> usize {
    let of = |program: &Program| {
        let http = match program {
            Program::Wasm(wasm) => wasm.http.iter().filter(|http| http.port.is_none()).count(),
            Program::Oci(_) => 0,
        };
        http + program.ports().iter().filter(|port| **port == 0).count()
    };
    task.variants.iter().map(of).max().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Format, Manifest, parse};
    use crate::object::{Meta, Service};

    fn service(more: &str) -> Object {
        let text = format!("kind: service\nname: web\n{more}");
        let checked = parse(&text, Format::Yaml, None).unwrap().remove(0).check().unwrap();
        let Manifest::Service(spec) = checked else { panic!("a service") };
        Object::Service(Service { spec, generation: 1, is_deleting: false, meta: Meta::default() })
    }

    fn told(before: Option<&Object>, after: &Object) -> Vec<String> {
        new_asks(before, after, &ProgramFacts::new()).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_new_service_tells_all_that_it_asks_for() {
        let text = "unit: {wasm: {artifact: team/app:1, http: {port: 8080}, allow_hosts: [api.example.com]}, \
                    env: {K: {secret: s, key: k}}, mounts: [{host: /data, at: /d}]}";
        assert_eq!(
            told(None, &service(text)),
            [
                "task `main`: cpu none -> 100m",
                "task `main`: memory none -> 64Mi",
                "task `main`: outgoing HTTP to api.example.com",
                "task `main`: read and write /data of its node",
                "task `main`: secret `s`",
                "task `main`: port 8080 of its node",
            ]
        );
    }

    #[test]
    fn only_what_is_more_is_told() {
        let before = service(
            "replicas: 3\nunit: {wasm: {artifact: team/app:1, allow_hosts: [a.example, b.example]}, \
             resources: {memory: 64Mi}, mounts: [{host: /data, at: /d, read_only: true}], revocable: true}",
        );
        let after = service(
            "replicas: 5\nunit: {wasm: {artifact: team/app:2, allow_hosts: [b.example, c.example]}, priority: 10, \
             resources: {cpu: 50m, memory: 256Mi, scalars: {gpu: 0.5}}, limits: {cpu: 2}, \
             mounts: [{host: /data, at: /d}], placement: {tolerations: [{key: gpu, effect: no-schedule}]}}",
        );
        assert_eq!(
            told(Some(&before), &after),
            [
                "units 3 -> 5",
                "priority 0 -> 10",
                "revocable -> room of its own",
                "nodes with taint gpu:no-schedule",
                "task `main`: runs team/app:2 instead of team/app:1",
                "task `main`: memory 64Mi -> 256Mi",
                "task `main`: gpu none -> 500m",
                "task `main`: limit of cpu 100m -> 2",
                "task `main`: limit of memory 64Mi -> 256Mi",
                "task `main`: limit of gpu none -> 500m",
                "task `main`: outgoing HTTP to c.example",
                "task `main`: read and write /data of its node",
            ]
        );
        assert!(told(Some(&after), &after).is_empty());
    }

    #[test]
    fn what_a_wasm_program_finds_of_its_host_is_told() {
        let after = service(
            "unit: {wasm: {artifact: team/app:1, allow_hosts: ['tcp://db.internal:5432'], ports: [7000, 0], \
             keyvalue: [carts], config: {a: plain, b: {config: c, key: k}}}}",
        );
        let told = told(None, &after);
        assert_eq!(
            told[2..],
            [
                "task `main`: connections to tcp://db.internal:5432",
                "task `main`: config `c`",
                "task `main`: key-value bucket `carts` of its node",
                "task `main`: port 7000 of its node",
                "task `main`: chosen ports of its node 0 -> 1",
            ]
        );
    }

    #[test]
    fn what_a_program_imports_and_begins_with_is_told_when_it_is_more() {
        use crate::wasm::{Capability, WasmForm, WasmKind, WasmMemory};
        let facts = |capabilities: &[Capability], initial_bytes| WasmFacts {
            form: WasmForm::Component,
            kind: WasmKind::CommandP2,
            memory: WasmMemory { count: 1, initial_bytes, maximum_bytes: None },
            capabilities: capabilities.iter().copied().collect(),
            foreign: vec![],
            imports: vec![],
            exports: vec![],
            names_left_out: 0,
            languages: vec![],
            tools: vec![],
        };
        let (clocks, http) = (Capability::Clocks, Capability::OutgoingHttp);
        let programs = [
            ("team/app:1", facts(&[clocks], 1 << 20)),
            ("team/app:2", facts(&[clocks, http], 64 << 20)),
        ];
        let programs = programs.map(|(name, facts)| (name.to_owned(), Arc::new(facts))).into();
        let service = |tag| service(&format!("unit: {{wasm: {{artifact: \"team/app:{tag}\"}}}}"));
        let [old, new, unknown] = [1, 2, 3].map(service);
        let told = |before: Option<&Object>, after: &Object| -> Vec<String> {
            let asks = new_asks(before, after, &programs);
            let is_about_program =
                |ask: &&Ask| matches!(ask.kind, AskKind::Capability | AskKind::InitialMemory);
            asks.iter().filter(is_about_program).map(|ask| ask.text.clone()).collect()
        };
        assert_eq!(
            told(Some(&old), &new),
            ["now also imports outgoing HTTP", "memory begins at 64Mi (was 1Mi)"]
        );
        assert_eq!(told(None, &new), ["imports outgoing HTTP, clocks"]);
        for (before, after) in [(&new, &old), (&new, &new), (&unknown, &new), (&new, &unknown)] {
            assert_eq!(told(Some(before), after), [""; 0]);
        }
    }

    #[test]
    fn each_variant_is_told_by_what_it_asks_for() {
        let one = service("unit: {wasm: {artifact: team/app:1, http: {port: 8080}}}");
        let two = service(
            "unit: {variants: [{oci: {image: team/image:1, ports: [8081, 0]}}, \
             {wasm: {artifact: team/app:2, http: {port: 8080}, allow_hosts: [a.example]}}]}",
        );
        assert_eq!(
            told(Some(&one), &two),
            [
                "task `main`: runs team/image:1 too, as oci",
                "task `main`: runs team/app:2 instead of team/app:1",
                "task `main`: outgoing HTTP to a.example",
                "task `main`: port 8081 of its node",
                "task `main`: chosen ports of its node 0 -> 1",
            ]
        );
        assert!(told(Some(&two), &two).is_empty());
        assert_eq!(
            told(Some(&two), &one),
            ["task `main`: runs team/app:1 instead of team/app:2"],
            "less needs nobody's consent"
        );
        assert_eq!(
            program_references(&two).collect::<Vec<_>>(),
            ["team/image:1", "team/app:2"],
            "all of them are looked up"
        );
    }

    #[test]
    fn ports_are_told_by_number_or_by_count() {
        let before = service("unit: {oci: {image: team/web:1, ports: [80, 0]}}");
        let after = service("unit: {oci: {image: team/web:1, ports: [0, 443, 0, 80]}}");
        assert_eq!(
            told(Some(&before), &after),
            ["task `main`: port 443 of its node", "task `main`: chosen ports of its node 1 -> 2",]
        );
    }
}
