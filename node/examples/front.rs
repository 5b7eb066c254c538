//! The commands that need no training: for their tests, and to try them apart from a node.

use std::process::ExitCode;

use p2ptrain_node::cli::{self, UsageError};

#[tokio::main]
async fn main() -> ExitCode {
    cli::main(|cli| async move {
        Err(UsageError(format!("this example does not train: {:?}", cli.command)).into())
    })
    .await
}
