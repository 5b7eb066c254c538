//! The queue of virtual time.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

/// Events by the time at which they happen. Events of one moment happen in the order of their scheduling.
#[derive(Debug)]
pub(crate) struct Clock<E> {
    now_us: u64,
    scheduled: u64,
    queue: BinaryHeap<Entry<E>>,
}

#[derive(Debug)]
struct Entry<E> {
    at_us: u64,
    number: u64,
    event: E,
}

impl<E> Clock<E> {
    pub(crate) fn new() -> Self {
        Self { now_us: 0, scheduled: 0, queue: BinaryHeap::new() }
    }

    /// The present moment.
    pub(crate) fn now_us(&self) -> u64 {
        self.now_us
    }

    /// Lets an event happen at a moment, or now if that is past.
    pub(crate) fn at(&mut self, at_us: u64, event: E) {
        self.scheduled += 1;
        let at_us = at_us.max(self.now_us);
        self.queue.push(Entry { at_us, number: self.scheduled, event });
    }

    /// Lets an event happen after a delay.
    pub(crate) fn after(&mut self, delay_us: u64, event: E) {
        self.at(self.now_us + delay_us, event);
    }

    /// Moves on to the next event.
    pub(crate) fn next(&mut self) -> Option<E> {
        let entry = self.queue.pop()?;
        self.now_us = entry.at_us;
        Some(entry.event)
    }
}

impl<E> Ord for Entry<E> {
    /// The heap gives the greatest first: that must be the earliest.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at_us, other.number).cmp(&(self.at_us, self.number))
    }
}

impl<E> PartialOrd for Entry<E> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<E> PartialEq for Entry<E> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<E> Eq for Entry<E> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_by_time_and_then_in_the_order_of_scheduling() {
        let mut clock = Clock::new();
        for (delay, name) in [(5, "c"), (3, "a"), (5, "d"), (4, "b")] {
            clock.after(delay, name);
        }
        let mut seen = Vec::new();
        while let Some(event) = clock.next() {
            seen.push((clock.now_us(), event));
        }
        assert_eq!(seen, [(3, "a"), (4, "b"), (5, "c"), (5, "d")]);
    }

    #[test]
    fn what_is_scheduled_for_the_past_happens_now() {
        let mut clock = Clock::new();
        clock.after(10, 'a');
        clock.next();
        clock.at(3, 'b');
        assert_eq!((clock.next(), clock.now_us()), (Some('b'), 10));
    }
}
