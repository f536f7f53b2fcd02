//! Regions against their f64 meaning.

use super::super::buffer::testing::{Owned, noise};
use super::*;
use crate::random;
use kiln_compiler::fuse::reference::{self, Bindings};
use kiln_compiler::fuse::{Index, Instr, Layout, ScalarArg, Stream, Template};
use kiln_compiler::interp::Array;
use kiln_compiler::ir::Attr;
use kiln_compiler::ops::Scalar::*;

fn axes(names: &str) -> Vec<Axis> {
    names.chars().map(|c| Axis::new(&c.to_string())).collect()
}

fn region(template: Template, domain: &str, rows: usize, code: Vec<Instr>) -> Region {
    Region {
        template,
        domain: axes(domain),
        rows,
        dtypes: vec![DType::F32, DType::Bf16, DType::F16, DType::I32, DType::Bool],
        inputs: Vec::new(),
        extra_axes: Vec::new(),
        scalars: Vec::new(),
        streams: Vec::new(),
        spans: Vec::new(),
        names: Vec::new(),
        outputs: Vec::new(),
        code,
    }
}

fn dense(dtype: usize, axes: &[usize]) -> Layout {
    Layout { axes: axes.iter().map(|&a| Index::Domain(a)).collect(), dtype }
}

/// Runs a region for sizes and compares all outputs with its meaning; `given` holds the operands that are not noise.
fn check(region: &Region, sizes: &[(char, usize)], given: &[(usize, Vec<i32>)]) {
    let sizes: Sizes = sizes.iter().map(|&(c, n)| (Axis::new(&c.to_string()), n)).collect();
    let streams: Vec<StreamArg> =
        (0..region.streams.len()).map(|i| StreamArg { key: 77 + i as u64, offset: 5 * i as u64 }).collect();
    let mut extra = region.extra_axes.iter();
    let mut owned: Vec<Owned> = Vec::new();
    let mut operands: Vec<Array> = Vec::new();
    for (k, l) in region.inputs.iter().enumerate() {
        let dims: Vec<usize> = l
            .axes
            .iter()
            .map(|i| match i {
                Index::Domain(p) | Index::Rotated(p) => sizes.of(region.domain[*p]),
                Index::Value(_) => sizes.of(*extra.next().unwrap()),
            })
            .collect();
        let dtype = region.dtypes[l.dtype];
        let mut memory = match given.iter().find(|(i, _)| *i == k) {
            Some((_, ids)) if dtype == DType::I32 => Owned::ids(ids),
            Some((_, values)) => Owned::of(dtype, &values.iter().map(|&x| x as f32).collect::<Vec<_>>()),
            None => Owned::of(dtype, &noise(k as u64 + 1, dims.iter().product())),
        };
        let data: Vec<f64> = match dtype {
            DType::I32 => memory.buf().i32s(0, memory.buf().len()).iter().map(|&i| f64::from(i)).collect(),
            _ => memory.values().into_iter().map(f64::from).collect(),
        };
        // Operands of a segment sum have no layout.
        let dims = if dims.is_empty() { vec![data.len()] } else { dims };
        operands.push(Array { dims, data });
        owned.push(memory);
    }
    let scalars: Vec<f32> = region
        .scalars
        .iter()
        .map(|s| match s {
            ScalarArg::Literal(Attr::Float(x)) => *x as f32,
            ScalarArg::Size { axes, recip: true } => 1.0 / sizes.elements(axes) as f32,
            other => panic!("{other:?}"),
        })
        .collect();
    let uniform = |s: usize, i: u64| random::uniform(streams[s].key, i + streams[s].offset, STEP);
    let bindings = Bindings { dtypes: &region.dtypes, scalars: &scalars, uniform: &uniform };
    let want = reference::run(region, &sizes, &bindings, &operands);

    let mut first: Option<Vec<Vec<u32>>> = None;
    for accumulate in [false, true] {
        let dtype = |k: usize| region.dtypes[region.outputs[k].1.dtype];
        let adds: Vec<bool> = (0..want.len()).map(|k| accumulate && dtype(k) == DType::F32).collect();
        for threads in [1, 2, 3, 7] {
            let pool = Pool::new(threads).unwrap();
            let program = TileProgram::new(region, &sizes, |d| d, |_| None, threads).unwrap();
            let mut workspace = vec![f32::NAN; program.workspace_len()];
            let memory = |k: usize| match adds[k] {
                true => Owned::of(DType::F32, &vec![0.5; want[k].data.len()]),
                false => Owned::poisoned(dtype(k), want[k].data.len()),
            };
            let mut outputs: Vec<Owned> = (0..want.len()).map(memory).collect();
            let in_bufs: Vec<Buf> = owned.iter_mut().map(|o| o.buf()).collect();
            let out_bufs: Vec<Buf> = outputs.iter_mut().map(|o| o.buf()).collect();
            let args =
                TileArgs { inputs: &in_bufs, outputs: &out_bufs, accumulate: &adds, streams: &streams, step: STEP };
            program.run(&pool, &args, &mut workspace);
            for (k, want) in want.iter().enumerate() {
                let rounds = region.code.iter().any(|i| matches!(i, Instr::Round(..)));
                // Sums of up to a few hundred terms below one; where there are roundings, one may cross a tie, and values of
                // size one half may cancel afterwards.
                let (ulp, size) = match dtype(k) {
                    DType::Bf16 => (2f64.powi(-7), 0.5),
                    DType::F16 => (2f64.powi(-10), 0.5),
                    _ if rounds => (2f64.powi(-7), 0.5),
                    _ => (2f64.powi(-20), 4.0),
                };
                for (i, (&got, &want)) in outputs[k].values().iter().zip(&want.data).enumerate() {
                    let want = want + if adds[k] { 0.5 } else { 0.0 };
                    let got = if dtype(k) == DType::I32 { f64::from(got.to_bits() as i32) } else { f64::from(got) };
                    let bound = ulp * (want.abs() + size);
                    assert!((got - want).abs() <= bound, "output {k}[{i}] of {sizes:?}: {got} for {want}");
                }
            }
            if !accumulate {
                let bits: Vec<Vec<u32>> = outputs.iter_mut().map(|o| o.bits()).collect();
                assert_eq!(*first.get_or_insert_with(|| bits.clone()), bits, "{threads} threads");
            }
        }
    }
}

