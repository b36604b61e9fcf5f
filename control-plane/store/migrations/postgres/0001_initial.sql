-- The tables of the first version. The same tables and columns as ../sqlite/0001_initial.sql; a test compares them.
--
-- Times are Unix milliseconds; amounts are thousandths of a core, bytes and whole units; `labels`, `template` and
-- other JSON is opaque: what is asked for has a column of its own. `revision` is the one that last changed the row.
-- Texts are compared byte by byte (COLLATE "C"), as SQLite does, whatever the server's language is.

-- One row. `revision` is the cluster's clock; `plan` the newest committed plan; the feed goes on from `feed_start`.
CREATE TABLE cluster (
    id         BIGINT           NOT NULL PRIMARY KEY CHECK (id = 1),
    revision   BIGINT           NOT NULL CHECK (revision >= feed_start),
    plan       BIGINT           NOT NULL CHECK (plan >= 0),
    feed_start BIGINT           NOT NULL CHECK (feed_start >= 0)
);

CREATE TABLE namespaces (
    name               TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    parent             TEXT COLLATE "C"          REFERENCES namespaces (name),
    description        TEXT COLLATE "C" NOT NULL,
    quota_cpu_milli    BIGINT,
    quota_memory_bytes BIGINT,
    quota_disk_bytes   BIGINT,
    quota_scalars      TEXT COLLATE "C",
    revision           BIGINT           NOT NULL,
    created_ms         BIGINT           NOT NULL
);

CREATE TABLE nodes (
    name           TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    state          TEXT COLLATE "C" NOT NULL CHECK (state IN ('ready', 'unreachable')),
    state_since_ms BIGINT           NOT NULL,
    cpu_milli      BIGINT           NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes   BIGINT           NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes     BIGINT           NOT NULL CHECK (disk_bytes >= 0),
    scalars        TEXT COLLATE "C" NOT NULL,
    runs_wasm      BOOLEAN          NOT NULL,
    runs_oci       BOOLEAN          NOT NULL,
    address        TEXT COLLATE "C" NOT NULL,
    agent_version  TEXT COLLATE "C" NOT NULL,
    boot_id        TEXT COLLATE "C" NOT NULL,
    revision       BIGINT           NOT NULL,
    created_ms     BIGINT           NOT NULL
);

CREATE TABLE node_attributes (
    node  TEXT COLLATE "C" NOT NULL REFERENCES nodes (name) ON DELETE CASCADE,
    name  TEXT COLLATE "C" NOT NULL,
    value TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (node, name)
);

