//! Selects the device of each rank: its local rank is the index of its GPU.

use crate::comm::{Communicator, all_gather_values, nccl_library};
use crate::config::{self, DeviceChoice, Reduce};
use crate::cuda::{self, Context, Driver, DriverUnavailable, Gpu, LibtorchCuda};
use crate::error::Result;
use crate::process::messages::print_stderr;
use crate::process::place::RankPlacement;
use crate::world::error::Error as WorldError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use tch::Device;

/// Device options of a run.
#[derive(Clone, Copy, Debug, Default)]
pub struct Devices {
    /// GPU, CPU or automatic.
    pub choice: DeviceChoice,
    /// Whether ranks may share a GPU.
    pub share_gpu: bool,
    /// Data type in which gradients are reduced between GPUs.
    pub reduce: Reduce,
    /// Overrides the device of the tensors: for stand-ins of the CUDA libraries, whose GPUs use host memory.
    pub tensors: Option<Device>,
}

/// The device of this rank.
pub(super) struct RankDevice {
    /// The device of its tensors.
    pub(super) device: Device,
    /// Its GPU and the GPU's context, current on this thread; `None` on the CPU.
    pub(super) gpu: Option<(Gpu, Context)>,
}

/// Result of probing for GPUs.
pub(super) enum GpuProbe {
    /// GPUs are usable through this driver.
    Usable(&'static Driver),
    /// No GPU, and the reason.
    NoGpu(String),
    /// The machine has GPUs that cannot be used, and the reason.
    Unusable(String),
}

/// The GPUs visible to a rank, as sent to the other ranks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct VisibleGpus {
    host: String,
    local_size: usize,
    /// Their UUIDs.
    gpus: Vec<[u8; 16]>,
    /// The reason if none is usable.
    why_none: String,
    /// Whether the machine has GPUs although none is usable.
    unusable: bool,
}

impl Devices {
    /// Selects the CPU.
    pub fn cpu() -> Devices {
        Devices { choice: DeviceChoice::Cpu, ..Devices::default() }
    }

    /// Probes for GPUs and loads the driver, libtorch's CUDA library and, for `several` ranks, NCCL: before the first
    /// tensor. Creates no context. Local.
    pub(super) fn probe(&self, several: bool) -> GpuProbe {
        use GpuProbe::{NoGpu, Unusable, Usable};
        if self.choice == DeviceChoice::Cpu {
            return NoGpu(String::new());
        }
        let driver = match Driver::open() {
            Ok(driver) if driver.num_gpus() > 0 => driver,
            Ok(_) => return NoGpu(why_hidden()),
            Err(DriverUnavailable::Absent(why)) if !cuda::gpu_is_present() => {
                return NoGpu(format!("{why}; install the NVIDIA driver"));
            }
            Err(DriverUnavailable::Absent(why)) => {
                return Unusable(format!(
                    "{why}; install the NVIDIA driver, or start the container with it (--nv, --gpus all)"
                ));
            }
            Err(DriverUnavailable::Unusable(why)) => {
                return Unusable(format!("{why}; install a newer NVIDIA driver"));
            }
        };
        let libtorch = self.tensors.is_none().then(cuda::load);
        // libtorch needs NCCL too, but reports no useful error about it.
        if several && let Err(why) = nccl_library() {
            return Unusable(why.to_string());
        }
        let install = "run launch/setup.sh on this machine";
        match libtorch {
            None => Usable(driver),
            Some(LibtorchCuda::Loaded(_)) if tch::Cuda::is_available() => Usable(driver),
            Some(LibtorchCuda::Loaded(path)) => {
                Unusable(format!("{} finds no GPU; `drnas-dist doctor` shows versions", path.display()))
            }
            Some(LibtorchCuda::Absent) => Unusable(format!("this libtorch is a CPU build; {install}")),
            Some(LibtorchCuda::Unusable(why)) => {
                Unusable(format!("libtorch cannot use CUDA ({why}); {install}"))
            }
        }
    }

    /// Chooses the device of this rank and binds its GPU. All ranks reach the same decision or an error. Collective.
    pub(super) fn choose(
        &self,
        found: GpuProbe,
        place: &RankPlacement,
        comm: &dyn Communicator,
    ) -> Result<RankDevice> {
        // The configuration is compared between ranks later; ranks with different device settings fail here first.
        let unusable = matches!(found, GpuProbe::Unusable(_));
        let (driver, why_none) = match found {
            GpuProbe::Usable(driver) => (Some(driver), String::new()),
            GpuProbe::NoGpu(why) | GpuProbe::Unusable(why) => (None, why),
        };
        let gpus: Vec<Gpu> = match driver {
            Some(driver) => {
                (0..driver.num_gpus()).map(|index| driver.gpu(index)).collect::<cuda::Result<_>>()?
            }
            None => Vec::new(),
        };
        let mine = VisibleGpus {
            host: place.host.clone(),
            local_size: place.local_size,
            gpus: gpus.iter().map(|gpu| gpu.uuid).collect(),
            why_none,
            unusable,
        };
        let all = all_gather_values(comm, &mine)?;
        if !self.on_gpus(&all)? {
            if self.choice == DeviceChoice::Auto && comm.rank() == 0 {
                print_stderr(&format!("note: no GPU found, using the CPU: {}", mine.why_none));
            }
            return match self.reduce {
                Reduce::Fp32 => Ok(RankDevice { device: Device::Cpu, gpu: None }),
                Reduce::Bf16 => Err(config::Error::Check(
                    "run.reduce = \"bf16\" requires GPUs, but the ranks compute on the CPU; use \"fp32\""
                        .into(),
                )
                .into()),
            };
        }
        // Wraps around if ranks share GPUs, or if each rank sees only its own.
        let index = place.local_rank % gpus.len();
        let driver = driver.expect("on_gpus: every rank has a GPU");
        let context = Context::new(driver, index)?;
        let device = self.tensors.unwrap_or(Device::Cuda(index));
        Ok(RankDevice { device, gpu: Some((gpus[index].clone(), context)) })
    }

