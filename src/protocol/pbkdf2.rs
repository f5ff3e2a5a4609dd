//! PBKDF2 with HMAC-SHA-256 (RFC 8018), of one block: what a password is worth together with a salt and a
//! number of iterations.
//!
//! An iteration is an HMAC: a hash of one block that depends on the key alone and of the text, and then
//! one of another such block and of the first hash. Both hashes are kept as they are when they have taken in
//! the key. What is left to do is a block each, and that is given to the hash's compression function, which
//! takes seven tenths of the time that the same HMACs take, and less where the compiler looks for size.

use std::slice;

use hmac::{Hmac, KeyInit, Mac};
use sha2::block_api::compress256;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Length of a SHA-256 hash, and so of every key and proof of SCRAM, in bytes.
pub(super) const HASH_BYTES: usize = 32;

/// Length of what SHA-256 takes in at once, and so of a key for HMAC, in bytes.
const BLOCK_BYTES: usize = 64;

pub(super) type HmacSha256 = Hmac<Sha256>;

type Hash = [u8; HASH_BYTES];
type Block = [u8; BLOCK_BYTES];
/// A hash that is not at its end yet.
type State = [u32; HASH_BYTES / 4];

/// What a hash begins with (FIPS 180-4, section 5.3.3).
const INITIAL: State = [
    0x6a09_e667,
    0xbb67_ae85,
    0x3c6e_f372,
    0xa54f_f53a,
    0x510e_527f,
    0x9b05_688c,
    0x1f83_d9ab,
    0x5be0_cd19,
];

/// The last block of a text that is a block and a hash: room for the hash, a bit that ends the text, and
/// its length in bits (FIPS 180-4, section 5.1.1).
const LAST_BLOCK: Block = {
    const TEXT_BITS: u16 = 8 * (64 + 32);
    let mut block = [0; BLOCK_BYTES];
    block[HASH_BYTES] = 0x80;
    [block[BLOCK_BYTES - 2], block[BLOCK_BYTES - 1]] = TEXT_BITS.to_be_bytes();
    block
};

/// What the key is combined with for the hash of the text, and for the hash of that (RFC 2104).
const INNER_PAD: u8 = 0x36;
const OUTER_PAD: u8 = 0x5c;

/// A derivation that can be left off after any iteration.
///
/// To be kept in one place: what is moved leaves a copy behind.
pub(super) struct Pbkdf2 {
    inner: Zeroizing<State>,
    outer: Zeroizing<State>,
    /// The last HMAC, in the block that comes next.
    last: Zeroizing<Block>,
    /// What is being worked on; here, so that nothing of it stays elsewhere.
    state: Zeroizing<State>,
    sum: Zeroizing<Hash>,
    iterations_left: u32,
}

impl Pbkdf2 {
    /// The first iteration is done here.
    pub(super) fn new(password: &[u8], salt: &[u8], iterations: u32) -> Self {
        /// The blocks of the output are numbered from one.
        const BLOCK_NUMBER: [u8; 4] = 1_u32.to_be_bytes();
        let key = padded(password);
        let first = HmacSha256::new((&*key).into()).chain_update(salt).chain_update(BLOCK_NUMBER);
        let sum = Zeroizing::new(Hash::from(first.finalize().into_bytes()));
        let mut last = Zeroizing::new(LAST_BLOCK);
        last.iter_mut().zip(&*sum).for_each(|(last, first)| *last = *first);
        Self {
            inner: begun(&key, INNER_PAD),
            outer: begun(&key, OUTER_PAD),
            last,
            state: Zeroizing::default(),
            sum,
            iterations_left: iterations.saturating_sub(1),
        }
    }

    /// Runs at most so many iterations, and says whether none are left.
    pub(super) fn run(&mut self, iterations: u32) -> bool {
        let now = self.iterations_left.min(iterations);
        for _ in 0..now {
            for begun in [&self.inner, &self.outer] {
                self.state.clone_from(begun);
                compress256(&mut self.state, slice::from_ref(&self.last));
                for (bytes, word) in self.last.chunks_exact_mut(4).zip(&*self.state) {
                    bytes.copy_from_slice(&word.to_be_bytes());
                }
            }
            xor(&mut self.sum, &*self.last);
        }
        self.iterations_left -= now;
        self.iterations_left == 0
    }

    /// Takes what an earlier derivation came to: there is nothing left to run.
    pub(super) fn resume(&mut self, sum: &Zeroizing<Hash>) {
        self.sum.clone_from(sum);
        self.iterations_left = 0;
    }

    pub(super) fn iterations_left(&self) -> u32 {
        self.iterations_left
    }

    /// What the password is worth, when none are left.
    pub(super) fn sum(&self) -> &Zeroizing<Hash> {
        &self.sum
    }
}

/// A hash that has taken in the key, combined with one of HMAC's pads.
fn begun(key: &Block, pad: u8) -> Zeroizing<State> {
    let mut block = Zeroizing::new(*key);
    block.iter_mut().for_each(|byte| *byte ^= pad);
    let mut state = Zeroizing::new(INITIAL);
    compress256(&mut state, slice::from_ref(&block));
    state
}

/// A key as HMAC uses it (RFC 2104): zeros after it make it a block; if it is longer, it is hashed first.
pub(super) fn padded(key: &[u8]) -> Zeroizing<Block> {
    let mut block = Zeroizing::new([0; BLOCK_BYTES]);
    if let Some(start) = block.get_mut(..key.len()) {
        start.copy_from_slice(key);
    } else {
        let mut hash = Sha256::new_with_prefix(key);
        // Without moving what has absorbed the key: that would leave a copy behind.
        let hashed = Zeroizing::new(Hash::from(hash.finalize_reset()));
        block.iter_mut().zip(*hashed).for_each(|(padded, byte)| *padded = byte);
    }
    block
}

/// Adds each bit of the other, as far as this goes, to this.
pub(super) fn xor(this: &mut Hash, other: &[u8]) {
    for (this, other) in this.iter_mut().zip(other) {
        *this ^= other;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn derive(password: &[u8], salt: &[u8], iterations: u32) -> Hash {
        let mut pbkdf2 = Pbkdf2::new(password, salt, iterations);
        assert!(pbkdf2.run(u32::MAX));
        *pbkdf2.sum
    }

    /// The definition, by whole HMACs.
    fn defined(password: &[u8], salt: &[u8], iterations: u32) -> Hash {
        let mac = |text: &[&[u8]]| -> Hash {
            let mut mac = HmacSha256::new_from_slice(password).unwrap();
            for part in text {
                mac.update(part);
            }
            mac.finalize().into_bytes().into()
        };
        let mut last = mac(&[salt, &[0, 0, 0, 1]]);
        let mut sum = last;
        for _ in 1..iterations {
            last = mac(&[&last]);
            xor(&mut sum, &last);
        }
        sum
    }

    #[test]
    fn derives_what_the_definition_says() {
        for length in [0, 1, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1_000] {
            let password: Vec<u8> = (1..=255).cycle().take(length).collect();
            for (salt, iterations) in [(&[][..], 1), (&[7; 16], 2), (&[9; 200], 100)] {
                assert_eq!(
                    derive(&password, salt, iterations),
                    defined(&password, salt, iterations),
                    "a password of {length} bytes, {iterations} iterations"
                );
            }
        }
    }
}
