//! The state of a job on the disk, and its exchange with other programs.
//!
//! ```text
//! State (params, m, v) ─┐                ┌─▶ load: every chunk verified ─▶ Checkpoint
//! About (job, step, …) ─┴─ Folder::save ─┤
//!                                        └─ keeps the newest N, never loses the last good one
//! params ◀──import── model.safetensors ◀──export── params        (PyTorch's names and shapes)
//! ```
//!
//! A checkpoint file is a header and then the chunks of the state as its
//! [`StateManifest`](p2ptrain_protocol::checkpoint::StateManifest) lists them: the same chunks that
//! travel to joining peers. Files appear under their name only when they are complete on the disk.

mod atomic;
mod error;
mod file;
mod folder;
mod safetensors;
mod state;

pub use self::error::{LatestError, LoadError, SaveError};
pub use self::file::{About, Checkpoint, Info, inspect, load};
pub use self::folder::{Entry, Folder, Latest, Saved};
pub use self::safetensors::{Alias, ExportError, ImportError, export, export_metadata, import};
pub use self::state::{State, StateRef};
