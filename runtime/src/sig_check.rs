//! Checks between layers, as `const fn`: what a parent assumed about a child against the child's [`Sig`]. Emitted code turns the
//! message into a compile error at the user's tokens. What the types of the emitted functions say (a wrong number of arguments,
//! ids for a tensor, an unknown field) is rustc's error and not repeated.

use crate::layer::{ArgSig, KindSig, Sig};

/// Longest message in bytes; a longer one is cut.
const CAPACITY: usize = 640;

/// A message built while the user's crate is compiled.
#[derive(Clone, Copy, Debug)]
pub struct Message {
    bytes: [u8; CAPACITY],
    len: usize,
}

impl Message {
    pub(crate) const fn new() -> Self {
        Message { bytes: [0; CAPACITY], len: 0 }
    }

    /// The text.
    pub const fn as_str(&self) -> &str {
        match core::str::from_utf8(self.bytes.split_at(self.len).0) {
            Ok(text) => text,
            Err(_) => "a message of Kiln was cut inside a letter",
        }
    }

    pub(crate) const fn text(mut self, text: &str) -> Self {
        let bytes = text.as_bytes();
        let mut i = 0;
        while i < bytes.len() && self.len < CAPACITY {
            self.bytes[self.len] = bytes[i];
            self.len += 1;
            i += 1;
        }
        self
    }

    pub(crate) const fn number(self, n: usize) -> Self {
        let s = if n >= 10 { self.number(n / 10) } else { self };
        let digits = "0123456789".as_bytes();
        let digit = [digits[n % 10]];
        match core::str::from_utf8(&digit) {
            Ok(d) => s.text(d),
            Err(_) => s,
        }
    }

    pub(crate) const fn axes(self, axes: &[&str]) -> Self {
        let mut s = self;
        let mut i = 0;
        while i < axes.len() {
            if i > 0 {
                s = s.text(", ");
            }
            s = if is_unknown(axes[i]) { s.text("_") } else { s.text(axes[i]) };
            i += 1;
        }
        s
    }

    /// Words with a space between them.
    pub(crate) const fn words(self, words: &[&str]) -> Self {
        let mut s = self;
        let mut i = 0;
        while i < words.len() {
            s = if i > 0 { s.text(" ") } else { s };
            s = s.text(words[i]);
            i += 1;
        }
        s
    }

    pub(crate) const fn kind(self, kind: KindSig) -> Self {
        match kind {
            KindSig::Tensor(axes) => self.text("`Tensor<").axes(axes).text(">`"),
            KindSig::Ids(axes) => self.text("`Ids<").axes(axes).text(">`"),
            KindSig::Rope(seq, head) => self.text("`Rope<").axes(&[seq, head]).text(">`"),
            KindSig::Loss => self.text("`Loss`"),
            KindSig::Tuple(parts) => {
                let mut s = self.text("`(");
                let mut i = 0;
                while i < parts.len() {
                    if i > 0 {
                        s = s.text(", ");
                    }
                    s = s.text("Tensor<").axes(parts[i]).text(">");
                    i += 1;
                }
                s.text(")`")
            }
        }
    }
}

/// Argument `i` of a call of `child`, which the caller knows as `name`.
pub const fn check_input(child: &Sig, name: &str, i: usize, found: KindSig) -> Option<Message> {
    if child.poisoned || i >= child.inputs.len() {
        return None;
    }
    let ArgSig { name: arg, kind } = child.inputs[i];
    if fits(kind, found) || !same_class(kind, found) {
        return None;
    }
    let s = Message::new()
        .text("K0501: `")
        .text(name)
        .text(".forward` takes ")
        .kind(kind)
        .text(" as `")
        .text(arg)
        .text("`, argument ")
        .number(i + 1);
    let s = s.text(" of layer `").text(child.name).text("`; this is ").kind(found);
    Some(s.text("\n  help: rename, permute or reduce the argument, or change the layer's signature"))
}

/// The result of a call of `child`.
pub const fn check_output(child: &Sig, name: &str, assumed: KindSig) -> Option<Message> {
    if child.poisoned || fits(child.output, assumed) || !same_class(child.output, assumed) {
        return None;
    }
    let s = Message::new().text("K0503: `").text(name).text(".forward` returns ").kind(child.output);
    let s = s.text(", but ").kind(assumed).text(" is needed here");
    Some(s.text("\n  help: bind the result with its own type first: `let y: Tensor<..> = ..;`"))
}

