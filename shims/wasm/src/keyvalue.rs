//! `wasi:keyvalue`: what guests keep, in one SQLite file for each namespace and node.
//!
//! SQLite, because several shims of a namespace may have the file open (after an upgrade the old one goes on with its
//! tasks), and because it is whole after a crash at any point. What a namespace can keep is capped.

mod interface;
mod store;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use brig_shim::message::KeyValueStore;

use crate::output::TaskLog;

pub(crate) use interface::{Bucket, add_to_linker, is_provided};
use store::{Store, StoreError};

/// The stores that this shim has open.
#[derive(Debug, Default)]
pub(crate) struct Stores {
    open: Mutex<HashMap<PathBuf, Weak<Store>>>,
}

impl Stores {
    /// What a task may keep.
    pub(crate) fn grant(&self, granted: &KeyValueStore, log: &Arc<TaskLog>) -> Arc<Granted> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.retain(|_, store| store.strong_count() > 0);
        let store = open.get(&granted.file).and_then(Weak::upgrade).unwrap_or_else(|| {
            let store = Store::new(granted.file.clone());
            open.insert(granted.file.clone(), Arc::downgrade(&store));
            store
        });
        let (buckets, log) = (granted.buckets.clone(), Arc::clone(log));
        Arc::new(Granted { store, buckets, log })
    }
}

/// The buckets of a task.
#[derive(Debug)]
pub(crate) struct Granted {
    store: Arc<Store>,
    buckets: Vec<String>,
    log: Arc<TaskLog>,
}

/// The bucket that is opened by an empty name, as the interface has it for the only store of a host.
const DEFAULT_BUCKET: &str = "default";

impl Granted {
    /// The bucket of that name, if the task may open it.
    fn open(&self, name: &str) -> Option<Bucket> {
        let name = if name.is_empty() { DEFAULT_BUCKET } else { name };
        if !self.buckets.iter().any(|granted| granted == name) {
            self.log.note(&format!(
                "refused to open the key-value bucket {name:?}: add it to the unit's `keyvalue` to permit it"
            ));
            return None;
        }
        Some(Bucket { name: name.into(), store: Arc::clone(&self.store) })
    }
}
