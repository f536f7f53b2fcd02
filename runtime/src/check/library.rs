//! Library operations on a device against the f64 interpreter: products, attention and its derivative, losses, sorts, windows.
//!
//! In: a device. Out: the first element that is too far from the truth. Results are full of NaN before a launch.

use crate::device::cube::{Attention, Buffer, CubeDevice, CubeError, DotTables, LossBackward, Scratch, Sort, Window};
use crate::random;
use kiln_compiler::interp::{self, Array, round};
use kiln_compiler::ir::{Attrs, Axis, Builder, DType, Sizes, Type};
use kiln_compiler::ops::EvalCx;

/// Why a check failed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LibraryError {
    /// The device refuses a launch.
    #[error(transparent)]
    Refused(#[from] CubeError),
    /// A wrong value.
    #[error("{what}: element {index} is {found}, not {expected}")]
    Differs {
        /// The operation, its sizes and types.
        what: String,
        /// Row-major position.
        index: usize,
        /// What the device computed.
        found: f64,
        /// What it should be.
        expected: f64,
    },
}

/// A check of one operation.
pub type LibraryCheck = fn(&CubeDevice) -> Result<(), LibraryError>;

/// Every check with its name.
pub fn checks() -> Vec<(&'static str, LibraryCheck)> {
    vec![
        ("products are einsums", products_are_einsums),
        ("products add to gradients", products_add_to_gradients),
        ("attention and its derivative", attention_and_its_derivative),
        ("losses and their derivatives", losses_and_their_derivatives),
        ("ids are sorted stably", ids_are_sorted_stably),
        ("windows slice, pad and join", windows_slice_pad_and_join),
    ]
}

fn uploaded<const N: usize>(device: &CubeDevice, operands: [&Operand; N]) -> Result<[Buffer; N], LibraryError> {
    let buffers = operands.into_iter().map(|o| o.upload(device)).collect::<Result<Vec<Buffer>, _>>()?;
    Ok(buffers.try_into().expect("as many buffers as operands"))
}

fn axes(names: &str) -> Vec<Axis> {
    names.chars().map(|c| Axis::new(&c.to_string())).collect()
}

fn sizes(names: &str, dims: &[usize]) -> Sizes {
    axes(names).into_iter().zip(dims.iter().copied()).collect()
}

/// An operand: axes, type, values that the type holds.
struct Operand {
    shape: Vec<Axis>,
    dtype: DType,
    array: Array,
}

impl Operand {
    /// Both signs, up to 2.
    fn random(seed: u64, shape: &str, dtype: DType, sizes: &Sizes) -> Operand {
        let shape = axes(shape);
        let number = |i: usize| round(dtype, f64::from(4.0 * random::uniform(seed, i as u64, 0) - 2.0));
        let array = Array::new(sizes.shape(&shape), (0..sizes.elements(&shape)).map(number).collect());
        Operand { shape, dtype, array }
    }

    /// Ids from −1 to `below` − 1.
    fn ids(seed: u64, shape: &str, below: usize, sizes: &Sizes) -> Operand {
        let mut ids = Operand::random(seed, shape, DType::F32, sizes);
        ids.array.data.iter_mut().for_each(|x| *x = ((*x + 2.0) / 4.0 * (below + 1) as f64).floor() - 1.0);
        Operand { dtype: DType::I32, ..ids }
    }

    fn upload(&self, device: &CubeDevice) -> Result<Buffer, LibraryError> {
        Ok(device.upload(self.dtype, &self.array.data)?)
    }
}

/// The interpreter's results.
fn eval(op: &str, attrs: Attrs, operands: &[&Operand], sizes: &Sizes) -> Vec<Array> {
    let mut b = Builder::default();
    let inputs: Vec<_> = operands.iter().map(|o| b.func.add_input(Type::new(o.dtype, o.shape.clone()), "x")).collect();
    b.func.outputs = b.ops(op, attrs, &inputs);
    let arrays: Vec<Array> = operands.iter().map(|o| o.array.clone()).collect();
    interp::run(&EvalCx { sizes, uniform: &|_, _| 0.0 }, &b.func, &arrays)
}

/// A result full of NaN.
fn result(device: &CubeDevice, dtype: DType, like: &Array) -> Result<Buffer, LibraryError> {
    let fill = if dtype == DType::I32 { f64::from(i32::MIN) } else { f64::NAN };
    Ok(device.upload(dtype, &vec![fill; like.data.len()])?)
}

