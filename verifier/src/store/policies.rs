use std::fmt;

use sqlx::{Any, AssertSqlSafe, Executor, Row, Transaction, any::AnyRow};

use super::{Store, StoreError, Table, sorted_texts, unsigned};

/// Texts live as long as a policy has them.
const DELETE_UNNAMED_TEXTS: &str = "DELETE FROM policy_texts \
     WHERE digest NOT IN (SELECT digest FROM runtime_policies) \
     AND digest NOT IN (SELECT digest FROM boot_policies)";

/// The kinds of policies that have names. Each kind has names of its own; their texts are kept
/// together.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum PolicyKind {
    /// What a node may run.
    Runtime,
    /// What a node's boot log must show.
    Boot,
}

impl PolicyKind {
    fn table(self) -> &'static str {
        match self {
            Self::Runtime => "runtime_policies",
            Self::Boot => "boot_policies",
        }
    }

    /// Where a node says which one it uses.
    fn column(self) -> &'static str {
        match self {
            Self::Runtime => "policy_name",
            Self::Boot => "mb_policy_name",
        }
    }
}

impl fmt::Display for PolicyKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Runtime => "Runtime policy",
            Self::Boot => "Measured boot policy",
        })
    }
}

/// Which policy of one kind a node is to be judged by.
#[derive(Clone, Debug, Default)]
pub enum PolicyChoice {
    /// None.
    #[default]
    None,
    /// The one that is stored under this name.
    Named(String),
    /// Store this one.
    New(NewPolicy),
}

/// The policies of an enrolment.
#[derive(Clone, Debug, Default)]
pub struct PolicyChoices {
    /// Without one, any measured file fails.
    pub runtime: PolicyChoice,
    /// Without one, the boot log is not looked at.
    pub boot: PolicyChoice,
}

impl PolicyChoice {
    /// The name that it is stored under, or will be.
    pub fn name(&self) -> Option<&str> {
        match self {
            Self::None => None,
            Self::Named(name) => Some(name),
            Self::New(policy) => Some(&policy.name),
        }
    }
}

impl PolicyChoices {
    /// The one of a kind.
    pub fn of(&self, kind: PolicyKind) -> &PolicyChoice {
        match kind {
            PolicyKind::Runtime => &self.runtime,
            PolicyKind::Boot => &self.boot,
        }
    }
}

/// A policy to store.
#[derive(Clone, Debug)]
pub struct NewPolicy {
    /// Its name.
    pub name: String,
    /// Hex SHA-256 of `body`.
    pub digest: String,
    /// The text that operators get back.
    pub body: String,
}

/// What is known about a stored policy without its text.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PolicySummary {
    /// Its name.
    pub name: String,
    /// Hex SHA-256 of its text.
    pub digest: String,
    /// Size of its text.
    pub bytes: u64,
    /// How many nodes use it.
    pub nodes: u64,
}

/// What became of a policy that was to be removed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Removed {
    /// It is gone.
    Done,
    /// There is none of this name.
    Unknown,
    /// This node uses it.
    InUse(String),
}

