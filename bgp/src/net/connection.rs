//! One TCP connection and what is under way on it. Bytes that the kernel would not take wait here; nothing else does.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

/// What the driver wants with a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Not connected yet.
    Dialling,
    /// In use by the speaker.
    Open,
    /// The speaker is done with it: its last bytes, a NOTIFICATION most often, are still to be sent.
    Flushing,
    /// All is sent and our side is closed; the peer's FIN is awaited, since closing with unread bytes in the socket would
    /// send a RST that can overtake the NOTIFICATION.
    Draining,
}

/// A connection or a dial.
pub(super) struct Connection {
    pub(super) phase: Phase,
    pub(super) stream: Option<Arc<TcpStream>>,
    /// Ends the futures that wait for this connection; they share the stream, and the socket closes with the last of them.
    pub(super) cancel: CancellationToken,
    /// A future waits until the socket takes bytes again.
    pub(super) waiting_to_write: bool,
    pending: BytesMut,
}

/// How far writing has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Written {
    /// Everything.
    All,
    /// The kernel's buffer is full.
    Blocked,
}

impl Connection {
    pub(super) fn dialling() -> Self {
        Connection {
            phase: Phase::Dialling,
            stream: None,
            cancel: CancellationToken::new(),
            waiting_to_write: false,
            pending: BytesMut::new(),
        }
    }

    pub(super) fn open(stream: Arc<TcpStream>) -> Self {
        let mut conn = Connection::dialling();
        conn.phase = Phase::Open;
        conn.stream = Some(stream);
        conn
    }

    /// Writes what the kernel had not taken before.
    pub(super) fn write_pending(&mut self) -> io::Result<Written> {
        let mut bytes = std::mem::take(&mut self.pending);
        let written = self.write(&mut bytes)?;
        if !bytes.is_empty() {
            self.pending = bytes;
        }
        Ok(written)
    }

    /// Writes bytes, all of which count as taken: those that the kernel does not take now are kept.
    pub(super) fn write_all(&mut self, bytes: &mut BytesMut) -> io::Result<Written> {
        debug_assert!(self.pending.is_empty(), "pending bytes go first");
        let written = self.write(bytes)?;
        if !bytes.is_empty() {
            self.pending.extend_from_slice(bytes);
            bytes.clear();
        }
        Ok(written)
    }

    fn write(&self, bytes: &mut BytesMut) -> io::Result<Written> {
        let Some(stream) = &self.stream else { return Ok(Written::Blocked) };
        while !bytes.is_empty() {
            match stream.try_write(bytes) {
                Ok(n) => bytes.advance(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Written::Blocked),
                Err(e) => return Err(e),
            }
        }
        Ok(Written::All)
    }

    /// Sends our FIN behind what is in the kernel's buffer.
    pub(super) fn close_our_side(&mut self) {
        self.phase = Phase::Draining;
        if let Some(stream) = &self.stream {
            // The peer may be gone already, and then there is nobody to tell.
            let _ = SockRef::from(&**stream).shutdown(std::net::Shutdown::Write);
        }
    }

    /// Both ends, while there is a socket.
    pub(super) fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        let stream = self.stream.as_ref()?;
        Some((stream.local_addr().ok()?, stream.peer_addr().ok()?))
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}
