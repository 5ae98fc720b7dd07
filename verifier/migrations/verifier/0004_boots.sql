-- The last boot of a node that was trusted, for telling where a later one differs; JSON.
CREATE TABLE boots (
    agent_id TEXT NOT NULL PRIMARY KEY,
    generation BIGINT NOT NULL,
    boot TEXT NOT NULL
);
