//! One rank's way to another: dialled again and again until it is taken in, and
//! then carrying what the thread sends. A way that was good and broke stays
//! broken: the epoch is over for this pair.

use super::port::{PING_INTERVAL, PING_TIMEOUT};
use super::world::{Peer, World};
use crate::transport::{Fault, Frame};
use chorale_plan::Rank;
use chorale_wire::link::v1::carry_request::Part;
use chorale_wire::link::v1::link_client::LinkClient;
use chorale_wire::link::v1::{CarryReply, CarryRequest};
use chorale_wire::link::{Carried, Introduction, MAX_PIECE_BYTES};
use chorale_wire::tls::{self, Tls, reason_of};
use futures_util::Stream;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tonic::Streaming;

/// Between two tries; doubles from the first to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// One try, up to the connection.
const DIAL_TIMEOUT: Duration = Duration::from_secs(3);

/// For what is written already but not sent, once the rank is gone.
const FLUSH: Duration = Duration::from_secs(1);

/// Carries this rank's frames to another, until its lane is through.
pub(super) async fn carry(world: Arc<World>, to: Rank, tls: Option<Tls>, deadline: Instant) {
    let Some(peer) = world.peer(to) else { return };
    let reaching = timeout_at(deadline, reach(&world, peer, to, tls.as_ref()));
    // Whoever waits for the connections has the same deadline, and asks no task.
    let Some(Ok((mut replies, drained))) = world.ended.run_until_cancelled(reaching).await else { return };
    world.set_reached(peer);
    let broke = tokio::select! {
        end = end_of(&mut replies) => Some(end),
        // The thread is gone: no frame will follow.
        _ = drained => timeout(FLUSH, end_of(&mut replies)).await.ok(),
    };
    let reason = broke.unwrap_or_else(|| "it was closed".to_owned());
    world.end_lane(&peer.outgoing, Fault::Broken { rank: to, reason });
}

/// Tries until it is taken in.
async fn reach(world: &Arc<World>, peer: &Peer, to: Rank, tls: Option<&Tls>) -> Opened {
    let mut pause = FIRST_PAUSE;
    loop {
        match open(world, to, tls).await {
            Ok(opened) => return opened,
            Err(obstacle) => world.set_obstacle(peer, obstacle),
        }
        sleep(pause).await;
        pause = (pause * 2).min(LAST_PAUSE);
    }
}

/// A way on which the other rank takes frames.
type Opened = (Streaming<CarryReply>, oneshot::Receiver<()>);

/// One try; the error says what was in the way.
async fn open(world: &Arc<World>, to: Rank, tls: Option<&Tls>) -> Result<Opened, String> {
    let membership = &world.membership;
    let endpoint =
        tls::endpoint(&membership.addresses[to.0 as usize], tls).map_err(|error| error.to_string())?;
    // A rank without work sends nothing, and a network that drops everything says
    // nothing: whoever is there answers a ping, whatever its device does.
    let endpoint = endpoint
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let dialled = timeout(DIAL_TIMEOUT, endpoint.connect()).await;
    let channel = dialled.map_err(|_| "it does not answer".to_owned())?;
    let channel = channel.map_err(|error| reason_of(&error))?;
    let introduction = Introduction { epoch: membership.epoch, from: membership.rank, to };
    let (taken_in, is_taken_in) = oneshot::channel();
    let (draining, drained) = oneshot::channel();
    let sending =
        Sending { world: world.clone(), to, is_taken_in: Some(is_taken_in), rest: None, _drained: draining };
    let requests = requests(introduction, sending);
    let replies = LinkClient::new(channel).carry(requests).await.map_err(|status| said(&status))?;
    let mut replies = replies.into_inner();
    match replies.message().await {
        Ok(Some(CarryReply {})) => {}
        Ok(None) => return Err("it ended the call".to_owned()),
        Err(status) => return Err(said(&status)),
    }
    // The stream of requests goes only with the call.
    let _ = taken_in.send(());
    Ok((replies, drained))
}

/// What the stream of requests needs, and what its end tells.
struct Sending {
    world: Arc<World>,
    to: Rank,
    /// Frames must wait: a try that fails takes none with it.
    is_taken_in: Option<oneshot::Receiver<()>>,
    /// Of a frame that goes in pieces.
    rest: Option<Frame>,
    _drained: oneshot::Sender<()>,
}

fn requests(introduction: Introduction, sending: Sending) -> impl Stream<Item = CarryRequest> + Send {
    let first = CarryRequest { part: Some(Part::Introduction(introduction.into())) };
    futures_util::stream::unfold((Some(first), sending), |(first, mut sending)| async move {
        if let Some(first) = first {
            return Some((first, (None, sending)));
        }
        if let Some(is_taken_in) = sending.is_taken_in.take() {
            is_taken_in.await.ok()?;
        }
        let mut frame = match sending.rest.take() {
            Some(rest) => rest,
            None => sending.world.peer(sending.to)?.outgoing.pop().await?,
        };
        let Frame { epoch, step, exchange, .. } = frame;
        let payload = frame.payload.split_to(frame.payload.len().min(MAX_PIECE_BYTES));
        let bytes_to_come = frame.payload.len() as u64;
        if bytes_to_come > 0 {
            sending.rest = Some(frame);
        }
        let carried = Carried { epoch, step, exchange, payload, bytes_to_come };
        Some((CarryRequest { part: Some(Part::Frame(carried.into())) }, (None, sending)))
    })
}

/// How the other rank ended the call.
async fn end_of(replies: &mut Streaming<CarryReply>) -> String {
    loop {
        match replies.message().await {
            // There is nothing else to say.
            Ok(Some(CarryReply {})) => {}
            Ok(None) => return "it ended the call".to_owned(),
            Err(status) => return said(&status),
        }
    }
}

/// A status in words. Without a message, its cause says more than its code.
pub(super) fn said(status: &tonic::Status) -> String {
    if status.message().is_empty() { reason_of(status) } else { status.message().to_owned() }
}

/// Starts a way to every other rank.
pub(super) fn dial_all(world: &Arc<World>, tls: Option<&Tls>, deadline: Instant) {
    for (rank, _) in world.others() {
        world.spawn(carry(world.clone(), rank, tls.cloned(), deadline));
    }
}
