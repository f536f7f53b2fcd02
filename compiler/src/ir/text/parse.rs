//! Text in, IR out, or an error with its line.

use crate::ir::{
    Annotations, Arg, ArgKind, Attr, Attrs, Axis, Checkpoint, ConfigType, ConfigValue, DType, Func, Init, Layer, Node,
    Output, Precision, Shard, Span, SubLayer, Type, Value, ValueId,
};
use crate::ops;
use std::borrow::Cow;
use std::collections::HashMap;

/// Why a text is not IR.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {message}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

type Parsed<T> = Result<T, ParseError>;

/// Reads one function.
pub fn parse_func(text: &str) -> Parsed<Func> {
    whole(text, Parser::func)
}

/// Reads one layer.
pub fn parse_layer(text: &str) -> Parsed<Layer> {
    whole(text, Parser::layer)
}

fn whole<'a, T>(text: &'a str, item: fn(&mut Parser<'a>) -> Parsed<T>) -> Parsed<T> {
    let mut p = Parser { text, at: 0, axes: HashMap::new(), depth: 0 };
    let x = item(&mut p)?;
    p.skip_space();
    match p.at == text.len() {
        true => Ok(x),
        false => Err(p.expected("the end of the text")),
    }
}

/// Bodies in bodies that are read; a deeper text is refused, so that damaged input cannot exhaust the stack.
const MAX_DEPTH: usize = 64;
struct Parser<'a> {
    text: &'a str,
    at: usize,
    /// Axes met so far: interning takes a lock, most axes repeat.
    axes: HashMap<Cow<'a, str>, Axis>,
    depth: usize,
}

/// Values of a function while it is read; their order in the text is free.
struct Values {
    slots: Vec<Option<Value>>,
    /// Each value takes a byte of the text or more; larger numbers are refused before memory is reserved for them.
    limit: usize,
}

impl<'a> Parser<'a> {
    fn error(&self, message: impl Into<String>) -> ParseError {
        let line = 1 + self.text.as_bytes()[..self.at].iter().filter(|&&c| c == b'\n').count();
        ParseError { line, message: message.into() }
    }

    fn expected(&self, what: &str) -> ParseError {
        let rest: String = self.text[self.at..].chars().take_while(|&c| c != '\n').take(20).collect();
        let found = if self.at == self.text.len() { "the text ends".to_owned() } else { format!("found `{rest}`") };
        self.error(format!("expected {what}, {found}"))
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn skip_space(&mut self) {
        while self.peek().is_some_and(|c| c.is_ascii_whitespace()) {
            self.at += 1;
        }
    }

    /// Skips the punctuation `mark` if it is next.
    fn eat(&mut self, mark: u8) -> bool {
        self.skip_space();
        let found = self.peek() == Some(mark);
        self.at += usize::from(found);
        found
    }

    fn expect(&mut self, mark: u8) -> Parsed<()> {
        match self.eat(mark) {
            true => Ok(()),
            false => Err(self.expected(&format!("`{}`", mark as char))),
        }
    }

    /// The word at the next position without taking it; empty if there is none.
    fn next_word(&mut self) -> &'a str {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let n = rest.iter().position(|&c| !super::is_word(c)).unwrap_or(rest.len());
        &self.text[self.at..self.at + n]
    }

    /// Skips the word `word` if it is next.
    fn eat_word(&mut self, word: &str) -> bool {
        let found = self.next_word() == word;
        self.at += if found { word.len() } else { 0 };
        found
    }

