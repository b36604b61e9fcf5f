//! The commands that talk to a control plane, one module for each group.

mod apply;
mod artifacts;
mod ask;
mod consequences;
pub(crate) mod exec;
mod inspect;
mod list;
mod logs;
mod run;
mod simulate;
mod stop;

use brig_client::Client;

use crate::arguments::{Command, NodeCommand};
use crate::context::Context;
use crate::failure::Failure;

/// What every command of this kind has at hand.
pub(crate) struct Session<'a> {
    pub(crate) client: Client,
    pub(crate) context: &'a Context,
}

/// Runs a command.
pub(crate) async fn run(command: Command, context: &Context) -> Result<(), Failure> {
    let client = Client::new(&context.server_url(), context.token.as_deref())
        .map_err(|error| Failure::usage(error.to_string()))?;
    let session = Session { client, context };
    match command {
        Command::Run(arguments) => run::run(&session, arguments).await,
        Command::Deploy(arguments) => run::deploy(&session, arguments).await,
        Command::Apply(arguments) => apply::apply(&session, &arguments).await,
        Command::Plan(arguments) => apply::plan(&session, &arguments).await,
        Command::Simulate(arguments) => simulate::simulate(&session, arguments).await,
        Command::Scale(arguments) => stop::scale(&session, &arguments).await,
        Command::Stop(arguments) => stop::stop(&session, &arguments).await,
        Command::Delete(arguments) => stop::delete(&session, &arguments).await,
        Command::Ps(arguments) => list::ps(&session, &arguments).await,
        Command::Get(arguments) => list::get(&session, &arguments).await,
        Command::Describe(arguments) => ask::describe(&session, &arguments).await,
        Command::Logs(arguments) => logs::logs(&session, &arguments).await,
        Command::Exec(arguments) => exec::exec(&session, arguments).await,
        Command::Attach(arguments) => exec::attach(&session, arguments).await,
        Command::Why(arguments) => ask::why(&session, &arguments).await,
        Command::Events(arguments) => ask::events(&session, &arguments).await,
        Command::Sql(arguments) => ask::sql(&session, &arguments).await,
        Command::Push(arguments) => artifacts::push(&session, &arguments).await,
        Command::Pull(arguments) => artifacts::pull(&session, &arguments).await,
        Command::Images(arguments) => list::images(&session, &arguments).await,
        Command::Inspect(arguments) => inspect::inspect(&session, &arguments).await,
        Command::Version(arguments) => ask::version(&session, &arguments).await,
        Command::Node(node) => match node.command {
            Some(NodeCommand::Ls(arguments)) => list::nodes(&session, arguments.output).await,
            None => Err(Failure::usage("`brig node` needs --data DIR, or `ls`")),
        },
        // Handled in main, without a control plane.
        Command::Demo(_)
        | Command::Dev(_)
        | Command::Server(_)
        | Command::Schema
        | Command::Completions { .. } => Ok(()),
    }
}

/// Unix milliseconds, for ages.
pub(crate) fn now_ms() -> i64 {
    #[expect(clippy::disallowed_methods, reason = "the command's only look at the clock")]
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH)
        .ok()
        .and_then(|t| i64::try_from(t.as_millis()).ok())
        .unwrap_or(0)
}
