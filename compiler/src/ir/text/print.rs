//! IR in, text out.

use crate::ir::{
    Annotations, Arg, ArgKind, Attr, Attrs, Axis, Checkpoint, ConfigType, ConfigValue, Func, Init, Layer, Output,
    Precision, Shard, Span, SubLayer, Type, ValueId,
};
use std::fmt::{self, Write};

/// The text of a function.
pub fn print_func(func: &Func) -> String {
    let mut p = Printer { out: String::new(), depth: 0 };
    p.func(func).unwrap_or_else(infallible);
    p.out.push('\n');
    p.out
}

/// The text of a layer.
pub fn print_layer(layer: &Layer) -> String {
    let mut p = Printer { out: String::new(), depth: 0 };
    p.layer(layer).unwrap_or_else(infallible);
    p.out.push('\n');
    p.out
}

fn infallible(_: fmt::Error) {
    unreachable!("writing to a string does not fail");
}

struct Printer {
    out: String,
    depth: usize,
}

/// A name, in quotes if it holds anything but word characters.
struct Name<'a>(&'a str);

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match !self.0.is_empty() && self.0.bytes().all(super::is_word) {
            true => f.write_str(self.0),
            false => write!(f, "{:?}", Quoted(self.0)),
        }
    }
}

/// A string in quotes, in which only `"`, `\` and the line break are escaped.
struct Quoted<'a>(&'a str);

impl fmt::Debug for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('"')?;
        for c in self.0.chars() {
            match c {
                '"' => f.write_str("\\\"")?,
                '\\' => f.write_str("\\\\")?,
                '\n' => f.write_str("\\n")?,
                c => f.write_char(c)?,
            }
        }
        f.write_char('"')
    }
}

/// `[B, S, D]`.
struct AxesText<'a>(&'a [Axis]);

impl fmt::Display for AxesText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_char('[')?;
        for (i, a) in self.0.iter().enumerate() {
            write!(f, "{}{}", if i > 0 { ", " } else { "" }, Name(a.name()))?;
        }
        f.write_char(']')
    }
}

/// `f32[B, S, D]`.
struct TypeText<'a>(&'a Type);

impl fmt::Display for TypeText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.0.dtype, AxesText(&self.0.shape))
    }
}

/// ` @3:5`, nothing for 0:0.
struct At(Span);

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 == Span::default() {
            true => Ok(()),
            false => write!(f, " @{}:{}", self.0.line, self.0.column),
        }
    }
}

impl Printer {
    fn line(&mut self) {
        self.out.push('\n');
        (0..self.depth).for_each(|_| self.out.push_str("  "));
    }

    /// ` %3, %4`, separated; with a leading opening and trailing closing given by the caller.
    fn values(&mut self, values: &[ValueId]) -> fmt::Result {
        for (i, v) in values.iter().enumerate() {
            write!(self.out, "{}%{}", if i > 0 { ", " } else { "" }, v.0)?;
        }
        Ok(())
    }

    fn definitions(&mut self, func: &Func, values: &[ValueId]) -> fmt::Result {
        for (i, &v) in values.iter().enumerate() {
            let value = &func.values[v.index()];
            write!(self.out, "{}%{}", if i > 0 { ", " } else { "" }, v.0)?;
            if let Some(name) = &value.name {
                write!(self.out, " {}", Name(name))?;
            }
            write!(self.out, ": {}", TypeText(&value.ty))?;
        }
        Ok(())
    }

    fn func(&mut self, func: &Func) -> fmt::Result {
        self.out.push_str("fn(");
        self.definitions(func, &func.inputs)?;
        self.out.push_str(") {");
        self.depth += 1;
        let unused = orphans(func);
        if !unused.is_empty() {
            self.line();
            self.out.push_str("unused ");
            self.definitions(func, &unused)?;
        }
        for node in &func.nodes {
            self.line();
            self.definitions(func, &node.outputs)?;
            write!(self.out, "{}{}(", if node.outputs.is_empty() { "= " } else { " = " }, node.op.name)?;
            self.values(&node.inputs)?;
            self.out.push(')');
            self.attrs(&node.attrs)?;
            write!(self.out, "{}", At(node.span))?;
            for body in &node.bodies {
                self.out.push(' ');
                self.func(body)?;
            }
        }
        self.line();
        self.out.push_str(if func.outputs.is_empty() { "return" } else { "return " });
        self.values(&func.outputs)?;
        self.depth -= 1;
        self.line();
        self.out.push('}');
        Ok(())
    }

    fn attrs(&mut self, attrs: &Attrs) -> fmt::Result {
        if attrs.is_empty() {
            return Ok(());
        }
        for (i, (name, value)) in attrs.iter().enumerate() {
            write!(self.out, "{}{}=", if i > 0 { ", " } else { " {" }, Name(name))?;
            match value {
                Attr::Int(x) => write!(self.out, "{x}"),
                Attr::Float(x) => write!(self.out, "{x:?}"),
                Attr::Bool(x) => write!(self.out, "{x}"),
                Attr::Str(x) => write!(self.out, "{:?}", Quoted(x)),
                Attr::Axis(x) => write!(self.out, "'{}", Name(x.name())),
                Attr::Axes(x) => write!(self.out, "{}", AxesText(x)),
                Attr::DType(x) => write!(self.out, ":{x}"),
                Attr::Config(x) => write!(self.out, "${}", Name(x)),
            }?;
        }
        self.out.push('}');
        Ok(())
    }

