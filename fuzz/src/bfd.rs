//! BFD control packets: what decodes encodes to the same, and a session that is fed with it stays sane.
use std::time::{Duration, Instant};

use manx_bgp::bfd::packet::LEN;
use manx_bgp::bfd::{BfdConfig, BfdEnds, Packet, Sessions};

/// Runs one input.
pub fn run(data: &[u8]) {
    let mut now = Instant::now();
    let (local, remote) = ([10, 0, 0, 1].into(), std::net::IpAddr::from([10, 0, 0, 2]));
    let mut sessions = Sessions::new(1);
    sessions.set(now, BfdEnds { local, remote: remote.into() }, BfdConfig::default());
    for octets in data.chunks(LEN + 4) {
        if let Ok(packet) = Packet::decode(octets) {
            let again = Packet::decode(&packet.encode()).expect("what we write can be read");
            assert_eq!(again, packet);
        }
        let _ = sessions.receive(now, remote, 3, octets);
        now += Duration::from_millis(u64::from(octets[0]));
        sessions.handle_timeout(now);
        // One answer to a poll and one packet of its own at a time: no input makes a session talk without end.
        let sent = std::iter::from_fn(|| sessions.poll_transmit(now)).take(8).count();
        assert!(sent <= 2, "{sent} packets at once");
    }
}
