//! The text form: everything reads back equal, damaged text is an error with its line and never a panic.

use kiln_compiler::ir::text::{parse_func, parse_layer, print_func, print_layer};
use kiln_compiler::ir::{
    Annotations, Arg, ArgKind, Attr, Attrs, Axis, Builder, Checkpoint, ConfigType, ConfigValue, DType, Func, Init,
    Layer, Output, Precision, Shard, Span, SubLayer, Type,
};

fn axes(text: &str) -> Vec<Axis> {
    text.split_whitespace().map(Axis::new).collect()
}

fn span(line: u32, column: u32) -> Span {
    Span { line, column }
}

/// A function with named and unnamed values, spans, nested bodies, every kind of attribute and a value without a definition.
fn func() -> Func {
    let mut b = Builder::default();
    let x = b.func.add_input(Type::f32(axes("B S D")), "x");
    let w = b.func.add_input(Type::new(DType::Bf16, axes("D ?0")), "r#type");
    b.span = span(7, 13);
    let h = b.dot(x, w, &axes("B S ?0"));
    b.func.values[h.index()].name = Some("h".into());
    b.func.add_value(Type::new(DType::Bool, axes("B")), None);
    b.func.add_value(Type::new(DType::Sub(3), []), Some("two words \"quoted\" \\ é\n".into()));
    b.span = Span::default();
    let attrs = [
        ("int", Attr::Int(i64::MIN)),
        ("float", Attr::Float(0.1 + 0.2)),
        ("whole", Attr::Float(1e300)),
        ("tiny", Attr::Float(5e-324)),
        ("minus_zero", Attr::Float(-0.0)),
        ("infinite", Attr::Float(f64::NEG_INFINITY)),
        ("flag", Attr::Bool(true)),
        ("word", Attr::Str("a, \"b\" }\n\\".into())),
        ("axis", Attr::Axis(Axis::new("S"))),
        ("axes", Attr::Axes(axes("B ?12"))),
        ("none", Attr::Axes(Vec::new())),
        ("dtype", Attr::DType(DType::Compute)),
        ("value", Attr::Config("eps".into())),
        ("shape", Attr::Axes(axes("B"))),
        ("odd name", Attr::Axis(Axis::new("heads per group"))),
    ];
    let attrs = attrs.into_iter().fold(Attrs::new(), |attrs, (name, value)| attrs.with(name, value));
    b.op("const", attrs, &[]);
    let ty = b.ty(h).clone();
    let mut inner = Builder::default();
    let c = inner.func.add_input(ty, "carried");
    let repeat = Attrs::new().with("sub", 0).with("axis", Axis::new("L"));
    let nested = inner.op("repeat", repeat.clone(), &[c]);
    inner.func.nodes[0].bodies = vec![Func::default(), Func::default()];
    inner.func.outputs = vec![nested, c];
    let y = b.op("repeat", repeat, &[h]);
    let last = b.func.nodes.len() - 1;
    b.func.nodes[last].bodies = vec![inner.func];
    b.func.outputs = vec![y, y, x];
    b.func
}

fn arg(name: &str, kind: ArgKind, line: u32) -> Arg {
    Arg { name: name.into(), kind, span: span(line, 5) }
}

/// A layer with every kind of argument, and the given annotations.
fn layer(annotations: Annotations, output: Output) -> Layer {
    let shard = |axis: Option<&str>| Some(Shard { mesh: "tensor".into(), axis: axis.map(Axis::new) });
    let param = |init, frozen, shard| ArgKind::Param { ty: Type::f32(axes("D F")), init, frozen, shard };
    let sub = |generics, repeat: Option<&str>, shard| {
        ArgKind::Sub(SubLayer { layer: "Block".into(), generics, repeat: repeat.map(Axis::new), shard })
    };
    let config = |ty, default| ArgKind::Config { ty, default };
    let kinds = vec![
        ArgKind::Input(Type::f32(axes("B S D"))),
        ArgKind::Input(Type::new(DType::I32, axes("B S"))),
        ArgKind::Rope { seq: Axis::new("S"), head: Axis::new("K") },
        param(Init::Zeros, false, None),
        param(Init::Ones, true, shard(None)),
        param(Init::Normal(0.02), false, shard(Some("F"))),
        param(Init::Uniform(-1.5, 1e-7), true, None),
        param(Init::Xavier, false, None),
        param(Init::Kaiming, false, None),
        ArgKind::Tied { path: "trunk.emb".into(), ty: Type::f32(axes("?0 ?1")) },
        config(ConfigType::Bool, Some(ConfigValue::Bool(false))),
        config(ConfigType::Int, Some(ConfigValue::Int(-3))),
        config(ConfigType::Float, Some(ConfigValue::Float(1e-5))),
        config(ConfigType::Float, Some(ConfigValue::Float(2.0))),
        config(ConfigType::Float, None),
        sub(axes("D V"), Some("L"), shard(Some("L"))),
        sub(Vec::new(), None, shard(None)),
        sub(Vec::new(), None, None),
    ];
    let args = kinds.into_iter().enumerate().map(|(i, kind)| arg(&format!("a{i}"), kind, i as u32)).collect();
    Layer {
        name: "r#gen".into(),
        file: "src\\a \"b\".rs".into(),
        generics: axes("In Out"),
        args,
        output,
        annotations,
        body: func(),
    }
}

