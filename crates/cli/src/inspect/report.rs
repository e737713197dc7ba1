//! A model's budget for people and for programs. Figures are rounded for
//! people only.

use super::Inspected;
use super::gpus::Gpus;
use crate::units::{show_bytes, show_count};
use chorale_model::budget::{Budget, ByPart, Part, RankBudget, RanksNeeded, Shortage, StepFloor};
use chorale_model::checkpoint::Layout;
use chorale_model::config::ModelConfig;
use serde::Serialize;
use std::fmt::{self, Write};

/// One JSON object, with a line end.
pub(super) fn json(model: &Inspected, budget: &Budget, gpus: Option<&Gpus>) -> serde_json::Result<String> {
    #[derive(Serialize)]
    struct Report<'a> {
        model: &'a str,
        directory: String,
        /// `null` where only the config was there to be read.
        weights: Option<&'static str>,
        config: Geometry<'a>,
        #[serde(flatten)]
        budget: &'a Budget,
        /// `null` where GPUs do not compute the model.
        gpus: Option<&'a Gpus>,
    }
    let report = Report {
        model: &model.name,
        directory: model.directory.display().to_string(),
        weights: model.layout.map(layout_name),
        config: Geometry::of(&model.config),
        budget,
        gpus,
    };
    Ok(format!("{}\n", serde_json::to_string_pretty(&report)?))
}

fn layout_name(layout: Layout) -> &'static str {
    match layout {
        Layout::HuggingFace => "hugging-face",
        Layout::Original => "original",
    }
}

/// A model's geometry and constants, with the names that `config.json` has.
#[derive(Serialize)]
struct Geometry<'a> {
    num_layers: usize,
    hidden_size: usize,
    intermediate_size: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    head_dim: usize,
    num_experts: usize,
    experts_per_token: usize,
    vocab_size: usize,
    windows: &'a [Option<u32>],
    rope_theta: f64,
    rope_yarn_factor: Option<f64>,
    swiglu_limit: f32,
    rms_norm_eps: f32,
    attention_bias: bool,
    tie_word_embeddings: bool,
    max_position_embeddings: usize,
    eos_token_ids: &'a [u32],
}

impl<'a> Geometry<'a> {
    fn of(config: &'a ModelConfig) -> Self {
        Self {
            num_layers: config.num_layers(),
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            num_key_value_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            num_experts: config.num_experts,
            experts_per_token: config.experts_per_token,
            vocab_size: config.vocab_size,
            windows: &config.windows,
            rope_theta: config.rope.theta,
            rope_yarn_factor: config.rope.yarn.map(|yarn| yarn.factor),
            swiglu_limit: config.swiglu_limit,
            rms_norm_eps: config.rms_norm_eps,
            attention_bias: config.attention_bias,
            tie_word_embeddings: config.tie_word_embeddings,
            max_position_embeddings: config.max_position_embeddings,
            eos_token_ids: &config.eos_token_ids,
        }
    }
}

/// Tables for a terminal.
pub(super) fn text(model: &Inspected, budget: &Budget, gpus: Option<&Gpus>) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write_text(&mut out, model, budget, gpus);
    out
}

fn write_text(out: &mut String, model: &Inspected, budget: &Budget, gpus: Option<&Gpus>) -> fmt::Result {
    write_model(out, model)?;
    write_parts(out, budget)?;
    write_kv(out, &model.config, budget)?;
    write_ranks(out, &budget.ranks)?;
    if let Some(gpus) = gpus {
        write_gpus(out, gpus)?;
    }
    write_fit(out, budget, gpus)?;
    write_decode(out, &budget.decode)
}

fn write_model(out: &mut String, model: &Inspected) -> fmt::Result {
    let Inspected { name, directory, config, layout } = model;
    writeln!(out, "{name}")?;
    writeln!(out, "  directory   {}", directory.display())?;
    match layout {
        Some(layout) => {
            writeln!(
                out,
                "  weights     {} layout; every tensor is there and of the right shape",
                layout_name(*layout)
            )?;
        }
        None => writeln!(out, "  weights     not here; the figures are those of config.json")?,
    }
    let num_sliding = config.windows.iter().flatten().count();
    let window = config.windows.iter().flatten().max().copied().unwrap_or(0);
    writeln!(
        out,
        "  layers      {}: {} full, {num_sliding} sliding over {window} tokens",
        config.num_layers(),
        config.num_layers() - num_sliding
    )?;
    writeln!(
        out,
        "  attention   {} query heads and {} key/value heads of {}, hidden size {}",
        config.num_attention_heads, config.num_key_value_heads, config.head_dim, config.hidden_size
    )?;
    writeln!(
        out,
        "  experts     {} of size {}, {} for each token",
        config.num_experts, config.intermediate_size, config.experts_per_token
    )?;
    writeln!(out, "  vocabulary  {} tokens, {} positions", config.vocab_size, config.max_position_embeddings)
}

