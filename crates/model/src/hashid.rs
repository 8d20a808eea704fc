//! Public ids: `cvm_k3jq7ZpX` for a row whose internal key is an integer.
//!
//! A hashid is a reversible spelling of the internal key, not a secret: it says nothing about permission,
//! and every look-up checks the workspace again.

use std::sync::LazyLock;

use sqids::Sqids;

/// What a hashid names. The prefixes are those that the Phala clients expect, where they know such a thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Prefix {
    Cvm,
    App,
    Workspace,
    User,
    Kms,
    /// What 2026-06-23 calls a KMS: the root of trust that its nodes share.
    KmsContract,
    NodeToken,
    /// A published port.
    PortMapping,
    SshKey,
    Webhook,
}

impl Prefix {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Cvm => "cvm_",
            Self::App => "prj_",
            Self::Workspace => "wks_",
            Self::User => "usr_",
            Self::Kms => "kms_",
            Self::KmsContract => "kc_",
            Self::NodeToken => "ntk_",
            Self::PortMapping => "pm_",
            Self::SshKey => "sshkey_",
            Self::Webhook => "whk_",
        }
    }
}

// Each prefix gets an order of the alphabet of its own, so that row 1 does not look alike everywhere.
const ALPHABET: &str = "k3jq7ZpXnB5tRy2sVwLm9HdGfC8vKbTz4FcQxWrNJhPgMSD6";

static ENCODERS: LazyLock<[Sqids; 10]> = LazyLock::new(|| {
    std::array::from_fn(|turn| {
        let mut alphabet: Vec<char> = ALPHABET.chars().collect();
        let turned = (turn * 7 + 1) % alphabet.len();
        alphabet.rotate_left(turned);
        Sqids::builder()
            .alphabet(alphabet)
            .min_length(8)
            .blocklist(Default::default())
            .build()
            .expect("the alphabet is a constant with unique characters")
    })
});

/// The public form of internal key `key`.
pub fn encode(prefix: Prefix, key: i64) -> String {
    let number = u64::try_from(key).unwrap_or(0);
    let body = ENCODERS[prefix as usize].encode(&[number]).unwrap_or_default();
    format!("{}{body}", prefix.as_str())
}

/// The internal key behind `text`, or `None` when it is no canonical hashid of that prefix.
pub fn decode(prefix: Prefix, text: &str) -> Option<i64> {
    let body = text.strip_prefix(prefix.as_str())?;
    let numbers = ENCODERS[prefix as usize].decode(body);
    let [number] = numbers[..] else { return None };
    let key = i64::try_from(number).ok()?;
    // Sqids maps several spellings to one number; only the one we hand out is valid.
    (encode(prefix, key) == text).then_some(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_and_differs_by_prefix() {
        for key in [1, 2, 77, 1_000_000, i64::MAX] {
            let id = encode(Prefix::Cvm, key);
            assert!(id.len() >= 12, "{id}");
            assert_eq!(decode(Prefix::Cvm, &id), Some(key));
        }
        assert_ne!(&encode(Prefix::Cvm, 1)[4..], &encode(Prefix::App, 1)[4..]);
        assert_eq!(decode(Prefix::App, &encode(Prefix::Cvm, 1)), None);
        assert_eq!(decode(Prefix::Cvm, "cvm_"), None);
        assert_eq!(decode(Prefix::Cvm, "cvm_!!!!"), None);
    }
}
