//! Convolution in two dimensions, as a product with the windows laid out as columns.
//!
//! Tensors are `[batch, channels, height, width]`; filters `[filters, channels / groups, kernel
//! height, kernel width]`. One image and group at a time, so that the columns stay small.

use crate::op::matmul::{self, Matrix, Scratch, Size, Store};
use crate::primitive::pool::{Chunks, Pool};
use crate::primitive::scratch;

/// Shape of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Conv2d {
    pub batch: usize,
    pub channels: usize,
    pub height: usize,
    pub width: usize,
    pub filters: usize,
    /// Height and width of the window, as the other pairs.
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Zeros on each side.
    pub padding: [usize; 2],
    pub dilation: [usize; 2],
    /// Channels and filters are divided into this many independent groups.
    pub groups: usize,
}

impl Conv2d {
    /// Height and width of the result; zero where the window does not fit.
    pub fn output(&self) -> [usize; 2] {
        let size = |axis: usize, len: usize| {
            let window = self.dilation[axis] * (self.kernel[axis] - 1) + 1;
            let padded = len + 2 * self.padding[axis];
            padded.checked_sub(window).map_or(0, |rest| rest / self.stride[axis] + 1)
        };
        [size(0, self.height), size(1, self.width)]
    }

    fn places(&self) -> usize {
        self.output().iter().product()
    }

    fn pixels(&self) -> usize {
        self.height * self.width
    }

    fn window(&self) -> usize {
        self.kernel[0] * self.kernel[1]
    }

    fn group_channels(&self) -> usize {
        self.channels / self.groups
    }

    fn group_filters(&self) -> usize {
        self.filters / self.groups
    }

    fn check(&self, x: &[f32], w: &[f32], y: &[f32]) {
        assert!(self.groups > 0 && self.channels.is_multiple_of(self.groups), "{self:?}");
        assert!(self.filters.is_multiple_of(self.groups) && self.window() > 0, "{self:?}");
        assert!(self.stride.iter().chain(&self.dilation).all(|&step| step > 0), "{self:?}");
        assert_eq!(x.len(), self.batch * self.channels * self.pixels(), "{self:?}");
        assert_eq!(w.len(), self.filters * self.group_channels() * self.window(), "{self:?}");
        assert_eq!(y.len(), self.batch * self.filters * self.places(), "{self:?}");
    }

    /// Calls `f(place, pixel)` for each place of the result whose window meets the image at offset
    /// `tap` of the window.
    fn for_tap(&self, tap: usize, mut f: impl FnMut(usize, usize)) {
        let [rows, columns] = self.output();
        let offset = [tap / self.kernel[1], tap % self.kernel[1]];
        let position = |axis: usize, place: usize, len: usize| {
            let at = place * self.stride[axis] + offset[axis] * self.dilation[axis];
            at.checked_sub(self.padding[axis]).filter(|&at| at < len)
        };
        for row in 0..rows {
            let Some(y) = position(0, row, self.height) else { continue };
            for column in 0..columns {
                if let Some(x) = position(1, column, self.width) {
                    f(row * columns + column, y * self.width + x);
                }
            }
        }
    }

    /// `columns[channel, tap, place]` of one image and group.
    fn gather(&self, pool: &Pool, x: &[f32], columns: &mut [f32]) {
        let (places, window) = (self.places(), self.window());
        let columns = Chunks::new(columns, places * window);
        pool.for_parts(self.group_channels(), columns, |channel, columns| {
            let x = &x[channel * self.pixels()..][..self.pixels()];
            for (tap, columns) in columns.chunks_exact_mut(places).enumerate() {
                columns.fill(0.0);
                self.for_tap(tap, |place, pixel| columns[place] = x[pixel]);
            }
        });
    }

    /// The reverse of [`gather`](Self::gather), summing where windows overlap.
    fn scatter(&self, pool: &Pool, columns: &[f32], dx: &mut [f32]) {
        let (places, window) = (self.places(), self.window());
        let dx = Chunks::new(dx, self.pixels());
        pool.for_parts(self.group_channels(), dx, |channel, dx| {
            dx.fill(0.0);
            let columns = &columns[channel * places * window..][..places * window];
            for (tap, columns) in columns.chunks_exact(places).enumerate() {
                self.for_tap(tap, |place, pixel| dx[pixel] += columns[place]);
            }
        });
    }

