use std::sync::LazyLock;

use sqlx::{
    Any, AssertSqlSafe, Executor, Row,
    any::{AnyArguments, AnyRow},
    query::Query,
};
use zeroize::Zeroizing;

use super::{Safety, Store, StoreError, Table, signed, sorted_texts, unsigned};

/// What an agent says about itself, checked for form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Agent {
    /// Agent id.
    pub agent_id: String,
    /// base64 TPM2B_PUBLIC of the EK.
    pub ek_tpm: String,
    /// SHA-256 of the EK's public key, hex; `""` in records of older versions.
    pub ek_hash: String,
    /// base64 DER of the EK certificate.
    pub ekcert: Option<String>,
    /// base64 DER of the CAs' certificates that came with it.
    pub ekcert_chain: Vec<String>,
    /// base64 TPM2B_PUBLIC of the AK.
    pub aik_tpm: String,
    /// Contact address.
    pub ip: String,
    /// Contact port.
    pub port: u16,
    /// PEM or `disabled`.
    pub mtls_cert: Option<String>,
    /// What the device's manufacturer certified.
    pub device: Option<Device>,
    /// Activations so far; 0 while pending.
    pub regcount: u64,
}

/// A device identity that certified the AK.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Device {
    /// base64 TPM2B_PUBLIC of the IAK.
    pub iak_tpm: String,
    /// base64 DER of its certificate.
    pub iak_cert: String,
    /// base64 TPM2B_PUBLIC of the IDevID.
    pub idevid_tpm: String,
    /// base64 DER of its certificate.
    pub idevid_cert: String,
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
    /// The address that it came from.
    pub source: String,
}

/// What became of a registration that is to get a challenge.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Offer {
    /// It waits for its answer.
    Kept {
        /// The same TPM is active under this id too.
        other: Option<String>,
    },
    /// Another TPM is active under this id; nothing changed.
    OtherIdentity,
    /// This TPM is active under this other id; nothing changed.
    OtherId(String),
}

/// What became of an answered challenge.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Promotion {
    /// The registration is the active one now.
    Done,
    /// Another TPM was activated under this id meanwhile; nothing changed.
    OtherIdentity,
    /// This TPM was activated under another id meanwhile; nothing changed.
    OtherId,
}

/// All columns of an agent but its `regcount`.
const COLUMNS: &str = "agent_id, ek_tpm, ek_hash, ekcert, ekcert_chain, aik_tpm, ip, port, \
     mtls_cert, iak_tpm, iak_cert, idevid_tpm, idevid_cert";
/// As many parameters.
const VALUES: &str = "$1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13";

