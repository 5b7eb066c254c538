//! Integration tests of the crate, one module a subject.
mod checkpoint;
mod checkpoint_export;
mod checkpoint_safetensors;
mod data;
mod data_faults;
mod job;
mod cli;
mod dashboard;
mod ipc;
mod net;