    /// Ranges of one image and group in `x`, `w` and `y`.
    fn ranges(&self, image: usize, group: usize) -> [std::ops::Range<usize>; 3] {
        let range = |index: usize, len: usize| index * len..(index + 1) * len;
        [
            range(image * self.groups + group, self.group_channels() * self.pixels()),
            range(group, self.group_filters() * self.group_channels() * self.window()),
            range(image * self.groups + group, self.group_filters() * self.places()),
        ]
    }

    fn parts(&self) -> impl Iterator<Item = (usize, usize)> {
        let groups = self.groups;
        (0..self.batch).flat_map(move |image| (0..groups).map(move |group| (image, group)))
    }
}

/// `y = conv(x, w) + bias`, overwriting `y`.
pub fn fwd(
    pool: &Pool,
    packed: &mut Scratch,
    shape: &Conv2d,
    x: &[f32],
    w: &[f32],
    bias: Option<&[f32]>,
    y: &mut [f32],
) {
    shape.check(x, w, y);
    let (depth, places) = (shape.group_channels() * shape.window(), shape.places());
    let size = Size { m: shape.group_filters(), n: places, k: depth };
    scratch::with(depth * places, |columns| {
        for (image, group) in shape.parts() {
            let [in_x, in_w, in_y] = shape.ranges(image, group);
            shape.gather(pool, &x[in_x], columns);
            let (w, columns) = (Matrix::plain(&w[in_w]), Matrix::plain(columns));
            matmul::f32(pool, packed, size, w, columns, &mut y[in_y], Store::Set);
        }
    });
    if let (Some(bias), true) = (bias, places > 0) {
        assert_eq!(bias.len(), shape.filters);
        let planes = Chunks::new(y, places);
        pool.for_parts(planes.count(), planes, |plane, y| {
            let bias = bias[plane % shape.filters];
            y.iter_mut().for_each(|y| *y += bias);
        });
    }
}

/// The gradients: `dx` is overwritten, `dw` and `dbias` are added to.
#[allow(clippy::too_many_arguments)]
pub fn bwd(
    pool: &Pool,
    packed: &mut Scratch,
    shape: &Conv2d,
    x: &[f32],
    w: &[f32],
    dy: &[f32],
    mut dx: Option<&mut [f32]>,
    dw: &mut [f32],
    dbias: Option<&mut [f32]>,
) {
    shape.check(x, w, dy);
    assert_eq!(dw.len(), w.len());
    assert!(dx.as_ref().is_none_or(|dx| dx.len() == x.len()));
    let (depth, places) = (shape.group_channels() * shape.window(), shape.places());
    let filters = shape.group_filters();
    scratch::with(depth * places, |columns| {
        for (image, group) in shape.parts() {
            let [in_x, in_w, in_y] = shape.ranges(image, group);
            let dy = &dy[in_y];
            shape.gather(pool, &x[in_x.clone()], columns);
            let size = Size { m: filters, n: depth, k: places };
            let (left, right) = (Matrix::plain(dy), Matrix::transposed(columns));
            matmul::f32(pool, packed, size, left, right, &mut dw[in_w.clone()], Store::Add);
            if let Some(dx) = &mut dx {
                let size = Size { m: depth, n: places, k: filters };
                let (left, right) = (Matrix::transposed(&w[in_w]), Matrix::plain(dy));
                matmul::f32(pool, packed, size, left, right, columns, Store::Set);
                shape.scatter(pool, columns, &mut dx[in_x]);
            }
        }
    });
    if let Some(dbias) = dbias {
        assert_eq!(dbias.len(), shape.filters);
        for (plane, dy) in dy.chunks_exact(places.max(1)).enumerate() {
            dbias[plane % shape.filters] += dy.iter().sum::<f32>();
        }
    }
}
