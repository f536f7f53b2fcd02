//! Differentiation of whole functions: against central differences, across calls, and the rounding of cotangents.

use crate::models::{self, Model, agree, checked, simplified};
use kiln_compiler::diff::{self, Activity, Joint};
use kiln_compiler::interp::{self, Array};
use kiln_compiler::ir::{Builder, DType, Func, Node, ValueId};
use kiln_compiler::simplify;
use std::collections::{BTreeSet, HashMap};

/// Step of the five-point stencil: its error is of order h⁴ = 1e-12, that of rounding 1e-16/h = 1e-13.
const H: f64 = 1e-3;
/// PyTorch's gradcheck in f64.
const RTOL: f64 = 1e-6;
const ATOL: f64 = 1e-8;
/// Two ways to the same f64 value, each with fewer than a thousand roundings of 1e-16.
const SAME: f64 = 1e-12;
/// Elements of an argument whose derivatives are checked one by one.
const SAMPLED: usize = 16;

/// Σ of the products of outputs and their cotangents, where the joint function takes one.
fn weighed(joint: &Joint, outputs: &[Array], cotangents: &[Array]) -> f64 {
    let taken = outputs.iter().zip(&joint.output_cotangents).filter(|(_, t)| **t).map(|(y, _)| y);
    taken.zip(cotangents).flat_map(|(y, u)| y.data.iter().zip(&u.data)).map(|(y, u)| y * u).sum()
}

#[test]
fn gradients_of_whole_functions_match_central_differences() {
    for model in models::all() {
        let joint = model.joint(&model.rounded(DType::F32));
        let func = simplified(&joint);
        let arguments = model.arguments(&func, 3);
        let (x, u) = arguments.split_at(joint.n_inputs);
        let results = model.run(&func, &arguments);
        agree(&results[..joint.n_outputs], &model.run(&model.func, x), SAME).unwrap();
        let mut pulled = results[joint.n_outputs..].iter();
        let mut compared = 0;
        let mut random = models::Random(5);
        for i in (0..x.len()).filter(|&i| joint.input_cotangents[i]) {
            let d = pulled.next().unwrap();
            let n = x[i].data.len();
            let elements: BTreeSet<usize> =
                if n <= SAMPLED { (0..n).collect() } else { (0..SAMPLED).map(|_| random.below(n)).collect() };
            for e in elements {
                let at = |t: f64| {
                    let mut moved = x.to_vec();
                    moved[i].data[e] += t;
                    weighed(&joint, &model.run(&model.func, &moved), u)
                };
                let expected = (at(-2.0 * H) - 8.0 * at(-H) + 8.0 * at(H) - at(2.0 * H)) / (12.0 * H);
                let found = d.data[e];
                let close = (found - expected).abs() <= ATOL + RTOL * expected.abs().max(found.abs());
                // `stop_gradient` means another derivative than the function's.
                if model.name != "tangle" {
                    assert!(close, "{}: argument {i}, element {e}: {found} instead of {expected}", model.name);
                }
                compared += 1;
            }
        }
        assert!(pulled.next().is_none() && compared > 10, "{}", model.name);
    }
}

