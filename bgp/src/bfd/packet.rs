//! The BFD control packet (RFC 5880 4.1): 24 octets, checked as 6.8.6 says before a session sees them.

use std::time::Duration;

/// Octets of a packet without authentication.
pub const LEN: usize = 24;
const VERSION: u8 = 1;

const POLL: u8 = 0x20;
const FINAL: u8 = 0x10;
const CONTROL_PLANE_INDEPENDENT: u8 = 0x08;
const AUTHENTICATION: u8 = 0x04;
const DEMAND: u8 = 0x02;
const MULTIPOINT: u8 = 0x01;

/// A session's state as packets carry it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum State {
    /// Held down by an administrator.
    AdminDown,
    /// No contact.
    Down,
    /// The peer is heard and does not hear us yet.
    Init,
    /// Both hear each other.
    Up,
}

impl State {
    /// As RFC 5880 writes it.
    pub fn name(self) -> &'static str {
        match self {
            State::AdminDown => "AdminDown",
            State::Down => "Down",
            State::Init => "Init",
            State::Up => "Up",
        }
    }

    fn from_bits(bits: u8) -> State {
        match bits & 3 {
            0 => State::AdminDown,
            1 => State::Down,
            2 => State::Init,
            _ => State::Up,
        }
    }
}

/// Why a session left Up (RFC 5880 4.1). Only the codes that single hop sessions without echo and demand mode use have names.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Diagnostic(pub u8);

impl Diagnostic {
    /// 0.
    pub const NONE: Diagnostic = Diagnostic(0);
    /// 1: nothing came for the detection time.
    pub const DETECTION_TIME_EXPIRED: Diagnostic = Diagnostic(1);
    /// 3: the peer says that it is down.
    pub const NEIGHBOR_SIGNALED_DOWN: Diagnostic = Diagnostic(3);
    /// 7: an administrator wants it down.
    pub const ADMINISTRATIVELY_DOWN: Diagnostic = Diagnostic(7);

    /// In words.
    pub fn text(self) -> &'static str {
        match self.0 {
            0 => "no diagnostic",
            1 => "control detection time expired",
            2 => "echo function failed",
            3 => "neighbor signaled session down",
            4 => "forwarding plane reset",
            5 => "path down",
            6 => "concatenated path down",
            7 => "administratively down",
            8 => "reverse concatenated path down",
            _ => "unknown diagnostic",
        }
    }
}

/// A control packet. Intervals have microseconds on the wire, 71 minutes at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Packet {
    /// Why the sender last left Up.
    pub diagnostic: Diagnostic,
    /// The sender's state.
    pub state: State,
    /// P: the sender wants an answer with F.
    pub poll: bool,
    /// F: the answer to P.
    pub final_: bool,
    /// C: the sender's BFD survives its control plane.
    pub control_plane_independent: bool,
    /// D: the sender wants no periodic packets while both are up.
    pub demand: bool,
    /// The sender's detection multiplier, at least 1.
    pub multiplier: u8,
    /// The sender's discriminator, not 0.
    pub my_discriminator: u32,
    /// The receiver's discriminator as the sender knows it; 0: not yet.
    pub your_discriminator: u32,
    /// The sender does not want to send faster.
    pub desired_min_tx: Duration,
    /// The sender cannot take packets faster; 0: wants none.
    pub required_min_rx: Duration,
    /// The same for echo packets; 0: no echo.
    pub required_min_echo_rx: Duration,
}

/// Why a packet is discarded. Nothing is sent back (RFC 5880 6.8.6).
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Discard {
    /// Not a version that is spoken here.
    #[error("BFD version {0} is not 1")]
    Version(u8),
    /// Fewer octets than the length field says, or a length that cannot be.
    #[error("length field {0} does not fit the packet")]
    Length(u8),
    /// A detection multiplier of 0.
    #[error("detection multiplier is 0")]
    Multiplier,
    /// M is reserved (RFC 5880 4.1).
    #[error("multipoint bit is set")]
    Multipoint,
    /// A discriminator of 0.
    #[error("my discriminator is 0")]
    MyDiscriminator,
    /// A sender that has heard of us knows our discriminator.
    #[error("your discriminator is 0 in state {}", .0.name())]
    YourDiscriminator(State),
    /// Authenticated: no session here has a key, and what cannot be checked must not count as checked.
    #[error("the packet is authenticated, which is not configured")]
    Authenticated,
}

