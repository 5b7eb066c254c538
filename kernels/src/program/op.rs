//! The operators of a program and their attributes, in text form too.

use std::fmt;
use std::str::FromStr;

use bincode::{Decode, Encode};

use crate::dtype::DType;
use crate::shape::Shape;

/// Elementwise functions of one value.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
pub enum UnaryKind {
    /// `-x`
    Neg,
    /// `e^x`
    Exp,
    /// natural logarithm
    Log,
    /// hyperbolic tangent
    Tanh,
    /// `1 / (1 + e^-x)`
    Sigmoid,
    /// `max(x, 0)`
    Relu,
    /// square root
    Sqrt,
    /// `1 / sqrt(x)`
    Rsqrt,
    /// Gaussian error linear unit by the error function, PyTorch's default.
    GeluErf,
    /// Its approximation by tanh.
    GeluTanh,
    /// `x * factor`
    Scale(f32),
    /// `x + offset`
    Offset(f32),
}

/// Elementwise functions of two values, which broadcast as in NumPy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum BinaryKind {
    /// `a + b`
    Add,
    /// `a - b`
    Sub,
    /// `a * b`
    Mul,
    /// `a / b`
    Div,
    /// the larger
    Max,
    /// the smaller
    Min,
    /// 1 where `a == b`, else 0
    Equal,
    /// 1 where `a < b`, else 0
    Less,
    /// `b` where `a > 0`, else 0: gradient of relu at `a` for the incoming `b`
    ReluGrad,
    /// gradient of [`UnaryKind::GeluErf`] at `a` for the incoming `b`
    GeluErfGrad,
    /// gradient of [`UnaryKind::GeluTanh`] at `a` for the incoming `b`
    GeluTanhGrad,
}

/// One instruction of a fused elementwise chain, in postfix order.
#[derive(Debug, Clone, Copy, PartialEq, Encode, Decode)]
pub enum Instr {
    /// Push an input of the node (broadcast to the output's shape).
    Input(u8),
    /// Replace the top.
    Unary(UnaryKind),
    /// Replace the two topmost, the deeper being the first operand.
    Binary(BinaryKind),
}

/// What a linear layer applies to its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum Epilogue {
    /// Nothing: one output.
    None,
    /// [`UnaryKind::GeluErf`]: outputs the activation and the pre-activation.
    GeluErf,
    /// [`UnaryKind::GeluTanh`]: outputs the activation and the pre-activation.
    GeluTanh,
    /// The sum with one more input of the result's shape.
    Residual,
}

/// How an axis is reduced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum ReduceKind {
    /// sum
    Sum,
    /// arithmetic mean
    Mean,
    /// maximum; its gradient is shared evenly among equal maxima (PyTorch's `amax`)
    Max,
}

/// What a pooling window yields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub enum PoolKind {
    /// the maximum; its gradient goes to the first maximum of the window
    Max,
    /// the mean over the whole window, padding counted as zeros
    Mean,
}

/// Window geometry of convolutions and pooling, equal along both image axes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Encode, Decode)]
pub struct Window {
    /// Step between windows.
    pub stride: usize,
    /// Rows and columns of zeros around the image.
    pub padding: usize,
}

