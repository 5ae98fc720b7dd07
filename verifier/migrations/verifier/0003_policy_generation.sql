-- Counts replaced policies: every verifier on this database sees when it has to look again.
CREATE TABLE policy_generation (number BIGINT NOT NULL);
INSERT INTO policy_generation (number) VALUES (0);
