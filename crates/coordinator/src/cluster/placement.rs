//! Which rank holds which experts. Pure functions: the first placement spreads
//! experts by memory and speed, and a later one moves or copies a few of them
//! to where there is less to do.

use chorale_plan::{Placement, Rank};

/// What a rank can take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Capacity {
    /// Experts that its memory has room for, over all layers.
    pub(super) slots: u64,
    /// How fast it is beside others; at least 1.
    pub(super) speed: u64,
}

/// How many experts of each layer each rank is to hold: in proportion to speed,
/// as far as memory goes. `None` if there is no room for all.
pub(super) fn quotas(num_layers: u32, num_experts: u32, capacities: &[Capacity]) -> Option<Vec<u32>> {
    let room = |capacity: &Capacity| (capacity.slots / u64::from(num_layers)).min(u64::from(num_experts));
    let rooms: Vec<u64> = capacities.iter().map(room).collect();
    if rooms.iter().sum::<u64>() < u64::from(num_experts) {
        return None;
    }
    let mut quotas = vec![0u64; capacities.len()];
    // One after the other to the rank that would be done first with it: the
    // result is proportional, and full ranks leave the rest to the others.
    for _ in 0..num_experts {
        let open = (0..quotas.len()).filter(|&rank| quotas[rank] < rooms[rank]);
        let next = open.min_by(|&a, &b| {
            let time = |rank: usize| u128::from(quotas[rank] + 1);
            let speed = |rank: usize| u128::from(capacities[rank].speed.max(1));
            (time(a) * speed(b)).cmp(&(time(b) * speed(a)))
        })?;
        quotas[next] += 1;
    }
    Some(quotas.into_iter().map(|quota| quota as u32).collect())
}

/// The first placement of an epoch. `held[rank][layer]` are experts that a rank
/// has loaded already, perhaps nothing: it keeps what its quota allows.
pub(super) fn spread(num_layers: u32, num_experts: u32, quotas: &[u32], held: &[&[Vec<u32>]]) -> Placement {
    let layer = |layer: usize| {
        let mut holders: Vec<Option<usize>> = vec![None; num_experts as usize];
        let mut left = quotas.to_vec();
        for (rank, held) in held.iter().enumerate() {
            for &expert in held.get(layer).into_iter().flatten() {
                let Some(holder) = holders.get_mut(expert as usize) else { continue };
                if holder.is_none() && left[rank] > 0 {
                    *holder = Some(rank);
                    left[rank] -= 1;
                }
            }
        }
        let mut rest =
            left.iter().enumerate().flat_map(|(rank, &left)| std::iter::repeat_n(rank, left as usize));
        let holder = |holder: Option<usize>| holder.or_else(|| rest.next()).unwrap_or(0);
        holders.into_iter().map(holder).map(|rank| vec![Rank(rank as u32)]).collect()
    };
    Placement { version: 0, layers: (0..num_layers as usize).map(layer).collect() }
}

/// The time of the busiest rank over all layers, as a multiple of what it would
/// be if all were equally busy; 1 without any load. Copies share their rows.
pub(super) fn imbalance(placement: &Placement, loads: &[Vec<u64>], capacities: &[Capacity]) -> f64 {
    let total_speed: f64 = capacities.iter().map(|capacity| capacity.speed.max(1) as f64).sum();
    let (mut busiest, mut mean) = (0.0, 0.0);
    for (layer, loads) in placement.layers.iter().zip(loads) {
        let times = times(layer, loads, capacities);
        busiest += times.iter().copied().fold(0.0, f64::max);
        mean += loads.iter().map(|&load| load as f64).sum::<f64>() / total_speed;
    }
    if mean > 0.0 { busiest / mean } else { 1.0 }
}

/// How long each rank is busy with a layer.
fn times(layer: &[Vec<Rank>], loads: &[u64], capacities: &[Capacity]) -> Vec<f64> {
    let mut times = vec![0.0; capacities.len()];
    for (holders, &load) in layer.iter().zip(loads) {
        for rank in holders {
            let at = rank.0 as usize;
            times[at] += load as f64 / holders.len() as f64 / capacities[at].speed.max(1) as f64;
        }
    }
    times
}

