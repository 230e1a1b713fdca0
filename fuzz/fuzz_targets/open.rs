//! See `manx_fuzz::open`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| manx_fuzz::open::run(data));