#[test]
fn a_stopped_gradient_is_that_of_a_constant() {
    // f = Σ_D s·(sin x·w)·sin x · z + sin x·w with s = sin x held fixed: worked out by hand.
    let model = models::tangle();
    let joint = model.joint(&model.rounded(DType::F32));
    let func = simplified(&joint);
    let arguments = model.arguments(&func, 3);
    let [x, z, w, idle, df, de] = arguments.as_slice() else { panic!("{} arguments", arguments.len()) };
    let [_, _, dx, dz, dw, didle] = &model.run(&func, &arguments)[..] else { panic!("six results") };
    let (rows, columns) = (x.dims[0], x.dims[1]);
    let at = |a: &Array, b: usize, d: usize| a.data[b * columns + d];
    let mut expected =
        [Array::full(x.dims.clone(), 0.0), Array::full(z.dims.clone(), 0.0), Array::full(w.dims.clone(), 0.0)];
    for b in 0..rows {
        // ē collects what the broadcast sums, and the second output's own cotangent.
        let e_bar = de.data[b] + (0..columns).map(|d| at(df, b, d)).sum::<f64>();
        for d in 0..columns {
            let (s, cos, w_d) = (at(x, b, d).sin(), at(x, b, d).cos(), w.data[d]);
            let product_bar = e_bar * z.data[b];
            // c·h with c = s·a, a = h·w; s is fixed.
            let a_bar = product_bar * s * s + at(df, b, d);
            let h_bar = a_bar * w_d + product_bar * s * s * w_d;
            expected[0].data[b * columns + d] = h_bar * cos;
            expected[1].data[b] += e_bar * s * s * s * w_d;
            expected[2].data[d] += a_bar * s;
        }
    }
    agree(&[dx.clone(), dz.clone(), dw.clone()], &expected, SAME).unwrap();
    assert_eq!(*didle, Array::full(idle.dims.clone(), 0.0), "no influence: zero, and present");
}

#[test]
fn without_differentiated_outputs_gradients_are_zero() {
    let model = models::swiglu();
    let func = model.rounded(DType::Bf16);
    let joint = diff::run(&func, &model.activity, &[false]).unwrap();
    assert_eq!((joint.output_cotangents.as_slice(), joint.input_cotangents.as_slice()), (&[false][..], &[true; 4][..]));
    let results = model.run(&simplified(&joint), &model.arguments(&func, 1));
    assert!(results[1..].iter().all(|d| d.data.iter().all(|&d| d == 0.0)));
}

#[test]
fn simplification_keeps_values_with_casts() {
    for model in models::all() {
        for compute in [DType::Bf16, DType::F16] {
            let joint = model.joint(&model.rounded(compute));
            let arguments = model.arguments(&joint.func, 11);
            let truth = model.run(&joint.func, &arguments);
            let passes: [(&str, Func); 4] = [
                ("expand", simplify::expand(&joint.func)),
                ("cse", simplify::cse(&joint.func)),
                ("dce", simplify::dce(&joint.func)),
                ("simplify", simplify::run(&joint.func)),
            ];
            for (pass, func) in passes {
                let same = agree(&model.run(&checked(func), &arguments), &truth, SAME);
                same.unwrap_or_else(|e| panic!("{} in {compute}, {pass}: {e}", model.name));
            }
        }
    }
}

#[test]
fn cotangents_have_the_type_of_their_values_and_gradients_are_f32() {
    for model in models::all() {
        let func = model.rounded(DType::Bf16);
        let joint = model.joint(&func);
        let mut returned = joint.func.outputs[joint.n_outputs..].iter();
        for (i, &v) in func.inputs.iter().enumerate().filter(|(i, _)| joint.input_cotangents[*i]) {
            let found = joint.func.ty(*returned.next().unwrap());
            let dtype = if model.activity[i] == Activity::Parameter { DType::F32 } else { func.ty(v).dtype };
            assert_eq!(*found, func.ty(v).with(dtype), "{}: argument {i}", model.name);
        }
    }
}

#[test]
fn contributions_are_summed_before_they_are_rounded_once() {
    let mut b = Builder::default();
    let x = models::input(&mut b, "x", "B D");
    let w = models::input(&mut b, "w", "B D");
    let mut outputs = Vec::new();
    for c in [0.37, 1.61, -0.73] {
        let y = b.mul(x, w);
        outputs.push(b.scale(y, c));
    }
    let model = Model::new("sum", b, &outputs);
    let func = model.rounded(DType::Bf16);
    let joint = model.joint(&func);
    let arguments = model.arguments(&joint.func, 2);
    let results = model.run(&joint.func, &arguments);
    let round = |x: f64| interp::round(DType::Bf16, x);
    let [dx, dw] = &results[3..] else { panic!("two gradients") };
    let mut differs = 0;
    for e in 0..dx.data.len() {
        let (x, w) = (arguments[0].data[e], arguments[1].data[e]);
        // Each product is one operation, whose result and whose cotangent are rounded.
        let products: Vec<f64> =
            [0.37, 1.61, -0.73].iter().zip(&arguments[2..]).map(|(c, d)| round(c * d.data[e])).collect();
        let sum = |f: &dyn Fn(f64) -> f64| products.iter().map(|&p| f(p)).sum::<f64>();
        assert!((dx.data[e] - round(sum(&|p| p * w))).abs() < SAME, "element {e}");
        assert!((dw.data[e] - sum(&|p| p * x)).abs() < SAME, "a parameter's gradient is not rounded");
        differs += usize::from(dx.data[e] != round(sum(&|p| round(p * w))));
    }
    assert!(differs > 0, "rounding each contribution would give other values");
}

