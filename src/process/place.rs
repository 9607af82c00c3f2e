//! Where a rank runs: its host, its local rank, the cores it may use.

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
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct CpuBinding {
    pub(crate) machine: String,
    cores: [u64; 16],
    available: usize,
}

impl CpuBinding {
    const MACHINE: usize = 128;

    pub(crate) fn here() -> Self {
        // Two machines may have the same host name; two containers on one machine may have different ones.
        let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
        let machine = format!("{} {}", boot.trim(), host_name());
        Self {
            machine: machine.chars().filter(char::is_ascii).take(Self::MACHINE).collect(),
            cores: own_cores(),
            available: std::thread::available_parallelism().map_or(1, |cores| cores.get()),
        }
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.machine.clone().into_bytes();
        bytes.resize(Self::MACHINE, 0);
        bytes.extend(self.cores.iter().flat_map(|word| word.to_le_bytes()));
        bytes.extend((self.available as u64).to_le_bytes());
        bytes
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Self {
        let (machine, numbers) = bytes.split_at(Self::MACHINE);
        let mut words =
            (numbers.chunks_exact(8)).map(|word| u64::from_le_bytes(word.try_into().expect("8 bytes")));
        let mut cores = [0; 16];
        cores.fill_with(|| words.next().expect("16 words"));
        Self {
            machine: String::from_utf8_lossy(machine).trim_end_matches('\0').into(),
            cores,
            available: words.next().expect("17 words") as usize,
        }
    }
}

/// Returns the affinity mask of this process, one bit per core; all zero if the machine has more than 1024 cores.
fn own_cores() -> [u64; 16] {
    let mut cores = [0u64; 16];
    // SAFETY: the kernel writes at most the given number of bytes; any bit pattern is a valid mask.
    let code =
        unsafe { libc::sched_getaffinity(0, std::mem::size_of_val(&cores), cores.as_mut_ptr().cast()) };
    if code == 0 { cores } else { [0; 16] }
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
    let mut union = [0u64; 16];
    for binding in neighbours {
        for (all, cores) in union.iter_mut().zip(binding.cores) {
            *all |= cores;
        }
    }
    let count = |cores: &[u64; 16]| cores.iter().map(|word| word.count_ones() as usize).sum::<usize>();
    // Fewer available cores than bound cores: a container quota, which its ranks share.
    let shared = match mine.available < count(&mine.cores) {
        true => mine.available,
        false => count(&union).max(mine.available),
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

    fn binding(machine: &str, cores: u64, available: usize) -> CpuBinding {
        let mut words = [0; 16];
        words[0] = cores;
        CpuBinding { machine: machine.into(), cores: words, available }
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

    #[test]
    fn a_cpu_binding_round_trips_through_bytes() {
        let here = CpuBinding::here();
        assert_eq!(CpuBinding::from_bytes(&here.to_bytes()), here);
        assert!(here.available >= 1);
    }
}