/// An operator. Shapes of inputs and outputs are in [`super::spec::infer`], meanings in
/// [`super::reference`].
#[derive(Debug, Clone, PartialEq, Encode, Decode)]
pub enum Op {
    /// `() -> shape`, filled with one value.
    Constant {
        /// every element
        value: f32,
        /// shape of the output
        shape: Shape,
    },
    /// `(table [V,C], tokens i32 [..]) -> [..,C]`
    Embedding,
    /// `(tokens i32 [..], dy [..,C]) -> [rows,C]`
    EmbeddingGrad {
        /// rows of the table
        rows: usize,
    },
    /// `(x [..,K], w [N,K], bias? [N], residual? [..,N]) -> [..,N]`, with gelu also the
    /// pre-activation. The residual is there if the epilogue says so.
    Linear {
        /// applied to the result
        epilogue: Epilogue,
    },
    /// `(a, b)` -> product of the last two axes of each. Either `b` has two dimensions (then `a`'s
    /// leading axes are rows, and `ta` needs a matrix), or leading axes are equal.
    MatMul {
        /// `a` is stored transposed
        ta: bool,
        /// `b` is stored transposed
        tb: bool,
    },
    /// `(a [..,N], b [N,K], x [..,K]) -> [..,K]`: the product times gelu's derivative at `x`.
    MatMulGeluGrad {
        /// One of the two gradients of gelu.
        kind: BinaryKind,
    },
    /// `(x [..,C], gamma [C], beta? [C]) -> y, mean [rows], rstd [rows]`
    LayerNorm {
        /// added to the variance
        eps: f32,
    },
    /// `(x, gamma, mean, rstd, dy, base?) -> dx, dgamma, dbeta`; `dx` includes the base.
    LayerNormGrad,
    /// `(x [..,C], gamma [C]) -> y, rstd [rows]`
    RmsNorm {
        /// added to the mean square
        eps: f32,
    },
    /// `(x, gamma, rstd, dy, base?) -> dx, dgamma`; `dx` includes the base.
    RmsNormGrad,
    /// Elementwise function of one value.
    Unary(UnaryKind),
    /// Elementwise function of two values.
    Binary(BinaryKind),
    /// A chain of elementwise functions in one pass over memory.
    Fused(Vec<Instr>),
    /// `(qkv [B,T,3C]) -> y [B,T,C], lse [B,H,T]`: multi-head attention, scores scaled by
    /// `1/sqrt(C/H)`; `lse` is the logarithm of each row's sum of exponentials.
    Attention {
        /// number of heads, a divisor of C
        heads: usize,
        /// each position sees itself and earlier ones only
        causal: bool,
    },
    /// `(qkv, y, lse, dy) -> dqkv`
    AttentionGrad {
        /// as in the forward
        heads: usize,
        /// as in the forward
        causal: bool,
    },
    /// Softmax over the last axis.
    Softmax,
    /// `(y, dy) -> dx`
    SoftmaxGrad,
    /// `(logits [..,V], targets i32 [..]) -> scalar`: mean over targets that are not -1; 0 where
    /// all are.
    CrossEntropy,
    /// `(logits, targets, dloss scalar) -> dlogits`
    CrossEntropyGrad,
    /// `(x [..,K], w [V,K], targets i32 [..]) -> scalar`: [`Op::CrossEntropy`] of `x w^T` without
    /// ever holding all logits.
    LinearCrossEntropy,
    /// `(x, w, targets, dloss scalar) -> dx, dw, loss`
    LinearCrossEntropyGrad,
    /// The same elements under another shape of as many elements.
    Reshape {
        /// shape of the output
        shape: Shape,
    },
    /// Output axis `i` is input axis `axes[i]`.
    Permute {
        /// a permutation of `0..rank`
        axes: Vec<usize>,
    },
    /// Elements `start..end` along an axis.
    Slice {
        /// the axis
        axis: usize,
        /// first kept
        start: usize,
        /// first not kept
        end: usize,
    },
    /// Zeros around an axis: the gradient of a slice.
    Pad {
        /// the axis
        axis: usize,
        /// zeros before
        before: usize,
        /// zeros after
        after: usize,
    },
    /// Inputs joined along an axis.
    Concat {
        /// the axis
        axis: usize,
    },
    /// NumPy's `broadcast_to`.
    Broadcast {
        /// shape of the output
        shape: Shape,
    },
    /// Reduction over axes, which are removed, or kept with dimension 1.
    Reduce {
        /// how
        kind: ReduceKind,
        /// which, ascending
        axes: Vec<usize>,
        /// whether they stay as dimensions of 1
        keep: bool,
    },
    /// Conversion of integers to floating point.
    Cast {
        /// type of the output
        to: DType,
    },
    /// `(x [N,C,H,W], w [O,C,KH,KW], bias? [O]) -> [N,O,H',W']`
    Conv2d(Window),
    /// `(x, w, dy) -> dx, dw, dbias [O]`
    Conv2dGrad(Window),
    /// `(x [N,C,H,W]) -> [N,C,H',W']`
    Pool2d {
        /// maximum or mean
        kind: PoolKind,
        /// window side
        kernel: usize,
        /// its movement
        window: Window,
    },
    /// `(x, dy) -> dx`
    Pool2dGrad {
        /// as in the forward
        kind: PoolKind,
        /// as in the forward
        kernel: usize,
        /// as in the forward
        window: Window,
    },
}

