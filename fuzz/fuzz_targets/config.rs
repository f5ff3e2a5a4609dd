#![no_main]
//! Runs [`pglock_fuzz::config`] on what libFuzzer comes up with.

libfuzzer_sys::fuzz_target!(|data: &[u8]| pglock_fuzz::config(data));