fn part_name(part: Part) -> &'static str {
    match part {
        Part::Embedding => "embedding",
        Part::Attention => "attention",
        Part::Router => "router",
        Part::Experts => "experts (MXFP4)",
        Part::Vectors => "norms, biases, sinks",
        Part::Head => "output matrix",
    }
}

fn write_parts(out: &mut String, budget: &Budget) -> fmt::Result {
    let (parameters, dense) = (&budget.parameters, budget.dense_dtype.name());
    writeln!(out, "\n{:<22}  {:>12}  {:>12}", "part", "parameters", "bytes")?;
    for part in Part::ALL {
        let (count, bytes) = (parameters.by_part.get(part), budget.weight_bytes.by_part.get(part));
        let name = match part {
            Part::Attention | Part::Head => format!("{} ({dense})", part_name(part)),
            _ => part_name(part).to_owned(),
        };
        write_part(out, &name, count, bytes)?;
    }
    write_part(out, "all", parameters.total, budget.weight_bytes.total)?;
    writeln!(out, "{:<22}  {:>12}", "met by one token", show_count(parameters.active))
}

fn write_part(out: &mut String, name: &str, count: u64, bytes: u64) -> fmt::Result {
    writeln!(out, "{name:<22}  {:>12}  {:>12}", show_count(count), show_bytes(bytes as f64))
}

fn write_kv(out: &mut String, config: &ModelConfig, budget: &Budget) -> fmt::Result {
    let kv = &budget.kv;
    let num_sliding = config.windows.iter().flatten().count();
    let num_full = config.num_layers() - num_sliding;
    writeln!(out, "\nKV cache, {}", kv.dtype.name())?;
    writeln!(
        out,
        "  growing     {} B for each token ({num_full} full layers)",
        kv.full_layer_bytes_per_token
    )?;
    writeln!(
        out,
        "  fixed       {} for each sequence ({num_sliding} sliding layers)",
        show_bytes(kv.sliding_layer_bytes_per_sequence as f64)
    )
}

fn write_ranks(out: &mut String, ranks: &[RankBudget]) -> fmt::Result {
    write!(out, "\n{:<10}  {:>8}  {:>8}", "rank", "kv heads", "experts")?;
    for name in ["embedding", "attention", "router", "experts", "vectors", "output", "weights", "workspace"] {
        write!(out, "  {name:>10}")?;
    }
    writeln!(out, "  {:>10}", "KV B/token")?;
    for alike in ranks.chunk_by(holds_as_much) {
        let (Some(first), Some(last)) = (alike.first(), alike.last()) else {
            continue;
        };
        let numbers =
            if alike.len() == 1 { first.rank.to_string() } else { format!("{}-{}", first.rank, last.rank) };
        write!(out, "{numbers:<10}  {:>8}  {:>8}", first.kv_heads.len(), first.experts.len())?;
        let ByPart { embedding, attention, router, experts, vectors, head } = first.weight_bytes.by_part;
        let parts = [embedding, attention, router, experts, vectors, head];
        for bytes in parts.into_iter().chain([first.weight_bytes.total, first.workspace_bytes]) {
            write!(out, "  {:>10}", show_bytes(bytes as f64))?;
        }
        writeln!(out, "  {:>10}", first.kv.full_layer_bytes_per_token)?;
    }
    Ok(())
}

