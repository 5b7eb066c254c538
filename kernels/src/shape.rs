//! Shapes: bounded lists of dimensions, row-major.

use std::fmt;
use std::ops::Deref;

use bincode::{Decode, Encode};

/// Most dimensions of a value.
pub const RANK_MAX: usize = 8;
/// Largest single dimension.
pub const DIM_MAX: usize = 1 << 30;
/// Most elements of one value.
pub const ELEMENTS_MAX: usize = 1 << 34;

/// Dimensions of a value, outermost first. An empty list is a scalar.
///
/// A decoded shape may hold anything; [`Shape::checked_elements`] is the gate before any
/// arithmetic on it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Encode, Decode)]
pub struct Shape(Vec<usize>);

impl Shape {
    /// A shape of these dimensions.
    pub fn new(dims: impl Into<Vec<usize>>) -> Self {
        Self(dims.into())
    }

    /// The shape without dimensions, of one element.
    pub fn scalar() -> Self {
        Self(Vec::new())
    }

    /// The dimensions.
    pub fn dims(&self) -> &[usize] {
        &self.0
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// Number of elements, or `None` where rank, a dimension or the product is out of bounds. A
    /// dimension of zero is out of bounds too: no operator has a use for empty values.
    pub fn checked_elements(&self) -> Option<usize> {
        if self.0.len() > RANK_MAX {
            return None;
        }
        self.0.iter().try_fold(1usize, |product, &dim| {
            if dim == 0 || dim > DIM_MAX {
                return None;
            }
            product.checked_mul(dim).filter(|&n| n <= ELEMENTS_MAX)
        })
    }

    /// Number of elements of a shape that has been verified.
    pub fn elements(&self) -> usize {
        self.0.iter().product()
    }

    /// The last dimension; 1 for a scalar.
    pub fn last(&self) -> usize {
        self.0.last().copied().unwrap_or(1)
    }

    /// Product of all dimensions but the last: the number of rows.
    pub fn rows(&self) -> usize {
        self.0.split_last().map_or(1, |(_, rest)| rest.iter().product())
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> Vec<usize> {
        let mut strides = vec![1; self.0.len()];
        for axis in (1..self.0.len()).rev() {
            strides[axis - 1] = strides[axis] * self.0[axis];
        }
        strides
    }

    /// The shape that both broadcast to under NumPy's rules.
    pub fn broadcast(&self, other: &Self) -> Option<Self> {
        let rank = self.rank().max(other.rank());
        let dim = |shape: &Self, axis: usize| {
            (axis + shape.rank()).checked_sub(rank).map_or(1, |place| shape.0[place])
        };
        (0..rank)
            .map(|axis| match (dim(self, axis), dim(other, axis)) {
                (a, b) if a == b => Some(a),
                (1, b) => Some(b),
                (a, 1) => Some(a),
                _ => None,
            })
            .collect::<Option<Vec<_>>>()
            .map(Self)
    }

    /// Strides that read this shape as if it were `target`: zero along every broadcast axis.
    /// `self` must broadcast to `target`.
    pub fn broadcast_strides(&self, target: &Self) -> Vec<usize> {
        let own = self.strides();
        let lead = target.rank() - self.rank();
        (0..target.rank())
            .map(|axis| match axis.checked_sub(lead) {
                Some(place) if self.0[place] != 1 => own[place],
                _ => 0,
            })
            .collect()
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.0
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(dims: [usize; N]) -> Self {
        Self(dims.to_vec())
    }
}

impl From<Vec<usize>> for Shape {
    fn from(dims: Vec<usize>) -> Self {
        Self(dims)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (place, dim) in self.0.iter().enumerate() {
            if place > 0 {
                f.write_str(",")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_overflows_has_no_elements() {
        assert_eq!(Shape::from([DIM_MAX, DIM_MAX, DIM_MAX]).checked_elements(), None);
        assert_eq!(Shape::from([usize::MAX, 2]).checked_elements(), None);
        assert_eq!(Shape::from([3, 0]).checked_elements(), None);
        assert_eq!(Shape::new(vec![1; RANK_MAX + 1]).checked_elements(), None);
        assert_eq!(Shape::from([3, 4]).checked_elements(), Some(12));
    }

    #[test]
    fn shapes_broadcast_as_in_numpy() {
        let check = |a: Shape, b: Shape, expected: Option<Shape>| {
            assert_eq!(a.broadcast(&b), expected, "{a} with {b}");
        };
        check([2, 3].into(), [3].into(), Some([2, 3].into()));
        check([2, 1].into(), [1, 3].into(), Some([2, 3].into()));
        check([2, 3].into(), Shape::scalar(), Some([2, 3].into()));
        check([2, 3].into(), [2].into(), None);
        assert_eq!(Shape::from([3, 1]).broadcast_strides(&[2, 3, 4].into()), [0, 1, 0]);
    }
}
