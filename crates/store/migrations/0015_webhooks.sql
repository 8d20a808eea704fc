-- Webhooks: who is told of events, how far each of them is, and what became of every delivery.

CREATE TABLE webhook (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    uuid TEXT NOT NULL UNIQUE,               -- what its secrets are bound to
    name TEXT,
    url TEXT NOT NULL,
    events TEXT NOT NULL,                    -- JSON list of event names
    secret TEXT NOT NULL,                    -- wrapped, in hex
    previous_secret TEXT,                    -- wrapped, in hex
    previous_until BIGINT,                   -- until then both secrets are valid
    enabled BOOLEAN NOT NULL,
    disabled_reason TEXT,                    -- not null: the server disabled it
    failing_since BIGINT,                    -- first failure after the last success
    epoch BIGINT NOT NULL,                   -- raised whenever it is enabled
    position BIGINT NOT NULL,                -- all events up to here are delivered, or have a row that waits
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX webhook_by_workspace ON webhook (workspace_id, id);

-- What was sent, and what waits to be sent again.
CREATE TABLE webhook_delivery (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    webhook_id BIGINT NOT NULL,
    event_id TEXT NOT NULL,
    original_event_id TEXT NOT NULL,         -- of a resend: what it repeats; else empty
    event_type TEXT NOT NULL,
    lane TEXT NOT NULL,                      -- UUID of the CVM; empty: in no order
    sequence BIGINT NOT NULL,                -- order within the lane
    body TEXT NOT NULL,
    status TEXT NOT NULL,                    -- pending | success | failed
    next_at BIGINT,                          -- of a pending one that is the first of its lane
    attempts BIGINT NOT NULL,
    request_url TEXT NOT NULL,
    response_status BIGINT NOT NULL,
    error_message TEXT NOT NULL,
    duration_ms BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    delivered_at BIGINT,
    UNIQUE (webhook_id, event_id)
);
CREATE INDEX webhook_delivery_by_age ON webhook_delivery (webhook_id, id);
CREATE INDEX webhook_delivery_by_time ON webhook_delivery (created_at);
CREATE INDEX webhook_delivery_by_sequence ON webhook_delivery (webhook_id, sequence);
CREATE INDEX webhook_delivery_waiting ON webhook_delivery (webhook_id, lane, sequence) WHERE status = 'pending';
CREATE INDEX webhook_delivery_due ON webhook_delivery (next_at) WHERE next_at IS NOT NULL;
