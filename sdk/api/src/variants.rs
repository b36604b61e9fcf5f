//! What a task runs: one program, or several variants of one of which the scheduler picks. Each is for another runtime.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize, Serializer};

use crate::unit_spec::{OciProgram, Program, Runtime, Task, UnitTemplate, WasmProgram};
use crate::validate::TASKS_MAX;

/// A set of runtimes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct RuntimeSet(u8);

impl RuntimeSet {
    const ORDER: [Runtime; 2] = [Runtime::Wasm, Runtime::Oci];

    /// Every set that has something in it: what nodes that run anything may have.
    pub const ALL: [Self; 3] = [Self(1), Self(2), Self(3)];

    fn bit(runtime: Runtime) -> u8 {
        match runtime {
            Runtime::Wasm => 1,
            Runtime::Oci => 2,
        }
    }

    /// Is it in the set?
    #[must_use]
    pub fn contains(self, runtime: Runtime) -> bool {
        self.0 & Self::bit(runtime) != 0
    }

    /// Is any runtime in both sets?
    #[must_use]
    pub fn meets(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// The runtimes, wasm first.
    pub fn iter(self) -> impl Iterator<Item = Runtime> {
        Self::ORDER.into_iter().filter(move |runtime| self.contains(*runtime))
    }

    /// `wasm`, `oci` or `mixed`, for tables.
    #[must_use]
    pub fn label(self) -> &'static str {
        let mut runtimes = self.iter();
        match (runtimes.next(), runtimes.next()) {
            (Some(only), None) => only.as_str(),
            _ => "mixed",
        }
    }
}

impl FromIterator<Runtime> for RuntimeSet {
    fn from_iter<I: IntoIterator<Item = Runtime>>(runtimes: I) -> Self {
        Self(runtimes.into_iter().fold(0, |set, runtime| set | Self::bit(runtime)))
    }
}

/// The runtime of each task of a unit, in their order; empty where no task leaves a choice. A few bits for each, because there
/// are many units; written out, a list.
#[derive(
    Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize, JsonSchema,
)]
#[serde(try_from = "Vec<Runtime>", into = "Vec<Runtime>")]
pub struct Choice(u32);

/// More tasks than a unit can have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{0} runtimes are too many: a unit has at most {TASKS_MAX} tasks")]
pub struct InvalidChoice(usize);

impl Choice {
    /// Bits for one task: 0 stands for none.
    const BITS: usize = 2;
    const MASK: u32 = 3;

    /// Was nothing chosen?
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The runtimes, in the order of the tasks.
    pub fn iter(self) -> impl Iterator<Item = Runtime> {
        let codes = (0..TASKS_MAX).map(move |task| self.0 >> (task * Self::BITS) & Self::MASK);
        codes.map_while(|code| {
            let is_it = |runtime: &Runtime| u32::from(RuntimeSet::bit(*runtime)) == code;
            RuntimeSet::ORDER.into_iter().find(is_it)
        })
    }
}

const _: () = assert!(TASKS_MAX * Choice::BITS <= 32, "a choice has room for every task");

/// Of more than [`TASKS_MAX`] the first count; no checked unit has more.
impl FromIterator<Runtime> for Choice {
    fn from_iter<I: IntoIterator<Item = Runtime>>(runtimes: I) -> Self {
        let runtimes = runtimes.into_iter().take(TASKS_MAX).enumerate();
        Self(runtimes.fold(0, |choice, (task, runtime)| {
            choice | u32::from(RuntimeSet::bit(runtime)) << (task * Self::BITS)
        }))
    }
}

impl TryFrom<Vec<Runtime>> for Choice {
    type Error = InvalidChoice;
    fn try_from(runtimes: Vec<Runtime>) -> Result<Self, InvalidChoice> {
        match runtimes.len() {
            0..=TASKS_MAX => Ok(runtimes.into_iter().collect()),
            more => Err(InvalidChoice(more)),
        }
    }
}

impl From<Choice> for Vec<Runtime> {
    fn from(choice: Choice) -> Self {
        choice.iter().collect()
    }
}

impl std::fmt::Debug for Choice {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

/// The variants of a task's program, the preferred first: at least one, each for another runtime. Written out, one is
/// `wasm: {…}` or `oci: {…}`, and several are `variants: [{wasm: {…}}, {oci: {…}}]`.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(try_from = "Written")]
pub struct Variants {
    preferred: Program,
    others: Vec<Program>,
}

/// Why programs are no variants of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidVariants {
    /// There is none.
    #[error(
        "names no program: it needs at least one of `wasm: {{artifact: …}}` and `oci: {{image: …}}`"
    )]
    None,
    /// A node would never have a reason to run the second.
    #[error("has two programs for {}: a node runs the first that it can, so name each runtime once", .0.as_str())]
    Twice(Runtime),
}

