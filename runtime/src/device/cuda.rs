//! NVIDIA cards through CubeCL's CUDA runtime. Driver, compiler and headers are looked for at run time, so executables start without them.

use super::cube::{CUDA_SHAPE, CubeDevice, CubeError, Found, enable_cache};
use cubecl::cuda::{CudaDevice, CudaRuntime};
use cubecl::prelude::Runtime;
use cudarc::driver::{result, sys};
use cudarc::nvrtc;
use std::ffi::CStr;
use std::path::PathBuf;

/// A device of CUDA.
pub type Device = CubeDevice<CudaRuntime>;

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
    // CubeCL panics without a driver and without a card, so it is asked only after one was seen; it skips launches whose code does
    // not compile, so the compiler is tried first.
    if index >= devices() {
        return Err(CubeError::NoAdapter("CUDA"));
    }
    let card = Card::of(index).map_err(|e| CubeError::Failed(format!("CUDA card {index}: {e}")))?;
    let ptx = compiled_probe(card.compute)?;
    let capacity = card.loads(&ptx)?;
    // Before CubeCL reads its configuration.
    let cache = enable_cache(&card.identity());
    let client = CudaRuntime::client(&CudaDevice::new(index));
    Ok(CubeDevice::new(Found { client, shape: CUDA_SHAPE, capacity: Some(capacity), identity: card.identity(), cache }))
}

/// A card as its driver describes it.
struct Card {
    handle: sys::CUdevice,
    name: String,
    /// Compute capability: 90 for 9.0.
    compute: i32,
    /// 12040 for 12.4: the newest CUDA whose code it takes.
    driver: i32,
}

impl Card {
    fn of(index: usize) -> Result<Card, result::DriverError> {
        use sys::CUdevice_attribute::{
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
        };
        let handle = result::device::get(index as i32)?;
        let attribute = |a| {
            // SAFETY: the card was just got from the driver.
            unsafe { result::device::get_attribute(handle, a) }
        };
        let mut driver = 0;
        // SAFETY: the driver is loaded, and writes one integer.
        unsafe { sys::cuDriverGetVersion(&mut driver) }.result()?;
        let compute = 10 * attribute(MAJOR)? + attribute(MINOR)?;
        Ok(Card { handle, name: result::device::get_name(handle)?, compute, driver })
    }

    /// Name, compute capability and version of the driver.
    fn identity(&self) -> String {
        format!("{} sm_{} driver {}", self.name, self.compute, version(self.driver / 1000, self.driver % 1000 / 10))
    }

    /// Loads compiled code and forgets it; gives the free bytes of the card.
    fn loads(&self, ptx: &CStr) -> Result<usize, CubeError> {
        let failed = |e| CubeError::Failed(format!("{}: {e}", self.name));
        // SAFETY: the handle is of the driver; the context is kept for the life of the process, as CubeCL keeps its own.
        let context = unsafe { result::primary_ctx::retain(self.handle) }.map_err(failed)?;
        // SAFETY: the context was just retained.
        unsafe { result::ctx::set_current(context) }.map_err(failed)?;
        // SAFETY: NVRTC ends its text with a zero.
        match unsafe { result::module::load_data(ptx.as_ptr().cast()) } {
            Ok(module) => {
                // SAFETY: the module was just loaded, and nothing of it is in use.
                unsafe { result::module::unload(module) }.map_err(failed)?;
            }
            Err(e) => {
                let (nvrtc, driver) = (nvrtc_version(), version(self.driver / 1000, self.driver % 1000 / 10));
                return Err(CubeError::Compiler(format!(
                    "the driver takes code up to CUDA {driver} and refuses what NVRTC {nvrtc} wrote ({e}); put a libnvrtc of \
                     CUDA {driver} or older first in LD_LIBRARY_PATH, or update the driver"
                )));
            }
        }
        result::mem_get_info().map(|(free, _)| free).map_err(failed)
    }
}

fn version(major: i32, minor: i32) -> String {
    format!("{major}.{minor}")
}

