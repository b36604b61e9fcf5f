//! From what was written to what can be run: short forms resolved, defaults filled in, every rule checked.

use std::collections::{BTreeMap, BTreeSet};

use crate::allow_host::AllowedHost;
use crate::manifest::Manifest;
use crate::placement::{GANG_SIZE_MAX, PlacementRules, RULES_MAX, Spread, WEIGHT_MAX};
use crate::problem::FieldError;
use crate::reference::Reference;
use crate::resources::Shortage;
use crate::spec::{JobSpec, LoneUnitSpec, NamespaceSpec, ServiceSpec};
use crate::unit_spec::{
    EnvValue, GRACE_MS_DEFAULT, HTTP_CONCURRENT_MAX, HttpServing, MAIN_TASK, Mount, OciProgram,
    Program, REUSE_IDLE_MS_MAX, RestartPolicy, Task, TaskSpec, UnitSpec, UnitTemplate, WasmProgram,
};
use crate::variants::Variants;
use crate::{Bytes, MilliCpu, NamespacePath, ResourceName, Resources};

/// Most tasks in a unit.
pub const TASKS_MAX: usize = 16;
/// Most units of a service.
pub const REPLICAS_MAX: u32 = 10_000;
/// Most completions of a job.
pub const COMPLETIONS_MAX: u32 = 10_000;
/// Least memory that a task can be given: below it neither runtime starts anything.
pub const MEMORY_BYTES_MIN: u64 = 1 << 20;
/// Longest grace period: an hour.
pub const GRACE_MS_MAX: u64 = 3_600_000;
/// Priorities go from minus this to plus this.
pub const PRIORITY_MAX: i32 = 1_000;
/// Most ports of one task.
pub const PORTS_MAX: usize = 64;
/// Most buckets of `wasi:keyvalue` of one task.
pub const BUCKETS_MAX: usize = 64;
/// Longest delay before another attempt: a day.
pub const RETRY_AFTER_MS_MAX: u64 = 86_400_000;
/// Most bytes of texts in one secret or config.
pub const TEXTS_BYTES_MAX: usize = 1 << 20;

/// Collects faults under a path.
struct Faults {
    path: Vec<String>,
    found: Vec<FieldError>,
}

impl Faults {
    fn add(&mut self, field: &str, message: impl Into<String>) {
        let mut path = self.path.join(".");
        if !field.is_empty() {
            if !path.is_empty() {
                path.push('.');
            }
            path.push_str(field);
        }
        self.found.push(FieldError { path, message: message.into() });
    }

    fn within<T>(&mut self, field: impl Into<String>, check: impl FnOnce(&mut Self) -> T) -> T {
        self.path.push(field.into());
        let result = check(self);
        self.path.pop();
        result
    }
}

impl Manifest<UnitSpec> {
    /// Checks the manifest and fills in what it leaves open.
    ///
    /// # Errors
    /// Every fault found, with its path; never an empty list.
    pub fn check(self) -> Result<Manifest<UnitTemplate>, Vec<FieldError>> {
        let mut faults = Faults { path: Vec::new(), found: Vec::new() };
        let checked = match self {
            Self::Namespace(spec) => {
                check_namespace(&spec, &mut faults);
                Some(Manifest::Namespace(spec))
            }
            Self::Service(spec) => check_service(spec, &mut faults).map(Manifest::Service),
            Self::Job(spec) => check_job(spec, &mut faults).map(Manifest::Job),
            Self::Unit(spec) => check_unit(spec, &mut faults).map(Manifest::Unit),
            Self::Secret(spec) => {
                check_texts(&spec.data, &mut faults);
                Some(Manifest::Secret(spec))
            }
            Self::Config(spec) => {
                check_texts(&spec.data, &mut faults);
                Some(Manifest::Config(spec))
            }
        };
        match checked {
            Some(manifest) if faults.found.is_empty() => Ok(manifest),
            _ => Err(faults.found),
        }
    }
}

