//! The recorded IR against text, and the mistakes that recording reports.

use super::model::*;
use crate::__private::{LayerDef, Recorder};
use crate::layer::Layer as _;
use crate::prelude::*;
use crate::tensor::{RecordError, record};
use kiln_compiler::ir::text::print_layer;
use kiln_compiler::ir::{ConfigValue, Func, Layer, Span, verify};
use std::collections::BTreeMap;

fn recorded(def: &'static LayerDef) -> Result<Layer, RecordError> {
    record(def, def.record.expect("the test model records every layer"), &BTreeMap::new())
}

fn without_spans(func: &mut Func) {
    for node in &mut func.nodes {
        node.span = Span::default();
        node.bodies.iter_mut().for_each(without_spans);
    }
}

fn body_text(def: &'static LayerDef) -> String {
    let mut layer = recorded(def).expect("the layer records");
    without_spans(&mut layer.body);
    layer.args.iter_mut().for_each(|a| a.span = Span::default());
    let layer = verify::layer(layer).expect("recorded IR verifies").into_inner();
    let text = print_layer(&layer);
    let start = text.find("  fn(").expect("a layer has a function");
    text[start..text.len() - 3].lines().map(|l| l.strip_prefix("  ").unwrap_or(l)).collect::<Vec<_>>().join("\n")
}

#[test]
fn swiglu_records_its_operations() {
    let expected = "\
fn(%0 x: f32[B, S, D], %1 gate: f32[D, F], %2 up: f32[D, F], %3 down: f32[F, D]) {
  %4: f32[B, S, F] = dot_general(%0, %1) {out=[B, S, F]}
  %5: f32[B, S, F] = silu(%4)
  %6: f32[B, S, F] = dot_general(%0, %2) {out=[B, S, F]}
  %7: f32[B, S, F] = mul(%5, %6)
  %8: f32[B, S, D] = dot_general(%7, %3) {out=[B, S, D]}
  return %8
}";
    assert_eq!(body_text(Swiglu::DEF), expected);
}

#[test]
fn a_block_calls_its_children_by_number() {
    let expected = "\
fn(%0 x: f32[B, S, D], %1 rope: f32[], %2 n1: f32[D], %3 n2: f32[D]) {
  %4: f32[B, S, D] = rms_norm(%0, %2) {eps=1e-5}
  %5: f32[B, S, D] = call(%4, %1) {dtype=:f32, out0=[B, S, D], outs=1, sub=0}
  %6: f32[B, S, D] = add(%0, %5)
  %7: f32[B, S, D] = rms_norm(%6, %3) {eps=1e-5}
  %8: f32[B, S, D] = call(%7) {dtype=:f32, out0=[B, S, D], outs=1, sub=1}
  %9: f32[B, S, D] = add(%6, %8)
  return %9
}";
    assert_eq!(body_text(Block::DEF), expected);
}

#[test]
fn a_loop_becomes_one_repeat() {
    let expected = "\
fn(%0 ids: i32[B, S], %1 emb: f32[V, D], %2 nf: f32[D]) {
  %3: f32[] = const() {shape=[], value=10000.0}
  %4: f32[B, S, D] = gather(%1, %0)
  %5: f32[B, S, D] = repeat(%4, %3) {axis='L, sub=0} fn(%0 captured: f32[B, S, D], %1 captured: f32[]) {
    %2: f32[B, S, D] = call(%0, %1) {dtype=:f32, out0=[B, S, D], outs=1, sub=0}
    return %2
  }
  %6: f32[B, S, D] = rms_norm(%5, %2) {eps=1e-5}
  return %6
}";
    assert_eq!(body_text(Trunk::DEF), expected);
}

