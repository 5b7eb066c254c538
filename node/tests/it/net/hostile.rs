//! Strangers, impostors and members that break the format.

use std::time::Duration;

use super::{config, start};

#[tokio::test(flavor = "multi_thread")]
async fn placeholder() {
    let _ = start(config(1, &[])).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
}
