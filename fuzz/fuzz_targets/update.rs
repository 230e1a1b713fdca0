//! See `manx_fuzz::update`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| manx_fuzz::update::run(data));
