//! What a CubeCL device refuses, and what it failed at: what CubeCL itself would answer with zeros, a log line or a panic of its server.

use kiln_compiler::fuse::kernel::KernelError;
use thiserror::Error;

/// Why a device could not be opened or a launch was refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum CubeError {
    /// No driver or no adapter.
    #[error("no {0} adapter: its driver is not installed, or it shows no device")]
    NoAdapter(&'static str),
    /// The compiler of kernels is not there, or its code does not load.
    #[error("kernels cannot be compiled here: {0}")]
    Compiler(String),
    /// A region that kernels cannot express.
    #[error("kernel `{kernel}`: {error}")]
    Region {
        /// Name of the kernel.
        kernel: String,
        /// Why.
        error: KernelError,
    },
    /// The body of a kernel panicked while it was built.
    #[error("kernel `{kernel}` could not be built: {message}")]
    Build {
        /// Name of the kernel.
        kernel: String,
        /// What it said.
        message: String,
    },
    /// Two bodies of one name and hash.
    #[error(
        "kernel `{kernel}`: another body of the same name and hash is in use; build all crates with one version of Kiln"
    )]
    Body {
        /// Name of the kernel.
        kernel: String,
    },
    /// A limit of the device.
    #[error("kernel `{kernel}` needs {what} {needed}, the device allows {allowed}")]
    Limit {
        /// Name of the kernel.
        kernel: String,
        /// Which limit.
        what: &'static str,
        /// What the kernel needs.
        needed: u64,
        /// What the device has.
        allowed: u64,
    },
    /// An element type that the device does not store.
    #[error("kernel `{kernel}` stores {ty}, which the device does not")]
    Type {
        /// Name of the kernel.
        kernel: String,
        /// The type.
        ty: String,
    },
    /// A buffer at an offset that the device cannot bind.
    #[error("kernel `{kernel}`: buffer {buffer} begins at byte {offset}, which is no multiple of {alignment}")]
    Alignment {
        /// Name of the kernel.
        kernel: String,
        /// Position in the arguments.
        buffer: usize,
        /// Offset in bytes.
        offset: u64,
        /// What the device needs.
        alignment: u64,
    },
    /// A buffer that does not hold what the kernel reads or writes.
    #[error("kernel `{kernel}`: buffer {buffer} has {got}, the kernel needs {needed}")]
    Buffer {
        /// Name of the kernel.
        kernel: String,
        /// Position in the arguments.
        buffer: usize,
        /// What it has.
        got: String,
        /// What is needed.
        needed: String,
    },
    /// The number of arguments is wrong.
    #[error("kernel `{kernel}` takes {needed} {what}, {got} were given")]
    Arguments {
        /// Name of the kernel.
        kernel: String,
        /// Kind of argument.
        what: &'static str,
        /// How many are needed.
        needed: usize,
        /// How many were given.
        got: usize,
    },
    /// An operation without a kernel.
    #[error("`{operation}` has no kernel on this device; `--device host` has one")]
    Operation {
        /// The operation.
        operation: String,
    },
    /// A scalar that linking should have made a number.
    #[error("kernel `{kernel}`: scalar {value} is no number")]
    Scalar {
        /// Name of the kernel.
        kernel: String,
        /// What it is.
        value: String,
    },
    /// The device reported a failure.
    #[error("the device failed: {0}")]
    Failed(String),
    /// The device failed earlier; what it holds since then is not to be trusted.
    #[error("the device has failed before: {0}")]
    Poisoned(String),
}
