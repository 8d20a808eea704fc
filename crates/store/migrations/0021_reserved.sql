-- What VMs have reserved on their node, counted on its row (docs/adr/0044): adding it up for each placement took longer the
-- more VMs there were.
ALTER TABLE node ADD COLUMN used_slots BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN used_vcpu BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN used_memory_mb BIGINT NOT NULL DEFAULT 0;
ALTER TABLE node ADD COLUMN used_disk_gb BIGINT NOT NULL DEFAULT 0;
UPDATE node SET used_slots = used.slots, used_vcpu = used.vcpu, used_memory_mb = used.memory_mb, used_disk_gb = used.disk_gb
FROM (SELECT node_id, COUNT(*) AS slots, SUM(CASE WHEN held_vcpu > vcpu THEN held_vcpu ELSE vcpu END) AS vcpu,
        SUM(CASE WHEN held_memory_mb > memory_mb THEN held_memory_mb ELSE memory_mb END) AS memory_mb,
        SUM(CASE WHEN held_disk_gb > disk_gb THEN held_disk_gb ELSE disk_gb END) AS disk_gb
    FROM vm WHERE deleted_at IS NULL GROUP BY node_id) AS used
WHERE node.id = used.node_id;

DROP INDEX vm_by_node;
CREATE INDEX vm_by_node ON vm (node_id, deleted_at);
