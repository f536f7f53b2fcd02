//! `gpt kernels`: lists the kernels that macros emitted, shows one of them, compiles all that a run needs.

use std::process::ExitCode;
use std::time::Instant;

use kiln::check::kernels::{KernelCase, cases};
use kiln::progress::{Progress, Style, print_line, print_note};
use kiln_compiler::emit;
use kiln_compiler::fuse::kernel::Kernel;

use crate::cli::KernelsArgs;
use crate::failure::Failure;
use crate::train;

/// Runs the command.
///
/// # Errors
/// [`Failure`] if there is no kernel of that name, or one does not compile.
pub fn kernels(args: &KernelsArgs) -> Result<ExitCode, Failure> {
    match &args.show {
        Some(name) => show(name)?,
        None if args.warm => warm(args)?,
        None => list(),
    }
    Ok(ExitCode::SUCCESS)
}

/// Every kernel of every layer that is linked in, dependencies' too.
fn list() {
    for layer in kiln::layers() {
        for kernel in layer.kernels {
            print_line(&format!("{:016x}  {}::{}  {}", kernel.hash, layer.module, layer.name, kernel.name));
        }
    }
}

/// The region as the compiler fused it, the function that the macro wrote, and what a device compiles.
fn show(name: &str) -> Result<(), Failure> {
    let unusable = |why: String| Failure::option("--show", why);
    let all = cases().map_err(|e| unusable(e.to_string()))?;
    let found = all.iter().find(|c| c.name == name || format!("{}::{}", c.layer, c.name).ends_with(name));
    let case = found.ok_or_else(|| unusable(format!("no kernel is called `{name}`; `gpt kernels` lists them")))?;
    print_line(&format!("// {} {}\n", case.layer, case.name));
    print_line("// ---- region: what the compiler fused\n");
    print_line(&case.region.to_string());
    print_line("// ---- kernel: what the macro wrote for CubeCL\n");
    print_line(&source(case).map_err(unusable)?);
    generated(case).map_err(unusable)
}

/// What CubeCL makes of it for a card, in f32 at sizes that take vectors.
#[cfg(any(feature = "wgpu", feature = "cuda"))]
fn generated(case: &KernelCase) -> Result<(), String> {
    use kiln::DType;
    use kiln::check::kernels::Extents;
    use kiln::device::cube::{Arch, CudaCompiler};

    let source = case.cuda(&CudaCompiler::new(Arch::SM90A), Extents::Wide, DType::F32).map_err(|e| e.to_string())?;
    print_line(&format!("// ---- CUDA C++ for {}: what NVRTC compiles\n", source.arch));
    print_line(&source.code);
    Ok(())
}

#[cfg(not(any(feature = "wgpu", feature = "cuda")))]
fn generated(_: &KernelCase) -> Result<(), String> {
    Ok(())
}

/// The `#[cube]` function as formatted Rust.
fn source(case: &KernelCase) -> Result<String, String> {
    Kernel::of(&case.region).map_err(|e| format!("`{}` has no kernel: {e}", case.name))?;
    let tokens = emit::kernel(&case.region, &case.name).map_err(|e| e.to_string())?;
    let file = syn::parse2(tokens).map_err(|e| e.to_string())?;
    Ok(prettyplease::unparse(&file))
}

/// Compiles every kernel of a run, with a bar.
fn warm(args: &KernelsArgs) -> Result<(), Failure> {
    let config = args.train.resolve()?;
    let begin = Instant::now();
    let mut trainer = train::session(&config)?;
    let target = trainer.target().clone();
    train::say_cache_note(&target);
    let mut progress = None;
    trainer.warm(|done, all| {
        let progress = progress.get_or_insert_with(|| Progress::new(Style::of_environment(), all as u64, 0));
        progress.advance(done as u64);
    })?;
    if let Some(progress) = progress {
        progress.finish();
    }
    let seconds = begin.elapsed().as_secs_f64();
    let compiled = target.compiled_kernels();
    print_note(&format!(
        "{}: {compiled} kernels compiled in {seconds:.1} s; the others were in the cache",
        target.name()
    ));
    Ok(())
}