impl Variants {
    /// The variants, the preferred first.
    ///
    /// # Errors
    /// There is none, or two are for the same runtime.
    pub fn new(programs: Vec<Program>) -> Result<Self, InvalidVariants> {
        let mut known = RuntimeSet::default();
        for runtime in programs.iter().map(Program::runtime) {
            if known.contains(runtime) {
                return Err(InvalidVariants::Twice(runtime));
            }
            known = known.iter().chain([runtime]).collect();
        }
        let mut programs = programs.into_iter();
        let preferred = programs.next().ok_or(InvalidVariants::None)?;
        Ok(Self { preferred, others: programs.collect() })
    }

    /// The first.
    #[must_use]
    pub fn preferred(&self) -> &Program {
        &self.preferred
    }

    /// Is there a choice?
    #[must_use]
    pub fn are_several(&self) -> bool {
        !self.others.is_empty()
    }

    /// All of them, the preferred first.
    pub fn iter(&self) -> impl Iterator<Item = &Program> {
        std::iter::once(&self.preferred).chain(&self.others)
    }

    /// Each with the field that it was written in, as in [`Self::field`].
    pub fn iter_mut(&mut self) -> impl Iterator<Item = (String, &mut Program)> {
        let are_several = self.are_several();
        let all = std::iter::once(&mut self.preferred).chain(&mut self.others);
        all.enumerate().map(move |(position, program)| {
            (field_of(are_several, position, program.runtime()), program)
        })
    }

    /// Where in the task the program is written: `wasm`, or `variants[1].wasm` where there are several.
    #[must_use]
    pub fn field(&self, position: usize, runtime: Runtime) -> String {
        field_of(self.are_several(), position, runtime)
    }

    /// The runtimes that they are for.
    #[must_use]
    pub fn runtimes(&self) -> RuntimeSet {
        self.iter().map(Program::runtime).collect()
    }

    /// The one for that runtime.
    #[must_use]
    pub fn of(&self, runtime: Runtime) -> Option<&Program> {
        self.iter().find(|program| program.runtime() == runtime)
    }

    /// The one that a node with these runtimes runs: the first that it can.
    #[must_use]
    pub fn on(&self, node: RuntimeSet) -> Option<&Program> {
        self.iter().find(|program| node.contains(program.runtime()))
    }
}

fn field_of(are_several: bool, position: usize, runtime: Runtime) -> String {
    let runtime = runtime.as_str();
    if are_several { format!("variants[{position}].{runtime}") } else { runtime.to_owned() }
}

impl From<Program> for Variants {
    fn from(program: Program) -> Self {
        Self { preferred: program, others: Vec::new() }
    }
}

/// As they are read.
#[derive(Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
enum Written {
    Wasm(WasmProgram),
    Oci(OciProgram),
    Variants(Vec<Program>),
}

impl TryFrom<Written> for Variants {
    type Error = InvalidVariants;
    fn try_from(written: Written) -> Result<Self, InvalidVariants> {
        match written {
            Written::Wasm(wasm) => Ok(Program::Wasm(wasm).into()),
            Written::Oci(oci) => Ok(Program::Oci(oci).into()),
            Written::Variants(programs) => Self::new(programs),
        }
    }
}

impl Serialize for Variants {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        #[serde(rename_all = "snake_case")]
        enum Several<'p> {
            Variants(Vec<&'p Program>),
        }
        if self.are_several() {
            Several::Variants(self.iter().collect()).serialize(serializer)
        } else {
            self.preferred.serialize(serializer)
        }
    }
}

impl UnitTemplate {
    /// Does any task leave a choice?
    #[must_use]
    pub fn has_variants(&self) -> bool {
        self.tasks.iter().any(|task| task.variants.are_several())
    }

    /// Of each of these sets a node must have a runtime; each set is named once.
    #[must_use]
    pub fn runtimes(&self) -> Vec<RuntimeSet> {
        let mut sets: Vec<_> = self.tasks.iter().map(|task| task.variants.runtimes()).collect();
        sets.sort_unstable();
        sets.dedup();
        sets
    }

    /// What each task runs on a node that has these runtimes; None where a task can't run there at all.
    #[must_use]
    pub fn choice(&self, node: RuntimeSet) -> Option<Choice> {
        let on_node = self.tasks.iter().map(|task| task.variants.on(node).map(Program::runtime));
        let choice: Choice = on_node.collect::<Option<_>>()?;
        Some(if self.has_variants() { choice } else { Choice::default() })
    }

    /// The template with the variants that were chosen, as [`crate::placement::Grants::runtimes`] names them, and no
    /// others. As it is where no task leaves a choice, or nothing was chosen.
    #[must_use]
    pub fn chosen(&self, choice: Choice) -> Cow<'_, Self> {
        if choice.is_empty() || !self.has_variants() {
            return Cow::Borrowed(self);
        }
        let mut template = self.clone();
        for (task, runtime) in template.tasks.iter_mut().zip(choice.iter()) {
            let program = task.variants.of(runtime).unwrap_or_else(|| task.program()).clone();
            task.variants = program.into();
        }
        Cow::Owned(template)
    }

    /// `wasm`, `oci` or `mixed`, for tables: mixed also while it is open which of them a task will run.
    #[must_use]
    pub fn runtime_label(&self) -> &'static str {
        let all = self.tasks.iter().flat_map(|task| task.variants.iter());
        all.map(Program::runtime).collect::<RuntimeSet>().label()
    }
}

