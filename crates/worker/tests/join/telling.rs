//! What a worker says of itself beside its steps: how fast it is, where its experts
//! lie, and that it is of no use any more.

use crate::coordinator::Coordinator;
use crate::world::{assignment, config, start, start_with};
use chorale_device::Cpu;
use chorale_link::{JoinError, Joining, Member, Place, Transport};
use chorale_plan::{Epoch, ExpertResidency, FromWorker, OneShot, Placement, Pulse, Shape, Standing};
use chorale_worker::join::{MemoryRate, Patience, Reading, WorkerConfig, WorkerError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_was_slow_at_its_start_is_measured_again_and_says_so() {
    let mut coordinator = Coordinator::start().await;
    // Another program is busy for a moment.
    let rate = Arc::new(AtomicU64::new(1000));
    let read = {
        let rate = Arc::clone(&rate);
        move || Some(rate.load(Ordering::Relaxed))
    };
    let config = config(coordinator.address());
    let patience = Patience { first_measure: Duration::from_millis(20), ..config.patience };
    let memory_rate = MemoryRate::Measured(Reading::new(read));
    let worker = start(WorkerConfig { memory_rate, patience, ..config }).await;
    let mut call = coordinator.call().await;
    assert_eq!(call.welcome().await.memory_bytes_per_s, 1000);
    let says = |bytes_per_s| move |said: &FromWorker| matches!(said, FromWorker::Pulse(Pulse { memory_bytes_per_s: Some(now), .. }) if *now == bytes_per_s);
    call.until(says(1000)).await;
    rate.store(90_000, Ordering::Relaxed);
    call.until(says(90_000)).await;
    // What it has shown once it can do, and a coordinator that comes anew is told so.
    rate.store(10, Ordering::Relaxed);
    drop(call);
    assert_eq!(coordinator.call().await.welcome().await.memory_bytes_per_s, 90_000);
    worker.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_says_of_the_memory_holds() {
    let mut coordinator = Coordinator::start().await;
    let worker = start(config(coordinator.address())).await;
    let mut call = coordinator.call().await;
    assert_eq!(call.welcome().await.memory_bytes_per_s, 1 << 33);
    let FromWorker::Pulse(pulse) = call.until(|said| matches!(said, FromWorker::Pulse(_))).await else {
        panic!("a pulse was asked for");
    };
    assert_eq!(pulse.memory_bytes_per_s, None);
    worker.kill();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_says_where_its_experts_lie() {
    let mut coordinator = Coordinator::start().await;
    let experts = ExpertResidency { gpu_experts: 5, host_experts: 3, hits: 7, ..ExpertResidency::default() };
    let residency = Some(Reading::new(move || Some(experts)));
    let worker = start(WorkerConfig { residency, ..config(coordinator.address()) }).await;
    let mut call = coordinator.call().await;
    let offer = call.welcome().await;
    call.assign(assignment(1, Shape::SOLO, 0, &[offer.address])).await;
    let said = call.until(|said| matches!(said, FromWorker::Loads { .. })).await;
    let FromWorker::Loads { epoch, standing, .. } = said else { panic!("{said:?}") };
    let expected = Standing { experts: Some(experts), one_shot: OneShot::default() };
    assert_eq!((epoch, standing), (Epoch(1), expected));
    worker.kill();
}

/// The rank's thread ends in it, as it does when its device is lost.
struct Ends;

impl Joining<Cpu> for Ends {
    fn join(
        &mut self,
        _device: &mut Cpu,
        _transport: Box<dyn Transport>,
        _place: Place,
        _placement: Placement,
    ) -> Result<Box<dyn Member<Cpu>>, JoinError> {
        panic!("the thread ends, as it should in this test")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_whose_rank_has_ended_says_its_last_and_ends() {
    let mut coordinator = Coordinator::start().await;
    let worker = start_with(config(coordinator.address()), Box::new(Ends)).await;
    let mut call = coordinator.call().await;
    let offer = call.welcome().await;
    call.assign(assignment(1, Shape::SOLO, 0, &[offer.address])).await;
    loop {
        match call.hear().await {
            FromWorker::Unable { epoch: Epoch(1), reason, .. } => {
                assert!(reason.contains("the rank has stopped"), "{reason}");
                break;
            }
            FromWorker::Pulse(_) => {}
            said => panic!("{said:?}"),
        }
    }
    assert!(matches!(worker.ended().await, Err(WorkerError::Stopped)));
}
