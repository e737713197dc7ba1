//! A coordinator without a will of its own: each worker's call is handed out,
//! and the test says what is said.

use chorale_plan::{Assignment, FromWorker, Offer, ToWorker};
use chorale_wire::cluster::v1::cluster_server::{Cluster, ClusterServer};
use chorale_wire::cluster::v1::{CoordinatorMessage, WorkerMessage};
use chorale_wire::listener::accept;
use futures_util::{Stream, StreamExt};
use std::net::SocketAddr;
use std::pin::Pin;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;
use tonic::transport::Server;
use tonic::{Request, Response, Status, Streaming};

/// For what does happen.
const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Coordinator {
    address: SocketAddr,
    calls: mpsc::Receiver<Call>,
    _server: AbortOnDropHandle<()>,
}

/// A worker's call.
pub(crate) struct Call {
    heard: Streaming<WorkerMessage>,
    to: mpsc::Sender<ToWorker>,
}

impl Coordinator {
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (hand_out, calls) = mpsc::channel(8);
        let router = Server::builder().add_service(ClusterServer::new(Door { hand_out }));
        let serving = tokio::spawn(async move {
            router.serve_with_incoming(accept(listener, 8)).await.unwrap();
        });
        Self { address, calls, _server: AbortOnDropHandle::new(serving) }
    }

    pub(crate) fn address(&self) -> String {
        self.address.to_string()
    }

    /// The next worker that dials.
    pub(crate) async fn call(&mut self) -> Call {
        timeout(PATIENCE, self.calls.recv()).await.unwrap().unwrap()
    }
}

impl Call {
    pub(crate) async fn tell(&self, message: ToWorker) {
        self.to.send(message).await.unwrap();
    }

    pub(crate) async fn assign(&self, assignment: Assignment) {
        self.tell(ToWorker::Assigned(Box::new(assignment))).await;
    }

    pub(crate) async fn hear(&mut self) -> FromWorker {
        let message = timeout(PATIENCE, self.heard.message()).await.unwrap().unwrap().unwrap();
        FromWorker::try_from(message).unwrap()
    }

    /// The first that is meant, whatever was said before. The coordinator
    /// pulses meanwhile, as coordinators do.
    pub(crate) async fn until(&mut self, is_meant: impl Fn(&FromWorker) -> bool) -> FromWorker {
        let search = async {
            loop {
                let said = self.hear().await;
                if is_meant(&said) {
                    return said;
                }
                if matches!(said, FromWorker::Pulse(_)) {
                    let _ = self.to.try_send(ToWorker::Pulse);
                }
                let is_bad = matches!(
                    said,
                    FromWorker::Unable { .. } | FromWorker::Lost { .. } | FromWorker::Refused { .. }
                );
                assert!(!is_bad, "{said:?}");
            }
        };
        timeout(PATIENCE, search).await.unwrap()
    }

    /// Lets the worker in.
    pub(crate) async fn welcome(&mut self) -> Offer {
        let FromWorker::Offer(offer) = self.hear().await else { panic!("the offer comes first") };
        self.tell(ToWorker::Welcome { pulse_ms: 20 }).await;
        offer
    }
}

struct Door {
    hand_out: mpsc::Sender<Call>,
}

#[tonic::async_trait]
impl Cluster for Door {
    type JoinStream = Pin<Box<dyn Stream<Item = Result<CoordinatorMessage, Status>> + Send>>;

    async fn join(
        &self,
        request: Request<Streaming<WorkerMessage>>,
    ) -> Result<Response<Self::JoinStream>, Status> {
        let (to, unsent) = mpsc::channel(64);
        self.hand_out.send(Call { heard: request.into_inner(), to }).await.unwrap();
        let told = futures_util::stream::unfold(unsent, |mut unsent: mpsc::Receiver<ToWorker>| async move {
            let message = unsent.recv().await?;
            Some((CoordinatorMessage::from(message), unsent))
        });
        Ok(Response::new(Box::pin(told.map(Ok))))
    }
}
