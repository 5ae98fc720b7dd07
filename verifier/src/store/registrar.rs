use sqlx::{Row, any::AnyRow};
use zeroize::Zeroizing;

use super::{Store, StoreError, Table, signed, sorted_texts, unsigned};

/// What an agent says about itself, checked for form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Agent {
    /// Agent id.
    pub agent_id: String,
    /// base64 TPM2B_PUBLIC of the EK.
    pub ek_tpm: String,
    /// base64 DER of the EK certificate.
    pub ekcert: Option<String>,
    /// base64 TPM2B_PUBLIC of the AK.
    pub aik_tpm: String,
    /// Contact address.
    pub ip: String,
    /// Contact port.
    pub port: u16,
    /// PEM or `disabled`.
    pub mtls_cert: Option<String>,
    /// Activations so far; 0 while pending.
    pub regcount: u64,
}

impl Agent {
    /// Is `other` the same TPM? An EK certificate may be added, but not changed.
    pub fn same_identity(&self, other: &Self) -> bool {
        self.ek_tpm == other.ek_tpm
            && self.aik_tpm == other.aik_tpm
            && match (&self.ekcert, &other.ekcert) {
                (Some(a), Some(b)) => a == b,
                _ => true,
            }
    }
}

/// A registration with an unanswered challenge.
#[derive(Debug)]
pub struct Pending {
    /// What was registered.
    pub agent: Agent,
    /// The challenge's secret.
    pub challenge: Zeroizing<Vec<u8>>,
    /// When it was made, Unix seconds.
    pub created_at: u64,
}

/// What became of an answered challenge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promotion {
    /// The registration is the active one now.
    Done,
    /// Another TPM was activated under this id meanwhile; nothing changed.
    OtherIdentity,
}

