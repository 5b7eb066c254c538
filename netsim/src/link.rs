//! How long bytes take from one node to another.

use crate::random::Random;

/// One direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkSpec {
    /// Time of flight in µs.
    pub latency_us: u64,
    /// Up to this much is added, anew for each message.
    pub jitter_us: u64,
    /// Bits a second; messages wait for those before them.
    pub bits_per_s: u64,
}

impl LinkSpec {
    /// A gigabit network with a switch.
    pub const LAN: Self = Self { latency_us: 100, jitter_us: 200, bits_per_s: 1_000_000_000 };
    /// Wireless in a crowded room: slow, and messages arrive when they like.
    pub const WIFI: Self = Self { latency_us: 2_000, jitter_us: 30_000, bits_per_s: 100_000_000 };
    /// The loopback interface.
    pub const LOOPBACK: Self = Self { latency_us: 10, jitter_us: 40, bits_per_s: 20_000_000_000 };
}

/// A direction of a link with what is on its way.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    spec: LinkSpec,
    free_at_us: u64,
}

impl Line {
    pub(crate) fn new(spec: LinkSpec) -> Self {
        Self { spec, free_at_us: 0 }
    }

    /// When `bytes` that are sent now arrive.
    pub(crate) fn arrival_us(&mut self, now_us: u64, bytes: usize, random: &mut Random) -> u64 {
        let bits = 8 * bytes as u64;
        let sending_us = (bits * 1_000_000).div_ceil(self.spec.bits_per_s.max(1));
        self.free_at_us = self.free_at_us.max(now_us) + sending_us;
        self.free_at_us + self.spec.latency_us + random.within(0..=self.spec.jitter_us)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_wait_for_those_before_them() {
        let spec = LinkSpec { latency_us: 100, jitter_us: 0, bits_per_s: 8_000_000 };
        let mut line = Line::new(spec);
        let mut random = Random::new(1);
        assert_eq!(line.arrival_us(0, 1000, &mut random), 1_100);
        assert_eq!(line.arrival_us(0, 1000, &mut random), 2_100);
        assert_eq!(line.arrival_us(5_000, 1, &mut random), 5_101);
    }
}