fn check_namespace(spec: &NamespaceSpec, faults: &mut Faults) {
    if spec.weight.is_some_and(|weight| !(1..=1_000).contains(&weight)) {
        faults.add("weight", "must be from 1 to 1000");
    }
    if let (Some(guarantee), Some(quota)) = (&spec.guarantee, &spec.quota) {
        for (resource, guaranteed, limit) in guarantee.beyond(quota) {
            faults
                .add("guarantee", format!("{resource} {guaranteed} is above the quota of {limit}"));
        }
    }
}

fn check_service(spec: ServiceSpec<UnitSpec>, faults: &mut Faults) -> Option<ServiceSpec> {
    if spec.replicas > REPLICAS_MAX {
        faults.add("replicas", format!("{} is too many: at most {REPLICAS_MAX}", spec.replicas));
    }
    let unit = check_template(spec.unit, RestartPolicy::Always, faults)?;
    if unit.restart != RestartPolicy::Always {
        faults
            .add("unit.restart", "a service restarts its units always: leave it out, or use a job");
    }
    let ServiceSpec { name, namespace, replicas, max_unavailable, labels, .. } = spec;
    check_reach(&unit, &namespace, faults);
    Some(ServiceSpec { name, namespace, replicas, max_unavailable, unit, labels })
}

fn check_job(spec: JobSpec<UnitSpec>, faults: &mut Faults) -> Option<JobSpec> {
    if spec.parallelism == 0 {
        faults.add("parallelism", "must be at least 1");
    }
    if spec.completions == 0 || spec.completions > COMPLETIONS_MAX {
        faults.add("completions", format!("must be from 1 to {COMPLETIONS_MAX}"));
    }
    let unit = check_template(spec.unit, RestartPolicy::Never, faults)?;
    if unit.restart != RestartPolicy::Never {
        faults.add(
            "unit.restart",
            "a job's units are not restarted: leave it out and set the job's `retries`",
        );
    }
    if spec.retry_after_ms.is_some_and(|delay| delay > RETRY_AFTER_MS_MAX) {
        faults.add("retry_after_ms", format!("must be at most {RETRY_AFTER_MS_MAX} (a day)"));
    }
    let JobSpec { name, namespace, parallelism, completions, retries, retry_after_ms, .. } = spec;
    let labels = spec.labels;
    check_reach(&unit, &namespace, faults);
    Some(JobSpec {
        name,
        namespace,
        parallelism,
        completions,
        retries,
        retry_after_ms,
        unit,
        labels,
    })
}

fn check_unit(spec: LoneUnitSpec<UnitSpec>, faults: &mut Faults) -> Option<LoneUnitSpec> {
    let unit = check_template(spec.unit, RestartPolicy::OnFailure, faults)?;
    let LoneUnitSpec { name, namespace, labels, remove_when_done, .. } = spec;
    check_reach(&unit, &namespace, faults);
    Some(LoneUnitSpec { name, namespace, unit, labels, remove_when_done })
}

fn check_texts(data: &BTreeMap<String, String>, faults: &mut Faults) {
    for key in data.keys() {
        let is_plain = !key.is_empty()
            && key.len() <= 253
            && key.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && key != "."
            && key != "..";
        if !is_plain {
            faults.add(
                "data",
                format!("`{key}` is no key: expected letters, digits, `.`, `_` and `-`"),
            );
        }
    }
    let bytes: usize = data.iter().map(|(key, text)| key.len() + text.len()).sum();
    if bytes > TEXTS_BYTES_MAX {
        faults.add("data", format!("{bytes} bytes are too many: at most {TEXTS_BYTES_MAX}"));
    }
}

