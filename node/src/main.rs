//! The `p2ptrain` command.

use std::process::ExitCode;

use p2ptrain_node::{cli, commands};

#[tokio::main]
async fn main() -> ExitCode {
    cli::main(commands::run).await
}
