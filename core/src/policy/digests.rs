use std::hash::{BuildHasher, RandomState};
use std::hint::black_box;

use super::schema::TableBuilder;

/// Names (paths, keyrings, buffers) with their allowed digests.
///
/// A policy of a distribution has 100,000 names and is shared by all nodes of a fleet, so it is
/// held compactly: one record after the other in one arena (name length, number of digests, the
/// name, each digest with its length), and an open-addressed index of offsets. The index is
/// hashed with the standard library's keyed SipHash: the names looked up are chosen by the
/// attested host, which must not be able to aim at the longest probe sequence. It costs some
/// 20 ns a name, a tenth of what the digests of an IMA entry cost.
#[derive(Debug, Default)]
pub struct DigestTable {
    arena: Vec<u8>,
    /// High half of the hash, and the offset of the record plus one; 0 is an empty slot.
    slots: Vec<(u32, u32)>,
    names: usize,
    hasher: RandomState,
}

/// Size of a record's two counters.
const HEADER: usize = 8;

impl DigestTable {
    /// Number of names.
    pub fn len(&self) -> usize {
        self.names
    }

    /// No names?
    pub fn is_empty(&self) -> bool {
        self.names == 0
    }

    /// The digests allowed for `name`.
    pub fn get(&self, name: &str) -> Option<AllowedDigests<'_>> {
        self.probe(name, self.locate(name.as_bytes())?)
    }

    /// The same for several names, with less waiting: of a large table neither the slot nor the
    /// record of a name is in the processor's caches, and here they are fetched side by side.
    pub fn get_each<const N: usize>(&self, names: [&str; N]) -> [Option<AllowedDigests<'_>>; N] {
        let places = names.map(|name| self.locate(name.as_bytes()));
        let offsets = places.map(|place| place.map_or(0, |(slot, _)| self.slots[slot].1));
        // Nothing is done with these bytes: reading them fetches their records.
        black_box(offsets.map(|offset| self.arena.get(offset as usize).copied()));
        std::array::from_fn(|index| self.probe(names[index], places[index]?))
    }

    /// The record of `name`, whose search begins at a slot.
    fn probe(&self, name: &str, (mut slot, tag): (usize, u32)) -> Option<AllowedDigests<'_>> {
        loop {
            let (found, offset) = self.slots[slot];
            if offset == 0 {
                return None;
            }
            if found == tag {
                let (listed, digests) = self.record(offset);
                if listed == name.as_bytes() {
                    return Some(digests);
                }
            }
            slot = (slot + 1) & (self.slots.len() - 1);
        }
    }

    /// Where the search for `name` begins, and its tag; `None` in an empty table.
    fn locate(&self, name: &[u8]) -> Option<(usize, u32)> {
        let mask = self.slots.len().checked_sub(1)?;
        let hash = self.hasher.hash_one(name);
        let low = usize::try_from(hash & u64::from(u32::MAX)).unwrap_or_default();
        let tag = u32::try_from(hash >> 32).unwrap_or_default();
        Some((low & mask, tag))
    }

    /// Name and digests of the record at `offset - 1`.
    fn record(&self, offset: u32) -> (&[u8], AllowedDigests<'_>) {
        let start = offset as usize - 1;
        let number = |at: usize| {
            let bytes = &self.arena[at..at + 4];
            u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
        };
        let name_end = start + HEADER + number(start) as usize;
        let digests = AllowedDigests {
            left: number(start + 4),
            bytes: &self.arena[name_end..],
        };
        (&self.arena[start + HEADER..name_end], digests)
    }
}

/// Collects records, then indexes them.
#[derive(Debug, Default)]
pub(super) struct DigestTableBuilder {
    table: DigestTable,
    offsets: Vec<u32>,
}

/// The arena's 4 GiB are used up.
#[derive(Debug)]
pub(super) struct ArenaFull;

impl TableBuilder for DigestTableBuilder {
    type Table = DigestTable;

