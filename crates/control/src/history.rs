//! Pages of operations with signed cursors.
//!
//! The one rule: a cursor is bound to the filters and the caller it was made for. One that was changed, or is used with
//! other filters, is refused; it never shows somebody else's page.

use holdfast_model::error::{Code, Error};
use holdfast_store::history::{Filter, From, Page, Place};
use holdfast_trust::token;
use sha2::{Digest, Sha256};

use crate::Control;

const PURPOSE: &str = "operations";

/// A page and the cursors to its neighbours.
#[derive(Debug, Clone)]
pub struct Listed {
    pub page: Page,
    /// Towards older operations.
    pub next: Option<String>,
    /// Towards newer ones.
    pub previous: Option<String>,
    /// At most [`holdfast_store::history::COUNT_LIMIT`].
    pub total: i64,
}

impl Control {
    /// A page of operations. `audience` names the list, so that a cursor of one route is no cursor of another.
    pub async fn operations(
        &self,
        audience: &str,
        filter: &Filter,
        cursor: Option<&str>,
        limit: i64,
    ) -> Result<Listed, Error> {
        let bound = binding(audience, filter);
        let from = match cursor {
            None | Some("") => From::Newest,
            Some(text) => self.cursor_open(text, &bound)?,
        };
        let page = self.store.operations(filter, from, limit).await?;
        let total = self.store.operations_count(filter).await?;
        let next = page.operations.last().filter(|_| page.has_older).map(|o| self.cursor_seal(b'o', o.place(), &bound));
        let previous =
            page.operations.first().filter(|_| page.has_newer).map(|o| self.cursor_seal(b'n', o.place(), &bound));
        Ok(Listed { page, next, previous, total })
    }

    fn cursor_seal(&self, direction: u8, place: Place, bound: &[u8; 16]) -> String {
        let mut payload = Vec::with_capacity(33);
        payload.push(direction);
        payload.extend(place.created_at.to_be_bytes());
        payload.extend(place.id.to_be_bytes());
        payload.extend(bound);
        token::sign(&self.keys.cursor, PURPOSE, &payload)
    }

    fn cursor_open(&self, text: &str, bound: &[u8; 16]) -> Result<From, Error> {
        let invalid = || Error::new(Code::InvalidCursor, "The cursor is not valid for this list.");
        let payload = token::verify(&self.keys.cursor, PURPOSE, text).map_err(|_| invalid())?;
        let payload: [u8; 33] = payload.try_into().map_err(|_| invalid())?;
        if payload[17..] != bound[..] {
            return Err(invalid());
        }
        let number = |at: usize| i64::from_be_bytes(std::array::from_fn(|i| payload[at + i]));
        let place = Place { created_at: number(1), id: number(9) };
        match payload[0] {
            b'o' => Ok(From::OlderThan(place)),
            b'n' => Ok(From::NewerThan(place)),
            _ => Err(invalid()),
        }
    }
}

/// A digest of everything that decides what a list shows.
fn binding(audience: &str, filter: &Filter) -> [u8; 16] {
    let digest = Sha256::digest(format!("{audience}\0{filter:?}"));
    std::array::from_fn(|i| digest[i])
}