const STEP: u64 = 3;
const LENGTHS: [usize; 9] = [0, 1, 7, 31, 255, 256, 257, 1021, 4099];

#[test]
fn flat_maps_of_all_types() {
    for dtype in [0, 1, 2] {
        let code = vec![
            Instr::Load(0),
            Instr::Load(1),
            Instr::Unary(Logistic, 0),
            Instr::Binary(Mul, 0, 2),
            Instr::Binary(Mul, 3, 1),
            Instr::Round(dtype, 4),
            Instr::Scalar(0),
            Instr::Binary(Sub, 5, 6),
        ];
        let mut r = region(Template::FlatMap, "AB", 2, code);
        r.inputs = vec![dense(dtype, &[0, 1]), dense(0, &[0, 1])];
        r.outputs = vec![(5, dense(dtype, &[0, 1])), (7, dense(0, &[0, 1]))];
        r.scalars = vec![ScalarArg::Literal(Attr::Float(0.3))];
        for n in LENGTHS {
            check(&r, &[('A', 3), ('B', n)], &[]);
        }
        check(&r, &[('A', 257), ('B', 67)], &[]);
    }
}

#[test]
fn every_scalar_function() {
    for s in [Neg, Exp, Log, Sqrt, Rsqrt, Recip, Sin, Cos, Tanh, Erf, Logistic, Abs, Sign] {
        let code =
            vec![Instr::Load(0), Instr::Scalar(0), Instr::Unary(Abs, 0), Instr::Binary(Add, 2, 1), Instr::Unary(s, 3)];
        let mut r = region(Template::FlatMap, "A", 1, code);
        r.inputs = vec![dense(0, &[0])];
        r.outputs = vec![(4, dense(0, &[0]))];
        r.scalars = vec![ScalarArg::Literal(Attr::Float(1.0))];
        check(&r, &[('A', 301)], &[]);
    }
    for s in [Add, Sub, Mul, Div, Max, Min, Lt, Le, Gt, Ge, Eq, Ne] {
        for layouts in [
            [dense(0, &[0, 1]), dense(0, &[0, 1])],
            [dense(0, &[0]), dense(0, &[1])],
            [dense(0, &[1]), dense(0, &[0, 1])],
        ] {
            let compares = matches!(s, Lt | Le | Gt | Ge | Eq | Ne);
            let one = Instr::Scalar(0);
            let code = vec![
                Instr::Load(0),
                Instr::Load(1),
                one,
                Instr::Binary(Add, 1, 2),
                Instr::Binary(s, 0, 3),
                Instr::Binary(s, 2, 3),
            ];
            let mut r = region(Template::StridedMap, "AB", 2, code);
            r.inputs = layouts.to_vec();
            r.scalars = vec![ScalarArg::Literal(Attr::Float(1.5))];
            let out = if compares { 4 } else { 0 };
            r.outputs = vec![(4, dense(out, &[0, 1]))];
            check(&r, &[('A', 9), ('B', 70)], &[]);
        }
    }
}

