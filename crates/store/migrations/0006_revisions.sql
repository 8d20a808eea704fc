-- Everything of a VM that can change, one row per accepted change. The row of `vm` is a copy of the revision in force.
CREATE TABLE vm_revision (
    vm_id BIGINT NOT NULL REFERENCES vm(id),
    revision BIGINT NOT NULL,                -- 1, 2, 3 ... within the VM
    parent BIGINT,                           -- the revision that it replaced, and where an undo leads back to
    operation_id BIGINT,                     -- that asked for it; may have left with an archive
    created_at BIGINT NOT NULL,
    name TEXT NOT NULL,
    instance_type TEXT,
    vcpu BIGINT NOT NULL,
    memory_mb BIGINT NOT NULL,
    disk_gb BIGINT NOT NULL,
    image TEXT NOT NULL,
    os_image_hash TEXT,
    compose_hash TEXT NOT NULL,
    encrypted_env TEXT,                      -- ciphertext in hex; gone with the VM
    env_names TEXT NOT NULL,                 -- JSON list
    user_config TEXT,
    listed BOOLEAN NOT NULL,
    public_logs BOOLEAN,                     -- null: as app-compose.json says
    public_sysinfo BOOLEAN,
    public_tcbinfo BOOLEAN,
    PRIMARY KEY (vm_id, revision)
);
CREATE INDEX vm_revision_by_operation ON vm_revision (operation_id);

INSERT INTO vm_revision (vm_id, revision, parent, operation_id, created_at, name, instance_type, vcpu, memory_mb,
    disk_gb, image, os_image_hash, compose_hash, encrypted_env, env_names, user_config, listed)
SELECT v.id, 1, NULL, (SELECT MIN(o.id) FROM operation o WHERE o.resource_id = v.id AND o.kind = 'vm'), v.created_at,
    v.name, v.instance_type, v.vcpu, v.memory_mb, v.disk_gb, v.image, v.os_image_hash, v.compose_hash,
    v.encrypted_env, v.env_names, v.user_config, v.listed
FROM vm v;

ALTER TABLE vm ADD COLUMN revision BIGINT NOT NULL DEFAULT 1;
ALTER TABLE vm ADD COLUMN public_logs BOOLEAN;
ALTER TABLE vm ADD COLUMN public_sysinfo BOOLEAN;
ALTER TABLE vm ADD COLUMN public_tcbinfo BOOLEAN;

-- While an update is on its way, its node keeps room for the larger of the two revisions.
ALTER TABLE vm ADD COLUMN held_vcpu BIGINT NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN held_memory_mb BIGINT NOT NULL DEFAULT 0;
ALTER TABLE vm ADD COLUMN held_disk_gb BIGINT NOT NULL DEFAULT 0;

-- False: taken for a revision that is not in force.
ALTER TABLE vm_port ADD COLUMN active BOOLEAN NOT NULL DEFAULT TRUE;

CREATE INDEX vm_name_by_app ON vm_name (app_row);
