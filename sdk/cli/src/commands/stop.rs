//! `scale`, `stop` and `delete`.

use std::collections::BTreeSet;

use brig_api::object::ObjectKey;
use brig_api::{Code, Kind, Revision};
use brig_client::{Client, ClientError, WatchFilter};

use crate::arguments::{Delete, Scale, Target};
use crate::failure::Failure;
use crate::load;
use crate::output::print;
use crate::progress::Waiting;
use crate::target;

use super::Session;

pub(crate) async fn scale(session: &Session<'_>, arguments: &Scale) -> Result<(), Failure> {
    let name = arguments.service.rsplit('/').next().unwrap_or_default();
    let key = target::key(Kind::Service, name, &session.context.namespace())?;
    let name = key.name.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    let service = session
        .client
        .service_scale(&session.context.namespace(), &name, arguments.replicas)
        .await?;
    print(&format!("service `{name}` has {} replicas\n", service.spec.replicas))
}

pub(crate) async fn stop(session: &Session<'_>, arguments: &Target) -> Result<(), Failure> {
    let namespace = session.context.namespace();
    let key = target::parse(&arguments.target, &namespace)?;
    match key.kind {
        Kind::Unit => session.client.unit_stop(&namespace, &key.name).await.map(drop)?,
        Kind::Job => session.client.job_stop(&namespace, &key.name).await.map(drop)?,
        Kind::Service => {
            return Err(Failure::usage(
                "a service is stopped by `brig scale --replicas 0`, or removed by `brig delete`",
            ));
        }
        kind => {
            return Err(Failure::usage(format!("a {kind} can't be stopped: name a unit or job")));
        }
    }
    print(&format!("{key} is stopping\n"))
}

pub(crate) async fn delete(session: &Session<'_>, arguments: &Delete) -> Result<(), Failure> {
    let namespace = session.context.namespace();
    let keys: Vec<ObjectKey> = if arguments.files.is_empty() {
        arguments
            .targets
            .iter()
            .map(|text| target::parse(text, &namespace))
            .collect::<Result<_, _>>()?
    } else {
        let named = session.context.namespace.as_ref().map(brig_api::NamespacePath::as_str);
        // What came first is needed by what came later: the other way round.
        load::manifests(&arguments.files, named)?
            .iter()
            .rev()
            .map(brig_api::Manifest::key)
            .collect()
    };
    let is_lenient = !arguments.files.is_empty();
    // A namespace goes when everything in it has gone.
    let (namespaces, others): (Vec<_>, Vec<_>) =
        keys.into_iter().partition(|key| key.kind == Kind::Namespace);
    delete_all(session, &others, is_lenient, arguments.detach && namespaces.is_empty()).await?;
    delete_all(session, &namespaces, is_lenient, true).await
}

/// Deletes one resource, which may be gone already, and waits until it is gone.
pub(super) async fn delete_and_wait(session: &Session<'_>, key: &ObjectKey) -> Result<(), Failure> {
    let since = session.client.version().await?.revision;
    match session.client.delete(key).await {
        Err(error) if error.code() == Some(Code::NotFound) => Ok(()),
        Err(error) => Err(error.into()),
        Ok(()) => wait_until_gone(&session.client, std::slice::from_ref(key), since).await,
    }
}

async fn delete_all(
    session: &Session<'_>,
    keys: &[ObjectKey],
    is_lenient: bool,
    is_detached: bool,
) -> Result<(), Failure> {
    // Read before anything is deleted, so that the watch sees every deletion.
    let since =
        if keys.is_empty() { return Ok(()) } else { session.client.version().await?.revision };
    let mut going = Vec::new();
    for key in keys {
        match session.client.delete(key).await {
            Ok(()) => going.push(key.clone()),
            Err(error) if is_lenient && error.code() == Some(Code::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
    }
    if !is_detached {
        wait_until_gone(&session.client, &going, since).await?;
    }
    for key in &going {
        print(&format!("{key} {}\n", if is_detached { "is going" } else { "is gone" }))?;
    }
    Ok(())
}

/// Waits until none of `keys` exists: a running unit has its grace period.
async fn wait_until_gone(
    client: &Client,
    keys: &[ObjectKey],
    since: Revision,
) -> Result<(), Failure> {
    let mut left: BTreeSet<_> = keys.iter().cloned().collect();
    let waiting = Waiting::new(String::new());
    let mut watch = client.watch(WatchFilter::default(), since);
    while let Some(next) = left.first() {
        waiting.say(format!("waiting for {next} to stop ({} left)", left.len()));
        match watch.next().await {
            Ok(changes) => {
                for change in changes.iter().filter(|change| change.object.is_none()) {
                    left.remove(&change.key);
                }
            }
            // The feed was trimmed: look instead.
            Err(ClientError::Problem(problem)) if problem.code == Code::RevisionTooOld => {
                let newest = client.version().await?.revision;
                for key in left.clone() {
                    if client
                        .get(&key)
                        .await
                        .is_err_and(|error| error.code() == Some(Code::NotFound))
                    {
                        left.remove(&key);
                    }
                }
                watch = client.watch(WatchFilter::default(), newest);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
