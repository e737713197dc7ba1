//! Workers with a coordinator that follows a script: what they say to what they
//! are told, and what becomes of them when somebody goes away.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod coordinator;
mod telling;
mod world;

use chorale_plan::{Epoch, FromWorker, Placement, Rank, Shape, ToWorker};
use chorale_worker::join::{Left, WorkerError};
use coordinator::Coordinator;
use std::time::Duration;
use world::{Started, assignment, checkpoint, config, plan, sampled, start};

const PAIR: Shape = Shape { tensor_parallel_size: 2, data_parallel_size: 1, num_ranks: 2 };

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_does_what_it_is_told_until_it_may_leave() {
    let mut coordinator = Coordinator::start().await;
    let worker = start(config(coordinator.address())).await;
    let mut call = coordinator.call().await;
    let offer = call.welcome().await;
    assert_eq!(offer.checkpoint, checkpoint().fingerprint().to_string());
    call.assign(assignment(1, Shape::SOLO, 0, std::slice::from_ref(&offer.address))).await;
    call.until(|said| *said == FromWorker::Ready { epoch: Epoch(1) }).await;

    call.tell(ToWorker::Step { epoch: Epoch(1), placement: 0, plan: plan(1) }).await;
    let done = call.until(|said| matches!(said, FromWorker::Done { .. })).await;
    let token = sampled(&done);
    call.tell(ToWorker::Step { epoch: Epoch(9), placement: 0, plan: plan(2) }).await;
    let refused = call.until(|said| matches!(said, FromWorker::Refused { .. })).await;
    assert!(matches!(refused, FromWorker::Refused { epoch: Epoch(9), step: 2, .. }), "{refused:?}");

    let model = checkpoint().config().clone();
    let placement = Placement { version: 1, ..Placement::solo(model.num_layers(), model.num_experts) };
    call.tell(ToWorker::Prepare { epoch: Epoch(1), placement }).await;
    call.until(|said| *said == FromWorker::Prepared { epoch: Epoch(1), version: 1 }).await;
    call.tell(ToWorker::Step { epoch: Epoch(1), placement: 1, plan: plan(2) }).await;
    let again = call.until(|said| matches!(said, FromWorker::Done { .. })).await;
    assert_eq!(sampled(&again), token, "the same rows, wherever the experts are");
    call.until(
        |said| matches!(said, FromWorker::Loads { rows, .. } if rows.iter().flatten().sum::<u64>() > 0),
    )
    .await;
    call.until(|said| matches!(said, FromWorker::Pulse(_))).await;

    worker.leaving.cancel();
    call.until(|said| *said == FromWorker::Leaving).await;
    call.tell(ToWorker::Farewell).await;
    assert_eq!(worker.ended().await.unwrap(), Left::HandedOver);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_rest_goes_on_when_a_rank_is_lost() {
    let mut coordinator = Coordinator::start().await;
    let mut workers = Vec::new();
    let mut calls = Vec::new();
    let mut addresses = Vec::new();
    for _ in 0..2 {
        workers.push(start(config(coordinator.address())).await);
        let mut call = coordinator.call().await;
        addresses.push(call.welcome().await.address);
        calls.push(call);
    }
    for (rank, call) in calls.iter_mut().enumerate() {
        call.assign(assignment(1, PAIR, rank as u32, &addresses)).await;
    }
    for call in &mut calls {
        call.until(|said| *said == FromWorker::Ready { epoch: Epoch(1) }).await;
    }
    for call in &mut calls {
        call.tell(ToWorker::Step { epoch: Epoch(1), placement: 0, plan: plan(1) }).await;
    }
    let first = calls[0].until(|said| matches!(said, FromWorker::Done { .. })).await;
    let token = sampled(&first);
    calls[1].until(|said| matches!(said, FromWorker::Done { .. })).await;

    // The second dies in the middle of a step.
    calls[0].tell(ToWorker::Step { epoch: Epoch(1), placement: 0, plan: plan(2) }).await;
    workers.pop().unwrap().kill();
    let lost = calls[0].until(|said| matches!(said, FromWorker::Lost { .. })).await;
    assert!(matches!(&lost, FromWorker::Lost { step: 2, blamed: Some(Rank(1)), .. }), "{lost:?}");

    calls[0].assign(assignment(2, Shape::SOLO, 0, &addresses[..1])).await;
    calls[0].until(|said| *said == FromWorker::Ready { epoch: Epoch(2) }).await;
    calls[0].tell(ToWorker::Step { epoch: Epoch(2), placement: 0, plan: plan(2) }).await;
    let alone = calls[0].until(|said| matches!(said, FromWorker::Done { .. })).await;
    assert_eq!(sampled(&alone), token, "the answer does not depend on the shape");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_cannot_be_reached_is_blamed() {
    let mut coordinator = Coordinator::start().await;
    let mut config = config(coordinator.address());
    config.patience.connect = Duration::from_millis(300);
    let _worker = start(config).await;
    let mut call = coordinator.call().await;
    let own = call.welcome().await.address;
    call.assign(assignment(1, PAIR, 0, &[own, "127.0.0.1:9".to_owned()])).await;
    let unable = call.until(|said| matches!(said, FromWorker::Unable { .. })).await;
    assert!(
        matches!(unable, FromWorker::Unable { epoch: Epoch(1), blamed: Some(Rank(1)), .. }),
        "{unable:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_comes_back_as_itself() {
    let mut coordinator = Coordinator::start().await;
    let worker = start(config(coordinator.address())).await;
    let mut call = coordinator.call().await;
    let offer = call.welcome().await;
    call.assign(assignment(1, Shape::SOLO, 0, std::slice::from_ref(&offer.address))).await;
    call.until(|said| *said == FromWorker::Ready { epoch: Epoch(1) }).await;
    // The call breaks.
    drop(call);
    let mut call = coordinator.call().await;
    assert_eq!(call.welcome().await, offer);
    call.assign(assignment(7, Shape::SOLO, 0, std::slice::from_ref(&offer.address))).await;
    call.until(|said| *said == FromWorker::Ready { epoch: Epoch(7) }).await;
    // The coordinator is silent, though the call is there.
    let mut again = coordinator.call().await;
    assert_eq!(again.welcome().await, offer);
    // It is told to come later, and then not at all.
    again.tell(ToWorker::Turned { reason: "full".to_owned(), may_retry: true }).await;
    let mut last = coordinator.call().await;
    last.hear().await;
    last.tell(ToWorker::Turned { reason: "of another release".to_owned(), may_retry: false }).await;
    let error = worker.ended().await.unwrap_err();
    assert!(matches!(&error, WorkerError::Turned { reason } if reason == "of another release"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_has_to_be_there_to_leave() {
    let worker = start(config("127.0.0.1:9".to_owned())).await;
    worker.leaving.cancel();
    assert_eq!(worker.ended().await.unwrap(), Left::Unheard);

    let mut coordinator = Coordinator::start().await;
    let mut config = config(coordinator.address());
    config.patience.leave = Duration::from_millis(50);
    let worker = start(config).await;
    let mut call = coordinator.call().await;
    call.welcome().await;
    // One that is not let in yet leaves without a word.
    call.until(|said| matches!(said, FromWorker::Pulse(_))).await;
    worker.leaving.cancel();
    call.until(|said| *said == FromWorker::Leaving).await;
    assert_eq!(worker.ended().await.unwrap(), Left::Unheard, "nobody answered");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_for_this_worker_is_passed_over() {
    let mut coordinator = Coordinator::start().await;
    let worker: Started = start(config(coordinator.address())).await;
    let mut call = coordinator.call().await;
    let offer = call.welcome().await;
    call.tell(ToWorker::Dismissed { epoch: Epoch(3) }).await;
    call.tell(ToWorker::Prepare { epoch: Epoch(3), placement: Placement::solo(1, 1) }).await;
    // A placement of another model.
    let mut wrong = assignment(4, Shape::SOLO, 0, std::slice::from_ref(&offer.address));
    wrong.placement = Placement::solo(1, 1);
    call.assign(wrong).await;
    let unable = call.until(|said| matches!(said, FromWorker::Unable { .. })).await;
    assert!(matches!(unable, FromWorker::Unable { epoch: Epoch(4), blamed: None, .. }), "{unable:?}");
    call.assign(assignment(5, Shape::SOLO, 0, &[offer.address])).await;
    call.until(|said| *said == FromWorker::Ready { epoch: Epoch(5) }).await;
    let placement = Placement { version: 1, ..Placement::solo(1, 1) };
    call.tell(ToWorker::Prepare { epoch: Epoch(5), placement }).await;
    let unprepared = call.until(|said| matches!(said, FromWorker::Unprepared { .. })).await;
    assert!(
        matches!(unprepared, FromWorker::Unprepared { epoch: Epoch(5), version: 1, .. }),
        "{unprepared:?}"
    );
    // The old one stays in use.
    call.tell(ToWorker::Step { epoch: Epoch(5), placement: 0, plan: plan(1) }).await;
    call.until(|said| matches!(said, FromWorker::Done { .. })).await;
    drop(worker);
}
