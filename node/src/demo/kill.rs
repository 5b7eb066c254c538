//! The kill in the middle, and the return.

use std::time::{Duration, Instant};

use serde::Serialize;

use super::nodes::{Nodes, step_of};
use super::screen::Screen;
use crate::cli::human_duration;
use crate::ipc;
use crate::status::EventLevel;

/// Who is killed: the node that started the job, to show that it is no master.
const VICTIM: usize = 0;
/// How often the next commit is looked for.
const POLL: Duration = Duration::from_millis(5);
/// How long the next commit may take at most; then something hangs.
const COMMIT_MAX: Duration = Duration::from_secs(120);

/// The kill of one run.
#[derive(Debug)]
pub(super) struct Kill {
    stage: Stage,
    /// How long the others go on alone.
    absence: Duration,
    story: Option<Story>,
}

#[derive(Debug)]
enum Stage {
    /// Until so many steps are committed.
    Waiting {
        at_step: u64,
    },
    /// Until the next commit.
    Down {
        at: Instant,
    },
    /// Until the victim is started again.
    Away {
        at: Instant,
    },
    /// Until it contributes.
    Returning {
        at: Instant,
    },
    Over,
}

/// What happened, measured.
#[derive(Clone, Debug, Default, Serialize)]
pub(super) struct Story {
    /// Who was killed.
    pub(super) node: String,
    /// Steps committed before the kill.
    pub(super) step_before: u64,
    /// Time from commit to commit before the kill.
    pub(super) step_s: f32,
    /// Time from the kill to the next commit, as a survivor told it.
    pub(super) next_commit_s: Option<f32>,
    /// Time from the new start to the first step in which the node computes.
    pub(super) back_s: Option<f32>,
}

impl Kill {
    /// A kill in the middle of so many steps, or none.
    pub(super) fn new(steps: Option<u64>, seconds: u32) -> Self {
        // A short demo kills earlier: the return takes its time however short the demo is.
        let at_step = |steps: u64| if seconds < 30 { steps / 3 } else { steps / 2 };
        let stage = steps.map_or(Stage::Over, |steps| Stage::Waiting { at_step: at_step(steps) });
        let absence = Duration::from_secs_f32((seconds as f32 / 12.0).clamp(0.2, 5.0));
        Self { stage, absence, story: None }
    }

    pub(super) fn into_story(self) -> Option<Story> {
        self.story
    }

    /// How long to wait before [`Self::advance`] is called again, where that is urgent.
    pub(super) fn pause(&self) -> Option<Duration> {
        matches!(self.stage, Stage::Down { .. }).then_some(POLL)
    }

    /// Does what is due.
    pub(super) async fn advance(
        &mut self,
        nodes: &mut Nodes,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        match self.stage {
            Stage::Waiting { at_step } => {
                let step = nodes.witness().map_or(0, |status| step_of(&status));
                if step >= at_step.max(1) && nodes.all_train() {
                    self.strike(nodes, screen).await?;
                }
            }
            Stage::Down { at } => self.look_for_commit(at, nodes, screen).await?,
            Stage::Away { at } if at.elapsed() >= self.absence => {
                // Too late where the others have just finished: the proof says so.
                self.stage = Stage::Over;
                if nodes.join(VICTIM).is_ok() {
                    self.stage = Stage::Returning { at: Instant::now() };
                    let name = &nodes.node(VICTIM).name;
                    screen.tell(EventLevel::Info, &format!("{name} is started again and joins"))?;
                }
            }
            Stage::Returning { at } if nodes.node(VICTIM).contributes() => {
                let seconds = at.elapsed().as_secs_f32();
                let node = nodes.node(VICTIM);
                let step = node.status().map_or(0, |status| step_of(&status)) + 1;
                let text = format!(
                    "{} is back, {} after its start: it computes a part of step {step}",
                    node.name,
                    human_duration(seconds)
                );
                screen.tell(EventLevel::Good, &text)?;
                if let Some(story) = &mut self.story {
                    story.back_s = Some(seconds);
                }
                self.stage = Stage::Over;
            }
            Stage::Away { .. } | Stage::Returning { .. } | Stage::Over => {}
        }
        Ok(())
    }

    async fn strike(&mut self, nodes: &mut Nodes, screen: &mut Screen) -> anyhow::Result<()> {
        let survivor = nodes.node(nodes.witness_index()).dir.clone();
        let before = ipc::status(&survivor).await?;
        let at = Instant::now();
        nodes.kill(VICTIM);
        let name = nodes.node(VICTIM).name.clone();
        let step_before = step_of(&before);
        let step_s = before.job.map_or(0.0, |job| job.step_ms.total / 1000.0);
        let text = format!(
            "{name}, which started the job, is killed with SIGKILL after step {step_before}"
        );
        self.story = Some(Story { node: name, step_before, step_s, ..Story::default() });
        self.stage = Stage::Down { at };
        screen.tell(EventLevel::Warn, &text)
    }

    async fn look_for_commit(
        &mut self,
        at: Instant,
        nodes: &Nodes,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        let Some(story) = &mut self.story else { return Ok(()) };
        let survivor = nodes.node(nodes.witness_index());
        // At its end the survivor answers no more; its last status tells the step as well.
        let status = ipc::status(&survivor.dir).await.ok().or_else(|| survivor.status());
        let step = status.map_or(0, |status| step_of(&status));
        anyhow::ensure!(
            at.elapsed() < COMMIT_MAX,
            "no step was committed in {} s after {} was killed\n{}",
            COMMIT_MAX.as_secs(),
            story.node,
            nodes.log_tails()
        );
        if step <= story.step_before {
            return Ok(());
        }
        let seconds = at.elapsed().as_secs_f32();
        story.next_commit_s = Some(seconds);
        self.stage = Stage::Away { at };
        let text = format!(
            "step {step} is committed {seconds:.2} s later, none is lost (a step takes {:.2} s)",
            story.step_s
        );
        screen.tell(EventLevel::Good, &text)
    }
}
