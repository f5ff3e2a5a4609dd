#![no_main]
//! Runs [`pglock_fuzz::certificate`] on what libFuzzer comes up with.

libfuzzer_sys::fuzz_target!(|data: &[u8]| pglock_fuzz::certificate(data));
