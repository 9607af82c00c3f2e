//! Which device a rank computes on: its number among the ranks of its machine is the number of its card.

use crate::comm::{Communicator, nccl_library};
use crate::config::{self, DeviceChoice, Reduce};
use crate::cuda::{self, Card, Context, Driver, LibtorchCuda, NoDriver};
use crate::error::Result;
use crate::process::messages::say;
use crate::process::place::MachinePlace;
use crate::world::error::Error as WorldError;
use std::collections::BTreeSet;
use tch::Device;

/// What a run wants of the devices of its ranks.
#[derive(Clone, Copy, Debug, Default)]
pub struct Devices {
    /// Cards or CPU.
    pub choice: DeviceChoice,
    /// Whether ranks may share a card.
    pub share_gpu: bool,
    /// In which kind gradients travel between cards.
    pub reduce: Reduce,
    /// Where tensors are, if not on the card: for stand-ins of the CUDA libraries, whose cards have host memory.
    pub tensors: Option<Device>,
}

/// The device of this rank.
pub(super) struct Own {
    /// Where its tensors are.
    pub(super) device: Device,
    /// Its card and the card's context, current on this thread; none on the CPU.
    pub(super) card: Option<(Card, Context)>,
}

/// What a rank found when it looked for cards.
pub(super) enum CardSearch {
    /// Cards, by this driver.
    Usable(&'static Driver),
    /// No card, and why.
    NoCard(String),
    /// The machine has cards, but they cannot be used; why.
    Unusable(String),
}

/// Cards of one rank that others are told of.
const MOST_CARDS: usize = 16;
const WHY: usize = 640;
const HOST: usize = 64;

/// What a rank tells the others of its cards.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct CardsSeen {
    host: String,
    local_size: usize,
    /// The first [`MOST_CARDS`].
    cards: Vec<[u8; 16]>,
    /// Why there is none that can be used.
    why_none: String,
    /// Whether the machine has cards all the same.
    unusable: bool,
}

impl Devices {
    /// The CPU, whatever there is.
    pub fn cpu() -> Devices {
        Devices { choice: DeviceChoice::Cpu, ..Devices::default() }
    }

    /// Looks for cards and opens what they are used by, NCCL among it if there are `several` ranks, and libtorch's CUDA half:
    /// before the first tensor. Makes no context. Ranks: local.
    pub(super) fn look(&self, several: bool) -> CardSearch {
        use CardSearch::{NoCard, Unusable, Usable};
        if self.choice == DeviceChoice::Cpu {
            return NoCard(String::new());
        }
        let driver = match Driver::open() {
            Ok(driver) if driver.num_cards() > 0 => driver,
            Ok(_) => return NoCard(hidden()),
            Err(NoDriver::Absent(why)) if !cuda::card_is_present() => {
                return NoCard(format!("{why}; install the NVIDIA driver"));
            }
            Err(NoDriver::Absent(why)) => {
                return Unusable(format!(
                    "{why}; install the NVIDIA driver, or start the container with it (--nv, --gpus all)"
                ));
            }
            Err(NoDriver::Unusable(why)) => return Unusable(format!("{why}; install a newer NVIDIA driver")),
        };
        let libtorch = self.tensors.is_none().then(cuda::load);
        // libtorch needs an NCCL too, but cannot say what is wrong with it.
        if several && let Err(why) = nccl_library() {
            return Unusable(why.to_string());
        }
        let install = "run launch/setup.sh on this machine";
        match libtorch {
            None => Usable(driver),
            Some(LibtorchCuda::Loaded(_)) if tch::Cuda::is_available() => Usable(driver),
            Some(LibtorchCuda::Loaded(path)) => {
                Unusable(format!("{} finds no card; `drnas-dist doctor` shows versions", path.display()))
            }
            Some(LibtorchCuda::Absent) => Unusable(format!("this libtorch is a CPU build; {install}")),
            Some(LibtorchCuda::Unusable(why)) => {
                Unusable(format!("libtorch cannot use CUDA ({why}); {install}"))
            }
        }
    }

