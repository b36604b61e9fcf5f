//! Name look-ups of guests: only of names that were granted, a few at a time.

use std::net::{IpAddr, ToSocketAddrs};
use std::sync::Arc;

use wasmtime::component::{Linker, Resource, ResourceType};
use wasmtime_wasi::p2::bindings::sockets::network::{ErrorCode, IpAddress, Network};
use wasmtime_wasi::p2::{DynPollable, Pollable, subscribe};
use wasmtime_wasi::runtime::{AbortOnDropJoinHandle, spawn};

use super::{HasSockets, Sockets};

/// The interface that is replaced, in wasmtime's version of it: of several, a program is given the newest.
const INTERFACE: &str = "wasi:sockets/ip-name-lookup@0.2.12";
/// Most addresses of a name that are told.
const ADDRESSES_MAX: usize = 64;

/// Why a name was not found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LookUpError {
    /// It was not granted.
    Denied,
    /// There is no such name, or nobody answers for it.
    NotFound,
}

impl From<LookUpError> for ErrorCode {
    fn from(error: LookUpError) -> Self {
        match error {
            LookUpError::Denied => Self::AccessDenied,
            LookUpError::NotFound => Self::NameUnresolvable,
        }
    }
}

/// Looks a name up. An address instead of a name is told as it is.
pub(crate) async fn look_up(
    sockets: Arc<Sockets>,
    name: String,
) -> Result<Vec<IpAddr>, LookUpError> {
    let bare = name.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(&name);
    if let Ok(address) = bare.parse::<IpAddr>() {
        return Ok(vec![address]);
    }
    sockets.check_look_up(&name)?;
    let permit = Arc::clone(&sockets.look_ups).acquire_owned().await;
    let asked = name.clone();
    let found = tokio::task::spawn_blocking(move || {
        // Given back when the resolver has answered, not when the guest has lost its patience.
        let _permit = permit;
        let found = (asked.as_str(), 0).to_socket_addrs()?;
        std::io::Result::Ok(
            found.map(|address| address.ip().to_canonical()).take(ADDRESSES_MAX).collect(),
        )
    });
    let found = found.await.map_err(std::io::Error::other).flatten();
    sockets.found(&name, found.map_err(|_| LookUpError::NotFound)?)
}

/// A look-up that a guest has begun: `resolve-address-stream`.
enum LookUp {
    Underway(AbortOnDropJoinHandle<Result<Vec<IpAddr>, LookUpError>>),
    Ended(Result<std::vec::IntoIter<IpAddr>, LookUpError>),
}

#[wasmtime_wasi::async_trait]
impl Pollable for LookUp {
    async fn ready(&mut self) {
        if let Self::Underway(task) = self {
            *self = Self::Ended(task.await.map(Vec::into_iter));
        }
    }
}

impl LookUp {
    fn next(&mut self) -> Result<Option<IpAddress>, ErrorCode> {
        match self {
            Self::Underway(_) => Err(ErrorCode::WouldBlock),
            Self::Ended(Ok(addresses)) => Ok(addresses.next().map(IpAddress::from)),
            Self::Ended(Err(error)) => Err((*error).into()),
        }
    }
}

/// Puts this in the place of the library's look-up.
pub(super) fn add_to_linker<T: HasSockets>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    let mut interface = linker.instance(INTERFACE)?;
    interface.resource(
        "resolve-address-stream",
        ResourceType::host::<LookUp>(),
        |mut store, index| {
            store.data_mut().ctx().table.delete(Resource::<LookUp>::new_own(index))?;
            Ok(())
        },
    )?;
    interface.func_wrap(
        "resolve-addresses",
        |mut store, (network, name): (Resource<Network>, String)| {
            let host = store.data_mut();
            host.ctx().table.get(&network)?;
            let task = spawn(look_up(Arc::clone(host.granted_sockets()), name));
            let begun = host.ctx().table.push(LookUp::Underway(task))?;
            Ok((Result::<Resource<LookUp>, ErrorCode>::Ok(begun),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.resolve-next-address",
        |mut store, (look_up,): (Resource<LookUp>,)| {
            Ok((store.data_mut().ctx().table.get_mut(&look_up)?.next(),))
        },
    )?;
    interface.func_wrap(
        "[method]resolve-address-stream.subscribe",
        |mut store,
         (look_up,): (Resource<LookUp>,)|
         -> wasmtime::Result<(Resource<DynPollable>,)> {
            Ok((subscribe(store.data_mut().ctx().table, look_up)?,))
        },
    )
}
