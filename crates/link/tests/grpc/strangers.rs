//! Callers that are not the rank that they should be, or that send what they
//! should not.

use crate::world::{MAX_BYTES, PATIENCE, World, members};
use bytes::Bytes;
use chorale_link::grpc::GrpcTransport;
use chorale_link::{Fault, Transport};
use chorale_plan::{Epoch, Rank};
use chorale_wire::link::v1::carry_request::Part;
use chorale_wire::link::v1::link_client::LinkClient;
use chorale_wire::link::v1::{CarryReply, CarryRequest, Frame, Introduction};
use chorale_wire::link::{Carried, v1};
use futures_util::{StreamExt, stream};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};

/// Rank 0 of two, in epoch 5; nobody listens at rank 1's address.
async fn first_of_two() -> (World, GrpcTransport) {
    let world = World::bind(1, None).await;
    let addresses = [world.ports[0].address().to_string(), "127.0.0.1:9".to_owned()];
    let member = members(Epoch(5), &addresses, PATIENCE).remove(0);
    let (transport, _, _) = world.ports[0].join(member);
    (world, transport)
}

async fn carry(world: &World, parts: Vec<Part>) -> Result<Streaming<CarryReply>, Status> {
    let url = format!("http://{}", world.ports[0].address());
    let channel = Channel::from_shared(url).unwrap().connect().await.unwrap();
    let parts = parts.into_iter().map(|part| CarryRequest { part: Some(part) });
    // Left open, as ranks do.
    let requests = stream::iter(parts).chain(stream::pending());
    Ok(LinkClient::new(channel).carry(requests).await?.into_inner())
}

fn introduction(epoch: u64, from: u32, to: u32) -> Part {
    Part::Introduction(Introduction { epoch, from, to })
}

fn good_frame() -> Frame {
    Carried { epoch: Epoch(5), step: 1, exchange: 0, payload: Bytes::from_static(b"rows"), bytes_to_come: 0 }
        .into()
}

/// What comes of an introduction and a frame, at both ends.
async fn send(frame: Frame) -> (Result<chorale_link::Frame, Fault>, Status) {
    let (world, mut transport) = first_of_two().await;
    let mut replies = carry(&world, vec![introduction(5, 1, 0), Part::Frame(frame)]).await.unwrap();
    assert_eq!(replies.message().await.unwrap(), Some(CarryReply {}));
    let received = tokio::task::spawn_blocking(move || transport.receive(Rank(1))).await.unwrap();
    // The transport is gone by now, so the call ends in any case.
    (received, replies.message().await.unwrap_err())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_frame_is_found_and_told() {
    let (received, _) = send(good_frame()).await;
    assert_eq!(received.unwrap().payload, Bytes::from_static(b"rows"));
    let mut damaged: v1::Frame = good_frame();
    damaged.payload = Bytes::from_static(b"rowz");
    let (received, status) = send(damaged).await;
    assert_eq!(received, Err(Fault::Damaged { rank: Rank(1) }));
    assert_eq!(status.code(), Code::DataLoss);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_frame_above_the_bound_is_not_read() {
    let rows = Bytes::from_static(b"rows");
    let piece =
        Carried { epoch: Epoch(5), step: 1, exchange: 0, payload: rows, bytes_to_come: MAX_BYTES as u64 };
    let whole = Carried { payload: vec![0; 3 << 20].into(), bytes_to_come: 0, ..piece.clone() };
    for frame in [piece, whole] {
        let (received, status) = send(frame.into()).await;
        assert!(matches!(received, Err(Fault::Malformed { rank: Rank(1), .. })), "{received:?}");
        assert_eq!(status.code(), Code::OutOfRange);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_ranks_of_the_epoch_come_in() {
    let (world, _transport) = first_of_two().await;
    let refused = async |parts| carry(&world, parts).await.unwrap_err().code();
    assert_eq!(refused(vec![introduction(4, 1, 0)]).await, Code::FailedPrecondition, "an old epoch");
    assert_eq!(refused(vec![introduction(5, 1, 2)]).await, Code::FailedPrecondition, "another's address");
    assert_eq!(refused(vec![introduction(5, 2, 0)]).await, Code::FailedPrecondition, "no such rank");
    assert_eq!(refused(vec![introduction(5, 0, 0)]).await, Code::InvalidArgument, "itself");
    assert_eq!(refused(vec![introduction(5, u32::MAX, 0)]).await, Code::InvalidArgument);
    assert_eq!(refused(vec![Part::Frame(good_frame())]).await, Code::InvalidArgument, "no introduction");
    let mut first = carry(&world, vec![introduction(5, 1, 0)]).await.unwrap();
    assert!(first.message().await.unwrap().is_some());
    assert_eq!(refused(vec![introduction(5, 1, 0)]).await, Code::AlreadyExists, "twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_introduction_ends_the_call() {
    let (world, mut transport) = first_of_two().await;
    let mut replies = carry(&world, vec![introduction(5, 1, 0), introduction(5, 1, 0)]).await.unwrap();
    assert!(replies.message().await.unwrap().is_some());
    assert_eq!(replies.message().await.unwrap_err().code(), Code::InvalidArgument);
    assert!(matches!(transport.receive(Rank(1)), Err(Fault::Malformed { rank: Rank(1), .. })));
}
