//! Which GPUs are here. Never panics, and needs no CUDA.

#![expect(unsafe_code, reason = "asks CUDA's driver for facts")]

use super::absence::Absence;
use super::api::{Loaded, loaded};
use super::functions::Refused;
use crate::gpu::Facts;
use cudarc::driver::sys::{self, CUdevice_attribute_enum as Attribute};
use std::ffi::{CStr, c_char, c_int};
use std::ops::Range;

/// A GPU of this machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// What it is.
    pub facts: Facts,
    /// Where it is plugged in, such as `0000:17:00.0`.
    pub bus: String,
    /// What names it everywhere, such as `GPU-8c8a…`.
    pub uuid: String,
}

/// The GPUs that the driver shows, in its order.
pub fn probe() -> Result<Vec<Found>, Absence> {
    let driver = loaded()?;
    let refused = |refused: Refused| Absence::Refused { code: refused.code, text: driver.text(refused.code) };
    let count = count(driver).map_err(refused)?;
    (0..count).map(|ordinal| describe(driver, ordinal).map_err(refused)).collect()
}

/// The device of an ordinal, and its facts.
pub(super) fn find(driver: &Loaded, ordinal: usize) -> Result<(sys::CUdevice, Facts), Absence> {
    let refused = |refused: Refused| Absence::Refused { code: refused.code, text: driver.text(refused.code) };
    let count = count(driver).map_err(refused)?;
    let asked = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    if asked >= count {
        return Err(Absence::NoSuchDevice { ordinal, count: usize::try_from(count).unwrap_or(0) });
    }
    let device = device(driver, asked).map_err(refused)?;
    Ok((device, facts(driver, device).map_err(refused)?))
}

fn count(driver: &Loaded) -> Result<c_int, Refused> {
    let mut count = 0;
    // SAFETY: it writes one number.
    unsafe { driver.functions.cuDeviceGetCount(&raw mut count) }?;
    Ok(count)
}

fn device(driver: &Loaded, ordinal: c_int) -> Result<sys::CUdevice, Refused> {
    let mut device = 0;
    // SAFETY: it writes one number.
    unsafe { driver.functions.cuDeviceGet(&raw mut device, ordinal) }?;
    Ok(device)
}

fn describe(driver: &Loaded, ordinal: c_int) -> Result<Found, Refused> {
    let device = device(driver, ordinal)?;
    // SAFETY: it writes at most as many bytes as it is told, the last of them 0.
    let bus = text(|room, len| unsafe { driver.functions.cuDeviceGetPCIBusId(room, len, device) })?;
    let mut uuid = sys::CUuuid { bytes: [0; 16] };
    // SAFETY: it writes one UUID.
    unsafe { driver.functions.cuDeviceGetUuid_v2(&raw mut uuid, device) }?;
    let hex: Vec<String> = uuid.bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    let group = |range: Range<usize>| hex.get(range).unwrap_or_default().concat();
    let uuid =
        format!("GPU-{}-{}-{}-{}-{}", group(0..4), group(4..6), group(6..8), group(8..10), group(10..16));
    Ok(Found { facts: facts(driver, device)?, bus, uuid })
}

fn facts(driver: &Loaded, device: sys::CUdevice) -> Result<Facts, Refused> {
    let api = &driver.functions;
    let attribute = |attribute| {
        let mut value = 0;
        // SAFETY: it writes one number.
        unsafe { api.cuDeviceGetAttribute(&raw mut value, attribute, device) }?;
        Ok(u32::try_from(value).unwrap_or(0))
    };
    let mut memory_bytes = 0;
    // SAFETY: it writes one number.
    unsafe { api.cuDeviceTotalMem_v2(&raw mut memory_bytes, device) }?;
    Ok(Facts {
        // SAFETY: it writes at most as many bytes as it is told, the last of them 0.
        name: text(|room, len| unsafe { api.cuDeviceGetName(room, len, device) })?,
        capability: (
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        num_sms: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        shared_bytes_max: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        memory_bytes,
        // Kilohertz by bits, on both edges of the clock.
        memory_bytes_per_s: u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?)
            * u64::from(attribute(Attribute::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?)
            * (2 * 1000 / 8),
        driver: driver.version,
    })
}

/// A text that CUDA writes.
fn text(write: impl FnOnce(*mut c_char, c_int) -> Result<(), Refused>) -> Result<String, Refused> {
    let mut room = [0_u8; 256];
    write(room.as_mut_ptr().cast(), 255)?;
    Ok(CStr::from_bytes_until_nul(&room).map(|text| text.to_string_lossy().into_owned()).unwrap_or_default())
}