/// Largest relative error of a rounding to a type.
fn unit(dtype: DType) -> f64 {
    match dtype {
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
        _ => 0.0,
    }
}

/// Rounding errors of f32 sums, relative to the largest element, and one unit of the stored type.
fn close(device: &CubeDevice, what: &str, buffer: &Buffer, dtype: DType, expected: &Array) -> Result<(), LibraryError> {
    close_within(device, what, buffer, dtype, expected, |_| 0.0)
}

/// The same, and beside it what element `i` may lack because a factor of its terms was rounded.
fn close_within(
    device: &CubeDevice,
    what: &str,
    buffer: &Buffer,
    dtype: DType,
    expected: &Array,
    rounded: impl Fn(usize) -> f64,
) -> Result<(), LibraryError> {
    const SUMS: f64 = 64.0 * f32::EPSILON as f64;
    let unit = unit(dtype);
    let scale = expected.data.iter().filter(|x| x.is_finite()).fold(0.0f64, |m, x| m.max(x.abs()));
    assert!(scale > 0.0, "{what}: zeros prove nothing");
    let is_close = |i: usize, f: f64, e: f64| f == e || (f - e).abs() <= SUMS * scale + unit * e.abs() + rounded(i);
    compare(what, &device.download(buffer)?, &expected.data, is_close)
}

/// Bit by bit.
fn equal(device: &CubeDevice, what: &str, buffer: &Buffer, expected: &[f64]) -> Result<(), LibraryError> {
    compare(what, &device.download(buffer)?, expected, |_, f, e| f == e)
}

fn compare(
    what: &str,
    found: &[f64],
    expected: &[f64],
    is_close: impl Fn(usize, f64, f64) -> bool,
) -> Result<(), LibraryError> {
    assert_eq!(found.len(), expected.len(), "{what}: elements");
    match (0..found.len()).find(|&i| !is_close(i, found[i], expected[i])) {
        None => Ok(()),
        Some(index) => {
            Err(LibraryError::Differs { what: what.to_owned(), index, found: found[index], expected: expected[index] })
        }
    }
}

const FLOATS: [DType; 3] = [DType::F32, DType::Bf16, DType::F16];

fn products_are_einsums(device: &CubeDevice) -> Result<(), LibraryError> {
    let sizes = sizes("BSDGRKFTV", &[2, 9, 37, 3, 2, 10, 33, 5, 300]);
    for (a, b, c) in [
        ("BSD", "DF", "BSF"),
        ("BSD", "DGRK", "BGRSK"),
        ("BGRSK", "GRKD", "BSD"),
        ("BSD", "BSF", "DF"),
        ("BSF", "DF", "BSD"),
        ("BGSK", "BGTK", "BGST"),
        ("BSV", "VD", "BSD"),
        ("D", "F", "DF"),
        ("BSD", "BSD", ""),
    ] {
        for dtype in FLOATS {
            let x = Operand::random(1, a, dtype, &sizes);
            let w = Operand::random(2, b, dtype, &sizes);
            let attrs = Attrs::new().with("out", axes(c));
            let expected = eval("dot_general", attrs, &[&x, &w], &sizes).remove(0);
            let tables = DotTables::new(&x.shape, &w.shape, &axes(c), &sizes).expect("an einsum");
            let dot = device.prepare_dot(&tables, [dtype, dtype, dtype], None)?;
            let y = result(device, dtype, &expected)?;
            device.dot(&dot, [&x.upload(device)?, &w.upload(device)?, &y], false, &mut Scratch::Pool)?;
            close(device, &format!("{a},{b}->{c} in {dtype}"), &y, dtype, &expected)?;
        }
    }
    Ok(())
}

fn products_add_to_gradients(device: &CubeDevice) -> Result<(), LibraryError> {
    let sizes = sizes("BDF", &[70, 9, 11]);
    let (x, d) = (Operand::random(1, "BD", DType::F32, &sizes), Operand::random(2, "BF", DType::F32, &sizes));
    let old = Operand::random(3, "DF", DType::F32, &sizes);
    let mut expected = eval("dot_general", Attrs::new().with("out", axes("DF")), &[&x, &d], &sizes).remove(0);
    expected.data.iter_mut().zip(&old.array.data).for_each(|(e, o)| *e += o);
    let tables = DotTables::new(&x.shape, &d.shape, &axes("DF"), &sizes).expect("an einsum");
    let dot = device.prepare_dot(&tables, [DType::F32; 3], None)?;
    let y = old.upload(device)?;
    device.dot(&dot, [&x.upload(device)?, &d.upload(device)?, &y], true, &mut Scratch::Pool)?;
    close(device, "accumulated", &y, DType::F32, &expected)?;
    Ok(())
}

