//! NVIDIA cards through CubeCL's CUDA runtime. The driver is looked for at run time, so executables start without one.

use super::cube::{Barriers, CubeDevice, CubeError, Found, Shape, enable_cache};
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::prelude::Runtime;
use cudarc::driver::{result, sys};

/// A device of CUDA.
pub type Device = CubeDevice<CudaRuntime>;

/// Four cubes for each of about a hundred multiprocessors share a sum over rows; 256 units fill one with eight cubes; 16 bytes of
/// f32 are the widest load.
pub const SHAPE: Shape =
    Shape { map_units: 256, row_units: 256, column_cubes: 512, width: 4, barriers: Barriers::Cheap };

/// How many cards there are; none without a driver.
pub fn devices() -> usize {
    // SAFETY: it loads the driver's library and unloads it again; the driver's constructors need nothing from us.
    if !unsafe { sys::is_culib_present() } || result::init().is_err() {
        return 0;
    }
    result::device::get_count().map_or(0, |n| n.max(0) as usize)
}

/// Opens card `index`.
pub fn open(index: usize) -> Result<Device, CubeError> {
    // CubeCL panics without a driver and without a card, so it is asked only after one was seen.
    if index >= devices() {
        return Err(CubeError::NoAdapter("CUDA"));
    }
    let identity = identity(index).unwrap_or_else(|_| format!("CUDA card {index}"));
    // Before CubeCL reads its configuration.
    let cache = enable_cache(&identity);
    let client = CudaRuntime::client(&CudaDevice::new(index));
    let capacity = result::mem_get_info().ok().map(|(free, _)| free);
    Ok(CubeDevice::new(Found { client, shape: SHAPE, capacity, identity, cache }))
}

/// Name, compute capability and version of the driver of a card.
fn identity(index: usize) -> Result<String, result::DriverError> {
    let card = result::device::get(index as i32)?;
    let name = result::device::get_name(card)?;
    let attribute = |a| {
        // SAFETY: the card was just got from the driver.
        unsafe { result::device::get_attribute(card, a) }
    };
    let major = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    let mut driver = 0;
    // SAFETY: the driver is loaded, and writes one integer.
    unsafe { sys::cuDriverGetVersion(&mut driver) }.result()?;
    Ok(format!("{name} sm_{major}{minor} driver {driver}"))
}