fn write_gpus(out: &mut String, gpus: &Gpus) -> fmt::Result {
    let Gpus { max_num_seqs, max_batch_tokens, ranks, .. } = gpus;
    writeln!(
        out,
        "\non GPUs, before the KV cache, with --max-num-seqs {max_num_seqs} and --max-batch-tokens {max_batch_tokens}"
    )?;
    write!(out, "{:<10}", "rank")?;
    for name in ["dense", "experts", "steps", "exchange", "all"] {
        write!(out, "  {name:>10}")?;
    }
    writeln!(out)?;
    let mut first = 0;
    for alike in ranks.chunk_by(PartialEq::eq) {
        let last = first + alike.len() - 1;
        let numbers = if first == last { first.to_string() } else { format!("{first}-{last}") };
        write!(out, "{numbers:<10}")?;
        let rank = &alike[0];
        for bytes in [rank.dense_bytes, rank.expert_bytes, rank.step_bytes, rank.exchange_bytes, rank.total()]
        {
            write!(out, "  {:>10}", show_bytes(bytes as f64))?;
        }
        writeln!(out)?;
        first = last + 1;
    }
    Ok(())
}

fn holds_as_much(one: &RankBudget, other: &RankBudget) -> bool {
    one.weight_bytes == other.weight_bytes && one.kv == other.kv && one.fit == other.fit
}

fn write_fit(out: &mut String, budget: &Budget, gpus: Option<&Gpus>) -> fmt::Result {
    let Some(memory) = budget.ranks.iter().find_map(|rank| Some(rank.fit.as_ref()?.device_memory_bytes))
    else {
        return Ok(());
    };
    let gib = memory as f64 / f64::from(1 << 30);
    let memory = show_bytes(memory as f64);
    write!(out, "\n{gib:.2} GiB ({memory}) on each rank, one sequence of {} tokens", budget.max_model_len)?;
    match gpus {
        None => writeln!(out)?,
        Some(gpus) => writeln!(
            out,
            " and the windows of {}; {:.2} GiB are left to the driver, graphs and NCCL",
            gpus.max_num_seqs,
            gpus.reserved_bytes as f64 / f64::from(1 << 30)
        )?,
    }
    let short = budget.ranks.iter().find_map(|rank| Some((rank.rank, rank.fit.as_ref()?.shortage.as_ref()?)));
    match short {
        None => writeln!(out, "  fits")?,
        Some((rank, shortage)) => writeln!(out, "  does not fit: rank {rank}: {}", describe(shortage))?,
    }
    if let Some(num_tokens) = budget.num_kv_tokens {
        let num_groups = budget.world.data_parallel_size;
        let groups = plural(num_groups, "group");
        writeln!(out, "  room for {num_tokens} tokens in the KV cache of {num_groups} {groups}")?;
    }
    match &budget.ranks_needed {
        None => Ok(()),
        Some(RanksNeeded::Enough { num_ranks, world }) => writeln!(
            out,
            "  needs {num_ranks} {}: tensor parallel size {}, data parallel size {}",
            plural(*num_ranks, "rank"),
            world.tensor_parallel_size,
            world.data_parallel_size
        ),
        Some(RanksNeeded::Never { shortage }) => {
            writeln!(out, "  no number of ranks suffices: {}", describe(shortage))
        }
    }
}

fn plural(count: usize, noun: &str) -> String {
    if count == 1 { noun.to_owned() } else { format!("{noun}s") }
}

/// Memory goes to weights, workspace and pages in this order.
fn describe(shortage: &Shortage) -> String {
    let show = |bytes: &u64| show_bytes(*bytes as f64);
    match shortage {
        Shortage::Weights { needed_bytes, available_bytes } => {
            format!("weights take {}, the device has {}", show(needed_bytes), show(available_bytes))
        }
        Shortage::Workspace { needed_bytes, available_bytes } => {
            format!("the workspace takes {}, weights leave {}", show(needed_bytes), show(available_bytes))
        }
        Shortage::Kv { needed_bytes, available_bytes, num_tokens } => format!(
            "the KV cache of one sequence of {num_tokens} tokens takes {}, weights and workspace leave {}",
            show(needed_bytes),
            show(available_bytes)
        ),
    }
}

fn write_decode(out: &mut String, decode: &[StepFloor]) -> fmt::Result {
    writeln!(out, "\ndecode: what the busiest rank reads at least, if tokens choose experts uniformly")?;
    writeln!(out, "{:>6}  {:>8}  {:>12}  {:>10}", "batch", "experts", "bytes/step", "tok/s")?;
    for step in decode {
        let rate = step.tokens_per_s.map_or_else(|| "-".to_owned(), |rate| format!("{rate:.1}"));
        let bytes = show_bytes(step.bytes_per_step);
        writeln!(out, "{:>6}  {:>8.1}  {bytes:>12}  {rate:>10}", step.batch_size, step.distinct_experts)?;
    }
    Ok(())
}
