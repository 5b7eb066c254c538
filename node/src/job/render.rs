//! [`JobFile`] → `job.toml`.

use std::fmt::Write;
use std::path::Path;

use super::spec::{
    DataFormat, DecayRule, JobFile, JobSpec, ModelSpec, OptimizerKind, Precision, ScheduleKind,
};

impl JobFile {
    /// The job file with every field written out; [`super::parse_str`] reads the same job back.
    ///
    /// Paths stay as they are here: with relative ones, keep the file in the folder they start at.
    pub fn to_toml(&self) -> String {
        let files = list(self.data.files.iter().map(|path| path_text(path)));
        let format = match self.data.format {
            DataFormat::Auto => "auto",
            DataFormat::Text => "text",
            DataFormat::Jsonl => "jsonl",
        };
        let field = quoted(&self.data.field);
        let data = format!("files = {files}\nformat = \"{format}\"\nfield = {field}\n");
        let path_line = |name: &str, path: Option<&Path>| match path {
            Some(path) => format!("{name} = {}\n", path_text(path)),
            None => String::new(),
        };
        let init = path_line("init", self.init.as_deref());
        let folder = path_line("folder", self.checkpoint_folder.as_deref());
        self.spec.render(&data, &init, &folder)
    }
}

impl JobSpec {
    /// What travels of a job, as TOML. It names no files, so [`super::parse_str`] asks for them.
    pub fn to_toml(&self) -> String {
        self.render("", "", "")
    }

    fn render(&self, data: &str, init: &str, folder: &str) -> String {
        let precision = match self.precision {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        };
        let mut out = format!(
            "name = {}\nsteps = {}\nclip = {}\nprecision = \"{precision}\"\nseed = {}\n\
             min_peers = {}\n",
            quoted(&self.name),
            self.steps,
            real(self.clip.unwrap_or(0.0)),
            self.seed,
            self.min_peers,
        );
        let ModelSpec::Gpt(gpt) = &self.model;
        add(
            &mut out,
            format_args!(
                "\n[model]\nkind = \"gpt\"\nvocab = {}\nblock_size = {}\nlayers = {}\nheads = {}\n\
                 width = {}\nbias = {}\ntied = {}\n{init}",
                gpt.vocab, gpt.block_size, gpt.layers, gpt.heads, gpt.width, gpt.bias, gpt.tied,
            ),
        );
        let held_out = real(f64::from(self.held_out_ppm) / 1e6);
        add(&mut out, format_args!("\n[data]\n{data}held_out = {held_out}\n"));
        if let Some(root) = self.data_root {
            add(&mut out, format_args!("root = \"{}\"\n", root.to_hex()));
        }
        let (global, micro) = (self.batch.global, self.batch.micro);
        add(&mut out, format_args!("\n[batch]\nglobal = {global}\nmicro = {micro}\n"));
        self.render_optimizer(&mut out);
        let kind = match self.schedule.kind {
            ScheduleKind::Constant => "constant",
            ScheduleKind::Linear => "linear",
            ScheduleKind::Cosine => "cosine",
        };
        let warmup = self.schedule.warmup;
        add(&mut out, format_args!("\n[schedule]\nkind = \"{kind}\"\nwarmup = {warmup}\n"));
        if self.schedule.kind != ScheduleKind::Constant {
            add(&mut out, format_args!("min_lr = {}\n", real(self.schedule.min_lr)));
        }
        let (eval, checkpoint) = (&self.eval, &self.checkpoint);
        add(
            &mut out,
            format_args!(
                "\n[eval]\nevery = {}\nbatches = {}\n\n[checkpoint]\nevery = {}\nkeep = {}\n{folder}",
                eval.every, eval.batches, checkpoint.every, checkpoint.keep,
            ),
        );
        out
    }

    fn render_optimizer(&self, out: &mut String) {
        let optimizer = &self.optimizer;
        add(out, format_args!("\n[optimizer]\n"));
        match optimizer.kind {
            OptimizerKind::AdamW { beta1, beta2, eps } => add(
                out,
                format_args!(
                    "kind = \"adamw\"\nbetas = [{}, {}]\neps = {}\n",
                    real(beta1),
                    real(beta2),
                    real(eps)
                ),
            ),
            OptimizerKind::Sgd { momentum, nesterov } => add(
                out,
                format_args!(
                    "kind = \"sgd\"\nmomentum = {}\nnesterov = {nesterov}\n",
                    real(momentum)
                ),
            ),
        }
        let decay = match optimizer.decay {
            DecayRule::Matrices => "matrices",
            DecayRule::All => "all",
        };
        add(
            out,
            format_args!(
                "lr = {}\nweight_decay = {}\ndecay = \"{decay}\"\nno_decay = {}\n",
                real(optimizer.lr),
                real(optimizer.weight_decay),
                list(optimizer.no_decay.iter().map(|pattern| quoted(pattern))),
            ),
        );
    }
}

fn add(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("writing into a string cannot fail");
}

/// The shortest decimal form that reads back to the same bits; TOML wants a point or an exponent.
fn real(value: f64) -> String {
    format!("{value:?}")
}

fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn path_text(path: &Path) -> String {
    quoted(&path.to_string_lossy())
}

fn list(items: impl Iterator<Item = String>) -> String {
    format!("[{}]", items.collect::<Vec<_>>().join(", "))
}
