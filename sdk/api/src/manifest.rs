//! Manifests: what users write, in YAML, TOML or JSON, read into one model with errors that name the field.

use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::object::{Kind, ObjectKey};
use crate::problem::FieldError;
use crate::spec::{ConfigSpec, JobSpec, LoneUnitSpec, NamespaceSpec, SecretSpec, ServiceSpec};
use crate::unit_spec::{UnitSpec, UnitTemplate};

/// Largest manifest file, in bytes.
pub const MANIFEST_BYTES_MAX: usize = 4 << 20;
/// A text longer than this is no slip of the pen: nobody guesses what was meant, and messages cut it off.
const GUESS_CHARS_MAX: usize = 200;
/// Kinds a manifest may have, for messages.
const KINDS: [&str; 6] = ["namespace", "service", "job", "unit", "secret", "config"];

/// One resource as a user asks for it: as written, or with [`UnitTemplate`] inside once it was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Manifest<U = UnitTemplate> {
    /// A tenant.
    Namespace(NamespaceSpec),
    /// Keeps units running.
    Service(ServiceSpec<U>),
    /// Runs units to completion.
    Job(JobSpec<U>),
    /// One unit alone.
    Unit(LoneUnitSpec<U>),
    /// Texts nobody else may read.
    Secret(SecretSpec),
    /// Texts for units.
    Config(ConfigSpec),
}

/// How a manifest is written down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Several documents, parted by `---`, are several manifests.
    Yaml,
    /// One manifest, or several in an array of tables `[[manifests]]`.
    Toml,
    /// One manifest, or an array of them.
    Json,
}

/// What is wrong with a manifest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("manifest {document}{}: {}", name_of(.kind.as_deref(), .name.as_deref()), faults_of(.faults))]
pub struct ManifestError {
    /// Which of the manifests of the text, from 1.
    pub document: usize,
    /// Its kind, as far as known.
    pub kind: Option<String>,
    /// Its name, as far as known.
    pub name: Option<String>,
    /// What is wrong, field by field; at least one.
    pub faults: Vec<FieldError>,
}

fn name_of(kind: Option<&str>, name: Option<&str>) -> String {
    match (kind, name) {
        (Some(kind), Some(name)) => format!(" ({kind} `{name}`)"),
        (Some(kind), None) => format!(" ({kind})"),
        _ => String::new(),
    }
}

fn faults_of(faults: &[FieldError]) -> String {
    faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

impl Format {
    /// The format that a file's ending stands for; YAML where it says nothing.
    #[must_use]
    pub fn of_file_name(name: &str) -> Self {
        match name.rsplit_once('.').map(|(_, ending)| ending) {
            Some("toml") => Self::Toml,
            Some("json") => Self::Json,
            _ => Self::Yaml,
        }
    }
}

impl<U> Manifest<U> {
    /// What kind of resource it asks for.
    #[must_use]
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Service(_) => Kind::Service,
            Self::Job(_) => Kind::Job,
            Self::Unit(_) => Kind::Unit,
            Self::Secret(_) => Kind::Secret,
            Self::Config(_) => Kind::Config,
        }
    }

    /// What identifies the resource.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let (namespace, name) = match self {
            Self::Namespace(spec) => (None, spec.name.as_str()),
            Self::Service(spec) => (Some(&spec.namespace), spec.name.as_str()),
            Self::Job(spec) => (Some(&spec.namespace), spec.name.as_str()),
            Self::Unit(spec) => (Some(&spec.namespace), spec.name.as_str()),
            Self::Secret(spec) => (Some(&spec.namespace), spec.name.as_str()),
            Self::Config(spec) => (Some(&spec.namespace), spec.name.as_str()),
        };
        ObjectKey { kind: self.kind(), namespace: namespace.cloned(), name: name.to_owned() }
    }
}

