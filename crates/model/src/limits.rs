//! What a credential was made for: less than its holder may do, never more.
//!
//! The one rule: limits only take away. They are asked beside the table of roles ([`crate::access`]) and after it, a
//! credential that makes another one hands its own limits on ([`Limits::narrowed`]), and limits that this version does not
//! understand are an error: whoever wrote them meant to forbid something.

use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::access::{Action, Reach};

/// Limits of an API token or a session, as the database keeps them (JSON). Absent: not limited in this.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// The actions it may be used for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes: Option<Vec<Action>>,
    /// Internal ids of the projects it may be used in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub projects: Option<Vec<i64>>,
    /// Where it may be used from.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sources: Vec<SourceRule>,
}

/// Addresses that a credential may be used from. A credential with several rules has to satisfy each.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SourceRule {
    /// Empty: from everywhere that is not blocked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed: Vec<IpNet>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub blocked: Vec<IpNet>,
}

impl SourceRule {
    fn admits(&self, address: IpAddr) -> bool {
        let within = |nets: &[IpNet]| nets.iter().any(|net| net.contains(&address));
        !within(&self.blocked) && (self.allowed.is_empty() || within(&self.allowed))
    }
}

impl TryFrom<String> for Limits {
    type Error = serde_json::Error;

    fn try_from(text: String) -> Result<Self, serde_json::Error> {
        serde_json::from_str(&text)
    }
}

impl Limits {
    /// Limits to these actions, and to nothing else.
    pub fn to(scopes: impl IntoIterator<Item = Action>) -> Self {
        Self { scopes: Some(scopes.into_iter().collect()), ..Self::default() }
    }

    pub fn allow(&self, action: Action) -> bool {
        self.scopes.as_ref().is_none_or(|scopes| scopes.contains(&action)) && self.reach(action.reach())
    }

    /// Whether it may be used for what reaches so far.
    pub const fn reach(&self, reach: Reach) -> bool {
        matches!(reach, Reach::Projects) || self.projects.is_none()
    }

    /// Whether it may be used in a project. What belongs to none is of the whole workspace.
    pub fn admit_project(&self, project: Option<i64>) -> bool {
        self.projects.as_ref().is_none_or(|projects| project.is_some_and(|project| projects.contains(&project)))
    }

    /// Whether it may be used from there. An address that is not known is nowhere.
    pub fn admit(&self, address: Option<IpAddr>) -> bool {
        // A client that comes by IPv4 to a socket of both families is still at its IPv4 address.
        let address = address.map(|address| address.to_canonical());
        self.sources.iter().all(|rule| address.is_some_and(|address| rule.admits(address)))
    }

    /// Both limits at once: what one with limits `self` gives when asked for `wanted`.
    pub fn narrowed(&self, wanted: &Self) -> Self {
        let mut sources = self.sources.clone();
        sources.extend(wanted.sources.iter().filter(|rule| !self.sources.contains(rule)).cloned());
        Self {
            scopes: common(self.scopes.as_deref(), wanted.scopes.as_deref()),
            projects: common(self.projects.as_deref(), wanted.projects.as_deref()),
            sources,
        }
    }

    /// Whether `other` allows nothing that these limits do not.
    pub fn cover(&self, other: &Self) -> bool {
        within(other.scopes.as_deref(), self.scopes.as_deref())
            && within(other.projects.as_deref(), self.projects.as_deref())
            && self.sources.iter().all(|rule| other.sources.contains(rule))
    }
}

/// Whether all of the first list is in the second; no list is everything.
fn within<T: PartialEq>(part: Option<&[T]>, whole: Option<&[T]>) -> bool {
    match (part, whole) {
        (_, None) => true,
        (None, Some(_)) => false,
        (Some(part), Some(whole)) => part.iter().all(|item| whole.contains(item)),
    }
}

