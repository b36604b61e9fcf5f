//! `run` and `deploy`: from a file or reference to something that runs.

use std::collections::BTreeMap;
use std::path::PathBuf;

use brig_api::lifecycle::UnitState;
use brig_api::manifest::Manifest;
use brig_api::object::{Object, Owner};
use brig_api::spec::{Labels, ServiceSpec, WrittenUnit};
use brig_api::unit_spec::{
    EnvValue, HttpServing, Mount, OciProgram, RestartPolicy, Runtime, UnitSpec, WasmProgram,
};
use brig_api::{Kind, ResourceName, Resources};
use brig_client::WatchFilter;

use crate::arguments::{Deploy, ProgramFlags, Run};
use crate::artifact::{Runnable, runnable};
use crate::attach;
use crate::failure::Failure;
use crate::output::{print, printable};
use crate::progress::Waiting;
use crate::target;

use super::{Session, now_ms};

pub(crate) async fn run(session: &Session<'_>, arguments: Run) -> Result<(), Failure> {
    let program = runnable(&session.client, &arguments.artifact, arguments.program.runtime).await?;
    let name = match arguments.name {
        Some(name) => name,
        None => unique_name(&arguments.artifact)?,
    };
    let mut unit = unit_spec(&program, &arguments.program, arguments.args, None)?;
    unit.restart = Some(RestartPolicy::Never);
    unit.stdin = arguments.interactive;
    let spec = WrittenUnit {
        name,
        namespace: session.context.namespace(),
        unit,
        labels: Labels::new(),
        remove_when_done: arguments.rm,
    };
    let unit = session.client.unit_create(&spec).await?;
    if arguments.detach {
        return print(&format!("{}\n", unit.name));
    }
    let attended = attach::to_the_end(&session.client, &unit, arguments.interactive).await;
    // One that the user left goes by itself when it has ended.
    if arguments.rm && !attended.was_left {
        let key = Object::Unit(Box::new(unit)).key();
        tokio::select! {
            gone = super::stop::delete_and_wait(session, &key) => gone?,
            code = attach::signalled() => return Err(Failure::exit(code?)),
        }
    }
    attended.outcome
}

/// Several runs of one program must not get in one another's way: the name ends in something that changes.
fn unique_name(artifact: &str) -> Result<ResourceName, Failure> {
    let base = target::name_from_artifact(artifact);
    let number = now_ms().unsigned_abs() ^ (u64::from(std::process::id()) << 32);
    let suffix: String = (0..6)
        .map(|place| char::from(b"0123456789abcdefghijkmnpqrstuvwxyz"[digit(number, place)]))
        .collect();
    ResourceName::new(format!("{base}-{suffix}")).map_err(|error| Failure::usage(error.to_string()))
}

/// The digit at `place` of a scrambled `number`, to base 34.
fn digit(number: u64, place: u32) -> usize {
    // A multiplication by an odd number (the golden ratio's) spreads consecutive numbers over all digits.
    let scrambled = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 16;
    usize::try_from(scrambled / 34u64.pow(place) % 34).unwrap_or(0)
}

fn unit_spec(
    program: &Runnable,
    flags: &ProgramFlags,
    args: Vec<String>,
    http: Option<HttpServing>,
) -> Result<UnitSpec, Failure> {
    let mut unit = UnitSpec {
        resources: Some(Resources {
            cpu: flags.cpu.unwrap_or_default(),
            memory: flags.memory.unwrap_or_default(),
            ..Resources::default()
        }),
        env: flags
            .env
            .iter()
            .map(|(key, value)| (key.clone(), EnvValue::Text(value.clone())))
            .collect::<BTreeMap<_, _>>(),
        mounts: flags.dir.iter().map(|text| mount(text)).collect::<Result<_, _>>()?,
        ..UnitSpec::default()
    };
    match program.runtime {
        Runtime::Wasm => {
            let allow_hosts = flags.allow_host.clone();
            unit.wasm = Some(WasmProgram {
                artifact: program.reference.clone(),
                args,
                http,
                allow_hosts,
                ..WasmProgram::default()
            });
        }
        Runtime::Oci => {
            if http.is_some() || !flags.allow_host.is_empty() {
                return Err(Failure::usage(
                    "--http and --allow-host are for wasm; a container uses the network as it is",
                ));
            }
            unit.oci = Some(OciProgram {
                image: program.reference.clone(),
                args,
                ..OciProgram::default()
            });
        }
    }
    Ok(unit)
}

