//! The keys of apps, derived from one root as dstack's KMS derives them.
//!
//! The one rule: the same root and the same context give the same key for ever. Disks and env values of years ago hang on
//! it, so the encoding that is hashed is spelled out here, and vectors made by dstack hold it in place.

use hkdf::Hkdf;
use p256::elliptic_curve::sec1::ToSec1Point;
use sha2::{Digest, Sha256};
use sha3::Keccak256;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// What the guest decrypts its env with, and what clients encrypt it to.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct EnvKey {
    pub secret: [u8; 32],
    #[zeroize(skip)]
    pub public: [u8; 32],
}

/// The root keys of an installation: a P-256 key that app keys are derived from, and a secp256k1 key that signs them.
pub struct Root {
    ca: p256::SecretKey,
    signer: k256::ecdsa::SigningKey,
}

impl Root {
    /// Both keys from one seed, which is all that has to be kept.
    pub fn from_seed(seed: &[u8; 32]) -> Self {
        Self { ca: scalar_p256(seed, &[b"holdfast-root-ca"]), signer: scalar_k256(seed, &[b"holdfast-root-k256"]) }
    }

    /// The env key of an app; every instance of the app has the same.
    pub fn env_key(&self, app_id: &[u8; 20]) -> EnvKey {
        let secret = derive_dh_secret(&self.ca, &[app_id, b"env-encrypt-key"]);
        let public = x25519_dalek::PublicKey::from(&x25519_dalek::StaticSecret::from(*secret)).to_bytes();
        EnvKey { secret: *secret, public }
    }

    /// The key of an instance's data disk.
    pub fn disk_key(&self, app_id: &[u8; 20], instance_id: &[u8; 20]) -> Zeroizing<[u8; 32]> {
        derive_dh_secret(&self.ca, &[app_id, instance_id, b"app-disk-crypt-key"])
    }

    /// Says "this is the env key of that app": r, s and the recovery id.
    pub fn sign_env_public_key(&self, app_id: &[u8; 20], public: &[u8; 32]) -> [u8; 65] {
        let (signature, recovery) = self.signer.sign_prehash_recoverable(&env_key_statement(app_id, public));
        let mut out = [0; 65];
        out[..64].copy_from_slice(&signature.to_bytes());
        out[64] = recovery.to_byte();
        out
    }

    /// The signer that [`recover_signer`] finds, as a compressed point.
    pub fn signer(&self) -> [u8; 33] {
        compressed(self.signer.verifying_key())
    }

    /// The public half of the key that app keys are derived from, as a SubjectPublicKeyInfo in DER.
    pub fn ca_public_key(&self) -> Vec<u8> {
        // SEQUENCE { SEQUENCE { ecPublicKey, prime256v1 }, BIT STRING point }; the point has one length.
        const BEFORE_POINT: [u8; 26] = [
            0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48,
            0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
        ];
        [&BEFORE_POINT[..], self.ca.public_key().to_sec1_point(false).as_bytes()].concat()
    }
}

impl std::fmt::Debug for Root {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Root(..)")
    }
}

/// Who signed the env key of an app, or `None` when the signature is no signature.
pub fn recover_signer(app_id: &[u8; 20], public: &[u8; 32], signature: &[u8; 65]) -> Option<[u8; 33]> {
    let recovery = k256::ecdsa::RecoveryId::from_byte(signature[64])?;
    let signature = k256::ecdsa::Signature::from_slice(&signature[..64]).ok()?;
    let key = k256::ecdsa::VerifyingKey::recover_from_prehash(&env_key_statement(app_id, public), &signature, recovery);
    key.ok().map(|key| compressed(&key))
}

fn compressed(key: &k256::ecdsa::VerifyingKey) -> [u8; 33] {
    let point = key.to_sec1_point(true);
    let mut out = [0; 33];
    out.copy_from_slice(point.as_bytes());
    out
}

fn env_key_statement(app_id: &[u8; 20], public: &[u8; 32]) -> [u8; 32] {
    let hash = Keccak256::new().chain_update(b"dstack-env-encrypt-pubkey:").chain_update(app_id).chain_update(public);
    hash.finalize().into()
}

/// HKDF-SHA256 with dstack's salt; the context parts are simply joined.
fn derive_key(ikm: &[u8], context: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let mut key = Zeroizing::new([0; 32]);
    Hkdf::<Sha256>::new(Some(b"RATLS"), ikm)
        .expand_multi_info(context, key.as_mut())
        .expect("32 bytes are within HKDF's limit of 8160");
    key
}

/// The derived bytes as a P-256 key. One in 2^32 is no valid scalar; there dstack gives up and we derive once more.
fn scalar_p256(ikm: &[u8], context: &[&[u8]]) -> p256::SecretKey {
    let mut bytes = derive_key(ikm, context);
    loop {
        match p256::SecretKey::from_slice(bytes.as_ref()) {
            Ok(key) => return key,
            Err(_) => bytes = derive_key(bytes.as_ref(), context),
        }
    }
}

/// The same on secp256k1.
fn scalar_k256(ikm: &[u8], context: &[&[u8]]) -> k256::ecdsa::SigningKey {
    let mut bytes = derive_key(ikm, context);
    loop {
        match k256::ecdsa::SigningKey::from_slice(bytes.as_ref()) {
            Ok(key) => return key,
            Err(_) => bytes = derive_key(bytes.as_ref(), context),
        }
    }
}

