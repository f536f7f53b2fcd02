//! Checks of an operation's `sig`, as `const fn`: a call in a body against the record, a derivative against its operation. Emitted code
//! turns the message into a compile error at the user's tokens.

use super::{OperandKind, Standing, UserOp};
use crate::layer::KindSig;
use crate::sig_check::{Message, is_unknown, same};

/// Whether a path in a body leads to an operation at all.
pub const fn is_operation(op: &UserOp) -> bool {
    !matches!(op.standing, Standing::None)
}

/// Whether the operation itself has been refused: its callers are not reported again.
pub const fn is_poisoned(op: &UserOp) -> bool {
    matches!(op.standing, Standing::Poisoned)
}

/// Operand `i` of a call whose operands are `given`, called `name` in the source.
pub const fn check_operand(op: &UserOp, i: usize, given: &[KindSig]) -> Option<Message> {
    // A wrong number of arguments is rustc's error.
    if !matches!(op.standing, Standing::Sound) || given.len() != op.operands.len() {
        return None;
    }
    let declared = op.operands[i];
    let found = match (declared.kind, given[i]) {
        (OperandKind::Floats, KindSig::Tensor(axes)) | (OperandKind::Ids, KindSig::Ids(axes)) => axes,
        (kind, found) => {
            let s = Message::new().text("K0105: `").text(op.label).text("` takes ").text(kind.describe());
            let s = s.text(" as operand ").number(i + 1).text("; this is ").kind(found);
            return Some(
                s.text("\n  help: the function of an operation declares numbers as `&HostArray`, ids as `&HostIds`"),
            );
        }
    };
    if declared.labels.len() != found.len() {
        let s = Message::new().text("K0106: `").text(op.label).text("` takes `").words(declared.labels);
        let s = s.text("` as operand ").number(i + 1).text("; this is ").kind(given[i]);
        return Some(s.text("\n  help: the labels of its `sig` are bound by position: ").text(op.sig));
    }
    let mut at = 0;
    while at < found.len() {
        let label = declared.labels[at];
        if let Some(bound) = bound(op, given, i, at)
            && !is_unknown(found[at])
            && !same(bound, found[at])
        {
            let s =
                Message::new().text("K0107: `").text(op.label).text("` has `").text(label).text("` on `").text(bound);
            let s = s.text("` and on `").text(found[at]).text("`\n  help: one label of `").text(op.sig);
            return Some(s.text("` is one axis: rename the axis or permute the operand"));
        }
        at += 1;
    }
    None
}

/// The axis that label `at` of operand `i` has in an earlier place.
const fn bound(op: &UserOp, given: &[KindSig], i: usize, at: usize) -> Option<&'static str> {
    let label = op.operands[i].labels[at];
    let mut k = 0;
    while k <= i {
        let axes = axes_of(given[k]);
        let labels = op.operands[k].labels;
        let mut j = 0;
        while j < labels.len() && j < axes.len() && (k < i || j < at) {
            if same(labels[j], label) && !is_unknown(axes[j]) {
                return Some(axes[j]);
            }
            j += 1;
        }
        k += 1;
    }
    None
}

const fn axes_of(kind: KindSig) -> &'static [&'static str] {
    match kind {
        KindSig::Tensor(axes) | KindSig::Ids(axes) => axes,
        KindSig::Rope(..) | KindSig::Loss | KindSig::Tuple(_) => &[],
    }
}

/// The results of a call whose operands are `given`, against the type that its surroundings need.
pub const fn check_result(op: &UserOp, given: &[KindSig], assumed: KindSig) -> Option<Message> {
    if !matches!(op.standing, Standing::Sound) || given.len() != op.operands.len() {
        return None;
    }
    let one;
    let assumed: &[&[&'static str]] = match assumed {
        KindSig::Tuple(parts) => parts,
        KindSig::Tensor(axes) => {
            one = [axes];
            &one
        }
        // Another kind of value is rustc's error.
        KindSig::Ids(_) | KindSig::Rope(..) | KindSig::Loss => return None,
    };
    if assumed.len() != op.results.len() {
        return None;
    }
    let mut r = 0;
    while r < assumed.len() {
        if !result_fits(op, given, op.results[r], assumed[r]) {
            let s = Message::new().text("K0507: `").text(op.label).text("` returns ");
            let s = result_axes(s, op, given, op.results[r]).text(", but `Tensor<").axes(assumed[r]);
            let s = s.text(">` is needed here");
            return Some(s.text("\n  help: bind the result with its own type first: `let y: Tensor<..> = ..;`"));
        }
        r += 1;
    }
    None
}

const fn result_fits(op: &UserOp, given: &[KindSig], labels: &[&str], assumed: &[&str]) -> bool {
    if labels.len() != assumed.len() {
        return false;
    }
    let mut i = 0;
    while i < labels.len() {
        if let Some(axis) = axis_of(op, given, labels[i])
            && !is_unknown(assumed[i])
            && !same(axis, assumed[i])
        {
            return false;
        }
        i += 1;
    }
    true
}

/// `Tensor<B, S>`, with the call's axes for the labels.
const fn result_axes(s: Message, op: &UserOp, given: &[KindSig], labels: &[&str]) -> Message {
    let mut s = s.text("`Tensor<");
    let mut i = 0;
    while i < labels.len() {
        if i > 0 {
            s = s.text(", ");
        }
        s = match axis_of(op, given, labels[i]) {
            Some(axis) => s.text(axis),
            None => s.text("_"),
        };
        i += 1;
    }
    s.text(">`")
}

/// The axis that a label has in the operands, where its name is known.
const fn axis_of(op: &UserOp, given: &[KindSig], label: &str) -> Option<&'static str> {
    let mut k = 0;
    while k < op.operands.len() {
        let (labels, axes) = (op.operands[k].labels, axes_of(given[k]));
        let mut j = 0;
        while j < labels.len() && j < axes.len() {
            if same(labels[j], label) && !is_unknown(axes[j]) {
                return Some(axes[j]);
            }
            j += 1;
        }
        k += 1;
    }
    None
}