fn attention_and_its_derivative(device: &CubeDevice) -> Result<(), LibraryError> {
    for (dims, causal) in [
        ([2, 3, 2, 35, 35, 10], true),
        ([1, 2, 1, 17, 40, 6], false),
        ([2, 1, 3, 12, 20, 7], true),
        // Heads that tensor cores take.
        ([1, 2, 2, 70, 70, 64], true),
        ([1, 1, 1, 33, 50, 16], false),
        // Heads that only tiles in shared memory take: a group of three, a wide one, queries without keys.
        ([1, 1, 3, 40, 75, 20], true),
        ([1, 2, 1, 70, 30, 100], true),
    ] {
        let sizes = sizes("BGRSTK", &dims);
        for dtype in FLOATS {
            let what = format!("{dims:?} in {dtype}");
            let q = Operand::random(1, "BGRSK", dtype, &sizes);
            let [k, v] = [2, 3].map(|seed| Operand::random(seed, "BGTK", dtype, &sizes));
            let attrs = || Attrs::new().with("causal", causal);
            let [o, lse] = eval("attention", attrs(), &[&q, &k, &v], &sizes).try_into().expect("two results");
            let plan = Attention::new(&q.shape, &k.shape, &sizes, causal);
            let operands = uploaded(device, [&q, &k, &v])?;
            let (found_o, found_lse) = (result(device, dtype, &o)?, result(device, DType::F32, &lse)?);
            let [dq, dk, dv] = &operands;
            device.attention(&plan, [dq, dk, dv], [&found_o, &found_lse], None)?;
            // On tensor cores probabilities, and later the cotangents of scores, are rounded before they are multiplied.
            let rounds = if device.attention_rounds(&plan, dtype) { unit(dtype) } else { 0.0 };
            let absolute = |x: &Operand| {
                let array = Array::new(x.array.dims.clone(), x.array.data.iter().map(|x| x.abs()).collect());
                Operand { shape: x.shape.clone(), dtype: x.dtype, array }
            };
            let of_o = &eval("attention", attrs(), &[&q, &k, &absolute(&v)], &sizes)[0];
            close_within(device, &format!("o of {what}"), &found_o, dtype, &o, |i| rounds * of_o.data[i])?;
            close(device, &format!("lse of {what}"), &found_lse, DType::F32, &lse)?;

            let rounded = |a: &Array| Array::new(a.dims.clone(), a.data.iter().map(|&x| round(dtype, x)).collect());
            let o = Operand { shape: q.shape.clone(), dtype, array: rounded(&o) };
            let lse = Operand { shape: q.shape[..4].to_vec(), dtype: DType::F32, array: lse };
            let d_o = Operand::random(4, "BGRSK", dtype, &sizes);
            let expected = eval("attention_vjp", attrs(), &[&q, &k, &v, &o, &lse, &d_o], &sizes);
            let results = expected.iter().map(|e| result(device, dtype, e)).collect::<Result<Vec<Buffer>, _>>()?;
            let lacking = rounded_factors([&q, &k, &v, &o, &lse, &d_o], &plan);
            let [o, lse, d_o] = uploaded(device, [&o, &lse, &d_o])?;
            let inputs = [dq, dk, dv, &o, &lse, &d_o];
            let outputs = [&results[0], &results[1], &results[2]];
            device.attention_vjp(&plan, inputs, outputs, [None; 3], &mut Scratch::Pool)?;
            for (i, name) in ["dq", "dk", "dv"].iter().enumerate() {
                let what = format!("{name} of {what}");
                close_within(device, &what, &results[i], dtype, &expected[i], |at| rounds * lacking[i][at])?;
            }
        }
    }
    Ok(())
}

