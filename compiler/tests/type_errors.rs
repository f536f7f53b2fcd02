//! What a user reads when operands do not fit: the whole text, the operand it underlines, and a code that the book explains.

use kiln_compiler::diagnostics::CODES;
use kiln_compiler::ir::{Attrs, Axis, DType, Type};
use kiln_compiler::ops::{self, TypeError, einsum_axes, matmul_axes};

fn axes(text: &str) -> Vec<Axis> {
    text.split_whitespace().map(Axis::new).collect()
}

/// `B S D` is f32, `i32 B S` ids, `bool B` a mask.
fn ty(text: &str) -> Type {
    match text.split_once(' ').unwrap_or((text, "")) {
        ("i32", rest) => Type::new(DType::I32, axes(rest)),
        ("bool", rest) => Type::new(DType::Bool, axes(rest)),
        _ => Type::f32(axes(text)),
    }
}

fn none() -> Attrs {
    Attrs::new()
}

fn axis(name: &str, axis: &str) -> Attrs {
    none().with(name, Axis::new(axis))
}

fn refused(op: &str, attrs: Attrs, operands: &[&str]) -> TypeError {
    let types: Vec<Type> = operands.iter().map(|t| ty(t)).collect();
    let refs: Vec<&Type> = types.iter().collect();
    let op = ops::find(op).unwrap_or_else(|| panic!("no operation `{op}`"));
    (op.infer)(&attrs, &refs).expect_err(op.name)
}

/// Operands are called as in the examples of the language: `x`, then `w`, then `v`.
fn shown(error: &TypeError) -> String {
    error.named(&["x", "w", "v"]).to_string()
}

