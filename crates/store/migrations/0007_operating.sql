-- What operating a server needs: cheap counts, operations that are set aside, answers that are shown once.

-- Operations that are not over. Counted at every scrape of the metrics.
CREATE INDEX operation_open ON operation (status) WHERE status IN ('pending', 'running', 'stuck');

-- Not null while the operation is parked: JSON of the status and error that it had before.
ALTER TABLE operation ADD COLUMN parked TEXT;

-- Public id of what was made, when the answer showed a secret once: then no answer is kept under the key.
ALTER TABLE idempotency_key ADD COLUMN created_id TEXT;