/// The registrar's tables.
impl Store {
    /// The activated agent of this id.
    pub async fn agent(&self, id: &str) -> Result<Option<Agent>, StoreError> {
        let row = sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS}, regcount FROM agents WHERE agent_id = $1"
        )))
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

    /// Keeps a registration until its challenge is answered, unless the id belongs to another TPM
    /// already, or (`one_id_per_tpm`) the TPM has another id. It replaces an earlier one of the same
    /// id from the same source, and no other. A power failure may take it, or bring it back when it
    /// was taken: its agent registers again, or has a challenge that only its TPM can answer.
    pub async fn put_pending(
        &self,
        pending: &Pending,
        one_id_per_tpm: bool,
    ) -> Result<Offer, StoreError> {
        let agent = &pending.agent;
        let mut writer = self.writer(Safety::Crash).await?;
        let kept = bind(sqlx::query(AssertSqlSafe(&**PUT_PENDING)), agent)
            .bind(hex::encode(&*pending.challenge))
            .bind(signed(pending.created_at))
            .bind(pending.source.clone())
            .bind(i64::from(one_id_per_tpm))
            .fetch_all(&mut *writer)
            .await?;
        if let Some(row) = kept.first() {
            let other = row.try_get("other")?;
            return Ok(Offer::Kept { other });
        }
        // Whoever was in the way may be gone meanwhile; the answer is still what it was.
        let (own, others): (Vec<_>, Vec<_>) = claims(agent, &mut *writer)
            .await?
            .into_iter()
            .partition(|known| known.agent_id == agent.agent_id);
        let same = own.iter().all(|known| known.same_identity(agent));
        Ok(match others.into_iter().next() {
            Some(other) if same => Offer::OtherId(other.agent_id),
            _ => Offer::OtherIdentity,
        })
    }

    /// Drops challenges that were made over `lifetime` seconds before `now` (Unix seconds), those
    /// from as far in the future, which a clock that was set back leaves behind, and the oldest
    /// beyond `max_pending`: a flood pushes out what it brought itself long before an honest agent,
    /// which answers within seconds. Among those of one second chance decides, not a name that a
    /// flood may choose. Returns how many were pushed out.
    pub async fn tidy_pending(
        &self,
        now: u64,
        lifetime: u64,
        max_pending: u32,
    ) -> Result<u64, StoreError> {
        let mut transaction = self.begin(Table::Pending).await?;
        sqlx::query("DELETE FROM pending WHERE created_at < $1 OR created_at > $2")
            .bind(signed(now.saturating_sub(lifetime)))
            .bind(signed(now.saturating_add(lifetime)))
            .execute(&mut *transaction)
            .await?;
        let waiting: i64 = sqlx::query("SELECT COUNT(*) FROM pending")
            .fetch_one(&mut *transaction)
            .await?
            .try_get(0)?;
        let pushed_out = sqlx::query(
            "DELETE FROM pending WHERE (agent_id, source) IN \
             (SELECT agent_id, source FROM pending ORDER BY created_at, random() LIMIT $1)",
        )
        .bind((waiting - i64::from(max_pending.max(1))).max(0))
        .execute(&mut *transaction)
        .await?;
        transaction.commit().await?;
        Ok(pushed_out.rows_affected())
    }

    /// Takes out the pending registration that came from `source`: whoever gets it, nobody gets it
    /// again.
    pub async fn take_pending(
        &self,
        id: &str,
        source: &str,
    ) -> Result<Option<Pending>, StoreError> {
        let mut writer = self.writer(Safety::Crash).await?;
        let row = sqlx::query(AssertSqlSafe(&**TAKE_PENDING))
            .bind(id.to_owned())
            .bind(source.to_owned())
            .fetch_optional(&mut *writer)
            .await?;
        row.map(|row| pending(&row)).transpose()
    }

    /// The newest registrations of this id that are pending, up to four, from whatever source.
    pub async fn pending_of(&self, id: &str) -> Result<Vec<Pending>, StoreError> {
        let rows = sqlx::query(AssertSqlSafe(format!(
            "SELECT {COLUMNS}, CAST(0 AS BIGINT) AS regcount, challenge, created_at, source \
             FROM pending WHERE agent_id = $1 ORDER BY created_at DESC LIMIT 4"
        )))
        .bind(id.to_owned())
        .fetch_all(&self.pool)
        .await?;
        rows.iter().map(pending).collect()
    }

    /// Makes a registration the active one, unless the id belongs to another TPM, or
    /// (`one_id_per_tpm`) the TPM has another id.
    pub async fn promote(
        &self,
        agent: &Agent,
        now: u64,
        one_id_per_tpm: bool,
    ) -> Result<Promotion, StoreError> {
        let upsert = bind(sqlx::query(AssertSqlSafe(&**PROMOTE)), agent).bind(signed(now));
        if !one_id_per_tpm {
            let mut writer = self.writer(Safety::PowerFailure).await?;
            let written = upsert.execute(&mut *writer).await?;
            return Ok(match written.rows_affected() {
                0 => Promotion::OtherIdentity,
                _ => Promotion::Done,
            });
        }
        let mut transaction = self.begin(Table::Agents).await?;
        let written = upsert.execute(&mut *transaction).await?;
        if written.rows_affected() == 0 {
            return Ok(Promotion::OtherIdentity);
        }
        // Dropped uncommitted, the transaction takes back what was written.
        let mut claims = claims(agent, &mut *transaction).await?.into_iter();
        if claims.any(|known| known.agent_id != agent.agent_id) {
            return Ok(Promotion::OtherId);
        }
        transaction.commit().await?;
        Ok(Promotion::Done)
    }
}

/// Another id of the same TPM, by [`VALUES`].
const OTHER: &str = "SELECT agent_id FROM agents WHERE (aik_tpm = $6 OR ek_hash = $3) \
     AND agent_id <> $1 LIMIT 1";

/// Nothing is written where [`Agent::same_identity`] says no, or ($17) the TPM has another id.
static PUT_PENDING: LazyLock<String> = LazyLock::new(|| {
    let updates = COLUMNS
        .split(", ")
        .chain(["challenge", "created_at"])
        .filter(|column| *column != "agent_id")
        .map(|column| format!("{column} = excluded.{column}"));
    let updates = updates.collect::<Vec<_>>().join(", ");
    format!(
        "INSERT INTO pending ({COLUMNS}, challenge, created_at, source) \
         SELECT {VALUES}, $14, $15, $16 \
         WHERE NOT EXISTS (SELECT 1 FROM agents WHERE agent_id = $1 \
         AND NOT (ek_tpm = $2 AND aik_tpm = $6 \
         AND (ekcert IS NULL OR $4 IS NULL OR ekcert = $4))) \
         AND ($17 = 0 OR NOT EXISTS ({OTHER})) \
         ON CONFLICT (agent_id, source) DO UPDATE SET {updates} RETURNING ({OTHER}) AS other"
    )
});

static TAKE_PENDING: LazyLock<String> = LazyLock::new(|| {
    format!(
        "DELETE FROM pending WHERE agent_id = $1 AND source = $2 \
         RETURNING {COLUMNS}, CAST(0 AS BIGINT) AS regcount, challenge, created_at, source"
    )
});