fn check_template(
    spec: UnitSpec,
    restart: RestartPolicy,
    faults: &mut Faults,
) -> Option<UnitTemplate> {
    faults.within("unit", |faults| {
        if !(-PRIORITY_MAX..=PRIORITY_MAX).contains(&spec.priority) {
            faults.add("priority", format!("must be from -{PRIORITY_MAX} to {PRIORITY_MAX}"));
        }
        if spec.grace_ms.is_some_and(|grace| grace > GRACE_MS_MAX) {
            faults.add("grace_ms", format!("must be at most {GRACE_MS_MAX} (an hour)"));
        }
        for (index, constraint) in spec.constraints.iter().enumerate() {
            if let Some(fault) = constraint.fault() {
                faults.add(&format!("constraints[{index}]"), fault);
            }
        }
        check_rules(&spec.placement, faults);
        check_queue(&spec, faults);
        let template = UnitTemplate {
            restart: spec.restart.unwrap_or(restart),
            priority: spec.priority,
            constraints: spec.constraints.clone(),
            placement: spec.placement.clone(),
            revocable: spec.revocable,
            gang: spec.gang.clone(),
            after: spec.after.clone(),
            concurrency: spec.concurrency.clone(),
            max_run_ms: spec.max_run_ms,
            grace_ms: spec.grace_ms.unwrap_or(GRACE_MS_DEFAULT),
            disconnect: spec.disconnect,
            tasks: check_tasks(spec, faults)?,
        };
        let sum = |pick: fn(&Task) -> &Resources| {
            template
                .tasks
                .iter()
                .try_fold(Resources::default(), |sum, task| sum.checked_add(pick(task)))
        };
        if sum(|task| &task.resources).is_none() || sum(|task| &task.limits).is_none() {
            faults.add("tasks", "the tasks' resources together are more than can be counted");
        }
        Some(template)
    })
}

/// Rules about places, but for those that depend on the unit's namespace.
fn check_rules(rules: &PlacementRules, faults: &mut Faults) {
    faults.within("placement", |faults| {
        let lengths = [
            ("prefer", rules.prefer.len()),
            ("tolerations", rules.tolerations.len()),
            ("near", rules.near.len()),
            ("away", rules.away.len()),
            ("spread", rules.spread.len()),
        ];
        for (field, length) in lengths {
            if length > RULES_MAX {
                faults.add(field, format!("{length} rules are too many: at most {RULES_MAX}"));
            }
        }
        for (index, preference) in rules.prefer.iter().enumerate() {
            faults.within(format!("prefer[{index}]"), |faults| {
                if let Some(fault) = preference.when.fault() {
                    faults.add("when", fault);
                }
                if preference.weight == 0 || preference.weight.abs() > WEIGHT_MAX {
                    faults.add(
                        "weight",
                        format!("must be from -{WEIGHT_MAX} to {WEIGHT_MAX}, and not 0"),
                    );
                }
            });
        }
        for (field, all) in [("near", &rules.near), ("away", &rules.away)] {
            for (index, neighbours) in all.iter().enumerate() {
                faults.within(format!("{field}[{index}]"), |faults| {
                    if neighbours.units.is_empty() {
                        faults.add("units", "names no label: which units are meant?");
                    }
                    check_over(&neighbours.over, faults);
                    check_weight(neighbours.weight, faults);
                });
            }
        }
        for (index, spread) in rules.spread.iter().enumerate() {
            faults.within(format!("spread[{index}]"), |faults| check_spread(spread, faults));
        }
    });
}

fn check_over(over: &str, faults: &mut Faults) {
    if over.is_empty() {
        faults.add("over", "must be `node` or an attribute of nodes, such as `zone`");
    }
}

fn check_weight(weight: Option<i32>, faults: &mut Faults) {
    if weight.is_some_and(|weight| !(1..=WEIGHT_MAX).contains(&weight)) {
        faults.add("weight", format!("must be from 1 to {WEIGHT_MAX}"));
    }
}

fn check_spread(spread: &Spread, faults: &mut Faults) {
    check_over(&spread.over, faults);
    check_weight(spread.weight, faults);
    if spread.max_skew == Some(0) {
        faults.add("max_skew", "must be at least 1");
    }
    let sum: u64 = spread.targets.values().map(|percent| u64::from(*percent)).sum();
    if sum > 100 || spread.targets.values().any(|percent| *percent == 0) {
        faults.add("targets", "parts are percentages of at least 1, together at most 100");
    }
}

