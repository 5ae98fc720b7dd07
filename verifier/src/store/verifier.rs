use sqlx::{Executor, Row};

use super::{Store, StoreError, Table, signed, sorted_texts, unsigned};

/// Texts live as long as a policy has them.
const DELETE_UNNAMED_TEXTS: &str =
    "DELETE FROM policy_texts WHERE digest NOT IN (SELECT digest FROM runtime_policies)";

/// A node to enrol.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Agent id.
    pub agent_id: String,
    /// Tells this enrolment from an earlier one of the same id.
    pub generation: u64,
    /// Which verifier it belongs to.
    pub verifier_id: String,
    /// What the operator said, JSON text.
    pub enrolment: String,
    /// State of Keylime's API.
    pub operational_state: u8,
    /// What the verifier knows, JSON text.
    pub record: String,
}

/// The runtime policy of an enrolment.
#[derive(Clone, Debug)]
pub enum PolicyChoice {
    /// None: any measured file fails.
    None,
    /// One that is stored already.
    Named(String),
    /// Store this one.
    New(NewPolicy),
}

/// A runtime policy to store.
#[derive(Clone, Debug)]
pub struct NewPolicy {
    /// Its name.
    pub name: String,
    /// Hex SHA-256 of `body`.
    pub digest: String,
    /// Policy JSON.
    pub body: String,
}

/// An enrolled node as it is stored.
#[derive(Clone, Debug)]
pub struct NodeRow {
    /// Agent id.
    pub agent_id: String,
    /// Tells this enrolment from an earlier one of the same id.
    pub generation: u64,
    /// JSON text.
    pub enrolment: String,
    /// Digest of its runtime policy.
    pub policy_digest: Option<String>,
    /// State of Keylime's API.
    pub operational_state: u8,
    /// JSON text.
    pub record: String,
}

/// What changed about a node.
#[derive(Clone, Debug)]
pub struct RecordUpdate {
    /// Agent id.
    pub agent_id: String,
    /// Its enrolment; an update of an earlier one changes nothing.
    pub generation: u64,
    /// State of Keylime's API.
    pub operational_state: u8,
    /// JSON text.
    pub record: String,
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

/// What became of an enrolment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Enrolled {
    /// The node is stored.
    Done,
    /// The agent id is enrolled already.
    NodeExists,
    /// A policy of this name exists already.
    PolicyExists,
}