#[test]
fn strided_maps_broadcast_permute_and_select() {
    let code = vec![
        Instr::Load(0),
        Instr::Load(1),
        Instr::Load(2),
        Instr::Binary(Add, 0, 1),
        Instr::Iota(1),
        Instr::Iota(2),
        Instr::Binary(Le, 4, 5),
        Instr::Select(6, 3, 2),
        Instr::Unary(Exp, 1),
        Instr::Binary(Mul, 7, 8),
        Instr::Scalar(0),
        Instr::Binary(Mul, 9, 10),
    ];
    let mut r = region(Template::StridedMap, "ABC", 3, code);
    r.inputs = vec![dense(1, &[0, 1, 2]), dense(0, &[1]), dense(0, &[2, 1, 0])];
    r.scalars = vec![ScalarArg::Size { axes: axes("BC"), recip: true }];
    r.outputs = vec![(11, dense(0, &[1, 0, 2])), (8, dense(2, &[1])), (6, dense(4, &[1, 2]))];
    for (a, b, c) in [(1, 1, 1), (2, 3, 5), (3, 7, 64), (1, 33, 130), (5, 1, 1030), (17, 40, 1)] {
        check(&r, &[('A', a), ('B', b), ('C', c)], &[]);
    }
}

#[test]
fn scalars_and_outputs_without_axes() {
    let mut r = region(Template::FlatMap, "", 0, vec![Instr::Load(0), Instr::Unary(Neg, 0)]);
    r.inputs = vec![dense(0, &[])];
    r.outputs = vec![(1, dense(0, &[]))];
    check(&r, &[], &[]);
    let mut r =
        region(Template::Row, "AB", 1, vec![Instr::Load(0), Instr::Scalar(0), Instr::RowSum(1), Instr::RowSum(0)]);
    r.inputs = vec![dense(0, &[1])];
    r.scalars = vec![ScalarArg::Literal(Attr::Float(0.25))];
    r.outputs = vec![(2, dense(0, &[])), (3, dense(0, &[]))];
    check(&r, &[('A', 5), ('B', 33)], &[]);
}

/// x·cos + rotate_half(x)·sign·sin over [B, S, H, K], with the angle computed in place.
fn rope(dtype: usize) -> Region {
    let code = vec![
        Instr::Load(0),
        Instr::Load(1),
        Instr::HalfSign(3),
        Instr::Binary(Mul, 1, 2),
        Instr::Iota(1),
        Instr::Iota(3),
        Instr::Scalar(0),
        Instr::Binary(Mul, 5, 6),
        Instr::Unary(Exp, 7),
        Instr::Binary(Mul, 4, 8),
        Instr::Unary(Cos, 9),
        Instr::Unary(Sin, 9),
        Instr::Binary(Mul, 0, 10),
        Instr::Binary(Mul, 3, 11),
        Instr::Binary(Add, 12, 13),
    ];
    let mut r = region(Template::StridedMap, "BSHK", 4, code);
    let rotated = Layout { axes: vec![Index::Domain(0), Index::Domain(1), Index::Domain(2), Index::Rotated(3)], dtype };
    r.inputs = vec![dense(dtype, &[0, 1, 2, 3]), rotated];
    r.scalars = vec![ScalarArg::Literal(Attr::Float(-0.1))];
    r.outputs = vec![(14, dense(dtype, &[0, 2, 1, 3]))];
    r
}

