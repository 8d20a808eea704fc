//! What an operation is, in the words of the database and of the three surfaces.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize};

/// Kind of resource an operation acts on (Nirvana `kind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Vm,
    Volume,
    Vpc,
    FirewallRule,
    NksCluster,
    NksNodePool,
}

impl Kind {
    pub const ALL: [Self; 6] =
        [Self::Vm, Self::Volume, Self::Vpc, Self::FirewallRule, Self::NksCluster, Self::NksNodePool];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Vm => "vm",
            Self::Volume => "volume",
            Self::Vpc => "vpc",
            Self::FirewallRule => "firewall_rule",
            Self::NksCluster => "nks_cluster",
            Self::NksNodePool => "nks_node_pool",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|k| k.as_str() == text)
    }
}

/// What an operation does to its resource (Nirvana `type`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verb {
    Create,
    Update,
    Delete,
    Restart,
}

impl Verb {
    pub const ALL: [Self; 4] = [Self::Create, Self::Update, Self::Delete, Self::Restart];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Create => "create",
            Self::Update => "update",
            Self::Delete => "delete",
            Self::Restart => "restart",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|v| v.as_str() == text)
    }
}

/// Where an operation stands.
///
/// ```text
/// pending -> running -> done
///               |-----> failed      (an error; undone when that was before the pivot)
///               |-----> cancelled   (somebody asked, before the pivot; undone)
///               '-----> stuck       (an undo was refused; needs a person)
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Status {
    Pending,
    Running,
    Done,
    Failed,
    Cancelled,
    Stuck,
}

impl Status {
    pub const ALL: [Self; 6] = [Self::Pending, Self::Running, Self::Done, Self::Failed, Self::Cancelled, Self::Stuck];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
            Self::Stuck => "stuck",
        }
    }

    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|s| s.as_str() == text)
    }

    /// A terminal status never changes again.
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Cancelled)
    }

    /// The word of the Phala surface.
    pub fn phala(self) -> &'static str {
        match self {
            Self::Pending | Self::Running | Self::Stuck => "in_progress",
            Self::Done => "completed",
            Self::Failed | Self::Cancelled => "failed",
        }
    }

    /// The word of the Nirvana surface.
    pub fn nirvana(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Running => "running",
            Self::Done => "done",
            Self::Failed | Self::Cancelled => "failed",
            Self::Stuck => "unknown",
        }
    }
}

/// One side of a changed field: scalars and string arrays only, never a secret.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Value {
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<String>),
}

/// By hand, because each list of operations reads many: the derived one tries one variant after the other and words an error
/// for each that it is not.
impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        d.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a truth value, a number, a text or a list of texts")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        // Above that it is a number like any other that is too large to be whole.
        Ok(i64::try_from(value).map_or(Value::Number(value as f64), Value::Integer))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<i64> for Value {
    fn from(n: i64) -> Self {
        Self::Integer(n)
    }
}

impl From<bool> for Value {
    fn from(b: bool) -> Self {
        Self::Bool(b)
    }
}

impl From<Vec<String>> for Value {
    fn from(list: Vec<String>) -> Self {
        Self::List(list)
    }
}

/// A field before and after. A field that did not exist before, or does not after, has no value on that side.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FieldDiff {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// What an operation changes, by field name.
pub type Diff = BTreeMap<String, FieldDiff>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_as_they_were_written() {
        let list = Value::from(vec!["a".to_owned(), "\"b\"\n".to_owned()]);
        for value in
            [Value::from(true), Value::from(-7), Value::Number(0.5), Value::from("5"), list, Value::List(vec![])]
        {
            let text = serde_json::to_string(&value).expect("text");
            assert_eq!(serde_json::from_str::<Value>(&text).expect("a value"), value, "{text}");
        }
        let large = serde_json::from_str::<Value>("18446744073709551615").expect("a number");
        assert_eq!(large, Value::Number(18_446_744_073_709_551_615.0));
    }

    #[test]
    fn what_is_no_value_is_refused() {
        for text in ["null", "{}", "[1]", "[[\"a\"]]", "[null]"] {
            assert!(serde_json::from_str::<Value>(text).is_err(), "{text}");
        }
        let read = |text| serde_json::from_str::<FieldDiff>(text).expect("a diff");
        assert_eq!(read("{\"from\":null}"), FieldDiff { from: None, to: None });
        assert_eq!(read("{\"to\":1}").to, Some(Value::Integer(1)));
    }
}
