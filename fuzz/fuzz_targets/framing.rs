//! See `manx_fuzz::framing`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| manx_fuzz::framing::run(data));
