//! Pages of a list: its order, a place in it, and how many rows there are.
//!
//! The one rule: a page is a range of an index. It begins at a place (the values a row is sorted by, and its key), never at
//! a number of rows to skip, so page 10,000 costs what page 1 costs and nothing is shown twice while others write.

use crate::sql::Query;

/// Totals are exact up to this number and estimates above it.
pub const COUNTED: i64 = 1_000;

/// How a query names the columns of its order.
pub(crate) type Spelling = fn(&str) -> String;

/// One term of an order: a column that holds whole numbers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term {
    pub column: &'static str,
    pub descending: bool,
}

/// What a list is sorted by, first term first. Rows that are equal in all of them are in the order of their keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sort(Vec<Term>);

impl Sort {
    /// `None` when there is no term, or a column comes twice.
    pub fn new(terms: Vec<Term>) -> Option<Self> {
        let twice = terms.iter().enumerate().any(|(i, term)| terms[..i].iter().any(|t| t.column == term.column));
        (!terms.is_empty() && !twice).then_some(Self(terms))
    }

    pub fn newest_first(column: &'static str) -> Self {
        Self(vec![Term { column, descending: true }])
    }

    pub fn oldest_first(column: &'static str) -> Self {
        Self(vec![Term { column, descending: false }])
    }

    /// The same order with one more term, in the direction of the last, unless it has that column.
    pub fn then(mut self, column: &'static str) -> Self {
        let descending = self.0.last().is_some_and(|term| term.descending);
        if !self.0.iter().any(|term| term.column == column) {
            self.0.push(Term { column, descending });
        }
        self
    }

    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    pub(crate) fn leads_with(&self, column: &str) -> bool {
        self.0.first().is_some_and(|term| term.column == column)
    }

    /// The same list read from its end.
    fn reversed(&self) -> Self {
        Self(self.0.iter().map(|t| Term { column: t.column, descending: !t.descending }).collect())
    }

    /// `created_at DESC, id DESC`, with each column spelled as `spell` says.
    pub(crate) fn order_by(&self, spell: Spelling) -> String {
        let direction = |descending| if descending { "DESC" } else { "ASC" };
        let mut terms: Vec<String> =
            self.0.iter().map(|t| format!("{} {}", spell(t.column), direction(t.descending))).collect();
        terms.push(format!("{} {}", spell("id"), direction(self.key_descends())));
        terms.join(", ")
    }

    fn key_descends(&self) -> bool {
        self.0.first().is_some_and(|term| term.descending)
    }

    /// Adds the condition that a row comes after `place`.
    pub(crate) fn push_after(&self, query: &mut Query, spell: Spelling, place: &Place) {
        let compare = |descending| if descending { "<" } else { ">" };
        let Some((first, from)) = self.0.first().zip(place.values.first()) else { return };
        let uniform = self.0.iter().all(|t| t.descending == first.descending);
        if uniform {
            let columns: Vec<String> = self.0.iter().map(|t| spell(t.column)).collect();
            query.push(format!(" AND ({}, {}) {} (", columns.join(", "), spell("id"), compare(first.descending)));
            for value in &place.values {
                query.push_bind(*value).push(", ");
            }
            query.push_bind(place.id).push(")");
            return;
        }
        // Terms that go different ways: the first one bounds the range, the rest is looked at row by row.
        query.push(format!(" AND {} {}= ", spell(first.column), compare(first.descending))).push_bind(*from);
        query.push(" AND (");
        for (i, term) in self.0.iter().enumerate() {
            self.push_equal(query, spell, place, i);
            query.push(format!("{} {} ", spell(term.column), compare(term.descending)));
            query.push_bind(place.values.get(i).copied().unwrap_or_default()).push(" OR ");
        }
        self.push_equal(query, spell, place, self.0.len());
        query.push(format!("{} {} ", spell("id"), compare(self.key_descends()))).push_bind(place.id).push(")");
    }

    /// The first `count` terms are as they are at the place.
    fn push_equal(&self, query: &mut Query, spell: Spelling, place: &Place, count: usize) {
        for (term, value) in self.0.iter().zip(&place.values).take(count) {
            query.push(format!("{} = ", spell(term.column))).push_bind(*value).push(" AND ");
        }
    }
}

/// A place in a list; a cursor is a signed one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// One for each term of the sort.
    pub values: Vec<i64>,
    pub id: i64,
}

/// Where a page begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum From {
    Start,
    After(Place),
    /// The page that ends just before this place.
    Before(Place),
}

impl From {
    /// The order to read in, and the place to read on from.
    pub(crate) fn read<'a>(&'a self, sort: &Sort) -> (Sort, Option<&'a Place>) {
        match self {
            Self::Start => (sort.clone(), None),
            Self::After(place) => (sort.clone(), Some(place)),
            Self::Before(place) => (sort.reversed(), Some(place)),
        }
    }
}

