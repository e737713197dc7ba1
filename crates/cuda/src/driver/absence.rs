//! Why there is no GPU to use, and what would mend it.

use crate::gpu::GpuError;

/// Why there is no GPU to use here.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Absence {
    /// No driver is installed, or it is not passed on to the container.
    #[error(
        "libcuda.so.1, which comes with NVIDIA's driver, is not found. Install driver 580 or newer; in a \
         container, start it with the NVIDIA container toolkit (`--gpus all`). `--device cpu` needs none of it"
    )]
    NoLibrary,
    /// The driver does not know the machine code that the kernels are compiled to.
    #[error(
        "the driver is of CUDA {}.{}, the kernels need CUDA 13.0: install driver 580 or newer, or CUDA's forward \
         compatibility package for 13.0 on a data center GPU. `--device cpu` needs none of it",
        version / 1000, version % 1000 / 10
    )]
    TooOld {
        /// As CUDA writes it: 12080 is 12.8.
        version: i32,
    },
    /// A library of that name which is not a whole driver.
    #[error(
        "libcuda.so.1 lacks {function}: it is not the library of driver 580 or newer. Look for another one on \
         LD_LIBRARY_PATH"
    )]
    Incomplete {
        /// What it lacks.
        function: &'static str,
    },
    /// The driver does not start.
    #[error("the driver does not start: {text}. {}", remedy(*code))]
    Refused {
        /// CUDA's code.
        code: u32,
        /// CUDA's sentence.
        text: String,
    },
    /// The driver works and has no GPU, or fewer than asked for.
    #[error(
        "device {ordinal} is asked for and the driver shows {count}. CUDA_VISIBLE_DEVICES or the container may \
         hide some; `nvidia-smi -L` lists what the machine has"
    )]
    NoSuchDevice {
        /// Which was asked for, from 0.
        ordinal: usize,
        /// How many there are.
        count: usize,
    },
}

/// What mends the commonest reasons for which a driver does not start.
fn remedy(code: u32) -> &'static str {
    match code {
        2 => "Others have taken all memory of the GPU: `nvidia-smi` shows who",
        34 => "The library is a stub that only programs link to: take its folder off LD_LIBRARY_PATH",
        46 => {
            "Another process has the GPU to itself: end it, or let more than one in with `nvidia-smi -c DEFAULT`"
        }
        100 => {
            "The driver sees no GPU: look at `nvidia-smi -L`, CUDA_VISIBLE_DEVICES and, in a container, `--gpus \
             all`. `--device cpu` needs none"
        }
        802 => "GPUs with NVSwitch wait for the fabric manager: start nvidia-fabricmanager",
        803 => {
            "The library is not of the same version as the kernel module: restart the machine, or the container"
        }
        804 => {
            "CUDA's forward compatibility package serves data center GPUs only: take it off LD_LIBRARY_PATH"
        }
        _ => "`nvidia-smi` may tell more; `--device cpu` needs no GPU",
    }
}

impl From<Absence> for GpuError {
    fn from(absence: Absence) -> Self {
        Self::Absent { reason: absence.to_string() }
    }
}