/// A call through which a gradient must pass.
pub const fn check_derivative(op: &UserOp) -> Option<Message> {
    if !matches!(op.standing, Standing::Sound) || op.vjp.is_some() {
        return None;
    }
    let s = Message::new().text("K0601: `").text(op.label).text("` has no derivative, and a gradient must pass it");
    Some(s.text("\n  help: give it a `vjp`, or cut the path with `stop_gradient`"))
}

/// The operation called `written` as the derivative of `op`: it takes operands and cotangents of results, and returns the cotangents of
/// the operands that are numbers.
pub const fn check_vjp(op: &UserOp, vjp: &UserOp, written: &str) -> Option<Message> {
    if is_poisoned(op) || is_poisoned(vjp) {
        return None;
    }
    let s = Message::new().text("K0245: the derivative of `").text(op.label).text("` is an operation `");
    let s = vjp_sig(s, op).text("`; `").text(written);
    if !is_operation(vjp) {
        return Some(s.text("` is no operation\n  help: write `#[op(sig = \"..\")]` above it"));
    }
    if has_vjp_sig(op, vjp) {
        return None;
    }
    let s = s.text("` is `").text(vjp.sig).text("`");
    let kinds = "numbers stay `&HostArray`, ids stay `&HostIds`, cotangents are `&HostArray`";
    Some(s.text("\n  help: it takes the operands, then the cotangents of the results; ").text(kinds))
}

const fn vjp_sig(s: Message, op: &UserOp) -> Message {
    let mut s = s;
    let mut i = 0;
    while i < op.operands.len() {
        s = if i > 0 { s.text(", ") } else { s };
        s = s.words(op.operands[i].labels);
        i += 1;
    }
    i = 0;
    while i < op.results.len() {
        s = s.text(", ").words(op.results[i]);
        i += 1;
    }
    s = s.text(" -> ");
    let mut first = true;
    i = 0;
    while i < op.operands.len() {
        if matches!(op.operands[i].kind, OperandKind::Floats) {
            s = if first { s } else { s.text(", ") };
            s = s.words(op.operands[i].labels);
            first = false;
        }
        i += 1;
    }
    s
}

/// Whether the lists of a derivative are those that its operation asks for, up to the names of the labels.
const fn has_vjp_sig(op: &UserOp, vjp: &UserOp) -> bool {
    let n = op.operands.len();
    if vjp.operands.len() != n + op.results.len() || vjp.results.len() != float_operands(op) {
        return false;
    }
    let mut i = 0;
    while i < vjp.operands.len() {
        let kind = if i < n { op.operands[i].kind } else { OperandKind::Floats };
        if !matches!(
            (kind, vjp.operands[i].kind),
            (OperandKind::Floats, OperandKind::Floats) | (OperandKind::Ids, OperandKind::Ids)
        ) {
            return false;
        }
        i += 1;
    }
    let lists = vjp.operands.len() + vjp.results.len();
    let mut a = 0;
    while a < lists {
        let (wanted, found) = (wanted_list(op, a), list(vjp, a));
        if wanted.len() != found.len() {
            return false;
        }
        let mut i = 0;
        while i < wanted.len() {
            // Equal labels stand where equal labels are wanted.
            let mut b = 0;
            while b <= a {
                let (other_wanted, other_found) = (wanted_list(op, b), list(vjp, b));
                let mut j = 0;
                while j < other_wanted.len() {
                    if same(wanted[i], other_wanted[j]) != same(found[i], other_found[j]) {
                        return false;
                    }
                    j += 1;
                }
                b += 1;
            }
            i += 1;
        }
        a += 1;
    }
    true
}

