//! The instances of an http service: a fresh one for each request, or, where the unit asks for it, one that has
//! answered others before.
//!
//! An instance answers one request at a time. It is kept only after a call that returned and a response that ended with
//! it: one that trapped, was cut off, or left something open is dropped, and its memory is free at once.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use brig_api::unit_spec::InstanceReuse;
use tokio::sync::Notify;
use tokio::time::Instant;
use wasmtime::Store;

use crate::host::ComponentHost;
use crate::http_handler::{Handler, HandlerPre};
use crate::meter::Slice;
use crate::outcome::Outcome;
use crate::task::Task;

/// One instance, while nobody or one request has it.
pub(crate) struct Instance {
    pub(crate) store: Store<ComponentHost>,
    pub(crate) handler: Handler,
    /// Every poll of a request in this instance is charged here.
    slice: Arc<Slice>,
    requests: u32,
}

/// Where requests get their instances.
pub(crate) struct Instances {
    task: Arc<Task>,
    pre: Arc<HandlerPre>,
    reuse: Option<InstanceReuse>,
    idle: Mutex<Idle>,
    /// Told when the first instance becomes idle while nobody looks after them.
    is_idle: Notify,
}

#[derive(Default)]
struct Idle {
    /// The one that was used last is at the back, and used next: its memory is in the processor's caches.
    instances: VecDeque<(Instant, Instance)>,
    is_looked_after: bool,
}

impl Instances {
    /// None yet.
    pub(crate) fn new(
        task: Arc<Task>,
        pre: Arc<HandlerPre>,
        reuse: Option<InstanceReuse>,
    ) -> Arc<Self> {
        let reuse = reuse.filter(|reuse| reuse.max_requests > 1);
        let instances =
            Arc::new(Self { task, pre, reuse, idle: Mutex::default(), is_idle: Notify::new() });
        let weak = Arc::downgrade(&instances);
        // A request must not fail for memory that an idle instance could give.
        instances.task.memory().on_shortage(Box::new(move || {
            weak.upgrade().is_some_and(|instances| instances.give_up_one())
        }));
        instances
    }

    /// The task whose instances these are.
    pub(crate) fn task(&self) -> &Task {
        &self.task
    }

    /// An idle instance, if there is one.
    pub(crate) fn idle(&self) -> Option<Instance> {
        self.reuse?;
        self.lock().instances.pop_back().map(|(_, instance)| instance)
    }

    /// The slice that a request in this instance, or in a fresh one, is charged through.
    pub(crate) fn slice(&self, instance: Option<&Instance>) -> Arc<Slice> {
        instance.map_or_else(|| self.task.slice(), |instance| Arc::clone(&instance.slice))
    }

    /// A fresh instance.
    pub(crate) async fn create(&self, slice: &Arc<Slice>) -> Result<Instance, Outcome> {
        let mut store = self.task.component_store(slice)?;
        match self.pre.instantiate(&mut store).await {
            Ok(handler) => Ok(Instance { store, handler, slice: Arc::clone(slice), requests: 0 }),
            Err(error) => Err(self.task.outcome_of_instantiation(&error)),
        }
    }

    /// Takes back an instance that has answered one more request, to its end.
    pub(crate) fn put_back(&self, mut instance: Instance) {
        instance.requests = instance.requests.saturating_add(1);
        if self.reuse.is_none_or(|reuse| instance.requests >= reuse.max_requests) {
            return;
        }
        let mut idle = self.lock();
        idle.instances.push_back((Instant::now(), instance));
        if !idle.is_looked_after {
            idle.is_looked_after = true;
            drop(idle);
            self.is_idle.notify_one();
        }
    }

    /// Drops instances whose time is over, for ever. Rests while there are none.
    pub(crate) async fn look_after(&self) {
        let Some(reuse) = self.reuse else { return std::future::pending().await };
        let idle_time = Duration::from_millis(reuse.idle_ms);
        loop {
            self.is_idle.notified().await;
            while let Some(oldest) = self.oldest_idle_since() {
                tokio::time::sleep_until(oldest + idle_time).await;
                self.drop_idle_since_before(Instant::now().checked_sub(idle_time));
            }
        }
    }

    /// When the instance that has been idle longest became so; with none, this rests until it is told.
    fn oldest_idle_since(&self) -> Option<Instant> {
        let mut idle = self.lock();
        let oldest = idle.instances.front().map(|(since, _)| *since);
        idle.is_looked_after = oldest.is_some();
        oldest
    }

    fn drop_idle_since_before(&self, then: Option<Instant>) {
        let Some(then) = then else { return };
        let mut idle = self.lock();
        let count = idle.instances.iter().take_while(|(since, _)| *since <= then).count();
        let expired: Vec<_> = idle.instances.drain(..count).collect();
        drop(idle);
        drop(expired); // outside the lock: each unmaps something
    }

    /// Drops one idle instance; false when there is none.
    fn give_up_one(&self) -> bool {
        let oldest = self.lock().instances.pop_front();
        oldest.is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Idle> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
