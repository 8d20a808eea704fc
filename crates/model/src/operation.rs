//! What an operation is, in the words of the database and of the three surfaces.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

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
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Value {
    Bool(bool),
    Integer(i64),
    Number(f64),
    Text(String),
    List(Vec<String>),
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
