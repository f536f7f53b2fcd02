//! Types of pending operands and names of unknown axes, from the other operands of a method. Reports nothing that a type rule reports.

use super::elementwise::tensor_type;
use super::value::{Expected, Val};
use super::{Lowering, Operand};
use kiln_compiler::ir::{Axis, Type};
use kiln_compiler::methods::{Gives, Kind, Method};

/// Methods whose result has the receiver's axes.
const KEEP_AXES: [&str; 5] = ["rms_norm", "layer_norm", "softmax", "log_softmax", "rope"];

/// Whether the result has the receiver's type, whatever the arguments are.
pub(super) fn keeps_type(method: &Method) -> bool {
    let keeps = method.args.is_empty() || method.random || KEEP_AXES.contains(&method.name) || method.name == "attend";
    keeps && method.receiver == Kind::Tensor && method.gives == Gives::Tensor
}

impl Lowering<'_> {
    /// Prepares the operands of a method before its type rule runs.
    pub(super) fn type_operands(&mut self, method: &Method, operands: &[Operand], expected: Option<&Expected>) {
        match method.name {
            "matmul" => self.type_matmul(operands, expected),
            "einsum" => self.type_einsum(operands, expected),
            "linear_cross_entropy" => self.type_linear_cross_entropy(operands),
            "cross_entropy" => self.type_cross_entropy(operands),
            "gather" => self.type_gather(operands, expected),
            "attend" => self.resolve_operand(operands, 0, tensor_type(expected).cloned()),
            _ if method.receiver == Kind::Operand => self.type_element_wise(operands, expected),
            name if method.args.is_empty() || method.random || KEEP_AXES.contains(&name) => {
                self.resolve_operand(operands, 0, tensor_type(expected).cloned());
            }
            _ => {}
        }
        if matches!(method.name, "rms_norm" | "layer_norm") {
            self.type_norm(operands);
        }
    }

    fn operand_type(&self, operands: &[Operand], i: usize) -> Option<Type> {
        match self.known(&operands.get(i)?.val) {
            Val::Tensor(r) => Some(self.ty(r).clone()),
            _ => None,
        }
    }

    /// Gives operand `i` a type if it has none.
    fn resolve_operand(&mut self, operands: &[Operand], i: usize, ty: Option<Type>) {
        let Some(operand) = operands.get(i) else { return };
        if let (Val::Pending(p), Some(ty)) = (self.known(&operand.val), ty) {
            self.resolve(p, &Expected::Tensor(ty));
        }
    }

    fn type_matmul(&mut self, operands: &[Operand], expected: Option<&Expected>) {
        let out = tensor_type(expected);
        if let (Some(w), Some(out)) = (self.operand_type(operands, 1), out) {
            self.resolve_operand(operands, 0, matmul_left(&w, out));
        }
        if let (Some(x), Some(out)) = (self.operand_type(operands, 0), out) {
            self.resolve_operand(operands, 1, matmul_right(&x, out));
        }
        if let (Some(x), Some(w)) = (self.operand_type(operands, 0), self.operand_type(operands, 1))
            && let (Some(&last), Some(&first)) = (x.shape.last(), w.shape.first())
        {
            self.unify(&[last], &[first]);
        }
    }

    fn type_norm(&mut self, operands: &[Operand]) {
        let Some(last) = self.operand_type(operands, 0).and_then(|x| x.shape.last().copied()) else { return };
        for i in 1..operands.len() {
            self.resolve_operand(operands, i, Some(Type::f32(vec![last])));
            if let Some(w) = self.operand_type(operands, i) {
                self.unify(&w.shape, &[last]);
            }
        }
    }

    /// x over the axes of the targets and the last one of w.
    fn type_linear_cross_entropy(&mut self, operands: &[Operand]) {
        let Some(targets) = self.operand_type(operands, 2) else { return };
        let known = |t: Option<Type>| t.and_then(|t| t.shape.last().copied());
        let model = known(self.operand_type(operands, 0)).or(known(self.operand_type(operands, 1)));
        let model = model.unwrap_or_else(|| self.wildcard());
        let vocab = self.wildcard();
        let mut x = targets.shape;
        x.push(model);
        self.resolve_operand(operands, 0, Some(Type::f32(x.clone())));
        self.resolve_operand(operands, 1, Some(Type::f32(vec![vocab, model])));
        if let (Some(have), Some(w)) = (self.operand_type(operands, 0), self.operand_type(operands, 1)) {
            self.unify(&have.shape, &x);
            if let (Some(&a), Some(&b)) = (have.shape.last(), w.shape.last()) {
                self.unify(&[a], &[b]);
            }
        }
    }

    fn type_cross_entropy(&mut self, operands: &[Operand]) {
        let Some(targets) = self.operand_type(operands, 1) else { return };
        let mut logits = targets.shape;
        logits.push(self.wildcard());
        self.resolve_operand(operands, 0, Some(Type::f32(logits)));
    }

    /// The table's rows have the axes of the result behind those of the ids.
    fn type_gather(&mut self, operands: &[Operand], expected: Option<&Expected>) {
        let Some(ids) = self.operand_type(operands, 1) else { return };
        let rest: Vec<Axis> = match tensor_type(expected).and_then(|t| t.shape.strip_prefix(ids.shape.as_slice())) {
            Some(rest) => rest.to_vec(),
            None => vec![self.wildcard()],
        };
        let mut table = vec![self.wildcard()];
        table.extend(rest);
        self.resolve_operand(operands, 0, Some(Type::f32(table)));
    }

    /// Letters that a typed operand or the expected result binds give their axes to the other operand.
    fn type_einsum(&mut self, operands: &[Operand], expected: Option<&Expected>) {
        let Some(spec) = operands.get(2).and_then(|o| o.spec()) else { return };
        let Some((inputs, out)) = spec.split_once("->") else { return };
        let Some((left, right)) = inputs.split_once(',') else { return };
        let letters = |s: &str| s.split_whitespace().map(str::to_owned).collect::<Vec<String>>();
        let (sides, out) = ([letters(left), letters(right)], letters(out));
        let mut bound: Vec<(String, Axis)> = Vec::new();
        for (i, side) in sides.iter().enumerate() {
            let Some(ty) = self.operand_type(operands, i).filter(|t| t.rank() == side.len()) else { continue };
            for (letter, axis) in side.iter().zip(ty.shape) {
                match bound.iter().find(|(l, _)| l == letter).map(|(_, a)| *a) {
                    Some(other) => {
                        self.unify(&[other], &[axis]);
                        let named = if other.is_wildcard() { axis } else { other };
                        bound.iter_mut().filter(|(_, a)| *a == other).for_each(|(_, a)| *a = named);
                    }
                    None => bound.push((letter.clone(), axis)),
                }
            }
        }
        if let Some(ty) = tensor_type(expected).filter(|t| t.rank() == out.len()) {
            for (letter, &axis) in out.iter().zip(&ty.shape) {
                if !bound.iter().any(|(l, a)| l == letter || *a == axis) {
                    bound.push((letter.clone(), axis));
                }
            }
        }
        for (i, side) in sides.iter().enumerate() {
            let shape: Vec<Axis> = side
                .iter()
                .map(|letter| match bound.iter().find(|(l, _)| l == letter) {
                    Some((_, axis)) => *axis,
                    None => {
                        let axis = self.wildcard();
                        bound.push((letter.clone(), axis));
                        axis
                    }
                })
                .collect();
            self.resolve_operand(operands, i, Some(Type::f32(shape)));
        }
    }
}

fn matmul_left(w: &Type, out: &Type) -> Option<Type> {
    let (first, rest) = w.shape.split_first()?;
    let mut shape = out.shape.strip_suffix(rest)?.to_vec();
    shape.push(*first);
    Some(Type::f32(shape))
}

fn matmul_right(x: &Type, out: &Type) -> Option<Type> {
    let (last, prefix) = x.shape.split_last()?;
    let mut shape = vec![*last];
    shape.extend(out.shape.strip_prefix(prefix)?);
    Some(Type::f32(shape))
}
