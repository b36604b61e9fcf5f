-- What the scheduler knows and decides besides room: guarantees, weights and limits of namespaces, taints, promises,
-- grants, and a history of explanations. The same as ../postgres/0002_scheduling.sql; a test compares them.
--
-- Named resources (`scalars`) are texts such as "2" or "500m" from here on; the plain numbers of older rows mean whole
-- ones, as before.

ALTER TABLE namespaces ADD COLUMN guarantee_cpu_milli INTEGER;
ALTER TABLE namespaces ADD COLUMN guarantee_memory_bytes INTEGER;
ALTER TABLE namespaces ADD COLUMN guarantee_disk_bytes INTEGER;
ALTER TABLE namespaces ADD COLUMN guarantee_scalars TEXT;
ALTER TABLE namespaces ADD COLUMN weight INTEGER CHECK (weight >= 1);
ALTER TABLE namespaces ADD COLUMN max_units INTEGER CHECK (max_units >= 0);
ALTER TABLE namespaces ADD COLUMN max_services INTEGER CHECK (max_services >= 0);
ALTER TABLE namespaces ADD COLUMN max_jobs INTEGER CHECK (max_jobs >= 0);

ALTER TABLE nodes ADD COLUMN taints TEXT NOT NULL DEFAULT '[]';
ALTER TABLE nodes ADD COLUMN volumes TEXT NOT NULL DEFAULT '[]';

ALTER TABLE services ADD COLUMN max_unavailable INTEGER NOT NULL DEFAULT 1 CHECK (max_unavailable >= 0);

ALTER TABLE jobs ADD COLUMN retry_after_ms INTEGER CHECK (retry_after_ms >= 0);

-- `promised` is the node that others leave to make room for the unit, `grants` what its placement gave it besides room.
ALTER TABLE units ADD COLUMN promised TEXT;
ALTER TABLE units ADD COLUMN grants TEXT NOT NULL DEFAULT '{}';
ALTER TABLE units ADD COLUMN placed_ms INTEGER;
ALTER TABLE units ADD COLUMN is_revocable INTEGER NOT NULL DEFAULT 0 CHECK (is_revocable IN (0, 1));
ALTER TABLE units ADD COLUMN gang TEXT;

-- Why each unit is where it is: the newest decisions about it, one for each plan that decided.
ALTER TABLE explanations RENAME TO explanations_of_one;
CREATE TABLE explanations (
    unit_id     TEXT    NOT NULL REFERENCES units (id) ON DELETE CASCADE,
    plan        INTEGER NOT NULL,
    decided_ms  INTEGER NOT NULL,
    policy      TEXT    NOT NULL,
    verdict     TEXT    NOT NULL CHECK (verdict IN ('placed', 'refused')),
    node        TEXT,
    message     TEXT,
    explanation TEXT    NOT NULL,
    PRIMARY KEY (unit_id, plan)
) STRICT;
INSERT INTO explanations (unit_id, plan, decided_ms, policy, verdict, node, message, explanation)
SELECT unit_id, plan, decided_ms, '', verdict, node, message, explanation FROM explanations_of_one;
DROP TABLE explanations_of_one;