#[test]
fn messages() {
    let rope = axis("seq", "S").with("head", Axis::new("K"));
    let eps = none().with("eps", 1e-5);
    let causal = none().with("causal", true);
    let to = |text| none().with("to", axes(text));
    type Case<'a> = (&'a str, Attrs, &'a [&'a str], Option<usize>, &'a str);
    let cases: Vec<Case<'_>> = vec![
        (
            "add",
            none(),
            &["B S D", "B S F"],
            Some(1),
            "K0102: `+` needs equal axes: `x` has [B, S, D], `w` has [B, S, F]\n  \
             help: if `D` and `F` mean the same, `.rename(F, D)` on `w` says so",
        ),
        (
            "mul",
            none(),
            &["B S D", "D"],
            Some(1),
            "K0102: `*` needs equal axes: `x` has [B, S, D], `w` has [D]\n  \
             help: `w` lacks [B, S]: broadcast it to [B, S, D]",
        ),
        (
            "sub",
            none(),
            &["", "S D"],
            Some(1),
            "K0102: `-` needs equal axes: `x` has none, `w` has [S, D]\n  help: `x` lacks [S, D]: broadcast it to [S, D]",
        ),
        (
            "add",
            none(),
            &["B S", "S B"],
            Some(1),
            "K0102: `+` needs equal axes: `x` has [B, S], `w` has [S, B]\n  help: permute `w` to [B, S]",
        ),
        ("add", none(), &["B"], None, "K0116: `+` takes 2 operands, 1 is given"),
        ("exp", none(), &["i32 B S"], Some(0), "K0105: `exp` needs real numbers, but `x` holds ids (i32[B, S])"),
        ("exp", none(), &["bool B"], Some(0), "K0105: `exp` needs real numbers, but `x` is a mask (bool[B])"),
        (
            "softmax",
            axis("axis", "F"),
            &["B S D"],
            Some(0),
            "K0103: `softmax` needs axis `F`; the axes of `x` are [B, S, D]",
        ),
        ("mean", none().with("axes", axes("B")), &[""], Some(0), "K0103: `mean` needs axis `B`, but `x` is a scalar"),
        (
            "rms_norm",
            eps.clone(),
            &["B S D", "F"],
            Some(1),
            "K0111: `rms_norm` works along `D`, the last axis of `x`; `w` must be [D], is [F]",
        ),
        (
            "rms_norm",
            none().with("eps", -1.0),
            &["B D", "D"],
            None,
            "K0118: `rms_norm`: `eps` must be 0 or more, is -1",
        ),
        ("dropout", none().with("rate", 1.0), &["B"], None, "K0118: `dropout`: `rate` must be in [0, 1), is 1"),
        (
            "layer_norm",
            eps,
            &["B S D", "D", "S D"],
            Some(2),
            "K0111: `layer_norm` works along `D`, the last axis of `x`; `v` must be [D], is [S, D]",
        ),
        ("rope", rope.clone(), &["B S D", ""], Some(0), "K0103: `rope` needs axis `K`; the axes of `x` are [B, S, D]"),
        ("rope", rope, &["S K", "K"], Some(1), "K0106: `rope` needs a scalar here, but `w` is f32[K]"),
        (
            "gather",
            none(),
            &["V D", "B S"],
            Some(1),
            "K0105: `gather` needs ids here, but `w` is f32[B, S]\n  help: declare it as `Ids<B, S>`",
        ),
        (
            "gather",
            none(),
            &["V S", "i32 B S"],
            None,
            "K0104: `gather` would give [B, S, S], with `S` twice\n  help: rename one of the two, such as `.rename(S, ..)`",
        ),
        (
            "attention",
            causal.clone(),
            &["B G R S K", "B G S H", "B G S H"],
            Some(1),
            "K0110: `attend` contracts the last axes, but `x` ends in `K` and `w` in `H`",
        ),
        (
            "attention",
            causal.clone(),
            &["B H S K", "B G S K", "B G S K"],
            Some(1),
            "K0110: `attend`: before its last two axes `x` has [B, H], `w` has [B, G]\n  \
             help: the queries have the axes of the keys there, or one more at the end (grouped queries)",
        ),
        (
            "attention",
            causal,
            &["B S K", "B T K", "B S K"],
            Some(2),
            "K0110: `attend` needs values over the axes of the keys: `w` has [B, T, K], `v` has [B, S, K]",
        ),
        ("attention", none(), &["S K", "T K", "T K"], None, "K0117: `attend` needs a mask: `Causal` or `Full`"),
        (
            "linear_cross_entropy",
            none(),
            &["B S D", "D V", "i32 B S"],
            Some(1),
            "K0101: `linear_cross_entropy` contracts `D` with `V`: the last axis of `x` is `D`, that of `w` is `V`\n  \
             help: permute `w` to [V, D]",
        ),
        (
            "linear_cross_entropy",
            none(),
            &["B S D", "V D", "i32 B T"],
            Some(2),
            "K0112: `linear_cross_entropy` needs one target per position: `x` has positions [B, S], `v` has [B, T]",
        ),
        (
            "cross_entropy",
            none(),
            &["B V", "B"],
            Some(1),
            "K0105: `cross_entropy` needs ids here, but `w` is f32[B]\n  help: declare it as `Ids<B>`",
        ),
        (
            "broadcast",
            to("B S"),
            &["B D"],
            Some(0),
            "K0115: `x` cannot be broadcast to [B, S]: its axis `D` is missing there\n  help: add `D`, or sum over it first",
        ),
        (
            "permute",
            to("B S"),
            &["B S D"],
            Some(0),
            "K0113: `permute` to [B, S] needs exactly the axes of `x`, which are [B, S, D]",
        ),
        (
            "rename",
            axis("from", "S").with("to", Axis::new("B")),
            &["B S"],
            Some(0),
            "K0104: `rename`: `x` already has an axis `B`; its axes are [B, S]",
        ),
        (
            "merge",
            none().with("axes", axes("G K")).with("into", Axis::new("D")),
            &["B G S K"],
            Some(0),
            "K0114: `merge` needs [G, K] side by side in this order; the axes of `x` are [B, G, S, K]\n  help: permute first",
        ),
        (
            "concat",
            axis("axis", "S").with("other", Axis::new("T")).with("to", Axis::new("L")),
            &["B S D", "B T F"],
            Some(1),
            "K0119: `concat` along `S` needs [B, T, D] as the axes of `w`, which are [B, T, F]",
        ),
        (
            "select",
            none(),
            &["B", "B", "B"],
            Some(0),
            "K0105: `select` chooses by a mask, but `x` is f32[B]\n  help: compare it first, such as `.ge(0.0)`",
        ),
        ("softmax", none(), &["B"], None, "K0117: `softmax` needs an axis as `axis`; it is missing"),
        ("reduce_sum", none().with("axes", axes("B B")), &["B"], None, "K0104: `reduce_sum` names `B` twice: [B, B]"),
    ];
    for (op, attrs, operands, operand, expected) in cases {
        let error = refused(op, attrs, operands);
        assert_eq!(shown(&error), expected, "`{op}` on {operands:?}");
        assert_eq!(error.operand, operand, "{expected}");
        assert!(CODES.iter().any(|(code, _)| *code == error.code), "{} is not listed", error.code);
    }
}

