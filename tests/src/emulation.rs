//! Generated CUDA C++ compiled by g++ and run on the CPU. In: a kernel's code and buffers. Out: what it leaves in them, or why it failed. It shows
//! what a kernel computes, not that a card's compiler takes it or how fast it is; `tests/cuda` holds the headers that stand in for CUDA's.

use crate::folders;
use kiln::device::cube::CudaSource;
use libloading::Library;
use std::ffi::{CStr, c_char, c_void};
use std::fs;
use std::process::Command;
use tempfile::TempDir;

/// As `Arguments` of `tests/cuda/cuda_runtime.h`.
#[repr(C)]
struct Arguments {
    buffers: *const *mut c_void,
    bytes: *const usize,
    n_buffers: usize,
    numbers: *const f32,
    n_numbers: usize,
    positions: *const u32,
    n_positions: usize,
}

type Run = unsafe extern "C" fn(*const Arguments, u32, u32, u32, usize, u32) -> *const c_char;

/// A kernel that can be run on the CPU.
pub struct Emulated {
    run: Run,
    units: u32,
    shared_bytes: usize,
    /// Keeps the function where it is, and the file where the library was read from.
    _library: (Library, TempDir),
}

/// What a launch passes beside the buffers.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    /// Cubes along x and y.
    pub cubes: [u32; 2],
    /// Positions and sizes, in the order of the kernel.
    pub positions: &'a [u32],
    /// Numbers, in the order of the kernel.
    pub numbers: &'a [f32],
    /// In which order units run between barriers; no result may depend on it.
    pub seed: u32,
}

impl Emulated {
    /// Compiles `source`.
    ///
    /// # Errors
    /// What g++ says.
    pub fn compile(source: &CudaSource) -> Result<Emulated, String> {
        let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
        let (code, library) = (folder.path().join("kernel.cpp"), folder.path().join("kernel.so"));
        fs::write(&code, translate(source)).map_err(|e| format!("{}: {e}", code.display()))?;
        let mut command = Command::new("g++");
        // Registers are read as what they are not. `-O0`: straight code of thousands of lines, for which optimisers were seen to take minutes; the
        // headers ask for optimisation themselves.
        command.args(["-std=c++20", "-O0", "-fno-strict-aliasing", "-w", "-fno-gnu-unique", "-shared", "-fPIC"]);
        command.arg("-I").arg(folders::root().join("tests/cuda")).arg("-o").arg(&library).arg(&code);
        let output = command.output().map_err(|e| format!("g++ did not start: {e}"))?;
        if !output.status.success() {
            let said = String::from_utf8_lossy(&output.stderr);
            return Err(said.lines().take(20).collect::<Vec<_>>().join("\n"));
        }
        // SAFETY: its constructors set up its own state and need nothing from us.
        let library = unsafe { Library::new(&library) }.map_err(|e| e.to_string())?;
        // SAFETY: `translate` writes the function with this signature, and `Emulated` keeps the library open as long as it.
        let run = *unsafe { library.get::<Run>(b"emulate") }.map_err(|e| e.to_string())?;
        let (units, shared_bytes) = (source.units, source.shared_bytes);
        Ok(Emulated { run, units, shared_bytes, _library: (library, folder) })
    }

    /// Units of a cube.
    pub fn units(&self) -> u32 {
        self.units
    }

    /// Runs all cubes on `buffers`. One launch at a time: the library's state is of its process.
    ///
    /// # Errors
    /// Units that wait for each other forever, lanes of a plane at different operations, reads and writes behind a buffer, writes behind the shared
    /// memory.
    pub fn launch(&mut self, buffers: &mut [Vec<u8>], launch: &Launch<'_>) -> Result<(), String> {
        let pointers: Vec<*mut c_void> = buffers.iter_mut().map(|b| b.as_mut_ptr().cast()).collect();
        let bytes: Vec<usize> = buffers.iter().map(Vec::len).collect();
        let arguments = Arguments {
            buffers: pointers.as_ptr(),
            bytes: bytes.as_ptr(),
            n_buffers: buffers.len(),
            numbers: launch.numbers.as_ptr(),
            n_numbers: launch.numbers.len(),
            positions: launch.positions.as_ptr(),
            n_positions: launch.positions.len(),
        };
        let [x, y] = launch.cubes;
        // SAFETY: every pointer leads to as many elements as is said, all of which live through the call; the kernel gets copies that end at
        // memory that it cannot touch, so it reads and writes nothing of ours.
        let why = unsafe { (self.run)(&arguments, x, y, self.units, self.shared_bytes, launch.seed) };
        // SAFETY: it answers a text of its own that lives until the next launch.
        match unsafe { CStr::from_ptr(why) }.to_string_lossy().as_ref() {
            "" => Ok(()),
            why => Err(why.to_owned()),
        }
    }
}

/// The code for g++: PTX becomes calls, and a function by a fixed name runs the kernel.
fn translate(source: &CudaSource) -> String {
    let entry = format!(
        "\nextern \"C\" const char *emulate(const emulation::Arguments *from, unsigned x, unsigned y, unsigned units, size_t shared, unsigned \
         seed) {{\n    return emulation::launch<info_st>({}, *from, {{x, y, 1}}, units, shared, seed);\n}}\n",
        source.name
    );
    without_asm(&source.code) + &entry
}

/// `asm volatile("code" : "=r"(a), "=r"(b) : "r"(c));` as `ptx("code", std::tie(a, b), std::make_tuple(c));`.
fn without_asm(code: &str) -> String {
    const BEGIN: &str = "asm volatile(";
    let mut rest = code;
    let mut out = String::new();
    while let Some(at) = rest.find(BEGIN) {
        out.push_str(&rest[..at]);
        let inside = &rest[at + BEGIN.len()..];
        let end = inside.find(");\n").expect("an asm statement ends its line");
        let sections = sections(&inside[..end]);
        let operands = |i: usize| sections.get(i).map(|s| operands(s)).unwrap_or_default();
        out.push_str(&format!("ptx({}, std::tie({}), std::make_tuple({}))", sections[0], operands(1), operands(2)));
        rest = &inside[end + 1..];
    }
    out + rest
}

/// Parts between the colons that are outside of strings.
fn sections(statement: &str) -> Vec<&str> {
    let mut is_text = false;
    statement
        .split(|c| {
            is_text ^= c == '"';
            c == ':' && !is_text
        })
        .collect()
}

/// `"=r"(a), "r"(b)` as `a, b`.
fn operands(section: &str) -> String {
    let names = section.split('"').skip(2).step_by(2);
    names
        .map(|s| s.trim().trim_end_matches(',').trim_start_matches('(').trim_end_matches(')'))
        .collect::<Vec<_>>()
        .join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ptx_becomes_a_call() {
        let code = "{\n  asm volatile(\"a.b::c\"\n  \" {%0}, [%1];\"\n  : \"=r\"(x), \"=r\"(y)\n  : \"r\"(z));\n}";
        assert_eq!(
            without_asm(code),
            "{\n  ptx(\"a.b::c\"\n  \" {%0}, [%1];\"\n  , std::tie(x, y), std::make_tuple(z));\n}"
        );
    }
}
