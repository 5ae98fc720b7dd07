-- Policy texts by content: a policy that a whole fleet shares is kept once.
CREATE TABLE policy_texts (
    digest TEXT NOT NULL PRIMARY KEY,
    body TEXT NOT NULL
);

-- Runtime policies by name; an agent's own policy has the agent's id as its name.
CREATE TABLE runtime_policies (
    name TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL REFERENCES policy_texts (digest)
);

-- Enrolled nodes: what the operator said, then what the verifier found out.
CREATE TABLE nodes (
    agent_id TEXT NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    verifier_id TEXT NOT NULL,
    enrolment TEXT NOT NULL,
    policy_name TEXT REFERENCES runtime_policies (name),
    operational_state BIGINT NOT NULL,
    record TEXT NOT NULL
);
CREATE INDEX nodes_by_policy ON nodes (policy_name);
