//! The library's kernels, those that are made from no region: what the code of each depends on, and how it is keyed and built.
//!
//! Launches get their kernels from here and from nowhere else, and so do tools that list, print or compile all of them
//! ([`library_kernels`]).

use super::{DefineFn, Profile, Spec};
use crate::kernels::library::{attention_mma, attention_tiled};
use crate::kernels::{Rounding, define_column_sum, library, training};
use kiln_compiler::ir::DType;
use std::fmt;
use std::slice::from_ref;

/// A kernel of the library with everything that changes its code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LibraryKernel {
    /// Second stage of a sum over rows.
    ColumnSum {
        /// Type of the sum.
        to: DType,
        /// Adds to it.
        accumulate: bool,
        /// Parts of a sum that units of a cube add beside each other.
        slices: usize,
    },
    /// Any product of two tensors, each unit apart.
    DotGeneral {
        /// Of a, b and c.
        types: [DType; 3],
        /// What sums are rounded to before they are stored.
        round: Option<DType>,
        /// Adds to c.
        accumulate: bool,
    },
    /// Any product of two tensors, through shared memory.
    DotGeneralTiled {
        /// Of a, b and c.
        types: [DType; 3],
        /// What sums are rounded to before they are stored.
        round: Option<DType>,
        /// Adds to c.
        accumulate: bool,
        /// Whether neighbours of a and of b lie along the contracted axes.
        along_k: [bool; 2],
    },
    /// Attention, forward.
    Attention {
        /// Of q, k, v and o.
        types: [DType; 4],
        /// What o is rounded to before it is stored.
        round: Option<DType>,
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// First walk of attention's derivative.
    AttentionQueries {
        /// Of q, of k and v, of o and ō, of q̄.
        types: [DType; 4],
        /// What q̄ is rounded to before it is stored.
        round: Option<DType>,
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// Second walk of attention's derivative.
    AttentionKeys {
        /// Of q, of k and v, of o and ō, of k̄ and v̄.
        types: [DType; 4],
        /// What k̄ and v̄ are rounded to before they are stored.
        rounds: [Option<DType>; 2],
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// Attention, forward, through shared memory.
    AttentionTiled {
        /// Of q, k, v and o.
        types: [DType; 4],
        /// What o is rounded to before it is stored.
        round: Option<DType>,
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// First walk of attention's derivative, through shared memory.
    AttentionQueriesTiled {
        /// Of q, of k and v, of o and ō, of q̄.
        types: [DType; 4],
        /// What q̄ is rounded to before it is stored.
        round: Option<DType>,
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// Second walk of attention's derivative, through shared memory.
    AttentionKeysTiled {
        /// Of q, of k and v, of o and ō, of k̄ and v̄.
        types: [DType; 4],
        /// What k̄ and v̄ are rounded to before they are stored.
        rounds: [Option<DType>; 2],
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// Attention, forward, on tensor cores.
    AttentionMma {
        /// Of q, k and v, each the same, and of o.
        types: [DType; 4],
        /// What o is rounded to before it is stored.
        round: Option<DType>,
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// First walk of attention's derivative, on tensor cores.
    AttentionQueriesMma {
        /// Of q, of k and v, of o and ō, each the same, and of q̄.
        types: [DType; 4],
        /// What q̄ is rounded to before it is stored.
        round: Option<DType>,
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// Second walk of attention's derivative, on tensor cores.
    AttentionKeysMma {
        /// Of q, of k and v, of o and ō, each the same, and of k̄ and v̄.
        types: [DType; 4],
        /// What k̄ and v̄ are rounded to before they are stored.
        rounds: [Option<DType>; 2],
        /// Size of a head.
        head: usize,
        /// Queries see no later key.
        causal: bool,
    },
    /// Losses of rows of logits.
    LossRows {
        /// Lanes of a vector.
        width: usize,
    },
    /// Losses of rows of logits, and at once their cotangents, rounded.
    LossRowsRounded {
        /// What cotangents are rounded to.
        to: DType,
        /// Lanes of a vector.
        width: usize,
    },
    /// Sum of the losses.
    LossSum,
    /// Logits to their cotangents, in place.
    LossGradient {
        /// Lanes of a vector.
        width: usize,
    },
    /// Logits to their cotangents, rounded.
    LossGradientRounded {
        /// What they are rounded to.
        to: DType,
        /// Lanes of a vector.
        width: usize,
    },
    /// Equal ids before each in its chunk.
    SortRanks,
    /// Equal ids in the chunks before each.
    SortOffsets,
    /// Where the run of each id begins.
    SortStarts,
    /// Positions of ids in order of id.
    SortPlaces,
    /// A window of one axis moved into another tensor.
    Window {
        /// Of x and y.
        types: [DType; 2],
        /// Writes zeros beside it.
        clear: bool,
    },
    /// A tensor into a matrix.
    Pack {
        /// Of both.
        dtype: DType,
        /// Lanes of a vector.
        width: usize,
    },
    /// A matrix into a tensor.
    Unpack {
        /// Of the matrix and of the tensor.
        types: [DType; 2],
        /// Adds to the tensor.
        accumulate: bool,
        /// Lanes of a vector.
        width: usize,
    },
    /// Words as they are.
    CopyWords,
    /// One number everywhere.
    Fill {
        /// Lanes of a vector.
        width: usize,
    },
    /// Numbers into another element type.
    Convert {
        /// Of x and y.
        types: [DType; 2],
        /// Adds to y.
        accumulate: bool,
        /// Lanes of a vector.
        width: usize,
    },
    /// Places of random streams and the loss scale of a run.
    Start,
    /// Loss and targets of a micro-batch into the report.
    Collect {
        /// Begins the report.
        first: bool,
    },
    /// Squares of a range of gradients.
    Squares {
        /// Lanes of a vector.
        width: usize,
    },
    /// Norm and factor of the gradient.
    Close {
        /// A gradient that is not finite skips the update.
        skips_overflow: bool,
    },
    /// A factor of the gradient set by hand.
    Factor,
    /// AdamW.
    AdamW {
        /// Lanes of a vector.
        width: usize,
    },
    /// Stochastic gradient descent.
    Sgd {
        /// Nesterov's form.
        nesterov: bool,
        /// Lanes of a vector.
        width: usize,
    },
}

/// Whether a compiler may turn a·b + c into one operation with one rounding.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Arithmetic {
    /// It may not: maps and rows have the bits that their source says, on every device.
    AsWritten,
    /// It may: long sums of products.
    Contracted,
    /// It may, and numbers too small for full precision may become 0: exponentials take one instruction then, not four.
    Flushed,
}

/// Which of a device's cube sizes a kernel takes.
enum Units {
    Map,
    Row,
    /// As many as a cube can have.
    Most,
    /// The largest square that a cube of a map holds.
    Square,
    /// Its own, whatever the device: that of the tiles of `attention_mma`.
    Mma,
    /// Its own, whatever the device: that of the tiles of `attention_tiled`.
    Tiled,
}

/// What is read from a kernel, in one place for each.
struct Form<'a> {
    name: &'static str,
    define: DefineFn,
    /// Of the slots F0, F1, ..
    types: &'a [DType],
    /// Roundings after those of the types.
    rounds: &'a [Option<DType>],
    constants: [usize; 2],
    width: usize,
    accumulate: bool,
    units: Units,
    /// Bytes of shared memory, where it is not one word for each unit.
    shared: Option<usize>,
    arithmetic: Arithmetic,
}

impl LibraryKernel {
    fn form(&self) -> Form<'_> {
        let map = |name, define| Form {
            name,
            define,
            types: &[],
            rounds: &[],
            constants: [0; 2],
            width: 1,
            accumulate: false,
            units: Units::Map,
            shared: None,
            arithmetic: Arithmetic::AsWritten,
        };
        let row = |name, define| Form { units: Units::Row, ..map(name, define) };
        let product = |name, define| Form { arithmetic: Arithmetic::Contracted, ..map(name, define) };
        let tiled =
            |name, define| Form { units: Units::Tiled, shared: Some(attention_tiled::BYTES), ..product(name, define) };
        let mma = |name, define, bytes| Form {
            units: Units::Mma,
            shared: Some(bytes),
            arithmetic: Arithmetic::Flushed,
            ..map(name, define)
        };
        let flag = |on: bool| [usize::from(on), 0];
        match self {
            LibraryKernel::ColumnSum { to, accumulate, slices } => {
                let sum = map("column_sum", define_column_sum);
                Form { types: from_ref(to), accumulate: *accumulate, constants: [*slices, 0], ..sum }
            }
            LibraryKernel::DotGeneral { types, round, accumulate } => Form {
                types,
                rounds: from_ref(round),
                accumulate: *accumulate,
                ..product("dot_general", library::define_dot_general)
            },
            LibraryKernel::DotGeneralTiled { types, round, accumulate, along_k } => Form {
                types,
                rounds: from_ref(round),
                constants: along_k.map(usize::from),
                accumulate: *accumulate,
                units: Units::Square,
                ..product("dot_general_tiled", library::define_dot_general_tiled)
            },
            LibraryKernel::Attention { types, round, head, causal } => Form {
                types,
                rounds: from_ref(round),
                constants: [*head, usize::from(*causal)],
                ..product("attention", library::define_attention)
            },
            LibraryKernel::AttentionQueries { types, round, head, causal } => Form {
                types,
                rounds: from_ref(round),
                constants: [*head, usize::from(*causal)],
                ..product("attention_queries", library::define_attention_queries)
            },
            LibraryKernel::AttentionKeys { types, rounds, head, causal } => Form {
                types,
                rounds,
                constants: [*head, usize::from(*causal)],
                ..product("attention_keys", library::define_attention_keys)
            },
            LibraryKernel::AttentionTiled { types, round, head, causal } => Form {
                types,
                rounds: from_ref(round),
                constants: [*head, usize::from(*causal)],
                ..tiled("attention_tiled", attention_tiled::define_attention_tiled)
            },
            LibraryKernel::AttentionQueriesTiled { types, round, head, causal } => Form {
                types,
                rounds: from_ref(round),
                constants: [*head, usize::from(*causal)],
                ..tiled("attention_queries_tiled", attention_tiled::define_attention_queries_tiled)
            },
            LibraryKernel::AttentionKeysTiled { types, rounds, head, causal } => Form {
                types,
                rounds,
                constants: [*head, usize::from(*causal)],
                ..tiled("attention_keys_tiled", attention_tiled::define_attention_keys_tiled)
            },
            LibraryKernel::AttentionMma { types, round, head, causal } => Form {
                types,
                rounds: from_ref(round),
                constants: [*head, usize::from(*causal)],
                ..mma("attention_mma", attention_mma::define_attention_mma, attention_mma::forward_bytes(*head))
            },
            LibraryKernel::AttentionQueriesMma { types, round, head, causal } => Form {
                types,
                rounds: from_ref(round),
                constants: [*head, usize::from(*causal)],
                ..mma(
                    "attention_queries_mma",
                    attention_mma::define_attention_queries_mma,
                    attention_mma::queries_bytes(*head),
                )
            },
            LibraryKernel::AttentionKeysMma { types, rounds, head, causal } => Form {
                types,
                rounds,
                constants: [*head, usize::from(*causal)],
                ..mma("attention_keys_mma", attention_mma::define_attention_keys_mma, attention_mma::keys_bytes(*head))
            },
            LibraryKernel::LossRows { width } => Form { width: *width, ..row("loss_rows", library::define_loss_rows) },
            LibraryKernel::LossRowsRounded { to, width } => {
                let both = row("loss_rows_rounded", library::define_loss_rows_rounded);
                Form { types: from_ref(to), width: *width, units: Units::Most, ..both }
            }
            LibraryKernel::LossSum => row("loss_sum", library::define_loss_sum),
            LibraryKernel::LossGradient { width } => {
                Form { width: *width, ..map("loss_gradient", library::define_loss_gradient) }
            }
            LibraryKernel::LossGradientRounded { to, width } => {
                let rounded = map("loss_gradient_rounded", library::define_loss_gradient_rounded);
                Form { types: from_ref(to), width: *width, ..rounded }
            }
            LibraryKernel::SortRanks => map("sort_ranks", library::define_sort_ranks),
            LibraryKernel::SortOffsets => map("sort_offsets", library::define_sort_offsets),
            LibraryKernel::SortStarts => row("sort_starts", library::define_sort_starts),
            LibraryKernel::SortPlaces => map("sort_places", library::define_sort_places),
            LibraryKernel::Window { types, clear } => {
                Form { types, constants: flag(*clear), ..map("window", library::define_window) }
            }
            LibraryKernel::Pack { dtype, width } => {
                Form { types: from_ref(dtype), width: *width, ..map("pack", library::define_pack) }
            }
            LibraryKernel::Unpack { types, accumulate, width } => {
                let unpack = map("unpack", library::define_unpack);
                Form { types, accumulate: *accumulate, width: *width, ..unpack }
            }
            LibraryKernel::CopyWords => map("copy_words", training::define_copy_words),
            LibraryKernel::Fill { width } => Form { width: *width, ..map("fill", training::define_fill) },
            LibraryKernel::Convert { types, accumulate, width } => {
                let convert = map("convert", training::define_convert);
                Form { types, accumulate: *accumulate, width: *width, ..convert }
            }
            LibraryKernel::Start => map("start", training::define_start),
            LibraryKernel::Collect { first } => {
                Form { constants: flag(*first), ..map("collect", training::define_collect) }
            }
            LibraryKernel::Squares { width } => Form { width: *width, ..row("squares", training::define_squares) },
            LibraryKernel::Close { skips_overflow } => {
                Form { constants: flag(*skips_overflow), ..row("close", training::define_close) }
            }
            LibraryKernel::Factor => map("factor", training::define_factor),
            LibraryKernel::AdamW { width } => Form { width: *width, ..map("adamw", training::define_adamw) },
            LibraryKernel::Sgd { nesterov, width } => {
                Form { constants: flag(*nesterov), width: *width, ..map("sgd", training::define_sgd) }
            }
        }
    }

    /// Its entry point, which is also what `define_` is followed by in the name of the function that builds it.
    pub fn name(&self) -> &'static str {
        self.form().name
    }

    /// Builds it.
    pub fn define(&self) -> DefineFn {
        self.form().define
    }

    /// Cubes that a form of attention in tiles is launched with, for so many heads, heads of a group, queries and keys; none for others.
    pub fn attention_cubes(&self, [heads, group, s, t]: [usize; 4]) -> usize {
        match self {
            LibraryKernel::AttentionTiled { .. } | LibraryKernel::AttentionQueriesTiled { .. } => {
                heads * s.div_ceil(attention_tiled::ROWS)
            }
            LibraryKernel::AttentionKeysTiled { .. } => heads / group.max(1) * t.div_ceil(attention_tiled::ROWS),
            LibraryKernel::AttentionMma { head, .. } => heads * s.div_ceil(attention_mma::forward_queries(*head)),
            LibraryKernel::AttentionQueriesMma { .. } => heads * s.div_ceil(attention_mma::walk_rows()),
            LibraryKernel::AttentionKeysMma { .. } => heads / group.max(1) * t.div_ceil(attention_mma::walk_rows()),
            _ => 0,
        }
    }
}

impl fmt::Display for LibraryKernel {
    /// `attention bf16,bf16,bf16,bf16 [64, 1]`: types, what sums are rounded to, constants, lanes, whether it adds.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Form { name, types, rounds, constants, width, accumulate, .. } = self.form();
        f.write_str(name)?;
        for (i, dtype) in types.iter().enumerate() {
            write!(f, "{}{dtype}", if i == 0 { " " } else { "," })?;
        }
        for dtype in rounds.iter().flatten() {
            write!(f, " rounds {dtype}")?;
        }
        if constants != [0; 2] {
            write!(f, " {constants:?}")?;
        }
        if width > 1 {
            write!(f, " x{width}")?;
        }
        if accumulate {
            f.write_str(" adds")?;
        }
        Ok(())
    }
}

impl Profile {
    /// Units along a side of a square cube.
    pub(super) fn square_side(&self) -> usize {
        1 << (self.shape.map_units.ilog2() / 2)
    }

    /// The key of a library kernel: its name stands for its body, which no user's crate can change.
    pub fn library(&self, kernel: &LibraryKernel) -> Spec {
        let Form { name, types, rounds, constants, width, accumulate, units, shared, arithmetic, .. } = kernel.form();
        let cube_dim = match units {
            Units::Map => self.shape.map_units,
            Units::Row => self.shape.row_units,
            Units::Most => self.properties.hardware.max_units_per_cube,
            Units::Mma => attention_mma::UNITS,
            Units::Tiled => attention_tiled::UNITS,
            Units::Square => (self.square_side() * self.square_side()) as u32,
        };
        let keyed = self.spec(name.to_owned(), types);
        let mut spec = Spec {
            width,
            cube_dim,
            row_units: cube_dim,
            accumulate: u32::from(accumulate),
            constants,
            shared,
            arithmetic,
            ..keyed
        };
        for (i, round) in rounds.iter().enumerate() {
            spec.roundings[types.len() + i] = round.map_or(Rounding::None, |d| self.rounding(d));
        }
        spec
    }
}

/// Sizes of a head: those of small and of large models.
const HEADS: [usize; 2] = [64, 128];

/// Every kernel of the library, in the forms in which models of each precision launch it.
pub fn library_kernels() -> Vec<LibraryKernel> {
    const WIDTHS: [usize; 2] = [1, 4];
    let mut all = vec![
        LibraryKernel::ColumnSum { to: DType::F32, accumulate: true, slices: 32 },
        LibraryKernel::LossSum,
        LibraryKernel::SortRanks,
        LibraryKernel::SortOffsets,
        LibraryKernel::SortStarts,
        LibraryKernel::SortPlaces,
        LibraryKernel::CopyWords,
        LibraryKernel::Start,
        LibraryKernel::Factor,
    ];
    for d in [DType::F32, DType::Bf16, DType::F16] {
        all.extend(of_precision(d));
    }
    for on in [false, true] {
        all.push(LibraryKernel::Collect { first: on });
        all.push(LibraryKernel::Close { skips_overflow: on });
    }
    for width in WIDTHS {
        all.push(LibraryKernel::LossRows { width });
        all.push(LibraryKernel::LossGradient { width });
        all.push(LibraryKernel::Fill { width });
        all.push(LibraryKernel::Squares { width });
        all.push(LibraryKernel::AdamW { width });
        all.extend([false, true].map(|nesterov| LibraryKernel::Sgd { nesterov, width }));
    }
    all
}

/// Those whose code depends on the precision `d` of a layer: activations, weights and gradients of `d`, sums and masters of f32.
fn of_precision(d: DType) -> Vec<LibraryKernel> {
    const F32: DType = DType::F32;
    let round = (d != F32).then_some(d);
    // 16 bytes.
    let widest = if d == F32 { 4 } else { 8 };
    let mut all = vec![
        LibraryKernel::ColumnSum { to: d, accumulate: false, slices: 1 },
        LibraryKernel::ColumnSum { to: d, accumulate: false, slices: 32 },
        LibraryKernel::Window { types: [d; 2], clear: false },
        LibraryKernel::Window { types: [d; 2], clear: true },
        LibraryKernel::Convert { types: [F32, d], accumulate: false, width: 4 },
        LibraryKernel::Convert { types: [d, F32], accumulate: true, width: 4 },
        LibraryKernel::Convert { types: [d, d], accumulate: false, width: 1 },
        LibraryKernel::Pack { dtype: d, width: widest },
        LibraryKernel::Pack { dtype: d, width: 1 },
        LibraryKernel::Unpack { types: [d, d], accumulate: false, width: widest },
    ];
    if d == F32 {
        all.push(LibraryKernel::Unpack { types: [F32, F32], accumulate: true, width: widest });
    } else {
        all.push(LibraryKernel::LossGradientRounded { to: d, width: 4 });
        all.push(LibraryKernel::LossRowsRounded { to: d, width: 4 });
        all.push(LibraryKernel::Convert { types: [d, F32], accumulate: false, width: 4 });
    }
    for (types, round, accumulate, along_k) in [
        // A linear layer and the cotangents of its input and its weight.
        ([d, d, d], round, false, [true, false]),
        ([d, d, d], round, false, [true, true]),
        ([d, d, F32], None, true, [false, false]),
        // Logits and the cotangents of their operands.
        ([d, d, F32], None, false, [true, true]),
        ([F32, d, d], round, false, [true, false]),
        ([F32, d, F32], None, true, [false, false]),
    ] {
        for kernel in [
            LibraryKernel::DotGeneral { types, round, accumulate },
            LibraryKernel::DotGeneralTiled { types, round, accumulate, along_k },
        ] {
            if !all.contains(&kernel) {
                all.push(kernel);
            }
        }
    }
    for head in HEADS {
        let (types, causal) = ([d; 4], true);
        all.push(LibraryKernel::Attention { types, round, head, causal });
        all.push(LibraryKernel::AttentionQueries { types, round, head, causal });
        all.push(LibraryKernel::AttentionKeys { types, rounds: [round; 2], head, causal });
        if d == F32 {
            all.push(LibraryKernel::AttentionTiled { types, round, head, causal });
            all.push(LibraryKernel::AttentionQueriesTiled { types, round, head, causal });
            all.push(LibraryKernel::AttentionKeysTiled { types, rounds: [round; 2], head, causal });
        } else {
            all.push(LibraryKernel::AttentionMma { types, round, head, causal });
            all.push(LibraryKernel::AttentionQueriesMma { types, round, head, causal });
            all.push(LibraryKernel::AttentionKeysMma { types, rounds: [round; 2], head, causal });
        }
    }
    let (types, head, causal) = ([d; 4], HEADS[0], false);
    all.push(LibraryKernel::Attention { types, round: None, head, causal });
    all.push(LibraryKernel::AttentionQueries { types, round: None, head, causal });
    all.push(LibraryKernel::AttentionKeys { types, rounds: [None; 2], head, causal });
    if d == F32 {
        all.push(LibraryKernel::AttentionTiled { types, round: None, head, causal });
        all.push(LibraryKernel::AttentionQueriesTiled { types, round: None, head, causal });
        all.push(LibraryKernel::AttentionKeysTiled { types, rounds: [None; 2], head, causal });
    } else {
        all.push(LibraryKernel::AttentionMma { types, round: None, head, causal });
        all.push(LibraryKernel::AttentionQueriesMma { types, round: None, head, causal });
        all.push(LibraryKernel::AttentionKeysMma { types, rounds: [None; 2], head, causal });
    }
    all
}
