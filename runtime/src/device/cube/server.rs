//! What a [`super::CubeDevice`] asks of a device: memory, copies, launches, waiting, all in one order. CubeCL's own servers are one kind
//! ([`CubeclServer`]); cards of NVIDIA have another (`device/cuda`), which takes only the compiler from CubeCL.

use super::memory::{Allocation, Memory};
use super::product::MatrixProduct;
use super::profile::{self, Profile};
use super::{Bound, CubeError, DefineFn, Spec};
use cubecl::prelude::*;
use cubecl::stream_id::StreamId;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Runs what it is given in the order in which it is given. Errors are what its driver says; a [`super::CubeDevice`] that was told one
/// asks for nothing more.
pub trait Server: Send + Sync {
    /// `wgpu` or `cuda`.
    fn name(&self) -> &'static str;

    /// Memory that is not initialised. Some servers cannot tell whether they have it.
    ///
    /// # Errors
    /// What the driver says.
    fn allocate(&self, bytes: usize) -> Result<Memory, CubeError>;

    /// Fresh memory with these bytes.
    ///
    /// # Errors
    /// What the driver says.
    fn copy_in(&self, bytes: &[u8]) -> Result<Memory, CubeError>;

    /// The bytes of some memory, after all work before.
    ///
    /// # Errors
    /// What the driver says.
    fn copy_out(&self, memory: &Memory) -> Result<Vec<u8>, CubeError>;

    /// Waits for all work.
    ///
    /// # Errors
    /// What the driver says about any of it.
    fn wait(&self) -> Result<(), CubeError>;

    /// Launches a kernel that the device's checks have passed.
    ///
    /// # Errors
    /// If it does not compile, or the driver refuses it.
    fn launch(&self, launch: Launched<'_>) -> Result<(), CubeError>;

    /// Keeps the launches that `work` asks for, without running them; none where the server cannot. Every kernel of them has run before.
    ///
    /// # Errors
    /// What `work` or the driver says.
    fn record(&self, _: Work<'_>) -> Result<Option<Box<dyn Recording>>, CubeError> {
        Ok(None)
    }

    /// How the vendor's library computes a product; none where there is no such library, or it has no way.
    ///
    /// # Errors
    /// What the library says.
    fn product(&self, _: &MatrixProduct) -> Result<Option<Arc<dyn Product>>, CubeError> {
        Ok(None)
    }
}

/// What asks for launches.
pub type Work<'a> = &'a mut dyn FnMut() -> Result<(), CubeError>;

/// Launches that were kept, to be asked for all at once.
pub trait Recording: Send {
    /// Enqueues them.
    ///
    /// # Errors
    /// What the driver says.
    fn replay(&self) -> Result<(), CubeError>;
}

/// A product that a library will compute.
pub trait Product: Send + Sync + std::fmt::Debug {
    /// Enqueues c = a·b, or c += a·b.
    ///
    /// # Errors
    /// What the library says.
    fn launch(&self, a: &Memory, b: &Memory, c: &Memory, accumulate: bool) -> Result<(), CubeError>;
}

/// A launch whose arguments fit its kernel.
pub struct Launched<'a> {
    pub(in crate::device) kernel: DynKernel,
    /// Cubes along x and y.
    pub(in crate::device) grid: (u32, u32),
    pub(in crate::device) buffers: &'a [Bound<'a>],
    pub(in crate::device) indices: &'a [usize],
    pub(in crate::device) scalars: &'a [f32],
}

impl Launched<'_> {
    /// Lengths of buffers, integers and numbers as the code of a kernel declares them, one after the other.
    #[cfg(feature = "cuda")]
    pub(in crate::device) fn information(&self) -> Vec<u64> {
        let mut info = cubecl::InfoBuilder::default();
        for b in self.buffers {
            let elements = |len: usize| (len / b.ty.vector_size().max(1)) as u64;
            let held = b.memory.bytes() / b.ty.storage_type().size();
            info.metadata.register_array(elements(held), elements(b.len), AddressType::U32);
        }
        // Positions are u32, as the kernels are written.
        self.indices.iter().for_each(|&i| info.scalars.push(i as u32));
        self.scalars.iter().for_each(|&x| info.scalars.push(x));
        info.finish(AddressType::U32).data
    }
}

