//! The few messages that the bare sockets send, and the login: the least that a client needs.

use std::io::{BufRead, BufReader, Read, Write};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use pglock_test_cluster::Role;
use sha2::{Digest, Sha256};

use crate::server::DATABASE;

/// `ReadyForQuery` outside a transaction: the last bytes of every answer.
pub(crate) const READY_FOR_QUERY: &[u8] = b"Z\0\0\0\x05I";
/// What the server needs to know to cancel: its process id and a secret.
pub(crate) type CancelKey = [u8; 8];

/// Functions as `pg_proc` numbers them.
pub(crate) const LOCK: u32 = 2880;
pub(crate) const TRY_LOCK: u32 = 2882;
pub(crate) const UNLOCK: u32 = 2884;

/// Random in a client that means it.
const NONCE: &str = "rOprNGfwEbeRWgbNEkqO";

/// `FunctionCall` with a bigint, all of it in binary.
pub(crate) fn function_call(function: u32, key: i64) -> Vec<u8> {
    let key = key.to_be_bytes();
    let body = [&function.to_be_bytes()[..], &[0, 1, 0, 1, 0, 1, 0, 0, 0, 8], &key, &[0, 1]];
    message(b'F', &body.concat())
}

pub(crate) fn cancel_request(key: CancelKey) -> Vec<u8> {
    [&[0, 0, 0, 16, 4, 210, 22, 46][..], &key].concat()
}

pub(crate) const SSL_REQUEST: [u8; 8] = [0, 0, 0, 8, 4, 210, 22, 47];

pub(crate) fn terminate() -> Vec<u8> {
    message(b'X', &[])
}

/// Logs in, by SCRAM-SHA-256 if the server asks for it, up to the first `ReadyForQuery`.
pub(crate) fn log_in(stream: &mut (impl Read + Write), role: &Role) -> CancelKey {
    stream.write_all(&startup(role)).expect("sent");
    let mut reader = BufReader::new(stream);
    let mut cancel_key = None;
    let mut scram = None;
    loop {
        let (tag, body) = receive(&mut reader);
        match (tag, body.as_slice()) {
            (b'R', [0, 0, 0, 10, ..]) => {
                reader.get_mut().write_all(&sasl_initial_response()).expect("sent");
            }
            (b'R', [0, 0, 0, 11, challenge @ ..]) => {
                let password = role.password.expect("a role with a password");
                let (response, proof_of_server) = answer(challenge, password);
                scram = Some(proof_of_server);
                reader.get_mut().write_all(&message(b'p', response.as_bytes())).expect("sent");
            }
            (b'R', [0, 0, 0, 12, proof @ ..]) => assert_eq!(scram.as_deref(), Some(proof)),
            (b'K', key) => cancel_key = key.try_into().ok(),
            (b'Z', _) => return cancel_key.expect("a key to cancel with"),
            (b'E', text) => panic!("the login failed: {}", String::from_utf8_lossy(text)),
            _ => {}
        }
    }
}

fn startup(role: &Role) -> Vec<u8> {
    let parameters = format!("user\0{}\0database\0{DATABASE}\0\0", role.name);
    let length = u32::try_from(parameters.len() + 8).expect("a short message");
    [&length.to_be_bytes()[..], &[0, 3, 0, 0], parameters.as_bytes()].concat()
}

fn sasl_initial_response() -> Vec<u8> {
    let first = format!("n,,{}", client_first());
    let length = u32::try_from(first.len()).expect("a short message");
    message(b'p', &[b"SCRAM-SHA-256\0", &length.to_be_bytes()[..], first.as_bytes()].concat())
}

fn client_first() -> String {
    format!("n=,r={NONCE}")
}

/// The client's last message, and the one with which the server has to answer it.
fn answer(challenge: &[u8], password: &str) -> (String, Vec<u8>) {
    let challenge = std::str::from_utf8(challenge).expect("text");
    let mut fields = challenge.split(',').map(|field| &field[2..]);
    let mut field = || fields.next().expect("nonce, salt and count");
    let (nonce, salt, count) = (field(), field(), field());
    let salt = BASE64_STANDARD.decode(salt).expect("a salt");
    let salted = derive(password, &salt, count.parse().expect("a number of iterations"));
    let without_proof = format!("c=biws,r={nonce}");
    let transcript = format!("{},{challenge},{without_proof}", client_first());
    let client_key = sign(&salted, b"Client Key");
    let signature = sign(&Sha256::digest(client_key), transcript.as_bytes());
    let mut proof = client_key;
    xor(&mut proof, &signature);
    let of_server = sign(&sign(&salted, b"Server Key"), transcript.as_bytes());
    (
        format!("{without_proof},p={}", BASE64_STANDARD.encode(proof)),
        format!("v={}", BASE64_STANDARD.encode(of_server)).into_bytes(),
    )
}

/// The password's key: PBKDF2, with the key of its hash made ready once.
fn derive(password: &str, salt: &[u8], iterations: u32) -> [u8; 32] {
    let keyed: Hmac<Sha256> = Hmac::new_from_slice(password.as_bytes()).expect("any length");
    let mac = |text: &[&[u8]]| -> [u8; 32] {
        let mut mac = keyed.clone();
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

fn sign(key: &[u8], text: &[u8]) -> [u8; 32] {
    let mut mac: Hmac<Sha256> = Hmac::new_from_slice(key).expect("any length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

fn xor(left: &mut [u8; 32], right: &[u8; 32]) {
    left.iter_mut().zip(right).for_each(|(left, right)| *left ^= right);
}

fn message(tag: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len() + 4).expect("a short message");
    [&[tag][..], &length.to_be_bytes(), body].concat()
}

fn receive(reader: &mut impl BufRead) -> (u8, Vec<u8>) {
    let mut header = [0; 5];
    reader.read_exact(&mut header).expect("a message");
    let [tag, length @ ..] = header;
    let length = usize::try_from(u32::from_be_bytes(length)).expect("a short message");
    let mut body = vec![0; length - 4];
    reader.read_exact(&mut body).expect("the rest of a message");
    (tag, body)
}