    /// Chooses the device of this rank and binds its card. All ranks come to the same answer or to an error. Collective.
    pub(super) fn choose(
        &self,
        found: CardSearch,
        place: &MachinePlace,
        comm: &dyn Communicator,
    ) -> Result<Own> {
        // All ranks have the same configuration, which is compared later; ranks that differ in it differ here first.
        let unusable = matches!(found, CardSearch::Unusable(_));
        let (driver, why_none) = match found {
            CardSearch::Usable(driver) => (Some(driver), String::new()),
            CardSearch::NoCard(why) | CardSearch::Unusable(why) => (None, why),
        };
        let cards: Vec<Card> = match driver {
            Some(driver) => {
                (0..driver.num_cards()).map(|index| driver.card(index)).collect::<cuda::Result<_>>()?
            }
            None => Vec::new(),
        };
        let mine = CardsSeen {
            host: place.host.clone(),
            local_size: place.local_size,
            cards: cards.iter().take(MOST_CARDS).map(|card| card.uuid).collect(),
            why_none,
            unusable,
        };
        let all = comm.all_gather(&mine.to_bytes())?;
        let all: Vec<CardsSeen> = all.iter().map(|bytes| CardsSeen::from_bytes(bytes)).collect();
        if !self.on_cards(&all)? {
            if self.choice == DeviceChoice::Auto && comm.rank() == 0 {
                say(&format!("note: no GPU found, using the CPU: {}", mine.why_none));
            }
            return match self.reduce {
                Reduce::Fp32 => Ok(Own { device: Device::Cpu, card: None }),
                Reduce::Bf16 => Err(config::Error::Check(
                    "run.reduce = \"bf16\" is for ranks with GPUs, these compute on the CPU; use \"fp32\""
                        .into(),
                )
                .into()),
            };
        }
        // More than one round: ranks that share, or one that is shown its own card only.
        let index = place.local_rank % cards.len();
        let driver = driver.expect("on_cards: every rank has a card");
        let context = Context::new(driver, index)?;
        let device = self.tensors.unwrap_or(Device::Cuda(index));
        Ok(Own { device, card: Some((cards[index].clone(), context)) })
    }

    /// Whether the ranks compute on cards, of which each machine must then have enough.
    fn on_cards(&self, all: &[CardsSeen]) -> Result<bool> {
        if self.choice == DeviceChoice::Cpu {
            return Ok(false);
        }
        if let Some(bare) = all.iter().find(|seen| seen.cards.is_empty()) {
            let (host, why) = (bare.host.clone(), bare.why_none.clone());
            let unusable = all.iter().find(|seen| seen.unusable);
            return match all.iter().find(|seen| !seen.cards.is_empty()) {
                _ if self.choice == DeviceChoice::Cuda => Err(WorldError::NoGpu { host, why }.into()),
                Some(other) => Err(WorldError::SomeHaveNoGpu { with: other.host.clone(), host, why }.into()),
                // Hours of a job on expensive machines: not without being asked.
                None => match unusable {
                    Some(CardsSeen { host, why_none, .. }) => {
                        Err(WorldError::GpuUnusable { host: host.clone(), why: why_none.clone() }.into())
                    }
                    None => Ok(false),
                },
            };
        }
        for seen in all {
            // A launcher may show each rank its own card only: together they see enough.
            let together: BTreeSet<_> =
                (all.iter()).filter(|other| other.host == seen.host).flat_map(|other| &other.cards).collect();
            let (ranks, gpus) = (seen.local_size, together.len());
            let enough = gpus >= ranks && (seen.cards.len() >= ranks || seen.cards.len() == 1);
            if !enough && !self.share_gpu && ranks <= MOST_CARDS {
                return Err(WorldError::TooFewGpus { host: seen.host.clone(), ranks, gpus }.into());
            }
        }
        Ok(true)
    }
}

/// Why the driver shows no card.
fn hidden() -> String {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => {
            format!("the NVIDIA driver shows no card with CUDA_VISIBLE_DEVICES={list}; change or unset it")
        }
        Err(_) => "the NVIDIA driver shows no card; see nvidia-smi".into(),
    }
}

impl CardsSeen {
    fn to_bytes(&self) -> Vec<u8> {
        let text = |text: &str, length: usize| {
            let mut bytes = text.as_bytes().to_vec();
            bytes.resize(length, b' ');
            bytes
        };
        let mut bytes = vec![self.local_size as u8, self.cards.len() as u8, u8::from(self.unusable)];
        bytes.extend((0..MOST_CARDS).flat_map(|index| self.cards.get(index).copied().unwrap_or_default()));
        bytes.extend(text(&self.host, HOST));
        bytes.extend(text(&self.why_none, WHY));
        bytes
    }

