//! What computes: which device the settings name, and what it has.

use crate::cluster::probe;
use crate::config::PeerExchange;
use crate::exit::UsageError;
use crate::nccl::NcclChoice;
use crate::offload::Traffic;
use crate::serve::room::available_bytes;
use anyhow::Context;
use chorale_cuda::{Cuda, CudaOptions, Driver, ExpertFill, Gpu, Options};
use chorale_device::{Cpu, Device, KvDtype};
use chorale_model::shard::split;
use chorale_nccl::{Library, NcclLinks};
use chorale_worker::Rank;
use chorale_worker::join::{MemoryRate, Reading};
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::sync::Arc;

/// Of a GPU's free memory, what is left to the driver and to graphs.
const GPU_RESERVE_BYTES: u64 = 768 << 20;

/// As much again for NCCL, which keeps buffers for each way to another GPU: about
/// 4 MiB a channel, of which it takes up to 32.
const NCCL_RESERVE_BYTES: u64 = 1 << 30;

/// What no plan of a GPU's memory takes.
pub(crate) fn reserved_bytes(with_nccl: bool) -> u64 {
    GPU_RESERVE_BYTES + if with_nccl { NCCL_RESERVE_BYTES } else { 0 }
}

/// What `--device` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum DeviceChoice {
    /// GPUs where there are enough of them, else the processors.
    Auto,
    /// The processors.
    Cpu,
    /// GPUs: those of these ordinals, or the first ones.
    Cuda(Option<Vec<usize>>),
}

impl DeviceChoice {
    /// `auto`, `cpu`, `cuda`, `cuda:0` or `cuda:0,1`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match text {
            "auto" => Some(Self::Auto),
            "cpu" => Some(Self::Cpu),
            "cuda" => Some(Self::Cuda(None)),
            _ => {
                let ordinals = text.strip_prefix("cuda:")?.split(',').map(|ordinal| ordinal.parse().ok());
                let ordinals: Vec<usize> = ordinals.collect::<Option<_>>()?;
                let is_distinct = (1..ordinals.len()).all(|at| !ordinals[..at].contains(&ordinals[at]));
                is_distinct.then_some(Self::Cuda(Some(ordinals)))
            }
        }
    }
}

/// What devices are opened with.
#[derive(Clone, Debug)]
pub(crate) struct DeviceOptions {
    pub(crate) choice: DeviceChoice,
    /// Of the CPU, all together.
    pub(crate) threads: Option<usize>,
    /// If GPUs' results depend in no bit on what shares a step.
    pub(crate) batch_invariant: bool,
    /// Where kernels are kept that had to be compiled.
    pub(crate) kernel_cache: Option<PathBuf>,
}

/// A device for each rank of this process.
pub(crate) enum Devices {
    /// The processors, dealt out evenly.
    Cpu(Vec<Cpu>),
    /// A GPU each.
    Cuda(Vec<Cuda>),
}

impl Devices {
    /// Opens what the settings name.
    pub(crate) fn open(options: &DeviceOptions, num_ranks: usize) -> anyhow::Result<Self> {
        match &options.choice {
            DeviceChoice::Cpu => Self::cpus(options, num_ranks),
            DeviceChoice::Cuda(ordinals) => {
                let ordinals = ordinals.clone().unwrap_or_else(|| (0..num_ranks).collect());
                if ordinals.len() < num_ranks {
                    return Err(UsageError(format!(
                        "--device names {} GPUs for {num_ranks} ranks: name one for each, or lower \
                         --tensor-parallel-size or --data-parallel-size",
                        ordinals.len()
                    ))
                    .into());
                }
                Self::gpus(&ordinals[..num_ranks], options).context("--device")
            }
            DeviceChoice::Auto => match chorale_cuda::probe() {
                Ok(found) if found.len() >= num_ranks => {
                    let ordinals: Vec<usize> = (0..num_ranks).collect();
                    Self::gpus(&ordinals, options).context("--device is auto; cpu would use the processors")
                }
                Ok(found) => {
                    tracing::info!(
                        found = found.len(),
                        num_ranks,
                        "too few GPUs for the ranks, CPUs compute"
                    );
                    Self::cpus(options, num_ranks)
                }
                Err(absence) => {
                    tracing::debug!(%absence, "CPUs compute");
                    Self::cpus(options, num_ranks)
                }
            },
        }
    }

