use pglock::protocol::saslprep;
use pglock::protocol::scram::{ChannelBinding, ClientFinal, ClientFirst, Derivation, Progress};

use super::input::Input;

/// The client's nonce is these bytes, which are the ones of the example in the module's documentation.
const NONCE: [u8; 18] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17];
const NONCE_BASE64: &str = "AAECAwQFBgcICQoLDA0ODxAR";

/// A login that a server who knows the password would go through with, computed with Python's
/// `hashlib`: no other final message than this can be right.
pub(crate) const PASSWORD: &str = "pencil";
const SERVER_FIRST: &str =
    "r=AAECAwQFBgcICQoLDA0ODxARgQ2kT1bXo7cFZ5mY,s=W22ZaJ0SNY7soEsUEjb6gQ==,i=2";
const SERVER_FINAL: &str = "v=xYMePmjr0sqkQmSTDMCMiZU0ahWVpH7jIL5FSJEzo6g=";

/// Most iterations that are run: what comes after them is the same for all.
const ITERATIONS_RUN_MAX: u32 = 64;

/// SCRAM's client against both messages of a server, arbitrary or nearly right.
pub fn scram(data: &[u8]) {
    let mut input = Input::new(data);
    let (binding, prefix) = channel_binding(input.u8());
    let password = password(&mut input);
    let server_first = server_first(&mut input);
    let step = u32::from(input.u8()) + 1;
    let server_final = input.rest();

    let begin = || ClientFirst::new(NONCE, binding.clone()).server_first(&server_first, &password);
    let derivation = match begin() {
        Ok(derivation) => derivation,
        Err(error) => return check_error(&error),
    };
    let message = String::from_utf8_lossy(&server_first);
    let nonce = check_accepted(&message);
    let Some(client) = run(derivation, step) else { return };
    assert_eq!(
        Some(client.message()),
        begin().ok().and_then(|d| run(d, 1)).as_ref().map(ClientFinal::message)
    );
    check_proof(client.message(), prefix, nonce);
    match client.server_final(server_final) {
        Ok(_) => {
            assert_eq!((prefix, &*message), ("c=biws", SERVER_FIRST), "a forged signature");
            assert_eq!(saslprep(&password), PASSWORD);
            assert_eq!(String::from_utf8_lossy(server_final), SERVER_FINAL);
        }
        Err(error) => check_error(&error),
    }
}

/// How the client binds, and how its final message begins for it.
fn channel_binding(choice: u8) -> (ChannelBinding, &'static str) {
    match choice % 3 {
        0 => (ChannelBinding::Unsupported, "c=biws"),
        1 => (ChannelBinding::NotOffered, "c=eSws"),
        _ => {
            let hash = vec![0xab; 32];
            let text =
                "c=cD10bHMtc2VydmVyLWVuZC1wb2ludCwsq6urq6urq6urq6urq6urq6urq6urq6urq6urq6urq6s=";
            (ChannelBinding::TlsServerEndPoint(hash), text)
        }
    }
}

fn password(input: &mut Input<'_>) -> String {
    match input.u8() {
        0 => String::from(PASSWORD),
        _ => input.text(),
    }
}

/// Arbitrary bytes, or a message of the right form with arbitrary contents.
fn server_first(input: &mut Input<'_>) -> Vec<u8> {
    match input.u8() % 3 {
        0 => input.bytes().to_vec(),
        1 => {
            let (nonce, salt) = (input.text(), input.text());
            format!("r={NONCE_BASE64}{nonce},s={salt},i={}", input.u8()).into_bytes()
        }
        _ => {
            let (nonce, salt, iterations) = (input.text(), input.text(), input.text());
            format!("r={NONCE_BASE64}{nonce},s={salt},i={iterations}").into_bytes()
        }
    }
}

/// What the client accepted continues its nonce, which is given back, and has a salt and a count.
fn check_accepted(message: &str) -> &str {
    let mut fields = message.split(',');
    let mut field = |name: &str| fields.next().and_then(|field| field.strip_prefix(name));
    let (nonce, salt, iterations) = (field("r="), field("s="), field("i="));
    let nonce = nonce.unwrap_or_default();
    assert!(nonce.starts_with(NONCE_BASE64) && nonce.len() > NONCE_BASE64.len(), "{message}");
    assert!(salt.is_some_and(|salt| !salt.is_empty()), "{message}");
    assert!(iterations.is_some_and(|count| count.parse().is_ok_and(|n: u32| n > 0)), "{message}");
    assert_eq!(fields.next(), None);
    nonce
}

/// Derives in steps of so many iterations, unless there are too many of them.
fn run(mut derivation: Derivation, step: u32) -> Option<ClientFinal> {
    let mut left = ITERATIONS_RUN_MAX;
    loop {
        derivation = match derivation.run(step.min(left)) {
            Progress::Done(client) => return Some(client),
            Progress::More(rest) => rest,
        };
        left = left.saturating_sub(step);
        if left == 0 {
            return None;
        }
    }
}

fn check_proof(message: &str, prefix: &str, nonce: &str) {
    let proof = message.strip_prefix(&format!("{prefix},r={nonce},p="));
    // 32 bytes in base64.
    assert!(proof.is_some_and(|proof| proof.len() == 44 && proof.ends_with('=')), "{message}");
}

/// An error that a terminal can show, whatever the server sent.
fn check_error(error: &impl ToString) {
    let text = error.to_string();
    assert!(text.len() < 300 && text.chars().all(|c| c == ' ' || c.is_ascii_graphic()), "{text}");
}