/// Reads every manifest of `text`. `namespace` goes into those that name none.
///
/// # Errors
/// One [`ManifestError`] for each manifest that is not valid (or one for the whole text).
pub fn parse(
    text: &str,
    format: Format,
    namespace: Option<&str>,
) -> Result<Vec<Manifest<UnitSpec>>, Vec<ManifestError>> {
    let documents = documents(text, format).map_err(|message| {
        let faults = vec![FieldError { path: String::new(), message }];
        vec![ManifestError { document: 1, kind: None, name: None, faults }]
    })?;
    let mut manifests = Vec::new();
    let mut errors = Vec::new();
    for (index, mut value) in documents.into_iter().enumerate() {
        set_namespace(&mut value, namespace);
        let text_of = |key: &str| value.get(key).and_then(Value::as_str).map(shown);
        let (kind, name) = (text_of("kind"), text_of("name"));
        match Manifest::from_value(value) {
            Ok(manifest) => manifests.push(manifest),
            Err(fault) => {
                errors.push(ManifestError { document: index + 1, kind, name, faults: vec![fault] });
            }
        }
    }
    if errors.is_empty() { Ok(manifests) } else { Err(errors) }
}

fn set_namespace(value: &mut Value, namespace: Option<&str>) {
    let has_none = value.get("kind").and_then(Value::as_str) == Some("namespace");
    if let (Some(namespace), Some(object), false) = (namespace, value.as_object_mut(), has_none) {
        object.entry("namespace").or_insert_with(|| Value::String(namespace.to_owned()));
    }
}

fn documents(text: &str, format: Format) -> Result<Vec<Value>, String> {
    if text.len() > MANIFEST_BYTES_MAX {
        return Err(format!(
            "{} bytes are too many: at most {MANIFEST_BYTES_MAX} are read",
            text.len()
        ));
    }
    let mut documents = Vec::new();
    match format {
        Format::Yaml => {
            for document in serde_yaml_ng::Deserializer::from_str(text) {
                let value = Value::deserialize(document)
                    .map_err(|error| format!("not valid YAML: {error}"))?;
                documents.push(value);
            }
        }
        Format::Json => documents
            .push(serde_json::from_str(text).map_err(|error| format!("not valid JSON: {error}"))?),
        Format::Toml => documents
            .push(toml::from_str(text).map_err(|error| format!("not valid TOML: {error}"))?),
    }
    let mut flat = Vec::new();
    for document in documents {
        match document {
            Value::Array(items) => flat.extend(items),
            Value::Object(mut object) if object.len() == 1 && object.contains_key("manifests") => {
                match object.remove("manifests") {
                    Some(Value::Array(items)) => flat.extend(items),
                    _ => return Err("`manifests` must be a list".to_owned()),
                }
            }
            // An empty document between two separators.
            Value::Null => {}
            other => flat.push(other),
        }
    }
    Ok(flat)
}

impl Manifest<UnitSpec> {
    /// Reads one manifest.
    ///
    /// # Errors
    /// The first field at fault, with its path.
    pub fn from_value(mut value: Value) -> Result<Self, FieldError> {
        let whole = |message: String| FieldError { path: String::new(), message };
        let Some(object) = value.as_object_mut() else {
            return Err(whole(format!(
                "a manifest is a map with `kind` and `name`, not {}",
                noun(&value)
            )));
        };
        let Some(kind) = object.remove("kind") else {
            return Err(whole(format!("`kind` is missing: expected one of {}", KINDS.join(", "))));
        };
        match kind.as_str() {
            Some("namespace") => read(value).map(Self::Namespace),
            Some("service") => read(value).map(Self::Service),
            Some("job") => read(value).map(Self::Job),
            Some("unit") => read(value).map(Self::Unit),
            Some("secret") => read(value).map(Self::Secret),
            Some("config") => read(value).map(Self::Config),
            _ => {
                let written = kind.as_str().map_or_else(|| kind.to_string(), str::to_owned);
                let near = nearest(&written, KINDS)
                    .map(|kind| format!(" Did you mean `{kind}`?"))
                    .unwrap_or_default();
                let message = format!(
                    "`{}` is no kind of manifest.{near} Expected one of {}",
                    shown(&written),
                    KINDS.join(", ")
                );
                Err(FieldError { path: "kind".to_owned(), message })
            }
        }
    }
}

impl<'de> Deserialize<'de> for Manifest<UnitSpec> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(value).map_err(serde::de::Error::custom)
    }
}

fn noun(value: &Value) -> &'static str {
    match value {
        Value::Null => "nothing",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "a map",
    }
}

/// Reads a value into `T`; the error names the field's path and, for an unknown field, the nearest right name.
pub(crate) fn read<T: DeserializeOwned>(value: Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let message = error.into_inner().to_string();
        let path = if path == "." { String::new() } else { shown(&path) };
        FieldError { path, message: with_nearest_name(&message) }
    })
}

