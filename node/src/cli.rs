//! The commands of `p2ptrain`: definitions and their manual texts, parsing of values, how results
//! and errors are shown, and the commands that only talk to a running node.

mod args;
mod commands;
mod error;
mod output;
mod values;

use std::future::Future;
use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;

pub use self::args::{
    BenchArgs, BenchKind, BenchPrecision, Cli, Command, CompletionsArgs, DemoArgs, Device, DoctorArgs, ExportArgs,
    GenerateArgs, Global, JoinArgs, LeaveArgs, LedgerArgs, LogLevel, NodeArgs, PlanArgs,
    ResumeArgs, RunArgs, StatusArgs, SubmitArgs, SwarmKeyArgs, WatchArgs,
};
pub use self::commands::{completions, doctor, leave, status, submit, watch};
pub use self::error::{ExitKind, Hint, UsageError, finish, render_json, render_text};
pub use self::output::{Output, human_bytes, human_duration, human_number};
pub use self::values::{ByteSize, SwarmSecretError, resolve_swarm_secret};

/// The whole of `p2ptrain`: parses the command line, carries out the commands that only look at this
/// machine or talk to a running node, gives all others to `run`, and shows errors.
///
/// Start it inside a tokio runtime.
pub async fn main<F, R>(run: F) -> ExitCode
where
    F: FnOnce(Cli) -> R,
    R: Future<Output = anyhow::Result<ExitKind>>,
{
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return refuse(&error),
    };
    let json = cli.global.json;
    finish(dispatch(cli, run).await, json)
}

async fn dispatch<F, R>(cli: Cli, run: F) -> anyhow::Result<ExitKind>
where
    F: FnOnce(Cli) -> R,
    R: Future<Output = anyhow::Result<ExitKind>>,
{
    match &cli.command {
        Command::Status(_) => status(&cli.global).await,
        Command::Watch(args) => watch(&cli.global, args).await,
        Command::Leave(args) => leave(&cli.global, args).await,
        Command::Doctor(args) => doctor(&cli.global, args),
        Command::Completions(args) => completions(&cli.global, args),
        _ => run(cli).await,
    }
}

/// Shows what clap says: help and version on stdout with status 0, errors on stderr with status 2,
/// as JSON where the command line asks for it.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_help = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
    let json = std::env::args_os().any(|arg| arg == "--json");
    if json && !is_help {
        let text = error.to_string();
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let first = lines.next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        let advice = "`p2ptrain help COMMAND`";
        let value = serde_json::json!({ "error": first, "causes": [], "try": advice });
        // Nothing is left to tell where stderr is closed.
        let _ = writeln!(std::io::stderr(), "{value}");
    } else {
        let _ = error.print();
    }
    if is_help { ExitKind::Success.into() } else { ExitKind::Usage.into() }
}
