//! Datagrams from one pod to another without end, each as a flow of its own: what gets through shows the moments in which the
//! way was open.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result};
use socket2::Type;

use super::fresh_number;
use crate::kubelet::Pod;
use crate::scenario::station::{socket, unspecified};

/// Where the other pod listens.
const PORT: u16 = 7000;
/// Between two datagrams of one family: some hundred a second, less than what fills conntrack or the machine.
const PACE: Duration = Duration::from_millis(2);

/// Datagrams on their way, in both families, until [`Torrent::close`].
#[derive(Debug)]
pub struct Torrent {
    done: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    thread: JoinHandle<()>,
    listeners: Vec<UdpSocket>,
}

impl Torrent {
    /// Begins.
    ///
    /// # Errors
    /// When a namespace cannot be entered or the port is taken.
    pub fn open(from: &Pod, to: &Pod) -> Result<Self> {
        let mut listeners = Vec::new();
        for v6 in [false, true] {
            let address = SocketAddr::new(to.address(v6), PORT);
            let listener = to.netns.enter(|| socket(address, Type::DGRAM))?.context("a port is taken")?;
            listener.set_recv_buffer_size(1 << 20)?;
            listeners.push(listener.into());
        }
        let (done, sent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let targets = [false, true].map(|v6| SocketAddr::new(to.address(v6), PORT));
        let (stop, count, netns) = (done.clone(), sent.clone(), from.netns.clone());
        let send = move || {
            while !stop.load(Ordering::Relaxed) {
                for target in targets {
                    let own = SocketAddr::new(unspecified(target.is_ipv6()), fresh_number());
                    // A port that is taken, or a refusal to send, is no leak; the next one follows at once.
                    let Ok(near) = socket(own, Type::DGRAM) else { continue };
                    if UdpSocket::from(near).send_to(b"x", target).is_ok() {
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
                std::thread::sleep(PACE);
            }
        };
        let thread = std::thread::spawn(move || {
            // Inside the namespace from the first socket to the last.
            netns.enter(send).expect("it was there a moment ago");
        });
        Ok(Self { done, sent, thread, listeners })
    }

    /// Ends it; how many were sent, and how many came through.
    ///
    /// # Panics
    /// When the sender has.
    pub fn close(self) -> (u64, u64) {
        self.done.store(true, Ordering::Relaxed);
        self.thread.join().expect("sending does not panic");
        let came =
            |listener: &UdpSocket| std::iter::from_fn(|| listener.recv(&mut [0; 8]).ok()).count() as u64;
        (self.sent.load(Ordering::Relaxed), self.listeners.iter().map(came).sum())
    }
}