impl Packet {
    /// Decodes and checks, in the order of RFC 5880 6.8.6.
    ///
    /// # Errors
    /// Why it has to be discarded.
    pub fn decode(octets: &[u8]) -> Result<Self, Discard> {
        let &[head, flags, multiplier, length, ref rest @ ..] = octets else {
            return Err(Discard::Length(0));
        };
        if head >> 5 != VERSION {
            return Err(Discard::Version(head >> 5));
        }
        let authenticated = flags & AUTHENTICATION != 0;
        let least = if authenticated { LEN + 2 } else { LEN };
        if usize::from(length) < least || usize::from(length) > octets.len() {
            return Err(Discard::Length(length));
        }
        if multiplier == 0 {
            return Err(Discard::Multiplier);
        }
        if flags & MULTIPOINT != 0 {
            return Err(Discard::Multipoint);
        }
        let (words, _) = rest.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |w| u32::from_be_bytes(*w));
        let interval = |at| Duration::from_micros(word(at).into());
        let state = State::from_bits(flags >> 6);
        let packet = Packet {
            diagnostic: Diagnostic(head & 0x1f),
            state,
            poll: flags & POLL != 0,
            final_: flags & FINAL != 0,
            control_plane_independent: flags & CONTROL_PLANE_INDEPENDENT != 0,
            demand: flags & DEMAND != 0,
            multiplier,
            my_discriminator: word(0),
            your_discriminator: word(1),
            desired_min_tx: interval(2),
            required_min_rx: interval(3),
            required_min_echo_rx: interval(4),
        };
        if packet.my_discriminator == 0 {
            return Err(Discard::MyDiscriminator);
        }
        if packet.your_discriminator == 0 && !matches!(state, State::Down | State::AdminDown) {
            return Err(Discard::YourDiscriminator(state));
        }
        if authenticated {
            return Err(Discard::Authenticated);
        }
        Ok(packet)
    }

    /// The octets to send.
    pub fn encode(&self) -> [u8; LEN] {
        let flag = |on: bool, bit: u8| if on { bit } else { 0 };
        let state = match self.state {
            State::AdminDown => 0,
            State::Down => 1,
            State::Init => 2,
            State::Up => 3,
        };
        let mut out = [0; LEN];
        out[0] = VERSION << 5 | self.diagnostic.0 & 0x1f;
        out[1] = state << 6
            | flag(self.poll, POLL)
            | flag(self.final_, FINAL)
            | flag(self.control_plane_independent, CONTROL_PLANE_INDEPENDENT)
            | flag(self.demand, DEMAND);
        out[2] = self.multiplier;
        out[3] = LEN as u8;
        let words = [
            self.my_discriminator,
            self.your_discriminator,
            micros(self.desired_min_tx),
            micros(self.required_min_rx),
            micros(self.required_min_echo_rx),
        ];
        for (place, word) in out[4..].as_chunks_mut::<4>().0.iter_mut().zip(words) {
            *place = word.to_be_bytes();
        }
        out
    }
}

fn micros(interval: Duration) -> u32 {
    u32::try_from(interval.as_micros()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rstest::rstest;

    use super::*;

    /// Sent by FRR's bfdd: Up, multiplier 3, 100 ms both ways, C bit clear, echo 50 ms.
    const FRR: [u8; 24] = [
        0x20, 0xc0, 3, 24, 0x5c, 0x1d, 0x92, 0x07, 0, 0, 0, 9, 0, 1, 0x86, 0xa0, 0, 1, 0x86, 0xa0, 0, 0,
        0xc3, 0x50,
    ];

    #[test]
    fn a_packet_of_a_router_reads_as_it_was_meant() {
        let packet = Packet::decode(&FRR).unwrap();
        let fast = Duration::from_millis(100);
        assert_eq!((packet.state, packet.multiplier), (State::Up, 3));
        assert_eq!((packet.my_discriminator, packet.your_discriminator), (0x5c1d_9207, 9));
        assert_eq!((packet.desired_min_tx, packet.required_min_rx), (fast, fast));
        assert_eq!(packet.required_min_echo_rx, Duration::from_millis(50));
        assert_eq!(packet.encode(), FRR);
    }

    #[rstest]
    #[case::version(0, 0x40, Discard::Version(2))]
    #[case::short(3, 23, Discard::Length(23))]
    #[case::longer_than_the_datagram(3, 25, Discard::Length(25))]
    #[case::multiplier(2, 0, Discard::Multiplier)]
    #[case::multipoint(1, 0xc1, Discard::Multipoint)]
    #[case::authentication_without_its_section(1, 0xc4, Discard::Length(24))]
    fn what_rfc_5880_6_8_6_discards(#[case] at: usize, #[case] value: u8, #[case] why: Discard) {
        let mut octets = FRR;
        octets[at] = value;
        assert_eq!(Packet::decode(&octets), Err(why));
    }

    #[test]
    fn discriminators_must_be_there() {
        let mut octets = FRR;
        octets[4..8].fill(0);
        assert_eq!(Packet::decode(&octets), Err(Discard::MyDiscriminator));
        let mut octets = FRR;
        octets[8..12].fill(0);
        assert_eq!(Packet::decode(&octets), Err(Discard::YourDiscriminator(State::Up)));
        octets[1] = 0x40;
        assert_eq!(Packet::decode(&octets).unwrap().state, State::Down);
    }

    #[test]
    fn an_authenticated_packet_is_refused() {
        let mut octets = FRR.to_vec();
        octets.extend_from_slice(&[1, 4, 1, b'k']);
        octets[1] |= AUTHENTICATION;
        octets[3] = 28;
        assert_eq!(Packet::decode(&octets), Err(Discard::Authenticated));
    }

    proptest! {
        #[test]
        fn what_decodes_encodes_to_the_same(mut octets in proptest::array::uniform24(any::<u8>())) {
            octets[0] = octets[0] & 0x1f | 0x20;
            octets[3] = 24;
            if let Ok(packet) = Packet::decode(&octets) {
                prop_assert_eq!(packet.encode(), octets);
            }
        }

        #[test]
        fn no_octets_make_it_panic(octets in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = Packet::decode(&octets);
        }
    }
}
