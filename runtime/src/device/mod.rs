//! Devices: each holds one arena and runs whole plans over it.
//!
//! In: a [`Job`], plans without places. Out: a [`Device`], whose unit is the schedule – no caller ever sees a single launch. [`Target`] says
//! which device; everything below it differs, everything above it is the same code.

#[cfg(any(feature = "wgpu", feature = "cuda"))]
pub mod cube;
#[cfg(feature = "cuda")]
pub mod cuda;
pub mod host;
#[cfg(feature = "wgpu")]
pub mod wgpu;

use crate::exec::comm::Member;
use crate::exec::inspect::Inspection;
use crate::exec::{HostInput, Job, Mode, Placed, Run, Slot};
use crate::explain::bytes as shown;
use crate::optim::{AdamWStep, SgdStep};
use crate::plan::Memory;
use crate::profile::Recording;
use crate::user_op::HostOnly;
use std::fmt;
#[cfg(any(feature = "wgpu", feature = "cuda"))]
use std::sync::Arc;
use std::time::Duration;

/// One device with its arena and the plans of one rank.
///
/// Calls follow each other in the order in which they are made; those that return values wait for all before them, others need not.
pub trait Device: Send {
    /// The plans, and where everything lies.
    fn placed(&self) -> &Placed;

    /// Bytes that the session holds on the device: the arena, and tables that kernels read.
    fn bytes(&self) -> usize {
        self.placed().layout.total
    }

    /// Copies values in, rounded to the slot's type.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    ///
    /// # Panics
    /// If the lengths differ, or ids are written to floats.
    fn write(&mut self, to: Slot, values: HostInput<'_>) -> Result<(), DeviceError>;

    /// Copies floats out.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    ///
    /// # Panics
    /// If the lengths differ.
    fn read(&self, from: Slot, out: &mut [f32]) -> Result<(), DeviceError>;

    /// Runs all steps of a plan.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn run(&mut self, mode: Mode, run: Run) -> Result<(), DeviceError>;

    /// Runs all steps of a plan and finds the first one whose result is not finite: its number and the value's name.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn first_non_finite(&mut self, mode: Mode, run: Run) -> Result<Option<(usize, String)>, DeviceError>;

    /// Writes every shadow from its master.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn write_shadows(&mut self) -> Result<(), DeviceError>;

    /// Sums of squares of the gradients, by a fixed tree: of parameters that all ranks hold, and of this rank's parts.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn gradient_squares(&mut self) -> Result<(f64, f64), DeviceError>;

    /// Whether all gradients are finite.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn gradients_finite(&mut self) -> Result<bool, DeviceError>;

    /// One optimizer step over all trained parameters, and their shadows.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn update(&mut self, update: &Update) -> Result<(), DeviceError>;

    /// Sums the gradients over the ranks of a group.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn reduce_gradients(&mut self, over: &Member) -> Result<(), DeviceError>;

    /// What has been copied between the host and this device so far.
    fn copied(&self) -> Copied;

    /// What inspected runs showed; `None` if the device does not inspect.
    fn inspection(&self) -> Option<&Inspection>;

    /// Compiles every kernel of every plan and of the step's end, before a first step does it one by one; `on_step` gets the number of
    /// launches that are done and of all. Weights and moments stay as they are, gradients do not.
    ///
    /// # Errors
    /// [`DeviceError`] names the step whose kernel does not compile.
    fn warm(&mut self, end: Option<&StepEnd>, on_step: &mut dyn FnMut(usize, usize)) -> Result<(), DeviceError>;

    /// How long each step of a plan takes on the device, in order: launched once untimed, then `repeats` times between two waits, of which
    /// the mean is given. Values are those of no run: a step that adds to its result adds again.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn time_steps(&mut self, mode: Mode, run: Run, repeats: usize) -> Result<Vec<Duration>, DeviceError>;

    /// From now on the device records when it is busy with what; false if it cannot.
    fn record(&mut self) -> bool {
        false
    }

    /// Ends a recording and gives it; `None` if there is none.
    fn recorded(&mut self) -> Option<Recording> {
        None
    }

    /// Whole steps without waiting; `None` on a device that has finished whenever a call returns.
    fn queue(&mut self) -> Option<&mut dyn Queue> {
        None
    }
}

/// Training steps that follow each other on a device without the host: loss, norm and clipping stay there until somebody asks.
pub trait Queue {
    /// Adds loss and targets of the micro-batch that has just run to the report of the step.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn collect(&mut self, first: bool) -> Result<(), DeviceError>;

