//! Who gets which place: from the workers that there are to a shape, their
//! ranks, quotas of experts and rooms, or what is lacking. A pure function.

use super::MemberId;
use super::config::{ClusterConfig, ModelFacts};
use super::placement::{Capacity, quotas};
use chorale_plan::{KvFormat, Rank, Room, Shape};

/// A worker that could take a place. In the order in which they came.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    pub(super) member: MemberId,
    pub(super) memory_bytes: u64,
    /// Of its host, for experts alone.
    pub(super) host_expert_bytes: u64,
    pub(super) speed: u64,
    pub(super) experts_only: bool,
    /// The rank that it had, and the size of a group then.
    pub(super) before: Option<(Rank, u32)>,
    /// How it can keep keys and values, its own choice first.
    pub(super) kv_dtypes: Vec<KvFormat>,
}

impl Candidate {
    /// How it keeps keys and values where no other rank has a say.
    fn own_kv(&self, config: &ClusterConfig) -> KvFormat {
        config.kv_dtype.or(self.kv_dtypes.first().copied()).unwrap_or_default()
    }
}

/// How a group keeps keys and values: the widest that all of its ranks can, and
/// that is no wider than what any of them would choose and has memory for.
fn group_kv(config: &ClusterConfig, group: &[&Candidate]) -> Option<KvFormat> {
    let widest = group.iter().map(|candidate| candidate.own_kv(config)).min()?;
    let is_kept = |kv: &KvFormat| {
        *kv <= widest
            && (config.kv_dtype.is_some() || group.iter().all(|candidate| candidate.kv_dtypes.contains(kv)))
    };
    KvFormat::ALL.into_iter().rev().find(is_kept)
}

/// A world on paper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub(super) shape: Shape,
    /// By rank.
    pub(super) members: Vec<MemberId>,
    /// Experts of each layer, by rank.
    pub(super) quotas: Vec<u32>,
    /// Room for steps and pages, by rank.
    pub(super) rooms: Vec<Room>,
    /// What each rank can take beside its pages, by rank.
    pub(super) capacities: Vec<Capacity>,
}

impl Draft {
    /// The room of each group.
    pub(super) fn homes(&self) -> impl Iterator<Item = &Room> {
        self.shape.homes().filter_map(|rank| self.rooms.get(rank.0 as usize))
    }

    /// What the busiest rank has to read for each row of experts, in units of its own.
    pub(super) fn busiest(&self) -> f64 {
        let times = self.quotas.iter().zip(&self.capacities);
        let time = |(quota, capacity): (&u32, &Capacity)| f64::from(*quota) / capacity.speed.max(1) as f64;
        times.map(time).fold(0.0, f64::max)
    }
}

/// Why there is no world: what workers would have to bring.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lack {
    /// What is lacking, for people.
    pub reason: String,
    /// Workers that are lacking, at least.
    pub num_workers: u32,
    /// Memory that is lacking.
    pub bytes: u64,
}

/// The best world that these workers can make: the widest split, then the most
/// groups, no more of either than is wanted.
pub(super) fn draft(config: &ClusterConfig, candidates: &[Candidate]) -> Result<Draft, Lack> {
    let least = |size: u32, candidate: &Candidate| {
        let split = config.split(size);
        split.dense_bytes + config.rooms.reserved_bytes(split, candidate.own_kv(config))
    };
    let mut lack: Option<Lack> = None;
    for size in (1..=config.tensor_parallel_size).rev() {
        let able: Vec<&Candidate> = candidates
            .iter()
            .filter(|candidate| !candidate.experts_only && candidate.memory_bytes >= least(size, candidate))
            .collect();
        let num_groups = (able.len() as u32 / size).min(config.data_parallel_size);
        if num_groups == 0 {
            let least = |candidate: &Candidate| least(size, candidate);
            lack.get_or_insert_with(|| attention_lack(size, least, candidates, able.len() as u32));
        }
        for num_groups in (1..=num_groups).rev() {
            match assign(config, size, num_groups, &able, candidates) {
                Ok(draft) => return Ok(draft),
                // Of all that does not fit, what is nearest to fit.
                Err(found)
                    if lack.as_ref().is_none_or(|lack| lack.num_workers > 0 || found.bytes < lack.bytes) =>
                {
                    lack = Some(found);
                }
                Err(_) => {}
            }
        }
    }
    Err(lack.unwrap_or(Lack { reason: "no worker is here".to_owned(), num_workers: 1, bytes: 0 }))
}

