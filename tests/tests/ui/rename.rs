//! Changes every name of the user's in a source text, the same way everywhere, and leaves the words of Rust and of Kiln.

/// Lines that [`source`] puts at the top.
pub const INSERTED_LINES: usize = 2;

/// Words of Rust and of Kiln's language. A name after a dot and before a parenthesis is a method, before `!` a macro: both stay as well.
const VOCABULARY: &[&str] = &[
    "as",
    "assert",
    "async",
    "await",
    "bool",
    "break",
    "const",
    "continue",
    "crate",
    "dyn",
    "else",
    "enum",
    "extern",
    "f32",
    "f64",
    "false",
    "fn",
    "for",
    "i32",
    "i64",
    "if",
    "impl",
    "in",
    "let",
    "loop",
    "match",
    "mod",
    "move",
    "mut",
    "pub",
    "ref",
    "return",
    "self",
    "Self",
    "static",
    "std",
    "struct",
    "super",
    "trait",
    "true",
    "type",
    "u32",
    "u64",
    "unsafe",
    "use",
    "usize",
    "where",
    "while",
    "Vec",
    "Some",
    "None",
    "Ok",
    "Err",
    "Option",
    "Result",
    "String",
    "str",
    "vec",
    "new",
    "default",
    "allow",
    "not",
    "debug_assertions",
    "cfg",
    "cfg_attr",
    "doc",
    "derive",
    "dead_code",
    "unused",
    "Clone",
    "Copy",
    "main",
    "test",
    "println",
    "kiln",
    "prelude",
    "Tensor",
    "Ids",
    "Rope",
    "Sizes",
    "HostArray",
    "HostIds",
    "Array",
    "cube",
    "dims",
    "Loss",
    "Repeat",
    "HostArray",
    "HostIds",
    "Array",
    "ABSOLUTE_POS",
    "cube",
    "Axis",
    "Layer",
    "Causal",
    "Full",
    "Trainer",
    "stop_gradient",
    "axes",
    "sizes",
    "mesh",
    "layer",
    "op",
    "param",
    "sub",
    "config",
    "state",
    "frozen",
    "checkpoint",
    "precision",
    "shard",
    "no_fuse",
    "init",
    "zeros",
    "ones",
    "normal",
    "uniform",
    "xavier",
    "kaiming",
    "trace",
    "never",
    "selective",
    "lean",
    "save",
    "budget",
    "offload",
    "bf16",
    "f16",
    "fp8",
    "int8",
    "int4",
    "master",
    "grad",
    "reduce",
    "tensor",
    "data",
    "pipeline",
    "sequence",
    "sig",
    "vjp",
    "reference",
];

/// The source with changed names and two lines inserted at the top.
pub fn source(source: &str) -> String {
    format!("// Inserted.\n// Inserted.\n{}", text(source))
}

/// A token of a line with changed names: a method keeps its own.
pub fn token(line: &str, token: &str) -> String {
    let chars: Vec<char> = line.chars().collect();
    let mut at = 0;
    while at < chars.len() {
        let end = token_end(&chars, at);
        if chars[at..end].iter().collect::<String>() == token && stays(&chars, at, end, token) {
            return token.to_owned();
        }
        at = end;
    }
    text(token)
}

/// A text with changed names; comments, strings and numbers stay.
pub fn text(text: &str) -> String {
    let chars: Vec<char> = text.chars().collect();
    let mut out = String::new();
    let mut at = 0;
    while at < chars.len() {
        let end = token_end(&chars, at);
        let token: String = chars[at..end].iter().collect();
        let is_name = chars[at].is_alphabetic() || chars[at] == '_';
        out.push_str(&if is_name && !stays(&chars, at, end, &token) { renamed(&token) } else { token });
        at = end;
    }
    out
}

fn token_end(chars: &[char], at: usize) -> usize {
    let rest = &chars[at..];
    let while_from =
        |from: usize, f: &dyn Fn(char) -> bool| at + from + rest[from..].iter().take_while(|c| f(**c)).count();
    match rest {
        ['/', '/', ..] => while_from(2, &|c| c != '\n'),
        ['"', ..] => {
            let mut end = at + 1;
            while end < chars.len() && chars[end] != '"' {
                end += if chars[end] == '\\' { 2 } else { 1 };
            }
            (end + 1).min(chars.len())
        }
        [c, ..] if c.is_ascii_digit() => while_from(1, &|c| c.is_alphanumeric() || c == '_' || c == '.'),
        [c, ..] if c.is_alphabetic() || *c == '_' => while_from(1, &|c| c.is_alphanumeric() || c == '_'),
        _ => at + 1,
    }
}

fn stays(chars: &[char], at: usize, end: usize, token: &str) -> bool {
    let before = chars[..at].iter().rev().find(|c| !c.is_whitespace());
    let after = chars.get(end);
    let is_method = before == Some(&'.') && after == Some(&'(');
    let is_lifetime = before == Some(&'\'');
    token == "_" || is_method || is_lifetime || after == Some(&'!') || VOCABULARY.contains(&token)
}

/// `swiglu` → `k_swiglu`, `Swiglu` → `KSwiglu`: the type of a layer stays the name of its function in upper camel case. The letter
/// depends on the name, so that the alphabetical order of names changes as well.
fn renamed(name: &str) -> String {
    let plain: String = name.chars().filter(|c| *c != '_').flat_map(char::to_lowercase).collect();
    let letter = (b'g' + plain.bytes().fold(7u8, |h, b| h.wrapping_mul(31).wrapping_add(b)) % 18) as char;
    let first = name.trim_start_matches('_');
    if first.starts_with(char::is_uppercase) {
        format!("{}{name}", letter.to_uppercase())
    } else if name.starts_with('_') {
        format!("_{letter}{name}")
    } else {
        format!("{letter}_{name}")
    }
}
