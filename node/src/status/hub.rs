use std::sync::Arc;

use tokio::sync::watch;

use super::NodeStatus;

/// Where the driver writes its status and everybody else reads it. Cloning is cheap; all clones
/// share one status.
#[derive(Clone, Debug)]
pub struct StatusHub {
    sender: Arc<watch::Sender<NodeStatus>>,
}

impl StatusHub {
    /// A hub that starts with `status`.
    pub fn new(status: NodeStatus) -> Self {
        Self { sender: Arc::new(watch::Sender::new(status)) }
    }

    /// A copy of the present status.
    pub fn snapshot(&self) -> NodeStatus {
        self.sender.borrow().clone()
    }

    /// A reader that can wait for changes.
    pub fn subscribe(&self) -> StatusFeed {
        StatusFeed { receiver: self.sender.subscribe() }
    }

    /// Changes the status in place and wakes the readers. The closure runs under a lock: it should
    /// only assign.
    pub fn update<R>(&self, change: impl FnOnce(&mut NodeStatus) -> R) -> R {
        let mut result = None;
        self.sender.send_modify(|status| result = Some(change(status)));
        result.expect("send_modify calls its closure exactly once")
    }

    /// Appends an event, and writes it to the log.
    pub fn event(&self, level: super::EventLevel, text: impl AsRef<str>) {
        let text = text.as_ref();
        tracing::info!(target: "p2ptrain::event", "{text}");
        self.update(|status| status.events.push(level, text));
    }
}

/// A reader of a [`StatusHub`].
#[derive(Clone, Debug)]
pub struct StatusFeed {
    receiver: watch::Receiver<NodeStatus>,
}

impl StatusFeed {
    /// A copy of the present status.
    pub fn snapshot(&mut self) -> NodeStatus {
        self.receiver.borrow_and_update().clone()
    }

    /// Waits for the next change; false when the node is gone. Changes between two calls count as
    /// one.
    pub async fn changed(&mut self) -> bool {
        self.receiver.changed().await.is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::super::EventLevel;
    use super::*;

    #[tokio::test]
    async fn readers_see_changes_and_the_end() {
        let hub = StatusHub::new(NodeStatus::default());
        let mut feed = hub.subscribe();
        let step = hub.update(|status| {
            status.name = "a".into();
            7
        });
        hub.event(EventLevel::Info, "one");
        assert_eq!(step, 7);
        assert!(feed.changed().await);
        let status = feed.snapshot();
        assert_eq!((status.name.as_str(), status.events.iter().count()), ("a", 1));
        drop(hub);
        assert!(!feed.changed().await);
    }
}