#[test]
fn matmul_contracts_the_last_axis_with_the_first() {
    assert_eq!(matmul_axes(&ty("B S D"), &ty("D G K")).map_err(|e| shown(&e)), Ok(axes("B S G K")));
    let cases = [
        (
            "B S D",
            "F D",
            "K0101: `matmul` contracts `D` with `F`: the last axis of `x` is `D`, the first of `w` is `F`\n  \
          help: `einsum` contracts axes in any position",
        ),
        (
            "B S D",
            "F G",
            "K0101: `matmul` contracts `D` with `F`: the last axis of `x` is `D`, the first of `w` is `F`",
        ),
        (
            "B S D",
            "D S",
            "K0104: `matmul` would give [B, S, S]: both `x` and `w` have `S`\n  \
          help: if `S` is a batch axis, write an `einsum`; if not, rename one of the two",
        ),
        ("", "D S", "K0106: `matmul` contracts an axis, but `x` is a scalar"),
        ("i32 B", "B S", "K0105: `matmul` needs real numbers, but `x` holds ids (i32[B])"),
    ];
    for (a, b, expected) in cases {
        assert_eq!(matmul_axes(&ty(a), &ty(b)).map_err(|e| shown(&e)), Err(expected.to_owned()));
    }
}

#[test]
fn einsum_labels_are_bound_by_position() {
    let good = [
        ("b s d, d g r k -> b g r s k", "B S D", "D G R K", "B G R S K"),
        ("x y, y -> x", "B S", "S", "B"),
        ("b s, b s ->", "B S", "B S", ""),
        ("b s d,v d->b s v", "B S D", "V D", "B S V"),
    ];
    for (spec, a, b, out) in good {
        assert_eq!(einsum_axes(spec, &ty(a), &ty(b)).map_err(|e| shown(&e)), Ok(axes(out)), "{spec}");
    }
    let spelled = "\n  help: write it as \"b s d, d f -> b s f\"";
    let bad = [
        ("b s d, d f", "B S D", "D F", format!("K0108: `einsum`: `b s d, d f` has no `->`{spelled}")),
        ("b s d -> b s", "B S D", "D F", format!("K0108: `einsum`: `b s d -> b s` names 1 operand, it takes 2{spelled}")),
        ("b d, d f -> b f", "B S D", "D F", "K0106: `einsum`: `b d` has 2 labels, but `x` has 3 axes [B, S, D]".into()),
        ("b d, d f -> b g", "B D", "D F", format!("K0108: `einsum`: `g` is in the result, but in no operand{spelled}")),
        (
            "b d, d f -> b f",
            "B D",
            "H F",
            "K0107: `einsum`: `d` is `D` in `x` and `H` in `w`\n  \
             help: if they mean the same, `.rename(H, D)` says so; if not, use two letters"
                .into(),
        ),
        (
            "b d, e f -> b d e f",
            "B D",
            "D F",
            "K0107: `einsum`: `D` is `d` in `x` and `e` in `w`\n  help: use one letter for `D`, or rename one of the two axes"
                .into(),
        ),
        (
            "b b, b f -> b f",
            "B D",
            "D F",
            "K0108: `einsum`: label `b` stands twice for axes of `x`\n  help: give every axis of an operand its own label".into(),
        ),
        (
            "b s d, d f -> b f",
            "B S D",
            "D F",
            "K0109: `einsum` drops `S`, which only `x` has\n  help: keep `S` in the result, or sum over it first".into(),
        ),
        (
            "b d, d f -> b b f",
            "B D",
            "D F",
            "K0104: `einsum` names `B` twice: [B, B, F]".into(),
        ),
    ];
    for (spec, a, b, expected) in bad {
        assert_eq!(einsum_axes(spec, &ty(a), &ty(b)).map_err(|e| shown(&e)), Err(expected), "{spec}");
    }
}

#[test]
fn operands_without_a_name_have_an_ordinal() {
    let error = matmul_axes(&ty("D"), &ty("F")).expect_err("different axes");
    let expected =
        "`matmul` contracts `D` with `F`: the last axis of the first operand is `D`, the first of `w` is `F`";
    assert_eq!(error.named(&["", "w"]).message, expected);
    assert!(error.diagnostic().message.ends_with("the first of the second operand is `F`"));
}