impl Task {
    /// What it runs; of several variants the preferred one, as long as none is chosen.
    #[must_use]
    pub fn program(&self) -> &Program {
        self.variants.preferred()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn template(tasks: &serde_json::Value) -> UnitTemplate {
        let tasks: Vec<_> = tasks.as_array().unwrap().iter().map(task).collect();
        serde_json::from_value(
            serde_json::json!({"tasks": tasks, "restart": "never", "grace_ms": 1}),
        )
        .unwrap()
    }

    fn task(programs: &serde_json::Value) -> serde_json::Value {
        let mut task = serde_json::json!({"name": "t", "resources": {}, "limits": {}});
        let programs = programs.as_object().unwrap().clone();
        task.as_object_mut().unwrap().extend(programs);
        task
    }

    fn three_tasks() -> UnitTemplate {
        template(&serde_json::json!([
            {"variants": [{"wasm": {"artifact": "a"}}, {"oci": {"image": "b"}}]},
            {"variants": [{"oci": {"image": "c"}}, {"wasm": {"artifact": "d"}}]},
            {"variants": [{"oci": {"image": "e"}}]},
        ]))
    }

    fn choice(runtimes: &[Runtime]) -> Choice {
        runtimes.iter().copied().collect()
    }

    #[test]
    fn a_choice_is_a_list_of_runtimes() {
        let (wasm, oci) = (Runtime::Wasm, Runtime::Oci);
        for runtimes in [vec![], vec![oci], [oci, wasm].repeat(TASKS_MAX / 2)] {
            let choice = choice(&runtimes);
            assert_eq!(choice.iter().collect::<Vec<_>>(), runtimes);
            let text = serde_json::to_string(&choice).unwrap();
            assert_eq!(text, serde_json::to_string(&runtimes).unwrap());
            assert_eq!(serde_json::from_str::<Choice>(&text).unwrap(), choice);
        }
        let many = serde_json::to_string(&vec![oci; TASKS_MAX + 1]).unwrap();
        let error = serde_json::from_str::<Choice>(&many).unwrap_err().to_string();
        assert!(error.contains("17 runtimes are too many"), "{error}");
    }

    fn set(runtimes: &[Runtime]) -> RuntimeSet {
        runtimes.iter().copied().collect()
    }

    #[test]
    fn the_first_variant_that_a_node_can_run_is_the_one() {
        let template = three_tasks();
        let (wasm, oci) = (Runtime::Wasm, Runtime::Oci);
        assert_eq!(template.choice(set(&[wasm, oci])), Some(choice(&[wasm, oci, oci])));
        assert_eq!(template.choice(set(&[oci])), Some(choice(&[oci, oci, oci])));
        assert_eq!(template.choice(set(&[wasm])), None, "the last task is a container");
        assert_eq!(template.choice(RuntimeSet::default()), None);
        assert_eq!(template.runtimes(), [set(&[oci]), set(&[wasm, oci])]);
    }

    #[test]
    fn what_was_chosen_is_all_that_is_left() {
        let template = three_tasks();
        let chosen = template.chosen(choice(&[Runtime::Wasm, Runtime::Wasm, Runtime::Oci]));
        let references: Vec<_> =
            chosen.tasks.iter().map(|task| task.program().reference()).collect();
        assert_eq!(references, ["a", "d", "e"]);
        assert!(!chosen.has_variants() && chosen.runtime_label() == "mixed");
        assert!(
            matches!(template.chosen(Choice::default()), Cow::Borrowed(_)),
            "nothing was chosen yet"
        );
        assert!(matches!(chosen.chosen(choice(&[Runtime::Oci])), Cow::Borrowed(_)), "it is done");
    }

    #[test]
    fn one_program_is_written_as_before_and_several_read_back_as_themselves() {
        for programs in [
            r#"{"wasm":{"artifact":"a"}}"#,
            r#"{"oci":{"image":"b"}}"#,
            r#"{"variants":[{"oci":{"image":"b"}},{"wasm":{"artifact":"a"}}]}"#,
        ] {
            let variants: Variants = serde_json::from_str(programs).unwrap();
            assert_eq!(serde_json::to_string(&variants).unwrap(), programs);
        }
        let one: Variants =
            serde_json::from_str(r#"{"variants":[{"oci":{"image":"b"}}]}"#).unwrap();
        assert_eq!(serde_json::to_string(&one).unwrap(), r#"{"oci":{"image":"b"}}"#);
    }

    #[test]
    fn variants_are_for_different_runtimes() {
        let none = serde_json::from_str::<Variants>(r#"{"variants":[]}"#).unwrap_err();
        assert!(none.to_string().contains("names no program"), "{none}");
        let twice = r#"{"variants":[{"oci":{"image":"a"}},{"oci":{"image":"b"}}]}"#;
        let twice = serde_json::from_str::<Variants>(twice).unwrap_err();
        assert!(twice.to_string().contains("two programs for oci"), "{twice}");
    }
}
