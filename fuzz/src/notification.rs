//! NOTIFICATION and ROUTE-REFRESH bodies; texts that a peer sends are fit to print.
use bytes::BytesMut;
use manx_bgp::types::PeerType;
use manx_bgp::wire::message::Message;
use manx_bgp::wire::{DecodeContext, Frame, MessageKind, decode, header};

/// One input.
pub fn run(data: &[u8]) {
    let Some((&kind, body)) = data.split_first() else { return };
    let kind = if kind & 1 == 0 { MessageKind::Notification } else { MessageKind::RouteRefresh };
    let ctx = DecodeContext::modern(PeerType::External);
    let Ok(message) = decode(Frame { kind, body }, &ctx) else { return };
    let mut out = BytesMut::new();
    match &message {
        Message::Notification(notification) => {
            let shown = notification.to_string();
            assert!(!shown.chars().any(char::is_control), "{shown:?}");
            assert!(shown.len() <= 1024, "a text of 255 octets at most");
            notification.encode(&mut out);
        }
        Message::RouteRefresh(refresh) => refresh.encode(&mut out),
        Message::Ignored(_) => return,
        other => panic!("{other:?}"),
    }
    let frame = header::frame(&out, header::MAX_LEN).expect("a good header").expect("a whole message");
    let again = decode(frame, &ctx).expect("what we write can be read");
    assert!(again == message || body.len() > 4096 - header::LEN);
}
