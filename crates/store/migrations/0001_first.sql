-- The subset of SQL that SQLite and PostgreSQL share: ids as text, times as microseconds since 1970 UTC, JSON as text.

CREATE TABLE installation (
    name TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

-- Secrets wrapped by the master key: nonce || ciphertext || tag, in hex.
CREATE TABLE secret (
    name TEXT NOT NULL PRIMARY KEY,
    wrapped TEXT NOT NULL
);

CREATE TABLE user_account (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    username TEXT NOT NULL UNIQUE,
    email TEXT NOT NULL,
    role TEXT NOT NULL,                      -- admin | user
    created_at BIGINT NOT NULL
);

CREATE TABLE workspace (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    slug TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    tier TEXT NOT NULL,
    address TEXT NOT NULL,                   -- 40 hex digits: app ids are CREATE addresses of this and a nonce
    next_nonce BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

CREATE TABLE workspace_member (
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    user_id BIGINT NOT NULL REFERENCES user_account(id),
    role TEXT NOT NULL,                      -- owner | admin | member | reader
    PRIMARY KEY (workspace_id, user_id)
);

-- Nirvana's project: a group of resources inside a workspace.
CREATE TABLE project (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    name TEXT NOT NULL,
    is_default BOOLEAN NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX project_by_workspace ON project (workspace_id, id);

CREATE TABLE api_key (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    user_id BIGINT NOT NULL REFERENCES user_account(id),
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    hash TEXT NOT NULL UNIQUE,               -- sha256 of the key
    default_version TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    last_used_at BIGINT,
    expires_at BIGINT,
    revoked_at BIGINT
);

CREATE TABLE node_token (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    hash TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    revoked_at BIGINT
);

CREATE TABLE node (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    token_id BIGINT NOT NULL UNIQUE REFERENCES node_token(id),
    name TEXT NOT NULL,
    region TEXT,
    version TEXT NOT NULL,
    hypervisor TEXT NOT NULL,
    hypervisor_version TEXT NOT NULL,
    accelerator TEXT NOT NULL,
    tee BOOLEAN NOT NULL,
    boot_id TEXT NOT NULL,
    session TEXT NOT NULL,
    report_seq BIGINT NOT NULL,
    vcpu BIGINT NOT NULL,
    memory_mb BIGINT NOT NULL,
    disk_gb BIGINT NOT NULL,
    slots BIGINT NOT NULL,
    disk_free_gb BIGINT NOT NULL,
    publish_address TEXT NOT NULL,
    port_first BIGINT NOT NULL,
    port_last BIGINT NOT NULL,
    images TEXT NOT NULL,                    -- JSON list of images
    ready BOOLEAN NOT NULL,
    reason TEXT,
    cordoned BOOLEAN NOT NULL,
    desired_revision BIGINT NOT NULL,        -- raised with every change of a desired state on this node
    last_seen_at BIGINT NOT NULL,
    created_at BIGINT NOT NULL
);

-- Phala's project: what one compose file is deployed as.
CREATE TABLE app (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    app_id TEXT NOT NULL UNIQUE,             -- 40 hex digits
    nonce BIGINT NOT NULL,
    name TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX app_by_workspace ON app (workspace_id, id);

-- The exact bytes of every app-compose.json that was ever provisioned.
CREATE TABLE app_compose (
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    compose_hash TEXT NOT NULL,
    content TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, compose_hash)
);

-- An app that was prepared and waits for its commit.
CREATE TABLE provision (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    app_id TEXT NOT NULL,
    nonce BIGINT NOT NULL,
    compose_hash TEXT NOT NULL,
    request TEXT NOT NULL,                   -- JSON: name, resources, image, node; no secrets
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    UNIQUE (workspace_id, app_id, compose_hash)
);
CREATE INDEX provision_by_expiry ON provision (expires_at);

CREATE TABLE vm (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    project_id BIGINT NOT NULL REFERENCES project(id),
    app_row BIGINT NOT NULL REFERENCES app(id),
    node_id BIGINT NOT NULL REFERENCES node(id),
    created_by BIGINT NOT NULL REFERENCES user_account(id),
    name TEXT NOT NULL,
    instance_id TEXT NOT NULL UNIQUE,        -- 40 hex digits
    status TEXT NOT NULL,
    instance_type TEXT,
    vcpu BIGINT NOT NULL,
    memory_mb BIGINT NOT NULL,
    disk_gb BIGINT NOT NULL,
    image TEXT NOT NULL,
    os_image_hash TEXT,
    compose_hash TEXT NOT NULL,
    encrypted_env TEXT,                      -- ciphertext in hex; only the guest can read it
    env_names TEXT NOT NULL,                 -- JSON list
    user_config TEXT,
    listed BOOLEAN NOT NULL,
    restart_policy TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    deleted_at BIGINT
);
CREATE INDEX vm_by_workspace ON vm (workspace_id, deleted_at, id);
CREATE INDEX vm_by_name ON vm (workspace_id, name);
CREATE INDEX vm_by_app ON vm (app_row, id);
CREATE INDEX vm_by_node ON vm (node_id, deleted_at);

-- A name belongs to one app of a workspace while one of its VMs lives.
CREATE TABLE vm_name (
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    name TEXT NOT NULL,
    app_row BIGINT NOT NULL REFERENCES app(id),
    PRIMARY KEY (workspace_id, name)
);

CREATE TABLE vm_port (
    node_id BIGINT NOT NULL REFERENCES node(id),
    host_port BIGINT NOT NULL,
    vm_id BIGINT NOT NULL REFERENCES vm(id),
    vm_port BIGINT NOT NULL,
    protocol TEXT NOT NULL,
    host_address TEXT NOT NULL,
    PRIMARY KEY (node_id, protocol, host_port)
);
CREATE INDEX vm_port_by_vm ON vm_port (vm_id, vm_port);

-- What the node is told. A row with run_state 'absent' is a tombstone and stays until the node has obeyed.
CREATE TABLE vm_desired (
    vm_id BIGINT NOT NULL PRIMARY KEY REFERENCES vm(id),
    node_id BIGINT NOT NULL REFERENCES node(id),
    generation BIGINT NOT NULL,
    revision BIGINT NOT NULL,                -- the node's desired_revision at the last change
    run_state TEXT NOT NULL,                 -- running | stopped | absent
    stop TEXT NOT NULL,                      -- JSON of how to stop
    boot_epoch BIGINT NOT NULL,
    updated_at BIGINT NOT NULL
);
CREATE INDEX vm_desired_by_node ON vm_desired (node_id, revision);

-- What the node said last.
CREATE TABLE vm_observed (
    vm_id BIGINT NOT NULL PRIMARY KEY REFERENCES vm(id),
    generation BIGINT NOT NULL,
    phase TEXT NOT NULL,
    boot_epoch BIGINT NOT NULL,
    restarts BIGINT NOT NULL,
    report TEXT NOT NULL,                    -- JSON of the whole report
    updated_at BIGINT NOT NULL
);

-- What happened to a VM outside of any operation, newest kept.
CREATE TABLE vm_event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id BIGINT NOT NULL REFERENCES vm(id),
    event TEXT NOT NULL,
    body TEXT NOT NULL,
    at BIGINT NOT NULL
);
CREATE INDEX vm_event_by_vm ON vm_event (vm_id, id);

CREATE TABLE operation (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,               -- Phala correlation_id, Nirvana id
    workspace_id BIGINT NOT NULL REFERENCES workspace(id),
    project_id BIGINT NOT NULL REFERENCES project(id),
    kind TEXT NOT NULL,
    verb TEXT NOT NULL,
    operation_type TEXT NOT NULL,
    plan_version BIGINT NOT NULL,
    target_state TEXT NOT NULL,
    resource_id BIGINT NOT NULL,
    resource_uuid TEXT NOT NULL,
    resource_name TEXT NOT NULL,
    compose_hash TEXT,
    -- who asked
    user_id BIGINT NOT NULL,
    username TEXT NOT NULL,
    email TEXT NOT NULL,
    api_key_id BIGINT,
    client_address TEXT,
    request_id TEXT NOT NULL,
    trace_id TEXT,
    -- what was asked and what it changes; never a secret
    request TEXT NOT NULL,
    diff TEXT NOT NULL,
    -- how far it is
    status TEXT NOT NULL,
    status_before TEXT NOT NULL,             -- of the resource
    direction TEXT NOT NULL,
    step BIGINT NOT NULL,
    step_entered BOOLEAN NOT NULL,
    step_started_at BIGINT,
    deadline_at BIGINT,
    generation BIGINT NOT NULL,
    sub_operations TEXT NOT NULL,
    cancel_requested_at BIGINT,
    cancelled_by TEXT,
    error_code TEXT,
    error_message TEXT,
    error_internal TEXT,
    retry_of BIGINT,
    -- lease
    wake_at BIGINT,                          -- null: nothing to do
    lease_token BIGINT NOT NULL,
    lease_owner TEXT,
    lease_until BIGINT,
    attempts BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    started_at BIGINT,
    completed_at BIGINT,
    updated_at BIGINT NOT NULL
);
CREATE INDEX operation_due ON operation (wake_at) WHERE wake_at IS NOT NULL;
CREATE INDEX operation_by_workspace ON operation (workspace_id, id);
CREATE INDEX operation_by_created ON operation (workspace_id, created_at, id);
CREATE INDEX operation_by_resource ON operation (resource_id, kind, created_at, id);

-- Every resource that an operation touches. While `held`, no other operation may hold it.
CREATE TABLE operation_resource (
    operation_id BIGINT NOT NULL REFERENCES operation(id),
    kind TEXT NOT NULL,
    resource_id BIGINT NOT NULL,
    role TEXT NOT NULL,                      -- target | parent | placed_on
    held BOOLEAN NOT NULL,
    PRIMARY KEY (operation_id, kind, resource_id)
);
CREATE UNIQUE INDEX operation_resource_claim ON operation_resource (kind, resource_id) WHERE held;
CREATE INDEX operation_resource_by_resource ON operation_resource (kind, resource_id, operation_id);

CREATE TABLE operation_event (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    operation_id BIGINT NOT NULL REFERENCES operation(id),
    seq BIGINT NOT NULL,                     -- 1, 2, 3 ... within the operation
    event_type TEXT NOT NULL,
    step TEXT,
    state TEXT NOT NULL,                     -- of the resource at that moment
    at BIGINT NOT NULL,
    UNIQUE (operation_id, seq)
);

-- Gap-free positions of committed events, for streams and webhooks.
CREATE TABLE event_position (
    position BIGINT NOT NULL PRIMARY KEY,
    event_id BIGINT NOT NULL UNIQUE REFERENCES operation_event(id)
);

CREATE TABLE audit_log (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL UNIQUE,
    workspace_id BIGINT NOT NULL,
    actor_type TEXT NOT NULL,                -- user | api_key | node | system
    actor_id TEXT NOT NULL,
    actor_name TEXT NOT NULL,
    api_key_id BIGINT,
    client_address TEXT,
    request_id TEXT NOT NULL,
    method TEXT NOT NULL,
    path TEXT NOT NULL,
    status_code BIGINT,
    action TEXT NOT NULL,
    target_type TEXT NOT NULL,
    target_id TEXT NOT NULL,
    operation_id BIGINT,
    at BIGINT NOT NULL
);
CREATE INDEX audit_log_by_workspace ON audit_log (workspace_id, at, id);
CREATE INDEX audit_log_by_operation ON audit_log (operation_id);

CREATE TABLE idempotency_key (
    workspace_id BIGINT NOT NULL,
    key TEXT NOT NULL,
    request_hash TEXT NOT NULL,              -- sha256 of method, path and body
    status_code BIGINT NOT NULL,
    response TEXT NOT NULL,
    operation_id BIGINT,
    created_at BIGINT NOT NULL,
    expires_at BIGINT NOT NULL,
    PRIMARY KEY (workspace_id, key)
);
CREATE INDEX idempotency_key_by_expiry ON idempotency_key (expires_at);