const fn float_operands(op: &UserOp) -> usize {
    let (mut i, mut n) = (0, 0);
    while i < op.operands.len() {
        n += matches!(op.operands[i].kind, OperandKind::Floats) as usize;
        i += 1;
    }
    n
}

/// Labels of operand or result number `i`.
const fn list(op: &UserOp, i: usize) -> &'static [&'static str] {
    match i < op.operands.len() {
        true => op.operands[i].labels,
        false => op.results[i - op.operands.len()],
    }
}

/// Labels of operand or result number `i` of the derivative of `op`.
const fn wanted_list(op: &UserOp, i: usize) -> &'static [&'static str] {
    let taken = op.operands.len() + op.results.len();
    if i < taken {
        return list(op, i);
    }
    let (mut k, mut left) = (0, i - taken);
    while k < op.operands.len() {
        if matches!(op.operands[k].kind, OperandKind::Floats) {
            if left == 0 {
                return op.operands[k].labels;
            }
            left -= 1;
        }
        k += 1;
    }
    &[]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::user_op::OperandSig;

    const fn floats(labels: &'static [&'static str]) -> OperandSig {
        OperandSig { kind: OperandKind::Floats, labels }
    }

    const SCAN: UserOp = UserOp {
        name: "m::scan",
        label: "scan",
        sig: "b s d, d -> b s d",
        operands: &[floats(&["b", "s", "d"]), floats(&["d"])],
        results: &[&["b", "s", "d"]],
        standing: Standing::Sound,
        ..UserOp::NONE
    };

    const SCAN_VJP: UserOp = UserOp {
        label: "scan_vjp",
        sig: "i j k, k, i j k -> i j k, k",
        operands: &[floats(&["i", "j", "k"]), floats(&["k"]), floats(&["i", "j", "k"])],
        results: &[&["i", "j", "k"], &["k"]],
        ..SCAN
    };

    fn text(m: Option<Message>) -> String {
        m.map(|m| m.as_str().to_owned()).unwrap_or_default()
    }

    const BSD: KindSig = KindSig::Tensor(&["B", "S", "D"]);

    #[test]
    fn operands_are_bound_by_position() {
        for fits in [["B", "S", "D"], ["B", "S", "?0"], ["T", "S", "D"]] {
            let axes: &'static [&'static str] = Box::leak(Box::new(fits));
            assert!(check_operand(&SCAN, 1, &[KindSig::Tensor(axes), KindSig::Tensor(&["D"])]).is_none());
        }
        let m = text(check_operand(&SCAN, 1, &[BSD, KindSig::Tensor(&["S"])]));
        assert!(m.starts_with("K0107: `scan` has `d` on `D` and on `S`"), "{m}");
        let m = text(check_operand(&SCAN, 0, &[KindSig::Tensor(&["B", "D"]), KindSig::Tensor(&["D"])]));
        assert!(m.starts_with("K0106: `scan` takes `b s d` as operand 1; this is `Tensor<B, D>`"), "{m}");
        let m = text(check_operand(&SCAN, 1, &[BSD, KindSig::Ids(&["D"])]));
        assert!(m.starts_with("K0105: `scan` takes numbers as operand 2; this is `Ids<D>`"), "{m}");
    }

    #[test]
    fn results_have_the_axes_of_their_labels() {
        let given = [BSD, KindSig::Tensor(&["D"])];
        assert!(check_result(&SCAN, &given, BSD).is_none());
        let m = text(check_result(&SCAN, &given, KindSig::Tensor(&["B", "S"])));
        assert!(m.starts_with("K0507: `scan` returns `Tensor<B, S, D>`, but `Tensor<B, S>` is needed here"), "{m}");
        assert!(check_result(&SCAN, &given, KindSig::Loss).is_none());
    }

    #[test]
    fn a_derivative_takes_operands_and_cotangents() {
        assert!(check_vjp(&SCAN, &SCAN_VJP, "scan_vjp").is_none());
        let swapped = UserOp { results: &[&["k"], &["i", "j", "k"]], ..SCAN_VJP };
        let m = text(check_vjp(&SCAN, &swapped, "scan_vjp"));
        assert!(m.starts_with("K0245: the derivative of `scan` is an operation `b s d, d, b s d -> b s d, d`"), "{m}");
        const TIED: UserOp =
            UserOp { operands: &[floats(&["i", "k", "k"]), floats(&["k"]), floats(&["i", "k", "k"])], ..SCAN_VJP };
        assert!(check_vjp(&SCAN, &TIED, "scan_vjp").is_some());
        assert!(text(check_vjp(&SCAN, &UserOp::NONE, "helper")).contains("`helper` is no operation"));
        assert!(text(check_derivative(&SCAN)).starts_with("K0601: `scan` has no derivative"));
    }
}
