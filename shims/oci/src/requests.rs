//! What the shim answers to each request of the protocol.

use brig_api::lifecycle::Reason;
use brig_api::request::ExecRequest;
use brig_shim::message::{
    FromShim, PROTOCOL_VERSION, Reply, Request, StartProgram, StartTask, TaskKey, TaskUsage,
    TaskView, ToShim,
};

use crate::exec::Session;
use crate::shim::{Life, Shim};

/// Longest key: it becomes a file name.
const KEY_BYTES_MAX: usize = 200;

impl Shim {
    /// Handles what has arrived whole on a connection.
    pub(crate) fn handle_frames(&mut self, id: u64) {
        loop {
            let Some(connection) = self.connections.get_mut(&id) else { return };
            if connection.is_ending {
                return;
            }
            if connection.session.is_some() {
                let Some(frame) = connection.next_stdio() else { return };
                if let Some(session) = &mut connection.session {
                    session.take(frame);
                }
                continue;
            }
            match connection.next_request() {
                Ok(Some(request)) => self.handle(id, request),
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "a connection is ended");
                    connection.is_ending = true;
                }
            }
        }
    }

    fn handle(&mut self, id: u64, request: ToShim) {
        let ToShim { id: request_id, request } = request;
        let is_greeted = self.connections.get(&id).is_some_and(|connection| connection.is_greeted);
        match request {
            Request::Hello { version } if version != PROTOCOL_VERSION => {
                let message = format!(
                    "this shim speaks version {PROTOCOL_VERSION} of the protocol, not {version}"
                );
                self.reply(id, request_id, refused(&message));
            }
            Request::Hello { .. } => {
                let reply = self.hello();
                self.reply(id, request_id, reply);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.is_greeted = true;
                }
            }
            _ if !is_greeted => {
                self.reply(
                    id,
                    request_id,
                    refused("say hello first: it is a connection's first request"),
                );
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.is_ending = true;
                }
            }
            Request::Start(start) => match self.accept_start(&start) {
                Some(reply) => self.reply(id, request_id, reply),
                None => {
                    self.reply(id, request_id, Reply::Done);
                    self.start(*start);
                }
            },
            Request::Exec { task, exec } => self.exec(id, request_id, &task, &exec),
            other => {
                let reply = self.answer(other);
                self.reply(id, request_id, reply);
            }
        }
    }

    fn hello(&self) -> Reply {
        let task = self.task_state();
        Reply::Hello {
            version: PROTOCOL_VERSION,
            tasks: task
                .map(|(key, state)| TaskView { key: key.clone(), state })
                .into_iter()
                .collect(),
        }
    }

    /// The answer to a start that starts nothing; None when it does.
    fn accept_start(&self, start: &StartTask) -> Option<Reply> {
        match &self.life {
            Life::Live(mine, _) if mine.key == start.key => return Some(Reply::Done),
            Life::Ended(mine, _) if *mine == start.key => return Some(Reply::Done),
            Life::Waiting { .. } => {}
            _ => return Some(refused("this shim has a task already: start another shim")),
        }
        let key = &start.key.0;
        let is_file_name = !key.is_empty()
            && key.len() <= KEY_BYTES_MAX
            && !key.starts_with('.')
            && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte));
        if !is_file_name {
            return Some(refused("the task's key is not a safe file name"));
        }
        match &start.program {
            StartProgram::Oci(_) => None,
            StartProgram::Wasm(_) => {
                Some(refused("this shim runs containers: send wasm to the wasm shim"))
            }
        }
    }

    fn answer(&mut self, request: Request) -> Reply {
        match request {
            Request::Stop { task, how } => match &mut self.life {
                Life::Live(start, live) if start.key == task => {
                    if let StartProgram::Oci(program) = &start.program {
                        live.stop(how, program);
                    }
                    Reply::Done
                }
                _ => Reply::Done,
            },
            Request::Usage { after } => {
                let one = match &mut self.life {
                    Life::Live(start, live) => Some((start.key.clone(), live.usage())),
                    Life::Ended(key, record) => {
                        Some((key.clone(), TaskUsage { used: record.usage, memory_bytes: 0 }))
                    }
                    _ => None,
                };
                let tasks = one.into_iter().filter(|(key, _)| after.as_ref() < Some(key));
                Reply::Usage { tasks: tasks.collect() }
            }
            Request::Remove { task } => match &self.life {
                Life::Live(start, _) if start.key == task => {
                    refused("the task runs: stop it before it is removed")
                }
                Life::Ended(key, _) if *key == task => {
                    self.conclude();
                    Reply::Done
                }
                _ => Reply::Done,
            },
            Request::Shutdown => match self.task_state() {
                Some(_) => refused("the shim has a task: remove it first"),
                None => {
                    self.conclude_now();
                    Reply::Done
                }
            },
            Request::Attach { .. } => {
                refused("a container's standard input is empty: nothing can be sent to it")
            }
            Request::Hello { .. } | Request::Start(_) | Request::Exec { .. } => {
                refused("not answered here")
            }
        }
    }

    fn exec(&mut self, id: u64, request_id: u64, task: &TaskKey, request: &ExecRequest) {
        let session = match &self.life {
            Life::Live(start, live) if start.key == *task => match &start.program {
                StartProgram::Oci(program) => live.target(start, program),
                StartProgram::Wasm(_) => None,
            },
            _ => None,
        }
        .map(|target| Session::start(target, request));
        match session {
            None => self.reply(
                id,
                request_id,
                refused("the task does not run: nothing can be run in it"),
            ),
            Some(Err(failure)) => {
                let reply =
                    Reply::Refused { reason: Some(failure.reason), message: failure.message };
                self.reply(id, request_id, reply);
            }
            Some(Ok(session)) => {
                self.reply(id, request_id, Reply::Done);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.session = Some(session);
                }
            }
        }
    }

    fn reply(&mut self, id: u64, request_id: u64, reply: Reply) {
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.send(&FromShim::Reply { id: request_id, reply });
        }
    }
}

fn refused(message: &str) -> Reply {
    Reply::Refused { reason: None::<Reason>, message: message.to_owned() }
}