-- The request of one unit is in cpu_milli, memory_bytes and disk_bytes.
CREATE TABLE services (
    namespace    TEXT COLLATE "C" NOT NULL REFERENCES namespaces (name),
    name         TEXT COLLATE "C" NOT NULL,
    replicas     BIGINT           NOT NULL CHECK (replicas >= 0),
    generation   BIGINT           NOT NULL CHECK (generation >= 1),
    is_deleting  BOOLEAN          NOT NULL,
    runtime      TEXT COLLATE "C" NOT NULL CHECK (runtime IN ('wasm', 'oci', 'mixed')),
    priority     BIGINT           NOT NULL,
    cpu_milli    BIGINT           NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes BIGINT           NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes   BIGINT           NOT NULL CHECK (disk_bytes >= 0),
    labels       TEXT COLLATE "C" NOT NULL,
    template     TEXT COLLATE "C" NOT NULL,
    revision     BIGINT           NOT NULL,
    created_ms   BIGINT           NOT NULL,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE jobs (
    namespace    TEXT COLLATE "C" NOT NULL REFERENCES namespaces (name),
    name         TEXT COLLATE "C" NOT NULL,
    state        TEXT COLLATE "C" NOT NULL CHECK (state IN ('active', 'succeeded', 'failed', 'stopped')),
    parallelism  BIGINT           NOT NULL CHECK (parallelism >= 1),
    completions  BIGINT           NOT NULL CHECK (completions >= 1),
    retries      BIGINT           NOT NULL CHECK (retries >= 0),
    succeeded    BIGINT           NOT NULL CHECK (succeeded >= 0),
    failed       BIGINT           NOT NULL CHECK (failed >= 0),
    is_deleting  BOOLEAN          NOT NULL,
    runtime      TEXT COLLATE "C" NOT NULL CHECK (runtime IN ('wasm', 'oci', 'mixed')),
    priority     BIGINT           NOT NULL,
    cpu_milli    BIGINT           NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes BIGINT           NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes   BIGINT           NOT NULL CHECK (disk_bytes >= 0),
    labels       TEXT COLLATE "C" NOT NULL,
    template     TEXT COLLATE "C" NOT NULL,
    revision     BIGINT           NOT NULL,
    created_ms   BIGINT           NOT NULL,
    PRIMARY KEY (namespace, name)
);

-- `node` names a node that may be gone by now. `status_sequence` counts the node's reports.
CREATE TABLE units (
    id               TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    namespace        TEXT COLLATE "C" NOT NULL REFERENCES namespaces (name),
    name             TEXT COLLATE "C" NOT NULL,
    owner_kind       TEXT COLLATE "C"          CHECK (owner_kind IN ('service', 'job')),
    owner_name       TEXT COLLATE "C",
    owner_generation BIGINT                    CHECK (owner_generation >= 1),
    owner_index      BIGINT                    CHECK (owner_index >= 0),
    owner_attempt    BIGINT                    CHECK (owner_attempt >= 0),
    desired          TEXT COLLATE "C" NOT NULL CHECK (desired IN ('run', 'stop', 'remove')),
    state            TEXT COLLATE "C" NOT NULL CHECK (state IN ('pending', 'assigned', 'preparing', 'running', 'backoff',
                                                               'stopping', 'succeeded', 'failed', 'stopped', 'lost')),
    reason           TEXT COLLATE "C",
    message          TEXT COLLATE "C",
    node             TEXT COLLATE "C",
    placed_by        BIGINT,
    runtime          TEXT COLLATE "C" NOT NULL CHECK (runtime IN ('wasm', 'oci', 'mixed')),
    priority         BIGINT           NOT NULL,
    cpu_milli        BIGINT           NOT NULL CHECK (cpu_milli >= 0),
    memory_bytes     BIGINT           NOT NULL CHECK (memory_bytes >= 0),
    disk_bytes       BIGINT           NOT NULL CHECK (disk_bytes >= 0),
    restarts         BIGINT           NOT NULL CHECK (restarts >= 0),
    exit_code        BIGINT,
    started_ms       BIGINT,
    finished_ms      BIGINT,
    status_sequence  BIGINT           NOT NULL CHECK (status_sequence >= 0),
    endpoints        TEXT COLLATE "C" NOT NULL,
    remove_when_done BOOLEAN          NOT NULL,
    labels           TEXT COLLATE "C" NOT NULL,
    template         TEXT COLLATE "C" NOT NULL,
    revision         BIGINT           NOT NULL,
    created_ms       BIGINT           NOT NULL,
    UNIQUE (namespace, name),
    CHECK ((owner_kind IS NULL) = (owner_name IS NULL)),
    -- A pending unit has no node; one that is on a node names it.
    CHECK (state <> 'pending' OR node IS NULL),
    CHECK (state NOT IN ('assigned', 'preparing', 'running', 'backoff', 'stopping') OR node IS NOT NULL)
);

CREATE INDEX units_on_node ON units (node, state);
CREATE INDEX units_of_owner ON units (namespace, owner_kind, owner_name);

-- A secret's keys; its texts are apart, in a table that `brig sql` cannot read.
CREATE TABLE secrets (
    namespace  TEXT COLLATE "C" NOT NULL REFERENCES namespaces (name),
    name       TEXT COLLATE "C" NOT NULL,
    keys       TEXT COLLATE "C" NOT NULL,
    revision   BIGINT           NOT NULL,
    created_ms BIGINT           NOT NULL,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE secret_texts (
    namespace TEXT COLLATE "C" NOT NULL,
    name      TEXT COLLATE "C" NOT NULL,
    key       TEXT COLLATE "C" NOT NULL,
    text      TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (namespace, name, key),
    FOREIGN KEY (namespace, name) REFERENCES secrets (namespace, name) ON DELETE CASCADE
);

CREATE TABLE configs (
    namespace  TEXT COLLATE "C" NOT NULL REFERENCES namespaces (name),
    name       TEXT COLLATE "C" NOT NULL,
    data       TEXT COLLATE "C" NOT NULL,
    revision   BIGINT           NOT NULL,
    created_ms BIGINT           NOT NULL,
    PRIMARY KEY (namespace, name)
);

CREATE TABLE artifacts (
    repository TEXT COLLATE "C" NOT NULL,
    tag        TEXT COLLATE "C" NOT NULL,
    digest     TEXT COLLATE "C" NOT NULL,
    media_type TEXT COLLATE "C" NOT NULL,
    kind       TEXT COLLATE "C" NOT NULL CHECK (kind IN ('wasm', 'image', 'index', 'other')),
    size_bytes BIGINT           NOT NULL CHECK (size_bytes >= 0),
    revision   BIGINT           NOT NULL,
    created_ms BIGINT           NOT NULL,
    PRIMARY KEY (repository, tag)
);

-- Every committed plan, numbered without gaps.
CREATE TABLE plans (
    sequence     BIGINT           NOT NULL PRIMARY KEY,
    revision     BIGINT           NOT NULL,
    based_on     BIGINT           NOT NULL,
    decisions    BIGINT           NOT NULL CHECK (decisions >= 0),
    skipped      BIGINT           NOT NULL CHECK (skipped >= 0),
    committed_ms BIGINT           NOT NULL
);

-- Why each unit is where it is: the newest decision.
CREATE TABLE explanations (
    unit_id     TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES units (id) ON DELETE CASCADE,
    plan        BIGINT           NOT NULL,
    decided_ms  BIGINT           NOT NULL,
    verdict     TEXT COLLATE "C" NOT NULL CHECK (verdict IN ('placed', 'refused')),
    node        TEXT COLLATE "C",
    message     TEXT COLLATE "C",
    explanation TEXT COLLATE "C" NOT NULL
);

-- The change feed; `object` is the resource as it was then, and empty when it was deleted.
CREATE TABLE changes (
    revision  BIGINT           NOT NULL,
    position  BIGINT           NOT NULL,
    kind      TEXT COLLATE "C" NOT NULL,
    namespace TEXT COLLATE "C",
    name      TEXT COLLATE "C" NOT NULL,
    object    TEXT COLLATE "C",
    PRIMARY KEY (revision, position)
);

CREATE TABLE events (
    revision  BIGINT           NOT NULL,
    position  BIGINT           NOT NULL,
    time_ms   BIGINT           NOT NULL,
    level     TEXT COLLATE "C" NOT NULL CHECK (level IN ('normal', 'warning')),
    kind      TEXT COLLATE "C" NOT NULL,
    namespace TEXT COLLATE "C",
    name      TEXT COLLATE "C" NOT NULL,
    reason    TEXT COLLATE "C" NOT NULL,
    message   TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (revision, position)
);

CREATE INDEX events_about ON events (kind, name, revision);

-- Who should be doing what until when. Fences nothing.
CREATE TABLE leases (
    name     TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    holder   TEXT COLLATE "C" NOT NULL,
    until_ms BIGINT           NOT NULL
);

-- The namespace of those who name none is there before all history, which begins after revision 1.
INSERT INTO cluster (id, revision, plan, feed_start) VALUES (1, 1, 0, 1);
INSERT INTO namespaces (name, parent, description, revision, created_ms)
VALUES ('default', NULL, '', 1, CAST(EXTRACT(EPOCH FROM now()) * 1000 AS BIGINT));
