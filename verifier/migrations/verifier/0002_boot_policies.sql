-- Measured boot policies by name; an agent's own policy has the agent's id as its name.
CREATE TABLE boot_policies (
    name TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL REFERENCES policy_texts (digest)
);

-- NULL: the policy is in the enrolment, or there is none.
ALTER TABLE nodes ADD COLUMN mb_policy_name TEXT REFERENCES boot_policies (name);
CREATE INDEX nodes_by_boot_policy ON nodes (mb_policy_name);
