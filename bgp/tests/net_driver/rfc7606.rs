//! RFC 7606 against a whole speaker: every row of the table is sent over TCP between two sentinels, to an external and to an
//! internal session.

use std::collections::BTreeSet;

use manx_bgp::net::Event;
use manx_bgp::speaker::{PeerConfig, RemoteAs, Speaker};
use manx_bgp::types::{Asn, Prefix};
use rstest::rstest;
use tokio::io::AsyncWriteExt as _;

use crate::support::{Node, RawPeer, asn, prefix};
use crate::table::{self, Outcome, Row, Sender, VICTIM, VICTIM_V6, edited};

/// 198.51.100.0/24: lives as long as the session.
const BEFORE: &str = "nlri=18.c63364";
/// 203.0.113.0/24: comes through a session that has survived.
const AFTER: &str = "nlri=18.cb0071";
/// The victims, with a MED of 77, which no row has.
const VICTIMS: &str = "80:4:0000004d 80:14:REACH";

#[rstest]
#[case::external(100, Sender::External { asn: 65101 })]
#[case::internal(102, Sender::Internal)]
#[tokio::test]
async fn every_row_of_the_table_has_its_outcome(#[case] n: u8, #[case] sender: Sender) {
    let mut node = Node::start(n).await;
    let mut wrong = Vec::new();
    for row in table::rows() {
        let seen = send(&mut node, sender, &row).await;
        if seen != Ok(row.expected(sender)) {
            wrong.push(format!("{}: {seen:?}, expected {:?}", row.name, row.expected(sender)));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Makes a session of its own for the row and sees what becomes of it.
async fn send(node: &mut Node, sender: Sender, row: &Row) -> Result<Outcome, String> {
    let n = node.n + 1;
    let asn = match sender {
        Sender::External { asn } => Asn(asn),
        Sender::Internal => asn(node.n),
    };
    let config = PeerConfig { remote_as: RemoteAs::Asn(asn), ..node.passive_peer(n) };
    let name = config.name.clone();
    node.set_peer(config).await;
    let mut raw = RawPeer::connect(n, node.listens).await;
    raw.asn = asn;
    raw.establish(90).await;
    let mut fib = Fib { node, held: BTreeSet::new() };

    raw.send(&edited(BEFORE, sender)).await;
    raw.send(&edited(VICTIMS, sender)).await;
    let (before, after) = (prefix("198.51.100.0/24"), prefix("203.0.113.0/24"));
    let (v4, v6) = (prefix(VICTIM), prefix(VICTIM_V6));
    fib.until(|held, _| [before, v4, v6].iter().all(|p| held.contains(p))).await;

    raw.send(&row.message(sender)).await;
    // Whoever is reset may have closed the connection by now.
    let _ = raw.stream.write_all(&edited(AFTER, sender)).await;
    fib.until(|held, up| held.contains(&after) || !up).await;
    let lives = fib.held.contains(&after);
    let outcome = if lives {
        let peer = name.clone();
        let ask = move |speaker: &mut Speaker, now| {
            let faults = speaker.peer_view(now, &peer).expect("it is configured").messages.faults;
            (faults, speaker.explain(v4).paths.first().and_then(|path| path.med))
        };
        let (faults, med) = fib.node.handle.with(ask).await.unwrap();
        let announced = [row.announces().0.then_some(v4), row.announces().1.then_some(v6)];
        let held = announced.into_iter().flatten().filter(|p| fib.held.contains(p)).count();
        match (announced.iter().flatten().count() - held, faults) {
            _ if !fib.held.contains(&before) => Err("the sentinel went with the victim".to_owned()),
            (0, _) if announced[0].is_some() && med == Some(77) => Err("nothing has happened".to_owned()),
            (0, 0) => Ok(Outcome::Ok),
            (0, _) => Ok(Outcome::Discard),
            (1.., 1..) if held == 0 => Ok(Outcome::Withdraw),
            (gone, faults) => Err(format!("{gone} prefixes gone, {held} left, {faults} faults")),
        }
    } else {
        let notification = raw.notification_and_end().await;
        fib.until(|held, _| held.is_empty()).await;
        Ok(Outcome::Reset(notification.code, notification.subcode))
    };
    fib.node.handle.with(move |speaker, now| speaker.remove_peer(now, &name)).await.unwrap();
    fib.until(|held, _| held.is_empty()).await;
    outcome
}

/// The FIB as the events of a node tell it.
struct Fib<'a> {
    node: &'a mut Node,
    held: BTreeSet<Prefix>,
}

impl Fib<'_> {
    /// Follows the events until this holds, given the prefixes and whether the session is up.
    async fn until(&mut self, done: impl Fn(&BTreeSet<Prefix>, bool) -> bool) {
        let mut up = true;
        while !done(&self.held, up) {
            match self.node.event().await {
                Event::Routes(changes) => {
                    for change in changes {
                        if change.next_hops.is_empty() {
                            self.held.remove(&change.prefix);
                        } else {
                            self.held.insert(change.prefix);
                        }
                    }
                }
                Event::Peer(fact) => up &= fact.from != "Established",
                _ => {}
            }
        }
    }
}
