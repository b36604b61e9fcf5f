-- What wasm programs saved to go on from: of each task the newest. The same as ../postgres/0005_checkpoints.sql; a test
-- compares them.

CREATE TABLE unit_checkpoints (
    unit_id  TEXT    NOT NULL REFERENCES units (id) ON DELETE CASCADE,
    task     TEXT    NOT NULL,
    number   INTEGER NOT NULL CHECK (number >= 0),
    saved_ms INTEGER NOT NULL,
    bytes    INTEGER NOT NULL CHECK (bytes >= 0),
    PRIMARY KEY (unit_id, task)
) STRICT;

-- Apart from the others, for a state may be anything, a secret too: no question may read it.
CREATE TABLE checkpoint_states (
    unit_id TEXT NOT NULL,
    task    TEXT NOT NULL,
    state   BLOB NOT NULL,
    PRIMARY KEY (unit_id, task),
    FOREIGN KEY (unit_id, task) REFERENCES unit_checkpoints (unit_id, task) ON DELETE CASCADE
) STRICT;
