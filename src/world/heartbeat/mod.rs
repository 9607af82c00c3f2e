//! Heartbeats: each rank reports its status over TCP, on its own thread and independently of the collective library, so
//! that a rank that dies or hangs is named and all ranks are terminated whatever the library does.
//!
//! The connections form a star around rank 0 (loopback only, if all ranks share a machine). Each rank sends heartbeats;
//! rank 0 forwards all of them, so that every rank can name any other ([`rank_status`]). Rank 0 monitors the others,
//! the others monitor rank 0. A connection that closes without a goodbye means that the process died; one that is
//! silent for the limit, that the process is stopped or unreachable. A rank that is only slow still sends heartbeats:
//! it is subject to the time limit of collectives. Silence is measured by a monotonic clock, and only while the
//! monitoring process itself runs, so that no rank is blamed after a pause of all (a suspended job or laptop).

mod contact;
mod wire;

use crate::comm::{Communicator, all_gather_values};
use crate::error::Result;
use crate::process::exit::run_exit_hooks;
use crate::process::identity::machine_id;
use crate::process::messages::print_stderr;
use crate::process::rank_status;
use crate::world::error::Error as WorldError;
use contact::Contact;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Connection, Frame, FrameKind};

/// How long a rank that announced a failure may take to terminate all ranks.
const FAILURE_GRACE: Duration = Duration::from_secs(5);

/// The heartbeats of this rank, and its view of the others.
pub(super) struct HeartbeatWatch {
    rank: usize,
    contacts: Vec<Contact>,
    limit: Duration,
    /// Set after this rank's last message; stops the thread.
    stopped: AtomicBool,
    view: Mutex<View>,
}

/// State of the connections: rank 0 has one to every other rank, the others have one to rank 0.
struct View {
    peers: Vec<Peer>,
    /// When the connections were last read.
    checked_at: Instant,
    last_heartbeat: Option<Instant>,
    /// A rank that announced a failure, and for how long it has been terminating the others.
    failing: Option<(usize, Duration)>,
    decided: bool,
}

struct Peer {
    rank: usize,
    /// `None` after a goodbye.
    connection: Option<Connection>,
    silence: Duration,
}

/// Why all ranks are terminated.
enum Verdict {
    /// The process of the rank died.
    Died(usize),
    /// The rank sends no heartbeats.
    Silent(usize),
    /// Another rank reported the rank.
    Reported(usize),
}

