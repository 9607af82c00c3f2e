//! Contact information of a rank: how to connect to it, name it and, on the same machine, kill it.

use crate::process::identity::{machine_id, random_token, start_ticks};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};

/// Host name, process and addresses of a rank.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
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

/// Each is tried in turn until one answers.
const MAX_ADDRESSES: usize = 8;

impl Contact {
    /// Describes this process, listening on `port`.
    pub(super) fn here(host: &str, port: u16) -> Contact {
        Contact {
            host: host.to_owned(),
            machine: machine_id(),
            pid: std::process::id() as i32,
            start_ticks: start_ticks(std::process::id() as i32).unwrap_or(0),
            token: random_token(),
            port,
            addresses: local_addresses(),
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
            let _ = kill(Pid::from_raw(self.pid), Signal::SIGKILL);
        }
    }
}

/// Returns the addresses of this machine except loopback and link-local ones.
fn local_addresses() -> Vec<IpAddr> {
    let interfaces = getifaddrs().into_iter().flatten();
    let usable = interfaces.filter(|interface| {
        interface.flags.contains(InterfaceFlags::IFF_UP)
            && !interface.flags.contains(InterfaceFlags::IFF_LOOPBACK)
    });
    let mut addresses: Vec<IpAddr> = Vec::new();
    for interface in usable {
        let Some(address) = interface.address else { continue };
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        let v6 = || address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip()));
        match v4.or_else(v6) {
            Some(IpAddr::V6(address)) if address.is_unicast_link_local() => {}
            Some(address) if !addresses.contains(&address) => addresses.push(address),
            _ => {}
        }
    }
    // IPv4 first: clusters usually use it. The order of the interfaces is kept.
    addresses.sort_by_key(IpAddr::is_ipv6);
    addresses.truncate(MAX_ADDRESSES);
    addresses
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn ranks_of_one_machine_connect_through_loopback() {
        let mut contact = Contact::here("node7", 4321);
        contact.addresses = vec![[10, 0, 0, 7].into()];
        assert_eq!(contact.addresses_for(&contact), [SocketAddr::from(([127, 0, 0, 1], 4321))]);
        let far = Contact { machine: !contact.machine, ..contact.clone() };
        assert_eq!(contact.addresses_for(&far), [SocketAddr::from(([10, 0, 0, 7], 4321))]);
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
