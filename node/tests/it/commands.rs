//! The commands that work on files, through the binary: what their tests share.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use p2ptrain_kernels::init_params;
use p2ptrain_node::checkpoint::{About, Folder, StateRef};
use p2ptrain_node::job::{self, JobFile};
use p2ptrain_node::runtime::prepare::program_of;
use p2ptrain_protocol::id::Step;
use serde_json::Value;

/// A job of a tiny GPT on some text, in a folder that also serves as the node's.
pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Self {
        Self::with_vocab(256)
    }

    pub fn with_vocab(vocab: u32) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder is writable");
        let text: String = (0..400).map(|i| format!("line {i} of some text\n")).collect();
        fs::write(folder.path().join("text.txt"), text).expect("folder is writable");
        let job = format!(
            "name = \"tiny\"\nsteps = 20\n\n[model]\nvocab = {vocab}\nblock_size = 16\nlayers = 2\n\
             heads = 2\nwidth = 32\n\n[data]\nfiles = \"text.txt\"\n\n[batch]\nglobal = 8\nmicro = 2\n"
        );
        fs::write(folder.path().join("job.toml"), job).expect("folder is writable");
        Self { folder }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn job(&self) -> JobFile {
        job::parse(&self.path("job.toml")).expect("the job above is right")
    }

    /// The folder in which a node of this place would keep checkpoints.
    pub fn checkpoints(&self) -> PathBuf {
        self.path("jobs/0123abcd/checkpoints")
    }

    /// A checkpoint of the untrained model that says to be of this step.
    pub fn checkpoint(&self, step: u64) -> PathBuf {
        let job = self.job().spec;
        let program = program_of(&job).expect("a small model");
        let params = init_params(&program, step).blocks;
        let zeros: Vec<Vec<f32>> = params.iter().map(|block| vec![0.0; block.len()]).collect();
        let about = About {
            job,
            program: program.encode(),
            step: Step(step),
            epoch: 1,
            members: Vec::new(),
            ledger_bytes: 0,
        };
        let folder = Folder::open(&self.checkpoints()).expect("folder is writable");
        let state = StateRef { params: &params, m: &zeros, v: &zeros };
        folder.save(&about, state, 5).expect("folder is writable").path
    }

    /// The command, run in this place with its folder as the node's.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_p2ptrain"));
        command.args(args).current_dir(self.folder.path()).stdin(Stdio::null());
        command.env("P2PTRAIN_DIR", self.folder.path()).env_remove("P2PTRAIN_SWARM");
        command
    }

    pub fn run(&self, line: &str) -> Output {
        let args: Vec<&str> = line.split_whitespace().collect();
        self.command(&args).output().expect("the binary was built")
    }

    /// The JSON of a command that succeeds.
    pub fn json(&self, line: &str) -> Value {
        let output = self.run(&format!("{line} --json"));
        assert!(output.status.success(), "{line}: {}", stderr(&output));
        serde_json::from_slice(&output.stdout).expect("one JSON object")
    }

    /// Checks that the command fails with this status and says all of this, with no panic.
    pub fn refused(&self, line: &str, status: i32, said: &[&str]) {
        let output = self.run(line);
        let errors = stderr(&output);
        assert_eq!(output.status.code(), Some(status), "{line}: {errors}");
        assert!(errors.starts_with("error: ") && !errors.contains("panic"), "{line}: {errors}");
        for words in said {
            assert!(errors.contains(words), "{line} does not say {words:?}: {errors}");
        }
    }
}

pub fn stdout(output: &Output) -> &str {
    std::str::from_utf8(&output.stdout).expect("output is UTF-8")
}

pub fn stderr(output: &Output) -> &str {
    std::str::from_utf8(&output.stderr).expect("errors are UTF-8")
}

/// Flips a bit in the middle of a file.
pub fn damage(path: &Path) {
    let mut bytes = fs::read(path).expect("readable");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(path, bytes).expect("writable");
}
