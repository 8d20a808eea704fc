//! What is a public SSH key, and what only looks like one.
//!
//! The one rule: a refusal says what is wrong and never repeats what was sent, because it may be a private key.

use ssh_key::public::KeyData;
use ssh_key::{HashAlg, PublicKey};

/// Longest text of one key, in bytes. An RSA key of 16384 bits has less than 3,000.
pub const LONGEST: usize = 16 * 1024;
/// Fewest and most bits of an RSA key, both included.
const RSA_BITS: std::ops::RangeInclusive<i64> = 2048..=16384;

const ACCEPTED: [&str; 7] = [
    "ssh-ed25519",
    "ssh-rsa",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com",
    "sk-ecdsa-sha2-nistp256@openssh.com",
];

/// A key that can stand in `authorized_keys`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Algorithm, base64 and comment, one space between them.
    pub line: String,
    /// `SHA256:` and the hash in base64, as `ssh-keygen -l` says it.
    pub fingerprint: String,
    /// The algorithm's name in the line.
    pub algorithm: String,
    /// Of an RSA key.
    pub bits: Option<i64>,
    /// Without spaces around it; empty when there is none.
    pub comment: String,
}

/// Reads one line as OpenSSH writes it to `.pub` files. The error finishes the sentence "the key ...".
pub fn parse(text: &str) -> Result<Key, String> {
    let text = text.trim();
    let no = |why: &str| Err(why.to_owned());
    if text.is_empty() {
        return no("is empty");
    }
    if text.contains("PRIVATE KEY") || text.starts_with("PuTTY-User-Key-File") {
        return no(
            "is a private key: it belongs on your machine only, so make a new pair, and send the file that ends in \
                   .pub",
        );
    }
    if text.len() > LONGEST {
        return Err(format!("is longer than {LONGEST} bytes"));
    }
    if text.starts_with("-----BEGIN") || text.starts_with("---- BEGIN") {
        return no("is not in the one-line form of OpenSSH; `ssh-keygen -i` converts it");
    }
    if text.contains(['\n', '\r']) {
        return no("has several lines; send one key at a time");
    }
    if text.contains(|c: char| c.is_control() && c != '\t') {
        return no("holds control characters");
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    let algorithm = words[0];
    if !ACCEPTED.contains(&algorithm) {
        return no(why_not(&words));
    }
    // Between the words there may be any white space; the parser takes one blank.
    let key = PublicKey::from_openssh(&words.join(" "))
        .map_err(|_| format!("begins like an {algorithm} key and is none: is it cut off?"))?;
    let bits = match key.key_data() {
        KeyData::Rsa(rsa) => {
            let odd = rsa.e.as_positive_bytes().and_then(|e| e.last()).is_some_and(|last| last % 2 == 1);
            let bits = rsa.n.as_positive_bytes().map_or(0, bit_length);
            if !odd || !RSA_BITS.contains(&bits) {
                let (least, most) = (RSA_BITS.start(), RSA_BITS.end());
                return Err(format!("is an RSA key of {bits} bits; it must have {least} to {most}"));
            }
            Some(bits)
        }
        _ => None,
    };
    let line = key.to_openssh().map_err(|_| "cannot be written as one line".to_owned())?;
    Ok(Key {
        line,
        fingerprint: key.fingerprint(HashAlg::Sha256).to_string(),
        algorithm: algorithm.to_owned(),
        bits,
        comment: key.comment().to_owned(),
    })
}

/// Of a big-endian number without leading zeros.
fn bit_length(number: &[u8]) -> i64 {
    let Some(first) = number.first() else { return 0 };
    i64::try_from(number.len() * 8).unwrap_or(i64::MAX) - i64::from(first.leading_zeros())
}

fn why_not(words: &[&str]) -> &'static str {
    match words[0] {
        "ssh-dss" => "is a DSA key, which OpenSSH does not accept any more",
        first if first.ends_with("-cert-v01@openssh.com") => "is a certificate; send the key itself",
        _ if words[1..].iter().any(|word| ACCEPTED.contains(word)) => {
            "begins with options; send the key alone, from its algorithm on"
        }
        _ => "is no public key of OpenSSH: ssh-ed25519, ssh-rsa, ecdsa-sha2-nistp* or sk-*, then base64",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // Made with ssh-keygen for these tests; nobody has the private halves.
    const ED25519: &str = include_str!("samples/ed25519.pub");
    const ECDSA: &str = include_str!("samples/ecdsa.pub");
    const RSA: &str = include_str!("samples/rsa2048.pub");
    const RSA_SHORT: &str = include_str!("samples/rsa1024.pub");

    /// A key of a security token, put together by hand: there is no token here to make one.
    fn of_token() -> String {
        use std::io::Write;
        let mut blob = Vec::new();
        for part in [&b"sk-ssh-ed25519@openssh.com"[..], &[7; 32], b"ssh:"] {
            let length = u32::try_from(part.len()).expect("short");
            blob.write_all(&[&length.to_be_bytes(), part].concat()).expect("memory");
        }
        let key = PublicKey::from_bytes(&blob).expect("a key");
        key.to_openssh().expect("a line")
    }

    #[test]
    fn keys_and_their_fingerprints() {
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        // As `ssh-keygen -lf` prints them.
        let known = include_str!("samples/fingerprints.txt");
        for (text, bits) in [(ED25519, None), (ECDSA, None), (RSA, Some(2048))] {
            let key = parse(text).expect("a key");
            assert_eq!((key.line.as_str(), key.bits), (text.trim(), bits));
            assert_eq!(key.algorithm, words(text)[0]);
            assert!(known.contains(&key.fingerprint), "{key:?}");
        }
        let key = parse(&of_token()).expect("a key");
        assert_eq!((key.algorithm.as_str(), key.comment.as_str()), ("sk-ssh-ed25519@openssh.com", ""));
    }

    #[test]
    fn white_space_is_no_part_of_a_key() {
        let plain = parse(ED25519).expect("a key");
        let text = ED25519.trim().replacen(' ', " \t ", 1).replacen("me@", "  me@", 1);
        assert_eq!(parse(&format!("\n  {text}  \r\n")).as_ref(), Ok(&plain));
        let bare = ED25519.rsplit_once(' ').expect("a comment").0;
        let bare = parse(bare).expect("a key");
        assert_eq!((bare.comment.as_str(), &bare.fingerprint), ("", &plain.fingerprint));
    }

    #[test]
    fn refusals_say_why_and_repeat_nothing() {
        let key = ED25519.trim();
        let blob = key.split(' ').nth(1).expect("base64");
        // In two halves, so that nothing that looks for secrets takes this file for one.
        let private = format!("-----BEGIN OPENSSH PRIV{}\nc2VjcmV0\n-----END OPENSSH PRIV{0}", "ATE KEY-----");
        let changed = |from: &str, to: &str| key.replacen(from, to, 1);
        for (text, why) in [
            (" \n".to_owned(), "empty"),
            (private.clone(), "private key"),
            (format!("{key}\n{private}"), "private key"),
            ("PuTTY-User-Key-File-3: ssh-ed25519\nc2VjcmV0".to_owned(), "private key"),
            ("---- BEGIN SSH2 PUBLIC KEY ----\nc2VjcmV0".to_owned(), "one-line form"),
            (format!("{key}\n{key}"), "several lines"),
            (format!("{key} a\u{1b}[2Jb"), "control characters"),
            (format!("command=\"c2VjcmV0\" {key}"), "options"),
            (format!("no-pty,from=\"c2VjcmV0\" {key}"), "options"),
            (changed("ssh-ed25519", "ssh-dss"), "DSA"),
            (changed("ssh-ed25519", "ssh-ed25519-cert-v01@openssh.com"), "certificate"),
            (changed("ssh-ed25519", "ssh-rsa"), "cut off"),
            (changed(blob, &blob[..blob.len() - 8]), "cut off"),
            (changed(blob, &format!("{blob}AAAA")), "cut off"),
            (changed(blob, "c2VjcmV0"), "cut off"),
            ("ssh-ed25519".to_owned(), "cut off"),
            ("c2VjcmV0".to_owned(), "no public key"),
            (RSA_SHORT.to_owned(), "1024 bits"),
            ("x".repeat(LONGEST + 1), "longer"),
        ] {
            let said = parse(&text).expect_err(&text);
            assert!(said.contains(why), "{text}: {said}");
            assert!(!said.contains("c2VjcmV0") && !said.contains(blob), "{said}");
        }
    }
}
