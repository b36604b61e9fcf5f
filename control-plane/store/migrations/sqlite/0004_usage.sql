-- What was used: by each unit that is still known, and by each namespace on each day. The same as
-- ../postgres/0004_usage.sql; a test compares them.

CREATE TABLE unit_usage (
    unit_id           TEXT    NOT NULL PRIMARY KEY REFERENCES units (id) ON DELETE CASCADE,
    cpu_ns            INTEGER NOT NULL CHECK (cpu_ns >= 0),
    memory_byte_s     INTEGER NOT NULL CHECK (memory_byte_s >= 0),
    memory_peak_bytes INTEGER NOT NULL CHECK (memory_peak_bytes >= 0),
    throttled_ns      INTEGER NOT NULL CHECK (throttled_ns >= 0),
    updated_ms        INTEGER NOT NULL
) STRICT;

-- Stays when the units and the namespace are gone. `day` is a date of UTC, such as 2026-11-25: the one on which it was told.
CREATE TABLE namespace_usage (
    namespace     TEXT    NOT NULL,
    day           TEXT    NOT NULL,
    cpu_ns        INTEGER NOT NULL CHECK (cpu_ns >= 0),
    memory_byte_s INTEGER NOT NULL CHECK (memory_byte_s >= 0),
    PRIMARY KEY (namespace, day)
) STRICT;
