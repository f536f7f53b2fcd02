//! NVRTC: CUDA C++ in, machine code out. Looked for at run time, with CUDA's headers.

use crate::device::cube::CubeError;
use cudarc::nvrtc::{result, sys};
use std::ffi::{CStr, CString, c_char};
use std::path::PathBuf;

const HOW_TO_INSTALL: &str = "`pip install nvidia-cuda-nvrtc-cu12 nvidia-cuda-runtime-cu12` brings both (PyTorch's wheels have them already): \
    add `site-packages/nvidia/cuda_nvrtc/lib` to LD_LIBRARY_PATH and set CUDA_PATH to `site-packages/nvidia/cuda_runtime`; with the \
    wheels of CUDA 13 they are `site-packages/nvidia/cu13/lib` and `site-packages/nvidia/cu13`";

/// NVRTC with its headers.
pub struct Compiler {
    headers: PathBuf,
    /// As NVRTC says it.
    pub version: String,
}

impl Compiler {
    /// Finds both.
    ///
    /// # Errors
    /// [`CubeError::Compiler`] says which is missing, and how to install it.
    pub fn find() -> Result<Compiler, CubeError> {
        let missing = |what: &str| CubeError::Compiler(format!("{what}; {HOW_TO_INSTALL}"));
        // SAFETY: it loads the compiler's library and unloads it again; its constructors need nothing from us.
        if !unsafe { sys::is_culib_present() } {
            return Err(missing("NVRTC (libnvrtc.so) is not found"));
        }
        let found = |h: &PathBuf| h.join("cuda_runtime.h").exists() && h.join("cuda_bf16.h").exists();
        let headers = include_path().filter(found).ok_or_else(|| {
            missing("the headers of CUDA (include/cuda_runtime.h, include/cuda_bf16.h) are not found")
        })?;
        let (mut major, mut minor) = (0, 0);
        // SAFETY: the library is loaded, and writes two integers.
        unsafe { sys::nvrtcVersion(&mut major, &mut minor) };
        Ok(Compiler { headers, version: format!("{major}.{minor}") })
    }

    /// Machine code of `source`.
    ///
    /// # Errors
    /// What NVRTC says.
    pub fn compile(&self, source: &str, mut options: Vec<String>) -> Result<Vec<u8>, String> {
        options.push(format!("--include-path={}", self.headers.display()));
        let source = CString::new(source).map_err(|e| e.to_string())?;
        let program = Program(result::create_program(&source, None).map_err(|e| format!("{e:?}"))?);
        // SAFETY: the program was just created, and is destroyed when it is dropped.
        if let Err(e) = unsafe { result::compile_program(program.0, &options) } {
            // SAFETY: as above.
            let log = unsafe { result::get_program_log(program.0) }.unwrap_or_default();
            return Err(format!("{e:?}: {}", text(&log).to_string_lossy()));
        }
        let mut bytes = 0;
        // SAFETY: the program was compiled for a real architecture, so it has machine code; one number is written.
        unsafe { sys::nvrtcGetCUBINSize(program.0, &mut bytes) }.result().map_err(|e| format!("{e:?}"))?;
        let mut code = vec![0_u8; bytes];
        // SAFETY: NVRTC writes as many bytes as it has just said.
        unsafe { sys::nvrtcGetCUBIN(program.0, code.as_mut_ptr().cast()) }.result().map_err(|e| format!("{e:?}"))?;
        Ok(code)
    }
}

/// A program of NVRTC.
struct Program(sys::nvrtcProgram);

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: it was created once, and nothing uses it any more.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}

/// Characters up to the first zero.
fn text(chars: &[c_char]) -> CString {
    let bytes: Vec<u8> = chars.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    CString::new(bytes).unwrap_or_default()
}

/// Where CUDA's headers may be.
fn include_path() -> Option<PathBuf> {
    let set = std::env::var_os("CUDA_PATH").map(PathBuf::from);
    let usual = ["/usr/local/cuda", "/opt/cuda"].map(PathBuf::from).into_iter().find(|p| p.exists());
    set.or(usual).map(|p| p.join("include"))
}

/// What the generated code includes, and a use of each type that Kiln stores.
const PROBE: &CStr = c"#include <cuda_runtime.h>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern \"C\" __global__ void probe(const __nv_bfloat16* x, const __half* y, float* z) {
    z[threadIdx.x] = __bfloat162float(x[threadIdx.x]) + __half2float(y[threadIdx.x]);
}
";

impl Compiler {
    /// Machine code of a small kernel, which a driver can be tried with.
    ///
    /// # Errors
    /// [`CubeError::Compiler`] with what NVRTC says.
    pub fn probe(&self, architecture: &str) -> Result<Vec<u8>, CubeError> {
        let options = vec![format!("--gpu-architecture={architecture}")];
        let failed = |why| CubeError::Compiler(format!("NVRTC {} compiles no kernel: {why}", self.version));
        self.compile(&PROBE.to_string_lossy(), options).map_err(failed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NVRTC needs no card: where it is installed the probe compiles, elsewhere the error says what to install.
    #[test]
    fn the_probe_compiles_or_says_what_is_missing() {
        match Compiler::find() {
            Ok(compiler) => assert!(compiler.probe("sm_90a").unwrap().starts_with(b"\x7fELF")),
            Err(e) => assert!(e.to_string().contains("not found; `pip install"), "{e}"),
        }
    }
}