/// HOST:GUEST or HOST:GUEST:ro
fn mount(text: &str) -> Result<Mount, Failure> {
    let wrong = || {
        Failure::usage(format!(
            "--dir {text}: expected HOST:GUEST or HOST:GUEST:ro, such as --dir ./data:/data:ro"
        ))
    };
    let parts: Vec<&str> = text.split(':').collect();
    let (host, guest, read_only) = match parts.as_slice() {
        [host, guest] => (host, guest, false),
        [host, guest, "ro"] => (host, guest, true),
        _ => return Err(wrong()),
    };
    if host.is_empty() || guest.is_empty() {
        return Err(wrong());
    }
    let host = PathBuf::from(host)
        .canonicalize()
        .map_err(|error| Failure::usage(format!("--dir {text}: {host}: {error}")))?;
    Ok(Mount { host: Some(host), config: None, secret: None, at: (*guest).to_owned(), read_only })
}

pub(crate) async fn deploy(session: &Session<'_>, arguments: Deploy) -> Result<(), Failure> {
    let program = runnable(&session.client, &arguments.artifact, arguments.program.runtime).await?;
    let name = match arguments.name {
        Some(name) => name,
        None => ResourceName::new(target::name_from_artifact(&arguments.artifact))
            .map_err(|error| Failure::usage(error.to_string()))?,
    };
    let http = (arguments.http || arguments.port.is_some())
        .then_some(HttpServing { port: arguments.port, ..HttpServing::default() });
    let unit = if program.runtime == Runtime::Oci {
        let mut unit = unit_spec(&program, &arguments.program, arguments.args, None)?;
        if let Some(oci) = &mut unit.oci {
            oci.ports.extend(arguments.port);
        }
        unit
    } else {
        unit_spec(&program, &arguments.program, arguments.args, http)?
    };
    let namespace = session.context.namespace();
    let replicas = arguments.replicas;
    let spec = ServiceSpec {
        name: name.clone(),
        namespace: namespace.clone(),
        replicas,
        max_unavailable: 1,
        unit,
        labels: Labels::new(),
    };
    let response = session.client.apply(vec![Manifest::Service(spec)]).await?;
    if arguments.detach {
        return print(&format!("service/{name}\n"));
    }
    let endpoints = wait_for_units(session, &name, response.revision).await?;
    print(&format!(
        "service/{name} runs{}{}\n",
        if endpoints.is_empty() { "" } else { " at " },
        endpoints.join(" ")
    ))
}

/// Waits until every wanted unit of the newest generation runs; tells on the way why one does not.
async fn wait_for_units(
    session: &Session<'_>,
    name: &ResourceName,
    mut revision: brig_api::Revision,
) -> Result<Vec<String>, Failure> {
    let namespace = session.context.namespace();
    let waiting = Waiting::new(format!("waiting for service `{name}`"));
    let mut told = None;
    loop {
        let key = target::key(Kind::Service, name.as_str(), &namespace)?;
        let Object::Service(service) = session.client.get(&key).await? else {
            return Ok(Vec::new());
        };
        let list = session.client.list(Kind::Unit, Some(&namespace)).await?;
        revision = revision.max(list.revision);
        let newest = Owner::Service { name: name.clone(), generation: service.generation };
        let mut endpoints = Vec::new();
        let mut running = 0;
        for object in &list.items {
            let Object::Unit(unit) = object else { continue };
            if unit.owner.as_ref() != Some(&newest) || unit.namespace != namespace {
                continue;
            }
            if unit.status.state == UnitState::Running {
                running += 1;
                endpoints.extend(
                    unit.status.endpoints.iter().map(|e| format!("{}://{}", e.scheme, e.address)),
                );
            } else if let Some(message) =
                unit.status.message.as_ref().filter(|message| told.as_ref() != Some(*message))
            {
                crate::say(&format!("{} waits: {}", unit.name, printable(message)));
                told = Some(message.clone());
            }
        }
        if running >= service.spec.replicas {
            endpoints.sort();
            endpoints.dedup();
            return Ok(endpoints);
        }
        waiting
            .say(format!("{running} of {} units of service `{name}` run", service.spec.replicas));
        let filter = WatchFilter { kind: Some(Kind::Unit), namespace: Some(namespace.clone()) };
        session.client.watch(filter, revision).next().await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_host_and_guest() {
        let mounted = mount("/tmp:/data:ro").unwrap();
        assert_eq!((mounted.at.as_str(), mounted.read_only), ("/data", true));
        assert!(!mount("/:/x").unwrap().read_only);
        for bad in ["/tmp", "/tmp:", ":/x", "/tmp:/x:rw", "/tmp:/x:ro:z", "/nonexistent-dir:/x"] {
            assert!(mount(bad).unwrap_err().message.contains("--dir"), "{bad}");
        }
    }

    #[test]
    fn names_of_runs_are_valid_and_spread() {
        let name = unique_name("dir/Hello World.wasm").unwrap();
        assert!(name.as_str().starts_with("hello-world-"), "{name}");
        let digits: std::collections::BTreeSet<_> =
            (0..100).map(|number| (0..6).map(|p| digit(number, p)).collect::<Vec<_>>()).collect();
        assert_eq!(digits.len(), 100);
    }
}
