//! What the node does about the events of its own tasks, its worker and its job.

use super::*;

impl Node {
    pub(super) fn on_internal(&mut self, event: Internal) -> anyhow::Result<()> {
        match event {
            Internal::Worker(event) => return self.on_worker(event),
            Internal::Package(package) => self.prepare_joined(*package),
            Internal::PackageFailed(reason) => {
                self.preparing = false;
                self.hub.event(EventLevel::Warn, format!("can't fetch the job: {reason}"));
                self.wait_for_job();
            }
            Internal::Prepared { prepared, founder, checkpoints, reply } => {
                self.preparing = false;
                return self.on_prepared(prepared, founder, checkpoints, reply);
            }
            Internal::StateFetched(step) => {
                if let Some(job) = &mut self.job {
                    job.effects.fetch_done();
                    job.handle(Event::StateFetched(step));
                    self.hub
                        .event(EventLevel::Good, format!("holds the state after step {}", step.0));
                }
            }
            Internal::StateFailed { step, from, reason } => {
                if let Some(job) = &mut self.job
                    && !job.effects.fetch_failed(step, &from)
                {
                    job.handle(Event::StateFailed(step));
                    self.hub.event(EventLevel::Warn, reason);
                }
            }
            Internal::Saved { step, result } => {
                self.saving -= 1;
                self.on_saved(step, result);
            }
            Internal::Progress(text) => self.hub.update(|status| status.phase_note = text),
        }
        Ok(())
    }

    fn on_worker(&mut self, event: WorkerEvent) -> anyhow::Result<()> {
        match event {
            WorkerEvent::Driver(event) => {
                if let Some(job) = &mut self.job {
                    job.handle(*event);
                }
            }
            WorkerEvent::Applied { step, applied, snapshot } => {
                self.board.timing.apply_us += applied.us;
                if applied.skipped {
                    let text = format!(
                        "the gradient of step {} is not finite; its update is left out",
                        nth(step)
                    );
                    self.hub.event(EventLevel::Warn, text);
                }
                self.hub.update(|status| {
                    if let Some(job) = &mut status.job {
                        job.lr = applied.lr as f32;
                        job.grad_norm = applied.grad_norm as f32;
                    }
                });
                self.last_applied = Some((step, applied));
                if let Some(state) = snapshot {
                    self.save(*state);
                }
            }
            WorkerEvent::Busy { us, .. } => self.board.timing.compute_us += us,
            WorkerEvent::Failed(reason) => anyhow::bail!("the job can't go on here: {reason}"),
        }
        Ok(())
    }

    /// Prepares a job of this node's own on a blocking thread.
    pub(super) fn prepare(
        &mut self,
        file: JobFile,
        checkpoint: Option<Checkpoint>,
        reply: Option<Reply>,
    ) {
        self.preparing = true;
        self.hub.update(|status| {
            status.phase = Phase::Starting;
            status.phase_note = "reads the data".to_owned();
        });
        let (stores, threads) = (self.options.stores.clone(), self.options.threads);
        let internal = self.internal.clone();
        tokio::task::spawn_blocking(move || {
            let checkpoints = file.checkpoint_folder.clone();
            let mut progress = |progress: crate::data::Progress| {
                let (done, total) = (progress.bytes_done >> 20, progress.bytes_total >> 20);
                let text = format!("reads the data: {done} of {total} MiB");
                let _ = internal.send(Internal::Progress(text));
            };
            let prepared = Prepared::found(file, checkpoint, &stores, threads, &mut progress);
            let prepared = prepared.map(Box::new);
            // If the node has ended, nobody wants the job.
            let _ =
                internal.send(Internal::Prepared { prepared, founder: true, checkpoints, reply });
        });
    }

    fn prepare_joined(&mut self, package: Package) {
        let (stores, threads) = (self.options.stores.clone(), self.options.threads);
        let internal = self.internal.clone();
        tokio::task::spawn_blocking(move || {
            let prepared = Prepared::joined(package, &stores, threads).map(Box::new);
            let _ = internal.send(Internal::Prepared {
                prepared,
                founder: false,
                checkpoints: None,
                reply: None,
            });
        });
    }

