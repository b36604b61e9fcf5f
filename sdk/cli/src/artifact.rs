//! What `run`, `deploy` and `push` are given: a file, an image layout, or a reference.

use std::path::Path;

use brig_api::Kind;
use brig_api::object::{Artifact, ArtifactKind, Object, ObjectKey};
use brig_api::reference::Reference;
use brig_api::unit_spec::Runtime;
use brig_client::Client;
use brig_client::registry::wasm::WasmPackage;
use brig_client::registry::{
    Credentials, Progress, RegistryClient, RegistryError, RegistryOptions,
};

use crate::arguments::RuntimeFlag;
use crate::failure::{FAILED, Failure, NOT_FOUND, REFUSED, UNREACHABLE};
use crate::progress::Bars;

/// Something that a unit can run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Runnable {
    pub(crate) reference: String,
    pub(crate) runtime: Runtime,
}

/// Finds out what `artifact` is; a file or layout is pushed to the built-in registry first.
pub(crate) async fn runnable(
    client: &Client,
    artifact: &str,
    flag: Option<RuntimeFlag>,
) -> Result<Runnable, Failure> {
    let path = Path::new(artifact);
    if path.exists() {
        return push_to_own_place(client, path).await;
    }
    let looks_like_path = artifact.starts_with(['.', '/'])
        || artifact.ends_with(".wasm")
        || artifact.ends_with(".tar");
    if looks_like_path {
        let message = format!(
            "{artifact}: no such file; expected a .wasm file, an OCI image layout or a reference"
        );
        return Err(Failure::new(NOT_FOUND, message));
    }
    let reference: Reference =
        artifact.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    let runtime = match flag {
        Some(flag) => flag.into(),
        None => runtime_of(client, &reference).await?,
    };
    Ok(Runnable { reference: artifact.to_owned(), runtime })
}

/// The built-in registry knows what an artifact is; from another one it is an image, unless said otherwise.
async fn runtime_of(client: &Client, reference: &Reference) -> Result<Runtime, Failure> {
    if reference.registry.is_some() {
        return Ok(Runtime::Oci);
    }
    match find(client, reference).await? {
        Some(artifact) if artifact.kind == ArtifactKind::Wasm => Ok(Runtime::Wasm),
        Some(_) => Ok(Runtime::Oci),
        None => Err(Failure::usage(format!(
            "what `{reference}` is can't be seen: say --runtime wasm or --runtime oci"
        ))),
    }
}

/// What the built-in registry has under a reference; None when no tag names the digest of it.
pub(crate) async fn find(
    client: &Client,
    reference: &Reference,
) -> Result<Option<Artifact>, Failure> {
    let wanted = reference.wanted();
    if reference.digest.is_none() {
        let name = format!("{}:{wanted}", reference.repository);
        let key = ObjectKey { kind: Kind::Artifact, namespace: None, name };
        return Ok(artifact_of(client.get(&key).await?));
    }
    let all = client.list(Kind::Artifact, None).await?.items;
    Ok(all.into_iter().filter_map(artifact_of).find(|artifact| {
        artifact.repository == reference.repository && artifact.digest.as_str() == wanted
    }))
}

fn artifact_of(object: Object) -> Option<Artifact> {
    match object {
        Object::Artifact(artifact) => Some(artifact),
        _ => None,
    }
}

async fn push_to_own_place(client: &Client, path: &Path) -> Result<Runnable, Failure> {
    let name = crate::target::name_from_artifact(&path.display().to_string());
    let target: Reference =
        format!("run/{name}:latest").parse().map_err(|error| Failure::usage(format!("{error}")))?;
    let pushed = if is_layout(path) {
        push(client, path, &target).await?
    } else {
        // Most of the time the file was run before, and its name is all that the registry needs.
        let package = WasmPackage::read(path).await?;
        if !client.wasm_name(&package, &target).await? {
            let bars = Bars::new();
            registry(client)?.push_wasm_package(&package, &target, &bars as &dyn Progress).await?;
        }
        Pushed { digest: package.digest().clone(), runtime: Runtime::Wasm }
    };
    // By digest: somebody else may push another file of that name meanwhile.
    Ok(Runnable {
        reference: Reference { tag: None, ..target.pinned(pushed.digest) }.to_string(),
        runtime: pushed.runtime,
    })
}

fn is_layout(path: &Path) -> bool {
    path.is_dir() || path.extension().is_some_and(|ending| ending == "tar")
}

/// What was pushed.
pub(crate) struct Pushed {
    pub(crate) digest: brig_api::Digest,
    pub(crate) runtime: Runtime,
}

/// Sends a `.wasm` file or an OCI image layout to a registry.
pub(crate) async fn push(
    client: &Client,
    path: &Path,
    target: &Reference,
) -> Result<Pushed, Failure> {
    let registry = registry(client)?;
    let bars = Bars::new();
    let (pushed, runtime) = if is_layout(path) {
        (registry.push_layout(path, target, &bars as &dyn Progress).await, Runtime::Oci)
    } else {
        (registry.push_wasm(path, target, &bars as &dyn Progress).await, Runtime::Wasm)
    };
    Ok(Pushed { digest: pushed?.digest, runtime })
}

/// A client of registries with the user's logins: those of docker or podman, whichever file is found first.
pub(crate) fn registry(client: &Client) -> Result<RegistryClient, Failure> {
    let mut credentials = Credentials::default();
    if let Some(path) = login_files().into_iter().find(|path| path.is_file()) {
        credentials = Credentials::from_docker_config(&path)?;
    }
    let options = RegistryOptions {
        builtin: Some(client.server().to_owned()),
        builtin_token: client.token().map(str::to_owned),
        credentials,
        ..RegistryOptions::default()
    };
    Ok(RegistryClient::new(options)?)
}

fn login_files() -> Vec<std::path::PathBuf> {
    let variable = |name| std::env::var_os(name).map(std::path::PathBuf::from);
    [
        variable("REGISTRY_AUTH_FILE"),
        variable("DOCKER_CONFIG").map(|folder| folder.join("config.json")),
        variable("HOME").map(|home| home.join(".docker/config.json")),
        variable("XDG_RUNTIME_DIR").map(|folder| folder.join("containers/auth.json")),
    ]
    .into_iter()
    .flatten()
    .collect()
}

impl From<RegistryError> for Failure {
    fn from(error: RegistryError) -> Self {
        let code = match &error {
            RegistryError::NotFound { .. } => NOT_FOUND,
            RegistryError::Unauthorised { .. } => REFUSED,
            RegistryError::Unreachable { .. } => UNREACHABLE,
            _ => FAILED,
        };
        Self::new(code, crate::failure::chain(&error))
    }
}