static PROMOTE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "INSERT INTO agents ({COLUMNS}, regcount, activated_at) VALUES ({VALUES}, 1, $14) \
         ON CONFLICT (agent_id) DO UPDATE SET ek_hash = excluded.ek_hash, \
         ekcert = COALESCE(excluded.ekcert, agents.ekcert), \
         ekcert_chain = CASE WHEN excluded.ekcert IS NULL THEN agents.ekcert_chain \
         ELSE excluded.ekcert_chain END, \
         ip = excluded.ip, port = excluded.port, mtls_cert = excluded.mtls_cert, \
         iak_tpm = excluded.iak_tpm, iak_cert = excluded.iak_cert, \
         idevid_tpm = excluded.idevid_tpm, idevid_cert = excluded.idevid_cert, \
         regcount = agents.regcount + 1, activated_at = excluded.activated_at \
         WHERE agents.ek_tpm = excluded.ek_tpm AND agents.aik_tpm = excluded.aik_tpm \
         AND (agents.ekcert IS NULL OR excluded.ekcert IS NULL \
         OR agents.ekcert = excluded.ekcert)"
    )
});

/// Who else, besides the id itself, may have a TPM: one is enough.
static CLAIMS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT {COLUMNS}, regcount FROM agents WHERE agent_id = $1 UNION ALL SELECT * FROM \
         (SELECT {COLUMNS}, regcount FROM agents WHERE (aik_tpm = $2 OR ek_hash = $3) \
         AND agent_id <> $1 LIMIT 1) AS others"
    )
});

/// The active agent of the same id, and another one with the same AK or EK, if there are any.
async fn claims<'e>(
    of: &Agent,
    executor: impl Executor<'e, Database = Any>,
) -> Result<Vec<Agent>, StoreError> {
    let rows = sqlx::query(AssertSqlSafe(&**CLAIMS))
        .bind(of.agent_id.clone())
        .bind(of.aik_tpm.clone())
        .bind(of.ek_hash.clone())
        .fetch_all(executor)
        .await?;
    let agents = rows.iter().map(agent);
    Ok(agents.collect::<Result<_, _>>()?)
}

fn pending(row: &AnyRow) -> Result<Pending, StoreError> {
    let challenge = Zeroizing::new(row.try_get::<String, _>("challenge")?);
    let challenge =
        hex::decode(challenge.as_bytes()).map_err(|error| sqlx::Error::Decode(Box::new(error)))?;
    Ok(Pending {
        agent: agent(row)?,
        challenge: Zeroizing::new(challenge),
        created_at: unsigned(row.try_get("created_at")?),
        source: row.try_get("source")?,
    })
}

/// Binds [`VALUES`].
fn bind<'q>(query: Query<'q, Any, AnyArguments>, agent: &Agent) -> Query<'q, Any, AnyArguments> {
    let device = agent.device.clone();
    let [iak_tpm, iak_cert, idevid_tpm, idevid_cert] = match device {
        None => [const { None }; 4],
        Some(device) => [
            Some(device.iak_tpm),
            Some(device.iak_cert),
            Some(device.idevid_tpm),
            Some(device.idevid_cert),
        ],
    };
    query
        .bind(agent.agent_id.clone())
        .bind(agent.ek_tpm.clone())
        .bind(agent.ek_hash.clone())
        .bind(agent.ekcert.clone())
        .bind(agent.ekcert_chain.join("\n"))
        .bind(agent.aik_tpm.clone())
        .bind(agent.ip.clone())
        .bind(i64::from(agent.port))
        .bind(agent.mtls_cert.clone())
        .bind(iak_tpm)
        .bind(iak_cert)
        .bind(idevid_tpm)
        .bind(idevid_cert)
}

fn agent(row: &AnyRow) -> Result<Agent, sqlx::Error> {
    let chain: String = row.try_get("ekcert_chain")?;
    Ok(Agent {
        agent_id: row.try_get("agent_id")?,
        ek_tpm: row.try_get("ek_tpm")?,
        ek_hash: row.try_get("ek_hash")?,
        ekcert: row.try_get("ekcert")?,
        ekcert_chain: chain.lines().map(str::to_owned).collect(),
        aik_tpm: row.try_get("aik_tpm")?,
        ip: row.try_get("ip")?,
        port: u16::try_from(row.try_get::<i64, _>("port")?).unwrap_or(0),
        mtls_cert: row.try_get("mtls_cert")?,
        device: device(row)?,
        regcount: unsigned(row.try_get("regcount")?),
    })
}

fn device(row: &AnyRow) -> Result<Option<Device>, sqlx::Error> {
    let column = |name| row.try_get::<Option<String>, _>(name);
    let (iak_tpm, iak_cert) = (column("iak_tpm")?, column("iak_cert")?);
    let (idevid_tpm, idevid_cert) = (column("idevid_tpm")?, column("idevid_cert")?);
    Ok((|| {
        Some(Device {
            iak_tpm: iak_tpm?,
            iak_cert: iak_cert?,
            idevid_tpm: idevid_tpm?,
            idevid_cert: idevid_cert?,
        })
    })())
}
