//! Tables of single decisions, and a property over long random histories.

use super::*;
use brig_api::object::UnitStatus;
use brig_api::unit_spec::{HttpServing, OciProgram, RestartPolicy, WasmProgram};
use brig_api::{ResourceName, Resources};
use proptest::prelude::*;

const BOOT: &str = "boot";

fn name(text: &str) -> ResourceName {
    ResourceName::new(text).unwrap()
}

fn task(text: &str, sidecar: bool) -> Task {
    let http = (text == "web").then(HttpServing::default);
    Task {
        name: name(text),
        variants: Program::Wasm(WasmProgram {
            artifact: "a".into(),
            http,
            ..WasmProgram::default()
        })
        .into(),
        resources: Resources::default(),
        limits: Resources::default(),
        env: BTreeMap::new(),
        mounts: vec![],
        stdin: false,
        sidecar,
    }
}

fn template(restart: RestartPolicy, tasks: Vec<Task>) -> UnitTemplate {
    UnitTemplate {
        tasks,
        restart,
        priority: 0,
        constraints: vec![],
        placement: Default::default(),
        revocable: false,
        gang: None,
        after: vec![],
        concurrency: None,
        max_run_ms: None,
        grace_ms: 1_000,
        disconnect: Default::default(),
    }
}

fn exit(code: i32, reason: Option<Reason>, finished_ms: i64) -> ExitRecord {
    ExitRecord { code, reason, message: None, finished_ms, usage: Usage::default() }
}

/// A unit and a world around it that does what the plan says.
#[derive(Clone)]
struct World {
    template: UnitTemplate,
    grants: Grants,
    wanted: Wanted,
    record: UnitRecord,
    tasks: BTreeMap<ResourceName, TaskSeen>,
    preparation: Preparation,
    has_secrets: bool,
    stops: BTreeMap<ResourceName, StopSent>,
    now_ms: i64,
    done: Vec<Action>,
    reports: Vec<UnitStatus>,
    is_forgotten: bool,
}

impl World {
    fn new(restart: RestartPolicy, tasks: Vec<Task>) -> Self {
        Self {
            template: template(restart, tasks),
            grants: Grants::default(),
            wanted: Wanted::Run,
            record: UnitRecord::assigned(),
            tasks: BTreeMap::new(),
            preparation: Preparation::None,
            has_secrets: true,
            stops: BTreeMap::new(),
            now_ms: 1_000_000,
            done: vec![],
            reports: vec![],
            is_forgotten: false,
        }
    }

    /// Decides and executes until there is nothing to record.
    fn settle(&mut self) {
        for _ in 0..8 {
            let view = View {
                wanted: self.wanted,
                template: &self.template,
                grants: &self.grants,
                record: &self.record,
                tasks: &self.tasks,
                preparation: &self.preparation,
                has_secrets: self.has_secrets,
                stops: &self.stops,
                address: "127.0.0.1".parse().unwrap(),
                boot_id: BOOT,
            };
            let actions = decide(&view, self.now_ms);
            let records = actions.iter().any(|action| matches!(action, Action::Record(_)));
            for (index, action) in actions.into_iter().enumerate() {
                assert!(index == 0 || !matches!(action, Action::Record(_)), "recorded first");
                self.execute(action);
            }
            if !records || self.is_forgotten {
                return;
            }
        }
        panic!("the plan does not come to rest: {:?}", self.record);
    }

    fn execute(&mut self, action: Action) {
        match &action {
            Action::Record(next) => {
                if next.run != self.record.run {
                    self.tasks.clear();
                    self.stops.clear();
                }
                if matches!(next.phase, Phase::Backoff { .. } | Phase::Ended) {
                    self.preparation = Preparation::None;
                }
                if next.status != self.record.status {
                    self.reports.push(next.status.clone());
                }
                self.record = (**next).clone();
            }
            Action::Prepare => {
                assert_eq!(self.preparation, Preparation::None);
                self.preparation = Preparation::Underway;
            }
            Action::Start(task) => {
                assert_eq!(self.wanted, Wanted::Run);
                let before = self.tasks.insert(task.clone(), TaskSeen::Starting);
                assert!(matches!(before, None | Some(TaskSeen::NotStarted)), "started twice");
            }
            Action::Terminate(task) | Action::Kill(task) => {
                let killed_ms = matches!(action, Action::Kill(_)).then_some(self.now_ms);
                let since_ms = self.stops.get(task).map_or(self.now_ms, |stop| stop.since_ms);
                self.stops.insert(task.clone(), StopSent { since_ms, killed_ms });
            }
            Action::Collect(task) => {
                assert!(self.record.exits.contains_key(task), "collected before it was recorded");
            }
            Action::Forget => self.is_forgotten = true,
            Action::WakeAt(_) => return,
        }
        self.done.push(action);
    }

