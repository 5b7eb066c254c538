use std::net::IpAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum};

use super::{ByteSize, SwarmSecretError, resolve_swarm_secret};

const EXIT_STATUS: &str = "\
Exit status:
  0    what was asked for is done
  1    it failed; stderr says why and what to try
  2    the command line or the job file is wrong, nothing was started
  130  ended by Ctrl-C";

/// Train one model on all machines of a lab, with no cluster and no master
///
/// Every machine runs the same program and none of them is special. Machines may join, leave or die
/// at any time; the training goes on, and each sample counts exactly once.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "p2ptrain",
    bin_name = "p2ptrain",
    version,
    arg_required_else_help = true,
    max_term_width = 100,
    after_long_help = "\
First steps:
  p2ptrain demo                  three nodes on this machine train a small model for a minute
  p2ptrain doctor                check that this machine can take part
  p2ptrain run job.toml          start a job here; prints the line to paste on other machines
  p2ptrain join                  take part in a job found on the local network

Environment:
  P2PTRAIN_DIR     the node's folder, like --dir
  P2PTRAIN_SWARM   the swarm secret, like --swarm
  NO_COLOR         no colours, like --no-color"
)]
pub struct Cli {
    /// Options of all commands.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of all commands.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of all commands")]
pub struct Global {
    /// Folder of the node
    ///
    /// It holds the node's identity, log, socket, data cache and runs. Default:
    /// ~/.local/share/p2ptrain/NAME. Each node of a machine needs its own.
    #[arg(
        long,
        global = true,
        env = "P2PTRAIN_DIR",
        hide_env_values = true,
        value_name = "FOLDER"
    )]
    pub dir: Option<PathBuf>,

    /// Name of the node, shown to the other members (default: the host name)
    #[arg(long, global = true, value_name = "NAME", value_parser = parse_name)]
    pub name: Option<String>,

    /// Print JSON: results as one object, running output as one object a line
    #[arg(long, global = true)]
    pub json: bool,

    /// No colours, also where the terminal has them
    #[arg(long, global = true)]
    pub no_color: bool,

    /// Detail of the log file; stderr shows warnings only
    ///
    /// The file is node.log in the node's folder. P2PTRAIN_LOG takes finer filters in the form of
    /// tracing's EnvFilter, for example p2ptrain_node::net=trace.
    #[arg(long, global = true, value_enum, default_value_t = LogLevel::Info, value_name = "LEVEL", hide_possible_values = true)]
    pub log: LogLevel,

    /// Print only results and errors
    #[arg(long, short, global = true)]
    pub quiet: bool,
}

impl Global {
    /// The node's name: `--name`, or the host name.
    pub fn node_name(&self) -> String {
        self.name.clone().unwrap_or_else(host_name)
    }

    /// The node's folder: `--dir`, `$P2PTRAIN_DIR`, or a folder of the node's name in the user's
    /// data folder.
    pub fn node_dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| nodes_dir().join(self.node_name()))
    }

    /// The folder of the demo's nodes: `--dir`, `$P2PTRAIN_DIR`, or `demo` in the data folder.
    pub fn demo_dir(&self) -> PathBuf {
        self.dir.clone().unwrap_or_else(|| nodes_dir().join("demo"))
    }
}

/// The folder that holds the nodes without a folder of their own.
fn nodes_dir() -> PathBuf {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let data = match (set("XDG_DATA_HOME"), set("HOME")) {
        (Some(data), _) => PathBuf::from(data),
        (None, Some(home)) => PathBuf::from(home).join(".local/share"),
        (None, None) => std::env::temp_dir(),
    };
    data.join("p2ptrain")
}

fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    parse_name(name.trim()).unwrap_or_else(|_| "node".to_owned())
}

fn parse_name(name: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.chars().count() > crate::status::NAME_CHARS_MAX {
        return Err(format!("a name has 1 to {} characters", crate::status::NAME_CHARS_MAX));
    }
    if name.starts_with('.') || !name.chars().all(allowed) {
        return Err(
            "a name has letters, digits, '-', '_' and '.', and does not start with '.'".into()
        );
    }
    Ok(name.to_owned())
}

/// Levels of the log file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogLevel {
    /// Errors.
    Error,
    /// And warnings.
    Warn,
    /// And events of the run.
    Info,
    /// And each step and message.
    Debug,
    /// And each piece.
    Trace,
}