#[test]
fn a_childs_parameter_becomes_a_tied_argument() {
    let layer = recorded(Gpt::DEF).expect("the layer records");
    assert_eq!(layer.args.last().map(|a| a.name.as_str()), Some("trunk.emb"));
    let expected = "\
fn(%0 ids: i32[B, S], %1 next: i32[B, S], %2 trunk.emb: f32[V, D]) {
  %3: f32[B, S, D] = call(%0) {dtype=:f32, out0=[B, S, D], outs=1, sub=0}
  %4: f32[], %5: f32[], %6: f32[B, S] = linear_cross_entropy(%3, %2, %1)
  return %4, %5
}";
    assert_eq!(body_text(Gpt::DEF), expected);
}

#[test]
fn nodes_keep_the_position_of_the_users_call() {
    let layer = recorded(Swiglu::DEF).expect("the layer records");
    let source = include_str!("model.rs").lines().collect::<Vec<_>>();
    let at = layer.body.nodes[1].span;
    assert!(source[at.line as usize - 1][at.column as usize - 1..].starts_with("silu()"));
}

#[test]
fn an_operation_of_the_users_is_one_node() {
    /// The first operand.
    #[op(sig = "b s d, d -> b s d")]
    fn scale(x: &HostArray, _w: &HostArray) -> HostArray {
        x.clone()
    }
    let layer = with_body(|r| {
        let x = r.param("emb").gather(r.ids("ids"));
        let y = scale(x, r.param("nf"));
        r.output(y);
    });
    let mut layer = layer.expect("the layer records");
    without_spans(&mut layer.body);
    let text = print_layer(&layer);
    let node = "%4: f32[B, S, D] = opaque(%3, %2) {dtype=:f32, name=\"kiln::tensor::tests::record::scale\", out0=[B, S, D], outs=1}";
    assert!(text.contains(node), "{text}");
    assert!(crate::user_op::find("kiln::tensor::tests::record::scale").is_some());
}

#[test]
fn a_generic_layer_records_the_axes_of_its_instance() {
    let expected = "\
fn(%0 x: f32[B, F], %1 w: f32[F, D]) {
  %2: f32[B, D] = dot_general(%0, %1) {out=[B, D]}
  return %2
}";
    assert_eq!(body_text(Linear::<F, D>::DEF), expected);
}

#[test]
fn a_traced_layer_reads_its_configuration() {
    let def = Powers::DEF;
    let body = def.record.expect("a traced layer can be recorded");
    let products = |set: &[(&str, i64)]| {
        let config = set.iter().map(|&(name, n)| (name.to_owned(), ConfigValue::Int(n))).collect();
        let layer = record(def, body, &config).expect("the layer records");
        layer.body.nodes.iter().filter(|n| n.op.name == "mul").count()
    };
    assert_eq!([products(&[]), products(&[("n", 1)]), products(&[("n", 1), ("powers.n", 2)])], [6, 2, 4]);
    let y = powers(tensor(&[2, 3], 1), 1, tensor(&[3], 2));
    let x = tensor(&[2, 3], 1);
    assert_eq!(y.to_vec(), (x * tensor(&[3], 2) + x * x).to_vec());
}

/// Trunk's arguments with another body.
fn with_body(body: fn(&mut Recorder)) -> Result<Layer, RecordError> {
    record(Trunk::DEF, body, &BTreeMap::new())
}

fn codes(result: Result<Layer, RecordError>) -> Vec<&'static str> {
    result.expect_err("the body has mistakes").mistakes.into_iter().map(|(_, d)| d.code).collect()
}

#[test]
fn a_value_read_before_the_loop_may_be_carried_and_captured() {
    let layer = with_body(|r| {
        let (rope, start) = (Rope::new(10_000.0), r.param("emb").gather(r.ids("ids")));
        let mut x = start;
        for block in r.repeat::<Block>("blocks") {
            x = block.forward(x, rope) + start;
        }
        r.output(x * 0.5);
    });
    let layer = layer.expect("the layer records");
    let repeat = layer.body.nodes.iter().find(|n| n.op.name == "repeat").expect("a loop");
    assert_eq!(repeat.inputs.len(), 3);
    assert_eq!(repeat.inputs[0], repeat.inputs[2]);
    assert_eq!(repeat.bodies[0].nodes[1].inputs[1], repeat.bodies[0].inputs[2]);
    verify::layer(layer).expect("recorded IR verifies");
}

