-- Which ports the owner chose beside what the compose file publishes, as JSON; null: the compose file alone says.
ALTER TABLE vm_revision ADD COLUMN port_choice TEXT;
