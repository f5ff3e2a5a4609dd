//! What the fuzzer has kept, replayed with a stable compiler: each input that once reached something new
//! or found a defect, and each word of the dictionaries.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test ends where what it expects does not hold, and so do the bodies"
)]

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};

#[path = "../fuzz/src/lib.rs"]
pub mod bodies;

/// The corpus is read at every change and lives in the repository: `cargo fuzz cmin` keeps it small.
const FILES_MAX: usize = 100;
const FILE_BYTES_MAX: usize = 4 << 10;

#[test]
fn backend() {
    replay("backend", bodies::backend);
}

#[test]
fn connection() {
    replay("connection", bodies::connection);
}

#[test]
fn scram() {
    replay("scram", bodies::scram);
}

#[test]
fn certificate() {
    replay("certificate", bodies::certificate);
}

#[test]
fn config() {
    replay("config", bodies::config);
}

/// Runs all before it fails, so that it can name every input that does.
fn replay(target: &str, body: fn(&[u8])) {
    let fuzz = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz");
    let mut inputs = Vec::new();
    for file in corpus(&fuzz.join("corpus").join(target)) {
        let input = fs::read(&file).unwrap();
        assert!(input.len() <= FILE_BYTES_MAX, "{} is too long to keep", file.display());
        inputs.push((file.display().to_string(), input));
    }
    let dictionary = fs::read_to_string(fuzz.join("dictionary").join(format!("{target}.dict")));
    inputs.extend(words(&dictionary.unwrap()));
    inputs.retain(|(_, input)| panic::catch_unwind(|| body(input)).is_err());
    let failed: Vec<_> = inputs.into_iter().map(|(name, _)| name).collect();
    assert!(failed.is_empty(), "these inputs fail: {failed:#?}");
}

fn corpus(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap();
    let files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    let count = files.len();
    assert!((1..=FILES_MAX).contains(&count), "{} has {count} files", directory.display());
    files
}

/// The words of a dictionary in libFuzzer's format, each with the line that has it.
fn words(dictionary: &str) -> Vec<(String, Vec<u8>)> {
    let lines = dictionary.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let words: Vec<_> = lines.map(|line| (line.to_owned(), word(line))).collect();
    assert!(!words.is_empty(), "no words in the dictionary");
    words
}

/// The word of a line `"..."`, in which `\"`, `\\` and `\x00` are escapes.
fn word(line: &str) -> Vec<u8> {
    let quoted = line.strip_prefix('"').and_then(|line| line.strip_suffix('"'));
    let mut bytes = quoted.expect(line).bytes();
    let mut word = Vec::new();
    while let Some(byte) = bytes.next() {
        word.push(match byte {
            b'\\' => match bytes.next() {
                Some(b'x') => {
                    let digits = [bytes.next().expect(line), bytes.next().expect(line)];
                    u8::from_str_radix(std::str::from_utf8(&digits).expect(line), 16).expect(line)
                }
                Some(itself @ (b'"' | b'\\')) => itself,
                _ => panic!("unknown escape in {line}"),
            },
            plain => plain,
        });
    }
    word
}
