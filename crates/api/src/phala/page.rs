//! Pages by number, as the Phala surface counts them.
//!
//! The one rule: `page` and `page_size` that make no sense are refused with their place, never bent into something else.

use holdfast_model::error::Error;
use serde::Serialize;
use utoipa::ToSchema;

use crate::extract::Params;

/// Most items that a page may have.
pub const LARGEST: i64 = 100;

/// One page of a list.
#[derive(Debug, Serialize, ToSchema)]
pub struct Page<T> {
    pub items: Vec<T>,
    /// Items in all.
    pub total: i64,
    /// Counted from 1.
    pub page: i64,
    pub page_size: i64,
    /// Pages in all.
    pub pages: i64,
}

/// Which page was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    pub page: i64,
    pub size: i64,
}

impl Wanted {
    /// Reads `page` (1) and `page_size` (`default_size`, at most [`LARGEST`]).
    pub fn read(params: &Params, default_size: i64) -> Result<Self, Error> {
        Self::read_up_to(params, default_size, LARGEST)
    }

    /// The same where a page may have more.
    pub fn read_up_to(params: &Params, default_size: i64, largest: i64) -> Result<Self, Error> {
        // Far enough for any list, and far from where the offset overflows.
        let page = params.integer("page", 1, i64::from(i32::MAX))?.unwrap_or(1);
        let size = params.integer("page_size", 1, largest)?.unwrap_or(default_size);
        Ok(Self { page, size })
    }

    pub fn offset(self) -> i64 {
        (self.page - 1) * self.size
    }

    pub fn pages(self, total: i64) -> i64 {
        (total + self.size - 1) / self.size
    }

    /// The page with these items, cut out by the query.
    pub fn of<T>(self, items: Vec<T>, total: i64) -> Page<T> {
        Page { items, total, page: self.page, page_size: self.size, pages: self.pages(total) }
    }

    /// The page cut out of a whole list.
    pub fn cut<T>(self, all: Vec<T>) -> Page<T> {
        let total = i64::try_from(all.len()).unwrap_or(i64::MAX);
        let skip = usize::try_from(self.offset()).unwrap_or(usize::MAX);
        let take = usize::try_from(self.size).unwrap_or(0);
        self.of(all.into_iter().skip(skip).take(take).collect(), total)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_cut_where_they_should() {
        let page = Wanted { page: 2, size: 2 }.cut(vec![1, 2, 3, 4, 5]);
        assert_eq!((page.items, page.total, page.pages), (vec![3, 4], 5, 3));
        let empty = Wanted { page: 9, size: 2 }.cut(Vec::<u8>::new());
        assert_eq!((empty.items.len(), empty.total, empty.pages), (0, 0, 0));
    }
}