/// When the unit may start.
fn check_queue(spec: &UnitSpec, faults: &mut Faults) {
    if spec.gang.as_ref().is_some_and(|gang| !(1..=GANG_SIZE_MAX).contains(&gang.size)) {
        faults.add("gang.size", format!("must be from 1 to {GANG_SIZE_MAX}"));
    }
    if spec.concurrency.as_ref().is_some_and(|concurrency| concurrency.limit == 0) {
        faults.add("concurrency.limit", "must be at least 1");
    }
    if spec.max_run_ms == Some(0) {
        faults.add("max_run_ms", "must be at least 1");
    }
    if spec.after.len() > RULES_MAX {
        faults.add("after", format!("{} are too many: at most {RULES_MAX}", spec.after.len()));
    }
    for (index, dependency) in spec.after.iter().enumerate() {
        if dependency.service.is_some() == dependency.job.is_some() {
            faults.add(&format!("after[{index}]"), "needs exactly one of `service` and `job`");
        }
    }
}

/// Neighbours may only be looked for in the unit's own namespace or in one above it.
fn check_reach(unit: &UnitTemplate, namespace: &NamespacePath, faults: &mut Faults) {
    let rules = &unit.placement;
    for (field, all) in [("near", &rules.near), ("away", &rules.away)] {
        for (index, neighbours) in all.iter().enumerate() {
            if let Some(within) = &neighbours.within
                && !namespace.is_within(within)
            {
                faults.add(
                    &format!("unit.placement.{field}[{index}].within"),
                    format!("`{within}` is neither `{namespace}` nor above it"),
                );
            }
        }
    }
}

fn check_tasks(spec: UnitSpec, faults: &mut Faults) -> Option<Vec<Task>> {
    let is_short = spec.wasm.is_some() || spec.oci.is_some() || !spec.variants.is_empty();
    let has_short_fields = spec.resources.is_some()
        || spec.limits.is_some()
        || !spec.env.is_empty()
        || !spec.mounts.is_empty()
        || spec.stdin;
    if !spec.tasks.is_empty() && (is_short || has_short_fields) {
        faults.add(
            "",
            "has both `tasks` and fields of the short form (wasm, oci, variants, resources, limits, env, mounts, stdin): move them into a task",
        );
        return None;
    }
    if spec.tasks.is_empty() {
        let task = TaskSpec {
            name: ResourceName::new(MAIN_TASK).ok()?,
            wasm: spec.wasm,
            oci: spec.oci,
            variants: spec.variants,
            resources: spec.resources,
            limits: spec.limits,
            env: spec.env,
            mounts: spec.mounts,
            stdin: spec.stdin,
            sidecar: false,
        };
        return Some(vec![check_task(task, faults)?]);
    }
    if spec.tasks.len() > TASKS_MAX {
        faults.add("tasks", format!("{} are too many: at most {TASKS_MAX}", spec.tasks.len()));
    }
    if spec.tasks.iter().all(|task| task.sidecar) {
        faults.add("tasks", "at least one task must be no sidecar");
    }
    let mut names = BTreeSet::new();
    let mut tasks = Vec::new();
    for (index, task) in spec.tasks.into_iter().enumerate() {
        if !names.insert(task.name.clone()) {
            faults.add(
                &format!("tasks[{index}].name"),
                format!("`{}` is taken by another task", task.name),
            );
        }
        tasks.extend(faults.within(format!("tasks[{index}]"), |faults| check_task(task, faults)));
    }
    Some(tasks)
}

fn check_task(spec: TaskSpec, faults: &mut Faults) -> Option<Task> {
    let variants = check_programs(spec.wasm, spec.oci, spec.variants, faults)?;
    let resources =
        with_defaults(spec.resources.unwrap_or_default(), &Resources::default_request());
    if resources.memory.0 < MEMORY_BYTES_MIN {
        faults.add(
            "resources.memory",
            format!("{} is too little: at least {}", resources.memory, Bytes(MEMORY_BYTES_MIN)),
        );
    }
    for (name, amount) in &resources.scalars {
        if amount.0 > 1_000 && !amount.0.is_multiple_of(1_000) {
            faults.add(
                "resources.scalars",
                format!("{name} {amount}: more than one are whole, less than one is a part of one"),
            );
        }
    }
    let limits = with_defaults(spec.limits.unwrap_or_default(), &resources);
    for shortage in resources.shortages_in(&limits) {
        let Shortage { resource, wanted, available } = shortage;
        faults.add("limits", format!("{resource} {available} is below the request of {wanted}"));
    }
    check_values("env", &spec.env, faults);
    for (index, mount) in spec.mounts.iter().enumerate() {
        faults.within(format!("mounts[{index}]"), |faults| check_mount(mount, faults));
    }
    if spec.stdin {
        variants.iter().for_each(|program| check_stdin(program, faults));
    }
    let TaskSpec { name, env, mounts, stdin, sidecar, .. } = spec;
    Some(Task { name, variants, resources, limits, env, mounts, stdin, sidecar })
}

