//! The optional parameters of an otherwise good OPEN, in both forms: the fuzzer spends its time behind the fixed part.
use manx_bgp::wire::message::Open;

/// One input.
pub fn run(capabilities: &[u8]) {
    let fixed = [4, 0xfd, 0xe9, 0, 90, 10, 0, 0, 1];
    let octets = u16::try_from(capabilities.len().min(60_000)).expect("at most 60,000");
    let capabilities = &capabilities[..octets.into()];
    let mut extended = fixed.to_vec();
    extended.extend_from_slice(&[255, 255]);
    extended.extend_from_slice(&(octets + 3).to_be_bytes());
    extended.push(2);
    extended.extend_from_slice(&octets.to_be_bytes());
    extended.extend_from_slice(capabilities);
    let extended = Open::decode(&extended);
    if let Ok(short) = u8::try_from(capabilities.len() + 2) {
        let mut plain = fixed.to_vec();
        plain.extend_from_slice(&[short, 2, short - 2]);
        plain.extend_from_slice(capabilities);
        let plain = Open::decode(&plain).map(|open| Open { extended: true, ..open });
        assert_eq!(plain, extended, "both forms say the same");
    }
}
