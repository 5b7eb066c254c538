//! Text form of programs: one declaration or node a line.
//!
//! ```text
//! program tiny
//! block head
//! param w : f32[3,4] block=0 decay=true init=normal:0.02
//! input x : f32[2,4]
//! %0 = linear(x, w) epilogue=none : f32[2,3] block=0
//! output y %0
//! grad w %1.2
//! ```
//! `%n` is the first output of node `n`, `%n.k` its output `k`. Empty lines and lines that start
//! with `#` are skipped.

use std::collections::BTreeMap;
use std::fmt::{self, Write};
use std::str::FromStr;

use thiserror::Error;

use super::op::{Op, parse_list};
use super::{
    BlockInfo, Gradient, Init, InputInfo, Node, Output, ParamInfo, Program, SpecError, Type, Value,
};
use crate::shape::Shape;

/// Why a text is not a program.
#[derive(Debug, Error, PartialEq)]
pub enum ParseError {
    /// The text is malformed.
    #[error("line {line}, column {column}: {problem}")]
    Syntax {
        /// Line, from 1.
        line: usize,
        /// Column in bytes, from 1.
        column: usize,
        /// What is wrong and what is allowed.
        problem: String,
    },
    /// The text is well-formed, but the program breaks the specification.
    #[error("invalid program: {0}")]
    Spec(#[from] SpecError),
}

impl Program {
    /// Text form; [`Program::parse_text`] is its inverse.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        self.write_text(&mut text).expect("writing into memory does not fail");
        text
    }

    /// The program of a text, verified.
    pub fn parse_text(text: &str) -> Result<Self, ParseError> {
        let mut parser = Parser::default();
        for (index, line) in text.lines().enumerate() {
            let mut words = Words { line, line_number: index + 1, at: 0 };
            words.skip_space();
            if !words.rest().is_empty() && !words.rest().starts_with('#') {
                parser.line(&mut words)?;
                words.end()?;
            }
        }
        let program = parser.program;
        program.verify()?;
        Ok(program)
    }

    fn write_text(&self, text: &mut String) -> fmt::Result {
        writeln!(text, "program {}", self.name)?;
        for block in &self.blocks {
            writeln!(text, "block {}", block.name)?;
        }
        for param in &self.params {
            let ParamInfo { name, block, shape, decay, init, .. } = param;
            writeln!(text, "param {name} : f32{shape} block={block} decay={decay} init={init}")?;
        }
        for input in &self.inputs {
            writeln!(text, "input {} : {}{}", input.name, input.dtype, input.shape)?;
        }
        for (index, node) in self.nodes.iter().enumerate() {
            let inputs: Vec<_> = node.inputs.iter().map(|&value| self.value_text(value)).collect();
            write!(text, "%{index} = {}({})", node.op.name(), inputs.join(", "))?;
            for (key, value) in node.op.attributes() {
                write!(text, " {key}={value}")?;
            }
            let outputs: Vec<_> = node.outputs.iter().map(Type::to_string).collect();
            writeln!(text, " : {} block={}", outputs.join(", "), node.block)?;
        }
        for output in &self.outputs {
            writeln!(text, "output {} {}", output.name, self.value_text(output.value))?;
        }
        for grad in &self.grads {
            let name = &self.params[grad.param as usize].name;
            writeln!(text, "grad {name} {}", self.value_text(grad.value))?;
        }
        Ok(())
    }

    fn value_text(&self, value: Value) -> String {
        match value {
            Value::Param(index) => self.params[index as usize].name.clone(),
            Value::Input(index) => self.inputs[index as usize].name.clone(),
            Value::Node(node, 0) => format!("%{node}"),
            Value::Node(node, slot) => format!("%{node}.{slot}"),
        }
    }
}

impl fmt::Display for Init {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Zeros => f.write_str("zeros"),
            Self::Ones => f.write_str("ones"),
            Self::Normal { std } => write!(f, "normal:{std:?}"),
            Self::Uniform { bound } => write!(f, "uniform:{bound:?}"),
        }
    }
}

