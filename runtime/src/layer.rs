//! What `#[layer]` emits for the runtime: signatures that parents check in constants, and definitions that linking reads.

/// A layer type: the struct beside an annotated function.
pub trait Layer: Sized + 'static {
    /// Types at its boundary, read by parents at compile time.
    const SIG: Sig;
    /// Everything that linking needs.
    const DEF: &'static LayerDef;
}

/// An axis: a unit type made by `axes!`.
pub trait Axis: Copy + 'static {
    /// Its name; two axes are the same if their names are.
    const NAME: &'static str;
}

/// The boundary of a layer, structured so that `const` code can read it.
#[derive(Clone, Copy, Debug)]
pub struct Sig {
    /// Name of the function.
    pub name: &'static str,
    /// Its own check failed: parents accept it, so that one mistake gives one error.
    pub poisoned: bool,
    /// Activation arguments in order.
    pub inputs: &'static [ArgSig],
    /// What it returns.
    pub output: KindSig,
    /// Its own parameters.
    pub params: &'static [ArgSig],
    /// Its host values, which are no parameters.
    pub config: &'static [&'static str],
    /// Its children: name and signature, for `child.grandchild.param`.
    pub subs: &'static [(&'static str, &'static Sig)],
}

/// One argument of a signature.
#[derive(Clone, Copy, Debug)]
pub struct ArgSig {
    /// Its name.
    pub name: &'static str,
    /// Its kind and axes.
    pub kind: KindSig,
}

/// Kinds of values at a boundary.
#[derive(Clone, Copy, Debug)]
pub enum KindSig {
    /// Float tensor over these axes.
    Tensor(&'static [&'static str]),
    /// Integer tensor over these axes.
    Ids(&'static [&'static str]),
    /// Rotary positions.
    Rope(&'static str, &'static str),
    /// Unreduced loss.
    Loss,
    /// Several tensors.
    Tuple(&'static [&'static [&'static str]]),
}

/// One layer type as linking sees it.
pub struct LayerDef {
    /// Name of the function, such as `swiglu`.
    pub name: &'static str,
    /// Name of the type, such as `Swiglu`.
    pub type_name: &'static str,
    /// Module path.
    pub module: &'static str,
    /// Its IR in text form; for a traced layer only the header (its body is recorded by `record`).
    pub ir: &'static str,
    /// Types at its boundary.
    pub sig: &'static Sig,
    /// Definitions of its children, in the order of the IR's `sub` arguments.
    pub subs: &'static [&'static LayerDef],
    /// Operations of the user's own that its body calls; empty for a traced layer.
    pub ops: &'static [crate::user_op::OpUse],
    /// Kernels that its macro emitted.
    pub kernels: &'static [KernelDef],
    /// Records the body on tracing tensors (`#[layer(trace)]`, and every layer in the test that trace and parse agree).
    pub record: Option<fn(&mut crate::tensor::Recorder)>,
}

/// One emitted kernel.
#[derive(Clone, Copy, Debug)]
pub struct KernelDef {
    /// Structural hash of its region ([`kiln_compiler::fuse::Region::hash`]).
    pub hash: u64,
    /// Readable name, such as `block_fwd_3_add_rms_norm`.
    pub name: &'static str,
    /// Builds the kernel with CubeCL; absent when no GPU feature is compiled in.
    #[cfg(any(feature = "wgpu", feature = "cuda"))]
    pub define: crate::device::cube::DefineFn,
}

/// Registers a layer for tools; emitted by `#[layer]`.
pub struct LayerEntry(pub &'static LayerDef);

inventory::collect!(LayerEntry);

/// Layers of all linked crates, for tools that check or list every layer. Planning starts at a root type and never reads this.
pub fn layers() -> impl Iterator<Item = &'static LayerDef> {
    inventory::iter::<LayerEntry>.into_iter().map(|entry| entry.0)
}
