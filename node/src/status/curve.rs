use serde::{Deserialize, Serialize};

use super::{CURVE_POINTS_MAX, number};

/// One loss at one step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CurvePoint {
    /// Committed steps.
    pub step: u64,
    /// Loss in nats per token.
    #[serde(with = "number")]
    pub loss: f32,
}

/// A curve over a whole run in at most [`CURVE_POINTS_MAX`] points: each is the mean of `stride`
/// steps, and the stride doubles whenever the curve is full.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Curve {
    stride: u64,
    points: Vec<CurvePoint>,
    /// Values not yet in a point: their number, their sum.
    pending: u64,
    #[serde(with = "number")]
    pending_sum: f32,
}

impl Default for Curve {
    fn default() -> Self {
        Self { stride: 1, points: Vec::new(), pending: 0, pending_sum: 0.0 }
    }
}

impl Curve {
    /// The points, oldest first. A point's step is the last of those it averages.
    pub fn points(&self) -> &[CurvePoint] {
        &self.points
    }

    /// True before the first point.
    pub fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Appends the loss of a step. Steps at or before the last one start the curve anew from there,
    /// as after resuming an older checkpoint.
    pub fn push(&mut self, step: u64, loss: f32) {
        if self.points.last().is_some_and(|last| step <= last.step) {
            self.points.retain(|point| point.step < step);
            (self.pending, self.pending_sum) = (0, 0.0);
        }
        self.pending += 1;
        self.pending_sum += loss;
        if self.pending < self.stride {
            return;
        }
        let loss = self.pending_sum / self.pending as f32;
        (self.pending, self.pending_sum) = (0, 0.0);
        self.points.push(CurvePoint { step, loss });
        if self.points.len() >= CURVE_POINTS_MAX {
            self.merge_neighbours();
        }
    }

    fn merge_neighbours(&mut self) {
        let merged = self.points.chunks(2).map(|pair| {
            let last = pair[pair.len() - 1];
            let sum: f32 = pair.iter().map(|point| point.loss).sum();
            CurvePoint { step: last.step, loss: sum / pair.len() as f32 }
        });
        self.points = merged.collect();
        // A stride from another process is not trusted to be small or non-zero.
        self.stride = self.stride.max(1).saturating_mul(2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_curve_stays_bounded_and_spans_the_run() {
        let mut curve = Curve::default();
        for step in 1..=1_000_000 {
            curve.push(step, step as f32);
        }
        let points = curve.points();
        assert!(points.len() >= CURVE_POINTS_MAX / 4 && points.len() < CURVE_POINTS_MAX);
        assert!(points[0].step < 10_000);
        assert!(points.last().is_some_and(|p| p.step > 990_000));
        assert!(points.windows(2).all(|w| w[0].step < w[1].step && w[0].loss < w[1].loss));
    }

    #[test]
    fn going_back_to_a_checkpoint_drops_what_came_after_it() {
        let mut curve = Curve::default();
        for step in 1..=10 {
            curve.push(step, 1.0);
        }
        curve.push(5, 2.0);
        let steps: Vec<_> = curve.points().iter().map(|p| p.step).collect();
        assert_eq!(steps, [1, 2, 3, 4, 5]);
        assert_eq!(curve.points()[4].loss, 2.0);
    }
}
