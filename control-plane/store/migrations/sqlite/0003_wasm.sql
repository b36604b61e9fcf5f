-- What a wasm artifact is (`wasm_kind`) and needs (`wasm`, JSON). The same as ../postgres/0003_wasm.sql; a test compares
-- them. Artifacts from before have neither until they are pushed again.

ALTER TABLE artifacts ADD COLUMN wasm_kind TEXT;
ALTER TABLE artifacts ADD COLUMN wasm TEXT;
