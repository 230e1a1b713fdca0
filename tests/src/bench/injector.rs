//! A BGP speaker that only talks: opens a session, sends routes that were encoded beforehand, keeps the session alive.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::netns::Netns;

const OPEN: u8 = 1;
const UPDATE: u8 = 2;
const NOTIFICATION: u8 = 3;
const KEEPALIVE: u8 = 4;

/// Prefixes that share a set of attributes: seven on average in the Internet's table.
const PER_ATTRIBUTES: usize = 7;

/// An established session.
#[derive(Debug)]
pub struct Injector {
    stream: TcpStream,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Injector {
    /// Listens in `netns` until somebody from outside calls, and opens the session. Dialling is the other side's: a speaker
    /// under test may or may not accept.
    ///
    /// # Errors
    /// When nobody calls in time or the session is refused.
    pub fn accept(netns: &Netns, listen: SocketAddr, asn: u32, limit: Duration) -> Result<Self> {
        let listener = netns.enter(|| TcpListener::bind(listen))??;
        listener.set_nonblocking(true)?;
        let end = Instant::now() + limit;
        loop {
            match listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false)?;
                    // A speaker may close a first connection and call again.
                    match Self::establish(stream, asn) {
                        Ok(injector) => return Ok(injector),
                        Err(error) if Instant::now() > end => return Err(error),
                        Err(_) => {}
                    }
                }
                Err(_) if Instant::now() > end => bail!("nobody called {listen} within {limit:?}"),
                Err(_) => std::thread::sleep(Duration::from_millis(10)),
            }
        }
    }

    fn establish(mut stream: TcpStream, asn: u32) -> Result<Self> {
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all(&open(asn))?;
        loop {
            match read_message(&mut stream)? {
                (OPEN, _) => stream.write_all(&message(KEEPALIVE, &[]))?,
                (KEEPALIVE, _) => break,
                (NOTIFICATION, body) => bail!("the session was refused: NOTIFICATION {body:?}"),
                _ => {}
            }
        }
        stream.set_read_timeout(None)?;
        let stop = Arc::new(AtomicBool::new(false));
        let mut reader = stream.try_clone()?;
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            // Each of their KEEPALIVEs is answered by one of ours.
            while let Ok((kind, _)) = read_message(&mut reader) {
                if stopped.load(Ordering::Relaxed) {
                    return;
                }
                if kind == KEEPALIVE && reader.write_all(&message(KEEPALIVE, &[])).is_err() {
                    return;
                }
            }
        });
        Ok(Self { stream, stop, thread: Some(thread) })
    }

    /// Sends messages as they are.
    ///
    /// # Errors
    /// When the session is gone.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("the session is gone")
    }
}

impl Drop for Injector {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// UPDATEs that announce these prefixes, seven to a set of attributes, and End-of-RIB.
pub fn announce(prefixes: &[(Ipv4Addr, u8)], asn: u32, next_hop: Ipv4Addr) -> Vec<u8> {
    let mut all = Vec::new();
    for (number, group) in prefixes.chunks(PER_ATTRIBUTES).enumerate() {
        let origin_as = 100_000 + u32::try_from(number).expect("fewer than that");
        let mut attributes = vec![0x40, 1, 1, 0]; // ORIGIN IGP
        attributes.extend([0x40, 2, 10, 2, 2]); // AS_PATH: a sequence of two
        attributes.extend(asn.to_be_bytes());
        attributes.extend(origin_as.to_be_bytes());
        attributes.extend([0x40, 3, 4]); // NEXT_HOP
        attributes.extend(next_hop.octets());
        let mut body = vec![0, 0];
        body.extend(u16::try_from(attributes.len()).expect("few attributes").to_be_bytes());
        body.extend(&attributes);
        for prefix in group {
            put_prefix(&mut body, *prefix);
        }
        all.extend(message(UPDATE, &body));
    }
    all.extend(message(UPDATE, &[0, 0, 0, 0]));
    all
}

fn put_prefix(body: &mut Vec<u8>, (address, length): (Ipv4Addr, u8)) {
    body.push(length);
    body.extend(&address.octets()[..usize::from(length).div_ceil(8)]);
}

fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0xff; 16];
    bytes.extend(u16::try_from(19 + body.len()).expect("less than 4096").to_be_bytes());
    bytes.push(kind);
    bytes.extend(body);
    bytes
}

fn open(asn: u32) -> Vec<u8> {
    let mut capabilities = vec![1, 4, 0, 1, 0, 1, 2, 0, 65, 4]; // IPv4 unicast, route refresh, 4-octet AS
    capabilities.extend(asn.to_be_bytes());
    let mut body = vec![4];
    body.extend(u16::try_from(asn).unwrap_or(23456).to_be_bytes());
    body.extend(180_u16.to_be_bytes());
    body.extend([192, 168, 0, 2]);
    let length = u8::try_from(capabilities.len()).expect("few capabilities");
    body.extend([length + 2, 2, length]);
    body.extend(capabilities);
    message(OPEN, &body)
}

fn read_message(stream: &mut TcpStream) -> Result<(u8, Vec<u8>)> {
    let mut header = [0; 19];
    stream.read_exact(&mut header)?;
    let length = usize::from(u16::from_be_bytes([header[16], header[17]]));
    let mut body = vec![0; length.checked_sub(19).context("a message is shorter than its header")?];
    stream.read_exact(&mut body)?;
    Ok((header[18], body))
}