    fn see(&mut self, task: &str, seen: TaskSeen) {
        self.tasks.insert(name(task), seen);
        self.settle();
    }

    fn prepared(&mut self) {
        self.settle();
        assert_eq!(self.preparation, Preparation::Underway);
        self.preparation = Preparation::Ready;
        self.settle();
    }

    /// To the point where every task runs.
    fn running(restart: RestartPolicy, tasks: Vec<Task>) -> Self {
        let mut world = Self::new(restart, tasks);
        world.prepared();
        let names: Vec<_> = world.template.tasks.iter().map(|task| task.name.clone()).collect();
        for task in names {
            let http = (task.as_str() == "web").then(|| "127.0.0.1:4040".parse().unwrap());
            world.see(task.as_str(), TaskSeen::Running { http });
        }
        assert_eq!(world.record.status.state, UnitState::Running);
        world
    }

    fn state(&self) -> (UnitState, Option<Reason>, Option<i32>) {
        let status = &self.record.status;
        (status.state, status.reason, status.exit_code)
    }

    fn times(&self, wanted: &Action) -> usize {
        self.done.iter().filter(|action| *action == wanted).count()
    }
}

fn main_task() -> Vec<Task> {
    vec![task("main", false)]
}

#[test]
fn a_unit_is_prepared_started_and_runs() {
    let world = World::running(RestartPolicy::Always, vec![task("web", false)]);
    let states: Vec<_> = world.reports.iter().map(|status| status.state).collect();
    assert_eq!(states, [UnitState::Preparing, UnitState::Running]);
    let endpoint = &world.record.status.endpoints[0];
    assert_eq!((endpoint.address.as_str(), endpoint.scheme.as_str()), ("127.0.0.1:4040", "http"));
    assert_eq!(world.record.ports[&name("web")], 4040);
    assert_eq!(world.times(&Action::Start(name("web"))), 1);
}

#[test]
fn chosen_ports_are_endpoints_like_fixed_ones() {
    let (artifact, ports) = ("db".to_owned(), vec![5432, 0]);
    let oci = OciProgram { image: "db".into(), ports: ports.clone(), ..OciProgram::default() };
    let wasm = WasmProgram { artifact, ports, ..WasmProgram::default() };
    for program in [Program::Oci(oci), Program::Wasm(wasm)] {
        let task = Task { variants: program.into(), ..task("db", false) };
        let mut world = World::new(RestartPolicy::Always, vec![task]);
        world.grants.ports = vec![20_005];
        world.prepared();
        world.see("db", TaskSeen::Running { http: None });
        let endpoints = world.record.status.endpoints.iter();
        let endpoints: Vec<_> =
            endpoints.map(|e| (e.address.as_str(), e.scheme.as_str())).collect();
        assert_eq!(endpoints, [("127.0.0.1:5432", "tcp"), ("127.0.0.1:20005", "tcp")]);
    }
}

#[test]
fn how_a_unit_ends_is_decided_by_policy_and_exit() {
    use RestartPolicy::{Always, Never, OnFailure};
    use UnitState::{Backoff, Failed, Succeeded};
    for (policy, code, reason, state, told) in [
        (Always, 0, None, Backoff, None),
        (Always, 3, None, Backoff, Some(Reason::ExitedNonZero)),
        (OnFailure, 0, None, Succeeded, None),
        (OnFailure, 1, Some(Reason::Trapped), Backoff, Some(Reason::Trapped)),
        (Never, 0, None, Succeeded, None),
        (Never, 137, Some(Reason::OutOfMemory), Failed, Some(Reason::OutOfMemory)),
        (Never, 7, None, Failed, Some(Reason::ExitedNonZero)),
    ] {
        let mut world = World::running(policy, main_task());
        world.see("main", TaskSeen::Exited(exit(code, reason, world.now_ms)));
        assert_eq!(world.state(), (state, told, Some(code)), "{policy:?} {code}");
        assert_eq!(world.times(&Action::Collect(name("main"))), 1);
        assert_eq!(world.record.status.finished_ms.is_some(), state.is_final());
    }
}

