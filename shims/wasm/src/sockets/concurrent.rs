//! The same for WASI 0.3.

use std::sync::Arc;

use wasmtime::StoreContextMut;
use wasmtime::component::{Accessor, Linker, Resource};
use wasmtime_wasi::p3::bindings::sockets::ip_name_lookup::{self, ErrorCode as NotFound};
use wasmtime_wasi::p3::bindings::sockets::types::{
    ErrorCode, HostTcpSocket, HostUdpSocket, IpAddress, IpAddressFamily, TcpSocket, UdpSocket,
};

use brig_api::allow_host::Scheme;

use super::look_up::{LookUpError, look_up};
use super::{Granted, HasSockets, View, view};

/// The interface in which new sockets are checked, in wasmtime's version of it.
const TYPES: &str = "wasi:sockets/types@0.3.0";

/// Puts our look-up, and our checks of new sockets, in the place of the library's.
pub(crate) fn add_to_linker<T: HasSockets>(linker: &mut Linker<T>) -> wasmtime::Result<()> {
    linker.allow_shadowing(true);
    ip_name_lookup::add_to_linker::<T, Granted>(linker, view)?;
    let mut types = linker.instance(TYPES)?;
    types.func_wrap(
        "[static]tcp-socket.create",
        |mut store: StoreContextMut<'_, T>, (family,): (IpAddressFamily,)| {
            let mut view = view(store.data_mut());
            if let Err(error) = view.sockets.check_new(Scheme::Tcp) {
                return Ok((Result::<Resource<TcpSocket>, _>::Err(refused(error)),));
            }
            match HostTcpSocket::create(&mut view.wasi, family) {
                Ok(socket) => Ok((Ok(socket),)),
                Err(error) => Ok((Err(error.downcast()?),)),
            }
        },
    )?;
    types.func_wrap_async(
        "[static]udp-socket.create",
        |mut store: StoreContextMut<'_, T>, (family,): (IpAddressFamily,)| {
            Box::new(async move {
                let mut view = view(store.data_mut());
                if let Err(error) = view.sockets.check_new(Scheme::Udp) {
                    return Ok((Result::<Resource<UdpSocket>, _>::Err(refused(error)),));
                }
                match HostUdpSocket::create(&mut view.wasi, family).await {
                    Ok(socket) => Ok((Ok(socket),)),
                    Err(error) => Ok((Err(error.downcast()?),)),
                }
            })
        },
    )?;
    linker.allow_shadowing(false);
    Ok(())
}

/// What a refusal of WASI 0.2 is in 0.3.
fn refused(error: wasmtime_wasi::p2::bindings::sockets::network::ErrorCode) -> ErrorCode {
    use wasmtime_wasi::p2::bindings::sockets::network::ErrorCode as Before;
    match error {
        Before::AccessDenied => ErrorCode::AccessDenied,
        other => ErrorCode::Other(Some(other.to_string())),
    }
}

impl<T> ip_name_lookup::HostWithStore<T> for Granted {
    async fn resolve_addresses(
        store: &Accessor<T, Self>,
        name: String,
    ) -> wasmtime::Result<Result<Vec<IpAddress>, NotFound>> {
        let sockets = store.with(|mut access| Arc::clone(&access.get().sockets));
        Ok(match look_up(sockets, name).await {
            Ok(addresses) => Ok(addresses.into_iter().map(IpAddress::from).collect()),
            Err(LookUpError::Denied) => Err(NotFound::AccessDenied),
            Err(LookUpError::NotFound) => Err(NotFound::NameUnresolvable),
        })
    }
}

impl ip_name_lookup::Host for View<'_> {}
