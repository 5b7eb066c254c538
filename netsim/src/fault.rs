//! What goes wrong.

/// A fault or an event from outside. Nodes are named by their index in the scenario.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process ends at once, as by SIGKILL. Left out where the state of the model would be gone
    /// with it: when no other living member holds it.
    Kill {
        /// The node.
        node: usize,
    },
    /// The process of a killed node starts again, without state. Without effect on a living one.
    Restart {
        /// The node.
        node: usize,
    },
    /// The nodes can't reach each other; both live.
    Cut {
        /// One end.
        a: usize,
        /// The other end.
        b: usize,
    },
    /// The nodes reach each other again.
    Heal {
        /// One end.
        a: usize,
        /// The other end.
        b: usize,
    },
    /// The node computes at a multiple of its time, in percent.
    Slow {
        /// The node.
        node: usize,
        /// Percent of its own time: 100 is its own speed.
        percent: u32,
    },
    /// The user of the node wants it to leave.
    Leave {
        /// The node.
        node: usize,
    },
}