#[test]
fn rotations() {
    for dtype in [0, 1] {
        for (b, s, h, k) in [(1, 1, 1, 2), (2, 5, 3, 2), (2, 7, 3, 4), (2, 17, 3, 32), (1, 3, 1, 128)] {
            check(&rope(dtype), &[('B', b), ('S', s), ('H', h), ('K', k)], &[]);
        }
    }
    let sizes = axes("BSHK").into_iter().zip([1, 2, 3, 5]).collect();
    let error = TileProgram::new(&rope(0), &sizes, |d| d, |_| None, 1).err();
    assert_eq!(error, Some(TileError::OddRotation(Axis::new("K"), 5)));
}

/// Where there are sequences and heads enough, cosines and sines come from tables.
#[test]
fn rotations_through_tables() {
    for dtype in [0, 1] {
        for (b, s, h, k) in [(9, 5, 3, 4), (4, 17, 6, 32)] {
            let sizes = axes("BSHK").into_iter().zip([b, s, h, k]).collect();
            let program = TileProgram::new(&rope(dtype), &sizes, |d| d, |_| None, 1).unwrap();
            let tables = &program.first.as_ref().expect("cosines depend on two axes of four").tables;
            assert!(tables.iter().all(|&n| n == s * k), "{tables:?}");
            check(&rope(dtype), &[('B', b), ('S', s), ('H', h), ('K', k)], &[]);
        }
    }
    // A part of the positions knows its place only in the whole region.
    let sizes = axes("BSHK").into_iter().zip([9, 5, 3, 4]).collect();
    let part = |axis: Axis| (axis == Axis::new("S")).then_some(Part { offset: 5, whole: 10 });
    assert!(TileProgram::new(&rope(0), &sizes, |d| d, part, 1).unwrap().first.is_none());
}

/// Softmax, and an RMS norm of it with a weight.
#[test]
fn rows() {
    let code = vec![
        Instr::Load(0),
        Instr::RowMax(0),
        Instr::Binary(Sub, 0, 1),
        Instr::Unary(Exp, 2),
        Instr::RowSum(3),
        Instr::Binary(Div, 3, 4),
        Instr::Binary(Mul, 5, 5),
        Instr::RowSum(6),
        Instr::Scalar(0),
        Instr::Binary(Mul, 7, 8),
        Instr::Unary(Rsqrt, 9),
        Instr::Binary(Mul, 5, 10),
        Instr::Load(1),
        Instr::Binary(Mul, 11, 12),
    ];
    for (domain, n) in [("ABC", 2), ("ABC", 1)] {
        let mut r = region(Template::Row, domain, n, code.clone());
        r.inputs = vec![dense(0, &[0, 1, 2]), dense(1, &[2])];
        r.scalars = vec![ScalarArg::Size { axes: axes("BC")[2 - n..].to_vec(), recip: true }];
        if n == 2 {
            r.scalars = vec![ScalarArg::Size { axes: axes("C"), recip: true }];
        }
        let per_row: Vec<usize> = (0..n).collect();
        r.outputs = vec![
            (13, dense(0, &[0, 1, 2])),
            (10, dense(0, &per_row)),
            (4, dense(0, &per_row)),
            (1, dense(0, &per_row)),
        ];
        for (a, b, c) in [(1, 1, 1), (2, 3, 5), (3, 11, 64), (2, 3, 257), (4, 70, 33), (1, 2, 2053), (37, 1, 31)] {
            check(&r, &[('A', a), ('B', b), ('C', c)], &[]);
        }
    }
}

