//! OPEN bodies: what is accepted is encoded and read back as the same.
use bytes::BytesMut;
use manx_bgp::wire::header::{LEN, MAX_LEN, frame};
use manx_bgp::wire::message::{Capability, Open};

/// One input.
pub fn run(body: &[u8]) {
    match Open::decode(body) {
        Err(error) => assert_eq!(error.notification.code, 2),
        Ok(open) => {
            let mut out = BytesMut::new();
            open.encode(&mut out);
            if out.len() > MAX_LEN {
                // An OPEN in extended form can hold more than one message takes; we never send so much.
                return;
            }
            let again = frame(&out, MAX_LEN).expect("a good header").expect("a whole message");
            assert_eq!(again.body.len() + LEN, out.len());
            let again = Open::decode(again.body).expect("what we write can be read");
            // One parameter may take less than several; it is then too short for the extended form unless that is asked for.
            assert!(again.extended || !open.extended || open.capabilities.is_empty());
            let again = Open { extended: open.extended, ..again };
            // Long or malformed host names are the only values that do not survive.
            let names = |o: &Open| o.capabilities.iter().any(|c| matches!(c, Capability::Fqdn { .. }));
            assert!(again == open || names(&open), "{open:?} became {again:?}");
        }
    }
}