/// The commands.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Train a small model on this machine with several nodes, one of which is killed
    ///
    /// Starts nodes as separate processes on loopback. They find each other, agree on a plan and
    /// train a small GPT (about 3 million parameters, bytes as tokens) on real text. In the middle
    /// one node is killed with SIGKILL and joins again; the account of samples shows that no step
    /// was lost. The demo ends with the held-out loss beside that of the untrained model, a text
    /// written by the model, and the path of the checkpoint.
    #[command(after_long_help = examples_demo())]
    Demo(DemoArgs),

    /// Start a job on this machine, for others to join
    ///
    /// Reads and checks the job file, starts a node, prints the command by which other machines
    /// join, and trains. Without --swarm a new swarm secret is made and printed as a part of that
    /// command. If the node's folder holds an earlier state of the same job, use `resume`.
    #[command(after_long_help = examples_run())]
    Run(RunArgs),

    /// Take part in a running job
    ///
    /// Connects to the named peers, or to those that announce themselves on the local network,
    /// fetches the job, its data and the present state of the model from the members, and takes
    /// part in the steps. What arrives is verified against its hash.
    #[command(after_long_help = examples_join())]
    Join(JoinArgs),

    /// Give a job to the node that runs on this machine
    ///
    /// The node must be running without a job (`p2ptrain join` before a job exists). The job file
    /// is checked here first, so that errors name its file, line and column.
    #[command(after_long_help = examples("  p2ptrain submit job.toml\n  p2ptrain submit --name left job.toml"))]
    Submit(SubmitArgs),

    /// Show what the node on this machine does
    ///
    /// Prints the job's progress, the peers with their share, speed and connection, the latest
    /// events and the account of samples. With --json the whole status as one object.
    #[command(after_long_help = examples("  p2ptrain status\n  p2ptrain status --json | jq .job.loss"))]
    Status(StatusArgs),

    /// Follow the node on this machine live
    ///
    /// On a terminal the same display as that of `run`; elsewhere one line every few seconds and at
    /// every event; with --json one object a line. Ctrl-C ends the watching, not the node.
    #[command(after_long_help = examples("  p2ptrain watch\n  p2ptrain watch --dir /data/node1\n  p2ptrain watch --json | jq -c .status.job.step"))]
    Watch(WatchArgs),

    /// Let the node on this machine leave its job in good order
    ///
    /// The node finishes the step, hands its share over to the other members, writes its state and
    /// ends. The command returns when that is done.
    #[command(after_long_help = examples("  p2ptrain leave\n  p2ptrain leave --now"))]
    Leave(LeaveArgs),

    /// Go on with a job from a checkpoint
    ///
    /// Without an argument the newest sound checkpoint in the node's folder. The peers may be
    /// others than before, and of another number: the state does not depend on them.
    #[command(after_long_help = examples_resume())]
    Resume(ResumeArgs),

    /// Write text with a trained model
    ///
    /// Loads a checkpoint and continues the prompt; the text appears as it is written. The same seed
    /// gives the same text. Prints the prompt and its continuation; with --json one object with
    /// prompt, text, tokens and seconds.
    #[command(after_long_help = examples("  p2ptrain generate --prompt 'fn main() {' --tokens 200\n  p2ptrain generate --checkpoint run/step-400 --temperature 0"))]
    Generate(GenerateArgs),

    /// Write the weights of a checkpoint as safetensors
    ///
    /// Names and shapes are those of the model in PyTorch (nanoGPT's for a GPT), so that
    /// `model.load_state_dict(safetensors.torch.load_file("model.safetensors"))` takes them. The
    /// file's metadata names the job, the step and the model's arguments. The file appears whole or
    /// not at all; one of that name is replaced. With --initial the weights that a job starts from.
    #[command(after_long_help = examples("  p2ptrain export --output model.safetensors\n  p2ptrain export --checkpoint run/step-400 --output model.safetensors\n  p2ptrain export --initial job.toml --output untrained.safetensors"))]
    Export(ExportArgs),

    /// Explain how a job would be shared out, and train nothing
    ///
    /// Checks the job file, measures this machine with a few micro-batches of the model, and prints
    /// the model's blocks, the memory and work of a step, who would compute which micro-batches and
    /// why, and how long a step takes. Where a node runs here, its members are planned for too, by
    /// their speed relative to this machine. Warns of what will not work.
    #[command(after_long_help = examples("  p2ptrain plan job.toml\n  p2ptrain plan job.toml --json"))]
    Plan(PlanArgs),

    /// Check that this machine can take part, and say what to do where it cannot
    ///
    /// Looks at processor, memory and their limits, the node's folder, ports, network addresses,
    /// socket buffers, local discovery, clock and graphics processors. Starts nothing and changes
    /// nothing. Exit status 1 where something must be fixed before a node can run.
    #[command(after_long_help = examples("  p2ptrain doctor\n  p2ptrain doctor --port 4001 --json"))]
    Doctor(DoctorArgs),

    /// Print a new swarm secret
    ///
    /// Whoever holds the secret can join. Give it to the nodes with --swarm, in P2PTRAIN_SWARM, or
    /// in a file by --swarm @FILE, which keeps it out of the list of processes.
    #[command(after_long_help = examples("  p2ptrain swarm-key > ~/.swarm && chmod 600 ~/.swarm\n  p2ptrain run job.toml --swarm @$HOME/.swarm"))]
    SwarmKey(SwarmKeyArgs),

    /// Audit the account of samples of a run
    ///
    /// Reads all ledgers (ledger-*.txt) below a folder and proves from them that every sample of every
    /// committed step was computed exactly once. Where it was not, the exit status is 1 and the
    /// report names the file, the line, the step and the samples.
    #[command(after_long_help = examples("  p2ptrain ledger\n  p2ptrain ledger ~/.local/share/p2ptrain/alice --json\n  p2ptrain ledger ledger-000000000-1.txt"))]
    Ledger(LedgerArgs),

    /// Print the completions of a shell
    #[command(after_long_help = examples("  p2ptrain completions bash > ~/.local/share/bash-completion/completions/p2ptrain\n  p2ptrain completions zsh > ~/.zfunc/_p2ptrain\n  p2ptrain completions fish > ~/.config/fish/completions/p2ptrain.fish"))]
    Completions(CompletionsArgs),

    /// Measure one part of the trainer on this machine
    ///
    /// `bench step` trains on this machine alone, without network, by the computation and the update
    /// of a node, and prints times of whole steps, rates and the peak of memory.
    #[command(hide = true, after_long_help = examples("  p2ptrain bench step --threads 2 --precision bf16\n  p2ptrain bench step --job job.toml --steps 51 --dump folder --json\n  p2ptrain bench step --init init.safetensors --batches batches.i32 --losses"))]
    Bench(BenchArgs),
}