/// Backward of a norm: a row sum, a map, and two column sums.
#[test]
fn rows_and_columns() {
    let code = vec![
        Instr::Load(0),
        Instr::Load(1),
        Instr::Binary(Mul, 0, 1),
        Instr::RowSum(2),
        Instr::Binary(Mul, 0, 3),
        Instr::ColumnSum(4),
        Instr::ColumnSum(1),
        Instr::Round(1, 6),
        Instr::ColumnSum(3),
    ];
    let mut r = region(Template::RowColumn, "ABC", 2, code);
    r.inputs = vec![dense(0, &[0, 1, 2]), dense(1, &[0, 1, 2])];
    r.outputs = vec![(4, dense(0, &[0, 1, 2])), (5, dense(0, &[2])), (7, dense(1, &[2]))];
    for (a, b, c) in [(1, 1, 1), (3, 1, 5), (1, 31, 8), (2, 16, 33), (3, 11, 64), (5, 13, 257), (9, 33, 3)] {
        check(&r, &[('A', a), ('B', b), ('C', c)], &[]);
    }
    // More rows than chunks of the smallest size, and a sum over no row.
    let mut bias = region(Template::RowColumn, "AC", 1, vec![Instr::Load(0), Instr::ColumnSum(0)]);
    bias.inputs = vec![dense(0, &[0, 1])];
    bias.outputs = vec![(1, dense(0, &[1]))];
    check(&bias, &[('A', 9001), ('C', 3)], &[]);
    let sizes = axes("AC").into_iter().zip([0, 3]).collect();
    let program = TileProgram::new(&bias, &sizes, |d| d, |_| None, 1).unwrap();
    let (mut x, mut y) = (Owned::poisoned(DType::F32, 0), Owned::poisoned(DType::F32, 3));
    let (inputs, outputs) = ([x.buf()], [y.buf()]);
    let args = TileArgs { inputs: &inputs, outputs: &outputs, accumulate: &[], streams: &[], step: 0 };
    program.run(&Pool::serial(), &args, &mut vec![f32::NAN; program.workspace_len()]);
    assert_eq!(y.values(), [0.0; 3]);
}

#[test]
fn gathers() {
    let code =
        vec![Instr::Load(0), Instr::Load(1), Instr::Scalar(0), Instr::Binary(Mul, 1, 2), Instr::Binary(Ge, 0, 2)];
    let mut r = region(Template::StridedMap, "ABC", 3, code);
    let table = Layout { axes: vec![Index::Value(0), Index::Domain(2)], dtype: 1 };
    r.inputs = vec![dense(3, &[0, 1]), table];
    r.extra_axes = axes("V");
    r.scalars = vec![ScalarArg::Literal(Attr::Float(2.0))];
    r.outputs = vec![(3, dense(0, &[0, 1, 2])), (0, dense(3, &[0, 1])), (4, dense(4, &[0, 1]))];
    for (a, b, c) in [(1, 1, 1), (2, 3, 5), (3, 11, 64), (1, 5, 1030)] {
        let ids: Vec<i32> = (0..a * b).map(|i| (i * 7 % 11) as i32).collect();
        check(&r, &[('A', a), ('B', b), ('C', c), ('V', 11)], &[(0, ids)]);
    }
    // The index varies along the columns: targets' logits.
    let code = vec![Instr::Load(0), Instr::Load(1)];
    let mut r = region(Template::StridedMap, "AB", 2, code);
    r.inputs =
        vec![dense(3, &[0, 1]), Layout { axes: vec![Index::Domain(0), Index::Domain(1), Index::Value(0)], dtype: 0 }];
    r.extra_axes = axes("V");
    r.outputs = vec![(1, dense(0, &[0, 1]))];
    let ids: Vec<i32> = (0..6 * 9).map(|i| i * 5 % 13).collect();
    check(&r, &[('A', 6), ('B', 9), ('V', 13)], &[(0, ids)]);
}

