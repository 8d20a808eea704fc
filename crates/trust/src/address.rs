//! App ids: the address that an Ethereum contract created by a wallet would get.
//!
//! The one rule: clients predict these ids, so they are computed, never drawn: one wallet per workspace, one nonce per app.

use sha3::{Digest, Keccak256};

/// 20 bytes, shown to clients as 40 lower-case hex digits without `0x`.
pub type Address = [u8; 20];

/// The last 20 bytes of keccak256(rlp([creator, nonce])).
pub fn create_address(creator: &Address, nonce: u64) -> Address {
    // RLP of a list of a 20-byte string and an integer; at most 30 bytes, so all lengths fit one byte.
    let mut payload = vec![0x80 + 20];
    payload.extend_from_slice(creator);
    match nonce {
        0 => payload.push(0x80),
        1..0x80 => payload.push(nonce as u8),
        _ => {
            let bytes = nonce.to_be_bytes();
            let significant = &bytes[(nonce.leading_zeros() / 8) as usize..];
            payload.push(0x80 + significant.len() as u8);
            payload.extend_from_slice(significant);
        }
    }
    let digest = Keccak256::new().chain_update([0xc0 + payload.len() as u8]).chain_update(&payload).finalize();
    last_20(&digest.into())
}

/// The app id of app number `nonce` of `wallet`, in hex.
pub fn app_id(wallet: &Address, nonce: u64) -> String {
    hex::encode(create_address(wallet, nonce))
}

/// The wallet of a workspace: an address that nobody holds a key to.
pub fn wallet(workspace: &[u8]) -> Address {
    let digest = Keccak256::new().chain_update(b"holdfast-workspace:").chain_update(workspace).finalize();
    last_20(&digest.into())
}

fn last_20(digest: &[u8; 32]) -> Address {
    std::array::from_fn(|i| digest[12 + i])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_contract_addresses() {
        let creator = hex::decode("6ac7ea33f8831ea9dcc53393aaa88b25a785dbf0").unwrap().try_into().unwrap();
        for (nonce, address) in [
            (0, "cd234a471b72ba2f1ccf0a70fcaba648a5eecd8d"),
            (1, "343c43a37d37dff08ae8c4a11544c718abb4fcf8"),
            (2, "f778b86fa74e846c4f0a1fbd1335fe81c00a0c91"),
            (3, "fffd933a0bc612844eaf0c6fe3e5b8e9b6c1d19c"),
        ] {
            assert_eq!(app_id(&creator, nonce), address);
        }
    }

    #[test]
    fn every_nonce_has_its_own_address() {
        let wallet = wallet(b"one");
        let ids: std::collections::HashSet<_> =
            [0, 1, 0x7f, 0x80, 0xff, 0x100, 0xffff, 0x1_0000, u64::MAX].map(|n| app_id(&wallet, n)).into();
        assert_eq!(ids.len(), 9);
    }
}