impl Op {
    /// The operator's name in the text form.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Constant { .. } => "constant",
            Self::Embedding => "embedding",
            Self::EmbeddingGrad { .. } => "embedding_grad",
            Self::Linear { .. } => "linear",
            Self::MatMul { .. } => "matmul",
            Self::MatMulGeluGrad { .. } => "matmul_gelu_grad",
            Self::LayerNorm { .. } => "layer_norm",
            Self::LayerNormGrad => "layer_norm_grad",
            Self::RmsNorm { .. } => "rms_norm",
            Self::RmsNormGrad => "rms_norm_grad",
            Self::Unary(_) => "unary",
            Self::Binary(_) => "binary",
            Self::Fused(_) => "fused",
            Self::Attention { .. } => "attention",
            Self::AttentionGrad { .. } => "attention_grad",
            Self::Softmax => "softmax",
            Self::SoftmaxGrad => "softmax_grad",
            Self::CrossEntropy => "cross_entropy",
            Self::CrossEntropyGrad => "cross_entropy_grad",
            Self::LinearCrossEntropy => "linear_cross_entropy",
            Self::LinearCrossEntropyGrad => "linear_cross_entropy_grad",
            Self::Reshape { .. } => "reshape",
            Self::Permute { .. } => "permute",
            Self::Slice { .. } => "slice",
            Self::Pad { .. } => "pad",
            Self::Concat { .. } => "concat",
            Self::Broadcast { .. } => "broadcast",
            Self::Reduce { .. } => "reduce",
            Self::Cast { .. } => "cast",
            Self::Conv2d(_) => "conv2d",
            Self::Conv2dGrad(_) => "conv2d_grad",
            Self::Pool2d { .. } => "pool2d",
            Self::Pool2dGrad { .. } => "pool2d_grad",
        }
    }

    /// Attributes as `(key, value)`; values hold no white space. [`Op::from_attributes`] is the
    /// inverse.
    pub(crate) fn attributes(&self) -> Vec<(&'static str, String)> {
        match self {
            Self::Constant { value, shape } => {
                vec![("value", format!("{value:?}")), ("shape", shape.to_string())]
            }
            Self::EmbeddingGrad { rows } => vec![("rows", rows.to_string())],
            Self::Linear { epilogue } => vec![("epilogue", epilogue.to_string())],
            Self::MatMul { ta, tb } => vec![("ta", ta.to_string()), ("tb", tb.to_string())],
            Self::LayerNorm { eps } | Self::RmsNorm { eps } => vec![("eps", format!("{eps:?}"))],
            Self::Unary(kind) => vec![("kind", kind.to_string())],
            Self::Binary(kind) | Self::MatMulGeluGrad { kind } => {
                vec![("kind", kind.to_string())]
            }
            Self::Fused(code) => {
                let words: Vec<_> = code.iter().map(Instr::to_string).collect();
                vec![("code", words.join(";"))]
            }
            Self::Attention { heads, causal } | Self::AttentionGrad { heads, causal } => {
                vec![("heads", heads.to_string()), ("causal", causal.to_string())]
            }
            Self::Reshape { shape } | Self::Broadcast { shape } => {
                vec![("shape", shape.to_string())]
            }
            Self::Permute { axes } => vec![("axes", list(axes))],
            Self::Slice { axis, start, end } => vec![
                ("axis", axis.to_string()),
                ("start", start.to_string()),
                ("end", end.to_string()),
            ],
            Self::Pad { axis, before, after } => vec![
                ("axis", axis.to_string()),
                ("before", before.to_string()),
                ("after", after.to_string()),
            ],
            Self::Concat { axis } => vec![("axis", axis.to_string())],
            Self::Reduce { kind, axes, keep } => {
                vec![("kind", kind.to_string()), ("axes", list(axes)), ("keep", keep.to_string())]
            }
            Self::Cast { to } => vec![("to", to.to_string())],
            Self::Conv2d(window) | Self::Conv2dGrad(window) => window.attributes().to_vec(),
            Self::Pool2d { kind, kernel, window } | Self::Pool2dGrad { kind, kernel, window } => {
                let own = [("kind", kind.to_string()), ("kernel", kernel.to_string())];
                own.into_iter().chain(window.attributes()).collect()
            }
            Self::Embedding
            | Self::LayerNormGrad
            | Self::RmsNormGrad
            | Self::Softmax
            | Self::SoftmaxGrad
            | Self::CrossEntropy
            | Self::CrossEntropyGrad
            | Self::LinearCrossEntropy
            | Self::LinearCrossEntropyGrad => Vec::new(),
        }
    }

    /// The operator of a name and attributes. `lookup` yields an attribute's text; the error is
    /// the name of the missing or malformed attribute, or `None` for an unknown operator.
    pub(crate) fn from_attributes<'a>(
        name: &str,
        lookup: &dyn Fn(&'static str) -> Option<&'a str>,
    ) -> Result<Self, Option<&'static str>> {
        let of = Attributes(lookup);
        let window = || -> Result<Window, Option<&'static str>> {
            Ok(Window { stride: of.parse("stride")?, padding: of.parse("padding")? })
        };
        Ok(match name {
            "constant" => {
                Self::Constant { value: of.parse("value")?, shape: Shape::new(of.list("shape")?) }
            }
            "embedding" => Self::Embedding,
            "embedding_grad" => Self::EmbeddingGrad { rows: of.parse("rows")? },
            "linear" => Self::Linear { epilogue: of.parse("epilogue")? },
            "matmul" => Self::MatMul { ta: of.parse("ta")?, tb: of.parse("tb")? },
            "matmul_gelu_grad" => Self::MatMulGeluGrad { kind: of.parse("kind")? },
            "layer_norm" => Self::LayerNorm { eps: of.parse("eps")? },
            "layer_norm_grad" => Self::LayerNormGrad,
            "rms_norm" => Self::RmsNorm { eps: of.parse("eps")? },
            "rms_norm_grad" => Self::RmsNormGrad,
            "unary" => Self::Unary(of.parse("kind")?),
            "binary" => Self::Binary(of.parse("kind")?),
            "fused" => {
                let words = lookup("code").ok_or(Some("code"))?.split(';');
                let code: Result<_, ()> = words.map(Instr::from_str).collect();
                Self::Fused(code.map_err(|()| Some("code"))?)
            }
            "attention" => {
                Self::Attention { heads: of.parse("heads")?, causal: of.parse("causal")? }
            }
            "attention_grad" => {
                Self::AttentionGrad { heads: of.parse("heads")?, causal: of.parse("causal")? }
            }
            "softmax" => Self::Softmax,
            "softmax_grad" => Self::SoftmaxGrad,
            "cross_entropy" => Self::CrossEntropy,
            "cross_entropy_grad" => Self::CrossEntropyGrad,
            "linear_cross_entropy" => Self::LinearCrossEntropy,
            "linear_cross_entropy_grad" => Self::LinearCrossEntropyGrad,
            "reshape" => Self::Reshape { shape: Shape::new(of.list("shape")?) },
            "permute" => Self::Permute { axes: of.list("axes")? },
            "slice" => Self::Slice {
                axis: of.parse("axis")?,
                start: of.parse("start")?,
                end: of.parse("end")?,
            },
            "pad" => Self::Pad {
                axis: of.parse("axis")?,
                before: of.parse("before")?,
                after: of.parse("after")?,
            },
            "concat" => Self::Concat { axis: of.parse("axis")? },
            "broadcast" => Self::Broadcast { shape: Shape::new(of.list("shape")?) },
            "reduce" => Self::Reduce {
                kind: of.parse("kind")?,
                axes: of.list("axes")?,
                keep: of.parse("keep")?,
            },
            "cast" => Self::Cast { to: of.parse("to")? },
            "conv2d" => Self::Conv2d(window()?),
            "conv2d_grad" => Self::Conv2dGrad(window()?),
            "pool2d" => Self::Pool2d {
                kind: of.parse("kind")?,
                kernel: of.parse("kernel")?,
                window: window()?,
            },
            "pool2d_grad" => Self::Pool2dGrad {
                kind: of.parse("kind")?,
                kernel: of.parse("kernel")?,
                window: window()?,
            },
            _ => return Err(None),
        })
    }
}