    fn on_prepared(
        &mut self,
        prepared: anyhow::Result<Box<Prepared>>,
        founder: bool,
        checkpoints: Option<PathBuf>,
        reply: Option<Reply>,
    ) -> anyhow::Result<()> {
        let prepared = match (prepared, reply) {
            (Ok(prepared), reply) => {
                if let Some(reply) = reply {
                    reply.done(format!("job {} ({}) runs", prepared.spec.name, prepared.id));
                }
                *prepared
            }
            (Err(error), Some(reply)) => {
                // A job that was submitted and is wrong does not end the node.
                reply.refuse(Refusal::new(format!("{error:#}")));
                self.wait_for_job();
                return Ok(());
            }
            (Err(error), None) => return Err(error),
        };
        let place = Place {
            me: self.me,
            incarnation: self.incarnation,
            folder: &self.options.dir,
            checkpoints,
            threads: self.options.threads,
            net: &self.net,
            internal: &self.internal,
            trace: &self.trace,
        };
        let mut job = Box::new(JobRun::new(prepared, founder, &place)?);
        let (name, id, steps) = (job.spec.name.clone(), job.id.to_hex(), job.spec.steps);
        let step = job.driver.peer().step().map_or(0, |step| step.0);
        let note = match (founder, job.spec.min_peers) {
            (true, 0 | 1) => String::new(),
            (true, peers) => format!("for {peers} members"),
            (false, _) => "asks to be admitted".to_owned(),
        };
        self.hub.update(|status| {
            status.job = Some(JobStatus { name, id, step, steps, ..JobStatus::default() });
            status.phase = if founder { Phase::Waiting } else { Phase::Joining };
            status.phase_note = note;
        });
        job.start();
        for peer in &self.connected {
            job.handle(Event::Connected(*peer));
        }
        self.job = Some(job);
        self.advertise();
        Ok(())
    }

    /// Tells people and files what the driver has said in the last event.
    pub(super) fn after_event(&mut self) {
        let Some(job) = &mut self.job else { return };
        for side in job.take_side() {
            match side {
                Side::Committed(commit) => self.on_commit(&commit),
                Side::Notice(notice) => self.on_notice(&notice),
                Side::NewIncarnation(incarnation) => self.incarnation = incarnation,
                Side::Refused { peer, reason } => {
                    self.refuse(peer, &reason);
                    self.net.refuse(peer, &reason);
                }
                Side::Ended(end) => self.on_ended(end),
            }
        }
    }

    fn on_commit(&mut self, commit: &Commit) {
        let step_ms = self.board.end_step();
        for change in &commit.changes {
            let (level, text) = match change {
                ViewChange::Admitted { peer, .. } => {
                    let name = self.board.name_of(peer, &self.adverts);
                    (EventLevel::Good, format!("{name} is in from step {}", nth(commit.step) + 1))
                }
                ViewChange::Removed { peer, reason, .. } => {
                    let name = self.board.name_of(peer, &self.adverts);
                    (EventLevel::Info, format!("{name} is out: {reason}"))
                }
                ViewChange::Refused { .. }
                | ViewChange::Synced { .. }
                | ViewChange::Speed { .. } => {
                    tracing::debug!("{change}");
                    continue;
                }
            };
            self.hub.event(level, text);
        }
        let Some(job) = &mut self.job else { return };
        if commit.apply
            && let Err(error) = job.ledger.append(commit)
        {
            self.hub.event(EventLevel::Warn, format!("ledger: {error:#}"));
        }
        let audit = job.ledger.ledger().map(|ledger| ledger.report().clone());
        let samples = u64::from(job.spec.batch.global);
        let applied = self.last_applied.map(|(_, applied)| applied);
        self.hub.update(|status| {
            status.phase = Phase::Training;
            status.phase_note = String::new();
            if let Some(audit) = audit {
                status.ledger = LedgerStatus {
                    steps: audit.steps,
                    samples: audit.samples,
                    lost: 0,
                    doubled: 0,
                };
            }
            let Some(job) = &mut status.job else { return };
            if commit.apply {
                job.record_step(&StepReport {
                    step: commit.step.0 + 1,
                    samples,
                    loss: commit.train_loss.map_or(f32::NAN, |loss| loss as f32),
                    lr: applied.map_or(0.0, |applied| applied.lr as f32),
                    grad_norm: applied.map_or(0.0, |applied| applied.grad_norm as f32),
                    step_ms,
                });
            }
            if let Some(loss) = commit.eval_loss {
                job.record_eval(commit.step.0, loss as f32);
            }
        });
        tracing::info!(
            step = commit.step.0,
            loss = commit.train_loss,
            eval = commit.eval_loss,
            attempt = %commit.entry.attempt,
            members = commit.next_view.members.len(),
            "commit"
        );
    }

    fn on_notice(&mut self, notice: &Notice) {
        let names = |peers: &[PeerId]| {
            let names: Vec<_> =
                peers.iter().map(|peer| self.board.name_of(peer, &self.adverts)).collect();
            names.join(", ")
        };
        let (level, text) = match notice {
            Notice::Redo { step, lost, items } => (
                EventLevel::Warn,
                format!(
                    "step {}: {} lost; {items} work items are done again, none is lost",
                    nth(*step),
                    names(lost)
                ),
            ),
            Notice::CommittedAfterLoss { step, lost } => (
                EventLevel::Warn,
                format!(
                    "step {}: {} lost after the exchange; nothing to redo",
                    nth(*step),
                    names(lost)
                ),
            ),
            Notice::Stalled { step, reason } => {
                self.hub.update(|status| {
                    status.phase = Phase::Paused;
                    status.phase_note = reason.clone();
                });
                (EventLevel::Warn, format!("step {}: paused: {reason}", nth(*step)))
            }
            Notice::Fenced { step } => {
                self.hub.update(|status| status.phase = Phase::Joining);
                (EventLevel::Warn, format!("step {}: taken for lost; joins again", nth(*step)))
            }
            Notice::Diverged { step, block, peers } => {
                let block = self.parameter_of(*block);
                (
                    EventLevel::Warn,
                    format!("after step {}: {block} differs on {}", nth(*step), names(peers)),
                )
            }
            Notice::Violation { peer, what } => {
                (EventLevel::Warn, format!("{} {what}", names(&[*peer])))
            }
        };
        self.hub.event(level, text);
    }