    fn name(&mut self, name: &str) -> Result<(), ArenaFull> {
        let arena = &mut self.table.arena;
        let offset = u32::try_from(arena.len() + 1).map_err(|_| ArenaFull)?;
        let length = u32::try_from(name.len()).map_err(|_| ArenaFull)?;
        arena.extend_from_slice(&length.to_le_bytes());
        arena.extend_from_slice(&[0; 4]);
        arena.extend_from_slice(name.as_bytes());
        self.offsets.push(offset);
        Ok(())
    }

    fn digest(&mut self, digest: &[u8]) {
        let (Some(offset), Ok(length)) = (self.offsets.last(), u8::try_from(digest.len())) else {
            return;
        };
        let arena = &mut self.table.arena;
        let count = &mut arena[*offset as usize + 3..][..4];
        let more = u32::from_le_bytes([count[0], count[1], count[2], count[3]]) + 1;
        count.copy_from_slice(&more.to_le_bytes());
        arena.push(length);
        arena.extend_from_slice(digest);
    }

    fn build(self) -> Result<DigestTable, String> {
        let Self { mut table, offsets } = self;
        table.names = offsets.len();
        table.arena.shrink_to_fit();
        if offsets.is_empty() {
            return Ok(table);
        }
        table.slots = vec![(0, 0); (offsets.len() * 2).next_power_of_two()];
        for offset in offsets {
            let (name, _) = table.record(offset);
            let Some((mut slot, tag)) = table.locate(name) else {
                break;
            };
            while table.slots[slot].1 != 0 {
                let (found, other) = table.slots[slot];
                if found == tag && table.record(other).0 == name {
                    return Err(String::from_utf8_lossy(name).into_owned());
                }
                slot = (slot + 1) & (table.slots.len() - 1);
            }
            table.slots[slot] = (tag, offset);
        }
        Ok(table)
    }
}

/// The digests allowed for one name, in the policy's order.
#[derive(Clone, Copy, Debug)]
pub struct AllowedDigests<'p> {
    left: u32,
    bytes: &'p [u8],
}

impl AllowedDigests<'_> {
    /// Is `digest` one of them? The hash algorithm's name plays no role, its length does.
    pub fn contains(self, digest: &[u8]) -> bool {
        self.into_iter().any(|allowed| allowed == digest)
    }
}

impl<'p> Iterator for AllowedDigests<'p> {
    type Item = &'p [u8];

    fn next(&mut self) -> Option<&'p [u8]> {
        self.left = self.left.checked_sub(1)?;
        let (length, rest) = self.bytes.split_first()?;
        let (digest, rest) = rest.split_at_checked(usize::from(*length))?;
        self.bytes = rest;
        Some(digest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_found_with_its_own_digests() {
        let mut builder = DigestTableBuilder::default();
        for n in 0..5_000u32 {
            builder.name(&format!("/usr/lib/file-{n}")).unwrap();
            builder.digest(&n.to_be_bytes());
            builder.digest(&[7; 64]);
        }
        let table = builder.build().unwrap();
        assert_eq!(table.len(), 5_000);
        for n in 0..5_000u32 {
            let allowed = table.get(&format!("/usr/lib/file-{n}")).unwrap();
            assert_eq!(
                allowed.collect::<Vec<_>>(),
                [&n.to_be_bytes()[..], &[7; 64]]
            );
            assert!(!allowed.contains(&(n + 1).to_be_bytes()));
        }
        assert!(table.get("/usr/lib/file-5000").is_none());
        let each = table.get_each(["/usr/lib/file-7", "", "/usr/lib/file-5000"]);
        let firsts = each.map(|allowed| allowed.and_then(|mut allowed| allowed.next()));
        assert_eq!(firsts, [Some(&7u32.to_be_bytes()[..]), None, None]);
        assert!(DigestTable::default().get("").is_none());
        assert!(DigestTable::default().get_each([""])[0].is_none());
    }

    #[test]
    fn a_name_given_twice_is_an_error() {
        let mut builder = DigestTableBuilder::default();
        for name in ["a", "b", "a"] {
            builder.name(name).unwrap();
        }
        assert_eq!(builder.build().unwrap_err(), "a");
    }
}
