//! Heartbeats: every rank says where it is, on a thread of its own and outside the collective library, so that a rank that
//! dies or stops is named and all of them end, whatever the library does.
//!
//! A star of TCP links around rank 0 (loopback alone when all ranks share a machine). Each rank beats; rank 0 hands on what
//! it knows, so that everybody can name everybody ([`rank_status`]). Rank 0 judges the others, the others judge rank 0: a link
//! that closes without a status is a process that is gone; a link that is silent for the limit is one that is stopped, or
//! out of reach. A rank that is only slow still beats: what it owes the others is judged by the limit of collectives.
//! Limits are counted by a monotonic clock, and only while the judge itself runs: after a pause of everybody (a suspended
//! job, a laptop that slept) nobody is blamed.

mod contact;
mod wire;

use crate::comm::Communicator;
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

/// How long a rank that says that it ends all of them may take for it.
const GRACE: Duration = Duration::from_secs(5);

/// The watch of this rank over the others.
pub(super) struct HeartbeatWatch {
    rank: usize,
    contacts: Vec<Contact>,
    limit: Duration,
    /// Whether this rank has taken its leave.
    over: AtomicBool,
    view: Mutex<View>,
}

/// What the watch knows of the links: of rank 0 to every other rank, of another rank to rank 0.
struct View {
    links: Vec<Peer>,
    /// When the view was last brought up to date.
    looked: Instant,
    beaten: Option<Instant>,
    /// A rank that ends all of them, and for how long it has tried.
    failing: Option<(usize, Duration)>,
    judged: bool,
}

struct Peer {
    rank: usize,
    /// None after a goodbye.
    link: Option<Connection>,
    silence: Duration,
}

/// Why all ranks end.
enum Verdict {
    /// The process of a rank is gone.
    Gone(usize),
    /// A rank gives no sign of life.
    Silent(usize),
    /// It was said elsewhere.
    Told(usize),
}

impl HeartbeatWatch {
    /// Links the ranks and begins to watch. Errors: a rank cannot be reached. Collective.
    pub(super) fn start(comm: &dyn Communicator, host: &str, limit: Duration) -> Result<Arc<HeartbeatWatch>> {
        let failed = |source| WorldError::HeartbeatSetup { what: "open a port".into(), source };
        let (rank, size) = (comm.rank(), comm.size());
        let machines = comm.all_gather(&machine_id().to_le_bytes())?;
        let together = machines.iter().all(|other| *other == machines[0]);
        let listener = match (rank, together) {
            (0, true) => Some(TcpListener::bind("127.0.0.1:0").map_err(failed)?),
            // On every address: which of them the others reach is theirs to find out. Strangers do not know the token.
            (0, false) => Some(
                TcpListener::bind("[::]:0").or_else(|_| TcpListener::bind("0.0.0.0:0")).map_err(failed)?,
            ),
            _ => None,
        };
        let port = match &listener {
            Some(listener) => listener.local_addr().map_err(failed)?.port(),
            None => 0,
        };
        let contacts: Vec<Contact> = (comm.all_gather(&Contact::here(host, port).to_bytes())?.iter())
            .map(|bytes| Contact::from_bytes(bytes))
            .collect();
        rank_status::init(&contacts.iter().map(|contact| contact.host.clone()).collect::<Vec<_>>());
        let timeout = limit.max(Duration::from_secs(10));
        let links = match &listener {
            Some(listener) => accept(listener, &contacts, timeout)?,
            None => vec![Peer::new(0, connect(rank, &contacts, timeout)?)?],
        };
        debug_assert_eq!(links.len(), if rank == 0 { size - 1 } else { 1 });
        let looked = Instant::now();
        let view = Mutex::new(View { links, looked, beaten: None, failing: None, judged: false });
        let watch = Arc::new(HeartbeatWatch { rank, contacts, limit, over: AtomicBool::new(false), view });
        let watching = Arc::clone(&watch);
        std::thread::Builder::new()
            .name("heartbeat".into())
            .spawn(move || watching.run())
            .map_err(|source| WorldError::HeartbeatSetup { what: "start a thread".into(), source })?;
        Ok(watch)
    }