/// The registrar's tables.
impl Store {
    /// The activated agent of this id.
    pub async fn agent(&self, id: &str) -> Result<Option<Agent>, StoreError> {
        let row = sqlx::query(
            "SELECT agent_id, ek_tpm, ekcert, aik_tpm, ip, port, mtls_cert, regcount \
             FROM agents WHERE agent_id = $1",
        )
        .bind(id.to_owned())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| agent(&row)).transpose().map_err(Into::into)
    }

    /// Ids of all activated agents, sorted.
    pub async fn agent_ids(&self) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query("SELECT agent_id FROM agents")
            .fetch_all(&self.pool)
            .await?;
        sorted_texts(&rows)
    }

    /// Another activated agent with this AK.
    pub async fn agent_with_ak(
        &self,
        aik_tpm: &str,
        except: &str,
    ) -> Result<Option<String>, StoreError> {
        let row = sqlx::query(
            "SELECT agent_id FROM agents WHERE aik_tpm = $1 AND agent_id <> $2 LIMIT 1",
        )
        .bind(aik_tpm.to_owned())
        .bind(except.to_owned())
        .fetch_optional(&self.pool)
        .await?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(Into::into)
    }

    /// Forgets an agent, its pending registration included. `false`: there was no active one.
    pub async fn delete_agent(&self, id: &str) -> Result<bool, StoreError> {
        let mut transaction = self.pool.begin().await?;
        let deleted = sqlx::query("DELETE FROM agents WHERE agent_id = $1")
            .bind(id.to_owned())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM pending WHERE agent_id = $1")
            .bind(id.to_owned())
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// Keeps a registration until its challenge is answered; it replaces an earlier one of the
    /// same id. Challenges made before `expired_before` (Unix seconds) are dropped, and the oldest
    /// beyond `max_pending`: a flood pushes out what it brought itself long before an honest
    /// agent, which answers within seconds. Among those of one second chance decides, not a name
    /// that a flood may choose. Returns how many were pushed out.
    pub async fn put_pending(
        &self,
        pending: &Pending,
        expired_before: u64,
        max_pending: u32,
    ) -> Result<u64, StoreError> {
        let mut transaction = self.begin(Table::Pending).await?;
        sqlx::query("DELETE FROM pending WHERE created_at < $1 OR agent_id = $2")
            .bind(signed(expired_before))
            .bind(pending.agent.agent_id.clone())
            .execute(&mut *transaction)
            .await?;
        let waiting: i64 = sqlx::query("SELECT COUNT(*) FROM pending")
            .fetch_one(&mut *transaction)
            .await?
            .try_get(0)?;
        let room = i64::from(max_pending.max(1)) - 1;
        let pushed_out = sqlx::query(
            "DELETE FROM pending WHERE agent_id IN \
             (SELECT agent_id FROM pending ORDER BY created_at, random() LIMIT $1)",
        )
        .bind((waiting - room).max(0))
        .execute(&mut *transaction)
        .await?;
        let agent = &pending.agent;
        sqlx::query(
            "INSERT INTO pending (agent_id, ek_tpm, ekcert, aik_tpm, ip, port, mtls_cert, \
             challenge, created_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
        )
        .bind(agent.agent_id.clone())
        .bind(agent.ek_tpm.clone())
        .bind(agent.ekcert.clone())
        .bind(agent.aik_tpm.clone())
        .bind(agent.ip.clone())
        .bind(i64::from(agent.port))
        .bind(agent.mtls_cert.clone())
        .bind(hex::encode(&*pending.challenge))
        .bind(signed(pending.created_at))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(pushed_out.rows_affected())
    }

    /// Takes the pending registration out: whoever gets it, nobody gets it again.
    pub async fn take_pending(&self, id: &str) -> Result<Option<Pending>, StoreError> {
        let row = sqlx::query(
            "DELETE FROM pending WHERE agent_id = $1 RETURNING agent_id, ek_tpm, ekcert, \
             aik_tpm, ip, port, mtls_cert, CAST(0 AS BIGINT) AS regcount, challenge, created_at",
        )
        .bind(id.to_owned())
        .fetch_optional(&self.pool)
        .await?;
        let Some(row) = row else { return Ok(None) };
        let challenge = Zeroizing::new(row.try_get::<String, _>("challenge")?);
        let challenge = hex::decode(challenge.as_bytes())
            .map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
        Ok(Some(Pending {
            agent: agent(&row)?,
            challenge: Zeroizing::new(challenge),
            created_at: unsigned(row.try_get("created_at")?),
        }))
    }

    /// Makes a registration the active one, unless the id belongs to another TPM.
    pub async fn promote(&self, agent: &Agent, now: u64) -> Result<Promotion, StoreError> {
        let written = sqlx::query(
            "INSERT INTO agents (agent_id, ek_tpm, ekcert, aik_tpm, ip, port, mtls_cert, \
             regcount, activated_at) VALUES ($1, $2, $3, $4, $5, $6, $7, 1, $8) \
             ON CONFLICT (agent_id) DO UPDATE SET ekcert = COALESCE(excluded.ekcert, \
             agents.ekcert), ip = excluded.ip, port = excluded.port, \
             mtls_cert = excluded.mtls_cert, regcount = agents.regcount + 1, \
             activated_at = excluded.activated_at \
             WHERE agents.ek_tpm = excluded.ek_tpm AND agents.aik_tpm = excluded.aik_tpm \
             AND (agents.ekcert IS NULL OR excluded.ekcert IS NULL \
             OR agents.ekcert = excluded.ekcert)",
        )
        .bind(agent.agent_id.clone())
        .bind(agent.ek_tpm.clone())
        .bind(agent.ekcert.clone())
        .bind(agent.aik_tpm.clone())
        .bind(agent.ip.clone())
        .bind(i64::from(agent.port))
        .bind(agent.mtls_cert.clone())
        .bind(signed(now))
        .execute(&self.pool)
        .await?;
        Ok(if written.rows_affected() > 0 {
            Promotion::Done
        } else {
            Promotion::OtherIdentity
        })
    }
}

fn agent(row: &AnyRow) -> Result<Agent, sqlx::Error> {
    Ok(Agent {
        agent_id: row.try_get("agent_id")?,
        ek_tpm: row.try_get("ek_tpm")?,
        ekcert: row.try_get("ekcert")?,
        aik_tpm: row.try_get("aik_tpm")?,
        ip: row.try_get("ip")?,
        port: u16::try_from(row.try_get::<i64, _>("port")?).unwrap_or(0),
        mtls_cert: row.try_get("mtls_cert")?,
        regcount: unsigned(row.try_get("regcount")?),
    })
}
