//! What a link by NCCL takes of a GPU's memory, beside what NCCL itself takes.

use crate::agreement::small_exchange_bytes;
use crate::claims::table_len;
use crate::counted::Counted;
use crate::link::{Exchange, num_halves};
use chorale_cuda::{Cuda, Gpu, GpuError, Paper, groups_bytes};
use chorale_link::Place;
use std::sync::Arc;

/// Bytes of a link's buffers in the largest step of a place. `gathered_bytes` are
/// those of the widest columns that a group gathers, of all its ranks.
///
/// # Errors
///
/// [`GpuError`] never comes from paper.
pub fn link_bytes(place: &Place, gathered_bytes: usize) -> Result<u64, GpuError> {
    let paper = Paper::hopper();
    let mut device = Cuda::new(Arc::clone(&paper) as Arc<dyn Gpu>);
    let mut made = Vec::new();
    for half in 0..num_halves(place) {
        let mut exchange = Exchange::new(&mut device, place, half)?;
        if place.shape.tensor_parallel_size > 1 {
            exchange.parts(&mut device, gathered_bytes)?;
        }
        made.push(exchange);
    }
    let counted = Counted::new(&mut device, place.num_layers, place.num_experts)?;
    let tables = device.buffer(place.num_layers * table_len(place.shape, place.num_experts) * 4)?;
    let num_choices = place.max_arrivals() * place.top_k;
    let groups = place.num_layers * groups_bytes(num_choices, place.num_experts, place.num_experts);
    let bytes = paper.asked_bytes() + (groups + small_exchange_bytes(place)) as u64;
    drop((made, counted, tables));
    Ok(bytes)
}