#[test]
fn the_wait_doubles_is_capped_and_is_called_a_crash_loop() {
    assert_eq!([1, 2, 3, 4].map(backoff_ms), [250, 500, 1_000, 2_000]);
    assert_eq!((backoff_ms(0), backoff_ms(u32::MAX)), (250, BACKOFF_MS_MAX));
    let mut world = World::running(RestartPolicy::OnFailure, main_task());
    for failure in 1..=4 {
        world.see("main", TaskSeen::Exited(exit(3, None, world.now_ms)));
        let expected = if failure < 3 { Reason::ExitedNonZero } else { Reason::CrashLoop };
        assert_eq!(world.state(), (UnitState::Backoff, Some(expected), Some(3)));
        assert!(world.record.status.message.as_ref().unwrap().contains("exit code 3"));
        world.now_ms += i64::try_from(backoff_ms(failure)).unwrap() - 1;
        world.settle();
        assert_eq!(world.record.status.state, UnitState::Backoff, "too early");
        world.now_ms += 1;
        world.prepared();
        assert_eq!((world.record.run, world.record.status.restarts), (failure, failure));
        world.see("main", TaskSeen::Running { http: None });
    }
    world.now_ms += STEADY_MS;
    world.see("main", TaskSeen::Exited(exit(3, None, world.now_ms)));
    assert_eq!(world.record.failures, 1, "it had recovered");
}

#[test]
fn a_clock_that_is_set_back_does_not_hold_a_unit_up() {
    let mut world = World::running(RestartPolicy::Always, main_task());
    world.see("main", TaskSeen::Exited(exit(0, None, world.now_ms)));
    world.now_ms -= 3_600_000;
    world.settle();
    assert_eq!(world.record.run, 1);
}

#[test]
fn sidecars_end_with_the_others_and_one_failure_ends_all() {
    let tasks = || vec![task("main", false), task("proxy", true)];
    let mut world = World::running(RestartPolicy::Never, tasks());
    world.see("main", TaskSeen::Exited(exit(0, None, world.now_ms)));
    assert_eq!(world.times(&Action::Terminate(name("proxy"))), 1);
    assert_eq!(world.record.status.state, UnitState::Running);
    world.see("proxy", TaskSeen::Exited(exit(143, None, world.now_ms + 1)));
    // What the sidecar was made to answer is no failure of the unit's.
    assert_eq!(world.record.status.state, UnitState::Succeeded);

    let mut world = World::running(RestartPolicy::Never, tasks());
    world.see("proxy", TaskSeen::Exited(exit(9, None, world.now_ms)));
    assert_eq!(world.times(&Action::Terminate(name("main"))), 1);
    world.see("main", TaskSeen::Exited(exit(143, None, world.now_ms + 5)));
    assert_eq!(world.state(), (UnitState::Failed, Some(Reason::ExitedNonZero), Some(9)));
}

#[test]
fn a_unit_is_stopped_with_grace_and_then_killed() {
    let mut world = World::running(RestartPolicy::Always, main_task());
    world.wanted = Wanted::Stop;
    world.settle();
    assert_eq!(world.state().0, UnitState::Stopping);
    world.settle();
    assert_eq!(world.times(&Action::Terminate(name("main"))), 1);
    world.now_ms += 1_000;
    world.settle();
    world.settle();
    assert_eq!(world.times(&Action::Kill(name("main"))), 1);
    // The shim may not have heard it.
    world.now_ms += KILL_AGAIN_MS;
    world.settle();
    world.settle();
    assert_eq!(world.times(&Action::Kill(name("main"))), 2);
    world.see("main", TaskSeen::Exited(exit(137, None, world.now_ms)));
    assert_eq!(world.state(), (UnitState::Stopped, Some(Reason::Requested), Some(137)));
    world.wanted = Wanted::Run;
    world.settle();
    assert_eq!(world.record.phase, Phase::Ended, "final is final");
    world.wanted = Wanted::Forget;
    world.settle();
    assert!(world.is_forgotten);
}

