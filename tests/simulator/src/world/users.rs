//! What users do: they make things, change their minds, and delete them.

use std::sync::Arc;

use brig_api::object::{
    Desired, Job, JobState, Meta, Namespace, Object, ObjectKey, Service, Unit, UnitStatus,
};
use brig_api::placement::Grants;
use brig_api::spec::{JobSpec, ServiceSpec};
use brig_api::unit_spec::UnitTemplate;
use brig_api::{Kind, NamespacePath, ResourceName, UnitId};

use super::World;
use crate::workload::{self, For, NAMESPACES};

impl World {
    /// One of the many things that users do.
    pub(super) fn user_acts(&mut self) -> anyhow::Result<()> {
        let path = self.random.pick(&NAMESPACES).copied().unwrap_or("default");
        let namespace = NamespacePath::new(path)?;
        match self.random.below(24) {
            0..10 => self.service_acts(namespace),
            10..16 => self.job_acts(namespace),
            16..18 => self.new_unit(namespace),
            18..20 => {
                self.stop_some_unit();
                Ok(())
            }
            20 => {
                self.namespace_changes(&namespace);
                Ok(())
            }
            21 => {
                let key =
                    ObjectKey { kind: Kind::Namespace, namespace: None, name: path.to_owned() };
                self.database.remove(key);
                Ok(())
            }
            _ => self.repeat_something(),
        }
    }

    pub(super) fn namespace_changes(&mut self, path: &NamespacePath) {
        let spec = workload::namespace(path.clone(), &mut self.random);
        self.database.put(Object::Namespace(Namespace { spec, meta: self.meta() }));
        self.witness.namespace_changed(path, self.database.truth().revision);
    }

    fn meta(&self) -> Meta {
        Meta { revision: self.database.truth().revision, created_ms: self.now_ms }
    }

    fn service_acts(&mut self, namespace: NamespacePath) -> anyhow::Result<()> {
        let name = ResourceName::new(format!("s{}", self.random.below(3)))?;
        let Some(mut old) = self.database.truth().service(&namespace, &name).cloned() else {
            return self.new_service(namespace, name);
        };
        match self.random.below(5) {
            0 => old.spec.replicas = self.random.below(6),
            1 => old.spec.max_unavailable = self.random.below(3),
            2 | 3 => {
                self.made += 1;
                old.generation += 1;
                let kind = For::Service(old.spec.replicas);
                let unit = workload::template(&mut self.random, kind, self.made, &namespace)?;
                old.spec.unit = as_needed_by_others(unit, &name);
            }
            _ => old.is_deleting = true,
        }
        self.database.put(Object::Service(old));
        Ok(())
    }

    fn new_service(&mut self, namespace: NamespacePath, name: ResourceName) -> anyhow::Result<()> {
        self.made += 1;
        let replicas = self.random.below(6);
        let kind = For::Service(replicas);
        let unit = workload::template(&mut self.random, kind, self.made, &namespace)?;
        let spec = ServiceSpec {
            unit: as_needed_by_others(unit, &name),
            name,
            replicas,
            max_unavailable: self.random.below(3),
            labels: workload::labels(&mut self.random),
            namespace,
        };
        let (generation, is_deleting, meta) = (1, false, self.meta());
        self.database.put(Object::Service(Service { spec, generation, is_deleting, meta }));
        Ok(())
    }

    fn job_acts(&mut self, namespace: NamespacePath) -> anyhow::Result<()> {
        let name = ResourceName::new(format!("j{}", self.random.below(2)))?;
        match self.database.truth().job(&namespace, &name).cloned() {
            None => self.new_job(namespace, name)?,
            Some(old) if old.state.is_final() || self.random.chance(10) => {
                self.database.put(Object::Job(Job { is_deleting: true, ..old }));
            }
            Some(old) if self.random.chance(10) => {
                self.database.put(Object::Job(Job { state: JobState::Stopped, ..old }));
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn new_job(&mut self, namespace: NamespacePath, name: ResourceName) -> anyhow::Result<()> {
        self.made += 1;
        let parallelism = self.random.between(1, 3);
        let kind = For::Job(parallelism);
        let spec = JobSpec {
            name,
            parallelism,
            completions: parallelism * self.random.between(1, 2),
            retries: self.random.below(3),
            retry_after_ms: None,
            unit: workload::template(&mut self.random, kind, self.made, &namespace)?,
            labels: workload::labels(&mut self.random),
            namespace,
        };
        let (state, succeeded, failed) = (JobState::Active, 0, 0);
        let (is_deleting, meta) = (false, self.meta());
        self.database.put(Object::Job(Job { spec, state, succeeded, failed, is_deleting, meta }));
        Ok(())
    }

    fn new_unit(&mut self, namespace: NamespacePath) -> anyhow::Result<()> {
        self.made += 1;
        // Some have the name that a job's unit would get.
        let name = match self.random.chance(20) {
            true => format!("j0-{}", self.random.below(2)),
            false => format!("u{}", self.random.below(3)),
        };
        let name = ResourceName::new(name)?;
        let template = workload::template(&mut self.random, For::Lone, self.made, &namespace)?;
        let is_taken = self
            .database
            .truth()
            .units()
            .any(|unit| unit.namespace == namespace && unit.name == name);
        if is_taken {
            return Ok(());
        }
        let unit = Unit {
            id: UnitId::of_revision(self.database.truth().revision, 0),
            name,
            namespace,
            owner: None,
            labels: Arc::new(workload::labels(&mut self.random)),
            template: Arc::new(template),
            desired: Desired::Run,
            remove_when_done: self.random.chance(50),
            node: None,
            promised: None,
            grants: Grants::default(),
            placed_ms: None,
            placed_by: None,
            status: UnitStatus::default(),
            meta: self.meta(),
        };
        self.database.put(Object::Unit(Box::new(unit)));
        Ok(())
    }

    fn stop_some_unit(&mut self) {
        let units: Vec<_> = self.database.truth().units().collect();
        let unit = self.random.pick(&units).map(|unit| (*unit).clone());
        if let Some(mut unit) = unit.filter(|unit| unit.desired == Desired::Run) {
            unit.desired = if self.random.chance(50) { Desired::Stop } else { Desired::Remove };
            self.database.put(Object::Unit(Box::new(unit)));
        }
    }

    /// A write that changes nothing.
    fn repeat_something(&mut self) -> anyhow::Result<()> {
        let rows: Vec<_> = self.database.rows().values().collect();
        if let Some(object) = self.random.pick(&rows).map(|object| (*object).clone()) {
            self.database.put(object);
        }
        Ok(())
    }
}

/// What others come after is as important as they are: else a third thing between them in importance could stop what they
/// wait for whenever they start, and never would there be rest.
fn as_needed_by_others(unit: UnitTemplate, name: &ResourceName) -> UnitTemplate {
    if name.as_str() != workload::NEEDED_SERVICE {
        return unit;
    }
    UnitTemplate { priority: workload::PRIORITIES - 1, revocable: false, ..unit }
}