/// The verifier's tables.
impl Store {
    /// Stores a node and its policy, both or neither.
    pub async fn insert_node(
        &self,
        node: &NewNode,
        policy: &PolicyChoice,
    ) -> Result<Enrolled, StoreError> {
        let mut transaction = self.begin(Table::RuntimePolicies).await?;
        let policy_name = match policy {
            PolicyChoice::None => None,
            PolicyChoice::Named(name) => Some(name.clone()),
            PolicyChoice::New(policy) => {
                sqlx::query(
                    "INSERT INTO policy_texts (digest, body) VALUES ($1, $2) \
                     ON CONFLICT (digest) DO NOTHING",
                )
                .bind(policy.digest.clone())
                .bind(policy.body.clone())
                .execute(&mut *transaction)
                .await?;
                let named = sqlx::query(
                    "INSERT INTO runtime_policies (name, digest) VALUES ($1, $2) \
                     ON CONFLICT (name) DO NOTHING",
                )
                .bind(policy.name.clone())
                .bind(policy.digest.clone())
                .execute(&mut *transaction)
                .await?;
                if named.rows_affected() == 0 {
                    transaction.rollback().await?;
                    return Ok(match self.node_exists(&node.agent_id).await? {
                        true => Enrolled::NodeExists,
                        false => Enrolled::PolicyExists,
                    });
                }
                Some(policy.name.clone())
            }
        };
        let inserted = sqlx::query(
            "INSERT INTO nodes (agent_id, generation, verifier_id, enrolment, policy_name, \
             operational_state, record) VALUES ($1, $2, $3, $4, $5, $6, $7) \
             ON CONFLICT (agent_id) DO NOTHING",
        )
        .bind(node.agent_id.clone())
        .bind(signed(node.generation))
        .bind(node.verifier_id.clone())
        .bind(node.enrolment.clone())
        .bind(policy_name)
        .bind(i64::from(node.operational_state))
        .bind(node.record.clone())
        .execute(&mut *transaction)
        .await?;
        if inserted.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(Enrolled::NodeExists);
        }
        transaction.commit().await?;
        Ok(Enrolled::Done)
    }

    async fn node_exists(&self, id: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 FROM nodes WHERE agent_id = $1")
            .bind(id.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// Forgets a node, with the policy that is named after it.
    pub async fn delete_node(&self, id: &str) -> Result<bool, StoreError> {
        let mut transaction = self.begin(Table::RuntimePolicies).await?;
        let deleted = sqlx::query("DELETE FROM nodes WHERE agent_id = $1")
            .bind(id.to_owned())
            .execute(&mut *transaction)
            .await?;
        sqlx::query(
            "DELETE FROM runtime_policies WHERE name = $1 \
             AND NOT EXISTS (SELECT 1 FROM nodes WHERE policy_name = $1)",
        )
        .bind(id.to_owned())
        .execute(&mut *transaction)
        .await?;
        transaction.execute(DELETE_UNNAMED_TEXTS).await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// All nodes of this verifier, sorted by id.
    pub async fn nodes(&self, verifier_id: &str) -> Result<Vec<NodeRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT n.agent_id, n.generation, n.enrolment, n.operational_state, n.record, \
             p.digest FROM nodes n LEFT JOIN runtime_policies p ON p.name = n.policy_name \
             WHERE n.verifier_id = $1",
        )
        .bind(verifier_id.to_owned())
        .fetch_all(&self.pool)
        .await?;
        let row = |row: &sqlx::any::AnyRow| -> Result<NodeRow, sqlx::Error> {
            Ok(NodeRow {
                agent_id: row.try_get("agent_id")?,
                generation: unsigned(row.try_get("generation")?),
                enrolment: row.try_get("enrolment")?,
                policy_digest: row.try_get("digest")?,
                operational_state: u8::try_from(row.try_get::<i64, _>("operational_state")?)
                    .unwrap_or(u8::MAX),
                record: row.try_get("record")?,
            })
        };
        let mut nodes: Vec<_> = rows.iter().map(row).collect::<Result<_, _>>()?;
        nodes.sort_unstable_by(|a, b| a.agent_id.cmp(&b.agent_id));
        Ok(nodes)
    }

    /// Digest of the runtime policy of this name.
    pub async fn policy_digest(&self, name: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT digest FROM runtime_policies WHERE name = $1")
            .bind(name.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(Into::into)
    }

    /// Text of the runtime policy with this digest.
    pub async fn policy_text(&self, digest: &str) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT body FROM policy_texts WHERE digest = $1")
            .bind(digest.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        row.map(|row| row.try_get(0))
            .transpose()
            .map_err(Into::into)
    }

    /// Names of all runtime policies, sorted.
    pub async fn policy_names(&self) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query("SELECT name FROM runtime_policies")
            .fetch_all(&self.pool)
            .await?;
        sorted_texts(&rows)
    }

    /// Ids of the nodes that use the runtime policy of this name, sorted.
    pub async fn policy_users(&self, name: &str) -> Result<Vec<String>, StoreError> {
        let rows = sqlx::query("SELECT agent_id FROM nodes WHERE policy_name = $1")
            .bind(name.to_owned())
            .fetch_all(&self.pool)
            .await?;
        sorted_texts(&rows)
    }

    /// Stores a new runtime policy. `false`: the name is in use, nothing was changed.
    pub async fn insert_policy(&self, policy: &NewPolicy) -> Result<bool, StoreError> {
        self.name_policy(
            policy,
            "INSERT INTO runtime_policies (name, digest) VALUES ($1, $2) \
             ON CONFLICT (name) DO NOTHING",
        )
        .await
    }

    /// Gives a stored runtime policy another text. `false`: there is none of this name.
    pub async fn replace_policy(&self, policy: &NewPolicy) -> Result<bool, StoreError> {
        self.name_policy(
            policy,
            "UPDATE runtime_policies SET digest = $2 WHERE name = $1",
        )
        .await
    }

    /// Stores a text, then gives it its name by `statement`; both or neither.
    async fn name_policy(
        &self,
        policy: &NewPolicy,
        statement: &'static str,
    ) -> Result<bool, StoreError> {
        let mut transaction = self.begin(Table::RuntimePolicies).await?;
        sqlx::query(
            "INSERT INTO policy_texts (digest, body) VALUES ($1, $2) \
             ON CONFLICT (digest) DO NOTHING",
        )
        .bind(policy.digest.clone())
        .bind(policy.body.clone())
        .execute(&mut *transaction)
        .await?;
        let named = sqlx::query(statement)
            .bind(policy.name.clone())
            .bind(policy.digest.clone())
            .execute(&mut *transaction)
            .await?;
        if named.rows_affected() == 0 {
            transaction.rollback().await?;
            return Ok(false);
        }
        transaction.execute(DELETE_UNNAMED_TEXTS).await?;
        transaction.commit().await?;
        Ok(true)
    }

    /// Removes a runtime policy that no node uses.
    pub async fn delete_policy(&self, name: &str) -> Result<Removed, StoreError> {
        let mut transaction = self.begin(Table::RuntimePolicies).await?;
        let deleted = sqlx::query(
            "DELETE FROM runtime_policies WHERE name = $1 \
             AND NOT EXISTS (SELECT 1 FROM nodes WHERE policy_name = $1)",
        )
        .bind(name.to_owned())
        .execute(&mut *transaction)
        .await?;
        if deleted.rows_affected() == 0 {
            transaction.rollback().await?;
            let user = self.policy_users(name).await?.into_iter().next();
            return Ok(user.map_or(Removed::Unknown, Removed::InUse));
        }
        transaction.execute(DELETE_UNNAMED_TEXTS).await?;
        transaction.commit().await?;
        Ok(Removed::Done)
    }

    /// Writes a batch in one transaction. It survives a crash of this process, but for speed not
    /// necessarily a power failure: the nodes are then simply judged again.
    pub async fn update_records(&self, updates: &[RecordUpdate]) -> Result<(), StoreError> {
        let mut connection = self.pool.acquire().await?;
        if self.sqlite {
            connection.execute("PRAGMA synchronous = NORMAL").await?;
        }
        let result = write_records(&mut connection, updates).await;
        if self.sqlite {
            connection.execute("PRAGMA synchronous = FULL").await?;
        }
        result
    }
}

async fn write_records(
    connection: &mut sqlx::AnyConnection,
    updates: &[RecordUpdate],
) -> Result<(), StoreError> {
    let mut transaction = sqlx::Connection::begin(connection).await?;
    for update in updates {
        sqlx::query(
            "UPDATE nodes SET operational_state = $1, record = $2 \
             WHERE agent_id = $3 AND generation = $4",
        )
        .bind(i64::from(update.operational_state))
        .bind(update.record.clone())
        .bind(update.agent_id.clone())
        .bind(signed(update.generation))
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(())
}