/// What is in both lists, in the order of the second; no list is everything.
fn common<T: PartialEq + Clone>(one: Option<&[T]>, two: Option<&[T]>) -> Option<Vec<T>> {
    match (one, two) {
        (None, None) => None,
        (Some(only), None) | (None, Some(only)) => Some(only.to_vec()),
        (Some(one), Some(two)) => Some(two.iter().filter(|item| one.contains(item)).cloned().collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a net")
    }

    fn from(allowed: &[&str], blocked: &[&str]) -> SourceRule {
        let nets = |texts: &[&str]| texts.iter().map(|text| net(text)).collect();
        SourceRule { allowed: nets(allowed), blocked: nets(blocked) }
    }

    #[test]
    fn nothing_said_limits_nothing() {
        let none = Limits::default();
        assert!(Action::ALL.into_iter().all(|action| none.allow(action)));
        assert!(none.admit(None));
        assert_eq!(serde_json::to_string(&none).expect("JSON"), "{}");
        assert_eq!(Limits::try_from("{}".to_owned()).expect("limits"), none);
    }

    #[test]
    fn whoever_is_limited_to_projects_does_nothing_to_the_workspace() {
        let limits = Limits { projects: Some(vec![1, 2]), ..Limits::default() };
        for action in Action::ALL {
            assert_eq!(limits.allow(action), action.reach() == Reach::Projects, "{action:?}");
        }
        assert!(!limits.allow(Action::RunInstallation) && limits.allow(Action::WriteVms));
        assert!(limits.admit_project(Some(2)) && !limits.admit_project(Some(3)) && !limits.admit_project(None));
        assert!(Limits::default().admit_project(None));
        let nowhere = Limits { projects: Some(Vec::new()), ..Limits::default() };
        assert!(!nowhere.admit_project(Some(1)) && !nowhere.reach(Reach::Workspace));
    }

    #[test]
    fn what_is_not_understood_is_no_limits() {
        for text in
            ["", "null", "{\"scopes\":[\"fly\"]}", "{\"hours\":[8,16]}", "{\"sources\":[{\"allowed\":[\"here\"]}]}"]
        {
            assert!(Limits::try_from(text.to_owned()).is_err(), "{text}");
        }
    }

    #[test]
    fn addresses() {
        let limits = Limits { sources: vec![from(&["10.0.0.0/8", "fd00::/8"], &["10.1.0.0/16"])], ..Limits::default() };
        let at = |text: &str| limits.admit(Some(text.parse().expect("an address")));
        assert!(at("10.2.3.4") && at("fd00::1") && at("::ffff:10.2.3.4"));
        assert!(!at("10.1.2.3") && !at("::ffff:10.1.2.3") && !at("11.0.0.1") && !at("::1"));
        assert!(!limits.admit(None));
        let blocked = Limits { sources: vec![from(&[], &["10.0.0.0/8"])], ..Limits::default() };
        assert!(blocked.admit(Some("11.0.0.1".parse().expect("an address"))));
        assert!(!blocked.admit(None));
    }

    #[test]
    fn a_credential_gives_no_more_than_it_has() {
        let holder = Limits {
            scopes: Some(vec![Action::Read, Action::Own]),
            projects: Some(vec![1, 2]),
            sources: vec![from(&["10.0.0.0/8"], &[])],
        };
        let wanted = Limits {
            scopes: Some(vec![Action::Read, Action::WriteVms]),
            projects: Some(vec![2, 3]),
            sources: vec![from(&["10.1.0.0/16", "11.0.0.0/8"], &[])],
        };
        let given = holder.narrowed(&wanted);
        assert_eq!(given.scopes, Some(vec![Action::Read]));
        assert_eq!(given.projects, Some(vec![2]));
        assert!(!given.admit(Some("11.0.0.1".parse().expect("an address"))));
        assert!(given.admit(Some("10.1.0.1".parse().expect("an address"))));
        assert_eq!(holder.narrowed(&Limits::default()), holder);
        assert_eq!(Limits::default().narrowed(&wanted), wanted);
        assert!(holder.cover(&given) && wanted.cover(&given) && Limits::default().cover(&holder));
        assert!(!holder.cover(&Limits::default()) && !holder.cover(&wanted) && !given.cover(&holder));
    }
}
