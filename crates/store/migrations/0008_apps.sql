-- When a CVM's app was up and when it was down, and how large the CVM was: one row per change. Usage is reckoned from it,
-- so that it is the same after operations have left by age.
CREATE TABLE vm_usage (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    vm_id BIGINT NOT NULL REFERENCES vm(id),
    at BIGINT NOT NULL,
    running BOOLEAN NOT NULL,
    vcpu BIGINT NOT NULL,
    memory_mb BIGINT NOT NULL,
    disk_gb BIGINT NOT NULL
);
CREATE INDEX vm_usage_by_vm ON vm_usage (vm_id, id);

-- What the operations so far say. Sizes did not change before there were revisions.
INSERT INTO vm_usage (vm_id, at, running, vcpu, memory_mb, disk_gb)
SELECT o.resource_id, e.at, e.state = 'running', v.vcpu, v.memory_mb, v.disk_gb
FROM operation_event e
JOIN operation o ON o.id = e.operation_id AND o.kind = 'vm'
JOIN vm v ON v.id = o.resource_id
WHERE e.state IN ('running', 'stopped', 'exited', 'error')
ORDER BY e.at, e.id;
