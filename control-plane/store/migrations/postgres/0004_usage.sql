-- What was used: by each unit that is still known, and by each namespace on each day. The same as
-- ../sqlite/0004_usage.sql; a test compares them.

CREATE TABLE unit_usage (
    unit_id           TEXT COLLATE "C" NOT NULL PRIMARY KEY REFERENCES units (id) ON DELETE CASCADE,
    cpu_ns            BIGINT           NOT NULL CHECK (cpu_ns >= 0),
    memory_byte_s     BIGINT           NOT NULL CHECK (memory_byte_s >= 0),
    memory_peak_bytes BIGINT           NOT NULL CHECK (memory_peak_bytes >= 0),
    throttled_ns      BIGINT           NOT NULL CHECK (throttled_ns >= 0),
    updated_ms        BIGINT           NOT NULL
);

-- Stays when the units and the namespace are gone. `day` is a date of UTC, such as 2026-11-25: the one on which it was told.
CREATE TABLE namespace_usage (
    namespace     TEXT COLLATE "C" NOT NULL,
    day           TEXT COLLATE "C" NOT NULL,
    cpu_ns        BIGINT           NOT NULL CHECK (cpu_ns >= 0),
    memory_byte_s BIGINT           NOT NULL CHECK (memory_byte_s >= 0),
    PRIMARY KEY (namespace, day)
);
