//! The versions of the kernels for other processors.

use super::{on_threads, random};
use p2ptrain_kernels::optim::{self, AdamW};
use std::process::Command;

/// Runs this module's suite again with each smaller set of processor instructions.
#[test]
fn every_level_passes_the_suite() {
    if std::env::var_os("P2PTRAIN_SIMD").is_some() {
        return;
    }
    for level in ["portable", "avx2", "avx512"] {
        let program = std::env::current_exe().expect("the test knows its program");
        let output = Command::new(program)
            .args(["ops::", "--test-threads=1"])
            .env("P2PTRAIN_SIMD", level)
            .output()
            .expect("the test program starts again");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{level}:\n{text}");
    }
}

/// The digest of this test was made once; every processor, and every level in the test above, must
/// reproduce it.
#[test]
fn optimizers_give_the_same_bits_on_every_processor() {
    let digest = on_threads(|pool| {
        let len = 40_003;
        let mut p = random(1, len);
        let (mut m, mut v, mut momentum) = (vec![0.0; len], vec![0.0; len], vec![0.0; len]);
        let adam = AdamW { beta1: 0.9, beta2: 0.95, eps: 1e-8, weight_decay: 0.1 };
        let mut hash = blake3::Hasher::new();
        for step in 1..=5 {
            let g = random(10 + step, len);
            let norm = optim::grad_norm_sq(pool, &[&g[..10_000], &g[10_000..]]);
            hash.update(&norm.to_le_bytes());
            let (m, v) = (&mut m, &mut v);
            optim::adamw(pool, &mut p, &g, m, v, 0.3, 1e-2, true, u64::from(step), &adam);
            optim::sgd_momentum(pool, &mut p, &g, &mut momentum, 0.7, 1e-2, 0.9, true, 0.1, true);
        }
        for values in [&p, &m, &v, &momentum] {
            values.iter().for_each(|x| {
                hash.update(&x.to_le_bytes());
            });
        }
        hash.finalize().to_hex().to_string()
    });
    assert_eq!(digest, "e8925cb902dd7f99f87c6b53fa386228cd0d207aaff728881f5d557776155ea0");
}