/// serde says "unknown field `x`, expected one of `a`, `b`"; people want "did you mean `a`?".
fn with_nearest_name(message: &str) -> String {
    let Some((unknown, known)) =
        message.strip_prefix("unknown field `").and_then(|rest| rest.split_once('`'))
    else {
        return message.to_owned();
    };
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let near = nearest(unknown, known.iter().copied());
    let near = near.map(|name| format!(" Did you mean `{name}`?")).unwrap_or_default();
    format!("unknown field `{}`.{near} Known here: {}", shown(unknown), known.join(", "))
}

/// As much of a wrong text as a message needs.
fn shown(text: &str) -> String {
    match text.char_indices().nth(GUESS_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

fn nearest<'a>(written: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// Below this similarity a guess would confuse more than help.
    const SIMILARITY_MIN: f64 = 0.6;
    // The comparison takes memory for every pair of characters.
    if written.chars().nth(GUESS_CHARS_MAX).is_some() {
        return None;
    }
    let scored =
        known.into_iter().map(|name| (strsim::normalized_damerau_levenshtein(written, name), name));
    let best = scored.max_by(|a, b| a.0.total_cmp(&b.0))?;
    (best.0 >= SIMILARITY_MIN).then_some(best.1)
}

/// The JSON Schema (2020-12) of a manifest: what `brig schema` prints.
#[must_use]
pub fn json_schema() -> Value {
    schemars::schema_for!(Manifest<UnitSpec>).to_value()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOP: &str = "
kind: service
name: shop
namespace: team-a
replicas: 3
unit:
  resources: {cpu: 250m, memory: 64Mi}
  wasm: {artifact: team-a/shop:1.4, http: {port: 8080}}
---
kind: job
name: report
parallelism: 8
completions: 100
retries: 3
unit:
  tasks:
    - {name: crunch, wasm: {artifact: team-a/crunch:2, args: [--fast]}, resources: {cpu: \"1\", memory: 256Mi}}
    - {name: cache, oci: {image: docker.io/library/redis:7}, resources: {cpu: 100m, memory: 64Mi}, sidecar: true}
";

    fn fault(text: &str) -> String {
        parse(text, Format::Yaml, None).unwrap_err()[0].to_string()
    }

    #[test]
    fn the_manifests_of_the_design_are_read_and_checked() {
        let manifests = parse(SHOP, Format::Yaml, None).unwrap();
        assert_eq!(manifests.len(), 2);
        let Manifest::Job(job) = manifests[1].clone().check().unwrap() else { panic!("a job") };
        assert_eq!((job.completions, job.unit.tasks.len()), (100, 2));
        assert_eq!(job.unit.runtime_label(), "mixed");
        let Manifest::Service(shop) = manifests[0].clone().check().unwrap() else {
            panic!("a service")
        };
        assert_eq!(shop.unit.tasks[0].name.as_str(), "main");
    }

    /// The blocks of a document that are marked `yaml` and are whole manifests.
    fn manifests_in(document: &str) -> Vec<&str> {
        let blocks = document.split("```yaml\n").skip(1);
        let blocks = blocks.filter_map(|rest| rest.split("```").next());
        blocks.filter(|block| block.starts_with("kind:")).collect()
    }

    #[test]
    fn the_manifests_in_the_documents_are_read_and_checked() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs");
        let mut of_scheduler = 0;
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none_or(|extension| extension != "md") {
                continue;
            }
            let document = std::fs::read_to_string(&path).unwrap();
            for text in manifests_in(&document) {
                of_scheduler += usize::from(path.ends_with("scheduler.md"));
                for manifest in parse(text, Format::Yaml, None).unwrap() {
                    let checked = manifest.check();
                    assert!(checked.is_ok(), "{}: {text}{checked:?}", path.display());
                }
            }
        }
        assert!(of_scheduler >= 4, "the page about the scheduler has manifests");
    }

    #[test]
    fn the_three_formats_mean_the_same() {
        let yaml = parse("kind: config\nname: c\ndata: {a: b}\n", Format::Yaml, None).unwrap();
        let json = parse(r#"[{"kind":"config","name":"c","data":{"a":"b"}}]"#, Format::Json, None)
            .unwrap();
        let toml =
            parse("kind = 'config'\nname = 'c'\n[data]\na = 'b'\n", Format::Toml, None).unwrap();
        let many =
            parse("[[manifests]]\nkind='config'\nname='c'\ndata={a='b'}\n", Format::Toml, None)
                .unwrap();
        assert!(yaml == json && json == toml && toml == many);
    }

    #[test]
    fn an_unknown_field_is_named_with_its_path_and_the_nearest_right_name() {
        let message = fault("kind: service\nname: x\nunit: {wasm: {artefact: a}}");
        assert!(
            message.contains("unit.wasm") && message.contains("Did you mean `artifact`?"),
            "{message}"
        );
        let message = fault("kind: service\nname: x\nreplica: 3\nunit: {}");
        assert!(message.contains("service `x`") && message.contains("`replicas`"), "{message}");
        let message = fault("kind: servise\nname: x");
        assert!(message.contains("Did you mean `service`?"), "{message}");
    }

    #[test]
    fn a_name_of_a_megabyte_is_neither_guessed_at_nor_repeated() {
        let long = "ä".repeat(1 << 20);
        for text in [
            format!(r#"{{"kind": "service", "name": "x", "unit": {{}}, "{long}": 1}}"#),
            format!(r#"{{"kind": "{long}", "name": "x"}}"#),
        ] {
            let message = parse(&text, Format::Json, None).unwrap_err()[0].to_string();
            assert!(message.contains("ä…`") && message.len() < 2_000, "{}", message.len());
            assert!(!message.contains("Did you mean"));
        }
    }

    #[test]
    fn wrong_values_are_named_with_their_path() {
        let message =
            fault("kind: job\nname: x\nunit: {tasks: [{name: a, resources: {cpu: lots}}]}");
        assert!(
            message.contains("unit.tasks[0].resources.cpu") && message.contains("`lots`"),
            "{message}"
        );
        let message = fault("kind: unit\nname: Bad Name\nunit: {}");
        assert!(message.contains("name") && message.contains("lower-case"), "{message}");
    }

    #[test]
    fn hostile_texts_are_errors_not_panics() {
        for text in [
            "",
            "---\n---\n",
            "kind: [",
            "5",
            "kind: 5",
            "a: &a [*a]",
            "\u{0}",
            "kind: unit\nname: x\nunit: 3",
        ] {
            let _ = parse(text, Format::Yaml, None);
            let _ = parse(text, Format::Json, None);
            let _ = parse(text, Format::Toml, None);
        }
        let mut bomb = "a0: &a0 [x,x,x,x,x,x,x,x,x]\n".to_owned();
        for level in 1..20 {
            let inner = format!("*a{},", level - 1).repeat(9);
            bomb.push_str(&format!("a{level}: &a{level} [{inner}]\n"));
        }
        assert!(parse(&bomb, Format::Yaml, None).is_err());
        assert!(parse(&"[".repeat(100_000), Format::Json, None).is_err());
        assert!(parse(&"x".repeat(MANIFEST_BYTES_MAX + 1), Format::Yaml, None).is_err());
    }

    #[test]
    fn a_namespace_is_filled_in_only_where_none_is_named() {
        let read = |text| parse(text, Format::Yaml, Some("team-b")).unwrap()[0].key();
        assert_eq!(read("kind: config\nname: c\ndata: {}").namespace.unwrap().as_str(), "team-b");
        assert_eq!(
            read("kind: config\nname: c\nnamespace: x\ndata: {}").namespace.unwrap().as_str(),
            "x"
        );
        assert_eq!(read("kind: namespace\nname: x").namespace, None);
    }

    #[test]
    fn numbers_and_booleans_are_texts_in_an_environment() {
        let text = "kind: unit\nname: x\nunit: {wasm: {artifact: a}, env: {PORT: 80, ON: true, S: {secret: s, key: k}}}";
        let Manifest::Unit(unit) = parse(text, Format::Yaml, None).unwrap().remove(0) else {
            panic!("a unit")
        };
        assert_eq!(unit.unit.env["PORT"], crate::unit_spec::EnvValue::Text("80".into()));
        assert!(matches!(unit.unit.env["S"], crate::unit_spec::EnvValue::Secret(_)));
        assert!(
            fault("kind: unit\nname: x\nunit: {wasm: {artifact: a}, env: {A: [1]}}")
                .contains("expected a text")
        );
    }
}
