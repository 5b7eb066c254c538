//! Netsim.
