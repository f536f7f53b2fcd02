//! NVIDIA cards. CubeCL makes the code of kernels (`cube::CudaCompiler`); memory, the stream, launches and the vendor's products are
//! Kiln's own, so that each is ordered with the others and each failure is seen. Driver, compiler and headers are looked for at run time:
//! executables start without them.
//!
//! Reading order: [`open`] → `card` (what the driver says of a card) → `server` (memory, copies, launches) → `compiler` (NVRTC) →
//! `products` (cuBLASLt) → `graph` (launches that are replayed).

mod card;
mod compiler;
mod gate;
mod graph;
mod products;
mod server;
mod staging;

pub use card::{Card, devices};
pub use server::Allocation;

use super::cube::{CUDA_SHAPE, CubeDevice, CubeError, Found, cuda_profile, enable_cache};
use compiler::Compiler;
use server::CudaServer;

/// Opens card `index`.
///
/// # Errors
/// [`CubeError`] without a driver or that card, or where kernels cannot be compiled; it says what to install.
pub fn open(index: usize) -> Result<CubeDevice, CubeError> {
    if index >= devices() {
        return Err(CubeError::NoAdapter("CUDA"));
    }
    let card = Card::of(index)?;
    let compiler = Compiler::find()?;
    let arch = card.arch()?;
    // A missing library, missing headers or a compiler newer than the driver is told before the first kernel is.
    card.try_to_load(&compiler.probe(arch.name())?, &compiler.version)?;
    let identity = card.identity();
    let cache = enable_cache(&identity);
    let (properties, target) = cuda_profile(arch, card.processors, card.memory);
    let capacity = Some(card.free_memory()?);
    let server = Box::new(CudaServer::new(card, arch, compiler, cache)?);
    Ok(CubeDevice::new(Found { server, properties, target, shape: CUDA_SHAPE, capacity, identity, cache }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_driver_there_is_no_card() {
        if devices() == 0 {
            let error = open(0).map(|_| ()).expect_err("no card");
            assert_eq!(error, CubeError::NoAdapter("CUDA"));
        }
    }
}
