use sqlx::{AssertSqlSafe, Row, any::AnyRow};
use troth_core::wire::SecretText;

use super::{
    Safety, Store, StoreError, Table,
    policies::{self, PolicyChoice, PolicyChoices, PolicyKind},
    signed, unsigned,
};

/// Most records that one statement writes. Each is four parameters, and sqlx looks each up in a list
/// of all of them.
pub const MAX_UPDATES: usize = 64;
/// Smaller batches are filled up to this.
const SMALLEST_BATCH: usize = 4;

/// A node to enrol.
#[derive(Clone, Debug)]
pub struct NewNode {
    /// Agent id.
    pub agent_id: String,
    /// Tells this enrolment from an earlier one of the same id.
    pub generation: u64,
    /// Which verifier it belongs to.
    pub verifier_id: String,
    /// What the operator said, JSON text; it may have keys in it.
    pub enrolment: SecretText,
    /// State of Keylime's API.
    pub operational_state: u8,
    /// What the verifier knows, JSON text.
    pub record: String,
}

/// An enrolled node as it is stored.
#[derive(Clone, Debug)]
pub struct NodeRow {
    /// Agent id.
    pub agent_id: String,
    /// Tells this enrolment from an earlier one of the same id.
    pub generation: u64,
    /// JSON text; it may have keys in it.
    pub enrolment: SecretText,
    /// Its policies.
    pub policies: PolicyDigests,
    /// State of Keylime's API.
    pub operational_state: u8,
    /// JSON text.
    pub record: String,
}

/// Which texts a node's policies have at present.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct PolicyDigests {
    /// Digest of its runtime policy.
    pub runtime: Option<String>,
    /// Digest of its boot policy, unless that is in the enrolment.
    pub boot: Option<String>,
}

impl PolicyDigests {
    fn read(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            runtime: row.try_get("runtime_digest")?,
            boot: row.try_get("boot_digest")?,
        })
    }
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

/// What became of an enrolment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Enrolled {
    /// The node is stored.
    Done,
    /// The agent id is enrolled already.
    NodeExists,
    /// The name for this policy is in use.
    PolicyExists(PolicyKind),
}