/// Policies by name.
impl Store {
    /// Digest of the policy of this name.
    pub async fn policy_digest(
        &self,
        kind: PolicyKind,
        name: &str,
    ) -> Result<Option<String>, StoreError> {
        let query = format!("SELECT digest FROM {} WHERE name = $1", kind.table());
        let row = sqlx::query(AssertSqlSafe(query))
            .bind(name.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(Into::into)
    }

    /// Text of the policies with this digest.
    pub async fn policy_text(&self, digest: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT body FROM policy_texts WHERE digest = $1")
            .bind(digest.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(Into::into)
    }

    /// All policies of a kind, sorted by name.
    pub async fn policy_summaries(
        &self,
        kind: PolicyKind,
    ) -> Result<Vec<PolicySummary>, StoreError> {
        let query = format!(
            "SELECT policy.name, policy.digest, CAST(OCTET_LENGTH(text.body) AS BIGINT), \
             (SELECT COUNT(*) FROM nodes WHERE nodes.{} = policy.name) \
             FROM {} AS policy JOIN policy_texts AS text ON text.digest = policy.digest",
            kind.column(),
            kind.table()
        );
        let rows = sqlx::query(AssertSqlSafe(query))
            .fetch_all(&self.pool)
            .await?;
        let summary = |row: &AnyRow| {
            Ok(PolicySummary {
                name: row.try_get(0)?,
                digest: row.try_get(1)?,
                bytes: unsigned(row.try_get(2)?),
                nodes: unsigned(row.try_get(3)?),
            })
        };
        let mut summaries: Vec<_> = rows
            .iter()
            .map(summary)
            .collect::<Result<_, sqlx::Error>>()?;
        // Not by the database, whose order depends on its locale.
        summaries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(summaries)
    }

    /// Ids of the nodes that use the policy of this name, sorted.
    pub async fn policy_users(
        &self,
        kind: PolicyKind,
        name: &str,
    ) -> Result<Vec<String>, StoreError> {
        let query = format!("SELECT agent_id FROM nodes WHERE {} = $1", kind.column());
        let rows = sqlx::query(AssertSqlSafe(query))
            .bind(name.to_owned())
            .fetch_all(&self.pool)
            .await?;
        sorted_texts(&rows)
    }

    /// Stores a new policy. `false`: the name is in use, nothing was changed.
    pub async fn insert_policy(
        &self,
        kind: PolicyKind,
        policy: &NewPolicy,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin(Table::Policies).await?;
        if !put(&mut transaction, kind, policy).await? {
            transaction.rollback().await?;
            return Ok(false);
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Gives a stored policy another text. `false`: there is none of this name.
    pub async fn replace_policy(
        &self,
        kind: PolicyKind,
        policy: &NewPolicy,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin(Table::Policies).await?;
        put_text(&mut transaction, policy).await?;
        let update = format!("UPDATE {} SET digest = $2 WHERE name = $1", kind.table());
        let named = sqlx::query(AssertSqlSafe(update))
            .bind(policy.name.clone())
            .bind(policy.digest.clone())
            .execute(&mut *transaction)
            .await?;
        if named.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
        transaction.execute(DELETE_UNNAMED_TEXTS).await?;
        transaction
            .execute("UPDATE policy_generation SET number = number + 1")
            .await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// How many policies were replaced so far, by whichever verifier.
    pub async fn policy_generation(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT number FROM policy_generation")
            .fetch_one(&self.pool)
            .await?;
        Ok(unsigned(row.try_get(0)?))
    }

    /// Removes a policy that no node uses.
    pub async fn delete_policy(&self, kind: PolicyKind, name: &str) -> Result<Removed, StoreError> {
        let mut transaction = self.begin(Table::Policies).await?;
        if !delete_unused(&mut transaction, kind, name).await? {
            transaction.rollback().await?;
            let user = self.policy_users(kind, name).await?.into_iter().next();
            return Ok(user.map_or(Removed::Unknown, Removed::InUse));
        }
        transaction.execute(DELETE_UNNAMED_TEXTS).await?;
        transaction.commit().await?;
        Ok(Removed::Done)
    }
}

/// Stores a policy under a new name. `false`: the name is in use, and the transaction is to be
/// rolled back.
pub(super) async fn put(
    transaction: &mut Transaction<'_, Any>,
    kind: PolicyKind,
    policy: &NewPolicy,
) -> Result<bool, StoreError> {
    put_text(transaction, policy).await?;
    let insert = format!(
        "INSERT INTO {} (name, digest) VALUES ($1, $2) ON CONFLICT (name) DO NOTHING",
        kind.table()
    );
    let named = sqlx::query(AssertSqlSafe(insert))
        .bind(policy.name.clone())
        .bind(policy.digest.clone())
        .execute(&mut **transaction)
        .await?;
    Ok(named.rows_affected() > 0)
}

async fn put_text(
    transaction: &mut Transaction<'_, Any>,
    policy: &NewPolicy,
) -> Result<(), StoreError> {
    sqlx::query(
        "INSERT INTO policy_texts (digest, body) VALUES ($1, $2) ON CONFLICT (digest) DO NOTHING",
    )
    .bind(policy.digest.clone())
    .bind(policy.body.clone())
    .execute(&mut **transaction)
    .await?;
    Ok(())
}

/// Removes the policies that are named after a node which is gone, unless others use them.
pub(super) async fn delete_own(
    transaction: &mut Transaction<'_, Any>,
    agent_id: &str,
) -> Result<(), StoreError> {
    for kind in [PolicyKind::Runtime, PolicyKind::Boot] {
        delete_unused(transaction, kind, agent_id).await?;
    }
    transaction.execute(DELETE_UNNAMED_TEXTS).await?;
    Ok(())
}

async fn delete_unused(
    transaction: &mut Transaction<'_, Any>,
    kind: PolicyKind,
    name: &str,
) -> Result<bool, StoreError> {
    let delete = format!(
        "DELETE FROM {} WHERE name = $1 AND NOT EXISTS (SELECT 1 FROM nodes WHERE {} = $1)",
        kind.table(),
        kind.column()
    );
    let deleted = sqlx::query(AssertSqlSafe(delete))
        .bind(name.to_owned())
        .execute(&mut **transaction)
        .await?;
    Ok(deleted.rows_affected() > 0)
}
