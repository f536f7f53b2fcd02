//! Dear values over few axes are computed before the rest, once a run: the cosines of a rotary embedding depend on position and channel
//! alone, so one table serves all sequences and heads, and the region that uses it runs through memory in order.

use super::Part;
use super::lower::is_dear_instr;
use kiln_compiler::fuse::{Index, Instr, Layout, Region, Template};
use kiln_compiler::ir::{Axis, DType, Sizes};
use kiln_compiler::ops::Scalar;
use std::collections::BTreeMap;

/// A table has at most this part of the elements of its region's domain; larger ones cost as much to write and read as to compute.
const LARGEST_PART: usize = 8;

/// A region in two.
pub struct Hoisted {
    /// Computes the tables, one for each output.
    pub first: Region,
    /// The operands of the region that `first` reads.
    pub inputs: Vec<usize>,
    /// Elements of each table.
    pub tables: Vec<usize>,
    /// The region, with the tables as its last operands.
    pub rest: Region,
}

/// What an instruction's value follows from.
#[derive(Clone, Copy, Default)]
struct Cone {
    /// Bits of domain axes.
    axes: u64,
    dear: bool,
    /// Whether it may move: no reductions, no random numbers, no indices by value.
    moves: bool,
}

/// The region in two, if it has such values.
pub fn hoisted(region: &Region, sizes: &Sizes, part: &dyn Fn(Axis) -> Option<Part>) -> Option<Hoisted> {
    let maps = matches!(region.template, Template::FlatMap | Template::StridedMap);
    // A part of an axis would need its place in the table, too.
    if !maps || region.domain.len() > 64 || region.domain.iter().any(|&a| part(a).is_some()) {
        return None;
    }
    let all = sizes.elements(&region.domain);
    if all == 0 {
        return None;
    }
    let cones = cones(region);
    let elements = |c: &Cone| bits(c.axes).map(|p| sizes.of(region.domain[p])).product::<usize>();
    let fits = |i: usize| {
        let c = &cones[i];
        c.moves && c.dear && c.axes != 0 && elements(c) * LARGEST_PART <= all && is_float(region.code[i])
    };
    // A root is used by something that cannot move with it.
    let mut roots: Vec<usize> = Vec::new();
    for (i, instr) in region.code.iter().enumerate() {
        roots.extend(region.operands(instr).into_iter().filter(|&o| fits(o) && !fits(i)));
    }
    roots.extend(region.outputs.iter().map(|o| o.0).filter(|&o| fits(o)));
    roots.sort_unstable();
    roots.dedup();
    if roots.is_empty() {
        return None;
    }
    // One domain for all tables: the axes that any of them has.
    let axes: Vec<usize> = bits(roots.iter().fold(0, |m, &r| m | cones[r].axes)).collect();
    if axes.iter().map(|&p| sizes.of(region.domain[p])).product::<usize>() * LARGEST_PART > all {
        return None;
    }
    let (first, inputs) = first(region, &roots, &axes, &cones);
    let tables = roots.iter().map(|&r| elements(&cones[r])).collect();
    Some(Hoisted { first, inputs, tables, rest: rest(region, &roots, &cones) })
}

fn bits(mask: u64) -> impl Iterator<Item = usize> {
    (0..64).filter(move |p| mask >> p & 1 == 1)
}

/// Tables are of f32: masks and what may be an integer stay where they are.
fn is_float(instr: Instr) -> bool {
    use Scalar::*;
    match instr {
        Instr::Unary(..) => true,
        Instr::Binary(s, ..) => !matches!(s, Lt | Le | Gt | Ge | Eq | Ne),
        _ => false,
    }
}