/// sha256 of the child key's PKCS#8 document.
fn derive_dh_secret(parent: &p256::SecretKey, context: &[&[u8]]) -> Zeroizing<[u8; 32]> {
    let scalar = Zeroizing::new(<[u8; 32]>::from(parent.to_bytes()));
    let child = scalar_p256(scalar.as_ref(), context);
    Zeroizing::new(Sha256::digest(pkcs8(&child).as_slice()).into())
}

/// The private key with its public key in DER. P-256 keys have one length, so everything but the key is constant.
fn pkcs8(key: &p256::SecretKey) -> Zeroizing<Vec<u8>> {
    // SEQUENCE { 0, { ecPublicKey, prime256v1 }, OCTET STRING { SEQUENCE { 1, OCTET STRING scalar, [1] BIT STRING point } } }
    const BEFORE_SCALAR: [u8; 36] = [
        0x30, 0x81, 0x87, 0x02, 0x01, 0x00, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06,
        0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x04, 0x6d, 0x30, 0x6b, 0x02, 0x01, 0x01, 0x04, 0x20,
    ];
    const BEFORE_POINT: [u8; 5] = [0xa1, 0x44, 0x03, 0x42, 0x00];
    let scalar = Zeroizing::new(<[u8; 32]>::from(key.to_bytes()));
    let point = key.public_key().to_sec1_point(false);
    Zeroizing::new([&BEFORE_SCALAR[..], scalar.as_ref(), &BEFORE_POINT, point.as_bytes()].concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<const N: usize>(text: &str) -> [u8; N] {
        hex::decode(text).unwrap().try_into().unwrap()
    }

    #[test]
    fn derives_what_dstack_derives() {
        let scalar: [u8; 32] = bytes("f57527cea4ab7ffb49af99b158cdc0e3ec06398f528349ea236b7d2afe19cec1");
        let root = p256::SecretKey::from_slice(&scalar).unwrap();
        let document = hex::encode(pkcs8(&root).as_slice());
        assert!(document.starts_with("308187020100301306072a8648ce3d020106082a8648ce3d030107046d306b0201010420f57527"));
        assert!(document.ends_with("cec1a1440342000491f50522407ce29dce3ed7d31a15d80c1c42f13a23552d2b33a0ce09ee11e47bce95936f3e7f80d195f879e28e1b144ef37ac9ab8e36a690cbf930b775897b27"));
        let secret = derive_dh_secret(&root, &[b"context one", b"context two"]);
        assert_eq!(hex::encode(secret.as_ref()), "663afd58820be8ad645f9c035e93199d114ab16f738db62393bc1d7d623e8813");
    }

    #[test]
    fn recovers_the_signer_of_a_published_signature() {
        let public = bytes("e33a1832c6562067ff8f844a61e51ad051f1180b66ec2551fb0251735f3ee90a");
        let signature = bytes(
            "8542c49081fbf4e03f62034f13fbf70630bdf256a53032e38465a27c36fd6bed\
             7a5e7111652004aef37f7fd92fbfc1285212c4ae6a6154203a48f5e16cad2cef00",
        );
        let signer = recover_signer(&[0; 20], &public, &signature).map(hex::encode);
        assert_eq!(signer.as_deref(), Some("0217610d74cbd39b6143842c6d8bc310d79da1d82cc9d17f8876376221eda0c38f"));
    }

    #[test]
    fn signs_what_clients_verify() {
        let root = Root::from_seed(&[7; 32]);
        let app = [3; 20];
        let key = root.env_key(&app);
        let signature = root.sign_env_public_key(&app, &key.public);
        assert_eq!(recover_signer(&app, &key.public, &signature), Some(root.signer()));
        assert_ne!(recover_signer(&[4; 20], &key.public, &signature), Some(root.signer()));
        assert_eq!(recover_signer(&app, &key.public, &[9; 65]), None);
    }

    #[test]
    fn the_root_shows_its_public_halves() {
        use p256::pkcs8::DecodePublicKey;
        let root = Root::from_seed(&[7; 32]);
        let parsed = p256::PublicKey::from_public_key_der(&root.ca_public_key()).unwrap();
        assert_eq!(parsed, root.ca.public_key());
    }

    #[test]
    fn keys_depend_on_seed_app_and_instance_and_never_change() {
        let root = Root::from_seed(&[1; 32]);
        assert_ne!(root.env_key(&[1; 20]).secret, root.env_key(&[2; 20]).secret);
        assert_ne!(root.env_key(&[1; 20]).secret, Root::from_seed(&[2; 32]).env_key(&[1; 20]).secret);
        assert_ne!(root.disk_key(&[1; 20], &[1; 20]), root.disk_key(&[1; 20], &[2; 20]));
        // Written down when the first disk was made with them.
        assert_eq!(hex::encode(root.env_key(&[1; 20]).public), GOLDEN_ENV_PUBLIC);
        assert_eq!(hex::encode(root.disk_key(&[1; 20], &[1; 20]).as_ref()), GOLDEN_DISK);
    }

    const GOLDEN_ENV_PUBLIC: &str = "faf63dc1cc5a6530e8454d56f3ab1d4613b0676a842593dbaac3f41629c1591a";
    const GOLDEN_DISK: &str = "59ec89cb62d856ae4ac81714046334ff1753b3336bf82b890d9f9113a9e08c24";
}
