//! Any stream in any portions: whole messages or an error, and no more memory than the stream.
use manx_bgp::types::PeerType;
use manx_bgp::wire::{DecodeContext, Framer, decode};

/// One input.
pub fn run(data: &[u8]) {
    let Some((&portion, stream)) = data.split_first() else { return };
    let mut framer = Framer::new();
    let mut whole = Framer::new();
    if portion & 0x80 != 0 {
        framer.allow_extended_messages();
        whole.allow_extended_messages();
    }
    whole.push(stream);
    let ctx = DecodeContext::modern(PeerType::External);
    for bytes in stream.chunks(usize::from(portion & 0x7f) + 1) {
        framer.push(bytes);
        while let Ok(Some(frame)) = framer.next_frame() {
            let same = whole.next_frame().expect("no error before").expect("the same message");
            assert_eq!((frame.kind, frame.body), (same.kind, same.body));
            let _ = decode(frame, &ctx);
        }
        if framer.next_frame().is_err() {
            return;
        }
    }
    assert!(framer.buffered() <= 65535);
}
