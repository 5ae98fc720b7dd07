-- An activated agent: what its TPM proved to hold, and where it listens.
CREATE TABLE agents (
    agent_id TEXT NOT NULL PRIMARY KEY,
    ek_tpm TEXT NOT NULL,
    ekcert TEXT,
    aik_tpm TEXT NOT NULL,
    ip TEXT NOT NULL,
    port BIGINT NOT NULL,
    mtls_cert TEXT,
    regcount BIGINT NOT NULL,
    activated_at BIGINT NOT NULL
);
CREATE INDEX agents_by_ak ON agents (aik_tpm);

-- A registration whose challenge is not answered yet. Never shown, never believed.
CREATE TABLE pending (
    agent_id TEXT NOT NULL PRIMARY KEY,
    ek_tpm TEXT NOT NULL,
    ekcert TEXT,
    aik_tpm TEXT NOT NULL,
    ip TEXT NOT NULL,
    port BIGINT NOT NULL,
    mtls_cert TEXT,
    challenge TEXT NOT NULL,
    created_at BIGINT NOT NULL
);
CREATE INDEX pending_by_age ON pending (created_at);