fn annotations() -> Vec<Annotations> {
    let with = |checkpoint| Annotations { checkpoint: Some((checkpoint, span(1, 1))), ..Annotations::default() };
    let shard = |axis: Option<&str>| Some((Shard { mesh: "data".into(), axis: axis.map(Axis::new) }, span(3, 1)));
    let precision = |options: &[(&str, &str)]| {
        let options = options.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        Some((Precision { compute: "bf16".into(), options }, span(2, 1)))
    };
    vec![
        Annotations::default(),
        with(Checkpoint::Inputs),
        with(Checkpoint::Selective),
        with(Checkpoint::Lean),
        with(Checkpoint::Save(vec!["q".into(), "h".into()])),
        with(Checkpoint::Save(Vec::new())),
        with(Checkpoint::Budget(u64::MAX)),
        with(Checkpoint::Offload),
        with(Checkpoint::Never),
        Annotations { precision: precision(&[]), shard: shard(None), ..Annotations::default() },
        Annotations {
            precision: precision(&[("master", "f32"), ("grad", "f32")]),
            shard: shard(Some("F")),
            trace: true,
            ..with(Checkpoint::Lean)
        },
    ]
}

#[test]
fn functions_read_back_equal() {
    for func in [func(), Func::default()] {
        let text = print_func(&func);
        assert_eq!(parse_func(&text).unwrap_or_else(|e| panic!("{e}\n{text}")), func, "{text}");
    }
}

#[test]
fn layers_read_back_equal() {
    for a in annotations() {
        for output in [Output::Tensors, Output::Loss] {
            let layer = layer(a.clone(), output);
            let text = print_layer(&layer);
            assert_eq!(parse_layer(&text).unwrap_or_else(|e| panic!("{e}\n{text}")), layer, "{text}");
        }
    }
}

#[test]
fn the_text_is_as_documented() {
    let text = "layer swiglu \"src/model.rs\" {
  arg x @3:5 input f32[B, S, D]
  arg gate @4:5 param f32[D, F] normal(0.02)
  checkpoint selective @1:1
  fn(%0 x: f32[B, S, D], %1 gate: f32[D, F]) {
    %2 h: f32[B, S, F] = dot_general(%0, %1) {out=[B, S, F]} @7:13
    return %2
  }
}
";
    assert_eq!(print_layer(&parse_layer(text).expect("the example of the module's documentation")), text);
}

#[test]
fn errors_name_the_line() {
    let cases = [
        ("fn() {\n  %0: f32[] = cosh()\n  return\n}", "line 2: there is no operation `cosh`"),
        ("fn() {\n  %0: f64[] = exp()\n  return\n}", "line 2: `f64` is not an element type"),
        ("fn(%0 x: f32[B]) {\n\n  return %1\n}", "line 4: %1 is not defined"),
        ("fn(%0 x: f32[B], %0 y: f32[B]) { return }", "line 1: %0 is defined twice"),
        (
            "fn(%0 x: f32[B], %4000000000 y: f32[B]) { return }",
            "line 1: %4000000000 is beyond the number of values of this text",
        ),
        ("fn(%1 x: f32[B]) { return }", "line 1: a number below the largest value is not defined"),
        ("fn() {\n%0: f32[] = const() {value=1.5, value=2}\nreturn }", "line 2: attribute `value` is given twice"),
        ("fn() {\n%0: f32[] = const() {value=1.5x}\nreturn }", "line 2: `1.5x` is no value"),
        ("fn() {\nreturn }\nfn", "line 3: expected the end of the text, found `fn`"),
        ("fn(", "line 1: expected `%`, the text ends"),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_func(text).expect_err(text).to_string(), expected);
    }
    let deep = "fn() { = f32() ".repeat(100_000);
    assert_eq!(parse_func(&deep).expect_err("deep").message, "bodies are nested more than 64 deep");
    let cases = [
        ("layer a \"f\" {\n arg x tensor f32[B]", "line 2: `tensor` is no kind of argument"),
        ("layer a \"f\" {\n arg x param f32[B] gaussian", "line 2: `gaussian` is no initialisation"),
        ("layer a \"f\n", "line 1: a string does not end"),
    ];
    for (text, expected) in cases {
        assert_eq!(parse_layer(text).expect_err(text).to_string(), expected);
    }
}

#[test]
fn damaged_text_is_an_error_and_never_a_panic() {
    let text = print_layer(&layer(annotations().remove(10), Output::Loss));
    let whole = text.trim_end().len();
    let cuts = text.char_indices().map(|(i, _)| i).filter(|&i| i < whole);
    for cut in cuts {
        assert!(parse_layer(&text[..cut]).is_err(), "cut at {cut}");
    }
    let mut refused = 0;
    for (i, c) in text.char_indices() {
        for other in ["%", "\"", "[", "é", "9", "\n", ""] {
            let damaged = format!("{}{other}{}", &text[..i], &text[i + c.len_utf8()..]);
            refused += usize::from(parse_layer(&damaged).is_err());
        }
    }
    assert!(refused > text.len(), "only {refused} damaged texts were refused");
}
