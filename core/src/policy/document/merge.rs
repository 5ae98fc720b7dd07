use super::PolicyDocument;
use crate::policy::PolicyError;
use crate::policy::schema::Members;

impl PolicyDocument {
    /// Allows also what `other` allows: the union of all sets, with the later time and release.
    /// The order of merging, and merging twice, make no difference.
    ///
    /// # Errors
    /// [`PolicyError::Merge`] names what the two say differently, such as `ima.log_hash_alg`;
    /// two keys of one id; or excludes that are too large together.
    pub fn merge(&self, other: Self) -> Result<Self, PolicyError> {
        let mut merged = self.clone();
        same("meta.version", &self.version, &other.version)?;
        let (mine, theirs) = (self.log_hash_alg, other.log_hash_alg);
        same("ima.log_hash_alg", &mine, &theirs)?;
        merged.dm_policy = match (&self.dm_policy, other.dm_policy) {
            (Some(mine), Some(theirs)) => {
                same("ima.dm_policy", mine, &theirs)?;
                Some(theirs)
            }
            (mine, theirs) => mine.clone().or(theirs),
        };
        merged.generator = self.generator.max(other.generator);
        merged.timestamp = merged.timestamp.max(other.timestamp);
        merged.release = self.release.max(other.release);
        merged.digests.merge(other.digests);
        merged.keyrings.merge(other.keyrings);
        merged.ima_buf.merge(other.ima_buf);
        merged.add_excludes(other.excludes.iter().map(String::as_str))?;
        merged.ignored_keyrings.extend(other.ignored_keyrings);
        for (id, key) in other.verification_keys.iter() {
            merged.add_verification_key(Some(id), key)?;
        }
        let others = other.verification_keys.other().clone();
        let mine = merged.verification_keys.other_mut();
        members("verification-keys.", mine, others)?;
        members("meta.", &mut merged.other_meta, other.other_meta)?;
        members("ima.", &mut merged.other_ima, other.other_ima)?;
        members("", &mut merged.other, other.other)?;
        Ok(merged)
    }
}

fn members(above: &str, mine: &mut Members, theirs: Members) -> Result<(), PolicyError> {
    for (name, value) in theirs.0 {
        let mine = mine.0.entry(name.clone()).or_insert_with(|| value.clone());
        same(&format!("{above}{name}"), mine, &value)?;
    }
    Ok(())
}

fn same<T: Eq + ToString>(member: &str, mine: &T, theirs: &T) -> Result<(), PolicyError> {
    if mine == theirs {
        return Ok(());
    }
    Err(PolicyError::Merge {
        member: member.to_owned(),
        values: [shown(mine), shown(theirs)],
    })
}

/// The beginning of a value, for an error.
fn shown(value: &impl ToString) -> String {
    value.to_string().chars().take(60).collect()
}
