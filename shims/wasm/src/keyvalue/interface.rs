//! The interface as guests see it.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{ComponentType, Lift, Linker, Lower, Resource, ResourceType};
use wasmtime_wasi::WasiView as _;

use super::{Store, StoreError, store};
use crate::host::ComponentHost;

const STORE: &str = "wasi:keyvalue/store@0.2.0-draft";
const ATOMICS: &str = "wasi:keyvalue/atomics@0.2.0-draft";
const BATCH: &str = "wasi:keyvalue/batch@0.2.0-draft";

/// Is this one of the interfaces, in the version that is provided?
pub(crate) fn is_provided(import: &str) -> bool {
    [STORE, ATOMICS, BATCH].contains(&import)
}

/// A bucket that a guest has opened.
#[derive(Debug, Clone)]
pub(crate) struct Bucket {
    pub(super) name: Arc<str>,
    pub(super) store: Arc<Store>,
}

#[derive(Debug, ComponentType, Lift, Lower)]
#[component(variant)]
enum Error {
    #[component(name = "no-such-store")]
    NoSuchStore,
    #[component(name = "access-denied")]
    AccessDenied,
    #[component(name = "other")]
    Other(String),
}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        Self::Other(error.to_string())
    }
}

#[derive(Debug, ComponentType, Lift, Lower)]
#[component(record)]
struct KeyResponse {
    keys: Vec<String>,
    cursor: Option<u64>,
}

type Host<'a> = StoreContextMut<'a, ComponentHost>;
type Answer<T> = (Result<T, Error>,);

/// Calls `act` with the bucket's name on the store's thread.
async fn with<R: Send + 'static>(
    mut host: Host<'_>,
    bucket: Resource<Bucket>,
    act: impl FnOnce(&mut rusqlite::Connection, &str) -> Result<R, StoreError> + Send + 'static,
) -> wasmtime::Result<Answer<R>> {
    let Bucket { name, store } = host.data_mut().ctx().table.get(&bucket)?.clone();
    let done = store.with(move |connection| act(connection, &name)).await;
    Ok((done.map_err(Error::from),))
}

/// Adds all three interfaces. Whether they lead anywhere is the host's grant.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentHost>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(STORE)?;
    interface.resource("bucket", ResourceType::host::<Bucket>(), |mut host: Host<'_>, index| {
        host.data_mut().ctx().table.delete(Resource::<Bucket>::new_own(index))?;
        Ok(())
    })?;
    interface.func_wrap("open", |mut host: Host<'_>, (name,): (String,)| {
        let host = host.data_mut();
        let answer = match host.keyvalue().and_then(|granted| granted.open(&name)) {
            Some(bucket) => Ok(host.ctx().table.push(bucket)?),
            None => Err(Error::AccessDenied),
        };
        Ok((answer,))
    })?;
    interface.func_wrap_async(
        "[method]bucket.get",
        |host: Host<'_>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(with(host, bucket, move |file, name| store::get(file, name, &key)))
        },
    )?;
    interface.func_wrap_async(
        "[method]bucket.set",
        |host: Host<'_>, (bucket, key, value): (Resource<Bucket>, String, Vec<u8>)| {
            Box::new(with(host, bucket, move |file, name| {
                store::set_many(file, name, &[(key, value)])
            }))
        },
    )?;
    interface.func_wrap_async(
        "[method]bucket.delete",
        |host: Host<'_>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(with(host, bucket, move |file, name| store::delete_many(file, name, &[key])))
        },
    )?;
    interface.func_wrap_async(
        "[method]bucket.exists",
        |host: Host<'_>, (bucket, key): (Resource<Bucket>, String)| {
            Box::new(with(host, bucket, move |file, name| store::exists(file, name, &key)))
        },
    )?;
    interface.func_wrap_async(
        "[method]bucket.list-keys",
        |host: Host<'_>, (bucket, cursor): (Resource<Bucket>, Option<u64>)| {
            Box::new(with(host, bucket, move |file, name| {
                let page = store::list(file, name, cursor)?;
                Ok(KeyResponse { keys: page.keys, cursor: page.next })
            }))
        },
    )?;
    linker.instance(ATOMICS)?.func_wrap_async(
        "increment",
        |host: Host<'_>, (bucket, key, delta): (Resource<Bucket>, String, u64)| {
            Box::new(with(host, bucket, move |file, name| {
                store::increment(file, name, &key, delta)
            }))
        },
    )?;
    add_batch(linker)
}

fn add_batch(linker: &mut Linker<ComponentHost>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(BATCH)?;
    interface.func_wrap_async(
        "get-many",
        |host: Host<'_>, (bucket, keys): (Resource<Bucket>, Vec<String>)| {
            Box::new(with(host, bucket, move |file, name| store::get_many(file, name, keys)))
        },
    )?;
    interface.func_wrap_async(
        "set-many",
        |host: Host<'_>, (bucket, entries): (Resource<Bucket>, Vec<(String, Vec<u8>)>)| {
            Box::new(with(host, bucket, move |file, name| store::set_many(file, name, &entries)))
        },
    )?;
    interface.func_wrap_async(
        "delete-many",
        |host: Host<'_>, (bucket, keys): (Resource<Bucket>, Vec<String>)| {
            Box::new(with(host, bucket, move |file, name| store::delete_many(file, name, &keys)))
        },
    )
}