struct Attributes<'a, 'b>(&'b dyn Fn(&'static str) -> Option<&'a str>);

impl Attributes<'_, '_> {
    fn parse<T: FromStr>(&self, key: &'static str) -> Result<T, Option<&'static str>> {
        (self.0)(key).and_then(|text| text.parse().ok()).ok_or(Some(key))
    }

    fn list(&self, key: &'static str) -> Result<Vec<usize>, Option<&'static str>> {
        (self.0)(key).and_then(parse_list).ok_or(Some(key))
    }
}

/// Parses `[1,2,3]`.
pub(crate) fn parse_list(text: &str) -> Option<Vec<usize>> {
    let inner = text.strip_prefix('[')?.strip_suffix(']')?;
    if inner.is_empty() {
        return Some(Vec::new());
    }
    inner.split(',').map(|word| word.parse().ok()).collect()
}

fn list(values: &[usize]) -> String {
    Shape::new(values).to_string()
}

impl Window {
    fn attributes(&self) -> [(&'static str, String); 2] {
        [("stride", self.stride.to_string()), ("padding", self.padding.to_string())]
    }

    /// Number of windows of side `kernel` along an axis of `len`, or `None` where none fits.
    pub(crate) fn count(&self, len: usize, kernel: usize) -> Option<usize> {
        let padded = self.padding.checked_mul(2)?.checked_add(len)?;
        padded.checked_sub(kernel)?.checked_div(self.stride).map(|steps| steps + 1)
    }
}

/// Text names of an enumeration without data.
macro_rules! words {
    ($type:ty, $($variant:ident = $word:literal),+ $(,)?) => {
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $word,)+ })
            }
        }

        impl FromStr for $type {
            type Err = ();

            fn from_str(text: &str) -> Result<Self, ()> {
                match text { $($word => Ok(Self::$variant),)+ _ => Err(()) }
            }
        }
    };
}

