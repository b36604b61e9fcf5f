//! The command line: every command and flag, and the help that people read.

use std::net::SocketAddr;
use std::path::PathBuf;

use brig_api::constraint::Constraint;
use brig_api::facts::Devices;
use brig_api::placement::Taint;
use brig_api::simulate::{Growth, Loss};
use brig_api::unit_spec::Runtime;
use brig_api::{Bytes, MilliCpu, NamespacePath, NodeName, ResourceName};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// The address that a control plane listens on, and that the command talks to, where none is named.
pub(crate) const LISTEN_DEFAULT: &str = "127.0.0.1:7117";

/// Runs WebAssembly and containers on one pool of machines.
#[derive(Debug, Parser)]
#[command(name = "brig", version, propagate_version = true, max_term_width = 100)]
pub(crate) struct Arguments {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Flags that every command takes.
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Control plane to talk to [default: the context's, else http://127.0.0.1:7117]
    #[arg(long, global = true, env = "BRIG_SERVER", value_name = "URL")]
    pub(crate) server: Option<String>,
    /// Token that proves who you are
    #[arg(long, global = true, env = "BRIG_TOKEN", value_name = "TOKEN", hide_env_values = true)]
    pub(crate) token: Option<String>,
    /// Namespace to work in [default: the context's; lists show all, other commands use `default`]
    #[arg(short, long, global = true, env = "BRIG_NAMESPACE", value_name = "NAMESPACE")]
    pub(crate) namespace: Option<NamespacePath>,
    /// Context of the configuration file to use [default: its `current`]
    #[arg(long, global = true, env = "BRIG_CONTEXT", value_name = "NAME")]
    pub(crate) context: Option<String>,
    /// When to use colour
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub(crate) color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Color {
    /// On a terminal, unless NO_COLOR is set
    #[default]
    Auto,
    Always,
    Never,
}

/// How to print.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub(crate) enum Output {
    /// A table for people
    #[default]
    Table,
    /// A table with more columns
    Wide,
    Json,
    Yaml,
    /// KIND/NAME, one a line
    Name,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// See it all at work: a control plane, a node, and a mixed workload in a temporary directory
    Demo(Demo),
    /// Run a control plane and a node here, in the foreground
    Dev(Dev),
    /// Run a control plane
    Server(Server),
    /// Run a node, or look at nodes
    #[command(args_conflicts_with_subcommands = true)]
    Node(Node),

    /// Run a program and show its output
    Run(Run),
    /// Deploy a program as a service
    Deploy(Deploy),
    /// Create or change resources from manifests
    Apply(Apply),
    /// Show what `apply` would do, and where the units would go
    Plan(Apply),
    /// Say what would happen if nodes were lost or units arrived, on a copy of the cluster; ends with 6 if not all would fit
    Simulate(Simulate),
    /// Change the number of a service's units
    Scale(Scale),
    /// Stop a unit or job; it stays listed
    Stop(Target),
    /// Delete resources
    Delete(Delete),

    /// List units
    Ps(Ps),
    /// Show resources
    Get(Get),
    /// Show everything about one resource
    Describe(Target),
    /// Show the output of a unit, or of every unit of a service or job
    Logs(Logs),
    /// Run a command inside a running container
    Exec(Exec),
    /// Send a running unit its standard input; its output is in `brig logs`
    Attach(Attach),
    /// Say why a unit is where it is, or is nowhere yet
    Why(Why),
    /// Show what happened
    Events(Events),
    /// Ask the cluster's database: SELECT only
    Sql(Sql),

    /// Upload a .wasm file or an OCI image layout (directory or tar) to the built-in registry
    Push(Push),
    /// Download an artifact: a .wasm file, or an OCI image layout
    Pull(Pull),
    /// List the artifacts of the built-in registry
    Images(Images),
    /// Show what a .wasm file or an artifact is, what it needs, and whether it can run
    Inspect(Inspect),

    /// Print the JSON Schema of manifests
    Schema,
    /// Print the versions of this command and of the server
    Version(OutputOnly),
    /// Print a completion script for your shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub(crate) struct Demo {
    /// Keep everything running at the end, until Ctrl-C
    #[arg(long)]
    pub(crate) keep: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Dev {
    /// Directory for everything that is kept [default: ~/.local/share/brig/dev]
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// Address of the API and registry; port 0 picks a free one
    #[arg(long, value_name = "ADDR", default_value = LISTEN_DEFAULT)]
    pub(crate) listen: SocketAddr,
    /// Database [default: SQLite in the data directory]
    #[arg(long, value_name = "URL")]
    pub(crate) db: Option<String>,
    /// Keep units away that do not tolerate it: KEY=VALUE:EFFECT or KEY:EFFECT, the effect one of no-schedule,
    /// prefer-not and evict; may be repeated
    #[arg(long, value_name = "KEY=VALUE:EFFECT")]
    pub(crate) taint: Vec<Taint>,
    /// Devices of a named resource that the node has, such as gpu=4; may be repeated
    #[arg(long, value_name = "NAME=COUNT")]
    pub(crate) resource: Vec<Devices>,
}

#[derive(Debug, Args)]
pub(crate) struct Server {
    /// Database: sqlite:PATH or postgres://… [default: SQLite in the data directory]
    #[arg(long, value_name = "URL")]
    pub(crate) db: Option<String>,
    /// Directory for the registry's blobs
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Address of the API and registry; port 0 picks a free one. One that is not loopback needs --token
    #[arg(long, value_name = "ADDR", default_value = LISTEN_DEFAULT)]
    pub(crate) listen: SocketAddr,
}

#[derive(Debug, Args)]
pub(crate) struct Node {
    #[command(subcommand)]
    pub(crate) command: Option<NodeCommand>,
    #[command(flatten)]
    pub(crate) agent: Option<NodeAgent>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum NodeCommand {
    /// List nodes
    Ls(OutputOnly),
}

#[derive(Debug, Args)]
pub(crate) struct NodeAgent {
    /// Directory for everything that is kept
    #[arg(long, value_name = "DIR")]
    pub(crate) data: PathBuf,
    /// Name of the node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<NodeName>,
    /// Token that lets the node join [default: --token]
    #[arg(long, value_name = "TOKEN", hide_env_values = true, env = "BRIG_JOIN_TOKEN")]
    pub(crate) join: Option<String>,
    /// Address under which others reach the node's units
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub(crate) address: std::net::IpAddr,
    /// Attribute for constraints, such as zone=a; may be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) attribute: Vec<(String, String)>,
    /// Keep units away that do not tolerate it: KEY=VALUE:EFFECT or KEY:EFFECT, the effect one of no-schedule,
    /// prefer-not and evict; may be repeated
    #[arg(long, value_name = "KEY=VALUE:EFFECT")]
    pub(crate) taint: Vec<Taint>,
    /// Devices of a named resource that the node has, such as gpu=4; may be repeated
    #[arg(long, value_name = "NAME=COUNT")]
    pub(crate) resource: Vec<Devices>,
    /// Host directory that units may mount (and those below it); may be repeated. None by default
    #[arg(long, value_name = "DIR")]
    pub(crate) host_path: Vec<PathBuf>,
    /// Offer this runtime; may be repeated [default: every one that the machine can run]
    #[arg(long, value_enum, value_name = "RUNTIME")]
    pub(crate) runtime: Vec<RuntimeFlag>,
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Remove the unit when it has ended
    #[arg(long)]
    pub(crate) rm: bool,
    /// Do not wait: print the unit's name
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Pass standard input on, which is empty otherwise (wasm); with --detach keep it open for `brig attach`
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// Name of the unit [default: made from the artifact's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<ResourceName>,
    #[command(flatten)]
    pub(crate) program: ProgramFlags,
    /// A .wasm file, an OCI image layout (directory or tar), or a reference
    pub(crate) artifact: String,
    /// Arguments for the program
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

/// What `run` and `deploy` share.
#[derive(Debug, Args)]
pub(crate) struct ProgramFlags {
    /// Processor share to set aside, such as 250m or 2
    #[arg(long, value_name = "CPU")]
    pub(crate) cpu: Option<MilliCpu>,
    /// Memory to set aside, which is also the limit, such as 64Mi
    #[arg(long, value_name = "BYTES")]
    pub(crate) memory: Option<Bytes>,
    /// Environment variable; may be repeated
    #[arg(short, long, value_name = "KEY=VALUE", value_parser = key_value)]
    pub(crate) env: Vec<(String, String)>,
    /// Give it a directory: HOST:GUEST or HOST:GUEST:ro; may be repeated
    #[arg(long, value_name = "HOST:GUEST[:ro]")]
    pub(crate) dir: Vec<String>,
    /// Allow outgoing HTTP requests to this host (wasm); may be repeated
    #[arg(long, value_name = "HOST")]
    pub(crate) allow_host: Vec<String>,
    /// The reference names an image or a wasm artifact of another registry, where that can't be seen
    #[arg(long, value_enum, value_name = "RUNTIME")]
    pub(crate) runtime: Option<RuntimeFlag>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeFlag {
    Wasm,
    Oci,
}

impl From<RuntimeFlag> for Runtime {
    fn from(flag: RuntimeFlag) -> Self {
        match flag {
            RuntimeFlag::Wasm => Self::Wasm,
            RuntimeFlag::Oci => Self::Oci,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Deploy {
    /// A .wasm file, an OCI image layout (directory or tar), or a reference
    pub(crate) artifact: String,
    /// Name of the service [default: made from the artifact's]
    #[arg(long, value_name = "NAME")]
    pub(crate) name: Option<ResourceName>,
    /// It is a wasi:http component: serve requests
    #[arg(long)]
    pub(crate) http: bool,
    /// Port to listen on [default: a free one; with several units all share it]
    #[arg(long, value_name = "PORT")]
    pub(crate) port: Option<u16>,
    /// How many units
    #[arg(long, default_value_t = 1, value_name = "N")]
    pub(crate) replicas: u32,
    #[command(flatten)]
    pub(crate) program: ProgramFlags,
    /// Do not wait until the units run
    #[arg(short, long)]
    pub(crate) detach: bool,
    /// Arguments for the program
    #[arg(last = true)]
    pub(crate) args: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// Manifest file (YAML, TOML or JSON), directory of them, or - for standard input; may be repeated
    #[arg(short, long = "file", value_name = "PATH", required = true)]
    pub(crate) files: Vec<PathBuf>,
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Simulate {
    /// Lose a node, or every node that meets a constraint such as rack=r1, 'zone in a,b' or 'ssd not exists'; may be
    /// repeated
    #[arg(long, value_name = "NODE|CONSTRAINT", value_parser = loss)]
    pub(crate) lose: Vec<Loss>,
    /// Let these manifests arrive (YAML, TOML or JSON; file, directory, or - for standard input); may be repeated
    #[arg(short, long = "file", value_name = "PATH")]
    pub(crate) files: Vec<PathBuf>,
    /// So many of each unit, service and job in the files, as new ones with names of their own [default: apply them once, as
    /// they stand]
    #[arg(long, value_name = "N", requires = "files")]
    pub(crate) count: Option<u32>,
    /// Let so many nodes like this one join, such as 3=node-1; may be repeated
    #[arg(long, value_name = "N=NODE", value_parser = growth)]
    pub(crate) grow: Vec<Growth>,
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Scale {
    /// The service
    pub(crate) service: String,
    /// How many units
    #[arg(long, value_name = "N")]
    pub(crate) replicas: u32,
}

#[derive(Debug, Args)]
pub(crate) struct Target {
    /// KIND/NAME, or the name of a unit
    pub(crate) target: String,
}

#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// KIND/NAME, or the names of units
    #[arg(required_unless_present = "files")]
    pub(crate) targets: Vec<String>,
    /// Delete what these manifests name
    #[arg(short, long = "file", value_name = "PATH", conflicts_with = "targets")]
    pub(crate) files: Vec<PathBuf>,
    /// Do not wait until they are gone
    #[arg(short, long)]
    pub(crate) detach: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Ps {
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
    /// Go on printing units as they change
    #[arg(short, long)]
    pub(crate) watch: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Get {
    /// namespaces, nodes, services, jobs, units, secrets, configs or artifacts; or KIND/NAME
    pub(crate) kind: String,
    /// One of them
    pub(crate) name: Option<String>,
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// A unit's name, service/NAME or job/NAME
    pub(crate) target: String,
    /// Go on as more comes
    #[arg(short, long)]
    pub(crate) follow: bool,
    /// Only the last so many lines
    #[arg(long, value_name = "N")]
    pub(crate) tail: Option<u32>,
    /// Only this task
    #[arg(long, value_name = "TASK")]
    pub(crate) task: Option<ResourceName>,
    /// The time in front of each line
    #[arg(long)]
    pub(crate) timestamps: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Give it a terminal
    #[arg(short, long)]
    pub(crate) tty: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub(crate) interactive: bool,
    /// In this task [default: the first]
    #[arg(long, value_name = "TASK")]
    pub(crate) task: Option<ResourceName>,
    /// The unit
    pub(crate) unit: String,
    /// The command
    #[arg(last = true, required = true)]
    pub(crate) command: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    /// To this task [default: the first]
    #[arg(long, value_name = "TASK")]
    pub(crate) task: Option<ResourceName>,
    /// The unit; it was started by `brig run --interactive`, or has `stdin: true`
    pub(crate) unit: String,
}

#[derive(Debug, Args)]
pub(crate) struct Why {
    /// The unit; for service/NAME or job/NAME every unit that waits
    pub(crate) target: String,
    /// Ask this node alone: could the unit go there, and if not, what is in the way?
    #[arg(long, value_name = "NODE")]
    pub(crate) node: Option<NodeName>,
    /// The decisions that are kept, newest first
    #[arg(long, conflicts_with = "node")]
    pub(crate) history: bool,
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Only about this: KIND/NAME, or the name of a unit
    pub(crate) target: Option<String>,
    /// Only the last so many
    #[arg(long, default_value_t = 100, value_name = "N")]
    pub(crate) tail: u32,
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Sql {
    /// The query
    pub(crate) query: String,
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Push {
    /// A .wasm file, or an OCI image layout (directory or tar)
    pub(crate) path: PathBuf,
    /// Where to, such as team-a/shop:1.4
    pub(crate) reference: String,
}

#[derive(Debug, Args)]
pub(crate) struct Pull {
    /// What, such as team-a/shop:1.4
    pub(crate) reference: String,
    /// File or directory to write [default: made from the reference]
    pub(crate) path: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Images {
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// A .wasm file, or a reference of the built-in registry
    pub(crate) artifact: String,
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

#[derive(Debug, Args)]
pub(crate) struct OutputOnly {
    #[arg(short, long, value_enum, default_value_t)]
    pub(crate) output: Output,
}

/// What is no name of a node is a constraint.
fn loss(text: &str) -> Result<Loss, String> {
    if let Ok(node) = NodeName::new(text) {
        return Ok(Loss { node: Some(node), constraints: Vec::new() });
    }
    let constraint: Constraint =
        text.parse().map_err(|error| format!("no name of a node, and {error}"))?;
    Ok(Loss { node: None, constraints: vec![constraint] })
}

fn growth(text: &str) -> Result<Growth, String> {
    let (count, like) = text.split_once('=').ok_or("expected N=NODE, such as 3=node-1")?;
    let count: u32 =
        count.parse().map_err(|error| format!("`{count}` is no number of nodes: {error}"))?;
    Ok(Growth { like: NodeName::new(like).map_err(|error| error.to_string())?, count })
}

fn key_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("expected KEY=VALUE".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn node_is_an_agent_or_a_list() {
        let agent = Arguments::parse_from(["brig", "node", "--data", "/x", "--server", "http://a"]);
        assert!(matches!(agent.command, Command::Node(Node { command: None, agent: Some(_) })));
        let flags =
            ["--taint", "gpu=yes:no-schedule", "--taint", "spot:evict", "--resource", "gpu=4"];
        let agent = Arguments::parse_from(["brig", "node", "--data", "/x"].iter().chain(&flags));
        let Command::Node(Node { agent: Some(agent), .. }) = agent.command else {
            panic!("an agent")
        };
        assert_eq!(agent.taint[1].to_string(), "spot:evict");
        assert_eq!((agent.resource[0].name.as_str(), agent.resource[0].amount.0), ("gpu", 4_000));
        let dev = Arguments::parse_from(["brig", "dev"].iter().chain(&flags));
        assert!(matches!(dev.command, Command::Dev(dev) if dev.taint.len() == 2));
        for bad in [["--taint", "gpu:never"], ["--resource", "cpu=1"]] {
            let bad =
                Arguments::try_parse_from(["brig", "node", "--data", "/x"].iter().chain(&bad));
            assert!(bad.is_err());
        }
        let list = Arguments::parse_from(["brig", "node", "ls", "-o", "json"]);
        assert!(matches!(
            list.command,
            Command::Node(Node { command: Some(NodeCommand::Ls(_)), .. })
        ));
    }
}
