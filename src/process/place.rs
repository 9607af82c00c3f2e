//! Where a rank runs: its host, its local rank, the cores it may use.

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Placement of a rank among all ranks.
#[derive(Clone, Debug)]
pub(crate) struct RankPlacement {
    pub(crate) host: String,
    pub(crate) local_rank: usize,
    pub(crate) local_size: usize,
    pub(crate) num_hosts: usize,
}

/// CPU binding of a rank, exchanged between ranks: machine, cores in the affinity mask, and how many it may use at
/// once.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct CpuBinding {
    pub(crate) machine: String,
    cores: Vec<usize>,
    available: usize,
}

impl CpuBinding {
    pub(crate) fn here() -> Self {
        // Two machines may have the same host name; two containers on one machine may have different ones.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        Self {
            machine: format!("{} {}", boot.trim(), host_name()),
            cores: own_cores(),
            available: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        }
    }
}

/// Returns the cores in the affinity mask of this process; none if the machine has more than 1024.
fn own_cores() -> Vec<usize> {
    let mask = sched_getaffinity(Pid::from_raw(0)).unwrap_or_default();
    (0..CpuSet::count()).filter(|&core| mask.is_set(core).unwrap_or(false)).collect()
}

pub(crate) fn placement(bindings: &[CpuBinding], rank: usize, host: String) -> RankPlacement {
    let same = |other: &&CpuBinding| other.machine == bindings[rank].machine;
    let first = |binding: &CpuBinding| bindings.iter().position(|other| other.machine == binding.machine);
    RankPlacement {
        host,
        local_rank: bindings[..rank].iter().filter(same).count(),
        local_size: bindings.iter().filter(same).count(),
        num_hosts: (bindings.iter().enumerate())
            .filter(|(index, binding)| first(binding) == Some(*index))
            .count(),
    }
}

/// Divides the cores available to the ranks of one machine among them; at most what this rank may use, at least 1.
pub(crate) fn threads_per_rank(mine: &CpuBinding, neighbours: &[&CpuBinding]) -> usize {
    let union: BTreeSet<usize> =
        neighbours.iter().flat_map(|binding| binding.cores.iter().copied()).collect();
    // Fewer available cores than bound cores: a container quota, which its ranks share.
    let shared = match mine.available < mine.cores.len() {
        true => mine.available,
        false => union.len().max(mine.available),
    };
    (shared / neighbours.len().max(1)).min(mine.available).max(1)
}

/// Returns the host name.
pub(crate) fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map(|name| name.trim().to_string())
        .unwrap_or_else(|_| "unknown host".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binding(machine: &str, mask: u64, available: usize) -> CpuBinding {
        let cores = (0..64).filter(|core| mask >> core & 1 == 1).collect();
        CpuBinding { machine: machine.into(), cores, available }
    }

    #[test]
    fn threads_divide_the_cores_of_a_machine() {
        let cases = [
            // Unbound ranks share all cores; rounded down, at least 1.
            (binding("a", 0xff, 8), vec![binding("a", 0xff, 8); 2], 4),
            (binding("a", 0xff, 8), vec![binding("a", 0xff, 8); 3], 2),
            (binding("a", 0b11, 2), vec![binding("a", 0b11, 2); 4], 1),
            // Ranks bound to one half of the cores each keep their half.
            (binding("a", 0x0f, 4), vec![binding("a", 0x0f, 4), binding("a", 0xf0, 4)], 4),
            // Ranks bound to one core each, out of many.
            (binding("a", 1, 1), vec![binding("a", 1, 1), binding("a", 2, 1)], 1),
            // A quota of 4 cores on a machine of 8 is shared.
            (binding("a", 0xff, 4), vec![binding("a", 0xff, 4); 2], 2),
            // A mask that could not be read.
            (binding("a", 0, 6), vec![binding("a", 0, 6); 2], 3),
        ];
        for (mine, neighbours, expected) in cases {
            let neighbours: Vec<_> = neighbours.iter().collect();
            assert_eq!(threads_per_rank(&mine, &neighbours), expected, "{mine:?} of {neighbours:?}");
        }
    }

    #[test]
    fn ranks_are_numbered_per_machine_in_any_order() {
        let bindings = ["a", "b", "a", "c", "b", "a"].map(|name| binding(name, 1, 1));
        let found: Vec<_> = (0..6)
            .map(|rank| placement(&bindings, rank, String::new()))
            .map(|place| (place.local_rank, place.local_size, place.num_hosts))
            .collect();
        assert_eq!(found, [(0, 3, 3), (0, 2, 3), (1, 3, 3), (0, 1, 3), (1, 2, 3), (2, 3, 3)]);
    }
}
