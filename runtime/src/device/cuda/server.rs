//! Memory, copies and launches of one card, on one stream.

use super::card::{Card, failed};
use super::compiler::Compiler;
use super::gate::{Entered, Gate};
use super::graph::Graph;
use super::products::Products;
use super::staging::Staging;
use crate::device::cube::{
    Allocation as Piece, Arch, CubeError, KernelCache, Launched, MatrixProduct, Memory, Product, Recording, Server,
    Spec, Work, cuda_source,
};
use cudarc::driver::{result, sys};
use std::collections::HashMap;
use std::ffi::{CString, c_void};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use xxhash_rust::xxh3::xxh3_64;

/// The stream of a card, on which everything is ordered.
#[derive(Debug)]
pub struct Stream {
    /// The card.
    pub card: Card,
    /// The driver's handle.
    pub handle: sys::CUstream,
    gate: Gate,
}

// SAFETY: the driver allows every call on a stream from every thread that has made its context current.
unsafe impl Send for Stream {}
// SAFETY: as above.
unsafe impl Sync for Stream {}

impl Stream {
    fn new(card: Card) -> Result<Stream, CubeError> {
        card.bind()?;
        let handle = result::stream::create(result::stream::StreamKind::NonBlocking).map_err(failed)?;
        Ok(Stream { card, handle, gate: Gate::default() })
    }

    /// Whoever enqueues something holds this meanwhile, so that no other thread captures it.
    pub fn enter(&self) -> Option<Entered<'_>> {
        self.gate.enter()
    }

    /// Runs `work` while nobody else enqueues.
    pub fn alone<T>(&self, work: impl FnOnce() -> T) -> T {
        self.gate.alone(work)
    }

    /// Waits for all work.
    fn wait(&self) -> Result<(), CubeError> {
        let _entered = self.enter();
        self.card.bind()?;
        // SAFETY: the stream lives as long as this value.
        unsafe { result::stream::synchronize(self.handle) }.map_err(failed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if self.wait().is_ok() {
            // SAFETY: it was created once, and nothing runs on it.
            let _ = unsafe { result::stream::destroy(self.handle) };
        }
    }
}

/// Memory of a card, given back in the order of its stream.
#[derive(Debug)]
pub struct Allocation {
    /// Where it begins.
    pub at: sys::CUdeviceptr,
    stream: Arc<Stream>,
}

impl Allocation {
    /// Memory that is not initialised.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(stream: &Arc<Stream>, bytes: usize) -> Result<Allocation, CubeError> {
        let _entered = stream.enter();
        stream.card.bind()?;
        // SAFETY: it is given back once, when this value is dropped.
        let at = match stream.card.has_pools {
            true => unsafe { result::malloc_async(stream.handle, bytes) },
            false => unsafe { result::malloc_sync(bytes) },
        };
        Ok(Allocation { at: at.map_err(failed)?, stream: stream.clone() })
    }
}

impl Drop for Allocation {
    fn drop(&mut self) {
        let _entered = self.stream.enter();
        if self.stream.card.bind().is_ok() {
            // SAFETY: it was allocated once; work that uses it was enqueued before.
            let _ = match self.stream.card.has_pools {
                true => unsafe { result::free_async(self.at, self.stream.handle) },
                false => unsafe { result::free_sync(self.at) },
            };
        }
    }
}

/// Address of a piece of memory on the card.
pub fn address(memory: &Memory) -> sys::CUdeviceptr {
    match memory.allocation() {
        Piece::Cuda(whole) => whole.at + memory.offset() as u64,
        Piece::Cubecl(_) => panic!("memory of another device"),
    }
}

/// A kernel that the driver has loaded. Its module is kept for the life of the process.
#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    shared_bytes: u32,
}

/// A function with what it was made for, beside its body.
struct Loaded {
    spec: Spec,
    /// Integer arguments that are constants of its code.
    sizes: Vec<usize>,
    function: Function,
}

/// What launches and copies change.
struct State {
    /// What the driver has loaded, by the content of the body.
    functions: HashMap<u64, Vec<Loaded>>,
    staging: Staging,
}

// SAFETY: functions belong to the context, not to a thread.
unsafe impl Send for State {}

/// A card's server.
pub struct CudaServer {
    state: Mutex<State>,
    products: Option<Arc<Products>>,
    stream: Arc<Stream>,
    arch: Arch,
    compiler: Compiler,
    cache: Option<&'static KernelCache>,
}