fn check_programs(
    wasm: Option<WasmProgram>,
    oci: Option<OciProgram>,
    variants: Vec<Program>,
    faults: &mut Faults,
) -> Option<Variants> {
    let variants = match (wasm, oci, variants.is_empty()) {
        (Some(wasm), None, true) => Variants::from(Program::Wasm(wasm)),
        (None, Some(oci), true) => Variants::from(Program::Oci(oci)),
        (None, None, false) => match Variants::new(variants) {
            Ok(variants) => variants,
            Err(error) => {
                faults.add("variants", error.to_string());
                return None;
            }
        },
        (Some(_), Some(_), true) => {
            faults.add(
                "",
                "has both `wasm` and `oci`: leave one out, or let each node run what it can: \
                 `variants: [{wasm: …}, {oci: …}]`, the preferred first",
            );
            return None;
        }
        _ => {
            faults.add(
                "",
                "needs exactly one of `wasm: {artifact: …}`, `oci: {image: …}` and `variants: […]`",
            );
            return None;
        }
    };
    for (position, program) in variants.iter().enumerate() {
        faults.within(variants.field(position, program.runtime()), |faults| match program {
            Program::Wasm(wasm) => check_wasm(wasm, faults),
            Program::Oci(oci) => check_oci(oci, faults),
        });
    }
    Some(variants)
}

fn check_stdin(program: &Program, faults: &mut Faults) {
    match program {
        Program::Wasm(WasmProgram { http: Some(_), .. }) => faults.add(
            "stdin",
            "is for a command; a program with `http` answers requests and reads no standard input: leave one of them out",
        ),
        Program::Wasm(_) => {}
        Program::Oci(_) => faults.add(
            "stdin",
            "is for wasm commands; a container's standard input is empty: leave it out, and run what wants input with \
             `brig exec --interactive`",
        ),
    }
}

/// What is not named (or named as nothing) is as in `defaults`.
fn with_defaults(written: Resources, defaults: &Resources) -> Resources {
    let pick = |written: u64, default: u64| if written == 0 { default } else { written };
    let mut scalars = defaults.scalars.clone();
    scalars.extend(written.scalars);
    Resources {
        cpu: MilliCpu(pick(written.cpu.0, defaults.cpu.0)),
        memory: Bytes(pick(written.memory.0, defaults.memory.0)),
        disk: Bytes(pick(written.disk.0, defaults.disk.0)),
        scalars,
    }
}

fn check_reference(field: &str, text: &str, faults: &mut Faults) {
    if let Err(error) = text.parse::<Reference>() {
        faults.add(field, error.to_string());
    }
}

fn check_no_nul(field: &str, texts: &[String], faults: &mut Faults) {
    if texts.iter().any(|text| text.contains('\0')) {
        faults.add(field, "must not contain NUL bytes");
    }
}

fn check_wasm(wasm: &WasmProgram, faults: &mut Faults) {
    check_reference("artifact", &wasm.artifact, faults);
    check_no_nul("args", &wasm.args, faults);
    if let Some(http) = &wasm.http {
        check_http(http, faults);
    }
    if wasm.deadline_ms == Some(0) {
        faults.add("deadline_ms", "must be at least 1");
    }
    for (index, host) in wasm.allow_hosts.iter().enumerate() {
        if let Err(error) = host.parse::<AllowedHost>() {
            faults.add(&format!("allow_hosts[{index}]"), error.to_string());
        }
    }
    if wasm.http.is_some() && !wasm.ports.is_empty() {
        faults.add(
            "ports",
            "are for a program that listens by itself; one with `http` answers each request with a new instance: \
             leave one of the two out",
        );
    }
    check_ports(&wasm.ports, faults);
    check_values("config", &wasm.config, faults);
    let distinct: BTreeSet<_> = wasm.keyvalue.iter().collect();
    if distinct.len() != wasm.keyvalue.len() {
        faults.add("keyvalue", "a bucket is named twice");
    }
    if wasm.keyvalue.len() > BUCKETS_MAX {
        let count = wasm.keyvalue.len();
        faults.add("keyvalue", format!("{count} are too many: at most {BUCKETS_MAX}"));
    }
}

