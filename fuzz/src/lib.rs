//! What a fuzzer does with one input, for each decoder of what the network can send us. libFuzzer calls it from `fuzz_targets/`
//! and `cargo test` from `bgp/tests/fuzz`, which runs the committed seeds and some seconds of their mutations without a fuzzer.

pub mod bfd;
pub mod capabilities;
pub mod discovery;
pub mod framing;
pub mod notification;
pub mod open;
pub mod update;

/// A name, under which its seeds lie, and what is done with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("bfd", bfd::run),
    ("capabilities", capabilities::run),
    ("discovery", discovery::run),
    ("framing", framing::run),
    ("notification", notification::run),
    ("open", open::run),
    ("update", update::run),
];
