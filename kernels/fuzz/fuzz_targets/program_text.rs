//! The text of a program: any text gives a verified program or an error that names its line.
#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use p2ptrain_kernels::Program;
use p2ptrain_kernels::model::{self, GptConfig};

static VALID: LazyLock<String> = LazyLock::new(|| {
    let config = GptConfig {
        vocab: 7,
        block_size: 4,
        layers: 1,
        heads: 2,
        width: 4,
        bias: false,
        tied: false,
    };
    model::gpt(&config, 2).expect("a small model is valid").to_text()
});

fuzz_target!(|data: &[u8]| {
    if let Ok(text) = std::str::from_utf8(data) {
        check(text);
    }
    // A valid text in which one place is replaced.
    let Some((&[high, low, len], insert)) = data.split_first_chunk::<3>() else { return };
    let Ok(insert) = std::str::from_utf8(insert) else { return };
    if !VALID.is_ascii() {
        return check(&VALID);
    }
    let start = usize::from(u16::from_be_bytes([high, low])) % VALID.len();
    let end = VALID.len().min(start + usize::from(len));
    check(&format!("{}{insert}{}", &VALID[..start], &VALID[end..]));
});

fn check(text: &str) {
    let Ok(program) = Program::parse_text(text) else { return };
    program.verify().expect("only verified programs parse");
    let again = Program::decode(&program.encode()).expect("own bytes decode");
    assert_eq!(again.id(), program.id(), "text and bytes say the same");
}