fn check_ports(ports: &[u16], faults: &mut Faults) {
    let fixed: Vec<_> = ports.iter().filter(|port| **port != 0).collect();
    let distinct: BTreeSet<_> = fixed.iter().collect();
    if distinct.len() != fixed.len() {
        faults.add("ports", "a port is named twice (but for 0, a port that the scheduler chooses)");
    }
    if ports.len() > PORTS_MAX {
        faults.add("ports", format!("{} are too many: at most {PORTS_MAX}", ports.len()));
    }
}

fn check_http(http: &HttpServing, faults: &mut Faults) {
    if http.port == Some(0) {
        faults.add("http.port", "0 is no port: name one, or leave it out for a free one");
    }
    if http.max_concurrent.is_some_and(|max| !(1..=HTTP_CONCURRENT_MAX).contains(&max)) {
        faults.add("http.max_concurrent", format!("must be from 1 to {HTTP_CONCURRENT_MAX}"));
    }
    if http.timeout_ms == Some(0) {
        faults.add("http.timeout_ms", "must be at least 1");
    }
    let Some(reuse) = &http.reuse else { return };
    if reuse.max_requests == 0 {
        faults.add("http.reuse.max_requests", "must be at least 1");
    }
    if !(1..=REUSE_IDLE_MS_MAX).contains(&reuse.idle_ms) {
        faults.add("http.reuse.idle_ms", format!("must be from 1 to {REUSE_IDLE_MS_MAX}"));
    }
}

fn check_oci(oci: &OciProgram, faults: &mut Faults) {
    check_reference("image", &oci.image, faults);
    check_no_nul("command", &oci.command, faults);
    check_no_nul("args", &oci.args, faults);
    if oci.working_dir.as_deref().is_some_and(|dir| !dir.starts_with('/') || dir.contains('\0')) {
        faults.add("working_dir", "must be an absolute path");
    }
    if oci.user.as_deref().is_some_and(|user| user.is_empty() || user.contains(['\0', '\n'])) {
        faults.add("user", "expected `user`, `uid`, `user:group` or `uid:gid`");
    }
    // libcontainer 0.7 fails to create containers with a limit of 0 or 1.
    if oci.pids.is_some_and(|pids| pids < 2) {
        faults.add("pids", "must be at least 2");
    }
    check_ports(&oci.ports, faults);
}

/// Variables, or a wasm program's `config`.
fn check_values(field: &str, values: &BTreeMap<String, EnvValue>, faults: &mut Faults) {
    for (name, value) in values {
        if name.is_empty() || name.contains(['=', '\0']) {
            faults.add(field, format!("`{name}` is no name: it must not be empty or contain `=`"));
        }
        if matches!(value, EnvValue::Text(text) if text.contains('\0')) {
            faults.add(&format!("{field}.{name}"), "must not contain NUL bytes");
        }
    }
}

