//! See `manx_fuzz::bfd`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| manx_fuzz::bfd::run(data));
