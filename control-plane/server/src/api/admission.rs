//! Admission: what a manifest names must exist. References to the built-in registry are fixed to digests, so that
//! what was admitted is what runs, on every node and after every restart.

use std::collections::{BTreeMap, BTreeSet};

use brig_api::manifest::Manifest;
use brig_api::object::{ArtifactKind, Object, ObjectKey};
use brig_api::problem::FieldError;
use brig_api::reference::Reference;
use brig_api::unit_spec::{EnvValue, Program, Runtime, Task, UnitTemplate, WasmProgram};
use brig_api::wasm::Misfit;
use brig_api::{Bytes, Code, Kind, NamespacePath, ResourceName};
use brig_store::StoreError;

use super::apply::{join, refused};
use crate::app::App;
use crate::problem::{Answer, Failure};

/// A checked manifest, and where it stands in the request.
pub(super) struct Draft {
    pub(super) manifest: Manifest,
    /// Path of the manifest, such as `manifests[0]`.
    pub(super) path: String,
    /// The unit was written in short form: the paths of its fields have no `tasks[0]`.
    pub(super) is_short_form: bool,
}

/// Looks things up, each once for a request.
struct Lookup<'a> {
    app: &'a App,
    /// The keys of secrets and configs, by resource; None when it does not exist.
    texts: BTreeMap<ObjectKey, Option<BTreeSet<String>>>,
    namespaces: BTreeMap<NamespacePath, bool>,
    faults: Vec<FieldError>,
}

/// Admits these manifests.
///
/// # Errors
/// Every fault of every manifest, with its path.
pub(super) async fn admit(app: &App, drafts: Vec<Draft>) -> Answer<Vec<Manifest>> {
    let mut lookup =
        Lookup { app, texts: BTreeMap::new(), namespaces: BTreeMap::new(), faults: Vec::new() };
    lookup.know_what_comes_along(&drafts);
    let mut admitted = Vec::with_capacity(drafts.len());
    for draft in drafts {
        admitted.push(lookup.admit(draft).await?);
    }
    if lookup.faults.is_empty() { Ok(admitted) } else { Err(refused(lookup.faults)) }
}

/// The field of a task that a misfit is about; `program` is that of the program.
fn misfit_field(misfit: &Misfit, program: &str) -> String {
    match misfit {
        Misfit::Library(_) | Misfit::NotProvided(_) => join(program, "artifact"),
        Misfit::NeedsHttp | Misfit::NoHttp(_) => join(program, "http"),
        Misfit::Memory { .. } => "resources.memory".to_owned(),
    }
}