#[test]
fn an_index_outside_reads_zero() {
    let mut r = region(Template::StridedMap, "AC", 2, vec![Instr::Load(0), Instr::Load(1)]);
    r.inputs = vec![dense(3, &[0]), Layout { axes: vec![Index::Value(0), Index::Domain(1)], dtype: 0 }];
    r.extra_axes = axes("V");
    r.outputs = vec![(1, dense(0, &[0, 1]))];
    let sizes = axes("ACV").into_iter().zip([3, 2, 4]).collect();
    let program = TileProgram::new(&r, &sizes, |d| d, |_| None, 1).unwrap();
    let (mut ids, mut table) = (Owned::ids(&[-1, 1, 4]), Owned::of(DType::F32, &noise(1, 8)));
    let mut out = Owned::poisoned(DType::F32, 6);
    let (inputs, outputs) = ([ids.buf(), table.buf()], [out.buf()]);
    let args = TileArgs { inputs: &inputs, outputs: &outputs, accumulate: &[], streams: &[], step: 0 };
    program.run(&Pool::serial(), &args, &mut vec![f32::NAN; program.workspace_len()]);
    let (got, x) = (out.values(), table.values());
    assert_eq!(got, [0.0, 0.0, x[2], x[3], 0.0, 0.0]);
}

#[test]
fn random_numbers_follow_the_global_index() {
    let code =
        vec![Instr::Uniform(0), Instr::Load(0), Instr::Binary(Gt, 0, 1), Instr::Select(2, 1, 0), Instr::Uniform(1)];
    let mut r = region(Template::FlatMap, "AB", 2, code);
    r.inputs = vec![dense(0, &[0, 1])];
    r.streams = vec![Stream { site: 0, axes: vec![0, 1] }, Stream { site: 1, axes: vec![1, 0] }];
    r.outputs = vec![(3, dense(0, &[0, 1])), (0, dense(0, &[0, 1])), (4, dense(0, &[0, 1]))];
    for (a, b) in [(1, 1), (3, 5), (7, 64), (3, 1021), (33, 129)] {
        check(&r, &[('A', a), ('B', b)], &[]);
    }
}

#[test]
fn a_part_of_a_split_axis_has_the_numbers_of_the_whole() {
    let mut r = region(Template::FlatMap, "AB", 2, vec![Instr::Uniform(0), Instr::Iota(0), Instr::Iota(1)]);
    r.streams = vec![Stream { site: 0, axes: vec![0, 1] }];
    r.outputs = (0..3).map(|i| (i, dense(0, &[0, 1]))).collect();
    let run = |a: usize, part: Option<Part>| {
        let sizes = axes("AB").into_iter().zip([a, 37]).collect();
        let of = |axis: Axis| if axis == Axis::new("A") { part } else { None };
        let program = TileProgram::new(&r, &sizes, |d| d, of, 1).unwrap();
        let mut out: Vec<Owned> = (0..3).map(|_| Owned::poisoned(DType::F32, a * 37)).collect();
        let outputs: Vec<Buf> = out.iter_mut().map(|o| o.buf()).collect();
        let streams = [StreamArg { key: 9, offset: 0 }];
        let args = TileArgs { inputs: &[], outputs: &outputs, accumulate: &[], streams: &streams, step: 1 };
        program.run(&Pool::serial(), &args, &mut vec![f32::NAN; program.workspace_len()]);
        out.iter_mut().map(|o| o.values()).collect::<Vec<_>>()
    };
    let whole = run(10, None);
    let part = run(4, Some(Part { offset: 6, whole: 10 }));
    for (w, p) in whole.iter().zip(&part) {
        assert_eq!(&w[6 * 37..], p.as_slice());
    }
}