    /// Norm, clipping and update. From a step on whose loss is not finite or that has no target, weights stay as they are.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn end_step(&mut self, end: &StepEnd) -> Result<(), DeviceError>;

    /// Waits, and reads the report of the last step.
    ///
    /// # Errors
    /// [`DeviceError`] if the device has failed.
    fn report(&mut self) -> Result<Report, DeviceError>;

    /// Lets weights change again after a failed step was reported.
    ///
    /// # Errors
    /// [`DeviceError`] if the device fails.
    fn forgive(&mut self) -> Result<(), DeviceError>;
}

/// How a queued step ends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepEnd {
    /// Where backward started.
    pub loss_scale: f32,
    /// Largest norm of the gradient of the mean loss.
    pub max_norm: Option<f64>,
    /// A gradient that is not finite skips the update.
    pub skips_overflow: bool,
    /// The optimizer; the factor of the gradient is the device's to work out.
    pub update: Update,
}

/// What a queued step has left on the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Report {
    /// Sum of the loss.
    pub loss: f64,
    /// Counted targets.
    pub count: f64,
    /// Sum of squares of the gradient, as backward left it; NaN if an element is not finite.
    pub squares: f64,
    /// Whether weights were updated.
    pub updated: bool,
    /// Steps since the first whose loss was not finite or that had no target, that one counted; 0 if all is well.
    pub failed_steps: u64,
}

/// One optimizer step as devices take it: scalars of the group that decays, and of the other.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Update {
    /// Adam with decoupled weight decay.
    AdamW([AdamWStep; 2]),
    /// Momentum.
    Sgd([SgdStep; 2]),
}

impl Update {
    /// Where the scalars of a group stand.
    pub fn group(decays: bool) -> usize {
        usize::from(!decays)
    }
}

/// Bytes copied between the host and a device, counted where they are copied. The host's own device copies none.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// To the device.
    pub h2d: u64,
    /// From the device.
    pub d2h: u64,
}

/// Where a session computes. Cheap to clone; sessions on one target share the opened device, each with its own arena.
#[derive(Clone, Debug, Default)]
pub enum Target {
    /// The CPU.
    #[default]
    Host,
    /// A GPU: an NVIDIA card, or another through Vulkan, Metal, DX12 or WebGPU.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    Gpu(Arc<cube::CubeDevice>),
}

impl Target {
    /// The best device of this machine: an NVIDIA card, a hardware adapter of wgpu, the CPU. A software driver is never chosen.
    pub fn auto() -> Target {
        #[cfg(feature = "cuda")]
        if let Ok(device) = cuda::open(0) {
            return Target::Gpu(Arc::new(device));
        }
        #[cfg(feature = "wgpu")]
        if wgpu::adapter().is_ok_and(|a| !a.is_software)
            && let Ok(device) = wgpu::open()
        {
            return Target::Gpu(Arc::new(device));
        }
        Target::Host
    }