    /// The first parameter of a block, by name.
    fn parameter_of(&self, block: u32) -> String {
        let name = self.job.as_ref().and_then(|job| {
            let program = p2ptrain_kernels::Program::decode(&job.served.package.program).ok()?;
            let param = program.params().iter().find(|param| param.block == block as usize)?;
            Some(param.name.clone())
        });
        name.map_or_else(|| format!("block {block}"), |name| format!("block {block} ({name} on)"))
    }

    fn on_ended(&mut self, end: End) {
        if end == End::Left {
            // The state of the last committed step stays here, to be resumed or looked at.
            let state = self.job.as_ref().map(|job| job.served.state.clone());
            if let Some(state) = state {
                let state = state.read().clone();
                if state.step.0 != u64::MAX {
                    self.save(state);
                }
            }
        }
        let keep = end == End::Finished && !self.options.exit_when_done;
        if keep {
            self.hub.update(|status| status.phase = Phase::Done);
            self.hub.event(EventLevel::Good, "the job is done; this node waits for the next");
            self.finished_job();
        } else {
            self.outcome =
                Some(if end == End::Finished { Outcome::Finished } else { Outcome::Left });
        }
    }

    /// Keeps serving a finished job's state would need memory for nothing: lets it go.
    fn finished_job(&mut self) {
        if let Some(job) = self.job.take() {
            self.offers.retain(|_, offer| *offer != job.id);
        }
    }

    pub(super) fn save(&mut self, state: TrainState) {
        let Some(job) = &self.job else { return };
        let peer = job.driver.peer();
        let view = peer.view();
        let about = About {
            job: job.spec.clone(),
            program: job.served.package.program.clone(),
            step: state.step,
            epoch: view.map_or(0, |view| view.epoch),
            members: view.map_or_else(Vec::new, |view| view.peers().collect()),
            ledger_bytes: job.ledger.bytes(),
        };
        let (folder, keep) = (job.checkpoints.clone(), job.spec.checkpoint.keep);
        let internal = self.internal.clone();
        self.saving += 1;
        tokio::task::spawn_blocking(move || {
            let saved = Folder::open(&folder)
                .map_err(SaveError::from)
                .and_then(|folder| folder.save(&about, state.borrow(), keep));
            let _ = internal.send(Internal::Saved { step: state.step, result: saved });
        });
    }

    fn on_saved(&mut self, step: Step, result: Result<Saved, SaveError>) {
        match result {
            Ok(saved) => {
                let path = saved.path.display().to_string();
                self.hub.update(|status| {
                    status.checkpoint = Some(CheckpointStatus { path, step: step.0 });
                });
            }
            // Training goes on: the older checkpoints are intact, and other peers have theirs.
            Err(error) => {
                let text = format!("no checkpoint of step {}: {error}", step.0);
                self.hub.event(EventLevel::Warn, text);
            }
        }
    }

    pub(super) fn on_command(&mut self, command: IpcCommand) {
        match command {
            IpcCommand::Leave { reply } => {
                self.leaving.push(reply);
                match &mut self.job {
                    Some(job) => {
                        self.hub.update(|status| status.phase = Phase::Leaving);
                        job.handle(Event::Leave);
                    }
                    None => self.outcome = Some(Outcome::Left),
                }
            }
            IpcCommand::Stop { reply } => {
                self.leaving.push(reply);
                self.on_ended(End::Left);
            }
            IpcCommand::Submit { job, base, reply } => self.on_submit(&job, &base, reply),
        }
    }

    fn on_submit(&mut self, text: &str, base: &std::path::Path, reply: Reply) {
        if self.preparing || self.job.is_some() {
            let refusal = Refusal::new("this node runs a job already")
                .hint("wait until it is done, or start another node with --dir");
            return reply.refuse(refusal);
        }
        match job::parse_str(text, &base.join("job.toml")) {
            Ok(file) => self.prepare(file, None, Some(reply)),
            Err(error) => reply.refuse(Refusal::new(error.to_string())),
        }
    }

    /// Rebuilds what the status shows of peers.
    pub(super) fn refresh(&mut self) {
        let job = self.job.as_ref().map(|job| (&job.spec, job.driver.peer()));
        let peers = self.board.peers(&self.net, &self.adverts, job);
        self.hub.update(|status| status.set_peers(peers));
    }
}

/// A step's number for people, who count from 1: the step that makes this many committed ones.
fn nth(step: Step) -> u64 {
    step.0 + 1
}