/// Σ |dS|·|k|/√K, Σ |dS|·|q|/√K and Σ P·|ō|, element by element: what the cotangents of queries, keys and values lack at most when dS and P
/// are rounded, in units of the rounding.
fn rounded_factors([q, k, v, o, lse, d_o]: [&Operand; 6], plan: &Attention) -> [Vec<f64>; 3] {
    let [heads, group, s, t] = plan.indices();
    let head = q.array.data.len() / (heads * s);
    let scale = 1.0 / (head as f64).sqrt();
    let [q, k, v, o, d_o] = [q, k, v, o, d_o].map(|x| x.array.data.as_slice());
    let mut sums = [vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; k.len()]];
    let row = |x: &'_ [f64], at: usize| x[at * head..(at + 1) * head].to_vec();
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    for query in 0..heads * s {
        let delta = dot(&row(o, query), &row(d_o, query));
        for j in 0..t {
            if !plan.sees(query % s, j) {
                continue;
            }
            let key = query / s / group * t + j;
            let p = (dot(&row(q, query), &row(k, key)) * scale - lse.array.data[query]).exp();
            let d_score = (p * (dot(&row(d_o, query), &row(v, key)) - delta)).abs() * scale;
            for x in 0..head {
                sums[0][query * head + x] += d_score * k[key * head + x].abs();
                sums[1][key * head + x] += d_score * q[query * head + x].abs();
                sums[2][key * head + x] += p * d_o[query * head + x].abs();
            }
        }
    }
    sums
}

fn losses_and_their_derivatives(device: &CubeDevice) -> Result<(), LibraryError> {
    // The second has more logits than one chunk holds.
    for (dims, dtype) in [([37, 257, 20], DType::F32), ([4500, 1000, 6], DType::F32), ([37, 257, 20], DType::Bf16)] {
        let [rows, vocab, d] = dims;
        let sizes = sizes("BVD", &dims);
        let what = format!("{dims:?} in {dtype}");
        let (x, w) = (Operand::random(1, "BD", dtype, &sizes), Operand::random(2, "VD", dtype, &sizes));
        let targets = Operand::ids(3, "B", vocab, &sizes);
        let expected = eval("linear_cross_entropy", Attrs::new(), &[&x, &w, &targets], &sizes);
        let types = [dtype, dtype, dtype, DType::F32];
        let plan = device.prepare_loss([rows, vocab, d], types, [None; 2])?;
        let found = expected.iter().map(|e| result(device, DType::F32, e)).collect::<Result<Vec<Buffer>, _>>()?;
        let operands = uploaded(device, [&x, &w, &targets])?;
        let [gx, gw, gt] = &operands;
        device.loss(&plan, [gx, gw, gt], [&found[0], &found[1], &found[2]], &mut Scratch::Pool)?;
        for (name, (found, expected)) in ["sum", "count", "lse"].iter().zip(found.iter().zip(&expected)) {
            close(device, &format!("{name} of {what}"), found, DType::F32, expected)?;
        }

        let lse = Operand { shape: axes("B"), dtype: DType::F32, array: expected[2].clone() };
        let d_sum = Operand { shape: Vec::new(), dtype: DType::F32, array: Array::scalar(0.75) };
        let gradients = eval("linear_cross_entropy_vjp", Attrs::new(), &[&x, &w, &targets, &lse, &d_sum], &sizes);
        let dx = result(device, dtype, &gradients[0])?;
        let dw = Operand::random(5, "VD", DType::F32, &sizes);
        let total = dw.array.data.iter().zip(&gradients[1].data).map(|(a, b)| a + b).collect();
        let found_dw = dw.upload(device)?;
        let [lse, d_sum] = uploaded(device, [&lse, &d_sum])?;
        device.loss_vjp(&plan, [gx, gw, gt, &lse, &d_sum], [&dx, &found_dw], true, &mut Scratch::Pool)?;
        // Loss and derivative at once, which may share a kernel.
        let again = expected.iter().map(|e| result(device, DType::F32, e)).collect::<Result<Vec<Buffer>, _>>()?;
        let (again_dx, again_dw) = (result(device, dtype, &gradients[0])?, dw.upload(device)?);
        let backward = LossBackward { d_sum: &d_sum, dx: &again_dx, dw: &again_dw, accumulate: true };
        let results = [&again[0], &again[1], &again[2]];
        device.loss_with_vjp(&plan, [gx, gw, gt], results, backward, &mut Scratch::Pool)?;
        for (name, again, expected) in [("sum", &again[0], &expected[0]), ("lse", &again[2], &expected[2])] {
            close(device, &format!("{name} of {what}, at once"), again, DType::F32, expected)?;
        }
        // On tensor cores the cotangents of logits are rounded before they are multiplied.
        let rounds = unit(plan.gradient());
        let absolute = |a: &Array| a.data.iter().map(|x| x.abs()).collect::<Vec<f64>>();
        let d_logits = cotangents(&x.array.data, &w.array.data, &targets.array.data, &expected[2].data, 0.75);
        let (of_x, of_w) = (absolute(&x.array), absolute(&w.array));
        let lacking_x =
            |i: usize| (0..vocab).map(|c| d_logits[i / d * vocab + c].abs() * of_w[c * d + i % d]).sum::<f64>();
        let lacking_w =
            |i: usize| (0..rows).map(|r| d_logits[r * vocab + i / d].abs() * of_x[r * d + i % d]).sum::<f64>();
        close_within(device, &format!("dx of {what}"), &dx, dtype, &gradients[0], |i| rounds * lacking_x(i))?;
        let total = Array::new(gradients[1].dims.clone(), total);
        close_within(device, &format!("dw of {what}"), &found_dw, DType::F32, &total, |i| rounds * lacking_w(i))?;
        let (one, other) = (format!("dx of {what}, at once"), format!("dw of {what}, at once"));
        close_within(device, &one, &again_dx, dtype, &gradients[0], |i| rounds * lacking_x(i))?;
        close_within(device, &other, &again_dw, DType::F32, &total, |i| rounds * lacking_w(i))?;
    }
    Ok(())
}

