//! Which choices this rank computes, as tables for the GPU: for each home and
//! expert whether the expert is here, and, where it has copies, which of the
//! home's rows are this rank's. The rule is the one by which frames are sent.

use chorale_cuda::claim;
use chorale_link::Layout;
use chorale_plan::{Placement, Rank, Shape};

/// Words of the table of one layer.
pub(crate) fn table_len(shape: Shape, num_experts: usize) -> usize {
    shape.data_parallel_size as usize * num_experts
}

/// The tables of all layers, one after the other.
pub(crate) fn tables(shape: Shape, rank: Rank, placement: &Placement) -> Vec<u32> {
    let mut words = Vec::new();
    for experts in &placement.layers {
        for home in shape.homes() {
            let layout = Layout::new(shape, home);
            words.extend(experts.iter().map(|holders| word(&layout, rank, holders)));
        }
    }
    words
}

/// Copies take rows in turn: which turn is this rank's shows in the first rows.
fn word(layout: &Layout, rank: Rank, holders: &[Rank]) -> u32 {
    let runs = |row: usize| layout.runner(holders, row) == rank;
    let Some(turn) = (0..holders.len()).find(|&row| runs(row)) else { return 0 };
    let next = (turn + 1..=turn + holders.len()).find(|&row| runs(row));
    let num_copies = next.map_or(1, |next| next - turn);
    claim(num_copies as u32, turn as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_of_each_home_is_claimed_by_the_rank_that_frames_would_go_to() {
        let shape = Shape { tensor_parallel_size: 2, data_parallel_size: 2, num_ranks: 6 };
        // Every set of ranks holds an expert.
        let holders: Vec<Vec<Rank>> =
            (1u32..64).map(|set| shape.ranks().filter(|rank| set >> rank.0 & 1 == 1).collect()).collect();
        let placement = Placement { version: 0, layers: vec![holders.clone(); 2] };
        let tables: Vec<Vec<u32>> = shape.ranks().map(|rank| tables(shape, rank, &placement)).collect();
        for (home_index, home) in shape.homes().enumerate() {
            for (expert, holders) in holders.iter().enumerate() {
                for row in 0..70 {
                    let at = table_len(shape, 63) + home_index * 63 + expert;
                    let claims = |table: &&Vec<u32>| {
                        let (copies, turn) = (table[at] & 0xffff, table[at] >> 16);
                        copies != 0 && row % copies == turn
                    };
                    assert_eq!(tables.iter().filter(claims).count(), 1);
                    let rank = Rank(tables.iter().position(|table| claims(&table)).unwrap_or(99) as u32);
                    assert_eq!(rank, Layout::new(shape, home).runner(holders, row as usize));
                }
            }
        }
    }
}