    /// Says goodbye: this rank ends as all of them do. After this nobody is judged here.
    pub(super) fn goodbye(&self) {
        if !self.over.swap(true, Relaxed) {
            self.tell(FrameKind::Bye);
        }
    }

    /// Says that this rank ends all of them: should the launcher not do so, the others do.
    pub(super) fn announce_failure(&self) {
        if !self.over.swap(true, Relaxed) {
            self.tell(FrameKind::Failing);
        }
    }

    /// Before this rank leaves because its launcher says so: is it because another rank is gone? Then it is named.
    pub(super) fn check_once(&self) {
        let mut view = self.view();
        if !self.over.load(Relaxed)
            && let Some(Verdict::Gone(rank)) = self.look(&mut view)
            && self.rank <= 1
        {
            view.judged = true;
            print_stderr(&self.line(&Verdict::Gone(rank)));
        }
    }

    fn view(&self) -> MutexGuard<'_, View> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn tell(&self, kind: FrameKind) {
        let frame = Frame { kind, rank: self.rank, status: rank_status::current() };
        for link in self.view().links.iter_mut().filter_map(|bond| bond.link.as_mut()) {
            link.send(&[frame]);
        }
    }

    /// Time between two beats: several fit into the limit.
    fn tick(&self) -> Duration {
        (self.limit / 8).min(Duration::from_secs(1))
    }

    fn run(&self) {
        while !self.over.load(Relaxed) {
            self.wait();
            let mut view = self.view();
            if self.over.load(Relaxed) {
                return;
            }
            let verdict = self.look(&mut view);
            if view.beaten.is_none_or(|at| at.elapsed() >= self.tick()) {
                view.beaten = Some(Instant::now());
                self.beat(&mut view);
            }
            if let Some(verdict) = verdict {
                self.end(view, &verdict);
            }
        }
    }

    /// Until something arrives or the next beat is due.
    fn wait(&self) {
        let mut waiting: Vec<libc::pollfd> = (self.view().links.iter())
            .filter_map(|bond| bond.link.as_ref())
            .map(|link| libc::pollfd { fd: link.stream().as_raw_fd(), events: libc::POLLIN, revents: 0 })
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

    fn beat(&self, view: &mut View) {
        let mine = rank_status::current();
        rank_status::update(self.rank, mine);
        let beat = |rank, status| Frame { kind: FrameKind::Beat, rank, status };
        let frames: Vec<Frame> = match self.rank {
            0 => (0..self.contacts.len())
                .filter_map(|rank| Some(beat(rank, rank_status::of(rank)?)))
                .collect(),
            rank => vec![beat(rank, mine)],
        };
        for link in view.links.iter_mut().filter_map(|bond| bond.link.as_mut()) {
            link.send(&frames);
        }
    }

    /// Reads all links. A first verdict is the only one.
    fn look(&self, view: &mut View) -> Option<Verdict> {
        // While this process itself did not run, nobody could have been heard.
        let passed = view.looked.elapsed().min(2 * self.tick());
        view.looked = Instant::now();
        let mut verdict = None;
        for bond in &mut view.links {
            let Some(link) = &mut bond.link else { continue };
            let heard = link.read();
            bond.silence = if heard.frames.is_empty() { bond.silence + passed } else { Duration::ZERO };
            let mut left = false;
            for frame in heard.frames {
                match frame.kind {
                    // What rank 0 says of this rank is older than what this rank knows.
                    FrameKind::Beat if frame.rank != self.rank => rank_status::update(frame.rank, frame.status),
                    FrameKind::Beat => {}
                    FrameKind::Bye => left = true,
                    FrameKind::Failing => {
                        left = true;
                        view.failing = view.failing.or(Some((frame.rank, Duration::ZERO)));
                    }
                    FrameKind::End => verdict = Some(Verdict::Told(frame.rank)),
                }
            }
            if left {
                bond.link = None;
            } else if heard.closed {
                verdict = verdict.or(Some(Verdict::Gone(bond.rank)));
            } else if bond.silence >= self.limit {
                verdict = verdict.or(Some(Verdict::Silent(bond.rank)));
            }
        }
        if view.judged {
            return None;
        }
        if let Some((rank, waited)) = &mut view.failing {
            *waited += passed;
            // Whoever goes now is being ended.
            return (*waited >= GRACE).then_some(Verdict::Told(*rank));
        }
        verdict
    }

    fn line(&self, verdict: &Verdict) -> String {
        let (rank, how) = match verdict {
            Verdict::Gone(rank) => {
                (*rank, "its process is gone (killed, out of memory, crashed)".to_string())
            }
            Verdict::Silent(rank) | Verdict::Told(rank) => {
                let limit = self.limit.as_secs_f64();
                (
                    *rank,
                    format!("no sign of life for {limit:.0} s (stopped, or its machine or network is down)"),
                )
            }
        };
        let lost = rank_status::last_location(rank).map_or_else(|| format!("rank {rank}"), |last| last.to_string());
        let (me, host) = (self.rank, &self.contacts[self.rank].host);
        WorldError::RankLost { rank: me, host: host.clone(), lost, how }.to_string()
    }

    /// Names the culprit, ends it if it is on this machine, and ends this process; rank 0 tells the others to end too.
    fn end<'a>(&'a self, mut view: MutexGuard<'a, View>, verdict: &Verdict) -> ! {
        view.judged = true;
        let (Verdict::Gone(culprit) | Verdict::Silent(culprit) | Verdict::Told(culprit)) = *verdict;
        let told = matches!(verdict, Verdict::Told(_));
        if self.rank > 1 && !told {
            // All of them see that rank 0 is gone: rank 1 says so, and its launcher ends the others meanwhile.
            drop(view);
            std::thread::sleep(Duration::from_millis(300));
            view = self.view();
        }
        if !told {
            print_stderr(&self.line(verdict));
        }
        if self.rank == 0 {
            let frame = Frame { kind: FrameKind::End, rank: culprit, status: rank_status::current() };
            for link in view.links.iter_mut().filter_map(|bond| bond.link.as_mut()) {
                link.send(&[frame]);
            }
        }
        self.over.store(true, Relaxed);
        drop(view);
        if culprit != self.rank {
            self.contacts[culprit].kill();
        }
        run_exit_hooks();
        if self.rank == 0 {
            // A link that is closed at once may lose what was sent.
            std::thread::sleep(Duration::from_millis(200));
        }
        // SAFETY: ends the process without running anything of it: the main thread may be in the collective library.
        unsafe { libc::_exit(1) }
    }
}

