//! The learning rate as a function of the step alone.

use super::spec::{JobSpec, ScheduleKind};

impl JobSpec {
    /// The learning rate of step `step` (counted from 0), the same bits on every processor.
    ///
    /// During the warm-up it is `lr * (step + 1) / (warmup + 1)`, so that no step is wasted on a
    /// rate of 0 and the first step after the warm-up has the whole rate. At and after the last
    /// step it is `min_lr`.
    pub fn lr_at(&self, step: u64) -> f64 {
        let lr = self.optimizer.lr;
        let schedule = &self.schedule;
        if step < schedule.warmup {
            return lr * ((step + 1) as f64) / ((schedule.warmup + 1) as f64);
        }
        let span = self.steps.saturating_sub(schedule.warmup).max(1);
        let done = ((step - schedule.warmup) as f64 / span as f64).min(1.0);
        // The share of the way from `lr` down to `min_lr` that is still left.
        let left = match schedule.kind {
            ScheduleKind::Constant => return lr,
            ScheduleKind::Linear => 1.0 - done,
            // libm instead of the system's cosine, which differs between machines in the last bit.
            ScheduleKind::Cosine => 0.5 * (1.0 + libm::cos(std::f64::consts::PI * done)),
        };
        schedule.min_lr + left * (lr - schedule.min_lr)
    }
}

#[cfg(test)]
mod tests {
    use super::super::spec::{JobSpec, ScheduleKind, ScheduleSpec};

    fn job(kind: ScheduleKind) -> JobSpec {
        let mut spec = JobSpec { steps: 100, ..JobSpec::default() };
        spec.optimizer.lr = 1.0;
        spec.schedule = ScheduleSpec { kind, warmup: 9, min_lr: 0.1 };
        spec
    }

    #[test]
    fn warm_up_rises_in_equal_steps_and_starts_above_zero() {
        let spec = job(ScheduleKind::Constant);
        let rates: Vec<f64> = (0..10).map(|step| spec.lr_at(step)).collect();
        assert_eq!(rates, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0]);
        assert_eq!(spec.lr_at(u64::MAX), 1.0);
    }

    #[test]
    fn linear_and_cosine_fall_from_the_whole_rate_to_min_lr() {
        for kind in [ScheduleKind::Linear, ScheduleKind::Cosine] {
            let spec = job(kind);
            assert_eq!(spec.lr_at(9), 1.0);
            assert!((spec.lr_at(100) - 0.1).abs() < 1e-15);
            assert_eq!(spec.lr_at(100), spec.lr_at(u64::MAX));
            assert!((10..=100).all(|step| spec.lr_at(step) < spec.lr_at(step - 1)));
        }
    }

    #[test]
    fn cosine_has_the_same_bits_everywhere() {
        // Computed once; a platform whose result differs would split the replicas.
        let spec = job(ScheduleKind::Cosine);
        let digest = blake3::hash(
            &(0..200).flat_map(|step| spec.lr_at(step).to_bits().to_le_bytes()).collect::<Vec<_>>(),
        );
        assert_eq!(&digest.to_hex()[..16], "488ee77e92530c48");
    }

    #[test]
    fn a_warm_up_as_long_as_the_job_never_divides_by_zero() {
        let mut spec = job(ScheduleKind::Cosine);
        spec.schedule.warmup = 100;
        assert!(spec.lr_at(100).is_finite());
    }
}
