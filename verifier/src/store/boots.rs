use sqlx::Row;

use super::{Safety, Store, StoreError, signed};

/// The last boots that were trusted.
impl Store {
    /// Keeps what the boot log of a node told, as JSON text, in place of that of its boot before. Of
    /// a node that was removed, or enrolled anew, nothing is kept.
    pub async fn keep_boot(
        &self,
        id: &str,
        generation: u64,
        boot: String,
    ) -> Result<(), StoreError> {
        let query = sqlx::query(
            "INSERT INTO boots (agent_id, generation, boot) \
             SELECT agent_id, generation, CAST($3 AS TEXT) FROM nodes \
             WHERE agent_id = $1 AND generation = $2 \
             ON CONFLICT (agent_id) DO UPDATE \
             SET generation = excluded.generation, boot = excluded.boot \
             WHERE boots.generation <> excluded.generation OR boots.boot <> excluded.boot",
        )
        .bind(id.to_owned())
        .bind(signed(generation))
        .bind(boot);
        let mut writer = self.writer(Safety::Crash).await?;
        query.execute(&mut *writer).await?;
        Ok(())
    }

    /// What is kept of a node.
    pub async fn boot(&self, id: &str, generation: u64) -> Result<Option<String>, StoreError> {
        let row = sqlx::query("SELECT boot FROM boots WHERE agent_id = $1 AND generation = $2")
            .bind(id.to_owned())
            .bind(signed(generation))
            .fetch_optional(&self.pool)
            .await?;
        Ok(row.map(|row| row.try_get(0)).transpose()?)
    }
}