impl FromStr for Init {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse().map_err(|_| ());
        match text.split_once(':') {
            None if text == "zeros" => Ok(Self::Zeros),
            None if text == "ones" => Ok(Self::Ones),
            Some(("normal", std)) => Ok(Self::Normal { std: number(std)? }),
            Some(("uniform", bound)) => Ok(Self::Uniform { bound: number(bound)? }),
            _ => Err(()),
        }
    }
}

struct Parser {
    program: Program,
    names: BTreeMap<String, Value>,
}

impl Default for Parser {
    fn default() -> Self {
        Self { program: super::Builder::new("").program().clone(), names: BTreeMap::new() }
    }
}

impl Parser {
    fn line(&mut self, words: &mut Words<'_>) -> Result<(), ParseError> {
        if words.rest().starts_with('%') {
            return self.node(words);
        }
        let start = words.at;
        match words.word("a declaration")? {
            "program" => words.word("a name")?.clone_into(&mut self.program.name),
            "block" => {
                let name = words.word("a name")?.to_owned();
                self.program.blocks.push(BlockInfo { name, len: 0 });
            }
            "param" => self.param(words)?,
            "input" => {
                let name = words.word("a name")?.to_owned();
                words.expect(":")?;
                let Type { dtype, shape } = words.ty()?;
                let value = Value::Input(self.program.inputs.len() as u32);
                self.names.insert(name.clone(), value);
                self.program.inputs.push(InputInfo { name, dtype, shape });
            }
            "output" => {
                let name = words.word("a name")?.to_owned();
                let value = self.value(words)?;
                self.program.outputs.push(Output { name, value });
            }
            "grad" => {
                let at = words.at;
                let Value::Param(param) = self.value(words)? else {
                    return Err(words.error(at, "expected a parameter"));
                };
                let value = self.value(words)?;
                self.program.grads.push(Gradient { param, value });
            }
            _ => {
                let allowed = "expected program, block, param, input, output, grad or %number";
                return Err(words.error(start, allowed));
            }
        }
        Ok(())
    }

    fn param(&mut self, words: &mut Words<'_>) -> Result<(), ParseError> {
        let name = words.word("a name")?.to_owned();
        words.expect(":")?;
        let at = words.at;
        let ty = words.ty()?;
        if ty != Type::f32(ty.shape.clone()) {
            return Err(words.error(at, "a parameter is f32"));
        }
        let elements = ty.shape.checked_elements();
        let elements = elements.ok_or_else(|| words.error(at, "shape out of bounds"))?;
        let at = words.at;
        let block: usize = words.attribute("block")?;
        let (decay, init) = (words.attribute("decay")?, words.attribute("init")?);
        let Some(info) = self.program.blocks.get_mut(block) else {
            return Err(words.error(at, "the block is not declared above"));
        };
        let offset = info.len;
        info.len = offset
            .checked_add(elements)
            .ok_or_else(|| words.error(at, "the block is out of bounds"))?;
        self.names.insert(name.clone(), Value::Param(self.program.params.len() as u32));
        self.program.params.push(ParamInfo { name, block, offset, shape: ty.shape, decay, init });
        Ok(())
    }

    fn node(&mut self, words: &mut Words<'_>) -> Result<(), ParseError> {
        let at = words.at;
        let expected = Value::Node(self.program.nodes.len() as u32, 0);
        if self.value(words)? != expected {
            let problem = format!("expected %{}, the next node", self.program.nodes.len());
            return Err(words.error(at, &problem));
        }
        words.expect("=")?;
        let at = words.at;
        let name = words.word("an operator")?;
        words.expect("(")?;
        let mut inputs = Vec::new();
        while !words.accept(")") {
            if !inputs.is_empty() {
                words.expect(",")?;
            }
            inputs.push(self.value(words)?);
        }
        let mut attributes = BTreeMap::new();
        while !words.accept(":") {
            let (key, value) = words.pair()?;
            attributes.insert(key, value);
        }
        let lookup = |key: &'static str| attributes.get(key).copied();
        let op = Op::from_attributes(name, &lookup).map_err(|missing| {
            let problem = match missing {
                Some(key) => format!("attribute {key} is missing or malformed"),
                None => format!("unknown operator {name}"),
            };
            words.error(at, &problem)
        })?;
        if op.attributes().len() != attributes.len() {
            return Err(words.error(at, "an attribute that the operator does not have"));
        }
        let mut outputs = vec![words.ty()?];
        while words.accept(",") {
            outputs.push(words.ty()?);
        }
        let block = words.attribute("block")?;
        self.program.nodes.push(Node { op, inputs, outputs, block });
        Ok(())
    }

