//! Parameters and their initial values.

use crate::primitive::philox::philox;
use crate::program::{Init, ParamInfo, Program};

/// Values of all parameters: one flat buffer a block, parameters back to back in declaration
/// order. Gradients and the optimizer's moments have the same layout.
#[derive(Debug, Clone, PartialEq)]
pub struct Params {
    /// One buffer a block.
    pub blocks: Vec<Vec<f32>>,
}

impl Params {
    /// Buffers of a program's layout, all zero.
    pub fn zeros(program: &Program) -> Self {
        Self { blocks: program.blocks().iter().map(|block| vec![0.0; block.len]).collect() }
    }

    /// Elements of one parameter.
    pub fn param(&self, info: &ParamInfo) -> &[f32] {
        &self.blocks[info.block][info.range()]
    }

    /// Elements of one parameter, to be written.
    pub fn param_mut(&mut self, info: &ParamInfo) -> &mut [f32] {
        &mut self.blocks[info.block][info.range()]
    }
}

/// Initial values: a pure function of the program and the seed, the same on every CPU.
pub fn init_params(program: &Program, seed: u64) -> Params {
    let mut params = Params::zeros(program);
    for (index, info) in program.params().iter().enumerate() {
        let values = params.param_mut(info);
        let stream = Stream { seed, stream: index as u32 };
        match info.init {
            Init::Zeros => values.fill(0.0),
            Init::Ones => values.fill(1.0),
            Init::Normal { std } => {
                for (pair, values) in values.chunks_mut(2).enumerate() {
                    let normals = stream.normals(pair as u64);
                    for (value, normal) in values.iter_mut().zip(normals) {
                        *value = (normal * f64::from(std)) as f32;
                    }
                }
            }
            Init::Uniform { bound } => {
                for (place, value) in values.iter_mut().enumerate() {
                    let [unit, _] = stream.units(place as u64);
                    *value = ((2.0 * unit - 1.0) * f64::from(bound)) as f32;
                }
            }
        }
    }
    params
}

/// A stream of random numbers that can be read at any place.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stream {
    pub(crate) seed: u64,
    pub(crate) stream: u32,
}

impl Stream {
    /// Two uniform numbers in `[0, 1)` at a place.
    pub(crate) fn units(&self, place: u64) -> [f64; 2] {
        let key = [self.seed as u32, (self.seed >> 32) as u32];
        let words = philox(key, [place as u32, (place >> 32) as u32, self.stream, 0]);
        let unit = |low: u32, high: u32| {
            let bits = (u64::from(high) << 32 | u64::from(low)) >> 11;
            bits as f64 / (1u64 << 53) as f64
        };
        [unit(words[0], words[1]), unit(words[2], words[3])]
    }

    /// Two independent standard normal numbers at a place, by Box and Muller's transform. libm's
    /// functions are plain arithmetic, so that every CPU yields the same bits.
    fn normals(&self, place: u64) -> [f64; 2] {
        let [a, b] = self.units(place);
        // 1 - a is in (0, 1], whose logarithm is finite.
        let radius = libm::sqrt(-2.0 * libm::log(1.0 - a));
        let angle = 2.0 * std::f64::consts::PI * b;
        [radius * libm::cos(angle), radius * libm::sin(angle)]
    }
}