    /// Returns whether the ranks compute on GPUs. Errors: a machine has too few, or only some machines have any.
    fn on_gpus(&self, all: &[VisibleGpus]) -> Result<bool> {
        if self.choice == DeviceChoice::Cpu {
            return Ok(false);
        }
        if let Some(without) = all.iter().find(|seen| seen.gpus.is_empty()) {
            let (host, why) = (without.host.clone(), without.why_none.clone());
            let unusable = all.iter().find(|seen| seen.unusable);
            return match all.iter().find(|seen| !seen.gpus.is_empty()) {
                _ if self.choice == DeviceChoice::Cuda => Err(WorldError::NoGpu { host, why }.into()),
                Some(other) => Err(WorldError::SomeHaveNoGpu { with: other.host.clone(), host, why }.into()),
                // Falling back to the CPU would waste an expensive machine: only on request.
                None => match unusable {
                    Some(VisibleGpus { host, why_none, .. }) => {
                        Err(WorldError::GpuUnusable { host: host.clone(), why: why_none.clone() }.into())
                    }
                    None => Ok(false),
                },
            };
        }
        for seen in all {
            // A launcher may make only its own GPU visible to each rank: count the GPUs of all local ranks.
            let together: BTreeSet<_> =
                (all.iter()).filter(|other| other.host == seen.host).flat_map(|other| &other.gpus).collect();
            let (ranks, gpus) = (seen.local_size, together.len());
            let enough = gpus >= ranks && (seen.gpus.len() >= ranks || seen.gpus.len() == 1);
            if !enough && !self.share_gpu {
                return Err(WorldError::TooFewGpus { host: seen.host.clone(), ranks, gpus }.into());
            }
        }
        Ok(true)
    }
}

/// Explains why the driver shows no GPU.
fn why_hidden() -> String {
    match std::env::var("CUDA_VISIBLE_DEVICES") {
        Ok(list) => {
            format!("the NVIDIA driver shows no GPU with CUDA_VISIBLE_DEVICES={list}; change or unset it")
        }
        Err(_) => "the NVIDIA driver shows no GPU; see nvidia-smi".into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::slice::from_ref;

    fn seen(host: &str, local_size: usize, gpus: &[u8]) -> VisibleGpus {
        let why_none = if gpus.is_empty() { "no driver; install it".into() } else { String::new() };
        VisibleGpus {
            host: host.into(),
            local_size,
            gpus: gpus.iter().map(|&gpu| [gpu; 16]).collect(),
            why_none,
            unusable: false,
        }
    }

    fn chosen(choice: DeviceChoice, share_gpu: bool, all: &[VisibleGpus]) -> Result<bool, String> {
        let devices = Devices { choice, share_gpu, ..Devices::default() };
        devices.on_gpus(all).map_err(|error| error.to_string())
    }

    #[test]
    fn all_ranks_use_gpus_or_none_does() {
        use DeviceChoice::{Auto, Cpu, Cuda};
        let (without, rich) = (seen("a", 1, &[]), seen("b", 1, &[1, 2]));
        assert_eq!(chosen(Auto, false, &[without.clone(), without.clone()]), Ok(false));
        assert_eq!(chosen(Auto, false, from_ref(&rich)), Ok(true));
        assert_eq!(chosen(Cpu, false, from_ref(&rich)), Ok(false));
        assert_eq!(
            chosen(Cuda, false, from_ref(&without)).unwrap_err(),
            "device = \"cuda\": no usable GPU on a: no driver; install it, or compute on the CPU with --set device=cpu"
        );
        let broken =
            VisibleGpus { unusable: true, why_none: "no NCCL; install it".into(), ..without.clone() };
        assert_eq!(
            chosen(Auto, false, &[without.clone(), broken.clone()]).unwrap_err(),
            "a has GPUs that cannot be used: no NCCL; install it, or compute on the CPU with --set device=cpu"
        );
        assert_eq!(chosen(Cpu, false, from_ref(&broken)), Ok(false));
        let mixed = chosen(Auto, false, &[rich, without]).unwrap_err();
        assert!(mixed.contains("b has a usable GPU, a does not: no driver"), "{mixed}");
    }

    #[test]
    fn every_rank_of_a_machine_needs_a_gpu() {
        let all = vec![seen("a", 3, &[1, 2]); 3];
        let few = chosen(DeviceChoice::Auto, false, &all).unwrap_err();
        assert!(few.contains("a: 3 ranks but 2 GPUs;") && few.contains("--share-gpu"), "{few}");
        assert_eq!(chosen(DeviceChoice::Auto, true, &all), Ok(true));
        // A launcher that shows each rank its own GPU.
        assert_eq!(chosen(DeviceChoice::Cuda, false, &[seen("a", 2, &[1]), seen("a", 2, &[2])]), Ok(true));
        // Two ranks that see the same GPU, and a machine with more ranks than visible GPUs.
        assert!(chosen(DeviceChoice::Cuda, false, &[seen("a", 2, &[1]), seen("a", 2, &[1])]).is_err());
        assert!(chosen(DeviceChoice::Cuda, false, &vec![seen("a", 3, &[1, 2]); 3]).is_err());
        // Two machines whose GPUs have the same UUIDs.
        assert_eq!(chosen(DeviceChoice::Cuda, false, &[seen("a", 1, &[1]), seen("b", 1, &[1])]), Ok(true));
    }
}
