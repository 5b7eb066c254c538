//! The thread that computes: it takes orders one after another and reports through events.

use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Instant;

use p2ptrain_kernels::{Executor, Input};
use p2ptrain_protocol::id::Step;
use p2ptrain_protocol::peer::{OrderId, OrderReport};

use crate::driver::Event;
use crate::effect::{ApplyOrder, ComputeOrder};
use crate::optimizer::{Applied, Optimizer};
use crate::state::{SharedState, TrainState};
use crate::trace::Trace;

/// Gives the worker its samples. Blocks until they are there: data may still be on its way.
pub trait Samples: Send {
    /// Token windows of a micro-batch: `tokens` and `targets` are `[micro, block_size]`.
    ///
    /// # Errors
    /// The data can't be had; why, for people.
    fn train(
        &mut self,
        step: Step,
        micro_batch: u32,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> Result<(), String>;

    /// Token windows of a held-out batch, of the same shape.
    ///
    /// # Errors
    /// See [`Samples::train`].
    fn held_out(
        &mut self,
        batch: u32,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> Result<(), String>;
}

/// What a worker is made of.
pub struct WorkerParts {
    /// Runs the program.
    pub executor: Executor,
    /// Parameters and optimizer state.
    pub state: SharedState,
    /// The update.
    pub optimizer: Optimizer,
    /// The data.
    pub samples: Box<dyn Samples>,
    /// Micro-batches of a training step: the gradient's sum is divided by this.
    pub micro_batches: u32,
    /// Tokens of a micro-batch.
    pub tokens: usize,
    /// Keep a copy of the state for a checkpoint after steps that are multiples of this, and after
    /// the last; 0 for the last only.
    pub checkpoint_every: u64,
    /// Steps of the job.
    pub steps: u64,
    /// Compare replicas after steps that are multiples of this.
    pub digest_every: u64,
    /// Where spans are recorded.
    pub trace: Arc<Trace>,
    /// Takes events; must not block.
    pub events: Box<dyn Fn(WorkerEvent) + Send>,
}

/// What the worker says.
#[derive(Debug)]
pub enum WorkerEvent {
    /// For the driver.
    Driver(Box<Event>),
    /// Facts of an applied step, for the display.
    Applied {
        /// The step.
        step: Step,
        /// Learning rate, gradient norm, time.
        applied: Applied,
        /// The state to save, where a checkpoint is due.
        snapshot: Option<Box<TrainState>>,
    },
    /// Time spent computing an order, in microseconds.
    Busy {
        /// The step.
        step: Step,
        /// Microseconds.
        us: u64,
    },
    /// The program could not be run: the job can't go on here.
    Failed(String),
}

/// A running worker thread. It ends when this is dropped, after the order it is at.
pub struct Worker {
    orders: Option<mpsc::Sender<Order>>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    Compute(ComputeOrder),
    Apply(ApplyOrder),
}

impl Worker {
    /// Starts the thread.
    pub fn start(parts: WorkerParts) -> std::io::Result<Self> {
        let (orders, queue) = mpsc::channel();
        let thread = std::thread::Builder::new().name("compute".into()).spawn(move || {
            let (tokens, targets) = (vec![0; parts.tokens], vec![0; parts.tokens]);
            let mut body = Body { parts, tokens, targets };
            let ended = catch_unwind(AssertUnwindSafe(|| body.run(queue)));
            let failed = ended.unwrap_or_else(|_| Err("the computation panicked".to_owned()));
            if let Err(reason) = failed {
                (body.parts.events)(WorkerEvent::Failed(reason));
            }
        })?;
        Ok(Self { orders: Some(orders), thread: Some(thread) })
    }

    /// Queues computation.
    pub fn compute(&self, order: ComputeOrder) {
        self.order(Order::Compute(order));
    }

    /// Queues an update.
    pub fn apply(&self, order: ApplyOrder) {
        self.order(Order::Apply(order));
    }

    fn order(&self, order: Order) {
        if let Some(orders) = &self.orders {
            // A worker that has failed has said so by an event; its orders go nowhere.
            let _ = orders.send(order);
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.orders = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the worker has already been printed by its hook.
            let _ = thread.join();
        }
    }
}

struct Body {
    parts: WorkerParts,
    tokens: Vec<i32>,
    targets: Vec<i32>,
}

impl Body {
    fn run(&mut self, orders: mpsc::Receiver<Order>) -> Result<(), String> {
        for order in orders {
            match order {
                Order::Compute(order) => self.compute(order)?,
                Order::Apply(order) => self.apply(order),
            }
        }
        Ok(())
    }

    fn compute(&mut self, order: ComputeOrder) -> Result<(), String> {
        let ComputeOrder { order: id, step, work, micro_batches, mut gradients } = order;
        let started = Instant::now();
        let state = self.parts.state.clone();
        let state = state.read();
        let (train, eval) = split(&work, micro_batches);
        let mut report = OrderReport::default();
        if train.is_empty() {
            for (bucket, gradient) in gradients.iter_mut().enumerate() {
                self.ready(id, bucket, std::mem::take(gradient));
            }
        }
        let train_started = Instant::now();
        for (index, item) in train.iter().enumerate() {
            let span = self.parts.trace.begin("micro-batch");
            let last = index + 1 == train.len();
            self.parts.samples.train(step, *item, &mut self.tokens, &mut self.targets)?;
            let Self { parts, tokens, targets } = self;
            let WorkerParts { executor, events, trace, .. } = parts;
            let mut on_block = |block: usize, gradient: &mut Vec<f32>| {
                if last {
                    trace.instant("gradient ready", block as u64);
                    let gradient = std::mem::take(gradient);
                    let event = Event::BucketReady { order: id, bucket: block, gradient };
                    events(WorkerEvent::Driver(Box::new(event)));
                }
            };
            let loss = executor
                .step(
                    &state.params,
                    &[Input::I32(tokens), Input::I32(targets)],
                    &mut gradients,
                    &mut on_block,
                )
                .map_err(|error| format!("step {step}, micro-batch {item}: {error}"))?;
            report.train_loss += f64::from(loss);
            self.parts.trace.end(span);
        }
        if !train.is_empty() {
            let us = train_started.elapsed().as_micros() as u64 / train.len() as u64;
            report.us_per_microbatch = Some(u32::try_from(us).unwrap_or(u32::MAX).max(1));
        }
        for item in eval {
            let span = self.parts.trace.begin("evaluate");
            self.parts.samples.held_out(item, &mut self.tokens, &mut self.targets)?;
            let loss = self
                .parts
                .executor
                .evaluate(&state.params, &[Input::I32(&self.tokens), Input::I32(&self.targets)])
                .map_err(|error| format!("evaluation before step {step}: {error}"))?;
            report.eval_loss += f64::from(loss);
            self.parts.trace.end(span);
        }
        drop(state);
        let event = Event::Computed { order: id, report };
        (self.parts.events)(WorkerEvent::Driver(Box::new(event)));
        let us = started.elapsed().as_micros() as u64;
        (self.parts.events)(WorkerEvent::Busy { step, us });
        Ok(())
    }

    fn ready(&self, order: OrderId, bucket: usize, gradient: Vec<f32>) {
        let event = Event::BucketReady { order, bucket, gradient };
        (self.parts.events)(WorkerEvent::Driver(Box::new(event)));
    }

    fn apply(&mut self, order: ApplyOrder) {
        let span = self.parts.trace.begin("optimizer");
        let ApplyOrder { step, gradients } = order;
        let (applied, block_digests, snapshot) = {
            let mut state = self.parts.state.write();
            let scale = 1.0 / self.parts.micro_batches as f32;
            let applied = self.parts.optimizer.apply(&mut state, &gradients, scale);
            let compare =
                self.parts.digest_every > 0 && state.step.0.is_multiple_of(self.parts.digest_every);
            let digests = if compare { state.block_digests() } else { Vec::new() };
            let every = self.parts.checkpoint_every;
            let due = state.step.0 == self.parts.steps
                || (every > 0 && state.step.0.is_multiple_of(every));
            // A copy, so that a slow disk never holds back the swarm.
            let snapshot = due.then(|| Box::new(state.clone()));
            (applied, digests, snapshot)
        };
        self.parts.trace.end(span);
        (self.parts.events)(WorkerEvent::Applied { step, applied, snapshot });
        let event = Event::Applied { step, block_digests, gradients };
        (self.parts.events)(WorkerEvent::Driver(Box::new(event)));
    }
}

/// Micro-batches, and held-out batches counted from 0.
fn split(work: &[Range<u32>], micro_batches: u32) -> (Vec<u32>, Vec<u32>) {
    let (mut train, mut eval) = (Vec::new(), Vec::new());
    for item in work.iter().cloned().flatten() {
        if item < micro_batches { train.push(item) } else { eval.push(item - micro_batches) }
    }
    (train, eval)
}
