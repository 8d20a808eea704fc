//! Signed cursors: a place in a list, and a direction to go from there.
//!
//! The one rule: a cursor is bound to the list, the filters, the order and the caller's workspace that it was made for.
//! One that was changed, or is used with anything else, is refused; it never shows somebody else's page.

use std::fmt::Debug;

use holdfast_model::error::{Code, Error};
use holdfast_store::page::{From, Page, Place, Sort};
use holdfast_trust::token;
use sha2::{Digest, Sha256};

use crate::Control;

const PURPOSE: &str = "cursor";
const BOUND: usize = 16;

/// A page and the cursors to its neighbours.
#[derive(Debug, Clone)]
pub struct Listed<T> {
    pub page: Page<T>,
    pub next: Option<String>,
    pub previous: Option<String>,
}

/// What a cursor is bound to.
pub(crate) struct Bound([u8; BOUND]);

impl Bound {
    /// A digest of everything that decides what a list shows. `audience` names the list, so that a cursor of one route
    /// is no cursor of another.
    pub(crate) fn to(audience: &str, filter: &impl Debug, sort: &Sort) -> Self {
        let digest = Sha256::digest(format!("{audience}\0{filter:?}\0{sort:?}"));
        Self(std::array::from_fn(|i| digest[i]))
    }
}

impl Control {
    /// Where a page begins that is asked for with this cursor.
    pub(crate) fn cursor_open(&self, cursor: Option<&str>, bound: &Bound, sort: &Sort) -> Result<From, Error> {
        let Some(text) = cursor.filter(|text| !text.is_empty()) else { return Ok(From::Start) };
        let opened = token::verify(&self.keys.cursor, PURPOSE, text).ok().and_then(|payload| {
            let place = payload.strip_suffix(&bound.0)?;
            let (direction, numbers) = place.split_first()?;
            let (numbers, rest) = numbers.as_chunks::<8>();
            let (id, values) = numbers.split_last()?;
            if !rest.is_empty() || values.len() != sort.terms().len() {
                return None;
            }
            let values = values.iter().map(|value| i64::from_be_bytes(*value)).collect();
            let place = Place { values, id: i64::from_be_bytes(*id) };
            match direction {
                b'n' => Some(From::After(place)),
                b'p' => Some(From::Before(place)),
                _ => None,
            }
        });
        opened.ok_or_else(|| Error::new(Code::InvalidCursor, "The cursor is not valid for this list."))
    }

    /// The page with the cursors to the pages around it.
    pub(crate) fn listed<T>(&self, page: Page<T>, bound: &Bound, place: impl Fn(&T) -> Place) -> Listed<T> {
        let seal = |direction: u8, place: Place| {
            let mut payload = vec![direction];
            for number in place.values.iter().chain([&place.id]) {
                payload.extend(number.to_be_bytes());
            }
            payload.extend(bound.0);
            token::sign(&self.keys.cursor, PURPOSE, &payload)
        };
        let next = page.items.last().filter(|_| page.has_next).map(|item| seal(b'n', place(item)));
        let previous = page.items.first().filter(|_| page.has_previous).map(|item| seal(b'p', place(item)));
        Listed { page, next, previous }
    }
}
