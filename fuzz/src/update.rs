//! UPDATE bodies under any negotiated options: the promises of `Update` hold, and what was decoded can be sent on.
use bytes::BytesMut;
use manx_bgp::types::{PeerType, PerFamily};
use manx_bgp::wire::message::{Message, Update};
use manx_bgp::wire::{
    DecodeContext, EncodeContext, EncodedAttributes, Frame, MessageKind, decode, header, reach,
};

/// One input.
pub fn run(data: &[u8]) {
    let Some((&options, body)) = data.split_first() else { return };
    let bit = |n: u8| options & (1 << n) != 0;
    let ctx = DecodeContext {
        peer: if bit(0) { PeerType::Internal } else { PeerType::External },
        families: PerFamily { ipv4: !bit(1), ipv6: !bit(2) },
        four_octet_as: !bit(3),
        add_path: PerFamily { ipv4: bit(4), ipv6: bit(5) },
        extended_next_hop: bit(6),
    };
    if body.len() < 4 || body.len() > 65535 - header::LEN {
        return;
    }
    let update = match decode(Frame { kind: MessageKind::Update, body }, &ctx) {
        Ok(Message::Update(update)) => update,
        Ok(other) => panic!("not an UPDATE: {other:?}"),
        Err(error) => return assert_eq!(error.notification.code, 3),
    };
    let prefixes = update.withdrawn.len() + update.reach.iter().map(|r| r.nlri.len()).sum::<usize>();
    assert!(prefixes <= body.len());
    assert_eq!(update.attributes.is_some(), !update.reach.is_empty());
    send_on(&update, &ctx);
}

/// Encodes what was received for a peer with the same options and reads it back.
fn send_on(update: &Update, ctx: &DecodeContext) {
    let Some(attributes) = &update.attributes else { return };
    let to = EncodeContext {
        peer: ctx.peer,
        four_octet_as: ctx.four_octet_as,
        add_path: ctx.add_path,
        extended_message: true,
        extended_next_hop: ctx.extended_next_hop,
    };
    let encoded = EncodedAttributes::new(attributes, &to);
    for reached in &update.reach {
        let mut out = BytesMut::new();
        let mut nlri = reached.nlri.iter().copied().peekable();
        let Ok(count) = reach(&mut out, &to, &encoded, reached.next_hop, reached.family, &mut nlri) else {
            return;
        };
        let frame =
            header::frame(&out, header::MAX_LEN_EXTENDED).expect("a good header").expect("a whole message");
        let Ok(Message::Update(again)) = decode(frame, ctx) else { panic!("what we write can be read") };
        assert!(again.faults.is_empty(), "{:?}", again.faults);
        assert_eq!(again.reach[0].nlri, reached.nlri[..count]);
        assert_eq!(again.reach[0].next_hop, reached.next_hop);
        let as_path = &again.attributes.as_ref().expect("there are routes").as_path;
        if ctx.four_octet_as {
            assert_eq!(as_path, &attributes.as_path);
        }
    }
}
