//! `p2ptrain swarm-key`: prints a new secret.

use serde_json::json;

use crate::cli::{ExitKind, Global, Output, SwarmKeyArgs};
use crate::swarm_key::SwarmSecret;

/// Prints a new secret. Nothing of it is kept.
///
/// # Errors
/// Stdout cannot be written to.
pub(super) async fn swarm_key(global: &Global, _args: &SwarmKeyArgs) -> anyhow::Result<ExitKind> {
    let secret = SwarmSecret::generate();
    let (text, fingerprint) = (secret.reveal(), secret.fingerprint());
    let value = json!({ "secret": text, "fingerprint": fingerprint });
    Output::new(global).result(&text, &value)?;
    Ok(ExitKind::Success)
}