#[test]
fn random_sites_count_once_per_loop() {
    let layer = with_body(|r| {
        let rope = Rope::new(10_000.0);
        let mut x = r.param("emb").gather(r.ids("ids")).dropout(0.1);
        for block in r.repeat::<Block>("blocks") {
            x = block.forward(x, rope).dropout(0.1);
        }
        r.output(x.dropout(0.1));
    });
    let layer = layer.expect("the layer records");
    let mut sites = Vec::new();
    for node in layer.body.nodes.iter().flat_map(|n| n.bodies.iter().flat_map(|b| &b.nodes).chain([n])) {
        if node.op.name == "dropout" {
            sites.push(node.attrs.int("site"));
        }
    }
    assert_eq!(sites, [0, 1, 2]);
}

#[test]
fn every_mistake_is_reported_once() {
    let found = codes(with_body(|r| {
        let (emb, nf) = (r.param("emb"), r.param("nf"));
        let wrong = emb.matmul(emb).silu() + 1.0;
        let alone = nf.softmax(S);
        r.output(wrong * alone);
    }));
    assert_eq!(found, ["K0101", "K0103"]);
}

#[test]
fn a_host_tensor_in_a_recorded_body_is_a_mistake() {
    thread_local! { static HOST: Tensor = Tensor::ones(&[4]); }
    let host = HOST.with(|t| *t);
    assert_eq!(host.to_vec().len(), 4);
    let found = codes(with_body(|r| {
        let x = r.param("emb").gather(r.ids("ids"));
        r.output(x + HOST.with(|t| *t));
    }));
    assert_eq!(found, ["K0345"]);
}

#[test]
fn a_value_of_a_round_is_lost_after_the_loop() {
    let found = codes(with_body(|r| {
        let rope = Rope::new(10_000.0);
        let mut x = r.param("emb").gather(r.ids("ids"));
        let mut last = x;
        for block in r.repeat::<Block>("blocks") {
            last = block.forward(x, rope);
            x += last;
        }
        r.output(x + last);
    }));
    assert_eq!(found, ["K0343"]);
}

#[test]
fn a_loop_carries_one_value() {
    let found = codes(with_body(|r| {
        let rope = Rope::new(10_000.0);
        let mut x = r.param("emb").gather(r.ids("ids"));
        let mut y = x * 2.0;
        for block in r.repeat::<Block>("blocks") {
            x = block.forward(x, rope);
            y += x;
        }
        r.output(y);
    }));
    assert_eq!(found, ["K0309"]);
}

#[test]
#[expect(clippy::never_loop, reason = "the `break` is what is refused")]
fn a_loop_runs_to_its_end_and_alike() {
    let found = codes(with_body(|r| {
        let rope = Rope::new(10_000.0);
        let mut x = r.param("emb").gather(r.ids("ids"));
        let mut rounds = 0;
        for block in r.repeat::<Block>("blocks") {
            rounds += 1;
            x = block.forward(x, rope) * f64::from(rounds);
        }
        for block in r.repeat::<Block>("blocks") {
            x = block.forward(x, rope);
            break;
        }
        r.output(x);
    }));
    assert_eq!(found, ["K0341", "K0344"]);
}

#[test]
fn the_result_has_the_signatures_axes() {
    let found = codes(with_body(|r| {
        let x = r.param("nf");
        r.output(x);
    }));
    assert_eq!(found, ["K0308"]);
}

#[test]
fn a_panic_in_a_body_ends_the_recording() {
    let result = std::panic::catch_unwind(|| with_body(|_| panic!("the user's own")));
    assert!(result.is_err());
    assert_eq!((Tensor::ones(&[2]) + 1.0).to_vec(), [2.0, 2.0]);
}
