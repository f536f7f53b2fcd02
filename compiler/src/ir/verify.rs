//! The verifier: a function is well formed and every type is what the operation's rule says.

use super::{Func, Layer, ValueId};
use crate::ops::TypeError;
use std::collections::HashSet;
use std::ops::Deref;

/// Proof that a function or layer passed the verifier; passes take and return it.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified<T>(T);

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> Verified<T> {
    /// Gives up the proof, to be changed.
    pub fn into_inner(self) -> T {
        self.0
    }
}

/// Why a function is not well formed.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum VerifyError {
    /// A value is read before it is defined.
    #[error("node {node} (`{op}`) reads %{value} before it is defined")]
    Undefined {
        /// Node.
        node: usize,
        /// Operation.
        op: &'static str,
        /// Value.
        value: u32,
    },
    /// A value is defined twice.
    #[error("%{0} is defined twice")]
    Redefined(u32),
    /// A shape names an axis twice.
    #[error("%{value} has axis `{axis}` twice")]
    RepeatedAxis {
        /// Value.
        value: u32,
        /// Axis.
        axis: &'static str,
    },
    /// The operation refuses its operands.
    #[error("node {node} (`{op}`): {error}")]
    Type {
        /// Node.
        node: usize,
        /// Operation.
        op: &'static str,
        /// The rule's words.
        error: Box<TypeError>,
    },
    /// The recorded type is not the inferred one.
    #[error("node {node} (`{op}`): result {result} is recorded as {recorded}, the rule says {inferred}")]
    Mismatch {
        /// Node.
        node: usize,
        /// Operation.
        op: &'static str,
        /// Which result.
        result: usize,
        /// Recorded type.
        recorded: String,
        /// Inferred type.
        inferred: String,
    },
}

/// Verifies a function and its nested bodies.
pub fn func(func: Func) -> Result<Verified<Func>, VerifyError> {
    check(&func)?;
    Ok(Verified(func))
}

/// Verifies a layer's body.
pub fn layer(layer: Layer) -> Result<Verified<Layer>, VerifyError> {
    check(&layer.body)?;
    Ok(Verified(layer))
}

fn check(func: &Func) -> Result<(), VerifyError> {
    let mut defined: HashSet<ValueId> = HashSet::new();
    let mut define = |v: ValueId| if defined.insert(v) { Ok(()) } else { Err(VerifyError::Redefined(v.0)) };
    for &v in &func.inputs {
        define(v)?;
    }
    for n in &func.nodes {
        for &v in &n.outputs {
            define(v)?;
        }
    }
    for (i, v) in func.values.iter().enumerate() {
        let mut seen = HashSet::new();
        for a in &v.ty.shape {
            if !seen.insert(*a) {
                return Err(VerifyError::RepeatedAxis { value: i as u32, axis: a.name() });
            }
        }
    }
    let mut ready: HashSet<ValueId> = func.inputs.iter().copied().collect();
    for (i, n) in func.nodes.iter().enumerate() {
        let op = n.op.name;
        if let Some(v) = n.inputs.iter().find(|v| !ready.contains(v)) {
            return Err(VerifyError::Undefined { node: i, op, value: v.0 });
        }
        let types: Vec<_> = n.inputs.iter().map(|&v| func.ty(v)).collect();
        let inferred =
            (n.op.infer)(&n.attrs, &types).map_err(|e| VerifyError::Type { node: i, op, error: Box::new(e) })?;
        let recorded: Vec<_> = n.outputs.iter().map(|&v| func.ty(v).clone()).collect();
        if inferred.len() != recorded.len() {
            let (recorded, inferred) = (format!("{} results", recorded.len()), format!("{} results", inferred.len()));
            return Err(VerifyError::Mismatch { node: i, op, result: 0, recorded, inferred });
        }
        for (k, (r, t)) in recorded.iter().zip(&inferred).enumerate() {
            if r != t {
                let (recorded, inferred) = (r.to_string(), t.to_string());
                return Err(VerifyError::Mismatch { node: i, op, result: k, recorded, inferred });
            }
        }
        for body in &n.bodies {
            check(body)?;
        }
        ready.extend(&n.outputs);
    }
    match func.outputs.iter().find(|v| !ready.contains(v)) {
        Some(v) => Err(VerifyError::Undefined { node: func.nodes.len(), op: "return", value: v.0 }),
        None => Ok(()),
    }
}