/// What may change in a layer.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// The expert leaves the one for the other.
    Move { expert: usize, from: usize, to: usize },
    /// Another rank holds it, too.
    Copy { expert: usize, to: usize },
    /// Two ranks exchange experts.
    Swap { expert: usize, from: usize, other: usize, to: usize },
}

/// A better placement by few changes, with the next version; `None` if there is
/// none that is worth while. What a rank holds now and what it is to hold fit
/// into its memory together, so that it can load beside running steps.
pub(super) fn rebalance(
    placement: &Placement,
    loads: &[Vec<u64>],
    capacities: &[Capacity],
    max_changes: u32,
) -> Option<Placement> {
    let mut layers = placement.layers.clone();
    let mut free: Vec<u64> = capacities.iter().map(|capacity| capacity.slots).collect();
    for rank in placement.layers.iter().flatten().flatten() {
        let free = free.get_mut(rank.0 as usize)?;
        *free = free.saturating_sub(1);
    }
    // Layers are independent but for the memory: the best change of each stays
    // the best until its own layer changes, or the memory for it is gone.
    let best = |layer: &[Vec<Rank>], index: usize, free: &[u64]| {
        best_change(layer, &placement.layers[index], &loads[index], capacities, free)
    };
    if loads.len() != layers.len() {
        return None;
    }
    let mut found: Vec<Option<(f64, Change)>> =
        layers.iter().enumerate().map(|(index, layer)| best(layer, index, &free)).collect();
    let mut num_changes = 0;
    while num_changes < max_changes {
        let gain = |index: &usize| found[*index].map_or(0.0, |(gain, _)| gain);
        let Some(index) = (0..found.len()).max_by(|a, b| gain(a).total_cmp(&gain(b)).then(b.cmp(a))) else {
            break;
        };
        let Some((_, change)) = found[index] else { break };
        if take_slots(change, &placement.layers[index], &mut free) {
            apply(&mut layers[index], change);
            num_changes += 1;
        }
        found[index] = best(&layers[index], index, &free);
    }
    let next = Placement { version: placement.version + 1, layers };
    let is_better = imbalance(&next, loads, capacities) < imbalance(placement, loads, capacities);
    (num_changes > 0 && is_better).then_some(next)
}

/// Experts of the busiest rank that are considered, the busiest first, and
/// ranks for each, the idlest first.
const MAX_CONSIDERED: usize = 8;

/// A change is worth while if the layer's busiest rank saves this share of the
/// mean time.
const MIN_GAIN: f64 = 0.02;

fn best_change(
    layer: &[Vec<Rank>],
    before: &[Vec<Rank>],
    loads: &[u64],
    capacities: &[Capacity],
    free: &[u64],
) -> Option<(f64, Change)> {
    let times = times(layer, loads, capacities);
    let by_time = |a: &usize, b: &usize| times[*a].total_cmp(&times[*b]).then(b.cmp(a));
    let hot = (0..times.len()).max_by(by_time)?;
    let mean = times.iter().sum::<f64>() / times.len() as f64;
    let holds = |rank: usize, expert: usize| layer[expert].contains(&Rank(rank as u32));
    let takes = |rank: usize, expert: usize| free[rank] > 0 || before[expert].contains(&Rank(rank as u32));
    let mut heaviest: Vec<usize> = (0..layer.len()).filter(|&expert| holds(hot, expert)).collect();
    let share = |expert: usize| loads[expert] as f64 / layer[expert].len() as f64;
    heaviest.sort_by(|a, b| share(*b).total_cmp(&share(*a)).then(a.cmp(b)));
    heaviest.truncate(MAX_CONSIDERED);

    let mut best: Option<(f64, Change)> = None;
    let mut consider = |change: Change| {
        let after = times_after(change, layer, loads, capacities, &times).into_iter().fold(0.0, f64::max);
        let gain = times[hot] - after;
        if gain > MIN_GAIN * mean && best.is_none_or(|(best, _)| gain > best * 1.001) {
            best = Some((gain, change));
        }
    };
    let mut coldest: Vec<usize> = (0..times.len()).filter(|&rank| times[rank] < times[hot]).collect();
    coldest.sort_by(by_time);
    coldest.truncate(MAX_CONSIDERED);
    for &expert in &heaviest {
        for &to in coldest.iter().filter(|&&to| !holds(to, expert)) {
            if takes(to, expert) {
                consider(Change::Move { expert, from: hot, to });
                consider(Change::Copy { expert, to });
            }
            // The lightest of the other rank in exchange, if memory is short there.
            let lightest = (0..layer.len())
                .filter(|&other| holds(to, other) && !holds(hot, other))
                .min_by(|a, b| share(*a).total_cmp(&share(*b)).then(a.cmp(b)));
            if let Some(other) = lightest
                && takes(to, expert)
                && takes(hot, other)
            {
                consider(Change::Swap { expert, from: hot, other, to });
            }
        }
    }
    best
}