/// Cotangents of logits, \[rows, V\].
fn cotangents(x: &[f64], w: &[f64], targets: &[f64], lse: &[f64], d_sum: f64) -> Vec<f64> {
    let (rows, d) = (targets.len(), x.len() / targets.len());
    let vocab = w.len() / d;
    let of = |at: usize| {
        let (row, v) = (at / vocab, at % vocab);
        let logit = (0..d).map(|i| x[row * d + i] * w[v * d + i]).sum::<f64>();
        let hit = if targets[row] == v as f64 { 1.0 } else { 0.0 };
        if targets[row] < 0.0 { 0.0 } else { ((logit - lse[row]).exp() - hit) * d_sum }
    };
    (0..rows * vocab).map(of).collect()
}

fn ids_are_sorted_stably(device: &CubeDevice) -> Result<(), LibraryError> {
    // The last two fill more than one chunk.
    for (n, bins) in [(1, 1), (200, 7), (77, 300), (2500, 37), (1025, 2000)] {
        let sizes = sizes("NV", &[n, bins]);
        let ids = Operand::ids(n as u64, "N", bins, &sizes);
        let expected = eval("sort_index", Attrs::new().with("axis", Axis::new("V")), &[&ids], &sizes);
        let found = expected.iter().map(|e| result(device, DType::I32, e)).collect::<Result<Vec<Buffer>, _>>()?;
        let results = [&found[0], &found[1], &found[2]];
        device.sort_index(&Sort { ids: n, bins }, &ids.upload(device)?, results, &mut Scratch::Pool)?;
        for (found, expected) in found.iter().zip(&expected) {
            equal(device, &format!("{n} ids below {bins}"), found, &expected.data)?;
        }
    }
    Ok(())
}

fn windows_slice_pad_and_join(device: &CubeDevice) -> Result<(), LibraryError> {
    let sizes = sizes("ABCDE", &[3, 11, 5, 4, 15]);
    let x = Operand::random(1, "ABC", DType::F32, &sizes);
    let along = |axis: &str, to: &str| Attrs::new().with("axis", Axis::new(axis)).with("to", Axis::new(to));
    let check = |name: &str, window: Window, attrs: Attrs, x: &Operand| -> Result<(), LibraryError> {
        let expected = eval(name, attrs, &[x], &sizes).remove(0);
        let y = result(device, DType::Bf16, &expected)?;
        device.window(&window, &x.upload(device)?, &y)?;
        let rounded = expected.data.iter().map(|&e| round(DType::Bf16, e)).collect::<Vec<_>>();
        equal(device, name, &y, &rounded)
    };
    let slice = Window::new(3, 5, (11, 6), (4, 0), 4, true);
    check("slice", slice, along("B", "D").with("start", 6i64), &x)?;
    let pad = Window::new(3, 5, (11, 0), (15, 3), 11, true);
    check("pad", pad, along("B", "E").with("before", 3i64), &x)?;

    let z = Operand::random(2, "ADC", DType::F32, &sizes);
    let attrs = along("B", "E").with("other", Axis::new("D"));
    let expected = eval("concat", attrs, &[&x, &z], &sizes).remove(0);
    let y = result(device, DType::F32, &expected)?;
    let parts = [Window::new(3, 5, (11, 0), (15, 0), 11, false), Window::new(3, 5, (4, 0), (15, 11), 4, false)];
    for (part, operand) in parts.iter().zip([&x, &z]) {
        device.window(part, &operand.upload(device)?, &y)?;
    }
    equal(device, "concat", &y, &expected.data)
}
