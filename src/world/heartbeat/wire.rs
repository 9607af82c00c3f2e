//! What heartbeats look like on the wire: frames of 24 bytes, and a link that carries them without ever waiting.

use crate::process::phase::Phase;
use crate::process::rank_status::RankStatus;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

const FRAME: usize = 24;

/// What a frame is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum FrameKind {
    /// The rank lives; where it is.
    Beat = 1,
    /// The rank leaves, as all of them do.
    Bye = 2,
    /// The rank ends all of them and has said why.
    Failing = 3,
    /// From rank 0: everyone ends, because of the rank.
    End = 4,
}

/// One message about one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) kind: FrameKind,
    pub(super) rank: usize,
    pub(super) status: RankStatus,
}

impl Frame {
    fn to_bytes(self) -> [u8; FRAME] {
        let mut bytes = [0; FRAME];
        bytes[0] = self.kind as u8;
        bytes[1] = self.status.phase as u8;
        bytes[4..8].copy_from_slice(&(self.rank as u32).to_le_bytes());
        bytes[8..16].copy_from_slice(&self.status.step.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.status.operation.to_le_bytes());
        bytes
    }

    /// Nothing for bytes that no rank of this program sends.
    fn from_bytes(bytes: &[u8; FRAME]) -> Option<Frame> {
        let kind = match bytes[0] {
            1 => FrameKind::Beat,
            2 => FrameKind::Bye,
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

/// What reading a link found.
pub(super) struct Received {
    pub(super) frames: Vec<Frame>,
    /// The other end is closed, or does not speak this language.
    pub(super) closed: bool,
}

/// One connection, never waited for.
pub(super) struct Connection {
    stream: TcpStream,
    inbox: Vec<u8>,
    /// What the system did not take yet.
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

    /// Sends `frames`. Beats are left out while older ones wait: a stopped rank does not read, and the next beat says more.
    /// A closed link is found by reading.
    pub(super) fn send(&mut self, frames: &[Frame]) {
        if self.outbox.is_empty() || frames.iter().any(|frame| frame.kind != FrameKind::Beat) {
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

    /// What has arrived.
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
        let whole = self.inbox.len() / FRAME * FRAME;
        let mut frames = Vec::with_capacity(whole / FRAME);
        for bytes in self.inbox.drain(..whole).collect::<Vec<u8>>().chunks_exact(FRAME) {
            match Frame::from_bytes(bytes.try_into().expect("a whole frame")) {
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

    fn beat(step: u64) -> Frame {
        Frame {
            kind: FrameKind::Beat,
            rank: 3,
            status: RankStatus { step, phase: Phase::Backward, operation: 1 << 40 },
        }
    }

    fn read_some(link: &mut Connection) -> Received {
        for _ in 0..1000 {
            let heard = link.read();
            if heard.closed || !heard.frames.is_empty() {
                return heard;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("nothing came")
    }

    #[test]
    fn frames_arrive_and_an_end_is_seen() {
        let (mut one, mut other) = pair();
        assert!(!other.read().closed);
        one.send(&[beat(1), beat(2)]);
        let mut frames = Vec::new();
        while frames.len() < 2 {
            frames.extend(read_some(&mut other).frames);
        }
        assert_eq!(frames, [beat(1), beat(2)]);
        drop(one);
        assert!(read_some(&mut other).closed);
        // Whoever writes to a closed link is not harmed.
        other.send(&[beat(3)]);
    }

    #[test]
    fn strangers_are_a_closed_link() {
        let (one, mut other) = pair();
        (&one.stream).write_all(&[b'G'; FRAME]).unwrap();
        assert!(read_some(&mut other).closed);
    }

    #[test]
    fn beats_do_not_pile_up_for_one_who_does_not_read() {
        let (mut one, mut other) = pair();
        let many = vec![beat(1); 10_000];
        while one.outbox.is_empty() {
            one.send(&many);
        }
        let left = one.outbox.len();
        one.send(&many);
        assert!(one.outbox.len() <= left);
        let end = Frame { kind: FrameKind::End, ..beat(1) };
        one.send(&[end]);
        assert!(one.outbox.len() <= left + FRAME);
        // Once it reads, it gets every beat that was begun, and the end.
        let (mut last, started) = (beat(1), Instant::now());
        while last != end {
            assert!(started.elapsed() < Duration::from_secs(20), "the end never came");
            one.send(&[]);
            std::thread::sleep(Duration::from_millis(1));
            let heard = other.read();
            assert!(!heard.closed);
            for frame in heard.frames {
                assert_eq!(last, beat(1));
                assert!(frame == beat(1) || frame == end, "{frame:?}");
                last = frame;
            }
        }
    }
}
