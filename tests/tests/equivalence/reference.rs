//! The host runs a plan as the f64 reference of the same plan does, buffer by buffer apart.

use kiln::exec::Kind;
use kiln::exec::reference::Reference;
use kiln::link::Keep;
use kiln::plan::{Plan, Segment};
use kiln::trainer::Trainer;
use kiln_tests::models::*;
use kiln_tests::training::{Tensors, batch, farthest, grads};

use crate::small;

/// f32 against f64 over a model of two blocks: some tens of roundings of 2⁻²⁴ on the way to each gradient.
const F32_MODEL: f64 = 2e-6;

/// A plan's parameters and loss scale, as the session holds them.
fn reference<'a>(plan: &'a Plan, trainer: &Trainer<Dropped>, seed: u64) -> Reference<'a> {
    let mut r = Reference::new(plan, seed);
    let wide = |x: &[f32]| x.iter().map(|v| f64::from(*v)).collect::<Vec<f64>>();
    for (value, buffer) in r.values.iter_mut().zip(&plan.buffers) {
        if let Segment::Param(p) = buffer.segment {
            *value = Some(wide(&trainer.ranks().engine().values(Kind::Weight, p).expect("it runs")));
        }
    }
    r.values[plan.loss_scale.expect("a training plan")] = Some(vec![1.0]);
    r
}

#[test]
fn the_host_computes_what_the_plan_means() {
    const SEED: u64 = 12;
    for keep in [Keep::Everything, Keep::Inputs] {
        let trainer = Trainer::<Dropped>::new(small()).checkpoint(keep).accumulate(2).seed(SEED).threads(3);
        let mut trainer = trainer.build().expect("the model is sound");
        let (ids, next) = batch(&small(), 3);
        let plan = trainer.plan().clone();
        let mut r = reference(&plan, &trainer, SEED);
        let (mut loss, half) = (0.0, ids.len() / 2);
        for micro in 0..2 {
            for (&buffer, all) in plan.inputs.iter().zip([&ids, &next]) {
                let part = &all[micro * half..(micro + 1) * half];
                r.values[buffer] = Some(part.iter().map(|v| f64::from(*v)).collect());
            }
            r.run(0, micro);
            loss += r.values[plan.outputs[0]].as_ref().expect("the loss")[0];
        }
        let report = trainer.step(&(ids, next)).expect("a sound step");
        loss /= report.count;
        assert!((report.loss - loss).abs() <= F32_MODEL * loss, "{} is not {loss}", report.loss);
        let truth: Tensors = plan
            .buffers
            .iter()
            .zip(&r.values)
            .filter_map(|(buffer, value)| match buffer.segment {
                Segment::Grad(p) => {
                    let values = value.as_ref().expect("a gradient").iter().map(|x| *x as f32);
                    Some((trainer.model().params[p].path.clone(), values.collect()))
                }
                _ => None,
            })
            .collect();
        let (distance, name) = farthest(&grads(&trainer), &truth);
        println!("{keep:?}: {distance:.1e}");
        assert!(distance <= F32_MODEL, "{keep:?}, {name}: {distance:.1e}");
    }
}
