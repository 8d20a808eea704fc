-- What a workspace may have. No row, or null: as much as the nodes have room for. What it has is in no table of its own: it
-- is added up from its CVMs, so it cannot drift from them (docs/adr/0038).
CREATE TABLE workspace_quota (
    workspace_id BIGINT NOT NULL PRIMARY KEY REFERENCES workspace(id),
    vm_slots BIGINT,
    vcpu BIGINT,
    memory_mb BIGINT,
    disk_gb BIGINT,
    updated_at BIGINT NOT NULL
);

-- What a workspace has is added up from this index alone.
CREATE INDEX vm_by_workspace_size ON vm (workspace_id, deleted_at, vcpu, memory_mb, disk_gb, held_vcpu, held_memory_mb,
    held_disk_gb);

-- Whose turn it is among workspaces with operations that are due, and the oldest of each.
CREATE INDEX operation_due_by_workspace ON operation (workspace_id, wake_at) WHERE wake_at IS NOT NULL;