/// Options of every command that runs a node.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of the node")]
pub struct NodeArgs {
    /// Swarm secret, or @FILE with it
    ///
    /// Members prove to each other that they have it; nobody else gets a gradient, a parameter or
    /// the list of members. See `p2ptrain swarm-key`.
    #[arg(long, env = "P2PTRAIN_SWARM", hide_env_values = true, value_name = "SECRET")]
    pub swarm: Option<String>,

    /// Let in only these peer ids, instead of everyone with the swarm secret
    ///
    /// With it P2PTRAIN_SWARM is not looked at.
    #[arg(long, value_name = "PEER", num_args = 1.., action = ArgAction::Append)]
    pub allow: Vec<String>,

    /// Address to listen on (default: all)
    #[arg(long, value_name = "IP")]
    pub listen: Option<IpAddr>,

    /// Port of the control connections, TCP and UDP (0: any free one)
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,

    /// UDP port of the gradient connections (0: any free one)
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub bulk_port: u16,

    /// Threads that compute (default: the cores that this process may use)
    #[arg(long, value_name = "NUMBER")]
    pub threads: Option<NonZeroUsize>,

    /// Memory that the node may use, for example 8G (default: three quarters of what is free)
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<ByteSize>,

    /// Folder of the data cache (default: data in the node's folder)
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,

    /// Neither announce this node on the local network nor look for others there
    #[arg(long)]
    pub no_mdns: bool,

    /// What computes
    #[arg(long, value_enum, value_name = "DEVICE", default_value_t = Device::Auto)]
    pub device: Device,

    /// Wait for the next job when this one is done, instead of ending
    #[arg(long)]
    pub keep_running: bool,