impl HeartbeatWatch {
    /// Connects the ranks and starts the heartbeat thread. Errors: a rank cannot be reached. Collective.
    pub(super) fn start(comm: &dyn Communicator, host: &str, limit: Duration) -> Result<Arc<HeartbeatWatch>> {
        let failed = |source| WorldError::HeartbeatSetup { what: "open a port".into(), source };
        let (rank, size) = (comm.rank(), comm.size());
        let machines = comm.all_gather(&machine_id().to_le_bytes())?;
        let same_machine = machines.iter().all(|other| *other == machines[0]);
        let listener = match (rank, same_machine) {
            (0, true) => Some(TcpListener::bind("127.0.0.1:0").map_err(failed)?),
            // Listens on all addresses, since only the other ranks know which one they can reach. The token keeps
            // strangers out.
            (0, false) => Some(
                TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).map_err(failed)?,
            ),
            _ => None,
        };
        let port = match &listener {
            Some(listener) => listener.local_addr().map_err(failed)?.port(),
            None => 0,
        };
        let contacts = all_gather_values(comm, &Contact::here(host, port))?;
        rank_status::init(&contacts.iter().map(|contact| contact.host.clone()).collect::<Vec<_>>());
        let timeout = limit.max(Duration::from_secs(10));
        let peers = match &listener {
            Some(listener) => accept(listener, &contacts, timeout)?,
            None => vec![Peer::new(0, connect(rank, &contacts, timeout)?)?],
        };
        debug_assert_eq!(peers.len(), if rank == 0 { size - 1 } else { 1 });
        let checked_at = Instant::now();
        let view =
            Mutex::new(View { peers, checked_at, last_heartbeat: None, failing: None, decided: false });
        let watch = Arc::new(HeartbeatWatch { rank, contacts, limit, stopped: AtomicBool::new(false), view });
        let watching = Arc::clone(&watch);
        std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || watching.run())
            .map_err(|source| WorldError::HeartbeatSetup { what: "start a thread".into(), source })?;
        Ok(watch)
    }

    /// Announces a normal exit of this rank and stops monitoring.
    pub(super) fn goodbye(&self) {
        if !self.stopped.swap(true, Relaxed) {
            self.send_to_all(FrameKind::Goodbye);
        }
    }

    /// Announces that this rank terminates all ranks: if the launcher does not, the others exit by themselves.
    pub(super) fn announce_failure(&self) {
        if !self.stopped.swap(true, Relaxed) {
            self.send_to_all(FrameKind::Failing);
        }
    }

    /// Called before this rank exits because of a signal: names a lost rank that may be the cause.
    pub(super) fn check_once(&self) {
        let mut view = self.view();
        if !self.stopped.load(Relaxed)
            && let Some(Verdict::Died(rank)) = self.check(&mut view)
            && self.rank <= 1
        {
            view.decided = true;
            print_stderr(&self.message(&Verdict::Died(rank)));
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send_to_all(&self, kind: FrameKind) {
        let frame = Frame { kind, rank: self.rank, status: rank_status::current() };
        for connection in self.view().peers.iter_mut().filter_map(|peer| peer.connection.as_mut()) {
            connection.send(&[frame]);
        }
    }

    /// Returns the time between two heartbeats; several fit into the limit.
    fn tick(&self) -> Duration {
        (self.limit / 8).min(Duration::from_secs(1))
    }

    fn run(&self) {
        while !self.stopped.load(Relaxed) {
            self.wait();
            let mut view = self.view();
            if self.stopped.load(Relaxed) {
                return;
            }
            let verdict = self.check(&mut view);
            if view.last_heartbeat.is_none_or(|at| at.elapsed() >= self.tick()) {
                view.last_heartbeat = Some(Instant::now());
                self.send_heartbeats(&mut view);
            }
            if let Some(verdict) = verdict {
                self.terminate(view, &verdict);
            }
        }
    }

    /// Waits until something arrives or the next heartbeat is due.
    fn wait(&self) {
        let mut waiting: Vec<libc::pollfd> = (self.view().peers.iter())
            .filter_map(|peer| peer.connection.as_ref())
            .map(|connection| libc::pollfd {
                fd: connection.stream().as_raw_fd(),
                events: libc::POLLIN,
                revents: 0,
            })
            .collect();
        // SAFETY: a live array of that length.
        unsafe {
            libc::poll(
                waiting.as_mut_ptr(),
                waiting.len() as libc::nfds_t,
                self.tick().as_millis().max(1) as i32,
            )
        };
    }

    fn send_heartbeats(&self, view: &mut View) {
        let mine = rank_status::current();
        rank_status::update(self.rank, mine);
        let heartbeat = |rank, status| Frame { kind: FrameKind::Heartbeat, rank, status };
        let frames: Vec<Frame> = match self.rank {
            0 => (0..self.contacts.len())
                .filter_map(|rank| Some(heartbeat(rank, rank_status::of(rank)?)))
                .collect(),
            rank => vec![heartbeat(rank, mine)],
        };
        for connection in view.peers.iter_mut().filter_map(|peer| peer.connection.as_mut()) {
            connection.send(&frames);
        }
    }

    /// Reads all connections. Only the first verdict is returned.
    fn check(&self, view: &mut View) -> Option<Verdict> {
        // Time in which this process did not run does not count as silence.
        let passed = view.checked_at.elapsed().min(2 * self.tick());
        view.checked_at = Instant::now();
        let mut verdict = None;
        for peer in &mut view.peers {
            let Some(connection) = &mut peer.connection else { continue };
            let received = connection.read();
            peer.silence = if received.frames.is_empty() { peer.silence + passed } else { Duration::ZERO };
            let mut leaving = false;
            for frame in received.frames {
                match frame.kind {
                    // Rank 0's information about this rank is out of date.
                    FrameKind::Heartbeat if frame.rank != self.rank => {
                        rank_status::update(frame.rank, frame.status)
                    }
                    FrameKind::Heartbeat => {}
                    FrameKind::Goodbye => leaving = true,
                    FrameKind::Failing => {
                        leaving = true;
                        view.failing = view.failing.or(Some((frame.rank, Duration::ZERO)));
                    }
                    FrameKind::End => verdict = Some(Verdict::Reported(frame.rank)),
                }
            }
            if leaving {
                peer.connection = None;
            } else if received.closed {
                verdict = verdict.or(Some(Verdict::Died(peer.rank)));
            } else if peer.silence >= self.limit {
                verdict = verdict.or(Some(Verdict::Silent(peer.rank)));
            }
        }
        if view.decided {
            return None;
        }
        if let Some((rank, waited)) = &mut view.failing {
            *waited += passed;
            // A rank that dies now is being terminated.
            return (*waited >= FAILURE_GRACE).then_some(Verdict::Reported(*rank));
        }
        verdict
    }

    fn message(&self, verdict: &Verdict) -> String {
        let (rank, how) = match verdict {
            Verdict::Died(rank) => (*rank, "process died (killed, out of memory or crashed)".to_string()),
            Verdict::Silent(rank) | Verdict::Reported(rank) => {
                let limit = self.limit.as_secs_f64();
                (*rank, format!("no heartbeat for {limit:.0} s (stopped, or its machine or network is down)"))
            }
        };
        let lost =
            rank_status::last_location(rank).map_or_else(|| format!("rank {rank}"), |last| last.to_string());
        let (me, host) = (self.rank, &self.contacts[self.rank].host);
        WorldError::RankLost { rank: me, host: host.clone(), lost, how }.to_string()
    }

    /// Reports the culprit, kills it if it runs on this machine, and exits; rank 0 tells the others to exit too.
    fn terminate<'a>(&'a self, mut view: MutexGuard<'a, View>, verdict: &Verdict) -> ! {
        view.decided = true;
        let (Verdict::Died(culprit) | Verdict::Silent(culprit) | Verdict::Reported(culprit)) = *verdict;
        let reported = matches!(verdict, Verdict::Reported(_));
        if self.rank > 1 && !reported {
            // All ranks see that rank 0 is lost: rank 1 reports it, and meanwhile its launcher kills the others.
            drop(view);
            std::thread::sleep(Duration::from_millis(300));
            view = self.view();
        }
        if !reported {
            print_stderr(&self.message(verdict));
        }
        if self.rank == 0 {
            let frame = Frame { kind: FrameKind::End, rank: culprit, status: rank_status::current() };
            for connection in view.peers.iter_mut().filter_map(|peer| peer.connection.as_mut()) {
                connection.send(&[frame]);
            }
        }
        self.stopped.store(true, Relaxed);
        drop(view);
        if culprit != self.rank {
            self.contacts[culprit].kill();
        }
        run_exit_hooks();
        if self.rank == 0 {
            // Closing at once could lose data that has been sent.
            std::thread::sleep(Duration::from_millis(200));
        }
        // SAFETY: exits without running destructors or exit handlers: the main thread may be in the collective library.
        unsafe { libc::_exit(1) }
    }
}

