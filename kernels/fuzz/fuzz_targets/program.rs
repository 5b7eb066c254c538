//! A program from another machine: any bytes give a verified program or an error. What decodes has one
//! encoding and one text. Half of the inputs change a valid program, since random bytes seldom get far.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use p2ptrain_kernels::Program;
use p2ptrain_kernels::model::{self, GptConfig};

static VALID: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let config = GptConfig {
        vocab: 7,
        block_size: 4,
        layers: 1,
        heads: 2,
        width: 4,
        bias: true,
        tied: true,
    };
    model::gpt(&config, 2).expect("a small model is valid").encode()
});

fuzz_target!(|data: &[u8]| {
    check(data);
    let mut changed = VALID.clone();
    for &[high, low, value] in data.as_chunks::<3>().0 {
        let place = usize::from(u16::from_be_bytes([high, low])) % changed.len();
        changed[place] = value;
    }
    check(&changed);
});

fn check(bytes: &[u8]) {
    let Ok(program) = Program::decode(bytes) else { return };
    program.verify().expect("only verified programs decode");
    assert_eq!(program.encode(), bytes, "a program has one encoding");
    let text = program.to_text();
    let again = Program::parse_text(&text).expect("own text parses");
    assert_eq!(again.id(), program.id(), "text and bytes say the same");
}