    fn word(&mut self, what: &str) -> Parsed<&'a str> {
        let word = self.next_word();
        if word.is_empty() {
            return Err(self.expected(what));
        }
        self.at += word.len();
        Ok(word)
    }

    /// A word or a string in quotes.
    fn name(&mut self, what: &str) -> Parsed<Cow<'a, str>> {
        self.skip_space();
        match self.peek() {
            Some(b'"') => self.quoted().map(Cow::Owned),
            _ => self.word(what).map(Cow::Borrowed),
        }
    }

    fn quoted(&mut self) -> Parsed<String> {
        self.expect(b'"')?;
        let mut out = String::new();
        let start = self.at;
        let mut chars = self.text[start..].char_indices();
        while let Some((i, c)) = chars.next() {
            self.at = start + i;
            match c {
                '"' => {
                    self.at += 1;
                    return Ok(out);
                }
                '\\' => match chars.next().map(|(_, c)| c) {
                    Some('n') => out.push('\n'),
                    Some(c @ ('"' | '\\')) => out.push(c),
                    _ => return Err(self.expected("an escape: `\\n`, `\\\"` or `\\\\`")),
                },
                c => out.push(c),
            }
        }
        self.at = start;
        Err(self.error("a string does not end"))
    }

    /// The characters of a number: digits, sign, point, exponent, `inf`, `NaN`.
    fn number(&mut self) -> Parsed<&'a str> {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let of_number = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'+' | b'.');
        let n = rest.iter().position(|&c| !of_number(c)).unwrap_or(rest.len());
        if n == 0 {
            return Err(self.expected("a number"));
        }
        self.at += n;
        Ok(&self.text[self.at - n..self.at])
    }

    fn float(&mut self) -> Parsed<f64> {
        let text = self.number()?;
        text.parse().map_err(|_| self.error(format!("`{text}` is not a number")))
    }

    fn unsigned<T: std::str::FromStr>(&mut self, what: &str) -> Parsed<T> {
        self.skip_space();
        let rest = &self.text.as_bytes()[self.at..];
        let n = rest.iter().position(|c| !c.is_ascii_digit()).unwrap_or(rest.len());
        let digits = &self.text[self.at..self.at + n];
        let number = digits.parse().map_err(|_| self.expected(what))?;
        self.at += n;
        Ok(number)
    }

    /// `item, item` up to `end`, which is taken.
    fn list<T>(&mut self, end: u8, mut item: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Vec<T>> {
        let mut items = Vec::new();
        if self.eat(end) {
            return Ok(items);
        }
        loop {
            items.push(item(self)?);
            if self.eat(end) {
                return Ok(items);
            }
            self.expect(b',')?;
        }
    }

    fn axis(&mut self) -> Parsed<Axis> {
        let name = self.name("an axis")?;
        if let Some(&axis) = self.axes.get(&name) {
            return Ok(axis);
        }
        let axis = Axis::new(&name);
        self.axes.insert(name, axis);
        Ok(axis)
    }

    fn axes(&mut self) -> Parsed<Vec<Axis>> {
        self.expect(b'[')?;
        self.list(b']', Self::axis)
    }

    fn dtype(&mut self) -> Parsed<DType> {
        let word = self.word("an element type")?;
        word.parse().map_err(|e: String| self.error(e))
    }

    fn ty(&mut self) -> Parsed<Type> {
        Ok(Type { dtype: self.dtype()?, shape: self.axes()? })
    }

    fn span(&mut self) -> Parsed<Span> {
        if !self.eat(b'@') {
            return Ok(Span::default());
        }
        let line = self.unsigned("a line")?;
        self.expect(b':')?;
        Ok(Span { line, column: self.unsigned("a column")? })
    }

    fn value(&mut self) -> Parsed<ValueId> {
        self.expect(b'%')?;
        self.unsigned("the number of a value").map(ValueId)
    }

    /// `%3 name: f32[B]`.
    fn definition(&mut self, values: &mut Values) -> Parsed<ValueId> {
        let v = self.value()?;
        let name = if self.eat(b':') {
            None
        } else {
            let name = self.name("a name or `:`")?.into_owned();
            self.expect(b':')?;
            Some(name)
        };
        let value = Value { ty: self.ty()?, name };
        if v.index() >= values.limit {
            return Err(self.error(format!("%{} is beyond the number of values of this text", v.0)));
        }
        if v.index() >= values.slots.len() {
            values.slots.resize(v.index() + 1, None);
        }
        match values.slots[v.index()].replace(value) {
            None => Ok(v),
            Some(_) => Err(self.error(format!("%{} is defined twice", v.0))),
        }
    }

    fn func(&mut self) -> Parsed<Func> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(self.error(format!("bodies are nested more than {MAX_DEPTH} deep")));
        }
        if !self.eat_word("fn") {
            return Err(self.expected("`fn`"));
        }
        self.expect(b'(')?;
        let mut values = Values { slots: Vec::new(), limit: self.text.len() };
        let inputs = self.list(b')', |p| p.definition(&mut values))?;
        self.expect(b'{')?;
        if self.eat_word("unused") {
            self.definition(&mut values)?;
            while self.eat(b',') {
                self.definition(&mut values)?;
            }
        }
        let mut nodes = Vec::new();
        while !self.eat_word("return") {
            nodes.push(self.node(&mut values)?);
        }
        let mut outputs = Vec::new();
        if !self.eat(b'}') {
            outputs.push(self.value()?);
            while self.eat(b',') {
                outputs.push(self.value()?);
            }
            self.expect(b'}')?;
        }
        self.depth -= 1;
        let count = values.slots.len();
        let complete: Option<Vec<Value>> = values.slots.into_iter().collect();
        let Some(values) = complete else { return Err(self.error("a number below the largest value is not defined")) };
        let read = nodes.iter().flat_map(|n: &Node| &n.inputs).chain(&outputs);
        match read.into_iter().find(|v| v.index() >= count) {
            Some(v) => Err(self.error(format!("%{} is not defined", v.0))),
            None => Ok(Func { values, nodes, inputs, outputs }),
        }
    }

    fn node(&mut self, values: &mut Values) -> Parsed<Node> {
        let mut outputs = Vec::new();
        if !self.eat(b'=') {
            outputs.push(self.definition(values)?);
            while self.eat(b',') {
                outputs.push(self.definition(values)?);
            }
            self.expect(b'=')?;
        }
        let name = self.word("an operation")?;
        let Some(op) = ops::find(name) else { return Err(self.error(format!("there is no operation `{name}`"))) };
        self.expect(b'(')?;
        let inputs = self.list(b')', Self::value)?;
        let attrs = self.attrs()?;
        let span = self.span()?;
        let mut bodies = Vec::new();
        while self.next_word() == "fn" {
            bodies.push(self.func()?);
        }
        Ok(Node { op, inputs, outputs, attrs, bodies, span })
    }

    fn attrs(&mut self) -> Parsed<Attrs> {
        let mut attrs = Attrs::new();
        if !self.eat(b'{') {
            return Ok(attrs);
        }
        self.list(b'}', |p| {
            let name = p.name("an attribute")?;
            p.expect(b'=')?;
            let value = p.attr()?;
            match attrs.get(&name) {
                None => attrs.set(&name, value),
                Some(_) => return Err(p.error(format!("attribute `{name}` is given twice"))),
            }
            Ok(())
        })?;
        Ok(attrs)
    }

    fn attr(&mut self) -> Parsed<Attr> {
        self.skip_space();
        match self.peek() {
            Some(b'"') => self.quoted().map(Attr::Str),
            Some(b'\'') => {
                self.at += 1;
                self.axis().map(Attr::Axis)
            }
            Some(b'[') => self.axes().map(Attr::Axes),
            Some(b':') => {
                self.at += 1;
                self.dtype().map(Attr::DType)
            }
            Some(b'$') => {
                self.at += 1;
                self.name("a config argument").map(|name| Attr::Config(name.into_owned()))
            }
            _ => match self.literal()? {
                ConfigValue::Bool(x) => Ok(Attr::Bool(x)),
                ConfigValue::Int(x) => Ok(Attr::Int(x)),
                ConfigValue::Float(x) => Ok(Attr::Float(x)),
            },
        }
    }

    /// `true`, `3`, `0.5`: integers have digits and a sign only.
    fn literal(&mut self) -> Parsed<ConfigValue> {
        let text = self.number()?;
        let is_int = text.bytes().all(|c| c.is_ascii_digit() || c == b'-');
        let value = match text {
            "true" => Some(ConfigValue::Bool(true)),
            "false" => Some(ConfigValue::Bool(false)),
            _ if is_int => text.parse().ok().map(ConfigValue::Int),
            _ => text.parse().ok().map(ConfigValue::Float),
        };
        value.ok_or_else(|| self.error(format!("`{text}` is no value")))
    }

    fn layer(&mut self) -> Parsed<Layer> {
        if !self.eat_word("layer") {
            return Err(self.expected("`layer`"));
        }
        let name = self.name("the layer's name")?.into_owned();
        let file = self.quoted()?;
        let generics = if self.eat_word("generics") { self.axes()? } else { Vec::new() };
        let output = if self.eat_word("loss") { Output::Loss } else { Output::Tensors };
        self.expect(b'{')?;
        let mut args = Vec::new();
        while self.eat_word("arg") {
            args.push(self.arg()?);
        }
        let annotations = self.annotations()?;
        let body = self.func()?;
        self.expect(b'}')?;
        Ok(Layer { name, file, generics, args, output, annotations, body })
    }

    fn arg(&mut self) -> Parsed<Arg> {
        let name = self.name("the argument's name")?.into_owned();
        let span = self.span()?;
        let kind = match self.word("the kind of the argument")? {
            "input" => ArgKind::Input(self.ty()?),
            "rope" => ArgKind::Rope { seq: self.axis()?, head: self.axis()? },
            "param" => ArgKind::Param {
                ty: self.ty()?,
                init: self.init()?,
                frozen: self.eat_word("frozen"),
                shard: self.shard("split")?,
            },
            "tied" => ArgKind::Tied { path: self.name("a path")?.into_owned(), ty: self.ty()? },
            "sub" => ArgKind::Sub(SubLayer {
                layer: self.name("the child's type")?.into_owned(),
                generics: if self.eat_word("generics") { self.axes()? } else { Vec::new() },
                repeat: if self.eat_word("repeat") { Some(self.axis()?) } else { None },
                shard: self.shard("split")?,
            }),
            "config" => ArgKind::Config {
                ty: match self.word("the type of the config argument")? {
                    "bool" => ConfigType::Bool,
                    "int" => ConfigType::Int,
                    "float" => ConfigType::Float,
                    other => return Err(self.error(format!("`{other}` is no type of config arguments"))),
                },
                default: if self.eat(b'=') { Some(self.literal()?) } else { None },
            },
            other => return Err(self.error(format!("`{other}` is no kind of argument"))),
        };
        Ok(Arg { name, kind, span })
    }

    fn init(&mut self) -> Parsed<Init> {
        Ok(match self.word("an initialisation")? {
            "zeros" => Init::Zeros,
            "ones" => Init::Ones,
            "xavier" => Init::Xavier,
            "kaiming" => Init::Kaiming,
            "normal" => {
                self.expect(b'(')?;
                let std = self.float()?;
                self.expect(b')')?;
                Init::Normal(std)
            }
            "uniform" => {
                self.expect(b'(')?;
                let a = self.float()?;
                self.expect(b',')?;
                let b = self.float()?;
                self.expect(b')')?;
                Init::Uniform(a, b)
            }
            other => return Err(self.error(format!("`{other}` is no initialisation"))),
        })
    }

    /// `keyword data = B`: an argument says `split`, a layer says `shard`.
    fn shard(&mut self, keyword: &str) -> Parsed<Option<Shard>> {
        if !self.eat_word(keyword) {
            return Ok(None);
        }
        let mesh = self.name("a mesh axis")?.into_owned();
        let axis = if self.eat(b'=') { Some(self.axis()?) } else { None };
        Ok(Some(Shard { mesh, axis }))
    }

    fn annotations(&mut self) -> Parsed<Annotations> {
        let mut annotations = Annotations::default();
        if self.eat_word("checkpoint") {
            annotations.checkpoint = Some((self.checkpoint()?, self.span()?));
        }
        if self.eat_word("precision") {
            let compute = self.name("an element type")?.into_owned();
            let option = |p: &mut Self| {
                let key = p.name("an option")?.into_owned();
                p.expect(b'=')?;
                Ok((key, p.name("its value")?.into_owned()))
            };
            let options = if self.eat(b'(') { self.list(b')', option)? } else { Vec::new() };
            annotations.precision = Some((Precision { compute, options }, self.span()?));
        }
        if let Some(shard) = self.shard("shard")? {
            annotations.shard = Some((shard, self.span()?));
        }
        annotations.trace = self.eat_word("trace");
        Ok(annotations)
    }

    fn checkpoint(&mut self) -> Parsed<Checkpoint> {
        Ok(match self.word("what is kept")? {
            "inputs" => Checkpoint::Inputs,
            "selective" => Checkpoint::Selective,
            "lean" => Checkpoint::Lean,
            "offload" => Checkpoint::Offload,
            "never" => Checkpoint::Never,
            "budget" => Checkpoint::Budget(self.unsigned("a number of bytes")?),
            "save" => {
                self.expect(b'(')?;
                Checkpoint::Save(self.list(b')', |p| p.name("a name").map(Cow::into_owned))?)
            }
            other => return Err(self.error(format!("`{other}` is no choice of `checkpoint`"))),
        })
    }
}