/// The parameter of `child` at `path`, such as `emb` or `head.weight`.
pub const fn check_param(child: &Sig, name: &str, path: &str, assumed: KindSig) -> Option<Message> {
    if child.poisoned {
        return None;
    }
    let path_bytes = path.as_bytes();
    let mut dot = 0;
    while dot < path_bytes.len() && path_bytes[dot] != b'.' {
        dot += 1;
    }
    if dot < path_bytes.len() {
        let (first, rest) = split(path, dot);
        let mut i = 0;
        while i < child.subs.len() {
            if same(child.subs[i].0, first) {
                return check_param(child.subs[i].1, name, rest, assumed);
            }
            i += 1;
        }
        return None;
    }
    let mut i = 0;
    while i < child.params.len() {
        let ArgSig { name: param, kind } = child.params[i];
        if same(param, path) {
            if fits(kind, assumed) {
                return None;
            }
            let s = Message::new().text("K0505: parameter `").text(path).text("` of layer `").text(child.name);
            let s = s.text("` is ").kind(kind).text(", but ").kind(assumed).text(" is needed here");
            return Some(s.text(
                "\n  help: the operation that reads it decides the type; bind it first: `let w: Tensor<..> = ..;`",
            ));
        }
        i += 1;
    }
    let mut i = 0;
    while i < child.config.len() {
        if same(child.config[i], path) {
            return Some(not_a_parameter(child, name, path));
        }
        i += 1;
    }
    None
}

const fn not_a_parameter(child: &Sig, name: &str, path: &str) -> Message {
    let mut s =
        Message::new().text("K0504: `").text(path).text("` of `").text(name).text("` is a host value; the parameters");
    s = s.text(" of layer `").text(child.name).text("` are ");
    let mut i = 0;
    while i < child.params.len() {
        if i > 0 {
            s = s.text(", ");
        }
        s = s.text(child.params[i].name);
        i += 1;
    }
    if i == 0 {
        s = s.text("none");
    }
    s.text("\n  help: take the value as a `#[config]` argument of this layer as well")
}

/// The axis that a layer writes as `written`.
pub const fn check_axis(name: &str, written: &str) -> Option<Message> {
    if same(name, written) {
        return None;
    }
    let s = Message::new().text("K0506: axis `").text(name).text("` is written `").text(written);
    Some(s.text("` here, and an axis is its name\n  help: import it without `as`"))
}

const fn split(text: &str, at: usize) -> (&str, &str) {
    let (first, rest) = text.split_at(at);
    (first, rest.split_at(1).1)
}

pub(crate) const fn is_unknown(axis: &str) -> bool {
    axis.is_empty() || axis.as_bytes()[0] == b'?'
}

pub(crate) const fn same(a: &str, b: &str) -> bool {
    let (a, b) = (a.as_bytes(), b.as_bytes());
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if a[i] != b[i] {
            return false;
        }
        i += 1;
    }
    true
}

const fn same_axes(a: &[&str], b: &[&str]) -> bool {
    if a.len() != b.len() {
        return false;
    }
    let mut i = 0;
    while i < a.len() {
        if !is_unknown(a[i]) && !is_unknown(b[i]) && !same(a[i], b[i]) {
            return false;
        }
        i += 1;
    }
    true
}

const fn same_class(a: KindSig, b: KindSig) -> bool {
    matches!(
        (a, b),
        (KindSig::Tensor(_), KindSig::Tensor(_))
            | (KindSig::Ids(_), KindSig::Ids(_))
            | (KindSig::Rope(..), KindSig::Rope(..))
            | (KindSig::Loss, KindSig::Loss)
            | (KindSig::Tuple(_), KindSig::Tuple(_))
    )
}

