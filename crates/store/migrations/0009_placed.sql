-- What is placed on a node is added up from this index alone.
DROP INDEX vm_by_node;
CREATE INDEX vm_by_node ON vm (node_id, deleted_at, vcpu, memory_mb, disk_gb, held_vcpu, held_memory_mb, held_disk_gb);
