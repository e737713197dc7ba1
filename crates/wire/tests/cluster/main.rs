//! What the parts of a cluster say to each other arrives as it was said, takes
//! few bytes where it is said often, and is refused by field where it is wrong.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod any;
mod refusals;
mod sizes;

use chorale_plan::{FromWorker, ToWorker};
use chorale_wire::cluster::v1;
use proptest::prelude::*;
use prost::Message;

proptest! {
    #[test]
    fn what_workers_say_arrives(said in any::from_worker()) {
        let bytes = v1::WorkerMessage::from(said.clone()).encode_to_vec();
        let message = v1::WorkerMessage::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(FromWorker::try_from(message), Ok(said));
    }

    #[test]
    fn what_the_coordinator_says_arrives(said in any::to_worker()) {
        let bytes = v1::CoordinatorMessage::from(said.clone()).encode_to_vec();
        let message = v1::CoordinatorMessage::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(ToWorker::try_from(message), Ok(said));
    }

    #[test]
    fn no_bytes_end_a_reader(bytes: Vec<u8>) {
        let _ = v1::WorkerMessage::decode(bytes.as_slice()).map(FromWorker::try_from);
        let _ = v1::CoordinatorMessage::decode(bytes.as_slice()).map(ToWorker::try_from);
    }

    #[test]
    fn no_change_of_a_message_ends_a_reader(
        said in any::to_worker(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
    ) {
        let mut bytes = v1::CoordinatorMessage::from(said).encode_to_vec();
        prop_assume!(!bytes.is_empty());
        for (place, value) in changes {
            let place = place.index(bytes.len());
            bytes[place] = value;
        }
        let _ = v1::CoordinatorMessage::decode(bytes.as_slice()).map(ToWorker::try_from);
    }
}