    fn layer(&mut self, layer: &Layer) -> fmt::Result {
        write!(self.out, "layer {} {:?}", Name(&layer.name), Quoted(&layer.file))?;
        if !layer.generics.is_empty() {
            write!(self.out, " generics {}", AxesText(&layer.generics))?;
        }
        self.out.push_str(match layer.output {
            Output::Tensors => " {",
            Output::Loss => " loss {",
        });
        self.depth += 1;
        for arg in &layer.args {
            self.line();
            self.arg(arg)?;
        }
        self.annotations(&layer.annotations)?;
        self.line();
        self.func(&layer.body)?;
        self.depth -= 1;
        self.line();
        self.out.push('}');
        Ok(())
    }

    fn arg(&mut self, arg: &Arg) -> fmt::Result {
        write!(self.out, "arg {}{} ", Name(&arg.name), At(arg.span))?;
        let out = &mut self.out;
        match &arg.kind {
            ArgKind::Input(ty) => write!(out, "input {}", TypeText(ty)),
            ArgKind::Rope { seq, head } => write!(out, "rope {} {}", Name(seq.name()), Name(head.name())),
            ArgKind::Param { ty, init, frozen, shard } => {
                write!(out, "param {} ", TypeText(ty))?;
                match init {
                    Init::Zeros => out.push_str("zeros"),
                    Init::Ones => out.push_str("ones"),
                    Init::Normal(std) => write!(out, "normal({std:?})")?,
                    Init::Uniform(a, b) => write!(out, "uniform({a:?}, {b:?})")?,
                    Init::Xavier => out.push_str("xavier"),
                    Init::Kaiming => out.push_str("kaiming"),
                }
                out.push_str(if *frozen { " frozen" } else { "" });
                self.split(shard)
            }
            ArgKind::Tied { path, ty } => write!(out, "tied {} {}", Name(path), TypeText(ty)),
            ArgKind::Sub(SubLayer { layer, generics, repeat, shard }) => {
                write!(out, "sub {}", Name(layer))?;
                if !generics.is_empty() {
                    write!(out, " generics {}", AxesText(generics))?;
                }
                if let Some(axis) = repeat {
                    write!(out, " repeat {}", Name(axis.name()))?;
                }
                self.split(shard)
            }
            ArgKind::Config { ty, default } => {
                out.push_str(match ty {
                    ConfigType::Bool => "config bool",
                    ConfigType::Int => "config int",
                    ConfigType::Float => "config float",
                });
                match default {
                    None => Ok(()),
                    Some(ConfigValue::Bool(x)) => write!(out, " = {x}"),
                    Some(ConfigValue::Int(x)) => write!(out, " = {x}"),
                    Some(ConfigValue::Float(x)) => write!(out, " = {x:?}"),
                }
            }
        }
    }

    /// ` split data = B` behind an argument; a layer's own line says `shard`.
    fn split(&mut self, shard: &Option<Shard>) -> fmt::Result {
        let Some(shard) = shard else { return Ok(()) };
        self.out.push_str(" split ");
        self.shard(shard)
    }

    fn shard(&mut self, Shard { mesh, axis }: &Shard) -> fmt::Result {
        write!(self.out, "{}", Name(mesh))?;
        match axis {
            Some(a) => write!(self.out, " = {}", Name(a.name())),
            None => Ok(()),
        }
    }

    fn annotations(&mut self, annotations: &Annotations) -> fmt::Result {
        let Annotations { checkpoint, precision, shard, trace } = annotations;
        if let Some((checkpoint, span)) = checkpoint {
            self.line();
            self.checkpoint(checkpoint)?;
            write!(self.out, "{}", At(*span))?;
        }
        if let Some((Precision { compute, options }, span)) = precision {
            self.line();
            write!(self.out, "precision {}", Name(compute))?;
            for (i, (key, value)) in options.iter().enumerate() {
                write!(self.out, "{}{} = {}", if i > 0 { ", " } else { " (" }, Name(key), Name(value))?;
            }
            self.out.push_str(if options.is_empty() { "" } else { ")" });
            write!(self.out, "{}", At(*span))?;
        }
        if let Some((s, span)) = shard {
            self.line();
            self.out.push_str("shard ");
            self.shard(s)?;
            write!(self.out, "{}", At(*span))?;
        }
        if *trace {
            self.line();
            self.out.push_str("trace");
        }
        Ok(())
    }

    fn checkpoint(&mut self, checkpoint: &Checkpoint) -> fmt::Result {
        let out = &mut self.out;
        out.push_str("checkpoint ");
        match checkpoint {
            Checkpoint::Inputs => out.push_str("inputs"),
            Checkpoint::Selective => out.push_str("selective"),
            Checkpoint::Lean => out.push_str("lean"),
            Checkpoint::Offload => out.push_str("offload"),
            Checkpoint::Never => out.push_str("never"),
            Checkpoint::Budget(bytes) => write!(out, "budget {bytes}")?,
            Checkpoint::Save(names) => {
                out.push_str("save (");
                for (i, name) in names.iter().enumerate() {
                    write!(out, "{}{}", if i > 0 { ", " } else { "" }, Name(name))?;
                }
                out.push(')');
            }
        }
        Ok(())
    }
}

/// Values that are neither arguments nor results of a node: passes that remove nodes leave them behind.
fn orphans(func: &Func) -> Vec<ValueId> {
    let mut defined = vec![false; func.values.len()];
    for v in func.inputs.iter().chain(func.nodes.iter().flat_map(|n| &n.outputs)) {
        defined[v.index()] = true;
    }
    (0..func.values.len() as u32).map(ValueId).filter(|v| !defined[v.index()]).collect()
}
