//! From positions in the sample sequence to tokens.

use std::num::NonZeroU64;
use std::ops::Range;
use std::sync::Arc;

use p2ptrain_protocol::order;

use super::error::DataError;
use super::split::Split;
use super::store::Store;
use crate::job::JobSpec;

/// Keeps the order of held-out samples apart from that of training samples.
const HELD_OUT_SEED: u64 = 0x6865_6c64_206f_7574;

/// The samples of a job: what position `p` of its endless sample sequence is.
///
/// A function of the data's length and the job alone, so that every peer reads the same samples for
/// the same positions, whoever else takes part.
#[derive(Clone, Debug)]
pub struct Samples {
    store: Arc<Store>,
    split: Split,
    seed: u64,
    block_size: usize,
    train: NonZeroU64,
    held_out: Option<NonZeroU64>,
}

impl Samples {
    /// The samples of this job; data that does not fit the job is refused.
    pub fn new(store: Arc<Store>, job: &JobSpec) -> Result<Self, DataError> {
        let manifest = store.manifest();
        if let Some(expected) = job.data_root.filter(|root| *root != store.root()) {
            return Err(DataError::WrongData { expected, found: store.root() });
        }
        let model = job.model.vocab();
        if manifest.vocab() > model {
            return Err(DataError::Vocab { data: manifest.vocab(), model });
        }
        let block_size = job.model.block_size();
        let split = Split::new(manifest.tokens(), block_size, job.held_out_ppm)?;
        let train = NonZeroU64::new(split.train_samples())
            .expect("a split without training samples is an error");
        let held_out = NonZeroU64::new(split.held_out_samples());
        let block_size = block_size as usize;
        Ok(Self { store, split, seed: job.seed, block_size, train, held_out })
    }

    /// Training samples of one epoch.
    pub fn per_epoch(&self) -> u64 {
        self.train.get()
    }

    /// Held-out samples.
    pub fn held_out_len(&self) -> u64 {
        self.split.held_out_samples()
    }

    /// The store they are read from.
    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// Writes the samples at these positions: sample `i` into row `i` of `tokens` and `targets`
    /// (both `[n, block_size]`). Targets are the tokens one place further on.
    ///
    /// [`DataError::missing_chunk`] tells whether a fill can help.
    ///
    /// # Panics
    /// If the buffers do not have `n * block_size` elements.
    pub fn samples(
        &self,
        positions: Range<u64>,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> Result<(), DataError> {
        let count = positions.end.saturating_sub(positions.start) as usize;
        assert_eq!(tokens.len(), count * self.block_size, "tokens are [n, block_size]");
        self.read(positions.map(|position| self.train_token(position)), tokens, targets)
    }

    /// The chunks that these samples lie in, sorted, each once.
    pub fn chunks_needed(&self, positions: Range<u64>) -> Vec<u32> {
        self.chunks(positions.map(|position| self.train_token(position)))
    }

    /// Writes held-out batch `batch`; the number of its samples is that of the buffers' rows.
    ///
    /// The batches go through all held-out samples in one fixed shuffled order and then begin anew.
    ///
    /// # Panics
    /// If the buffers are not whole rows of `block_size`, or nothing is held out.
    pub fn held_out(
        &self,
        batch: u64,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> Result<(), DataError> {
        assert_eq!(tokens.len() % self.block_size, 0, "tokens are [n, block_size]");
        let count = tokens.len() / self.block_size;
        self.read(self.held_out_tokens(batch, count), tokens, targets)
    }

    /// The chunks of held-out batch `batch` of `samples` samples, sorted, each once.
    ///
    /// # Panics
    /// If nothing is held out.
    pub fn held_out_chunks(&self, batch: u64, samples: usize) -> Vec<u32> {
        self.chunks(self.held_out_tokens(batch, samples))
    }

    fn train_token(&self, position: u64) -> u64 {
        self.split.train_token(order::sample_at(self.seed, self.train, position))
    }

    fn held_out_tokens(&self, batch: u64, count: usize) -> impl Iterator<Item = u64> {
        let len = self.held_out.expect("the caller asks only where data is held out").get();
        let count = count as u64;
        (0..count).map(move |i| {
            let place = (batch.wrapping_mul(count).wrapping_add(i)) % len;
            let sample = order::permute(self.seed ^ HELD_OUT_SEED, 0, len, place);
            self.split.held_out_token(sample)
        })
    }

    fn read(
        &self,
        starts: impl Iterator<Item = u64>,
        tokens: &mut [i32],
        targets: &mut [i32],
    ) -> Result<(), DataError> {
        assert_eq!(tokens.len(), targets.len(), "each token has a target");
        let rows = tokens.chunks_exact_mut(self.block_size);
        let rows = rows.zip(targets.chunks_exact_mut(self.block_size));
        for (start, (tokens, targets)) in starts.zip(rows) {
            self.store.read_tokens(start, tokens)?;
            let (last, rest) = targets.split_last_mut().expect("a sample has a token at least");
            rest.copy_from_slice(&tokens[1..]);
            let end = start + self.block_size as u64;
            self.store.read_tokens(end, std::slice::from_mut(last))?;
        }
        Ok(())
    }

    fn chunks(&self, starts: impl Iterator<Item = u64>) -> Vec<u32> {
        let tokens = self.block_size as u64 + 1;
        let mut chunks: Vec<u32> = starts
            .flat_map(|start| self.store.manifest().chunks_of(start..start + tokens))
            .collect();
        chunks.sort_unstable();
        chunks.dedup();
        chunks
    }
}
