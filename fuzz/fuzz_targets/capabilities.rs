//! See `manx_fuzz::capabilities`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| manx_fuzz::capabilities::run(data));