/// One kernel for all: its specification, and the function that builds it.
pub struct DynKernel {
    pub(in crate::device) profile: Arc<Profile>,
    pub(in crate::device) spec: Spec,
    pub(in crate::device) define: DefineFn,
    /// Hash of the body, seeded by the device.
    pub(in crate::device) content: u64,
    /// Counts compilations.
    pub(in crate::device) compiled: Arc<AtomicU64>,
}

impl KernelMetadata for DynKernel {
    fn id(&self) -> KernelId {
        let settings = profile::settings(&self.spec);
        KernelId::new::<Self>()
            .address_type(settings.address_type)
            .cube_dim(settings.cube_dim)
            .info((self.content, self.spec.clone()))
    }

    fn address_type(&self) -> StorageType {
        profile::settings(&self.spec).address_type.unsigned_type()
    }
}

impl CubeKernel for DynKernel {
    /// Called for every kernel that no cache holds.
    fn define(&self) -> KernelDefinition {
        self.compiled.fetch_add(1, Ordering::Relaxed);
        self.profile.define(&self.spec, self.define)
    }
}

/// A server of CubeCL. It answers nothing to a launch and only logs what fails on its thread, so everything was checked before.
pub struct CubeclServer<R: Runtime> {
    client: ComputeClient<R>,
}

impl<R: Runtime> CubeclServer<R> {
    /// Over an open client.
    pub fn new(mut client: ComputeClient<R>) -> Self {
        // SAFETY: all work of this client, from whichever thread, goes to one stream, so it runs in the order in which it is sent.
        unsafe { client.set_stream(StreamId::current()) };
        CubeclServer { client }
    }
}

/// CubeCL's handle of a piece.
fn handle(memory: &Memory) -> cubecl::server::Handle {
    match memory.allocation() {
        Allocation::Cubecl(whole) => {
            let rest = whole.size_in_used() as usize - memory.offset() - memory.bytes();
            whole.clone().offset_start(memory.offset() as u64).offset_end(rest as u64)
        }
        #[cfg(feature = "cuda")]
        Allocation::Cuda(_) => panic!("memory of another device"),
    }
}

fn whole(handle: cubecl::server::Handle) -> Memory {
    let bytes = handle.size_in_used() as usize;
    Memory::whole(Allocation::Cubecl(handle), bytes)
}

impl<R: Runtime> Server for CubeclServer<R> {
    fn name(&self) -> &'static str {
        "wgpu"
    }

    fn allocate(&self, bytes: usize) -> Result<Memory, CubeError> {
        Ok(whole(self.client.empty(bytes)))
    }

    fn copy_in(&self, bytes: &[u8]) -> Result<Memory, CubeError> {
        Ok(whole(self.client.create_from_slice(bytes)))
    }

    fn copy_out(&self, memory: &Memory) -> Result<Vec<u8>, CubeError> {
        let bytes = self.client.read_one(handle(memory)).map_err(|e| CubeError::Failed(e.to_string()))?;
        Ok(bytes[..memory.bytes()].to_vec())
    }

    fn wait(&self) -> Result<(), CubeError> {
        cubecl::future::block_on(self.client.sync()).map_err(|e| CubeError::Failed(e.to_string()))
    }

    fn launch(&self, launch: Launched<'_>) -> Result<(), CubeError> {
        let Launched { kernel, grid: (x, y), buffers, indices, scalars } = launch;
        let mut launcher = KernelLauncher::<R>::new(profile::settings(&kernel.spec));
        for b in buffers {
            // SAFETY: the preflight has checked that `len` elements of this type lie inside the memory.
            let array = unsafe { ArrayArg::from_raw_parts(handle(b.memory), b.len) };
            launcher.register_array(array, b.ty);
        }
        for &i in indices {
            <usize as LaunchArg>::register(i, &mut launcher);
        }
        for &s in scalars {
            launcher.register_scalar(s);
        }
        launcher.launch(CubeCount::Static(x, y, 1), kernel, &self.client);
        Ok(())
    }
}
