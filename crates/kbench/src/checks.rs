//! The checks, by family, each with a name that says what must hold.

mod attention;
mod decoding;
mod draws;
mod experts;
mod host;
mod int8;
mod layer;
mod nothing;
mod portable;
mod rows;

use crate::demands::Demands;
use crate::failure::{Failure, Outcome};
use crate::reference::{Rows, to_f32};
use chorale_device::{
    BatchLimits, Columns, Device, Draw, KvDtype, KvShape, Precision, RopeParams, SliceColumns, Table,
};
use std::panic::{AssertUnwindSafe, catch_unwind};

type Run<D> = fn(&mut D, &Demands) -> Outcome;

/// Something that must hold of a device.
pub struct Check<D> {
    /// What must hold.
    pub name: &'static str,
    run: Run<D>,
}

impl<D: Device> Check<D> {
    /// Runs it. A device that panics, as it does at arguments that it takes
    /// for misshapen, fails the check.
    pub fn run(&self, device: &mut D, demands: &Demands) -> Outcome {
        let run = || device.enter(|device| (self.run)(device, demands));
        catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| Err(Failure::of_panic(&*panic)))
    }
}

/// Checks of one kind of operations.
pub struct Family<D> {
    /// What they are about.
    pub name: &'static str,
    /// In order of what they assume.
    pub checks: Vec<Check<D>>,
}

/// All checks.
pub fn families<D: Device>() -> Vec<Family<D>> {
    let family = |name, checks: &[(&'static str, Run<D>)]| Family {
        name,
        checks: checks.iter().map(|&(name, run)| Check { name, run }).collect(),
    };
    vec![
        family(
            "host",
            &[
                ("what the host writes reads back", host::writes_and_reads::<D>),
                ("a list of choices gives what a routing gives", host::lists_of_choices),
                ("experts that stay are not packed again, and others join them", host::regroups),
            ],
        ),
        family(
            "rows",
            &[
                ("embeddings are looked up", rows::embeddings::<D>),
                ("norms agree with plain loops", rows::norms),
                ("a row of zeros norms to zeros", rows::norm_of_zeros),
                ("projections agree with plain loops", rows::projections),
                ("products of few rows and of many agree with plain loops", rows::crowds),
                ("a row gets the same in any company", rows::company),
                ("the router chooses by logit and weighs by softmax", rows::router),
                ("equal logits go to the lowest expert", rows::router_ties),
                ("the head answers the wanted rows and samples feed the next step", rows::head),
            ],
        ),
        family(
            "attention",
            &[
                ("queries are rotated at any position", attention::queries::<D>),
                ("values come through where there is one key", attention::single_keys),
                ("attention agrees with plain loops", attention::whole_sequences),
                ("any split into slices and pages gives the same", attention::splits),
                ("sequences of one step do not mix", attention::companies),
                ("long sequences are prefilled and decoded", attention::long_sequences),
                ("FP8 rows of any size are kept as the portable device keeps them", attention::fp8_rows),
                ("attention over FP8 keys and values agrees with plain loops", attention::fp8_cases),
            ],
        ),
        family(
            "experts",
            &[
                ("every code under every scale is multiplied exactly", decoding::codes::<D>),
                ("experts and combine agree with plain loops", experts::layers),
                ("experts spread over two devices give the same", experts::spread),
                ("a crowd at one expert and nobody at others", experts::crowds),
            ],
        ),
        family(
            "draws",
            &[
                ("greedy draws take the largest logit, the lowest token of equals", draws::greedy_draws::<D>),
                ("draws are the portable device's", draws::portable),
                ("what was fetched is what was drawn by then", draws::fetches),
                ("log-probabilities are reported", draws::logprobs),
            ],
        ),
        family(
            "nothing",
            &[
                ("every operation takes no rows", nothing::no_rows::<D>),
                ("a layer without experts runs", nothing::no_experts),
            ],
        ),
        family(
            "portable",
            &[
                ("operations of random shapes agree with the portable device", portable::operations::<D>),
                ("gpt-oss's own matrices agree with the portable device", portable::gpt_oss),
                (
                    "queries, keys and values of eight-bit weights agree with the portable device",
                    int8::layers,
                ),
                ("a whole layer agrees with the portable device", layer::layers),
            ],
        ),
    ]
}

/// Batches with room for so many of everything.
fn limits(rows: usize) -> BatchLimits {
    BatchLimits { max_rows: rows, max_slices: rows, max_logit_rows: rows }
}

/// For batches whose tables name no pages.
fn no_pages(demands: &Demands) -> (RopeParams, KvShape) {
    let head_dim = demands.head_dims[0];
    let shape = KvShape {
        windows: Vec::new(),
        num_query_heads: 1,
        num_kv_heads: 1,
        head_dim,
        dtype: KvDtype::Bf16,
        block_size: 16,
        num_full_blocks: 0,
        num_sliding_blocks: 0,
    };
    (demands.rope(head_dim), shape)
}

/// A batch that looks up row `r` of a table as token `r`.
fn columns(num_rows: usize) -> Columns {
    let rows = 0..num_rows as u32;
    Columns {
        tokens: rows.clone().collect(),
        positions: rows.clone().collect(),
        slices: vec![SliceColumns { rows, full: Table::default(), sliding: Table::default() }],
        ..Columns::default()
    }
}

/// Puts rows on the device.
fn upload<D: Device>(device: &mut D, rows: &Rows, precision: Precision) -> Result<D::Matrix, D::Error> {
    let mut matrix = device.matrix(rows.len(), rows[0].len(), precision)?;
    device.write(&to_f32(rows), &mut matrix)?;
    Ok(matrix)
}

fn greedy() -> Draw {
    Draw {
        temperature: 0.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        allowed: None,
        bias: Vec::new(),
        penalties: None,
        seed: 0,
        position: 0,
        num_logprobs: None,
    }
}
