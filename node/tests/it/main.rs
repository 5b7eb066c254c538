//! Integration tests of the crate, one module a subject.
mod checkpoint;
mod checkpoint_export;
mod checkpoint_safetensors;
mod cli;
mod commands;
mod commands_bench;
mod commands_files;
mod dashboard;
mod data;
mod data_faults;
mod demo;
mod ipc;
mod job;
mod losses;
mod net;