impl Peer {
    fn new(rank: usize, stream: TcpStream) -> Result<Peer> {
        let what = format!("use the connection to rank {rank}");
        let connection =
            Connection::new(stream).map_err(|source| WorldError::HeartbeatSetup { what, source })?;
        Ok(Peer { rank, connection: Some(connection), silence: Duration::ZERO })
    }
}

/// On rank 0: accepts a connection from every other rank; the result is in rank order.
fn accept(listener: &TcpListener, contacts: &[Contact], timeout: Duration) -> Result<Vec<Peer>> {
    let failed = |source| WorldError::HeartbeatSetup { what: "accept connections".into(), source };
    listener.set_nonblocking(true).map_err(failed)?;
    let started = Instant::now();
    let mut found: Vec<Option<TcpStream>> = contacts.iter().map(|_| None).collect();
    while let Some(missing) = (1..contacts.len()).find(|&rank| found[rank].is_none()) {
        match listener.accept() {
            Ok((stream, _)) => {
                if let Some(rank) = handshake(&stream, contacts) {
                    found[rank] = Some(stream);
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                if started.elapsed() > timeout {
                    let addresses = contacts[0].addresses_for(&contacts[missing]);
                    return Err(WorldError::HeartbeatUnreachable {
                        rank: missing,
                        host: contacts[missing].host.clone(),
                        addresses,
                    }
                    .into());
                }
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => return Err(failed(error).into()),
        }
    }
    (found.into_iter().enumerate().skip(1))
        .map(|(rank, stream)| Peer::new(rank, stream.expect("none is missing")))
        .collect()
}

/// Returns the connecting rank, or `None` if it does not belong to this run.
fn handshake(mut stream: &TcpStream, contacts: &[Contact]) -> Option<usize> {
    stream.set_nonblocking(false).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
    let mut hello = [0; 16];
    stream.read_exact(&mut hello).ok()?;
    let (token, rank) = hello.split_at(8);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().expect("8 bytes"));
    let rank = number(rank) as usize;
    (number(token) == contacts[0].token && (1..contacts.len()).contains(&rank)).then_some(rank)
}

/// On the other ranks: connects to rank 0 at the first of its addresses that answers.
fn connect(rank: usize, contacts: &[Contact], timeout: Duration) -> Result<TcpStream> {
    let addresses = contacts[0].addresses_for(&contacts[rank]);
    let hello = [contacts[0].token.to_le_bytes(), (rank as u64).to_le_bytes()].concat();
    let try_connect = |address: &SocketAddr| {
        let mut stream = TcpStream::connect_timeout(address, timeout / addresses.len().max(1) as u32).ok()?;
        stream.write_all(&hello).ok()?;
        Some(stream)
    };
    addresses.iter().find_map(try_connect).ok_or_else(|| {
        WorldError::HeartbeatUnreachable {
            rank,
            host: contacts[rank].host.clone(),
            addresses: addresses.clone(),
        }
        .into()
    })
}
