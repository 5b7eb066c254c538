//! The maximum or the mean of windows of an image.

use crate::primitive::pool::{Chunks, Pool};

/// Shape of the windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Pool2d {
    /// Planes: batch times channels.
    pub planes: usize,
    pub height: usize,
    pub width: usize,
    /// Height and width of the window, as the other pairs.
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    /// Places outside the image on each side: nothing for a maximum, zeros that count for a mean.
    /// At most half a window.
    pub padding: [usize; 2],
}

impl Pool2d {
    /// Height and width of the result; zero where the window does not fit.
    pub fn output(&self) -> [usize; 2] {
        let size = |axis: usize, len: usize| {
            let padded = len + 2 * self.padding[axis];
            padded.checked_sub(self.kernel[axis]).map_or(0, |rest| rest / self.stride[axis] + 1)
        };
        [size(0, self.height), size(1, self.width)]
    }

    fn places(&self) -> usize {
        self.output().iter().product()
    }

    fn pixels(&self) -> usize {
        self.height * self.width
    }

    fn check(&self, x: usize, y: usize) {
        for axis in 0..2 {
            assert!(self.stride[axis] > 0 && 2 * self.padding[axis] <= self.kernel[axis]);
        }
        assert_eq!(x, self.planes * self.pixels(), "{self:?}");
        assert_eq!(y, self.planes * self.places(), "{self:?}");
    }

    /// Calls `f` for each pixel of the window at `place`.
    fn for_window(&self, place: usize, mut f: impl FnMut(usize)) {
        let columns = self.output()[1];
        let range = |axis: usize, place: usize, len: usize| {
            let begin = place * self.stride[axis];
            let end = (begin + self.kernel[axis]).saturating_sub(self.padding[axis]);
            begin.saturating_sub(self.padding[axis])..end.min(len)
        };
        for y in range(0, place / columns, self.height) {
            for x in range(1, place % columns, self.width) {
                f(y * self.width + x);
            }
        }
    }
}

/// The largest element of each window, NaN if there is one, and which pixel of the plane it is
/// (the first of equals).
pub fn max_fwd(pool: &Pool, shape: &Pool2d, x: &[f32], y: &mut [f32], pixels: &mut [i32]) {
    shape.check(x.len(), y.len());
    assert_eq!(y.len(), pixels.len());
    let parts = (Chunks::new(y, shape.places()), Chunks::new(pixels, shape.places()));
    pool.for_parts(shape.planes, parts, |plane, (y, pixels)| {
        let x = &x[plane * shape.pixels()..][..shape.pixels()];
        for (place, (y, best)) in y.iter_mut().zip(pixels).enumerate() {
            (*y, *best) = (f32::NEG_INFINITY, -1);
            shape.for_window(place, |pixel| {
                let x = x[pixel];
                if x > *y || x.is_nan() || *best < 0 {
                    (*y, *best) = (x, pixel as i32);
                }
            });
        }
    });
}

/// The gradient of [`max_fwd`], overwriting `dx`.
pub fn max_bwd(pool: &Pool, shape: &Pool2d, dy: &[f32], pixels: &[i32], dx: &mut [f32]) {
    shape.check(dx.len(), dy.len());
    assert_eq!(dy.len(), pixels.len());
    let places = shape.places();
    let dx = Chunks::new(dx, shape.pixels());
    pool.for_parts(shape.planes, dx, |plane, dx| {
        dx.fill(0.0);
        let range = plane * places..(plane + 1) * places;
        for (&dy, &pixel) in dy[range.clone()].iter().zip(&pixels[range]) {
            dx[pixel as usize] += dy;
        }
    });
}

/// The mean of each window, zeros of the padding included.
pub fn mean_fwd(pool: &Pool, shape: &Pool2d, x: &[f32], y: &mut [f32]) {
    shape.check(x.len(), y.len());
    let scale = 1.0 / (shape.kernel[0] * shape.kernel[1]) as f32;
    let y = Chunks::new(y, shape.places());
    pool.for_parts(shape.planes, y, |plane, y| {
        let x = &x[plane * shape.pixels()..][..shape.pixels()];
        for (place, y) in y.iter_mut().enumerate() {
            let mut sum = 0.0;
            shape.for_window(place, |pixel| sum += x[pixel]);
            *y = sum * scale;
        }
    });
}

/// The gradient of [`mean_fwd`], overwriting `dx`.
pub fn mean_bwd(pool: &Pool, shape: &Pool2d, dy: &[f32], dx: &mut [f32]) {
    shape.check(dx.len(), dy.len());
    let scale = 1.0 / (shape.kernel[0] * shape.kernel[1]) as f32;
    let places = shape.places();
    let dx = Chunks::new(dx, shape.pixels());
    pool.for_parts(shape.planes, dx, |plane, dx| {
        dx.fill(0.0);
        for (place, &dy) in dy[plane * places..][..places].iter().enumerate() {
            shape.for_window(place, |pixel| dx[pixel] += dy * scale);
        }
    });
}
