//! Opens the streams that the control plane asks for: see [`crate::streams`].

use brig_api::request::ExecRequest;
use brig_api::session::{FromNode, StreamRequest};
use brig_api::{Code, Problem, ResourceName, UnitId};

use super::{Agent, Unit};
use crate::disk::Disk;
use crate::plan::TaskSeen;
use crate::streams::{LogSource, Place, StdioTarget, serve_attach, serve_exec, serve_logs};

impl Agent {
    pub(super) fn open_stream(
        &self,
        server: &str,
        stream: String,
        unit: &UnitId,
        request: StreamRequest,
    ) {
        let url = format!("{server}/v1/node-streams/{stream}");
        let place = Place { url, token: self.token.clone() };
        let unit = self.units.get(unit).ok_or_else(|| {
            let why = format!("the node has no unit `{unit}` (any more)");
            Problem::new(Code::NotFound, why)
        });
        let session = self.session.clone();
        let fail = move |problem: Problem| {
            if let Some(session) = session {
                let failed = FromNode::StreamFailed { stream, problem: Box::new(problem) };
                // Nobody to tell: the server gives the stream up by itself.
                let _ = session.try_send(failed);
            }
        };
        let found = match request {
            StreamRequest::Logs(query) => unit
                .and_then(|unit| unit.log_source(&self.disk, query.task.as_ref()))
                .map(|source| Served::Logs(source, query)),
            StreamRequest::Exec(exec) => unit
                .and_then(|unit| unit.stdio_target(&self.disk, exec.task.as_ref()))
                .map(|target| Served::Exec(target, exec)),
            StreamRequest::Attach(attach) => unit
                .and_then(|unit| unit.stdio_target(&self.disk, attach.task.as_ref()))
                .map(Served::Attach),
        };
        let served = match found {
            Ok(served) => served,
            Err(problem) => return fail(problem),
        };
        tokio::spawn(async move {
            let outcome = match served {
                Served::Logs(source, query) => serve_logs(&place, source, &query).await,
                Served::Exec(target, exec) => serve_exec(&place, target, exec).await,
                Served::Attach(target) => serve_attach(&place, target).await,
            };
            if let Err(problem) = outcome {
                tracing::warn!(problem = %problem, "a stream could not be opened");
                fail(problem);
            }
        });
    }
}

enum Served {
    Logs(LogSource, brig_api::request::LogQuery),
    Exec(StdioTarget, ExecRequest),
    Attach(StdioTarget),
}

impl Unit {
    fn log_source(&self, disk: &Disk, task: Option<&ResourceName>) -> Result<LogSource, Problem> {
        if let Some(task) = task {
            self.check_task(task)?;
        }
        let assignment = &self.assignment;
        let tasks = assignment
            .template
            .tasks
            .iter()
            .filter(|one| task.is_none_or(|task| one.name == *task))
            .map(|one| (one.name.clone(), disk.log_target(assignment, one).path))
            .collect();
        let dirs = disk.log_dirs(assignment).into_iter().collect();
        Ok(LogSource { dirs, tasks, is_over: self.is_over.subscribe() })
    }

    fn stdio_target(
        &self,
        disk: &Disk,
        task: Option<&ResourceName>,
    ) -> Result<StdioTarget, Problem> {
        let tasks = &self.assignment.template.tasks;
        let first = || tasks.iter().find(|task| !task.sidecar).map(|task| task.name.clone());
        let Some(task) = task.cloned().or_else(first) else {
            return Err(Problem::new(Code::NotFound, "the unit has no task for that"));
        };
        self.check_task(&task)?;
        if !matches!(self.tasks.get(&task), Some(TaskSeen::Running { .. })) {
            let why = format!(
                "task `{task}` of unit `{}` does not run: the unit is {}",
                self.assignment.name,
                self.record.status.state.as_str()
            );
            return Err(Problem::new(Code::WrongState, why));
        }
        let key = self.key(&task);
        Ok(StdioTarget { shim_dir: disk.shim(&self.shim_of(&key)), key })
    }

    fn check_task(&self, name: &ResourceName) -> Result<(), Problem> {
        let tasks = &self.assignment.template.tasks;
        if tasks.iter().any(|task| task.name == *name) {
            return Ok(());
        }
        let names: Vec<_> = tasks.iter().map(|task| format!("`{}`", task.name)).collect();
        let why = format!(
            "unit `{}` has no task `{name}`: it has {}",
            self.assignment.name,
            names.join(", ")
        );
        Err(Problem::new(Code::NotFound, why))
    }
}