impl Lookup<'_> {
    /// What the same request creates need not exist before.
    fn know_what_comes_along(&mut self, drafts: &[Draft]) {
        for draft in drafts {
            let data = match &draft.manifest {
                Manifest::Namespace(spec) => {
                    self.namespaces.insert(spec.name.clone(), true);
                    continue;
                }
                Manifest::Secret(spec) => &spec.data,
                Manifest::Config(spec) => &spec.data,
                _ => continue,
            };
            self.texts.insert(draft.manifest.key(), Some(data.keys().cloned().collect()));
        }
    }

    fn fault(&mut self, path: String, message: String) {
        self.faults.push(FieldError { path, message });
    }

    async fn admit(&mut self, draft: Draft) -> Answer<Manifest> {
        let Draft { mut manifest, path, is_short_form } = draft;
        if let Some(namespace) = manifest.key().namespace {
            self.namespace(&namespace, &path).await?;
            let template = match &mut manifest {
                Manifest::Service(spec) => Some(&mut spec.unit),
                Manifest::Job(spec) => Some(&mut spec.unit),
                Manifest::Unit(spec) => Some(&mut spec.unit),
                Manifest::Namespace(_) | Manifest::Secret(_) | Manifest::Config(_) => None,
            };
            if let Some(template) = template {
                let path = join(&path, "unit");
                self.template(template, &namespace, &path, is_short_form).await?;
            }
        }
        Ok(manifest)
    }

    async fn namespace(&mut self, namespace: &NamespacePath, path: &str) -> Answer<()> {
        let exists = match self.namespaces.get(namespace) {
            Some(exists) => *exists,
            None => {
                let name = namespace.as_str().to_owned();
                let key = ObjectKey { kind: Kind::Namespace, namespace: None, name };
                let exists = self.find(&key).await?.is_some();
                self.namespaces.insert(namespace.clone(), exists);
                exists
            }
        };
        if !exists {
            let message = format!(
                "namespace `{namespace}` does not exist: create it first, with a manifest `kind: namespace`, `name: {namespace}`"
            );
            self.fault(join(path, "namespace"), message);
        }
        Ok(())
    }

    async fn find(&self, key: &ObjectKey) -> Answer<Option<Object>> {
        match self.app.store.object_get(key).await {
            Ok(object) => Ok(Some(object)),
            Err(StoreError::NotFound(_)) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    async fn template(
        &mut self,
        template: &mut UnitTemplate,
        namespace: &NamespacePath,
        path: &str,
        is_short_form: bool,
    ) -> Answer<()> {
        for (index, task) in template.tasks.iter_mut().enumerate() {
            let path = if is_short_form {
                path.to_owned()
            } else {
                join(path, &format!("tasks[{index}]"))
            };
            let memory_limit = task.limits.memory;
            for (field, program) in task.variants.iter_mut() {
                self.artifact(program, &field, memory_limit, &path).await?;
            }
            self.texts_of(task, namespace, &path).await?;
        }
        Ok(())
    }

    async fn artifact(
        &mut self,
        program: &mut Program,
        field: &str,
        memory_limit: Bytes,
        task_path: &str,
    ) -> Answer<()> {
        let has_http = matches!(program, Program::Wasm(WasmProgram { http: Some(_), .. }));
        let (name, written, wants) = match program {
            Program::Wasm(wasm) => ("artifact", &mut wasm.artifact, Runtime::Wasm),
            Program::Oci(oci) => ("image", &mut oci.image, Runtime::Oci),
        };
        let path = join(task_path, &join(field, name));
        let Ok(reference) = written.parse::<Reference>() else {
            return Ok(()); // Checked before.
        };
        if reference.registry.is_some() {
            return Ok(()); // The node that runs it pulls it; whoever wants it fixed writes a digest.
        }
        let described = self.app.registry.describe(&reference).await.map_err(|error| {
            tracing::warn!(error = %error, "the registry failed");
            Failure::new(
                Code::Unavailable,
                format!("`{reference}` could not be looked up: {error}"),
            )
        })?;
        let Some(found) = described else {
            let message = format!(
                "`{reference}` is not in the registry: push it first: brig push FILE {}:{}",
                reference.repository,
                reference.tag.as_deref().unwrap_or("1"),
            );
            self.fault(path, message);
            return Ok(());
        };
        match (wants, found.kind) {
            (Runtime::Wasm, ArtifactKind::Image | ArtifactKind::Index) if !found.has_wasm => self
                .fault(
                    path,
                    format!(
                        "`{reference}` is a container image: write `oci: {{image: {reference}}}`"
                    ),
                ),
            (Runtime::Oci, ArtifactKind::Wasm) => self.fault(
                path,
                format!("`{reference}` is a wasm program: write `wasm: {{artifact: {reference}}}`"),
            ),
            _ => {
                *written = reference.pinned(found.digest).to_string();
                let wasm = found.wasm.filter(|_| wants == Runtime::Wasm);
                for misfit in wasm.iter().flat_map(|wasm| wasm.misfits(has_http, memory_limit)) {
                    let path = join(task_path, &misfit_field(&misfit, field));
                    self.fault(path, format!("`{reference}`: {misfit}"));
                }
            }
        }
        Ok(())
    }

    async fn texts_of(&mut self, task: &Task, namespace: &NamespacePath, path: &str) -> Answer<()> {
        for (field, value) in task.values() {
            let path = join(path, &field);
            match value {
                EnvValue::Text(_) => {}
                EnvValue::Secret(from) => {
                    self.text(Kind::Secret, namespace, &from.secret, Some(&from.key), path).await?;
                }
                EnvValue::Config(from) => {
                    self.text(Kind::Config, namespace, &from.config, Some(&from.key), path).await?;
                }
            }
        }
        for (index, mount) in task.mounts.iter().enumerate() {
            let path = join(path, &format!("mounts[{index}]"));
            if let Some(secret) = &mount.secret {
                self.text(Kind::Secret, namespace, secret, None, join(&path, "secret")).await?;
            }
            if let Some(config) = &mount.config {
                self.text(Kind::Config, namespace, config, None, join(&path, "config")).await?;
            }
        }
        Ok(())
    }

    /// A secret or config that is named, with the key that is wanted of it.
    async fn text(
        &mut self,
        kind: Kind,
        namespace: &NamespacePath,
        name: &ResourceName,
        wanted: Option<&str>,
        path: String,
    ) -> Answer<()> {
        let key = super::object::key(kind, namespace.clone(), name);
        if !self.texts.contains_key(&key) {
            let keys = match self.find(&key).await? {
                Some(Object::Secret(secret)) => Some(secret.keys.into_iter().collect()),
                Some(Object::Config(config)) => Some(config.spec.data.into_keys().collect()),
                _ => None,
            };
            self.texts.insert(key.clone(), keys);
        }
        let fault = match (self.texts.get(&key).and_then(Option::as_ref), wanted) {
            (None, _) => Some(format!(
                "{key} does not exist: apply a manifest `kind: {kind}`, `name: {name}` first, or with this one"
            )),
            (Some(keys), Some(wanted)) if !keys.contains(wanted) => {
                let known = keys.iter().map(String::as_str).collect::<Vec<_>>().join(", ");
                Some(format!("{key} has no key `{wanted}`: it has {known}"))
            }
            _ => None,
        };
        if let Some(fault) = fault {
            self.fault(path, fault);
        }
        Ok(())
    }
}
