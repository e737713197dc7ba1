//! One layer's weights on one rank, as views of the checkpoint's files. They
//! are named, so that a loader can touch their pages and report progress; what
//! becomes of them is the device's business.

use bytes::Bytes;
use chorale_device::{DensePart, DenseSource, ExpertsSource, Mxfp4Source};

/// The weights of one layer on a rank that runs attention.
#[derive(Clone, Debug)]
pub struct LayerSource {
    /// Gain of the norm before attention, whole.
    pub input_norm: Bytes,
    /// The rank's rows of q, then k, then v: three parts in either layout.
    pub qkv: DenseSource,
    /// One logit for each of the rank's query heads.
    pub sinks: Bytes,
    /// The rank's output rows; its inputs are the heads of the whole group.
    pub output: DenseSource,
    /// Gain of the norm before the experts, whole.
    pub post_norm: Bytes,
    /// All experts' rows.
    pub router: DenseSource,
    /// The rank's experts.
    pub experts: ExpertsSource,
}

impl LayerSource {
    /// All views with what they are, in the order in which a step reads them.
    pub fn views(&self) -> Vec<(&'static str, &Bytes)> {
        let mut views = vec![("input_norm", &self.input_norm)];
        views.extend(dense_views("qkv.weight", "qkv.bias", &self.qkv));
        views.push(("sinks", &self.sinks));
        views.extend(dense_views("output.weight", "output.bias", &self.output));
        views.push(("post_norm", &self.post_norm));
        views.extend(dense_views("router.weight", "router.bias", &self.router));
        views.extend(expert_views(&self.experts));
        views
    }

    /// Bytes of all views.
    pub fn num_bytes(&self) -> u64 {
        num_bytes(&self.views())
    }
}

/// All views of a dense matrix with what they are.
pub fn dense_views<'a>(
    weight: &'static str,
    bias: &'static str,
    source: &'a DenseSource,
) -> impl Iterator<Item = (&'static str, &'a Bytes)> {
    source.parts.iter().flat_map(move |part: &DensePart| {
        std::iter::once((weight, &part.weight)).chain(part.bias.iter().map(move |bytes| (bias, bytes)))
    })
}

/// All views of a rank's experts with what they are.
pub fn expert_views(source: &ExpertsSource) -> impl Iterator<Item = (&'static str, &Bytes)> {
    mxfp4_views(["gate_up.blocks", "gate_up.scales", "gate_up.bias"], &source.gate_up)
        .chain(mxfp4_views(["down.blocks", "down.scales", "down.bias"], &source.down))
}

fn mxfp4_views<'a>(
    [blocks, scales, bias]: [&'static str; 3],
    source: &'a Mxfp4Source,
) -> impl Iterator<Item = (&'static str, &'a Bytes)> {
    source.experts.iter().flat_map(move |part| {
        [(blocks, &part.blocks), (scales, &part.scales)]
            .into_iter()
            .chain(part.bias.iter().map(move |bytes| (bias, bytes)))
    })
}

/// Bytes of some views.
pub fn num_bytes(views: &[(&'static str, &Bytes)]) -> u64 {
    views.iter().map(|(_, bytes)| bytes.len() as u64).sum()
}
