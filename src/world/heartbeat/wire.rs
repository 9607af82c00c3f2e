//! Wire format of heartbeats: frames of 24 bytes on a non-blocking connection.

use crate::process::phase::Phase;
use crate::process::rank_status::RankStatus;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

const FRAME_BYTES: usize = 24;

/// Type of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameKind {
    /// Heartbeat of a rank, with its status.
    Heartbeat = 1,
    /// The rank exits normally.
    Goodbye = 2,
    /// The rank terminates all ranks and has reported the reason.
    Failing = 3,
    /// From rank 0: all ranks must exit because of the rank.
    End = 4,
}

/// A message about one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: FrameKind,
    pub(super) rank: usize,
    pub(super) status: RankStatus,
}

impl Frame {
    fn to_bytes(self) -> [u8; FRAME_BYTES] {
        let mut bytes = [0; FRAME_BYTES];
        bytes[0] = self.kind as u8;
        bytes[1] = self.status.phase as u8;
        bytes[4..8].copy_from_slice(&(self.rank as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.status.step.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.status.operation.to_le_bytes());
        bytes
    }

    /// Returns `None` for bytes that are not a frame.
    fn from_bytes(bytes: &[u8; FRAME_BYTES]) -> Option<Frame> {
        let kind = match bytes[0] {
            1 => FrameKind::Heartbeat,
            2 => FrameKind::Goodbye,
            3 => FrameKind::Failing,
            4 => FrameKind::End,
            _ => return None,
        };
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8 bytes"));
        Some(Frame {
            kind,
            rank: u32::from_le_bytes(bytes[4..8].try_into().expect("4 bytes")) as usize,
            status: RankStatus { step: number(8), phase: Phase::from_u8(bytes[1]), operation: number(16) },
        })
    }
}

/// Result of reading a connection.
pub(super) struct Received {
    pub(super) frames: Vec<Frame>,
    /// The connection is closed, or the peer sent something other than frames.
    pub(super) closed: bool,
}

/// A non-blocking connection.
pub(super) struct Connection {
    stream: TcpStream,
    inbox: Vec<u8>,
    /// Bytes that could not be written yet.
    outbox: Vec<u8>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream) -> std::io::Result<Connection> {
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Connection { stream, inbox: Vec::new(), outbox: Vec::new() })
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// Sends `frames`. Heartbeats are skipped while earlier ones are queued: a stopped rank does not read, and the next
    /// heartbeat is more recent. A closed connection is detected by reading.
    pub(super) fn send(&mut self, frames: &[Frame]) {
        if self.outbox.is_empty() || frames.iter().any(|frame| frame.kind != FrameKind::Heartbeat) {
            self.outbox.extend(frames.iter().flat_map(|frame| frame.to_bytes()));
        }
        while !self.outbox.is_empty() {
            match self.stream.write(&self.outbox) {
                Ok(0) => break,
                Ok(count) => drop(self.outbox.drain(..count)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
    }

    /// Reads what has arrived.
    pub(super) fn read(&mut self) -> Received {
        let mut buffer = [0; 4096];
        let mut closed = loop {
            match self.stream.read(&mut buffer) {
                Ok(0) => break true,
                Ok(count) => self.inbox.extend(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => break error.kind() != ErrorKind::WouldBlock,
            }
        };
        let complete = self.inbox.len() / FRAME_BYTES * FRAME_BYTES;
        let mut frames = Vec::with_capacity(complete / FRAME_BYTES);
        for bytes in self.inbox.drain(..complete).collect::<Vec<u8>>().chunks_exact(FRAME_BYTES) {
            match Frame::from_bytes(bytes.try_into().expect("a complete frame")) {
                Some(frame) => frames.push(frame),
                None => closed = true,
            }
        }
        Received { frames, closed }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;
    use std::time::{Duration, Instant};

    fn pair() -> (Connection, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (other, _) = listener.accept().unwrap();
        (Connection::new(one).unwrap(), Connection::new(other).unwrap())
    }

    fn heartbeat(step: u64) -> Frame {
        Frame {
            kind: FrameKind::Heartbeat,
            rank: 3,
            status: RankStatus { step, phase: Phase::Backward, operation: 1 << 40 },
        }
    }

    fn read_some(connection: &mut Connection) -> Received {
        for _ in 0..1000 {
            let received = connection.read();
            if received.closed || !received.frames.is_empty() {
                return received;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nothing arrived")
    }

    #[test]
    fn frames_arrive_and_a_closed_connection_is_detected() {
        let (mut one, mut other) = pair();
        assert!(!other.read().closed);
        one.send(&[heartbeat(1), heartbeat(2)]);
        let mut frames = Vec::new();
        while frames.len() < 2 {
            frames.extend(read_some(&mut other).frames);
        }
        assert_eq!(frames, [heartbeat(1), heartbeat(2)]);
        drop(one);
        assert!(read_some(&mut other).closed);
        // Writing to a closed connection has no effect.
        other.send(&[heartbeat(3)]);
    }

    #[test]
    fn other_protocols_count_as_a_closed_connection() {
        let (one, mut other) = pair();
        (&one.stream).write_all(&[b'G'; FRAME_BYTES]).unwrap();
        assert!(read_some(&mut other).closed);
    }

    #[test]
    fn heartbeats_do_not_pile_up_for_a_peer_that_does_not_read() {
        let (mut one, mut other) = pair();
        let many = vec![heartbeat(1); 10_000];
        while one.outbox.is_empty() {
            one.send(&many);
        }
        let left = one.outbox.len();
        one.send(&many);
        assert!(one.outbox.len() <= left);
        let end = Frame { kind: FrameKind::End, ..heartbeat(1) };
        one.send(&[end]);
        assert!(one.outbox.len() <= left + FRAME_BYTES);
        // Once the peer reads, it gets every queued heartbeat, and the end.
        let (mut last, started) = (heartbeat(1), Instant::now());
        while last != end {
            assert!(started.elapsed() < Duration::from_secs(20), "the end did not arrive");
            one.send(&[]);
            std::thread::sleep(Duration::from_millis(1));
            let received = other.read();
            assert!(!received.closed);
            for frame in received.frames {
                assert_eq!(last, heartbeat(1));
                assert!(frame == heartbeat(1) || frame == end, "{frame:?}");
                last = frame;
            }
        }
    }
}