    /// Write where the time of each step goes, as a Chrome trace (Perfetto opens it)
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,
}

impl NodeArgs {
    /// The swarm secret of `--swarm` or the environment, read from its file where it is `@FILE`.
    /// None where an allow-list decides instead, or where nothing was given.
    ///
    /// # Errors
    /// Where that file cannot be read or holds nothing, or where the command line has both a secret
    /// and an allow-list.
    pub fn swarm_secret(&self) -> Result<Option<String>, SwarmSecretError> {
        let from_environment = || std::env::var("P2PTRAIN_SWARM").ok() == self.swarm;
        match &self.swarm {
            Some(_) if self.allow.is_empty() => {}
            Some(_) if !from_environment() => return Err(SwarmSecretError::Both),
            _ => return Ok(None),
        }
        self.swarm.as_deref().map(resolve_swarm_secret).transpose()
    }
}

/// What computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The fastest that this version has kernels for: the processor.
    Auto,
    /// The processor.
    Cpu,
}

/// `p2ptrain demo`.
#[derive(Clone, Debug, Args)]
pub struct DemoArgs {
    /// Text to train on: a file or a folder (default: the Rust sources that cargo has fetched)
    #[arg(long, value_name = "PATH")]
    pub data: Option<PathBuf>,

    /// Number of nodes
    #[arg(long, value_name = "NUMBER", default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=16))]
    pub peers: u8,

    /// Seconds of training
    #[arg(long, value_name = "NUMBER", default_value_t = 60, value_parser = clap::value_parser!(u32).range(5..=86_400))]
    pub seconds: u32,

    /// Kill no node
    #[arg(long)]
    pub no_kill: bool,

    /// Threads of each node (default: the cores shared out)
    #[arg(long, value_name = "NUMBER")]
    pub threads_per_peer: Option<NonZeroUsize>,
}

/// `p2ptrain run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// The job file
    #[arg(value_name = "JOB")]
    pub job: PathBuf,

    /// Address of a peer to connect to: multiaddr or host:port
    #[arg(long, value_name = "ADDR", num_args = 1.., action = ArgAction::Append)]
    pub peer: Vec<String>,

    /// Options of the node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `p2ptrain join`.
#[derive(Clone, Debug, Args)]
pub struct JoinArgs {
    /// Address of a member: multiaddr or host:port, also as SECRET@ADDR with the swarm secret (default:
    /// found on the local network)
    #[arg(long, value_name = "ADDR", num_args = 1.., action = ArgAction::Append)]
    pub peer: Vec<String>,

    /// Job id to join, or its beginning, where a swarm has several
    #[arg(long, value_name = "ID")]
    pub job: Option<String>,

    /// Options of the node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `p2ptrain submit`.
#[derive(Clone, Debug, Args)]
pub struct SubmitArgs {
    /// The job file
    #[arg(value_name = "JOB")]
    pub job: PathBuf,
}

/// `p2ptrain status`.
#[derive(Clone, Debug, Args)]
pub struct StatusArgs {}

/// `p2ptrain watch`.
#[derive(Clone, Debug, Args)]
pub struct WatchArgs {
    /// Shortest time between two updates, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 250, value_parser = clap::value_parser!(u32).range(50..=60_000))]
    pub interval: u32,
}

/// `p2ptrain leave`.
#[derive(Clone, Debug, Args)]
pub struct LeaveArgs {
    /// Save and end at once, without finishing the step; the others do its work again
    #[arg(long)]
    pub now: bool,
}

/// `p2ptrain resume`.
#[derive(Clone, Debug, Args)]
pub struct ResumeArgs {
    /// A checkpoint, or a folder with some (default: the newest in the node's folder)
    #[arg(value_name = "CHECKPOINT|FOLDER")]
    pub checkpoint: Option<PathBuf>,

    /// Address of a peer to connect to: multiaddr or host:port
    #[arg(long, value_name = "ADDR", num_args = 1.., action = ArgAction::Append)]
    pub peer: Vec<String>,

    /// Options of the node.
    #[command(flatten)]
    pub node: NodeArgs,
}

/// `p2ptrain generate`.
#[derive(Clone, Debug, Args)]
pub struct GenerateArgs {
    /// A checkpoint, or a folder with some (default: the newest in the node's folder)
    #[arg(long, value_name = "PATH")]
    pub checkpoint: Option<PathBuf>,

