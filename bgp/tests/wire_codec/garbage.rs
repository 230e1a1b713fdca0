//! Whatever comes in: no panic, bounded results, and a NOTIFICATION of a code that fits the message.

use bytes::BytesMut;
use manx_bgp::wire::message::{Message, Update};
use manx_bgp::wire::{DecodeContext, EncodedAttributes, Framer, decode, reach};
use proptest::collection::vec;
use proptest::prelude::*;

use crate::generate::{announcement, context, decode_context, far_end};
use crate::support::{attribute, message, read, update};

/// Bytes that look like attributes: known codes, plausible flags and lengths, any values.
fn attribute_like() -> impl Strategy<Value = Vec<u8>> {
    let code = prop_oneof![4 => 0u8..40, 1 => any::<u8>()];
    let flags = prop_oneof![3 => prop::sample::select(vec![0x40u8, 0x80, 0xc0]), 1 => any::<u8>()];
    (flags, code, vec(any::<u8>(), 0..40)).prop_map(|(flags, code, value)| attribute(flags, code, &value))
}

/// Judges the outcome of an UPDATE of `octets`.
fn check(result: Result<Message, manx_bgp::wire::WireError>, octets: usize) -> Result<(), TestCaseError> {
    match result {
        Ok(Message::Update(update)) => check_update(&update, octets),
        Ok(_) => Ok(()),
        Err(error) => {
            let code = error.notification.code;
            prop_assert!((1..=3).contains(&code) || code == 7, "{}", error);
            prop_assert!(error.notification.data.len() <= octets);
            Ok(())
        }
    }
}

fn check_update(update: &Update, octets: usize) -> Result<(), TestCaseError> {
    let prefixes = update.withdrawn.len() + update.reach.iter().map(|r| r.nlri.len()).sum::<usize>();
    prop_assert!(prefixes <= octets, "a prefix takes an octet at least");
    prop_assert!(update.faults.len() <= octets);
    prop_assert_eq!(update.attributes.is_some(), !update.reach.is_empty());
    prop_assert!(update.reach.iter().all(|r| !r.nlri.is_empty()));
    prop_assert!(update.reach.iter().all(|r| r.nlri.iter().all(|n| n.prefix.family() == r.family)));
    for announced in update.reach.iter().flat_map(|r| &r.nlri) {
        prop_assert!(!update.withdrawn.contains(announced));
    }
    Ok(())
}

proptest! {
    #[test]
    fn any_body_of_any_type_is_survived(kind in 1u8..=5, body in vec(any::<u8>(), 0..400), ctx in decode_context()) {
        let bytes = message(kind, &body);
        let mut framer = Framer::new();
        framer.push(&bytes);
        match framer.next_frame() {
            Ok(Some(frame)) => check(decode(frame, &ctx), bytes.len())?,
            Ok(None) => prop_assert!(false, "the message is whole"),
            Err(error) => prop_assert_eq!(error.notification.code, 1),
        }
    }

    #[test]
    fn any_stream_is_survived(bytes in vec(any::<u8>(), 0..200), marker: bool) {
        let mut framer = Framer::new();
        if marker {
            framer.push(&[0xff; 16]);
        }
        framer.push(&bytes);
        while let Ok(Some(_)) = framer.next_frame() {}
        prop_assert!(framer.buffered() <= 216);
    }

    #[test]
    fn any_attributes_are_survived(
        withdrawn in vec(any::<u8>(), 0..20),
        attributes in vec(attribute_like(), 0..8),
        nlri in vec(prop_oneof![Just(8u8), Just(0), any::<u8>()], 0..20),
        ctx in decode_context(),
    ) {
        let bytes = update(&withdrawn, &attributes, &nlri);
        check(read(&bytes, &ctx), bytes.len())?;
    }

    #[test]
    fn a_good_update_with_some_octets_changed_is_survived(
        (ctx, family, next_hop, attributes, prefixes) in announcement(context(), 50),
        changes in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        cut in any::<prop::sample::Index>(),
    ) {
        prop_assume!(!prefixes.is_empty());
        let mut out = BytesMut::new();
        let encoded = EncodedAttributes::new(&attributes, &ctx);
        reach(&mut out, &ctx, &encoded, next_hop, family, &mut prefixes.iter().copied().peekable()).unwrap();
        let mut body = out[19..].to_vec();
        for (place, octet) in changes {
            let place = place.index(body.len());
            body[place] = octet;
        }
        let far: DecodeContext = far_end(&ctx);
        for body in [&body[..], &body[..cut.index(body.len())]] {
            if body.len() >= 4 {
                let bytes = message(2, body);
                check(read(&bytes, &far), bytes.len())?;
            }
        }
    }
}