impl Peer {
    fn new(rank: usize, stream: TcpStream) -> Result<Peer> {
        let what = format!("use the link to rank {rank}");
        let link = Connection::new(stream).map_err(|source| WorldError::HeartbeatSetup { what, source })?;
        Ok(Peer { rank, link: Some(link), silence: Duration::ZERO })
    }
}

/// Rank 0: a link to every other rank, in rank order.
fn accept(listener: &TcpListener, contacts: &[Contact], timeout: Duration) -> Result<Vec<Peer>> {
    let failed = |source| WorldError::HeartbeatSetup { what: "accept the other ranks".into(), source };
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

/// The rank at the other end, if it is one of this run.
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

/// Another rank: the link to rank 0, by the first of its addresses that answers.
fn connect(rank: usize, contacts: &[Contact], timeout: Duration) -> Result<TcpStream> {
    let addresses = contacts[0].addresses_for(&contacts[rank]);
    let hello = [contacts[0].token.to_le_bytes(), (rank as u64).to_le_bytes()].concat();
    let try_connect = |address: &SocketAddr| {
        let mut stream = TcpStream::connect_timeout(address, timeout / addresses.len().max(1) as u32).ok()?;
        stream.write_all(&hello).ok()?;
        Some(stream)
    };
    addresses.iter().find_map(try_connect).ok_or_else(|| {
        WorldError::HeartbeatUnreachable { rank, host: contacts[rank].host.clone(), addresses: addresses.clone() }.into()
    })
}