#[test]
fn segment_sums() {
    let sum = Instr::SegmentSum { values: 0, order: 1, starts: 2, ends: 3 };
    let mut r = region(Template::SegmentSum, "VCD", 1, vec![sum, Instr::Scalar(0), Instr::Binary(Mul, 0, 1)]);
    for dtype in [0, 1] {
        for width in [1, 5, 64, 130] {
            r.inputs = vec![dense(dtype, &[]), dense(3, &[]), dense(3, &[]), dense(3, &[])];
            r.scalars = vec![ScalarArg::Literal(Attr::Float(0.5))];
            r.outputs = vec![(2, dense(0, &[0, 1, 2]))];
            let values = (0..9 * 2 * width).map(|i| (i * 13 % 17) as i32 - 8).collect();
            let order = vec![4, 8, 0, 1, 7, 2, 3, 5, 6];
            let starts = vec![0, 2, 2, 5];
            let ends = vec![2, 2, 5, 9];
            check(&r, &[('V', 4), ('C', 2), ('D', width)], &[(0, values), (1, order), (2, starts), (3, ends)]);
        }
    }
}

#[test]
fn an_output_may_replace_its_input() {
    let code =
        vec![Instr::Load(0), Instr::Load(1), Instr::RowSum(0), Instr::Binary(Add, 0, 2), Instr::Binary(Mul, 3, 1)];
    let mut r = region(Template::Row, "AB", 1, code);
    r.inputs = vec![dense(0, &[0, 1]), dense(0, &[0, 1])];
    r.outputs = vec![(4, dense(0, &[0, 1]))];
    let sizes = axes("AB").into_iter().zip([67, 129]).collect();
    let program = TileProgram::new(&r, &sizes, |d| d, |_| None, 2).unwrap();
    let run = |in_place: bool| {
        let mut a = Owned::of(DType::F32, &noise(1, 67 * 129));
        let (mut b, mut c) = (Owned::of(DType::F32, &noise(2, 67 * 129)), Owned::poisoned(DType::F32, 67 * 129));
        let (inputs, outputs) = ([a.buf(), b.buf()], [if in_place { a.buf() } else { c.buf() }]);
        let args = TileArgs { inputs: &inputs, outputs: &outputs, accumulate: &[], streams: &[], step: 0 };
        program.run(&Pool::new(2).unwrap(), &args, &mut vec![f32::NAN; program.workspace_len()]);
        if in_place { a.bits() } else { c.bits() }
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_replaced_input_that_is_read_again_is_still_whole() {
    // The first output takes the place of an operand that the region reads once more, after it.
    let code = vec![Instr::Load(0), Instr::Load(1), Instr::Binary(Add, 0, 1), Instr::Load(2), Instr::Binary(Mul, 3, 1)];
    let mut r = region(Template::FlatMap, "A", 1, code);
    r.inputs = vec![dense(0, &[0]); 3];
    r.outputs = vec![(2, dense(0, &[0])), (4, dense(0, &[0]))];
    let n = 5000;
    let sizes = axes("A").into_iter().zip([n]).collect();
    let program = TileProgram::new(&r, &sizes, |d| d, |_| None, 2).unwrap();
    let run = |replaces: bool| {
        let mut a = Owned::of(DType::F32, &noise(1, n));
        let mut b = Owned::of(DType::F32, &noise(2, n));
        let [mut c, mut d] = [(); 2].map(|()| Owned::poisoned(DType::F32, n));
        let inputs = [a.buf(), b.buf(), a.buf()];
        let outputs = [if replaces { a.buf() } else { c.buf() }, d.buf()];
        let args = TileArgs { inputs: &inputs, outputs: &outputs, accumulate: &[], streams: &[], step: 0 };
        program.run(&Pool::new(2).unwrap(), &args, &mut vec![f32::NAN; program.workspace_len()]);
        [if replaces { a.bits() } else { c.bits() }, d.bits()]
    };
    assert_eq!(run(true), run(false));
}

#[test]
fn a_configuration_value_must_be_bound() {
    let mut r = region(Template::FlatMap, "", 0, vec![Instr::Scalar(0)]);
    r.scalars = vec![ScalarArg::Literal(Attr::Config("rate".into()))];
    r.outputs = vec![(0, dense(0, &[]))];
    let error = TileProgram::new(&r, &Sizes::new(), |d| d, |_| None, 1).err();
    assert_eq!(error, Some(TileError::UnboundConfig("rate".into())));
}