    /// Text to continue; - reads it from stdin
    #[arg(long, value_name = "TEXT", default_value = "\n", hide_default_value = true)]
    pub prompt: String,

    /// Tokens to write
    #[arg(long, value_name = "NUMBER", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub tokens: u32,

    /// 0 takes the likeliest token each time, higher values take greater liberties
    #[arg(long, value_name = "NUMBER", default_value_t = 0.8, value_parser = parse_temperature)]
    pub temperature: f32,

    /// Choose among this many of the likeliest tokens (default: all)
    #[arg(long, value_name = "NUMBER")]
    pub top_k: Option<NonZeroUsize>,

    /// Seed of the choice
    #[arg(long, value_name = "NUMBER", default_value_t = 1)]
    pub seed: u64,

    /// Threads that compute (default: the cores that this process may use)
    #[arg(long, value_name = "NUMBER")]
    pub threads: Option<NonZeroUsize>,
}

/// `p2ptrain export`.
#[derive(Clone, Debug, Args)]
pub struct ExportArgs {
    /// A checkpoint, or a folder with some (default: the newest in the node's folder)
    #[arg(long, value_name = "PATH")]
    pub checkpoint: Option<PathBuf>,

    /// Export the weights that this job file starts from, instead of trained ones
    #[arg(long, value_name = "JOB", conflicts_with = "checkpoint")]
    pub initial: Option<PathBuf>,

    /// File to write; replaced if it exists
    #[arg(long, short, value_name = "FILE")]
    pub output: PathBuf,
}

/// `p2ptrain plan`.
#[derive(Clone, Debug, Args)]
pub struct PlanArgs {
    /// The job file
    #[arg(value_name = "JOB")]
    pub job: PathBuf,

    /// Threads that compute (default: the cores that this process may use)
    #[arg(long, value_name = "NUMBER")]
    pub threads: Option<NonZeroUsize>,
}

/// `p2ptrain doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Port of the control connections to check (0: any free one)
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub port: u16,

    /// UDP port of the gradient connections to check (0: any free one)
    #[arg(long, value_name = "PORT", default_value_t = 0)]
    pub bulk_port: u16,
}

/// `p2ptrain swarm-key`.
#[derive(Clone, Debug, Args)]
pub struct SwarmKeyArgs {}

/// `p2ptrain ledger`.
#[derive(Clone, Debug, Args)]
pub struct LedgerArgs {
    /// A ledger, or a folder with some below it (default: the node's folder)
    #[arg(value_name = "FILE|FOLDER")]
    pub folder: Option<PathBuf>,
}

/// `p2ptrain completions`.
#[derive(Clone, Debug, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_enum, value_name = "SHELL")]
    pub shell: clap_complete::Shell,
}

/// `p2ptrain bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// What to measure
    #[arg(value_enum, value_name = "PART")]
    pub kind: BenchKind,

    /// The job file that is measured (default: a GPT of width 384, 6 layers, 8192 tokens, random data)
    #[arg(long, value_name = "JOB")]
    pub job: Option<PathBuf>,

    /// Steps to measure
    #[arg(long, value_name = "NUMBER", default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub steps: u32,

    /// Threads that compute (default: the cores that this process may use)
    #[arg(long, value_name = "NUMBER")]
    pub threads: Option<NonZeroUsize>,

    /// Arithmetic of matrix products, instead of the job's
    #[arg(long, value_enum, value_name = "PRECISION")]
    pub precision: Option<BenchPrecision>,

    /// Start from the weights in this safetensors file
    #[arg(long, value_name = "FILE")]
    pub init: Option<PathBuf>,

    /// Train on these tokens: 32-bit little-endian integers, global batch x (block size + 1) a step
    ///
    /// After the last step of the file comes its first again.
    #[arg(long, value_name = "FILE")]
    pub batches: Option<PathBuf>,

    /// Print the loss of every step, the first included; nothing is left out to warm up
    #[arg(long)]
    pub losses: bool,

    /// Write init.safetensors and batches.i32 into this folder, for --init and --batches of another
    /// trainer; implies --losses
    #[arg(long, value_name = "FOLDER")]
    pub dump: Option<PathBuf>,
}