    /// The device called `auto`, `host`, `wgpu` or `cuda`, as on a command line.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] if this machine or this executable has no such device.
    pub fn named(name: &str) -> Result<Target, DeviceError> {
        match name {
            "auto" => Ok(Target::auto()),
            "host" => Ok(Target::Host),
            #[cfg(feature = "wgpu")]
            "wgpu" => Target::wgpu(),
            #[cfg(feature = "cuda")]
            "cuda" => Target::cuda(0),
            #[cfg(not(feature = "wgpu"))]
            "wgpu" => Err(DeviceError::not_compiled(name)),
            #[cfg(not(feature = "cuda"))]
            "cuda" => Err(DeviceError::not_compiled(name)),
            other => {
                Err(DeviceError::Unavailable(format!("`{other}` is no device: they are auto, host, wgpu and cuda")))
            }
        }
    }

    /// The best adapter of wgpu.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] without a driver or an adapter.
    #[cfg(feature = "wgpu")]
    pub fn wgpu() -> Result<Target, DeviceError> {
        Ok(Target::Gpu(Arc::new(wgpu::open().map_err(DeviceError::unavailable)?)))
    }

    /// NVIDIA card `index`.
    ///
    /// # Errors
    /// [`DeviceError::Unavailable`] without a driver or that card, or where kernels cannot be compiled; it says what to install.
    #[cfg(feature = "cuda")]
    pub fn cuda(index: usize) -> Result<Target, DeviceError> {
        Ok(Target::Gpu(Arc::new(cuda::open(index).map_err(DeviceError::unavailable)?)))
    }

    /// `host`, `wgpu` or `cuda`.
    pub fn name(&self) -> &'static str {
        match self {
            Target::Host => "host",
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(device) => device.name(),
        }
    }

    /// Name and driver, as the device describes itself; the CPU is `host`.
    pub fn identity(&self) -> &str {
        match self {
            Target::Host => "host",
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(device) => device.identity(),
        }
    }

    /// Seconds of a copy of `elements` f32 within the device's memory, in one piece: the mean of `repeats`. None on the host.
    ///
    /// # Errors
    /// [`DeviceError`] if the device cannot hold both pieces, or fails.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub fn time_copy(&self, elements: usize, repeats: usize) -> Result<Option<Duration>, DeviceError> {
        match self {
            Target::Host => Ok(None),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(device) => device.time_copy(elements, repeats).map(Some).map_err(DeviceError::launch),
        }
    }

    /// Kernels that sessions on this target have compiled, rather than found in memory or on disk. The host compiles none.
    pub fn compiled_kernels(&self) -> u64 {
        match self {
            Target::Host => 0,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(device) => device.compiled(),
        }
    }

    /// What happened to an older kernel cache when the target was opened: damaged, or of another version.
    pub fn cache_note(&self) -> Option<&str> {
        match self {
            Target::Host => None,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(device) => device.cache_note(),
        }
    }

    /// How it stores tensors.
    pub fn memory(&self) -> Memory {
        match self {
            Target::Host => Memory::HOST,
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(device) => device.memory(),
        }
    }

    /// Makes a kernel for every step, then allocates.
    ///
    /// # Errors
    /// [`DeviceError`] names the step that has no kernel, or who needs how much memory.
    pub fn open(&self, job: Job) -> Result<Box<dyn Device>, DeviceError> {
        match self {
            Target::Host => Ok(Box::new(host::HostDevice::open(job)?)),
            #[cfg(any(feature = "wgpu", feature = "cuda"))]
            Target::Gpu(device) => Ok(Box::new(cube::Schedule::open(device.clone(), job)?)),
        }
    }
}

