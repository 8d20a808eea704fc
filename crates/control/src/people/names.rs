//! What may name a person or a workspace.
//!
//! The one rule: a name is never also an id of ours, so that a route can take either.

use holdfast_model::error::Error;

/// Slugs that are words of paths, or could be.
const RESERVED: [&str; 2] = ["check-slug", "new"];

/// Why a text is no slug; `None`: it is one.
pub(super) fn slug_fault(slug: &str) -> Option<&'static str> {
    let of_slug = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !(1..=50).contains(&slug.len()) {
        return Some("A slug has 1 to 50 characters.");
    }
    if !slug.bytes().all(of_slug) || slug.starts_with('-') || slug.ends_with('-') || slug.contains("--") {
        return Some("A slug has small letters, digits and single dashes, and a dash neither first nor last.");
    }
    RESERVED.contains(&slug).then_some("This word is reserved.")
}

pub(super) fn slug(field: &str, slug: &str) -> Result<(), Error> {
    let wrong = |why| Err(Error::field("body", field, "string_pattern_mismatch", why));
    slug_fault(slug).map_or(Ok(()), wrong)
}

pub(crate) fn username(field: &str, name: &str) -> Result<(), Error> {
    let of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = (1..=63).contains(&name.len()) && name.bytes().all(of_name) && !name.starts_with("usr_");
    if fits {
        return Ok(());
    }
    let why = "must be 1 to 63 letters, digits, dots, dashes and underscores, and no usr_ id";
    Err(Error::field("body", field, "string_pattern_mismatch", why))
}

/// An e-mail address in small letters, as it is kept. Whether mail arrives there nobody can know from the text.
pub(crate) fn email(field: &str, text: &str) -> Result<String, Error> {
    let text = text.trim().to_ascii_lowercase();
    let plain = text.chars().all(|c| !c.is_whitespace() && !c.is_control() && !matches!(c, '<' | '>' | ',' | '"'));
    let parts = text.split_once('@').filter(|(name, host)| !name.is_empty() && !host.is_empty() && !host.contains('@'));
    if (3..=254).contains(&text.len()) && plain && parts.is_some() {
        return Ok(text);
    }
    Err(Error::field("body", field, "value_error", "must be an e-mail address"))
}

/// A name of a project. It travels in headers, and a UUID names a project already.
pub(crate) fn project(field: &str, name: &str) -> Result<(), Error> {
    let of_name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    let fits = (1..=63).contains(&name.len()) && name.bytes().all(of_name) && uuid::Uuid::try_parse(name).is_err();
    if fits {
        return Ok(());
    }
    let why = "must be 1 to 63 letters, digits, dots, dashes and underscores, and no UUID";
    Err(Error::field("body", field, "string_pattern_mismatch", why))
}

/// A name for people to read.
pub(super) fn title(field: &str, text: &str) -> Result<(), Error> {
    let fits = (1..=100).contains(&text.chars().count()) && !text.chars().any(char::is_control);
    if fits { Ok(()) } else { Err(Error::field("body", field, "value_error", "must have 1 to 100 characters")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slugs() {
        for good in ["a", "team-7", "0", &"x".repeat(50)] {
            assert_eq!(slug_fault(good), None, "{good}");
        }
        for bad in ["", "A", "a_b", "-a", "a-", "a--b", "wks_abc", "é", "check-slug", &"x".repeat(51)] {
            assert!(slug_fault(bad).is_some(), "{bad}");
        }
    }

    #[test]
    fn projects() {
        assert!(project("name", "Team-A_1.0").is_ok());
        for bad in ["", "a b", "a/b", "é", &"x".repeat(64), "0b6f3c7e-8a53-4d6c-9a3e-5f1f0b6f3c7e"] {
            assert!(project("name", bad).is_err(), "{bad}");
        }
        assert!(project("name", &"ab".repeat(16)).is_err(), "a UUID without its dashes");
    }

    #[test]
    fn people() {
        assert!(username("username", "a.b-c_D9").is_ok());
        for bad in ["", "a b", "usr_x", "é", &"x".repeat(64)] {
            assert!(username("username", bad).is_err(), "{bad}");
        }
        assert_eq!(email("email", " Ada@Example.COM ").expect("an address"), "ada@example.com");
        for bad in ["", "@", "a@", "@b", "a b@c", "a@b@c", "a<b@c>", "ab"] {
            assert!(email("email", bad).is_err(), "{bad}");
        }
    }
}
