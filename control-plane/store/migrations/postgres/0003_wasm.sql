-- What a wasm artifact is (`wasm_kind`) and needs (`wasm`, JSON). The same as ../sqlite/0003_wasm.sql; a test compares
-- them. Artifacts from before have neither until they are pushed again.

ALTER TABLE artifacts ADD COLUMN wasm_kind TEXT COLLATE "C";
ALTER TABLE artifacts ADD COLUMN wasm TEXT COLLATE "C";
