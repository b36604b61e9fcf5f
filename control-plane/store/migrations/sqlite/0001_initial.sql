-- The tables of the first version. The same tables and columns as ../postgres/0001_initial.sql; a test compares them.
--
-- Times are Unix milliseconds; amounts are thousandths of a core, bytes and whole units; `labels`, `template` and
-- other JSON is opaque: what is asked for has a column of its own. `revision` is the one that last changed the row.

-- One row. `revision` is the cluster's clock; `plan` the newest committed plan; the feed goes on from `feed_start`.
CREATE TABLE cluster (
    id         INTEGER NOT NULL PRIMARY KEY CHECK (id = 1),
    revision   INTEGER NOT NULL CHECK (revision >= feed_start),
    plan       INTEGER NOT NULL CHECK (plan >= 0),
    feed_start INTEGER NOT NULL CHECK (feed_start >= 0)
) STRICT;

CREATE TABLE namespaces (
    name               TEXT    NOT NULL PRIMARY KEY,
    parent             TEXT             REFERENCES namespaces (name),
    description        TEXT    NOT NULL,
    quota_cpu_milli    INTEGER,
    quota_memory_bytes INTEGER,
    quota_disk_bytes   INTEGER,
    quota_scalars      TEXT,
    revision           INTEGER NOT NULL,
    created_ms         INTEGER NOT NULL
) STRICT;

CREATE TABLE nodes (
    name           TEXT    NOT NULL PRIMARY KEY,
    state          TEXT    NOT NULL CHECK (state IN ('ready', 'unreachable')),
    state_since_ms INTEGER NOT NULL,
    cpu_milli      INTEGER NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes   INTEGER NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes     INTEGER NOT NULL CHECK (disk_bytes >= 0),
    scalars        TEXT    NOT NULL,
    runs_wasm      INTEGER NOT NULL CHECK (runs_wasm IN (0, 1)),
    runs_oci       INTEGER NOT NULL CHECK (runs_oci IN (0, 1)),
    address        TEXT    NOT NULL,
    agent_version  TEXT    NOT NULL,
    boot_id        TEXT    NOT NULL,
    revision       INTEGER NOT NULL,
    created_ms     INTEGER NOT NULL
) STRICT;

CREATE TABLE node_attributes (
    node  TEXT NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    name  TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (node, name)
) STRICT;