fn check_mount(mount: &Mount, faults: &mut Faults) {
    let sources = usize::from(mount.host.is_some())
        + usize::from(mount.config.is_some())
        + usize::from(mount.secret.is_some());
    if sources != 1 {
        faults.add("", "needs exactly one of `host`, `config` and `secret`");
    }
    let is_plain = |path: &str| {
        path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|part| part == "..")
    };
    if !is_plain(&mount.at) {
        faults.add("at", format!("`{}` must be an absolute path without `..`", mount.at));
    }
    if mount.host.as_ref().is_some_and(|host| !host.to_str().is_some_and(is_plain)) {
        faults.add("host", "must be an absolute path without `..`");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::{Format, parse};

    fn faults(unit: &str) -> String {
        let text = format!("kind: unit\nname: x\nunit: {unit}");
        let manifest = parse(&text, Format::Yaml, None).unwrap().remove(0);
        let faults = manifest.check().unwrap_err();
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn each_rule_names_the_field() {
        for (unit, expected) in [
            ("{}", "unit: needs exactly one"),
            ("{wasm: {artifact: a}, oci: {image: b}}", "unit: has both `wasm` and `oci`"),
            ("{wasm: {artifact: a}, variants: [{oci: {image: b}}]}", "unit: needs exactly one"),
            (
                "{variants: [{oci: {image: a}}, {wasm: {artifact: a}}, {oci: {image: b}}]}",
                "unit.variants: has two programs for oci",
            ),
            (
                "{variants: [{oci: {image: a}}, {wasm: {artifact: a, http: {port: 0}}}]}",
                "unit.variants[1].wasm.http.port",
            ),
            (
                "{tasks: [{name: t, variants: [{wasm: {artifact: a}}, {oci: {image: a, pids: 1}}]}]}",
                "unit.tasks[0].variants[1].oci.pids",
            ),
            (
                "{variants: [{oci: {image: b}}], tasks: [{name: t, oci: {image: a}}]}",
                "both `tasks`",
            ),
            ("{wasm: {artifact: a}, tasks: [{name: t, wasm: {artifact: a}}]}", "both `tasks` and"),
            ("{wasm: {artifact: 'A B'}}", "unit.wasm.artifact: `A B`"),
            ("{wasm: {artifact: a, http: {}}, stdin: true}", "unit.stdin: is for a command"),
            ("{oci: {image: a}, stdin: true}", "unit.stdin: is for wasm commands"),
            ("{tasks: [{name: t, wasm: {artifact: a}}], stdin: true}", "both `tasks` and fields"),
            ("{wasm: {artifact: a, http: {port: 0}}}", "unit.wasm.http.port"),
            ("{wasm: {artifact: a, http: {max_concurrent: 0}}}", "unit.wasm.http.max_concurrent"),
            ("{wasm: {artifact: a, http: {max_concurrent: 1001}}}", "from 1 to 1000"),
            ("{wasm: {artifact: a, http: {timeout_ms: 0}}}", "unit.wasm.http.timeout_ms"),
            (
                "{wasm: {artifact: a, http: {reuse: {max_requests: 0}}}}",
                "unit.wasm.http.reuse.max_requests",
            ),
            ("{wasm: {artifact: a, http: {reuse: {idle_ms: 0}}}}", "unit.wasm.http.reuse.idle_ms"),
            ("{wasm: {artifact: a, allow_hosts: ['a b']}}", "unit.wasm.allow_hosts[0]"),
            ("{wasm: {artifact: a, allow_hosts: ['ftp://b']}}", "unit.wasm.allow_hosts[0]"),
            ("{wasm: {artifact: a, ports: [80, 80]}}", "unit.wasm.ports: a port is named twice"),
            ("{wasm: {artifact: a, ports: [80], http: {}}}", "unit.wasm.ports: are for a program"),
            ("{wasm: {artifact: a, config: {'A=B': c}}}", "unit.wasm.config: `A=B`"),
            ("{wasm: {artifact: a, keyvalue: [x, x]}}", "unit.wasm.keyvalue: a bucket"),
            (
                "{wasm: {artifact: a}, resources: {memory: 1k}}",
                "unit.resources.memory: 1000 is too little",
            ),
            (
                "{wasm: {artifact: a}, resources: {cpu: 2}, limits: {cpu: 1}}",
                "unit.limits: cpu 1 is below the request of 2",
            ),
            ("{wasm: {artifact: a}, env: {'A=B': c}}", "unit.env: `A=B`"),
            ("{wasm: {artifact: a}, mounts: [{host: /x, at: /a/../b}]}", "unit.mounts[0].at"),
            (
                "{wasm: {artifact: a}, mounts: [{at: /a}]}",
                "unit.mounts[0]: needs exactly one of `host`",
            ),
            ("{wasm: {artifact: a}, priority: 5000}", "unit.priority"),
            // The one number whose absolute value is none.
            ("{wasm: {artifact: a}, priority: -2147483648}", "unit.priority"),
            (
                "{wasm: {artifact: a}, constraints: [{attribute: z, operator: '='}]}",
                "unit.constraints[0]",
            ),
            ("{oci: {image: a, pids: 1}}", "unit.oci.pids"),
            ("{oci: {image: a, ports: [80, 80]}}", "unit.oci.ports"),
            ("{oci: {image: a, working_dir: x}}", "unit.oci.working_dir"),
            (
                "{oci: {image: a}, placement: {spread: [{over: zone, max_skew: 0}]}}",
                "placement.spread[0].max_skew",
            ),
            (
                "{oci: {image: a}, placement: {spread: [{over: zone, targets: {a: 70, b: 40}}]}}",
                "spread[0].targets",
            ),
            ("{oci: {image: a}, placement: {near: [{units: {}}]}}", "unit.placement.near[0].units"),
            (
                "{oci: {image: a}, placement: {away: [{units: {a: b}, within: other}]}}",
                "unit.placement.away[0].within: `other` is neither `default`",
            ),
            (
                "{oci: {image: a}, placement: {prefer: [{when: {attribute: a, operator: regex, values: ['(']}, weight: 1}]}}",
                "unit.placement.prefer[0].when: `(`",
            ),
            ("{oci: {image: a}, gang: {name: g, size: 0}}", "unit.gang.size"),
            ("{oci: {image: a}, concurrency: {key: k, limit: 0}}", "unit.concurrency.limit"),
            ("{oci: {image: a}, after: [{}]}", "unit.after[0]: needs exactly one"),
            (
                "{oci: {image: a}, resources: {scalars: {gpu: 1.5}}}",
                "unit.resources.scalars: gpu 1500m",
            ),
            (
                "{tasks: [{name: t, oci: {image: a}}, {name: t, oci: {image: a}}]}",
                "unit.tasks[1].name: `t` is taken",
            ),
            ("{tasks: [{name: t, oci: {image: a}, sidecar: true}]}", "no sidecar"),
            (
                "{tasks: [{name: t, oci: {image: a}, resources: {cpu: 18446744073709551}}, {name: u, oci: {image: a}, resources: {cpu: 18446744073709551}}]}",
                "more than can be counted",
            ),
        ] {
            let found = faults(unit);
            assert!(found.contains(expected), "{unit}\n  gave: {found}\n  not: {expected}");
        }
    }

    #[test]
    fn what_is_left_open_is_filled_in() {
        let text = "kind: unit\nname: x\nunit: {wasm: {artifact: a}, resources: {memory: 128Mi}, limits: {cpu: 2}}";
        let Manifest::Unit(unit) =
            parse(text, Format::Yaml, None).unwrap().remove(0).check().unwrap()
        else {
            panic!("a unit")
        };
        let task = &unit.unit.tasks[0];
        assert_eq!((task.resources.cpu, task.resources.memory), (MilliCpu(100), Bytes(128 << 20)));
        assert_eq!((task.limits.cpu, task.limits.memory), (MilliCpu(2000), Bytes(128 << 20)));
        assert_eq!(unit.unit.restart, RestartPolicy::OnFailure);
    }

    #[test]
    fn a_checked_manifest_written_out_reads_back_as_itself() {
        for unit in [
            "{oci: {image: a, ports: [80]}, env: {A: b}, limits: {cpu: 2}}",
            "{variants: [{oci: {image: a, ports: [80]}}, {wasm: {artifact: b, http: {port: 80}}}]}",
            "{variants: [{wasm: {artifact: b}}]}",
        ] {
            let text = format!("kind: service\nname: x\nunit: {unit}");
            let checked = parse(&text, Format::Yaml, None).unwrap().remove(0).check().unwrap();
            let written = serde_json::to_string(&checked).unwrap();
            let again = parse(&written, Format::Json, None).unwrap().remove(0).check().unwrap();
            assert_eq!(checked, again, "{unit}");
        }
    }
}