#[test]
fn a_unit_that_does_not_run_is_stopped_at_once() {
    let mut waiting = World::running(RestartPolicy::Always, main_task());
    waiting.see("main", TaskSeen::Exited(exit(3, None, waiting.now_ms)));
    let mut preparing = World::new(RestartPolicy::Always, main_task());
    preparing.settle();
    for (mut world, code) in [(waiting, Some(3)), (preparing, None)] {
        world.wanted = Wanted::Stop;
        world.settle();
        assert_eq!(world.state(), (UnitState::Stopped, Some(Reason::Requested), code));
    }
}

#[test]
fn faults_of_the_preparation_end_jobs_and_are_tried_again_for_others() {
    use RestartPolicy::{Always, Never};
    for (policy, reason, state) in [
        (Never, Reason::InvalidArtifact, UnitState::Failed),
        (Never, Reason::MountRefused, UnitState::Failed),
        (Never, Reason::PullFailed, UnitState::Backoff),
        (Never, Reason::DiskFull, UnitState::Backoff),
        (Always, Reason::InvalidArtifact, UnitState::Backoff),
        (Always, Reason::PullFailed, UnitState::Backoff),
    ] {
        let mut world = World::new(policy, main_task());
        for _ in 0..4 {
            world.settle();
            world.preparation = Preparation::Failed(Fault { reason, message: "why".into() });
            world.settle();
            assert_eq!(world.state(), (state, Some(reason), None), "{policy:?}");
            assert!(world.record.status.message.as_ref().unwrap().starts_with("why"));
            world.now_ms += i64::try_from(BACKOFF_MS_MAX).unwrap();
            if state.is_final() {
                break;
            }
        }
    }
}

#[test]
fn a_dead_shim_is_said_so_and_the_unit_starts_again() {
    let mut world = World::running(RestartPolicy::OnFailure, main_task());
    world.see("main", TaskSeen::Lost);
    assert_eq!(world.state(), (UnitState::Backoff, Some(Reason::ShimLost), Some(137)));
    assert_eq!(world.times(&Action::Collect(name("main"))), 1);
}

#[test]
fn shutdown_ends_tasks_and_they_run_again_when_the_agent_is_back() {
    let mut world = World::running(RestartPolicy::Never, main_task());
    world.wanted = Wanted::Pause;
    world.settle();
    assert_eq!(world.times(&Action::Terminate(name("main"))), 1);
    world.see("main", TaskSeen::Exited(exit(143, None, world.now_ms)));
    assert_eq!(world.state().0, UnitState::Backoff);
    world.now_ms += 10;
    world.settle();
    assert_eq!(world.record.run, 0);
    world.wanted = Wanted::Run;
    world.prepared();
    assert_eq!(world.record.run, 1);
}

#[test]
fn after_a_restart_only_what_was_not_started_is_started() {
    let mut world = World::running(RestartPolicy::Always, vec![task("a", false), task("b", false)]);
    world.preparation = Preparation::None;
    world.tasks.insert(name("b"), TaskSeen::NotStarted);
    world.prepared();
    assert_eq!(world.times(&Action::Start(name("a"))), 1);
    assert_eq!(world.times(&Action::Start(name("b"))), 2);
}

#[test]
fn without_its_secrets_a_unit_waits() {
    let mut world = World::new(RestartPolicy::Always, main_task());
    world.has_secrets = false;
    world.settle();
    assert_eq!(world.preparation, Preparation::None);
    assert!(world.record.status.message.as_ref().unwrap().contains("secrets"));
    world.has_secrets = true;
    world.prepared();
    assert_eq!(world.times(&Action::Start(name("main"))), 1);
}