-- The request of one unit is in cpu_milli, memory_bytes and disk_bytes.
CREATE TABLE services (
    namespace    TEXT    NOT NULL REFERENCES namespaces (name),
    name         TEXT    NOT NULL,
    replicas     INTEGER NOT NULL CHECK (replicas >= 0),
    generation   INTEGER NOT NULL CHECK (generation >= 1),
    is_deleting  INTEGER NOT NULL CHECK (is_deleting IN (0, 1)),
    runtime      TEXT    NOT NULL CHECK (runtime IN ('wasm', 'oci', 'mixed')),
    priority     INTEGER NOT NULL,
    cpu_milli    INTEGER NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes INTEGER NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes   INTEGER NOT NULL CHECK (disk_bytes >= 0),
    labels       TEXT    NOT NULL,
    template     TEXT    NOT NULL,
    revision     INTEGER NOT NULL,
    created_ms   INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;

CREATE TABLE jobs (
    namespace    TEXT    NOT NULL REFERENCES namespaces (name),
    name         TEXT    NOT NULL,
    state        TEXT    NOT NULL CHECK (state IN ('active', 'succeeded', 'failed', 'stopped')),
    parallelism  INTEGER NOT NULL CHECK (parallelism >= 1),
    completions  INTEGER NOT NULL CHECK (completions >= 1),
    retries      INTEGER NOT NULL CHECK (retries >= 0),
    succeeded    INTEGER NOT NULL CHECK (succeeded >= 0),
    failed       INTEGER NOT NULL CHECK (failed >= 0),
    is_deleting  INTEGER NOT NULL CHECK (is_deleting IN (0, 1)),
    runtime      TEXT    NOT NULL CHECK (runtime IN ('wasm', 'oci', 'mixed')),
    priority     INTEGER NOT NULL,
    cpu_milli    INTEGER NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes INTEGER NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes   INTEGER NOT NULL CHECK (disk_bytes >= 0),
    labels       TEXT    NOT NULL,
    template     TEXT    NOT NULL,
    revision     INTEGER NOT NULL,
    created_ms   INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;

-- `node` names a node that may be gone by now. `status_sequence` counts the node's reports.
CREATE TABLE units (
    id               TEXT    NOT NULL PRIMARY KEY,
    namespace        TEXT    NOT NULL REFERENCES namespaces (name),
    name             TEXT    NOT NULL,
    owner_kind       TEXT             CHECK (owner_kind IN ('service', 'job')),
    owner_name       TEXT,
    owner_generation INTEGER          CHECK (owner_generation >= 1),
    owner_index      INTEGER          CHECK (owner_index >= 0),
    owner_attempt    INTEGER          CHECK (owner_attempt >= 0),
    desired          TEXT    NOT NULL CHECK (desired IN ('run', 'stop', 'remove')),
    state            TEXT    NOT NULL CHECK (state IN ('pending', 'assigned', 'preparing', 'running', 'backoff',
                                                       'stopping', 'succeeded', 'failed', 'stopped', 'lost')),
    reason           TEXT,
    message          TEXT,
    node             TEXT,
    placed_by        INTEGER,
    runtime          TEXT    NOT NULL CHECK (runtime IN ('wasm', 'oci', 'mixed')),
    priority         INTEGER NOT NULL,
    cpu_milli        INTEGER NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes     INTEGER NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes       INTEGER NOT NULL CHECK (disk_bytes >= 0),
    restarts         INTEGER NOT NULL CHECK (restarts >= 0),
    exit_code        INTEGER,
    started_ms       INTEGER,
    finished_ms      INTEGER,
    status_sequence  INTEGER NOT NULL CHECK (status_sequence >= 0),
    endpoints        TEXT    NOT NULL,
    remove_when_done INTEGER NOT NULL CHECK (remove_when_done IN (0, 1)),
    labels           TEXT    NOT NULL,
    template         TEXT    NOT NULL,
    revision         INTEGER NOT NULL,
    created_ms       INTEGER NOT NULL,
    UNIQUE (namespace, name),
    CHECK ((owner_kind IS NULL) = (owner_name IS NULL)),
    -- A pending unit has no node; one that is on a node names it.
    CHECK (state <> 'pending' OR node IS NULL),
    CHECK (state NOT IN ('assigned', 'preparing', 'running', 'backoff', 'stopping') OR node IS NOT NULL)
) STRICT;

CREATE INDEX units_on_node ON units (node, state);
CREATE INDEX units_of_owner ON units (namespace, owner_kind, owner_name);

-- A secret's keys; its texts are apart, in a table that `brig sql` cannot read.
CREATE TABLE secrets (
    namespace  TEXT    NOT NULL REFERENCES namespaces (name),
    name       TEXT    NOT NULL,
    keys       TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;

CREATE TABLE secret_texts (
    namespace TEXT NOT NULL,
    name      TEXT NOT NULL,
    key       TEXT NOT NULL,
    text      TEXT NOT NULL,
    PRIMARY KEY (namespace, name, key),
    FOREIGN KEY (namespace, name) REFERENCES secrets (namespace, name) ON DELETE CASCADE
) STRICT;

CREATE TABLE configs (
    namespace  TEXT    NOT NULL REFERENCES namespaces (name),
    name       TEXT    NOT NULL,
    data       TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (namespace, name)
) STRICT;

CREATE TABLE artifacts (
    repository TEXT    NOT NULL,
    tag        TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    media_type TEXT    NOT NULL,
    kind       TEXT    NOT NULL CHECK (kind IN ('wasm', 'image', 'index', 'other')),
    size_bytes INTEGER NOT NULL CHECK (size_bytes >= 0),
    revision   INTEGER NOT NULL,
    created_ms INTEGER NOT NULL,
    PRIMARY KEY (repository, tag)
) STRICT;

-- Every committed plan, numbered without gaps.
CREATE TABLE plans (
    sequence     INTEGER NOT NULL PRIMARY KEY,
    revision     INTEGER NOT NULL,
    based_on     INTEGER NOT NULL,
    decisions    INTEGER NOT NULL CHECK (decisions >= 0),
    skipped      INTEGER NOT NULL CHECK (skipped >= 0),
    committed_ms INTEGER NOT NULL
) STRICT;

-- Why each unit is where it is: the newest decision.
CREATE TABLE explanations (
    unit_id     TEXT    NOT NULL PRIMARY KEY REFERENCES units (id) ON DELETE CASCADE,
    plan        INTEGER NOT NULL,
    decided_ms  INTEGER NOT NULL,
    verdict     TEXT    NOT NULL CHECK (verdict IN ('placed', 'refused')),
    node        TEXT,
    message     TEXT,
    explanation TEXT    NOT NULL
) STRICT;

-- The change feed; `object` is the resource as it was then, and empty when it was deleted.
CREATE TABLE changes (
    revision  INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    kind      TEXT    NOT NULL,
    namespace TEXT,
    name      TEXT    NOT NULL,
    object    TEXT,
    PRIMARY KEY (revision, position)
) STRICT;

CREATE TABLE events (
    revision  INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    time_ms   INTEGER NOT NULL,
    level     TEXT    NOT NULL CHECK (level IN ('normal', 'warning')),
    kind      TEXT    NOT NULL,
    namespace TEXT,
    name      TEXT    NOT NULL,
    reason    TEXT    NOT NULL,
    message   TEXT    NOT NULL,
    PRIMARY KEY (revision, position)
) STRICT;

CREATE INDEX events_about ON events (kind, name, revision);

-- Who should be doing what until when. Fences nothing.
CREATE TABLE leases (
    name     TEXT    NOT NULL PRIMARY KEY,
    holder   TEXT    NOT NULL,
    until_ms INTEGER NOT NULL
) STRICT;

-- The namespace of those who name none is there before all history, which begins after revision 1.
INSERT INTO cluster (id, revision, plan, feed_start) VALUES (1, 1, 0, 1);
INSERT INTO namespaces (name, parent, description, revision, created_ms)
VALUES ('default', NULL, '', 1, CAST(unixepoch('subsec') * 1000 AS INTEGER));
