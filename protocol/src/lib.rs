//! Sans-IO protocol of p2ptrain: what peers tell each other, and what follows from it.
//!
//! Nothing in here knows sockets, files, clocks or randomness; time and seeds are arguments, decisions are
//! made in integers, and every map has one order. So the same input gives the same bytes on every machine.
//!
//! # Map, in the order data passes through
//!
//! | Module | In | Out |
//! |---|---|---|
//! | [`id`] | keys, hex | peer ids, incarnations, steps, digests |
//! | [`limits`] | | every bound of the protocol, checked against each other at compile time |
//! | [`wire`] | bytes of a peer | typed messages, or an error that names what is wrong |
//! | [`view`] | signed adverts, news of a step | who takes part: the next view, and whether a group may go on |
//! | [`planner`] | a view, a number of micro-batches | who computes what, and why |
//! | [`order`] | a position in the sample sequence | the sample to read |
//! | [`schedule`] | a number of ranks | the ring all-reduce as data |
//! | [`collective`] | pieces of a neighbour | what to add, store and send for one bucket on one rank |
//! | [`ledger`] | the shares of a committed step | the proof that every sample counted exactly once |
//! | [`checkpoint`] | the digests of the state | a manifest against which each chunk can be verified |
#![forbid(unsafe_code)]
#![warn(missing_docs)]
#![allow(clippy::single_range_in_vec_init, reason = "shares are lists of ranges, often of one")]

pub mod checkpoint;
pub mod collective;
pub mod id;
pub mod ledger;
pub mod limits;
pub mod order;
pub mod planner;
pub mod schedule;
pub mod view;
pub mod wire;
