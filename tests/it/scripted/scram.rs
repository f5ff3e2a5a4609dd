//! The server's side of SCRAM-SHA-256, with room for lies.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::messages::authentication;

const SALT: &[u8] = b"a scripted salt.";

/// What the client has sent so far, each message with its header.
type Heard<'a> = &'a [Vec<u8>];

/// `AuthenticationSASLContinue` that asks for this many iterations.
pub(crate) fn sasl_continue(iterations: &str) -> impl Fn(Heard<'_>) -> Vec<u8> + use<> {
    let iterations = iterations.to_owned();
    move |heard| authentication(11, server_first(heard, &iterations).as_bytes())
}

/// `AuthenticationSASLFinal` of a server that knows this password, after one iteration.
pub(crate) fn sasl_final(password: &str) -> impl Fn(Heard<'_>) -> Vec<u8> + use<> {
    let password = password.to_owned();
    move |heard| {
        let signature = STANDARD.encode(server_signature(heard, &password));
        authentication(12, format!("v={signature}").as_bytes())
    }
}

/// The nonce that the client drew, as it sent it.
pub(crate) fn client_nonce(heard: Heard<'_>) -> String {
    let bare = client_first_bare(heard);
    bare.split_once("r=").unwrap().1.to_owned()
}

fn server_first(heard: Heard<'_>, iterations: &str) -> String {
    let nonce = client_nonce(heard);
    format!("r={nonce}scripted,s={},i={iterations}", STANDARD.encode(SALT))
}

/// RFC 5802, section 3. With one iteration, the derivation of the password is a single hash.
fn server_signature(heard: Heard<'_>, password: &str) -> Vec<u8> {
    let client_final = text(heard.last().unwrap());
    let without_proof = client_final[5..].rsplit_once(",p=").unwrap().0;
    let first = client_first_bare(heard);
    let auth_message = format!("{first},{},{without_proof}", server_first(heard, "1"));

    let salted = mac(password.as_bytes(), &[SALT, &1_u32.to_be_bytes()].concat());
    let server_key = mac(&salted, b"Server Key");
    mac(&server_key, auth_message.as_bytes())
}

/// The client's first message without its header for channel binding.
fn client_first_bare(heard: Heard<'_>) -> String {
    let initial = heard.iter().find(|message| message.first() == Some(&b'p')).unwrap();
    text(initial).split_once("n,,").unwrap().1.to_owned()
}

fn text(message: &[u8]) -> String {
    String::from_utf8_lossy(message).into_owned()
}

fn mac(key: &[u8], data: &[u8]) -> Vec<u8> {
    let keyed = Hmac::<Sha256>::new_from_slice(key).unwrap();
    keyed.chain_update(data).finalize().into_bytes().to_vec()
}