fn attention_lack(
    size: u32,
    least: impl Fn(&Candidate) -> u64,
    candidates: &[Candidate],
    num_able: u32,
) -> Lack {
    let most = candidates.iter().filter(|one| !one.experts_only).max_by_key(|one| one.memory_bytes);
    let reason = match most {
        None => format!("no worker that takes attention is here; {size} would be one group"),
        Some(most) if num_able == 0 => format!(
            "a rank of a group of {size} needs {} MiB for its dense weights and its pages, and the largest \
             worker has {} MiB",
            mib(least(most)),
            mib(most.memory_bytes)
        ),
        Some(_) => format!("{num_able} of the {size} ranks of a group are here"),
    };
    let bytes =
        most.filter(|_| num_able == 0).map_or(0, |most| least(most).saturating_sub(most.memory_bytes));
    Lack { reason, num_workers: size - num_able.min(size), bytes }
}

pub(super) fn mib(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 20)
}

fn assign(
    config: &ClusterConfig,
    size: u32,
    num_groups: u32,
    able: &[&Candidate],
    candidates: &[Candidate],
) -> Result<Draft, Lack> {
    let seats = seat(size, num_groups, able);
    let split = config.split(size);
    let mut ranks: Vec<&Candidate> = seats;
    let num_attention = ranks.len();
    let is_seated = |candidate: &Candidate| ranks.iter().any(|other| other.member == candidate.member);
    let rest: Vec<&Candidate> = candidates.iter().filter(|candidate| !is_seated(candidate)).collect();
    let groups = ranks.chunks(size as usize).map(|group| group_kv(config, group));
    let groups: Vec<KvFormat> = groups.collect::<Option<_>>().ok_or_else(|| Lack {
        reason: "the ranks of a group keep keys and values in no way that all of them can: set \
                 --kv-cache-dtype to one that enough workers have, or lower --tensor-parallel-size"
            .to_owned(),
        num_workers: 0,
        bytes: 0,
    })?;
    ranks.extend(rest);
    let kv = |(rank, candidate): (usize, &&Candidate)| {
        groups.get(rank / size as usize).copied().unwrap_or_else(|| candidate.own_kv(config))
    };
    let kv: Vec<KvFormat> = ranks.iter().enumerate().map(kv).collect();

    let fixed = |rank: usize| match rank < num_attention {
        true => split.dense_bytes + config.rooms.reserved_bytes(split, kv[rank]),
        false => config.model.experts_only_bytes,
    };
    let model = &config.model;
    let capacities = |with_hosts: bool| -> Vec<Capacity> {
        let capacity = |rank: usize| Capacity {
            slots: slots(model, ranks[rank], fixed(rank), with_hosts),
            speed: ranks[rank].speed.max(1),
        };
        (0..ranks.len()).map(capacity).collect()
    };
    let quotas_of = |capacities: &[Capacity]| quotas(model.num_layers, model.num_experts, capacities);
    // Hosts are slow: they have experts only where devices have no room for all.
    let mut with_hosts = false;
    let mut planned = capacities(with_hosts);
    let mut found = quotas_of(&planned);
    if found.is_none() {
        with_hosts = true;
        planned = capacities(with_hosts);
        found = quotas_of(&planned);
    }
    let Some(quotas) = found else { return Err(expert_lack(config, &planned)) };
    let capacities = planned;
    // Who would have neither attention nor experts is not part of it.
    let is_used = |rank: &usize| *rank < num_attention || quotas[*rank] > 0;
    let used: Vec<usize> = (0..ranks.len()).filter(is_used).collect();
    let quotas: Vec<u32> = used.iter().map(|&rank| quotas[rank]).collect();
    let kv: Vec<KvFormat> = used.iter().map(|&rank| kv[rank]).collect();
    let placed: Vec<&Candidate> = used.iter().map(|&rank| ranks[rank]).collect();
    let rooms = rooms(config, (size, num_attention), &placed, &kv, &quotas);
    let capacities = (0..used.len())
        .map(|rank| {
            let pages = if rank < num_attention {
                split.dense_bytes
                    + config.rooms.of(kv[rank]).bytes(split, kv[rank], rooms[rank].num_full_blocks)
            } else {
                model.experts_only_bytes
            };
            Capacity {
                slots: slots(model, placed[rank], pages, with_hosts),
                speed: capacities[used[rank]].speed,
            }
        })
        .collect();
    Ok(Draft {
        shape: Shape {
            tensor_parallel_size: size,
            data_parallel_size: num_groups,
            num_ranks: used.len() as u32,
        },
        members: placed.iter().map(|candidate| candidate.member).collect(),
        quotas,
        rooms,
        capacities,
    })
}