fn nvrtc_version() -> String {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library is loaded, and writes two integers.
    unsafe { nvrtc::sys::nvrtcVersion(&mut major, &mut minor) };
    version(major, minor)
}

/// What the generated code includes, and a use of each type that Kiln stores.
const PROBE: &CStr = c"#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern \"C\" __global__ void probe(const __nv_bfloat16* x, const __half* y, float* z) {
    z[threadIdx.x] = __bfloat162float(x[threadIdx.x]) + __half2float(y[threadIdx.x]);
}
";

const HOW_TO_INSTALL: &str = "`pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12` brings both (PyTorch's wheels have them already): \
    add `site-packages/nvidia/cuda_nvrtc/lib` to LD_LIBRARY_PATH and set CUDA_PATH to `site-packages/nvidia/cuda_runtime`; with the \
    wheels of CUDA 13 they are `site-packages/nvidia/cu13/lib` and `site-packages/nvidia/cu13`";

/// Compiles a small kernel as CubeCL will compile the others: CubeCL itself would panic, or skip a launch, where something is missing.
fn compiled_probe(compute: i32) -> Result<std::ffi::CString, CubeError> {
    let missing = |what: String| CubeError::Compiler(format!("{what}; {HOW_TO_INSTALL}"));
    // SAFETY: it loads the compiler's library and unloads it again; its constructors need nothing from us.
    if !unsafe { nvrtc::sys::is_culib_present() } {
        return Err(missing("NVRTC (libnvrtc.so) is not found".to_owned()));
    }
    let headers = include_path();
    let Some(headers) = headers.filter(|h| h.join("cuda_runtime.h").exists() && h.join("cuda_bf16.h").exists()) else {
        return Err(missing(
            "the headers of CUDA (include/cuda_runtime.h, include/cuda_bf16.h) are not found".to_owned(),
        ));
    };
    let options = [format!("--gpu-architecture=sm_{compute}"), format!("--include-path={}", headers.display())];
    let program = nvrtc::result::create_program(PROBE, None).map_err(|e| missing(format!("NVRTC: {e:?}")))?;
    // SAFETY: the program was just created, and is destroyed once, below.
    let compiled = unsafe { nvrtc::result::compile_program(program, &options) };
    // SAFETY: as above.
    let text = match compiled {
        Ok(()) => unsafe { nvrtc::result::get_ptx(program) }.map_err(|e| format!("{e:?}")),
        Err(e) => {
            // SAFETY: as above.
            let log = unsafe { nvrtc::result::get_program_log(program) }.unwrap_or_default();
            Err(format!("{e:?}: {}", text(&log).to_string_lossy()))
        }
    };
    // SAFETY: nothing uses the program any more.
    let _ = unsafe { nvrtc::result::destroy_program(program) };
    let ptx = text.map_err(|why| missing(format!("NVRTC {} compiles no kernel: {why}", nvrtc_version())))?;
    Ok(self::text(&ptx))
}

/// Characters up to the first zero.
fn text(chars: &[std::ffi::c_char]) -> std::ffi::CString {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    std::ffi::CString::new(bytes).unwrap_or_default()
}

/// Where CubeCL looks for headers.
fn include_path() -> Option<PathBuf> {
    let set = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from).into_iter().find(|p| p.exists());
    set.or(usual).map(|p| p.join("include"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVRTC needs no card: where it is installed the probe compiles, elsewhere the error says what to install.
    #[test]
    fn the_probe_compiles_or_says_what_is_missing() {
        const HOPPER: i32 = 90;
        match compiled_probe(HOPPER) {
            Ok(ptx) => assert!(ptx.to_string_lossy().contains(".entry probe")),
            Err(e) => assert!(e.to_string().contains("not found; `pip install"), "{e}"),
        }
    }

    #[test]
    fn without_a_driver_there_is_no_card() {
        if devices() == 0 {
            let error = open(0).map(|_| ()).expect_err("no card");
            assert_eq!(error, CubeError::NoAdapter("CUDA"));
        }
    }
}
