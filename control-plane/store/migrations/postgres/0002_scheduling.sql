-- What the scheduler knows and decides besides room: guarantees, weights and limits of namespaces, taints, promises,
-- grants, and a history of explanations. The same as ../sqlite/0002_scheduling.sql; a test compares them.
--
-- Named resources (`scalars`) are texts such as "2" or "500m" from here on; the plain numbers of older rows mean whole
-- ones, as before.

ALTER TABLE namespaces ADD COLUMN guarantee_cpu_milli BIGINT;
ALTER TABLE namespaces ADD COLUMN guarantee_memory_bytes BIGINT;
ALTER TABLE namespaces ADD COLUMN guarantee_disk_bytes BIGINT;
ALTER TABLE namespaces ADD COLUMN guarantee_scalars TEXT COLLATE "C";
ALTER TABLE namespaces ADD COLUMN weight BIGINT CHECK (weight >= 1);
ALTER TABLE namespaces ADD COLUMN max_units BIGINT CHECK (max_units >= 0);
ALTER TABLE namespaces ADD COLUMN max_services BIGINT CHECK (max_services >= 0);
ALTER TABLE namespaces ADD COLUMN max_jobs BIGINT CHECK (max_jobs >= 0);

ALTER TABLE nodes ADD COLUMN taints TEXT COLLATE "C" NOT NULL DEFAULT '[]';
ALTER TABLE nodes ADD COLUMN volumes TEXT COLLATE "C" NOT NULL DEFAULT '[]';

ALTER TABLE services ADD COLUMN max_unavailable BIGINT NOT NULL DEFAULT 1 CHECK (max_unavailable >= 0);

ALTER TABLE jobs ADD COLUMN retry_after_ms BIGINT CHECK (retry_after_ms >= 0);

-- `promised` is the node that others leave to make room for the unit, `grants` what its placement gave it besides room.
ALTER TABLE units ADD COLUMN promised TEXT COLLATE "C";
ALTER TABLE units ADD COLUMN grants TEXT COLLATE "C" NOT NULL DEFAULT '{}';
ALTER TABLE units ADD COLUMN placed_ms BIGINT;
ALTER TABLE units ADD COLUMN is_revocable BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE units ADD COLUMN gang TEXT COLLATE "C";

-- Why each unit is where it is: the newest decisions about it, one for each plan that decided.
ALTER TABLE explanations RENAME TO explanations_of_one;
CREATE TABLE explanations (
    unit_id     TEXT COLLATE "C" NOT NULL REFERENCES units (id) ON DELETE CASCADE,
    plan        BIGINT           NOT NULL,
    decided_ms  BIGINT           NOT NULL,
    policy      TEXT COLLATE "C" NOT NULL,
    verdict     TEXT COLLATE "C" NOT NULL CHECK (verdict IN ('placed', 'refused')),
    node        TEXT COLLATE "C",
    message     TEXT COLLATE "C",
    explanation TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (unit_id, plan)
);
INSERT INTO explanations (unit_id, plan, decided_ms, policy, verdict, node, message, explanation)
SELECT unit_id, plan, decided_ms, '', verdict, node, message, explanation FROM explanations_of_one;
DROP TABLE explanations_of_one;