/// Enrolled nodes.
impl Store {
    /// Stores a node and its policies, all or nothing.
    pub async fn insert_node(
        &self,
        node: &NewNode,
        policies: &PolicyChoices,
    ) -> Result<Enrolled, StoreError> {
        let mut transaction = self.begin(Table::Policies).await?;
        for kind in [PolicyKind::Runtime, PolicyKind::Boot] {
            if let PolicyChoice::New(policy) = policies.of(kind)
                && !policies::put(&mut transaction, kind, policy).await?
            {
                transaction.rollback().await?;
                return Ok(match self.node_exists(&node.agent_id).await? {
                    true => Enrolled::NodeExists,
                    false => Enrolled::PolicyExists(kind),
                });
            }
        }
        let inserted = sqlx::query(
            "INSERT INTO nodes (agent_id, generation, verifier_id, enrolment, policy_name, \
             mb_policy_name, operational_state, record) VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (agent_id) DO NOTHING",
        )
        .bind(node.agent_id.clone())
        .bind(signed(node.generation))
        .bind(node.verifier_id.clone())
        .bind(node.enrolment.expose().to_owned())
        .bind(policies.runtime.name().map(str::to_owned))
        .bind(policies.boot.name().map(str::to_owned))
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

    /// Is it enrolled, at whichever verifier?
    pub async fn node_exists(&self, id: &str) -> Result<bool, StoreError> {
        let row = sqlx::query("SELECT 1 FROM nodes WHERE agent_id = $1")
            .bind(id.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.is_some())
    }

    /// Forgets a node, with the policies that are named after it.
    pub async fn delete_node(&self, id: &str) -> Result<bool, StoreError> {
        let mut transaction = self.begin(Table::Policies).await?;
        let deleted = sqlx::query("DELETE FROM nodes WHERE agent_id = $1")
            .bind(id.to_owned())
            .execute(&mut *transaction)
            .await?;
        sqlx::query("DELETE FROM boots WHERE agent_id = $1")
            .bind(id.to_owned())
            .execute(&mut *transaction)
            .await?;
        policies::delete_own(&mut transaction, id).await?;
        transaction.commit().await?;
        Ok(deleted.rows_affected() > 0)
    }

    /// All nodes of this verifier, sorted by id.
    pub async fn nodes(&self, verifier_id: &str) -> Result<Vec<NodeRow>, StoreError> {
        let rows = sqlx::query(
            "SELECT n.agent_id, n.generation, n.enrolment, n.operational_state, n.record, \
             r.digest AS runtime_digest, b.digest AS boot_digest FROM nodes n \
             LEFT JOIN runtime_policies r ON r.name = n.policy_name \
             LEFT JOIN boot_policies b ON b.name = n.mb_policy_name \
             WHERE n.verifier_id = $1",
        )
        .bind(verifier_id.to_owned())
        .fetch_all(&self.pool)
        .await?;
        let row = |row: &AnyRow| -> Result<NodeRow, sqlx::Error> {
            Ok(NodeRow {
                agent_id: row.try_get("agent_id")?,
                generation: unsigned(row.try_get("generation")?),
                enrolment: row.try_get::<String, _>("enrolment")?.into(),
                policies: PolicyDigests::read(row)?,
                operational_state: u8::try_from(row.try_get::<i64, _>("operational_state")?)
                    .unwrap_or(u8::MAX),
                record: row.try_get("record")?,
            })
        };
        let mut nodes: Vec<_> = rows.iter().map(row).collect::<Result<_, _>>()?;
        nodes.sort_unstable_by(|a, b| a.agent_id.cmp(&b.agent_id));
        Ok(nodes)
    }

    /// The policies of all nodes of this verifier, by agent id.
    pub async fn node_policies(
        &self,
        verifier_id: &str,
    ) -> Result<Vec<(String, PolicyDigests)>, StoreError> {
        let rows = sqlx::query(
            "SELECT n.agent_id, r.digest AS runtime_digest, b.digest AS boot_digest FROM nodes n \
             LEFT JOIN runtime_policies r ON r.name = n.policy_name \
             LEFT JOIN boot_policies b ON b.name = n.mb_policy_name \
             WHERE n.verifier_id = $1",
        )
        .bind(verifier_id.to_owned())
        .fetch_all(&self.pool)
        .await?;
        let row = |row: &AnyRow| Ok((row.try_get("agent_id")?, PolicyDigests::read(row)?));
        rows.iter().map(row).collect()
    }

    /// What the operator said of a node, at whichever verifier; JSON text.
    pub async fn enrolment(&self, id: &str) -> Result<Option<SecretText>, StoreError> {
        let row = sqlx::query("SELECT enrolment FROM nodes WHERE agent_id = $1")
            .bind(id.to_owned())
            .fetch_optional(&self.pool)
            .await?;
        let text = row.map(|row| row.try_get::<String, _>(0)).transpose()?;
        Ok(text.map(SecretText::from))
    }

    /// Writes a batch of at most [`MAX_UPDATES`], all or none. It survives a crash of this process,
    /// but for speed not necessarily a power failure: the nodes are then simply judged again.
    pub async fn update_records(&self, updates: &[RecordUpdate]) -> Result<(), StoreError> {
        if updates.is_empty() {
            return Ok(());
        }
        // One statement: each costs two changes of threads with SQLite, a round trip else. Few
        // sizes, so that each is prepared once; what is left over matches no node.
        let rows = updates.len().next_power_of_two().max(SMALLEST_BATCH);
        let mut query = sqlx::query(AssertSqlSafe(update_statement(rows)));
        for update in updates {
            query = query
                .bind(i64::from(update.operational_state))
                .bind(update.record.clone())
                .bind(update.agent_id.clone())
                .bind(signed(update.generation));
        }
        for _ in updates.len()..rows {
            query = query
                .bind(None::<i64>)
                .bind(None::<String>)
                .bind(None::<String>)
                .bind(None::<i64>);
        }
        let mut writer = self.writer(Safety::Crash).await?;
        query.execute(&mut *writer).await?;
        Ok(())
    }
}

/// Updates as many nodes as `rows`, with four parameters each.
fn update_statement(rows: usize) -> String {
    let mut text = String::from(
        "UPDATE nodes SET operational_state = new.column1, record = new.column2 FROM (VALUES ",
    );
    for row in 0..rows {
        let (separator, first) = (if row == 0 { "" } else { ", " }, 4 * row + 1);
        let [a, b, c, d] = [first, first + 1, first + 2, first + 3];
        // A NULL alone says nothing of its type.
        text.push_str(&format!(
            "{separator}(CAST(${a} AS BIGINT), CAST(${b} AS TEXT), CAST(${c} AS TEXT), \
             CAST(${d} AS BIGINT))"
        ));
    }
    text.push_str(") AS new WHERE nodes.agent_id = new.column3 AND nodes.generation = new.column4");
    text
}
