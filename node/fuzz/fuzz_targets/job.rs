//! A job file of a user and the description of a job from another machine: a job or an error. What is
//! accepted has one encoding, and its own text reads back as the same job.
#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;
use p2ptrain_node::job::{self, JobSpec};

fuzz_target!(|data: &[u8]| {
    if let Ok(spec) = JobSpec::decode(data) {
        assert_eq!(JobSpec::decode(&spec.encode()).expect("own bytes decode"), spec);
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    match job::parse_str(text, Path::new("job.toml")) {
        Ok(file) => {
            let again = job::parse_str(&file.to_toml(), Path::new("job.toml"));
            assert_eq!(again.expect("own text parses"), file);
            assert_eq!(JobSpec::decode(&file.spec.encode()).expect("own bytes decode"), file.spec);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