    fn from_bytes(bytes: &[u8]) -> CardsSeen {
        let (counts, rest) = bytes.split_at(3);
        let (cards, texts) = rest.split_at(16 * MOST_CARDS);
        let (host, why_none) = texts.split_at(HOST);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end().to_string();
        CardsSeen {
            host: text(host),
            local_size: counts[0] as usize,
            cards: (cards.chunks_exact(16).take(counts[1] as usize))
                .map(|card| card.try_into().expect("16 bytes"))
                .collect(),
            why_none: text(why_none),
            unusable: counts[2] != 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    fn seen(host: &str, local_size: usize, cards: &[u8]) -> CardsSeen {
        let why_none = if cards.is_empty() { "no driver; install it".into() } else { String::new() };
        CardsSeen {
            host: host.into(),
            local_size,
            cards: cards.iter().map(|&card| [card; 16]).collect(),
            why_none,
            unusable: false,
        }
    }

    fn chosen(choice: DeviceChoice, share_gpu: bool, all: &[CardsSeen]) -> Result<bool, String> {
        let devices = Devices { choice, share_gpu, ..Devices::default() };
        devices.on_cards(all).map_err(|error| error.to_string())
    }

    #[test]
    fn all_ranks_compute_on_cards_or_none_does() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        let (bare, rich) = (seen("a", 1, &[]), seen("b", 1, &[1, 2]));
        assert_eq!(chosen(Auto, false, &[bare.clone(), bare.clone()]), Ok(false));
        assert_eq!(chosen(Auto, false, from_ref(&rich)), Ok(true));
        assert_eq!(chosen(Cpu, false, from_ref(&rich)), Ok(false));
        assert_eq!(
            chosen(Cuda, false, from_ref(&bare)).unwrap_err(),
            "device = \"cuda\": no GPU can be used on a: no driver; install it, or compute there with --set device=cpu"
        );
        let broken = CardsSeen { unusable: true, why_none: "no NCCL; install it".into(), ..bare.clone() };
        assert_eq!(
            chosen(Auto, false, &[bare.clone(), broken.clone()]).unwrap_err(),
            "a has GPUs that cannot be used: no NCCL; install it, or compute on the CPU with --set device=cpu"
        );
        assert_eq!(chosen(Cpu, false, from_ref(&broken)), Ok(false));
        assert_eq!(CardsSeen::from_bytes(&broken.to_bytes()), broken);
        let mixed = chosen(Auto, false, &[rich, bare]).unwrap_err();
        assert!(mixed.contains("b has a GPU that can be used, a has none: no driver"), "{mixed}");
    }

    #[test]
    fn every_rank_of_a_machine_needs_a_card() {
        let all = vec![seen("a", 3, &[1, 2]); 3];
        let few = chosen(DeviceChoice::Auto, false, &all).unwrap_err();
        assert!(few.contains("a: 3 ranks, but 2 GPUs") && few.contains("--share-gpu"), "{few}");
        assert_eq!(chosen(DeviceChoice::Auto, true, &all), Ok(true));
        // A launcher that shows each rank its own card.
        assert_eq!(chosen(DeviceChoice::Cuda, false, &[seen("a", 2, &[1]), seen("a", 2, &[2])]), Ok(true));
        // One that shows two ranks the same card, and a machine whose ranks see fewer than they are.
        assert!(chosen(DeviceChoice::Cuda, false, &[seen("a", 2, &[1]), seen("a", 2, &[1])]).is_err());
        assert!(chosen(DeviceChoice::Cuda, false, &vec![seen("a", 3, &[1, 2]); 3]).is_err());
        // Two machines with cards that have the same numbers.
        assert_eq!(chosen(DeviceChoice::Cuda, false, &[seen("a", 1, &[1]), seen("b", 1, &[1])]), Ok(true));
    }

    #[test]
    fn what_is_seen_survives_its_bytes() {
        for seen in [seen("node-7", 8, &[3, 4, 5]), seen("x", 1, &[])] {
            assert_eq!(CardsSeen::from_bytes(&seen.to_bytes()), seen);
        }
    }
}