/// Some rows of a list, in its order.
#[derive(Debug, Clone, PartialEq)]
pub struct Page<T> {
    pub items: Vec<T>,
    pub has_next: bool,
    pub has_previous: bool,
    /// Of the whole list.
    pub total: Total,
}

impl<T> Page<T> {
    /// Of rows that were read in the order of [`From::read`], one more than the page holds if there were more.
    pub(crate) fn of(mut rows: Vec<T>, from: &From, limit: i64, total: Total) -> Self {
        let limit = usize::try_from(limit).unwrap_or(0);
        let more = rows.len() > limit;
        rows.truncate(limit);
        // Whoever comes from a place knows that there is something on the other side of it.
        let (has_next, has_previous) = match from {
            From::Start => (more, false),
            From::After(_) => (more, true),
            From::Before(_) => {
                rows.reverse();
                (true, more)
            }
        };
        Self { items: rows, has_next, has_previous, total }
    }
}

/// How many rows a list has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Total {
    pub number: i64,
    /// The number is above [`COUNTED`] and extrapolated.
    pub is_estimate: bool,
}

impl Total {
    pub(crate) fn exact(number: i64) -> Self {
        Self { number, is_estimate: false }
    }

    /// Extrapolates from what was counted: `counted` rows lie in `covered` of the `whole` range that rows can lie in.
    /// The ruler is the sequence of keys (or of names), which is steady however uneven time was.
    ///
    /// It is as good as the rows are evenly spread along the ruler: a filter that matches many new rows and few old ones
    /// is estimated too high, the reverse too low, and a moment later the number may differ. It is never below what was
    /// counted.
    pub(crate) fn estimate(counted: i64, covered: i64, whole: i64) -> Self {
        let covered = i128::from(covered.max(1));
        let number = i128::from(counted) * i128::from(whole).max(covered) / covered;
        Self { number: i64::try_from(number).unwrap_or(i64::MAX).max(counted), is_estimate: true }
    }
}

/// A condition on a column, which an index may serve if it `leads`; else on an expression of it, which none does.
pub(crate) fn number(column: &str, leads: bool) -> String {
    if leads { format!(" AND {column}") } else { format!(" AND ({column} + 0)") }
}

pub(crate) fn text(column: &str, leads: bool) -> String {
    if leads { format!(" AND {column}") } else { format!(" AND ({column} || '')") }
}

/// The column is one of these.
pub(crate) fn push_any(query: &mut Query, column: &str, words: &[&str]) {
    query.push(column);
    if let [word] = words {
        query.push(" = ").push_bind((*word).to_owned());
        return;
    }
    query.push(" IN (").push_list(words.iter().map(|word| (*word).to_owned())).push(")");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn term(column: &'static str, descending: bool) -> Term {
        Term { column, descending }
    }

    #[test]
    fn estimates_follow_the_ruler() {
        let estimate = |counted, covered, whole| Total::estimate(counted, covered, whole).number;
        // Every key is a match; every tenth is.
        assert_eq!(estimate(1_001, 1_001, 10_000_000), 10_000_000);
        assert_eq!(estimate(1_001, 10_010, 10_000_000), 1_000_000);
        // All of it is covered.
        assert_eq!(estimate(1_001, 5_000, 5_000), 1_001);
        // What cannot be: never below the count, no division by nothing, no overflow.
        assert_eq!(estimate(1_001, 5_000, 10), 1_001);
        assert_eq!(estimate(1_001, 0, 0), 1_001);
        assert_eq!(estimate(i64::MAX, 1, i64::MAX), i64::MAX);
        assert!(Total::estimate(1_001, 1, 1).is_estimate && !Total::exact(1_000).is_estimate);
    }

    #[test]
    fn an_order_names_a_column_once() {
        assert!(Sort::new(vec![term("at", true), term("at", false)]).is_none());
        assert!(Sort::new(Vec::new()).is_none());
        let mixed = Sort::new(vec![term("a", false), term("b", true)]).expect("an order");
        assert_eq!(mixed.order_by(|c| format!("o.{c}")), "o.a ASC, o.b DESC, o.id ASC");
        assert_eq!(mixed.reversed().order_by(str::to_owned), "a DESC, b ASC, id DESC");
    }

    #[test]
    fn what_comes_after_a_place() {
        let place = Place { values: vec![7, 8], id: 9 };
        let after = |terms| {
            let mut query = crate::sql::query("");
            Sort::new(terms).expect("an order").push_after(&mut query, str::to_owned, &place);
            query.text().to_owned()
        };
        assert_eq!(after(vec![term("a", true), term("b", true)]), " AND (a, b, id) < (?, ?, ?)");
        assert_eq!(
            after(vec![term("a", true), term("b", false)]),
            " AND a <= ? AND (a < ? OR a = ? AND b > ? OR a = ? AND b = ? AND id < ?)"
        );
    }
}