/// Children in place of `call` and `call_vjp`; their parameters become arguments, and their gradients results, in order of calls.
fn linked(joint: &Joint, children: &[Model]) -> (Func, usize) {
    let old = &joint.func;
    let mut b = Builder::default();
    let mut map: HashMap<ValueId, ValueId> = HashMap::new();
    let add = |b: &mut Builder, func: &Func, v: ValueId| {
        b.func.add_input(func.ty(v).clone(), func.values[v.index()].name.as_deref().unwrap_or_default())
    };
    for &v in &old.inputs {
        map.insert(v, add(&mut b, old, v));
    }
    let rounded: Vec<Func> = children.iter().map(|c| c.rounded(DType::F32)).collect();
    let mut parameters: HashMap<usize, Vec<ValueId>> = HashMap::new();
    let mut gradients: HashMap<usize, Vec<ValueId>> = HashMap::new();
    let sub = |n: &Node| n.attrs.int("sub") as usize;
    for n in &old.nodes {
        let args: Vec<ValueId> = n.inputs.iter().map(|v| map[v]).collect();
        let outputs = match n.op.name {
            "call" => {
                let own =
                    rounded[sub(n)].inputs[args.len()..].iter().map(|&v| add(&mut b, &rounded[sub(n)], v)).collect();
                let own: &Vec<ValueId> = parameters.entry(sub(n)).or_insert(own);
                simplify::inline(&mut b, &rounded[sub(n)], &[args, own.clone()].concat())
            }
            "call_vjp" => {
                let taken = n.attrs.int("n_inputs") as usize;
                let (args, cotangents) = args.split_at(taken);
                let child = children[sub(n)].joint(&rounded[sub(n)]);
                let all = [args, &parameters[&sub(n)], cotangents].concat();
                let results = simplify::inline(&mut b, &child.func, &all);
                let (own, of_parameters) = results[child.n_outputs..].split_at(n.outputs.len());
                gradients.insert(sub(n), of_parameters.to_vec());
                own.to_vec()
            }
            _ => b.ops(n.op.name, n.attrs.clone(), &args),
        };
        map.extend(n.outputs.iter().copied().zip(outputs));
    }
    let own: usize = parameters.values().map(Vec::len).sum();
    b.func.outputs = old.outputs.iter().map(|v| map[v]).collect();
    for sub in 0..children.len() {
        b.func.outputs.extend(&gradients[&sub]);
    }
    (checked(b.func), own)
}

#[test]
fn backward_across_calls_is_that_of_the_inlined_function() {
    let whole = models::block(true);
    let joint = whole.joint(&whole.rounded(DType::F32));
    let arguments = whole.arguments(&joint.func, 9);
    let truth = whole.run(&joint.func, &arguments);

    let block = models::block(false);
    let (func, own) = linked(&block.joint(&block.rounded(DType::F32)), &[models::attention(), models::swiglu()]);
    // Arguments there: x, rope, norms, the cotangent, then the children's; here the cotangent is the last one.
    let mut reordered = arguments.clone();
    let cotangent = reordered.pop().unwrap();
    reordered.insert(reordered.len() - own, cotangent);
    agree(&block.run(&func, &reordered), &truth, SAME).unwrap();
}