    fn value(&self, words: &mut Words<'_>) -> Result<Value, ParseError> {
        let at = words.at;
        let word = words.word("a value")?;
        let value = match word.strip_prefix('%') {
            None => self.names.get(word).copied(),
            Some(number) => {
                let (node, slot) = number.split_once('.').unwrap_or((number, "0"));
                node.parse().ok().zip(slot.parse().ok()).map(|(n, s)| Value::Node(n, s))
            }
        };
        value.ok_or_else(|| words.error(at, "expected a declared name, %node or %node.slot"))
    }
}

/// A line and a position in it.
struct Words<'a> {
    line: &'a str,
    line_number: usize,
    at: usize,
}

impl<'a> Words<'a> {
    fn rest(&self) -> &'a str {
        &self.line[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.line.len() - self.rest().trim_start().len();
    }

    fn error(&self, at: usize, problem: &str) -> ParseError {
        let problem = problem.to_owned();
        ParseError::Syntax { line: self.line_number, column: at + 1, problem }
    }

    /// The next run of characters up to white space or punctuation.
    fn word(&mut self, what: &str) -> Result<&'a str, ParseError> {
        let rest = self.rest();
        let stop = |c: char| c.is_whitespace() || matches!(c, '(' | ')' | ',' | '=' | ':');
        let len = rest.find(stop).unwrap_or(rest.len());
        if len == 0 {
            return Err(self.error(self.at, &format!("expected {what}")));
        }
        self.at += len;
        self.skip_space();
        Ok(&rest[..len])
    }

    fn accept(&mut self, mark: &str) -> bool {
        let found = self.rest().starts_with(mark);
        if found {
            self.at += mark.len();
            self.skip_space();
        }
        found
    }

    fn expect(&mut self, mark: &str) -> Result<(), ParseError> {
        if self.accept(mark) {
            Ok(())
        } else {
            Err(self.error(self.at, &format!("expected {mark}")))
        }
    }

    /// `key=value`, the value reaching to white space.
    fn pair(&mut self) -> Result<(&'a str, &'a str), ParseError> {
        let key = self.word("key=value or :")?;
        self.expect("=")?;
        let rest = self.rest();
        let len = rest.find(char::is_whitespace).unwrap_or(rest.len());
        self.at += len;
        self.skip_space();
        Ok((key, &rest[..len]))
    }

    fn attribute<T: FromStr>(&mut self, expected: &str) -> Result<T, ParseError> {
        let at = self.at;
        let (key, value) = self.pair()?;
        let value = if key == expected { value.parse().ok() } else { None };
        value.ok_or_else(|| self.error(at, &format!("expected {expected}=...")))
    }

    fn ty(&mut self) -> Result<Type, ParseError> {
        let at = self.at;
        let rest = self.rest();
        let len = rest.find(']').map_or(rest.len(), |place| place + 1);
        let parsed = rest[..len].find('[').and_then(|open| {
            let dtype = rest[..open].parse().ok()?;
            Some(Type { dtype, shape: Shape::new(parse_list(&rest[open..len])?) })
        });
        self.at += len;
        self.skip_space();
        parsed.ok_or_else(|| self.error(at, "expected a type such as f32[2,3]"))
    }

    fn end(&self) -> Result<(), ParseError> {
        if self.rest().is_empty() {
            return Ok(());
        }
        Err(self.error(self.at, "expected the end of the line"))
    }
}