/// How long each rank is busy with the layer after a change.
fn times_after(
    change: Change,
    layer: &[Vec<Rank>],
    loads: &[u64],
    capacities: &[Capacity],
    times: &[f64],
) -> Vec<f64> {
    let mut times = times.to_vec();
    let mut count = |expert: usize, holders: &[Rank], sign: f64| {
        for rank in holders {
            let speed = capacities[rank.0 as usize].speed.max(1) as f64;
            times[rank.0 as usize] += sign * loads[expert] as f64 / holders.len() as f64 / speed;
        }
    };
    let mut replace = |expert: usize, from: Option<usize>, to: usize| {
        count(expert, &layer[expert], -1.0);
        let stays = |rank: &Rank| Some(rank.0 as usize) != from;
        let mut holders: Vec<Rank> = layer[expert].iter().copied().filter(stays).collect();
        holders.push(Rank(to as u32));
        count(expert, &holders, 1.0);
    };
    match change {
        Change::Move { expert, from, to } => replace(expert, Some(from), to),
        Change::Copy { expert, to } => replace(expert, None, to),
        Change::Swap { expert, from, other, to } => {
            replace(expert, Some(from), to);
            replace(other, Some(to), from);
        }
    }
    times
}

/// Takes the memory for a change; false if it is gone.
fn take_slots(change: Change, before: &[Vec<Rank>], free: &mut [u64]) -> bool {
    let (first, second) = match change {
        Change::Move { expert, to, .. } | Change::Copy { expert, to } => ((expert, to), None),
        Change::Swap { expert, from, other, to } => ((expert, to), Some((other, from))),
    };
    let is_new = |&(expert, rank): &(usize, usize)| !before[expert].contains(&Rank(rank as u32));
    let needed: Vec<_> = [Some(first), second].into_iter().flatten().filter(is_new).collect();
    if needed.iter().any(|&(_, rank)| free[rank] == 0) {
        return false;
    }
    needed.into_iter().for_each(|(_, rank)| free[rank] -= 1);
    true
}

fn apply(layer: &mut [Vec<Rank>], change: Change) {
    let mut add = |expert: usize, rank: usize| {
        let rank = Rank(rank as u32);
        if let Err(at) = layer[expert].binary_search(&rank) {
            layer[expert].insert(at, rank);
        }
    };
    match change {
        Change::Move { expert, to, .. } | Change::Copy { expert, to } => add(expert, to),
        Change::Swap { expert, from, other, to } => {
            add(expert, to);
            add(other, from);
        }
    }
    let mut remove = |expert: usize, rank: usize| layer[expert].retain(|holder| holder.0 as usize != rank);
    match change {
        Change::Copy { .. } => {}
        Change::Move { expert, from, .. } => remove(expert, from),
        Change::Swap { expert, from, other, to } => {
            remove(expert, from);
            remove(other, to);
        }
    }
}

#[cfg(test)]
mod tests;
