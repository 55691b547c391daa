//! Records that let somebody in until a time, each under an id: tokens and clients. How they are listed, forgotten and taken away.

use super::catalog::{ATTEMPTS, Catalog, CatalogError, compare, not_found};
use super::records::{Key, decode};
use super::store::Change;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use std::fmt::Display;

impl Catalog {
    /// Those under a prefix whose keys `id` knows.
    pub(super) async fn grants<I, T: DeserializeOwned>(
        &self,
        prefix: &str,
        id: impl Fn(Key) -> Option<I>,
    ) -> Result<Vec<(I, T)>, CatalogError> {
        let (rows, _) = self.store().range(prefix).await?;
        let grants = rows
            .iter()
            .filter_map(|row| Some((id(Key::parse(&row.key)?)?, decode(&row.key, &row.value)?)));
        Ok(grants.collect())
    }

    /// Forgets those whose time is over; how many are left.
    pub(super) async fn forget_expired(
        &self,
        grants: impl IntoIterator<Item = (Key, Timestamp)>,
        now: Timestamp,
    ) -> Result<usize, CatalogError> {
        let mut there = 0;
        for (key, expires_at) in grants {
            if expires_at <= now {
                let key = key.text();
                self.transact(Vec::new(), vec![Change::Delete { key }]).await?;
            } else {
                there += 1;
            }
        }
        Ok(there)
    }

    /// Takes one away; `kind` and `id` name it in errors.
    pub(super) async fn take_away(&self, key: Key, kind: &'static str, id: impl Display) -> Result<(), CatalogError> {
        let key = key.text();
        for attempt in 0..ATTEMPTS {
            let row = match self.store().get(&key).await? {
                Some(row) => row,
                None if attempt > 0 => return Ok(()),
                None => return Err(not_found(kind, &id.to_string())),
            };
            let change = Change::Delete { key: key.clone() };
            if self.transact(vec![compare(&key, row.revision)], vec![change]).await? {
                return Ok(());
            }
        }
        Err(CatalogError::Conflict(format!("{kind} `{id}`")))
    }
}