/// Why a device cannot be opened, or what went wrong on it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// No memory.
    #[error(transparent)]
    Memory(#[from] OutOfMemory),
    /// A step that the host cannot run.
    #[error(transparent)]
    Host(#[from] host::step::StepError),
    /// The system refuses threads.
    #[error("K0802: cannot start worker threads: {0}")]
    Threads(std::io::Error),
    /// No driver or no such device.
    #[error("K0831: {0}; or use `--device host`, which computes on the CPU")]
    Unavailable(String),
    /// A step that the device refuses, at its launch or before.
    #[error("K0832: {at}: {why} (layer `{path}`)")]
    Refused {
        /// `file:line` of the operation.
        at: String,
        /// Layer instance.
        path: String,
        /// Which kernel, and why.
        why: String,
    },
    /// Something that belongs to no step of a plan: the optimizer, a copy.
    #[error("K0832: {0}")]
    Launch(String),
    /// A tensor that no piece of the device's memory holds.
    #[error(
        "K0833: `{name}` has {}, the device binds at most {} at once; use a smaller batch, sequence or vocabulary", shown(*bytes), shown(*allowed)
    )]
    TooLarge {
        /// Name of the tensor.
        name: String,
        /// Its size.
        bytes: usize,
        /// Largest piece of memory.
        allowed: usize,
    },
    /// The user's own operation, which only the host runs.
    #[error(transparent)]
    HostOnly(#[from] HostOnly),
    /// What this device does not do.
    #[error("K0834: device `{device}` {what}")]
    Unsupported {
        /// Name of the device.
        device: &'static str,
        /// What, and what to do instead.
        what: String,
    },
    /// The device failed while it ran.
    #[error(
        "K0835: the device failed: {0}; nothing computed since the last saved state is to be trusted, start again with `--resume`"
    )]
    Failed(String),
}

impl DeviceError {
    #[cfg(not(all(feature = "wgpu", feature = "cuda")))]
    fn not_compiled(feature: &str) -> DeviceError {
        let why = format!("feature `{feature}` is not compiled in: build with `--features {feature}`");
        DeviceError::Unavailable(why)
    }

    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn launch(error: cube::CubeError) -> DeviceError {
        DeviceError::Launch(error.to_string())
    }

    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    fn unavailable(error: cube::CubeError) -> DeviceError {
        DeviceError::Unavailable(error.to_string())
    }
}

/// The machine does not have the plan's bytes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "K0801: out of memory: the plan needs {}, {}; most of it are {}; use a smaller batch, sequence or model, or `#[checkpoint]`",
    shown(*bytes), available.map_or("the system refuses them".to_owned(), |a| format!("this process can have {}", shown(a))), Owners(owners)
)]
pub struct OutOfMemory {
    /// Bytes asked for.
    pub bytes: usize,
    /// Bytes that the process can have, where that is known to be less.
    pub available: Option<usize>,
    /// The five largest owners.
    pub owners: Vec<(String, usize)>,
}

/// Owners that the error names.
const NAMED_OWNERS: usize = 5;

impl OutOfMemory {
    /// The error of `owners`, largest first, who need `bytes`.
    pub fn new(bytes: usize, available: Option<usize>, mut owners: Vec<(String, usize)>) -> OutOfMemory {
        owners.truncate(NAMED_OWNERS);
        OutOfMemory { bytes, available, owners }
    }
}

struct Owners<'a>(&'a [(String, usize)]);

impl fmt::Display for Owners<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let owners: Vec<String> = self.0.iter().map(|(name, n)| format!("{name} ({})", shown(*n))).collect();
        f.write_str(&owners.join(", "))
    }
}

/// The time of one of `repeats`.
fn mean(all: Duration, repeats: usize) -> Duration {
    all / u32::try_from(repeats.max(1)).unwrap_or(u32::MAX)
}

/// The most bytes that this process can ever have, where the system says so: physical memory with swap, and the limit of the control
/// group. A system that promises more memory than it has (Linux does) kills the process later instead of refusing now.
fn machine_memory() -> Option<usize> {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let kib = |text: &str, key: &str| -> Option<usize> {
        let line = text.lines().find_map(|l| l.strip_prefix(key))?;
        line.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let physical = read("/proc/meminfo").and_then(|t| Some((kib(&t, "MemTotal:")? + kib(&t, "SwapTotal:")?) * 1024));
    let group = ["/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"]
        .iter()
        .filter_map(|path| read(path)?.trim().parse().ok())
        .min();
    physical.into_iter().chain(group).min()
}
