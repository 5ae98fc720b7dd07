-- One challenge per agent id and source address: nobody replaces or spends what another address is
-- about to answer. Challenges live for minutes, so that those of the old table are not kept.
DROP TABLE pending;
CREATE TABLE pending (
    agent_id TEXT NOT NULL,
    source TEXT NOT NULL,
    ek_tpm TEXT NOT NULL,
    ek_hash TEXT NOT NULL,
    ekcert TEXT,
    ekcert_chain TEXT NOT NULL,
    aik_tpm TEXT NOT NULL,
    ip TEXT NOT NULL,
    port BIGINT NOT NULL,
    mtls_cert TEXT,
    iak_tpm TEXT,
    iak_cert TEXT,
    idevid_tpm TEXT,
    idevid_cert TEXT,
    challenge TEXT NOT NULL,
    created_at BIGINT NOT NULL,
    PRIMARY KEY (agent_id, source)
);
CREATE INDEX pending_by_age ON pending (created_at);