words!(
    Epilogue,
    None = "none",
    GeluErf = "gelu_erf",
    GeluTanh = "gelu_tanh",
    Residual = "residual",
);
words!(ReduceKind, Sum = "sum", Mean = "mean", Max = "max");
words!(PoolKind, Max = "max", Mean = "mean");
words!(
    BinaryKind,
    Add = "add",
    Sub = "sub",
    Mul = "mul",
    Div = "div",
    Max = "max",
    Min = "min",
    Equal = "equal",
    Less = "less",
    ReluGrad = "relu_grad",
    GeluErfGrad = "gelu_erf_grad",
    GeluTanhGrad = "gelu_tanh_grad",
);

impl fmt::Display for UnaryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Neg => f.write_str("neg"),
            Self::Exp => f.write_str("exp"),
            Self::Log => f.write_str("log"),
            Self::Tanh => f.write_str("tanh"),
            Self::Sigmoid => f.write_str("sigmoid"),
            Self::Relu => f.write_str("relu"),
            Self::Sqrt => f.write_str("sqrt"),
            Self::Rsqrt => f.write_str("rsqrt"),
            Self::GeluErf => f.write_str("gelu_erf"),
            Self::GeluTanh => f.write_str("gelu_tanh"),
            Self::Scale(factor) => write!(f, "scale:{factor:?}"),
            Self::Offset(offset) => write!(f, "offset:{offset:?}"),
        }
    }
}

impl FromStr for UnaryKind {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let number = |text: &str| text.parse().map_err(|_| ());
        Ok(match text {
            "neg" => Self::Neg,
            "exp" => Self::Exp,
            "log" => Self::Log,
            "tanh" => Self::Tanh,
            "sigmoid" => Self::Sigmoid,
            "relu" => Self::Relu,
            "sqrt" => Self::Sqrt,
            "rsqrt" => Self::Rsqrt,
            "gelu_erf" => Self::GeluErf,
            "gelu_tanh" => Self::GeluTanh,
            _ => match text.split_once(':') {
                Some(("scale", factor)) => Self::Scale(number(factor)?),
                Some(("offset", offset)) => Self::Offset(number(offset)?),
                _ => return Err(()),
            },
        })
    }
}

impl fmt::Display for Instr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Input(place) => write!(f, "in:{place}"),
            // The prefix keeps `max` the binary apart from any unary of the same word.
            Self::Unary(kind) => write!(f, "u:{kind}"),
            Self::Binary(kind) => write!(f, "b:{kind}"),
        }
    }
}

impl FromStr for Instr {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text.split_once(':') {
            Some(("in", place)) => place.parse().map(Self::Input).map_err(|_| ()),
            Some(("u", kind)) => kind.parse().map(Self::Unary),
            Some(("b", kind)) => kind.parse().map(Self::Binary),
            _ => Err(()),
        }
    }
}
