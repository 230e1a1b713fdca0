//! See `manx_fuzz::notification`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| manx_fuzz::notification::run(data));