const fn fits(declared: KindSig, found: KindSig) -> bool {
    match (declared, found) {
        (KindSig::Tensor(a), KindSig::Tensor(b)) | (KindSig::Ids(a), KindSig::Ids(b)) => same_axes(a, b),
        (KindSig::Rope(s, k), KindSig::Rope(t, l)) => same_axes(&[s, k], &[t, l]),
        (KindSig::Loss, KindSig::Loss) => true,
        (KindSig::Tuple(a), KindSig::Tuple(b)) => {
            if a.len() != b.len() {
                return false;
            }
            let mut i = 0;
            while i < a.len() {
                if !same_axes(a[i], b[i]) {
                    return false;
                }
                i += 1;
            }
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GRANDCHILD: Sig = Sig {
        name: "head",
        poisoned: false,
        inputs: &[],
        output: KindSig::Loss,
        params: &[ArgSig { name: "weight", kind: KindSig::Tensor(&["V", "D"]) }],
        config: &["scale"],
        subs: &[],
    };
    const CHILD: Sig = Sig {
        name: "attention",
        poisoned: false,
        inputs: &[
            ArgSig { name: "x", kind: KindSig::Tensor(&["B", "S", "D"]) },
            ArgSig { name: "rope", kind: KindSig::Rope("S", "K") },
        ],
        output: KindSig::Tensor(&["B", "S", "D"]),
        params: &[],
        config: &[],
        subs: &[("head", &GRANDCHILD)],
    };

    fn text(m: Option<Message>) -> String {
        m.map(|m| m.as_str().to_owned()).unwrap_or_default()
    }

    #[test]
    fn arguments_of_another_rank() {
        assert!(check_input(&CHILD, "attn", 0, KindSig::Tensor(&["B", "S", "D"])).is_none());
        assert!(check_input(&CHILD, "attn", 0, KindSig::Tensor(&["B", "S", "?0"])).is_none());
        let m = text(check_input(&CHILD, "attn", 0, KindSig::Tensor(&["B", "D"])));
        assert!(m.starts_with("K0501: `attn.forward` takes `Tensor<B, S, D>` as `x`, argument 1"), "{m}");
        let m = text(check_input(&CHILD, "attn", 0, KindSig::Tensor(&["B", "?3"])));
        assert!(m.starts_with("K0501") && m.contains("`Tensor<B, _>`"), "{m}");
        let m = text(check_input(&CHILD, "attn", 1, KindSig::Rope("S", "D")));
        assert!(m.starts_with("K0501") && m.contains("`Rope<S, K>`"), "{m}");
    }

    #[test]
    fn results_and_parameters() {
        assert!(text(check_output(&CHILD, "attn", KindSig::Tensor(&["B", "D"]))).starts_with("K0503"));
        assert!(check_param(&CHILD, "attn", "head.weight", KindSig::Tensor(&["V", "?0"])).is_none());
        let m = text(check_param(&CHILD, "attn", "head.scale", KindSig::Tensor(&["V"])));
        assert!(m.starts_with("K0504") && m.contains("the parameters of layer `head` are weight"), "{m}");
        assert!(text(check_param(&CHILD, "attn", "head.weight", KindSig::Tensor(&["V"]))).starts_with("K0505"));
    }

    #[test]
    fn what_rustc_refuses_is_not_repeated() {
        assert!(check_input(&CHILD, "attn", 1, KindSig::Tensor(&["B", "S"])).is_none());
        assert!(check_input(&CHILD, "attn", 2, KindSig::Tensor(&["B", "S"])).is_none());
        assert!(check_output(&CHILD, "attn", KindSig::Loss).is_none());
        assert!(check_param(&CHILD, "attn", "tail.bias", KindSig::Tensor(&["V"])).is_none());
        assert!(check_param(&CHILD, "attn", "head.bias", KindSig::Tensor(&["V"])).is_none());
    }

    #[test]
    fn poisoned_children_fit_every_caller() {
        let poisoned = Sig { poisoned: true, ..CHILD };
        assert!(check_input(&poisoned, "attn", 0, KindSig::Tensor(&["V"])).is_none());
        assert!(check_output(&poisoned, "attn", KindSig::Tensor(&["V"])).is_none());
        let head = Sig { poisoned: true, ..GRANDCHILD };
        assert!(check_param(&head, "head", "weight", KindSig::Tensor(&["D"])).is_none());
    }

    #[test]
    fn axes_are_their_names() {
        assert!(check_axis("B", "B").is_none());
        assert!(text(check_axis("B", "Batch")).starts_with("K0506"));
    }
}