impl CudaServer {
    /// Opens a stream, and the vendor's products where they are installed.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(
        card: Card,
        arch: Arch,
        compiler: Compiler,
        cache: Option<&'static KernelCache>,
    ) -> Result<CudaServer, CubeError> {
        let stream = Arc::new(Stream::new(card)?);
        let state = State { functions: HashMap::new(), staging: Staging::new()? };
        let products = Products::find(&stream)?.map(Arc::new);
        Ok(CudaServer { state: Mutex::new(state), products, stream, arch, compiler, cache })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The function of a launch: known, in the cache, or compiled.
    fn function(&self, state: &mut State, launch: &Launched<'_>) -> Result<Function, CubeError> {
        let kernel = &launch.kernel;
        // Sizes and strides of a region are those of its plan: as constants, divisions by them cost next to nothing.
        let sizes = if kernel.spec.is_region() { launch.indices } else { &[] };
        let known = state.functions.entry(kernel.content).or_default();
        if let Some(found) = known.iter().find(|l| l.sizes == sizes && l.spec == kernel.spec) {
            return Ok(found.function);
        }
        let mut source = cuda_source(&kernel.profile, &kernel.spec, kernel.define, self.arch)?;
        source.bind_sizes(sizes);
        let build = |why: String| CubeError::Build { kernel: source.name.clone(), message: why };
        let options = source.options();
        let text = format!("{}\n{options:?}\n{}", self.compiler.version, source.code);
        let key = xxh3_64(text.as_bytes());
        let code = match self.cache.and_then(|c| c.read(key)) {
            Some(code) => code,
            None => {
                let code = self.compiler.compile(&source.code, options).map_err(build)?;
                kernel.compiled.fetch_add(1, Ordering::Relaxed);
                if let Some(cache) = self.cache {
                    cache.write(key, &code);
                }
                code
            }
        };
        let function = load(&code, &source.name, source.shared_bytes)?;
        known.push(Loaded { spec: kernel.spec.clone(), sizes: sizes.to_vec(), function });
        Ok(function)
    }
}

/// Loads machine code and finds its entry point.
fn load(code: &[u8], name: &str, shared_bytes: usize) -> Result<Function, CubeError> {
    use sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as MAX_SHARED;
    let name = CString::new(name).map_err(|e| CubeError::Failed(e.to_string()))?;
    // SAFETY: the code is NVRTC's, whole (the cache compares hashes), and says itself how long it is; the module is never unloaded.
    let handle = unsafe {
        let module = result::module::load_data(code.as_ptr().cast()).map_err(failed)?;
        result::module::get_function(module, name).map_err(failed)?
    };
    if shared_bytes > 0 {
        // SAFETY: the function was just loaded.
        unsafe { result::function::set_function_attribute(handle, MAX_SHARED, shared_bytes as i32) }.map_err(failed)?;
    }
    Ok(Function { handle, shared_bytes: shared_bytes as u32 })
}

impl Server for CudaServer {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn allocate(&self, bytes: usize) -> Result<Memory, CubeError> {
        Ok(Memory::whole(Piece::Cuda(Arc::new(Allocation::new(&self.stream, bytes)?)), bytes))
    }

    fn copy_in(&self, bytes: &[u8]) -> Result<Memory, CubeError> {
        let memory = self.allocate(bytes.len().next_multiple_of(size_of::<u32>()).max(size_of::<u32>()))?;
        let _entered = self.stream.enter();
        self.state().staging.copy(bytes, address(&memory), self.stream.handle)?;
        Ok(memory)
    }

    fn copy_out(&self, memory: &Memory) -> Result<Vec<u8>, CubeError> {
        let mut bytes = vec![0; memory.bytes()];
        {
            let _entered = self.stream.enter();
            self.stream.card.bind()?;
            // SAFETY: the memory holds as many bytes, which are waited for before they are read.
            unsafe { result::memcpy_dtoh_async(&mut bytes, address(memory), self.stream.handle) }.map_err(failed)?;
        }
        self.stream.wait()?;
        Ok(bytes)
    }

    fn wait(&self) -> Result<(), CubeError> {
        self.stream.wait()
    }

    fn launch(&self, launch: Launched<'_>) -> Result<(), CubeError> {
        let _entered = self.stream.enter();
        self.stream.card.bind()?;
        let mut state = self.state();
        let function = self.function(&mut state, &launch)?;
        let information = launch.information();
        let mut addresses: Vec<sys::CUdeviceptr> = launch.buffers.iter().map(|b| address(b.memory)).collect();
        let mut arguments: Vec<*mut c_void> = addresses.iter_mut().map(|a| std::ptr::from_mut(a).cast()).collect();
        arguments.push(information.as_ptr().cast_mut().cast());
        let (x, y) = launch.grid;
        let units = (launch.kernel.spec.cube_dim, 1, 1);
        // SAFETY: the arguments are those that the kernel's body has registered, in its order, and the information that its code declares;
        // the device's checks have compared them. The driver copies them before it returns.
        unsafe {
            result::launch_kernel(
                function.handle,
                (x, y, 1),
                units,
                function.shared_bytes,
                self.stream.handle,
                &mut arguments,
            )
        }
        .map_err(failed)
    }

    fn record(&self, work: Work<'_>) -> Result<Option<Box<dyn Recording>>, CubeError> {
        Graph::captured(&self.stream, work).map(|graph| Some(Box::new(graph) as Box<dyn Recording>))
    }

    fn product(&self, product: &MatrixProduct) -> Result<Option<Arc<dyn Product>>, CubeError> {
        match &self.products {
            Some(products) => products.plan(product),
            None => Ok(None),
        }
    }
}

impl Drop for CudaServer {
    fn drop(&mut self) {
        // What the state holds is given back in this context.
        let _ = self.stream.wait();
    }
}
