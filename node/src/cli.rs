//! The commands of `p2ptrain`: definitions and their manual texts, parsing of values, how results
//! and errors are shown, and the commands that only talk to a running node.

mod args;
mod commands;
mod error;
mod output;
mod values;

pub use self::args::{
    BenchArgs, BenchKind, Cli, Command, CompletionsArgs, DemoArgs, Device, DoctorArgs, ExportArgs,
    GenerateArgs, Global, JoinArgs, LeaveArgs, LedgerArgs, LogLevel, NodeArgs, PlanArgs,
    ResumeArgs, RunArgs, StatusArgs, SubmitArgs, SwarmKeyArgs, WatchArgs,
};
pub use self::commands::{completions, doctor, leave, status, submit, watch};
pub use self::error::{ExitKind, Hint, UsageError, finish, render_json, render_text};
pub use self::output::{Output, human_bytes, human_duration, human_number};
pub use self::values::{ByteSize, SwarmSecretError, resolve_swarm_secret};