    fn cpus(options: &DeviceOptions, num_ranks: usize) -> anyhow::Result<Self> {
        let available = || std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let num_threads = options.threads.unwrap_or_else(available);
        let threads = (0..num_ranks).map(|rank| split(num_threads, num_ranks, rank).len());
        let cpu = |threads| Ok(Cpu::new(Some(NonZeroUsize::new(threads).unwrap_or(NonZeroUsize::MIN)))?);
        Ok(Self::Cpu(threads.map(cpu).collect::<anyhow::Result<_>>()?))
    }

    fn gpus(ordinals: &[usize], options: &DeviceOptions) -> anyhow::Result<Self> {
        let gpu = |&ordinal: &usize| {
            let gpu = Driver::open(
                ordinal,
                &Options { cache: options.kernel_cache.clone(), ..Options::default() },
            )?;
            let facts = gpu.facts();
            tracing::info!(
                ordinal,
                name = facts.name,
                sms = facts.num_sms,
                driver = facts.driver,
                "a GPU computes"
            );
            let chosen = CudaOptions { batch_invariant: options.batch_invariant, ..CudaOptions::default() };
            Ok(Cuda::with(gpu, chosen))
        };
        Ok(Self::Cuda(ordinals.iter().map(gpu).collect::<anyhow::Result<_>>()?))
    }

    /// By what they can exchange rows without the host, if they are GPUs and may.
    pub(crate) fn nccl(&self, choice: &NcclChoice) -> Result<Option<Arc<Library>>, UsageError> {
        match self {
            Self::Cpu(_) => Ok(None),
            Self::Cuda(_) => choice.library(),
        }
    }

    /// A rank's thread for each device; GPUs exchange by `library`, if there is one
    /// and their world can.
    pub(crate) fn start_ranks(
        self,
        library: Option<&Arc<Library>>,
        peer_exchange: PeerExchange,
    ) -> std::io::Result<Vec<Rank>> {
        let start = |gpu| match library {
            Some(library) => {
                let links = NcclLinks::new(Arc::clone(library));
                let are_on = peer_exchange == PeerExchange::Auto;
                Rank::start_with(gpu, Box::new(links.with_small_exchanges(are_on)))
            }
            None => Rank::start(gpu),
        };
        match self {
            Self::Cpu(cpus) => cpus.into_iter().map(Rank::start).collect(),
            Self::Cuda(gpus) => gpus.into_iter().map(start).collect(),
        }
    }

    /// Lets GPUs keep experts in the host's memory that do not fit them, up to so many
    /// bytes for each; gives what they tell of it.
    pub(crate) fn host_experts(&mut self, num_layers: usize, host_bytes: u64) -> Traffic {
        let fill = ExpertFill { num_layers, host_bytes, reserve_bytes: GPU_RESERVE_BYTES };
        match self {
            Self::Cuda(gpus) if host_bytes > 0 => {
                Traffic(gpus.iter_mut().map(|gpu| gpu.fill_with_experts(fill)).collect())
            }
            Self::Cuda(_) | Self::Cpu(_) => Traffic::default(),
        }
    }

    /// What computes, for people.
    pub(crate) fn describe(&self) -> String {
        match self {
            Self::Cpu(cpus) => {
                format!("{} CPU threads", cpus.iter().map(Cpu::num_threads).sum::<usize>())
            }
            Self::Cuda(gpus) => match &gpus[..] {
                [gpu] => gpu.facts().name.clone(),
                gpus => format!("{} × {}", gpus.len(), gpus[0].facts().name),
            },
        }
    }

    /// The memory that the devices are planned with; `with_nccl` leaves some to NCCL.
    pub(crate) fn memory(&self, with_nccl: bool) -> anyhow::Result<DeviceMemory> {
        match self {
            Self::Cpu(_) => Ok(DeviceMemory::Host),
            Self::Cuda(gpus) => {
                let mut least = u64::MAX;
                for gpu in gpus {
                    least = least.min(gpu.free_bytes()? as u64);
                }
                Ok(DeviceMemory::Gpu { free_bytes: least.saturating_sub(reserved_bytes(with_nccl)) })
            }
        }
    }