#[test]
fn keys_are_taken_apart_and_strays_are_ended() {
    let unit = UnitId::new("p1-2").unwrap();
    let key = TaskKey::new(&unit, &name("main"), 7);
    assert_eq!(parse_key(&key), Some((unit, name("main"), 7)));
    for bad in ["", "a.b", "a.b.c", "a.b.1.2", "A.b.1", "a.b.01", "../a.b.1"] {
        assert_eq!(parse_key(&TaskKey(bad.into())), None, "{bad}");
    }
    assert_eq!(decide_stray(&TaskSeen::Running { http: None }), Stray::Kill);
    assert_eq!(decide_stray(&TaskSeen::Exited(exit(0, None, 0))), Stray::Collect);
}

/// What may happen to a unit.
#[derive(Debug, Clone)]
enum Happening {
    Want(Wanted),
    Prepared(bool),
    Runs(usize),
    Exits(usize, i32),
    Lost(usize),
    /// The agent was killed: what was in memory is gone.
    Killed,
    Later(i64),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        1 => prop_oneof![Just(Wanted::Stop), Just(Wanted::Pause), Just(Wanted::Run)]
            .prop_map(Happening::Want),
        4 => any::<bool>().prop_map(Happening::Prepared),
        6 => (0..3_usize).prop_map(Happening::Runs),
        4 => ((0..3_usize), prop_oneof![Just(0), Just(3)])
            .prop_map(|(task, code)| Happening::Exits(task, code)),
        1 => (0..3_usize).prop_map(Happening::Lost),
        2 => Just(Happening::Killed),
        4 => (0..70_000_i64).prop_map(Happening::Later),
    ]
}

fn apply(world: &mut World, happening: &Happening) {
    let live = |world: &World, index: usize| {
        let task = world.template.tasks[index].name.clone();
        let is_live =
            matches!(world.tasks.get(&task), Some(TaskSeen::Starting | TaskSeen::Running { .. }));
        is_live.then_some(task)
    };
    match happening {
        Happening::Want(wanted) => world.wanted = *wanted,
        Happening::Prepared(works) => {
            if world.preparation == Preparation::Underway {
                let fault = Fault { reason: Reason::MountRefused, message: "no".into() };
                world.preparation =
                    if *works { Preparation::Ready } else { Preparation::Failed(fault) };
            }
        }
        Happening::Runs(index) => {
            if let Some(task) = live(world, *index) {
                world.tasks.insert(task, TaskSeen::Running { http: None });
            }
        }
        Happening::Exits(index, code) => {
            if let Some(task) = live(world, *index) {
                let record = exit(*code, None, world.now_ms);
                world.tasks.insert(task, TaskSeen::Exited(record));
            }
        }
        Happening::Lost(index) => {
            if let Some(task) = live(world, *index) {
                world.tasks.insert(task, TaskSeen::Lost);
            }
        }
        Happening::Killed => {
            world.preparation = Preparation::None;
            world.stops.clear();
        }
        Happening::Later(ms) => world.now_ms += ms,
    }
}

proptest! {
    #[test]
    fn no_history_breaks_the_promises(
        history in proptest::collection::vec(happening(), 1..120),
        policy in prop_oneof![
            Just(RestartPolicy::Always), Just(RestartPolicy::OnFailure), Just(RestartPolicy::Never)
        ],
    ) {
        let tasks = vec![task("a", false), task("b", false), task("side", true)];
        let mut world = World::new(policy, tasks);
        world.settle();
        for happening in &history {
            let before = world.record.clone();
            apply(&mut world, happening);
            world.settle();
            // Deciding again without news does nothing but what is repeated harmlessly.
            let done = world.done.len();
            world.settle();
            prop_assert_eq!(world.done.len(), done, "not at rest after {:?}", happening);
            if before.phase == Phase::Ended {
                prop_assert_eq!(&before, &world.record);
            }
            prop_assert!(world.record.run >= before.run);
        }
        for pair in world.reports.windows(2) {
            prop_assert!(pair[0].sequence < pair[1].sequence);
            prop_assert!(
                pair[0].state == UnitState::Preparing || pair[0].state.allows_report(pair[1].state),
                "{:?} -> {:?}", pair[0].state, pair[1].state
            );
        }
        // Each exit of each run is taken exactly once: a run's key is collected at most once.
        let starts = world.done.iter().filter(|one| matches!(one, Action::Start(_))).count();
        let collects = world.done.iter().filter(|one| matches!(one, Action::Collect(_))).count();
        prop_assert!(collects <= starts);
    }
}
