//! Contact information of a rank: how to connect to it, name it and, on the same machine, kill it.

use crate::process::identity::{machine_id, random_token, start_ticks};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Host name, process and addresses of a rank.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Contact {
    pub(super) host: String,
    /// Equal for ranks in the same pid and network namespaces of one machine.
    pub(super) machine: u64,
    pub(super) pid: i32,
    /// Start time of the process in clock ticks since boot; guards against a reused pid.
    pub(super) start_ticks: u64,
    /// Proves to rank 0 that a connection belongs to the run. Only rank 0's token is used.
    pub(super) token: u64,
    /// Port on which rank 0 listens.
    pub(super) port: u16,
    pub(super) addresses: Vec<IpAddr>,
}

impl Contact {
    const HOST_BYTES: usize = 64;
    const MAX_ADDRESSES: usize = 8;

    /// Describes this process, listening on `port`.
    pub(super) fn here(host: &str, port: u16) -> Contact {
        Contact {
            host: host.chars().filter(char::is_ascii).take(Self::HOST_BYTES).collect(),
            machine: machine_id(),
            pid: std::process::id() as i32,
            start_ticks: start_ticks(std::process::id() as i32).unwrap_or(0),
            token: random_token(),
            port,
            addresses: local_addresses(),
        }
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.host.clone().into_bytes();
        bytes.resize(Self::HOST_BYTES, 0);
        for number in [self.machine, self.pid as u64, self.start_ticks, self.token, self.port.into()] {
            bytes.extend(number.to_le_bytes());
        }
        for at in 0..Self::MAX_ADDRESSES {
            let address = match self.addresses.get(at) {
                Some(IpAddr::V4(address)) => address.to_ipv6_mapped(),
                Some(IpAddr::V6(address)) => *address,
                None => Ipv6Addr::UNSPECIFIED,
            };
            bytes.extend(address.octets());
        }
        bytes
    }

    pub(super) fn from_bytes(bytes: &[u8]) -> Contact {
        let (host, rest) = bytes.split_at(Self::HOST_BYTES);
        let (numbers, addresses) = rest.split_at(5 * 8);
        let number = |at: usize| u64::from_le_bytes(numbers[8 * at..8 * at + 8].try_into().expect("8 bytes"));
        Contact {
            host: String::from_utf8_lossy(host).trim_end_matches('\0').into(),
            machine: number(0),
            pid: number(1) as i32,
            start_ticks: number(2),
            token: number(3),
            port: number(4) as u16,
            addresses: (addresses.chunks_exact(16))
                .map(|octets| Ipv6Addr::from(<[u8; 16]>::try_from(octets).expect("16 bytes")))
                .filter(|address| !address.is_unspecified())
                .map(|address| address.to_canonical())
                .collect(),
        }
    }

    /// Returns the socket addresses at which `other` can try to reach this rank.
    pub(super) fn addresses_for(&self, other: &Contact) -> Vec<SocketAddr> {
        match self.machine == other.machine {
            true => vec![SocketAddr::from(([127, 0, 0, 1], self.port))],
            false => self.addresses.iter().map(|&address| SocketAddr::new(address, self.port)).collect(),
        }
    }

    /// Kills the process of this rank if it runs on this machine and the pid has not been reused. A stopped process
    /// cannot exit by itself, and the launcher may no longer track it.
    pub(super) fn kill(&self) {
        if self.machine == machine_id()
            && self.start_ticks != 0
            && start_ticks(self.pid) == Some(self.start_ticks)
        {
            // SAFETY: a plain call; pid and start time are those of a rank of this run.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
        }
    }
}

/// Returns the addresses of this machine except loopback and link-local ones.
fn local_addresses() -> Vec<IpAddr> {
    let mut first: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: a live out pointer.
    if unsafe { libc::getifaddrs(&mut first) } != 0 {
        return Vec::new();
    }
    let mut found = Vec::new();
    let mut at = first;
    while !at.is_null() {
        // SAFETY: a node of the list allocated by getifaddrs and freed below.
        let node = unsafe { &*at };
        at = node.ifa_next;
        let up = node.ifa_flags & libc::IFF_UP as u32 != 0;
        let loopback = node.ifa_flags & libc::IFF_LOOPBACK as u32 != 0;
        if node.ifa_addr.is_null() || !up || loopback {
            continue;
        }
        // SAFETY: the address family determines the type.
        let address = unsafe {
            match i32::from((*node.ifa_addr).sa_family) {
                libc::AF_INET => {
                    let address = &*node.ifa_addr.cast::<libc::sockaddr_in>();
                    IpAddr::from(address.sin_addr.s_addr.to_ne_bytes())
                }
                libc::AF_INET6 => {
                    let address = &*node.ifa_addr.cast::<libc::sockaddr_in6>();
                    IpAddr::from(address.sin6_addr.s6_addr)
                }
                _ => continue,
            }
        };
        let local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
        if !local && !found.contains(&address) {
            found.push(address);
        }
    }
    // SAFETY: the list from getifaddrs, freed once.
    unsafe { libc::freeifaddrs(first) };
    // IPv4 first: clusters usually use it.
    found.sort_by_key(IpAddr::is_ipv6);
    found.truncate(Contact::MAX_ADDRESSES);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn a_contact_round_trips_through_bytes() {
        let mut contact = Contact::here("node7", 4321);
        contact.addresses = vec![[10, 0, 0, 7].into(), Ipv6Addr::LOCALHOST.into()];
        let bytes = contact.to_bytes();
        assert_eq!(Contact::from_bytes(&bytes), contact);
        assert_eq!(bytes.len(), Contact::here("", 0).to_bytes().len());
        assert_eq!(contact.addresses_for(&contact), [SocketAddr::from(([127, 0, 0, 1], 4321))]);
        let far = Contact { machine: !contact.machine, ..contact.clone() };
        assert_eq!(contact.addresses_for(&far)[0], SocketAddr::from(([10, 0, 0, 7], 4321)));
    }

    #[test]
    fn only_the_process_with_the_same_start_time_is_killed() {
        let mut child = std::process::Command::new("sleep").arg("100").spawn().unwrap();
        let contact = Contact {
            pid: child.id() as i32,
            start_ticks: start_ticks(child.id() as i32).unwrap(),
            ..Contact::here("", 0)
        };
        // The same pid with another start time.
        Contact { start_ticks: contact.start_ticks - 1, ..contact.clone() }.kill();
        // The same pid and start time on another machine.
        Contact { machine: !contact.machine, ..contact.clone() }.kill();
        std::thread::sleep(Duration::from_millis(200));
        assert!(child.try_wait().unwrap().is_none());
        contact.kill();
        // The child is a zombie until `wait`: that counts as ended.
        let killed = Instant::now();
        while start_ticks(contact.pid).is_some() {
            assert!(killed.elapsed() < Duration::from_secs(10), "still running");
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(!child.wait().unwrap().success());
    }
}