    /// How they can keep keys and values, their own choice first.
    pub(crate) fn kv_dtypes(&self) -> &'static [KvDtype] {
        match self {
            Self::Cpu(_) => Cpu::KV_DTYPES,
            Self::Cuda(_) => Cuda::KV_DTYPES,
        }
    }

    /// How they are to keep keys and values. What they cannot is refused, not ignored.
    pub(crate) fn kv_dtype(&self, asked: Option<KvDtype>) -> Result<KvDtype, UsageError> {
        let kept = self.kv_dtypes();
        match asked {
            None => Ok(kept[0]),
            Some(asked) if kept.contains(&asked) => Ok(asked),
            Some(asked) => {
                let who = match self {
                    Self::Cpu(_) => "the CPU keeps",
                    Self::Cuda(_) => "GPUs keep",
                };
                let words: Vec<&str> = kept.iter().map(|dtype| dtype.name()).collect();
                Err(UsageError(format!(
                    "--kv-cache-dtype is {}: {who} keys and values as {}; say one of these, or leave it out",
                    asked.name(),
                    words.join(" or ")
                )))
            }
        }
    }

    /// How fast the first device's memory is read: decoding does little else.
    pub(crate) fn memory_rate(&self) -> MemoryRate {
        match self {
            Self::Cpu(cpus) => {
                let num_threads = cpus.iter().map(Cpu::num_threads).sum();
                MemoryRate::Measured(Reading::new(move || probe::memory_bytes_per_s(num_threads)))
            }
            Self::Cuda(gpus) => {
                MemoryRate::Known(gpus.first().map_or(0, |gpu| gpu.facts().memory_bytes_per_s))
            }
        }
    }

    /// Steps that may be handed in at a time: a GPU goes on with the next while
    /// the last one's tokens are on their way.
    pub(crate) fn steps_in_flight(&self) -> u32 {
        match self {
            Self::Cpu(_) => 1,
            Self::Cuda(_) => 2,
        }
    }
}

/// What kind of device computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceKind {
    /// Processors.
    Cpu,
    /// GPUs.
    Gpu,
}

/// What memory ranks have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DeviceMemory {
    /// The machine's, which all ranks and other programs share.
    Host,
    /// Each rank has a GPU's own.
    Gpu {
        /// Free on the GPU that has the least.
        free_bytes: u64,
    },
}

impl DeviceMemory {
    /// Whose memory it is.
    pub(crate) fn kind(self) -> DeviceKind {
        match self {
            Self::Host => DeviceKind::Cpu,
            Self::Gpu { .. } => DeviceKind::Gpu,
        }
    }

    /// What a rank alone can have, where it is known.
    pub(crate) fn available_bytes(self) -> Option<u64> {
        match self {
            Self::Host => available_bytes(),
            Self::Gpu { free_bytes } => Some(free_bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_in_words() {
        let parse = DeviceChoice::parse;
        assert_eq!(parse("auto"), Some(DeviceChoice::Auto));
        assert_eq!(parse("cpu"), Some(DeviceChoice::Cpu));
        assert_eq!(parse("cuda"), Some(DeviceChoice::Cuda(None)));
        assert_eq!(parse("cuda:3"), Some(DeviceChoice::Cuda(Some(vec![3]))));
        assert_eq!(parse("cuda:0,2"), Some(DeviceChoice::Cuda(Some(vec![0, 2]))));
        for bad in ["", "gpu", "cuda:", "cuda:x", "cuda:0,", "cuda:1,1", "CPU", "cuda:-1"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_and_values_are_kept_as_the_device_can() {
        let cpus = Devices::Cpu(Vec::new());
        assert_eq!(cpus.kv_dtype(None).unwrap(), KvDtype::F32);
        assert_eq!(cpus.kv_dtype(Some(KvDtype::Fp8)).unwrap(), KvDtype::Fp8);
        let gpus = Devices::Cuda(Vec::new());
        assert_eq!(gpus.kv_dtype(None).unwrap(), KvDtype::Bf16);
        let UsageError(refused) = gpus.kv_dtype(Some(KvDtype::F32)).unwrap_err();
        assert!(refused.contains("--kv-cache-dtype is f32: GPUs keep keys and values as bf16 or fp8"));
    }

    #[test]
    fn threads_are_dealt_out_evenly() {
        let threads = |total| -> Vec<usize> {
            let options = DeviceOptions {
                choice: DeviceChoice::Cpu,
                threads: Some(total),
                batch_invariant: false,
                kernel_cache: None,
            };
            match Devices::open(&options, 4).unwrap() {
                Devices::Cpu(cpus) => cpus.iter().map(Cpu::num_threads).collect(),
                Devices::Cuda(_) => Vec::new(),
            }
        };
        assert_eq!(threads(6), [2, 2, 1, 1]);
        assert_eq!(threads(1), [1; 4]);
    }
}
