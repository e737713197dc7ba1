//! What must be true whatever happens, looked at after every event.

use chorale_coordinator::cluster::{Action, ClusterConfig, ClusterState, MemberId, Membership, World};
use chorale_plan::{Assignment, Epoch, Placement, Rank, ToWorker};
use std::collections::{BTreeMap, BTreeSet};

/// What the coordinator has done so far.
#[derive(Debug, Default)]
pub(crate) struct Checks {
    last_epoch: u64,
    /// Of the last epoch, who got which rank.
    assigned: BTreeMap<MemberId, Assignment>,
    ready: BTreeSet<MemberId>,
    /// Of the last epoch, who has which placement.
    prepared: BTreeSet<(MemberId, u32)>,
    pub(crate) serving: Option<World>,
    /// Streams that are open, as the coordinator should know.
    pub(crate) open: BTreeSet<MemberId>,
    last_version: u32,
}

impl Checks {
    /// A new coordinator begins after all epochs of the old one.
    pub(crate) fn restart(&mut self) {
        self.serving = None;
        self.open.clear();
        self.assigned.clear();
        self.ready.clear();
        self.prepared.clear();
    }

    pub(crate) fn said_ready(&mut self, member: MemberId, epoch: Epoch) {
        if epoch.0 == self.last_epoch {
            self.ready.insert(member);
        }
    }

    pub(crate) fn said_prepared(&mut self, member: MemberId, epoch: Epoch, version: u32) {
        if epoch.0 == self.last_epoch {
            self.prepared.insert((member, version));
        }
    }

    pub(crate) fn action(
        &mut self,
        action: &Action,
        config: &ClusterConfig,
        memory: impl Fn(MemberId) -> u64,
    ) {
        match action {
            Action::Tell(member, ToWorker::Assigned(assignment)) => {
                self.assigned(*member, assignment, config, memory(*member));
            }
            Action::Tell(_, ToWorker::Prepare { epoch, placement }) => {
                assert_eq!(epoch.0, self.last_epoch);
                let num_ranks =
                    self.serving.as_ref().expect("placements change while serving").shape.num_ranks;
                check_placement(placement, num_ranks, config);
            }
            Action::Tell(_, ToWorker::Dismissed { epoch }) => assert!(epoch.0 <= self.last_epoch),
            Action::Tell(..) => {}
            Action::Close(member) => drop(self.open.remove(member)),
            Action::Serve(world) => {
                assert!(self.serving.is_none(), "a world is over before the next serves");
                assert_eq!(world.epoch.0, self.last_epoch);
                let assigned: BTreeSet<MemberId> = self.assigned.keys().copied().collect();
                assert_eq!(assigned, world.members.iter().copied().collect(), "all who have a place serve");
                assert!(assigned.is_subset(&self.ready), "all who serve are ready");
                assert_eq!(world.homes.len(), world.shape.data_parallel_size as usize);
                assert!(
                    world.homes.iter().all(|home| home.num_full_blocks >= config.rooms.f32.min_full_blocks)
                );
                self.last_version = 0;
                self.serving = Some(world.clone());
            }
            Action::Place { epoch, version } => {
                let world = self.serving.as_mut().expect("placements change while serving");
                assert_eq!(*epoch, world.epoch);
                assert!(*version > self.last_version);
                let has = |member: &MemberId| self.prepared.contains(&(*member, *version));
                assert!(world.members.iter().all(has), "steps name what every rank has");
                self.last_version = *version;
                world.placement = *version;
            }
            Action::Suspend { .. } => {
                assert!(self.serving.take().is_some(), "only what serves is suspended");
            }
        }
    }

    fn assigned(&mut self, member: MemberId, assignment: &Assignment, config: &ClusterConfig, memory: u64) {
        let epoch = assignment.epoch.0;
        assert!(epoch >= self.last_epoch, "epochs count up");
        assert!(self.serving.is_none(), "places are given while nothing serves");
        if epoch > self.last_epoch {
            self.last_epoch = epoch;
            self.assigned.clear();
            self.ready.clear();
            self.prepared.clear();
        }
        let shape = assignment.shape;
        assert!(assignment.rank.0 < shape.num_ranks && shape.num_ranks >= shape.num_attention_ranks());
        assert!(shape.tensor_parallel_size >= 1 && shape.data_parallel_size >= 1);
        assert_eq!(assignment.addresses.len(), shape.num_ranks as usize);
        let addresses: BTreeSet<&String> = assignment.addresses.iter().collect();
        assert_eq!(addresses.len(), assignment.addresses.len(), "each rank is another worker");
        for other in self.assigned.values() {
            assert_ne!(other.rank, assignment.rank, "a rank is one worker's");
            assert_eq!((other.shape, &other.addresses), (shape, &assignment.addresses));
            assert_eq!(other.placement, assignment.placement, "all are told the same");
        }
        check_placement(&assignment.placement, shape.num_ranks, config);
        check_memory(assignment, config, memory);
        assert!(self.open.contains(&member), "only who is there gets a place");
        let twice = self.assigned.insert(member, assignment.clone());
        assert!(twice.is_none(), "one place for each worker and epoch");
    }

    pub(crate) fn state(&self, membership: &Membership, config: &ClusterConfig) {
        let status = membership.status();
        assert!(status.members.len() <= config.max_members as usize);
        assert!(status.faults.len() <= 64);
        assert_eq!(status.state == ClusterState::Serving, self.serving.is_some());
        let ranks: Vec<Rank> = status.members.iter().filter_map(|member| member.rank).collect();
        assert!(ranks.windows(2).all(|pair| pair[0] < pair[1]), "ranks are unique");
        if let Some(world) = &self.serving {
            assert_eq!(ranks.len(), world.shape.num_ranks as usize, "every expert's rank is there");
            assert!(world.members.iter().all(|member| self.open.contains(member)));
        }
    }
}

fn check_placement(placement: &Placement, num_ranks: u32, config: &ClusterConfig) {
    assert_eq!(placement.layers.len(), config.model.num_layers as usize);
    for layer in &placement.layers {
        assert_eq!(layer.len(), config.model.num_experts as usize);
        for holders in layer {
            assert!(!holders.is_empty(), "every expert is held");
            assert!(holders.windows(2).all(|pair| pair[0] < pair[1]));
            assert!(holders.iter().all(|rank| rank.0 < num_ranks));
        }
    }
}

fn check_memory(assignment: &Assignment, config: &ClusterConfig, memory: u64) {
    let (rank, shape) = (assignment.rank, assignment.shape);
    let layers = 0..assignment.placement.layers.len();
    let num_experts: usize = layers.map(|layer| assignment.placement.experts_of(rank, layer).len()).sum();
    let mut needed = num_experts as u64 * config.model.expert_bytes;
    if rank.0 < shape.num_attention_ranks() {
        let split = config.model.splits[shape.tensor_parallel_size as usize - 1];
        let room = assignment.room;
        needed += split.dense_bytes
            + u64::from(room.num_full_blocks) * split.full_page_bytes.of(room.kv_dtype)
            + u64::from(room.num_sliding_blocks) * split.sliding_page_bytes.of(room.kv_dtype);
    } else {
        needed += config.model.experts_only_bytes;
        assert_eq!(assignment.room.num_full_blocks, 0);
    }
    assert!(needed <= memory, "rank {} needs {needed} of {memory} bytes", rank.0);
}
