-- What a device's manufacturer certified besides the EK: IAK and IDevID (base64 TPM2B_PUBLIC), with
-- their certificates (base64 DER). All of them or none.
ALTER TABLE agents ADD COLUMN iak_tpm TEXT;
ALTER TABLE agents ADD COLUMN iak_cert TEXT;
ALTER TABLE agents ADD COLUMN idevid_tpm TEXT;
ALTER TABLE agents ADD COLUMN idevid_cert TEXT;
-- Certificates of CAs that came with the EK certificate (base64 DER), one per line.
ALTER TABLE agents ADD COLUMN ekcert_chain TEXT NOT NULL DEFAULT '';
-- SHA-256 of the EK's public key, whatever else the agent says about it; '' in older records.
ALTER TABLE agents ADD COLUMN ek_hash TEXT NOT NULL DEFAULT '';
CREATE INDEX agents_by_ek ON agents (ek_hash);

ALTER TABLE pending ADD COLUMN iak_tpm TEXT;
ALTER TABLE pending ADD COLUMN iak_cert TEXT;
ALTER TABLE pending ADD COLUMN idevid_tpm TEXT;
ALTER TABLE pending ADD COLUMN idevid_cert TEXT;
ALTER TABLE pending ADD COLUMN ekcert_chain TEXT NOT NULL DEFAULT '';
ALTER TABLE pending ADD COLUMN ek_hash TEXT NOT NULL DEFAULT '';
