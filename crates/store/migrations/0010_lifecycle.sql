-- How a CVM is shut down, and when it is to be deleted.

ALTER TABLE vm ADD COLUMN shutdown_timeout BIGINT;         -- seconds; null: as long as the server gives
ALTER TABLE vm ADD COLUMN allow_force_stop BOOLEAN NOT NULL DEFAULT FALSE;
ALTER TABLE vm_revision ADD COLUMN shutdown_timeout BIGINT;
ALTER TABLE vm_revision ADD COLUMN allow_force_stop BOOLEAN NOT NULL DEFAULT FALSE;

ALTER TABLE vm ADD COLUMN scheduled_delete_at BIGINT;
ALTER TABLE vm ADD COLUMN scheduled_delete_by TEXT;        -- JSON: who asked for it, and with which request
CREATE INDEX vm_by_scheduled_delete ON vm (scheduled_delete_at) WHERE scheduled_delete_at IS NOT NULL;