fn cones(region: &Region) -> Vec<Cone> {
    let mut out: Vec<Cone> = Vec::new();
    for instr in &region.code {
        let leaf = |axes: u64, moves: bool| Cone { axes, dear: false, moves };
        let own = match *instr {
            Instr::Load(k) => {
                let by = |i: &Index| match i {
                    Index::Domain(p) => Some(1 << p),
                    Index::Rotated(_) | Index::Value(_) => None,
                };
                let axes = region.inputs[k].axes.iter().map(by).try_fold(0, |m, a| a.map(|a: u64| m | a));
                leaf(axes.unwrap_or(0), axes.is_some())
            }
            Instr::Iota(p) | Instr::HalfSign(p) => leaf(1 << p, true),
            Instr::Uniform(_) | Instr::RowSum(_) | Instr::RowMax(_) | Instr::ColumnSum(_) => leaf(0, false),
            Instr::SegmentSum { .. } => leaf(0, false),
            _ => leaf(0, true),
        };
        let cone = region.operands(instr).into_iter().map(|o| out[o]).fold(own, |c, o| Cone {
            axes: c.axes | o.axes,
            dear: c.dear || o.dear,
            moves: c.moves && o.moves,
        });
        out.push(Cone { dear: cone.dear || is_dear_instr(*instr), ..cone });
    }
    out
}

/// The region of the tables, and which operands it reads.
fn first(region: &Region, roots: &[usize], axes: &[usize], cones: &[Cone]) -> (Region, Vec<usize>) {
    let place = |p: usize| axes.iter().position(|&a| a == p).expect("the domain has every axis of a table");
    let mut needed = vec![false; region.code.len()];
    roots.iter().for_each(|&r| needed[r] = true);
    for i in (0..region.code.len()).rev() {
        if needed[i] {
            region.operands(&region.code[i]).into_iter().for_each(|o| needed[o] = true);
        }
    }
    let (mut code, mut spans, mut inputs) = (Vec::new(), Vec::new(), Vec::new());
    let mut known: BTreeMap<usize, usize> = BTreeMap::new();
    for (i, &instr) in region.code.iter().enumerate().filter(|(i, _)| needed[*i]) {
        let at = |o: usize| known[&o];
        let moved = match instr {
            Instr::Load(k) => {
                inputs.push(k);
                Instr::Load(inputs.len() - 1)
            }
            Instr::Iota(p) => Instr::Iota(place(p)),
            Instr::HalfSign(p) => Instr::HalfSign(place(p)),
            Instr::Unary(s, a) => Instr::Unary(s, at(a)),
            Instr::Binary(s, a, b) => Instr::Binary(s, at(a), at(b)),
            Instr::Select(m, a, b) => Instr::Select(at(m), at(a), at(b)),
            Instr::Round(d, a) => Instr::Round(d, at(a)),
            other => other,
        };
        known.insert(i, code.len());
        code.push(moved);
        spans.extend(region.spans.get(i).cloned());
    }
    let (dtypes, slot) = with_f32(region);
    let over = |mask: u64| bits(mask).map(|p| Index::Domain(place(p))).collect::<Vec<_>>();
    let moved = |k: &usize| {
        let layout = &region.inputs[*k];
        let index = |i: &Index| match i {
            Index::Domain(p) => Index::Domain(place(*p)),
            other => *other,
        };
        Layout { axes: layout.axes.iter().map(index).collect(), dtype: layout.dtype }
    };
    let first = Region {
        template: Template::StridedMap,
        domain: axes.iter().map(|&p| region.domain[p]).collect(),
        rows: axes.len(),
        dtypes,
        inputs: inputs.iter().map(moved).collect(),
        extra_axes: Vec::new(),
        scalars: region.scalars.clone(),
        streams: Vec::new(),
        code,
        outputs: roots.iter().map(|r| (known[r], Layout { axes: over(cones[*r].axes), dtype: slot })).collect(),
        spans,
        names: Vec::new(),
    };
    (first, inputs)
}

/// The region with its roots loaded.
fn rest(region: &Region, roots: &[usize], cones: &[Cone]) -> Region {
    let (dtypes, slot) = with_f32(region);
    let mut rest = Region { dtypes, template: Template::StridedMap, ..region.clone() };
    for &r in roots {
        rest.code[r] = Instr::Load(rest.inputs.len());
        rest.inputs.push(Layout { axes: bits(cones[r].axes).map(Index::Domain).collect(), dtype: slot });
    }
    rest
}

/// The types of a region's slots, and the slot of f32.
fn with_f32(region: &Region) -> (Vec<DType>, usize) {
    let mut dtypes = region.dtypes.clone();
    let slot = dtypes.iter().position(|&d| d == DType::F32).unwrap_or_else(|| {
        dtypes.push(DType::F32);
        dtypes.len() - 1
    });
    (dtypes, slot)
}
