//! NVRTC, opened where its wheel was unpacked. In: CUDA C++ and options. Out: what ptxas says that the kernel takes. It needs no card, no
//! driver and no CUDA, and runs nothing.

use libloading::Library;
use std::ffi::{CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};
use std::ptr;

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type LogSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Log = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// The library's functions; its own documentation says that threads may call them at once.
pub struct Nvrtc {
    create: Create,
    compile: Compile,
    log_size: LogSize,
    log: Log,
    destroy: Destroy,
    /// Folders of headers, as options.
    includes: Vec<String>,
    /// Keeps the functions where they are.
    _library: Library,
}

/// What a kernel takes of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Registers of a unit.
    pub registers: usize,
    /// Bytes of shared memory that the code declares.
    pub shared: usize,
    /// Bytes of local memory of a unit, spills among them.
    pub stack: usize,
    /// Bytes of registers that are stored to local memory for want of registers.
    pub spill_stores: usize,
    /// Bytes that are loaded back.
    pub spill_loads: usize,
}

impl Nvrtc {
    /// Opens the library in a folder that pip unpacked the wheels into.
    ///
    /// # Errors
    /// What is missing.
    pub fn open(folder: &Path) -> Result<Nvrtc, String> {
        let packages = folder.join("nvidia");
        let path = packages.join("cuda_nvrtc/lib/libnvrtc.so.12");
        // SAFETY: its constructors set up its own state and need nothing from us.
        let library = unsafe { Library::new(&path) }.map_err(|e| format!("{}: {e}", path.display()))?;
        let include = |package: &str| packages.join(package).join("include");
        let includes: Vec<PathBuf> = ["cuda_runtime", "cuda_cccl"].map(include).into();
        if let Some(absent) = includes.iter().find(|f| !f.is_dir()) {
            return Err(format!("{} is no folder", absent.display()));
        }
        let includes = includes.iter().map(|f| format!("--include-path={}", f.display())).collect();
        Ok(Nvrtc {
            create: symbol(&library, "nvrtcCreateProgram")?,
            compile: symbol(&library, "nvrtcCompileProgram")?,
            log_size: symbol(&library, "nvrtcGetProgramLogSize")?,
            log: symbol(&library, "nvrtcGetProgramLog")?,
            destroy: symbol(&library, "nvrtcDestroyProgram")?,
            includes,
            _library: library,
        })
    }

    /// Compiles to machine code; `entry` is the kernel whose usage is asked for.
    ///
    /// # Errors
    /// The compiler's log.
    pub fn compile(&self, code: &str, entry: &str, options: &[String]) -> Result<Usage, String> {
        let text = |s: &str| CString::new(s).map_err(|e| e.to_string());
        let (code, name) = (text(code)?, text(&format!("{entry}.cu"))?);
        let verbose = ["--ptxas-options=-v".to_owned()];
        let options = options.iter().chain(&self.includes).chain(&verbose);
        let options = options.map(|o| text(o)).collect::<Result<Vec<CString>, String>>()?;
        let pointers: Vec<*const c_char> = options.iter().map(|o| o.as_ptr()).collect();
        let mut program: Program = ptr::null_mut();
        // SAFETY: both texts end in 0 and live through the call; no header is passed, so both lists may be null.
        let created = unsafe { (self.create)(&mut program, code.as_ptr(), name.as_ptr(), 0, ptr::null(), ptr::null()) };
        if created != 0 {
            return Err(format!("nvrtcCreateProgram answers {created}"));
        }
        // SAFETY: the program was created, and `pointers` holds as many texts as is said, each alive and ending in 0.
        let compiled = unsafe { (self.compile)(program, pointers.len() as c_int, pointers.as_ptr()) };
        let log = self.program_log(program);
        // SAFETY: the program was created and is used no more.
        unsafe { (self.destroy)(&mut program) };
        let log = log?;
        if compiled != 0 {
            return Err(format!("nvrtcCompileProgram answers {compiled}\n{log}"));
        }
        usage(&log, entry).ok_or_else(|| format!("ptxas says nothing about `{entry}`:\n{log}"))
    }

    fn program_log(&self, program: Program) -> Result<String, String> {
        let mut size = 0;
        // SAFETY: the caller's program was created and is not yet destroyed.
        let answer = unsafe { (self.log_size)(program, &mut size) };
        let mut bytes = vec![0u8; size];
        if answer == 0 && size > 0 {
            // SAFETY: as above; the buffer holds the number of bytes that the library has asked for.
            let answer = unsafe { (self.log)(program, bytes.as_mut_ptr().cast()) };
            if answer == 0 {
                return Ok(String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned());
            }
        }
        Err(format!("no log of {size} bytes: {answer}"))
    }
}

/// A function of the library, whose signature the caller's type states.
fn symbol<T: Copy>(library: &Library, name: &str) -> Result<T, String> {
    // SAFETY: the types above are those of NVIDIA's nvrtc.h, and `Nvrtc` keeps the library open as long as the function.
    unsafe { library.get::<T>(name.as_bytes()) }.map(|f| *f).map_err(|e| format!("{name}: {e}"))
}

/// Reads ptxas's report on one entry function.
fn usage(log: &str, entry: &str) -> Option<Usage> {
    let mut lines = log.lines().skip_while(|l| !l.ends_with(&format!("Function properties for {entry}")));
    let memory = lines.nth(1)?;
    let used = lines.find(|l| l.contains("Used "))?;
    let shared = number_before(used, " bytes smem").unwrap_or(0);
    Some(Usage {
        registers: number_before(used, " registers")?,
        shared,
        stack: number_before(memory, " bytes stack frame")?,
        spill_stores: number_before(memory, " bytes spill stores")?,
        spill_loads: number_before(memory, " bytes spill loads")?,
    })
}

fn number_before(line: &str, word: &str) -> Option<usize> {
    let (before, _) = line.split_once(word)?;
    before.rsplit(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ptxas_says() {
        let log = "\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'k' for 'sm_80'
ptxas info    : Function properties for k
ptxas         .     24 bytes stack frame, 8 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 40 registers, used 1 barriers, 24 bytes cumulative stack size, 1024 bytes smem, 372 bytes cmem[0]
ptxas info    : Compile time = 1.814 ms";
        let expected = Usage { registers: 40, shared: 1024, stack: 24, spill_stores: 8, spill_loads: 12 };
        assert_eq!(usage(log, "k"), Some(expected));
        assert_eq!(usage(log, "other"), None);
    }
}
