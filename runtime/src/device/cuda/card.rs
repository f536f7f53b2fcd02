//! A card as its driver describes it, and its context.

use crate::device::cube::{Arch, CubeError};
use cudarc::driver::{result, sys};
use sys::CUdevice_attribute as Attribute;

/// How many cards there are; none without a driver.
pub fn devices() -> usize {
    // SAFETY: it loads the driver's library and unloads it again; the driver's constructors need nothing from us.
    if !unsafe { sys::is_culib_present() } || result::init().is_err() {
        return 0;
    }
    result::device::get_count().map_or(0, |n| n.max(0) as usize)
}

/// What the driver says when it refuses.
pub fn failed(error: result::DriverError) -> CubeError {
    CubeError::Failed(format!("the CUDA driver says {error}"))
}

/// A card.
#[derive(Debug)]
pub struct Card {
    name: String,
    /// Compute capability: 90 for 9.0.
    compute: u32,
    /// 12040 for 12.4: the newest CUDA whose code it takes.
    driver: i32,
    /// Multiprocessors.
    pub processors: u32,
    /// Bytes in all.
    pub memory: usize,
    /// Whether memory can be allocated in the order of a stream.
    pub has_pools: bool,
    /// Kept for the life of the process, as every library in it does.
    context: sys::CUcontext,
}

// SAFETY: the driver allows every call on a context from every thread that has made it current.
unsafe impl Send for Card {}
// SAFETY: as above.
unsafe impl Sync for Card {}

impl Card {
    /// Card `index` of the driver.
    ///
    /// # Errors
    /// What the driver says.
    pub fn of(index: usize) -> Result<Card, CubeError> {
        let handle = result::device::get(index as i32).map_err(failed)?;
        let attribute = |a| {
            // SAFETY: the card was just got from the driver.
            unsafe { result::device::get_attribute(handle, a) }.map_err(failed)
        };
        let mut driver = 0;
        // SAFETY: the driver is loaded, and writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut driver) }.result().map_err(failed)?;
        let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
        let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
        // SAFETY: the card was just got from the driver.
        let memory = unsafe { result::device::total_mem(handle) }.map_err(failed)?;
        // SAFETY: as above; the context is kept.
        let context = unsafe { result::primary_ctx::retain(handle) }.map_err(failed)?;
        Ok(Card {
            name: result::device::get_name(handle).map_err(failed)?,
            compute: (10 * major + minor) as u32,
            driver,
            processors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)? as u32,
            memory,
            has_pools: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED)? == 1,
            context,
        })
    }

    /// What its code is compiled for.
    ///
    /// # Errors
    /// [`CubeError::Compiler`] for cards that Kiln's kernels do not run on.
    pub fn arch(&self) -> Result<Arch, CubeError> {
        let old = || CubeError::Compiler(format!("{} is older than Ampere (compute capability 8.0)", self.name));
        Arch::of(self.compute).ok_or_else(old)
    }

    /// Name, compute capability and version of the driver.
    pub fn identity(&self) -> String {
        format!("{} sm_{} driver {}", self.name, self.compute, self.takes())
    }

    /// The newest CUDA whose code its driver takes.
    fn takes(&self) -> String {
        format!("{}.{}", self.driver / 1000, self.driver % 1000 / 10)
    }

    /// Makes its context that of the calling thread.
    ///
    /// # Errors
    /// What the driver says.
    pub fn bind(&self) -> Result<(), CubeError> {
        // SAFETY: the context was retained when the card was found, and is kept.
        unsafe { result::ctx::set_current(self.context) }.map_err(failed)
    }

    /// Bytes that nothing holds.
    ///
    /// # Errors
    /// What the driver says.
    pub fn free_memory(&self) -> Result<usize, CubeError> {
        self.bind()?;
        result::mem_get_info().map(|(free, _)| free).map_err(failed)
    }

    /// Loads compiled code and forgets it.
    ///
    /// # Errors
    /// [`CubeError::Compiler`] if the driver refuses the code.
    pub fn try_to_load(&self, code: &[u8], nvrtc: &str) -> Result<(), CubeError> {
        self.bind()?;
        // SAFETY: NVRTC wrote the code, which says itself how long it is.
        let module = unsafe { result::module::load_data(code.as_ptr().cast()) }.map_err(|e| {
            let takes = self.takes();
            CubeError::Compiler(format!(
                "the driver takes code up to CUDA {takes} and refuses what NVRTC {nvrtc} wrote ({e}); put a libnvrtc of CUDA {takes} or \
                 older first in LD_LIBRARY_PATH, or update the driver"
            ))
        })?;
        // SAFETY: the module was just loaded, and nothing of it is in use.
        unsafe { result::module::unload(module) }.map_err(failed)
    }
}
