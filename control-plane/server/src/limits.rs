//! Every limit and time-out of the server, by name, with its reason. Those that both sides of a wire must know
//! are in `brig_api::request` and `brig_api::session`.

use std::time::Duration;

/// Most open connections. Each watch, log and node session holds one; beyond this, callers wait in the
/// listener's backlog instead of costing memory.
pub(crate) const CONNECTIONS_MAX: usize = 4_096;
/// Time for a request's head to arrive: a slow one would hold a connection for nothing.
pub(crate) const HEAD_TIME_MAX: Duration = Duration::from_secs(10);
/// A peer that says nothing is asked whether it is there after this time, and again after it.
pub(crate) const KEEPALIVE_PERIOD: Duration = Duration::from_secs(30);
/// Questions without an answer after which a peer counts as gone.
pub(crate) const KEEPALIVES_MAX: u32 = 4;
/// Time for a request that is no stream, its body included.
pub(crate) const REQUEST_TIME_MAX: Duration = Duration::from_secs(30);
/// Time for open requests to finish when the server stops.
pub(crate) const DRAIN_TIME_MAX: Duration = Duration::from_secs(3);
/// Pause after a failed accept (out of file descriptors, say), so that the loop does not spin.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Batches of changes kept in memory for readers of the feed; who falls further behind reads from SQL.
pub(crate) const FEED_BATCHES_MAX: usize = 256;
/// Changes read from SQL at a time.
pub(crate) const FEED_READ_MAX: usize = 1_000;
/// How often a PostgreSQL database is asked for what other servers committed.
pub(crate) const FEED_POLL: Duration = Duration::from_millis(250);
/// Pause after the feed could not be read.
pub(crate) const FEED_PAUSE: Duration = Duration::from_millis(200);
/// Revisions kept for watches that resume: some hours of a busy cluster.
pub(crate) const REVISIONS_KEPT: u64 = 100_000;
/// How often the feed is trimmed to that.
pub(crate) const TRIM_PERIOD: Duration = Duration::from_secs(60);
/// A comment on an idle watch, so that both sides notice a dead connection.
pub(crate) const WATCH_KEEPALIVE: Duration = Duration::from_secs(10);

/// Rows that an SQL query gives out.
pub(crate) const SQL_ROWS_MAX: usize = 10_000;
/// Events given out where the query names no number; the store has a limit for larger ones.
pub(crate) const EVENTS_DEFAULT: u32 = 200;

/// Pause after a failed pass of the conductor; doubles up to [`CONDUCTOR_PAUSE_MAX`].
pub(crate) const CONDUCTOR_PAUSE_MIN: Duration = Duration::from_millis(20);
/// See [`CONDUCTOR_PAUSE_MIN`].
pub(crate) const CONDUCTOR_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Passes in a row that commit something; beyond it there is a pause between passes, so that two rules that undo
/// one another cannot keep the database busy.
pub(crate) const PASSES_IN_A_ROW_MAX: u32 = 20;
/// Units in the model up to which a pass runs on the spot; larger ones get a thread that may block.
pub(crate) const INLINE_UNITS_MAX: usize = 500;
/// Longest rest of the conductor after a pass, however long that took: see [`crate::conductor`].
pub(crate) const PASS_REST_MAX: Duration = Duration::from_millis(100);
/// Questions about the model that wait for the end of a pass; beyond it who asks waits to ask.
pub(crate) const QUESTIONS_MAX: usize = 64;
/// Simulations at a time: each takes a copy of the model, some 130 MiB for 300,000 units, and a processor.
pub(crate) const SIMULATIONS_MAX: usize = 1;
/// For how long the lease that says who plans is taken.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// How often it is renewed, or tried for.
pub(crate) const LEASE_RENEWAL: Duration = Duration::from_secs(3);

/// Time for a node's first message.
pub(crate) const HELLO_TIME_MAX: Duration = Duration::from_secs(10);
/// How long a node waits for a server that has just started to take the lease, before it is sent elsewhere.
pub(crate) const LEAD_TIME_MAX: Duration = Duration::from_secs(1);
/// Ended units of which a node that connects is told, so that it keeps their logs: what a message has room for.
pub(crate) const ENDED_UNITS_MAX: usize = 1_000;
/// Bytes of assignments in one message to a node, where there are several: they are told in so many messages. Far
/// below what a message may have, and sent well within [`SEND_TIME_MAX`] on a slow line.
pub(crate) const ASSIGNMENTS_BYTES_MAX: usize = 4 << 20;
/// Time for one message to a node to leave; a node that reads slower is cut off and comes back.
pub(crate) const SEND_TIME_MAX: Duration = Duration::from_secs(10);
/// Buffer for what a node says, in bytes. There is one for each node as long as it is connected, and most say little; the
/// library's own choice is 128 KiB.
pub(crate) const SESSION_READ_BYTES: usize = 8 << 10;
/// Messages that wait for one node.
pub(crate) const SESSION_QUEUE_MAX: usize = 64;
/// Transactions with news for one node that wait for its session; a node that falls further behind is cut off and comes
/// back for the whole.
pub(crate) const MAILBOX_MAX: usize = 256;
/// Requests to open a stream that wait for one node.
pub(crate) const COMMAND_QUEUE_MAX: usize = 256;
/// Time for a node to dial back for a stream.
pub(crate) const DIAL_TIME_MAX: Duration = Duration::from_secs(10);
/// Streams that wait for a node to dial back, over all nodes.
pub(crate) const STREAMS_WAITING_MAX: usize = 1_024;
/// Time for the first message of an exec.
pub(crate) const EXEC_REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Largest first message of an exec, in bytes: arguments may be long.
pub(crate) const EXEC_REQUEST_BYTES_MAX: usize = 1 << 20;
/// Largest message of a log stream, in bytes: a batch of lines.
pub(crate) const LOG_MESSAGE_BYTES_MAX: usize = 1 << 20;

/// How often artifacts that nothing names are swept from the registry.
pub(crate) const GARBAGE_PERIOD: Duration = Duration::from_secs(3_600);
/// They must have been there for this long: a push sends blobs first and the manifest last.
pub(crate) const GARBAGE_AGE: Duration = Duration::from_secs(24 * 3_600);