/// `--precision` of `p2ptrain bench`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchPrecision {
    /// 32-bit floats.
    F32,
    /// Operands rounded to bfloat16.
    Bf16,
}

/// What `p2ptrain bench` measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum BenchKind {
    /// Training steps of one node.
    Step,
}

fn parse_temperature(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("a temperature is a number from 0 to 100".to_owned()),
    }
}

fn examples(lines: &str) -> String {
    format!("Examples:\n{lines}\n\n{EXIT_STATUS}")
}

fn examples_demo() -> String {
    examples(
        "  p2ptrain demo
  p2ptrain demo --seconds 20 --peers 2
  p2ptrain demo --data ~/texts --json

The nodes' folders, with logs and the checkpoint, lie in --dir (default: a demo folder in the data
folder). Exit status 1 also where the model did not learn or a sample was lost.",
    )
}

fn examples_run() -> String {
    examples(
        "  p2ptrain run job.toml
  p2ptrain run job.toml --swarm @$HOME/.swarm --port 4001 --bulk-port 4002
  p2ptrain run job.toml --threads 4 --memory 8G

Prints: the command for other machines, then the live display; on a pipe one line every few seconds
and at every event; with --json one object a line ({\"event\": ...} or {\"status\": ...}).
Ctrl-C leaves in good order, a second Ctrl-C ends at once.",
    )
}

fn examples_join() -> String {
    examples(
        "  p2ptrain join --swarm @$HOME/.swarm
  p2ptrain join --peer 192.168.1.20:4001 --swarm @$HOME/.swarm
  p2ptrain join --peer /ip4/192.168.1.20/tcp/4001/p2p/12D3KooW... --threads 2

Ctrl-C leaves in good order, a second Ctrl-C ends at once.",
    )
}

fn examples_resume() -> String {
    examples(
        "  p2ptrain resume
  p2ptrain resume ~/.local/share/p2ptrain/alice/checkpoints
  p2ptrain resume run/step-400 --swarm @$HOME/.swarm",
    )
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_a_manual_with_examples_and_exit_status() {
        let mut root = Cli::command();
        root.build();
        for command in root.get_subcommands_mut() {
            let name = command.get_name().to_owned();
            if name == "help" || command.is_hide_set() {
                continue;
            }
            let long = command.render_long_help().to_string();
            for part in ["Examples:", "Exit status:", &format!("p2ptrain {name}")] {
                assert!(long.contains(part), "{name} lacks {part:?}:\n{long}");
            }
            let short = command.render_help().to_string();
            assert!(short.len() < long.len() && !short.contains("Examples:"), "{name}:\n{short}");
        }
    }

    #[test]
    fn lists_take_several_values_and_repeat() {
        let cli = parse("p2ptrain join --peer a:1 b:2 --peer c:3 --name x --json").expect("valid");
        let Command::Join(args) = cli.command else { panic!("join was asked for") };
        assert_eq!(args.peer, ["a:1", "b:2", "c:3"]);
        assert_eq!((cli.global.node_name().as_str(), cli.global.json), ("x", true));
    }

    #[test]
    fn global_options_stand_before_or_after_the_command() {
        for line in ["p2ptrain --dir /d status", "p2ptrain status --dir /d"] {
            assert_eq!(parse(line).expect("valid").global.node_dir(), PathBuf::from("/d"));
        }
    }

    #[test]
    fn a_secret_and_an_allow_list_exclude_each_other() {
        let node = |line: &str| match parse(line).expect("valid").command {
            Command::Join(args) => args.node.swarm_secret(),
            other => panic!("join was asked for, not {other:?}"),
        };
        assert!(matches!(node("p2ptrain join --swarm x --allow y"), Err(SwarmSecretError::Both)));
        assert_eq!(node("p2ptrain join --swarm x").expect("given").as_deref(), Some("x"));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_status_2() {
        for line in [
            "p2ptrain run",
            "p2ptrain fly",
            "p2ptrain demo --peers 0",
            "p2ptrain demo --seconds 1",
            "p2ptrain join --threads 0",
            "p2ptrain join --memory lots",
            "p2ptrain run j --swarm a --swarm b",
            "p2ptrain generate --temperature -1",
            "p2ptrain status --name ../x",
            "p2ptrain export",
        ] {
            assert_eq!(parse(line).expect_err(line).exit_code(), 2, "{line}");
        }
    }
}