/// Experts that a worker has room for beside what is fixed, on its device or with its host, too.
fn slots(model: &ModelFacts, candidate: &Candidate, fixed: u64, with_hosts: bool) -> u64 {
    let left = candidate.memory_bytes.saturating_sub(fixed);
    let host = if with_hosts { candidate.host_expert_bytes } else { 0 };
    left.saturating_add(host) / model.expert_bytes
}

/// Who sits where. A worker that had the same part of the same split keeps its
/// rank, or gets another rank with that part; holes go to the others as they came.
fn seat<'a>(size: u32, num_groups: u32, able: &[&'a Candidate]) -> Vec<&'a Candidate> {
    let mut seats: Vec<Option<&Candidate>> = vec![None; (size * num_groups) as usize];
    let mut left: Vec<&Candidate> = able.to_vec();
    for is_exact in [true, false] {
        left.retain(|&candidate| {
            let Some((rank, before)) = candidate.before.filter(|(_, before)| *before == size) else {
                return true;
            };
            let fits = |seat: usize| match is_exact {
                true => seat == rank.0 as usize,
                false => seat as u32 % size == rank.0 % before,
            };
            let free = (0..seats.len()).find(|&seat| fits(seat) && seats[seat].is_none());
            free.map(|seat| seats[seat] = Some(candidate)).is_none()
        });
    }
    // Who ran attention before goes first: its dense weights are partly there. Devices
    // that are alike sit together, since a group keeps keys and values in one way.
    left.sort_by_key(|candidate| (candidate.before.is_none(), candidate.kv_dtypes.first().copied()));
    let mut left = left.into_iter();
    seats.into_iter().filter_map(|seat| seat.or_else(|| left.next())).collect()
}

/// The pages of each rank: those of a group hold the same positions, so the
/// one with the least room decides.
fn rooms(
    config: &ClusterConfig,
    (size, num_attention): (u32, usize),
    ranks: &[&Candidate],
    kv: &[KvFormat],
    quotas: &[u32],
) -> Vec<Room> {
    let split = config.split(size);
    let own = |rank: usize| {
        let experts =
            u64::from(quotas[rank]) * u64::from(config.model.num_layers) * config.model.expert_bytes;
        let left = ranks[rank].memory_bytes.saturating_sub(split.dense_bytes);
        // The device has as many as it can beside the least that pages take; others
        // lie with the host.
        let most = left.saturating_sub(config.rooms.reserved_bytes(split, kv[rank]));
        let left = left - experts.min(most);
        config.rooms.of(kv[rank]).room(split, kv[rank], left)
    };
    let room = |rank: usize| {
        if rank >= num_attention {
            return config.rooms.of(kv[rank]).without_pages(kv[rank]);
        }
        let first = rank / size as usize * size as usize;
        let group = (first..first + size as usize).map(own);
        group.min_by_key(|room| room.num_full_blocks).unwrap_or_else(|| own(rank))
    };
    (0..ranks.len()).map(room).collect()
}

fn expert_lack(config: &ClusterConfig, capacities: &[Capacity]) -> Lack {
    let model = &config.model;
    let layers = u64::from(model.num_layers);
    let room: u64 =
        capacities.iter().map(|capacity| (capacity.slots / layers).min(u64::from(model.num_experts))).sum();
    let missing = u64::from(model.num_experts).saturating_sub(room);
    let bytes = missing * layers * model.expert_bytes;
    Lack {
        reason: format!(
            "{missing} of {} experts of each layer have no place: {} MiB of memory are missing",
            model.num_experts,
            mib(bytes)
        ),
        num_workers: 0,
        bytes,
    }
}

#[cfg(test)]
mod tests;
