//! What is wrong is refused, and the field is named.

use chorale_plan::{FromWorker, ToWorker};
use chorale_wire::cluster::v1;
use chorale_wire::cluster::v1::coordinator_message::Said;
use chorale_wire::cluster::v1::worker_message::Said as Reply;

/// The field that a coordinator's message is refused for.
fn refused(said: Said) -> String {
    ToWorker::try_from(v1::CoordinatorMessage { said: Some(said) }).unwrap_err().field
}

/// The field that a worker's message is refused for.
fn reply_refused(said: Reply) -> String {
    FromWorker::try_from(v1::WorkerMessage { said: Some(said) }).unwrap_err().field
}

fn assigned() -> v1::Assigned {
    let layer = v1::LayerPlacement { ranks: vec![0, 1, 1], num_holders: Vec::new() };
    v1::Assigned {
        epoch: 1,
        shape: Some(v1::Shape { tensor_parallel_size: 2, data_parallel_size: 1, num_ranks: 2 }),
        rank: 1,
        addresses: vec!["a:1".to_owned(), "b:2".to_owned()],
        placement: Some(v1::Placement { version: 0, layers: vec![layer] }),
        room: Some(v1::Room {
            max_step_tokens: 8,
            max_step_slices: 8,
            block_size_tokens: 16,
            kv_dtype: 1,
            ..Default::default()
        }),
        exchange: Some(v1::ExchangeOptions {
            timeout_ms: 1000,
            dispatch: 1,
            fast_combine: false,
            overlap_min_rows: None,
        }),
        carrier: 1,
        dense_dtype: 1,
    }
}

#[test]
fn a_place_must_be_one_of_the_world() {
    let changed = |change: &dyn Fn(&mut v1::Assigned)| {
        let mut message = assigned();
        change(&mut message);
        refused(Said::Assigned(message))
    };
    let shape = |tensor_parallel_size, data_parallel_size, num_ranks| {
        changed(&|message| {
            message.shape = Some(v1::Shape { tensor_parallel_size, data_parallel_size, num_ranks });
        })
    };
    assert_eq!(changed(&|message| message.shape = None), "assigned.shape");
    assert_eq!(shape(0, 1, 2), "assigned.shape.tensor_parallel_size");
    assert_eq!(shape(2, 2, 2), "assigned.shape.data_parallel_size");
    assert_eq!(shape(1 << 16, 1 << 16, 1), "assigned.shape.tensor_parallel_size");
    assert_eq!(shape(1, 1, u32::MAX), "assigned.shape.num_ranks");
    assert_eq!(changed(&|message| message.rank = 2), "assigned.rank");
    assert_eq!(changed(&|message| message.addresses.truncate(1)), "assigned.addresses");
    for bad in ["", "a", ":1", "a:0", "a:65536", "a b:1", "http://a:1", "a/b:1"] {
        assert_eq!(changed(&|message| message.addresses[1] = bad.to_owned()), "assigned.addresses[1]");
    }
    let dispatch = |format| {
        changed(&|message| {
            message.exchange =
                Some(v1::ExchangeOptions { timeout_ms: 1, dispatch: format, ..Default::default() });
        })
    };
    assert_eq!(dispatch(0), "assigned.exchange.dispatch");
    assert_eq!(dispatch(9), "assigned.exchange.dispatch");
    for bad in [0, 9, -1] {
        assert_eq!(changed(&|message| message.dense_dtype = bad), "assigned.dense_dtype");
        let kv_dtype = |message: &mut v1::Assigned| message.room.as_mut().unwrap().kv_dtype = bad;
        assert_eq!(changed(&kv_dtype), "assigned.room.kv_dtype");
    }
    assert!(ToWorker::try_from(v1::CoordinatorMessage { said: Some(Said::Assigned(assigned())) }).is_ok());
}

#[test]
fn a_placement_must_name_ranks_for_every_expert() {
    let layer = |ranks: &[u32], num_holders: &[u32]| {
        let layer = v1::LayerPlacement { ranks: ranks.to_vec(), num_holders: num_holders.to_vec() };
        let mut message = assigned();
        message.placement = Some(v1::Placement { version: 0, layers: vec![layer] });
        refused(Said::Assigned(message))
    };
    let field = |name| format!("assigned.placement.layers[0].{name}");
    assert_eq!(layer(&[0, 2], &[]), field("ranks"), "no such rank");
    assert_eq!(layer(&[0, 1], &[2, 0]), field("num_holders"), "an expert that is nowhere");
    assert_eq!(layer(&[0, 1], &[1]), field("num_holders"));
    assert_eq!(layer(&[0, 1], &[1, 2]), field("num_holders"));
    assert_eq!(layer(&[0, 1], &[u32::MAX, 3]), field("num_holders"));
    assert_eq!(layer(&[1, 0], &[2]), field("ranks"), "not ascending");
    assert_eq!(layer(&[1, 1], &[2]), field("ranks"), "twice the same");
}

#[test]
fn a_plan_must_be_of_numbers() {
    let slice = |change: &dyn Fn(&mut v1::Slice)| {
        let sampling = v1::Sampling { temperature: 1.0, top_p: 1.0, ..Default::default() };
        let mut slice = v1::Slice {
            tokens: vec![1],
            full_blocks: Some(v1::BlockTable::default()),
            sliding_blocks: Some(v1::BlockTable::default()),
            sampling: Some(sampling),
            ..Default::default()
        };
        change(&mut slice);
        let plan =
            Some(v1::StepPlan { step: 1, in_halves: false, home_rows: Vec::new(), slices: vec![slice] });
        refused(Said::Step(v1::Step { epoch: 1, placement: 0, plan }))
    };
    let sampling =
        |change: &dyn Fn(&mut v1::Sampling)| slice(&|slice| change(slice.sampling.as_mut().unwrap()));
    let field = |name: &str| format!("step.plan.slices[0].{name}");
    assert_eq!(slice(&|slice| slice.tokens.clear()), field("tokens"));
    assert_eq!(slice(&|slice| slice.sampled_before = true), field("tokens"));
    assert_eq!(slice(&|slice| slice.num_computed = u32::MAX), field("num_computed"));
    assert_eq!(slice(&|slice| slice.home = 1 << 20), field("home"));
    assert_eq!(slice(&|slice| slice.full_blocks = None), field("full_blocks"));
    let overflow = Some(v1::BlockTable { first: u32::MAX, differences: vec![1] });
    assert_eq!(slice(&|slice| slice.sliding_blocks = overflow.clone()), field("sliding_blocks.first"));
    for bad in [f32::NAN, f32::INFINITY, -1.0] {
        assert_eq!(sampling(&|sampling| sampling.temperature = bad), field("sampling.temperature"));
        assert_eq!(sampling(&|sampling| sampling.top_p = bad), field("sampling.top_p"));
        assert_eq!(sampling(&|sampling| sampling.min_p = bad), field("sampling.min_p"));
    }
    assert_eq!(sampling(&|sampling| sampling.top_p = 0.0), field("sampling.top_p"));
    assert_eq!(sampling(&|sampling| sampling.top_k = Some(0)), field("sampling.top_k"));
    assert_eq!(sampling(&|sampling| sampling.num_logprobs = Some(5000)), field("sampling.num_logprobs"));
    assert_eq!(sampling(&|sampling| sampling.bias_tokens = vec![1]), field("sampling.biases"));
    let nan = |sampling: &mut v1::Sampling| {
        (sampling.bias_tokens, sampling.biases) = (vec![1], vec![f32::NAN]);
    };
    assert_eq!(sampling(&nan), field("sampling.biases[0]"));
    let penalties = |sampling: &mut v1::Sampling| sampling.penalties = Some(v1::Penalties::default());
    assert_eq!(sampling(&penalties), field("sampling.penalties.repetition"));
}

#[test]
fn workers_are_read_with_the_same_care() {
    let offer = v1::Offer { address: "nowhere".to_owned(), ..Default::default() };
    assert_eq!(reply_refused(Reply::Offer(offer)), "offer.address");
    let kept = |kv_dtypes: &[i32]| {
        let (address, kv_dtypes) = ("a:1".to_owned(), kv_dtypes.to_vec());
        reply_refused(Reply::Offer(v1::Offer { address, kv_dtypes, ..Default::default() }))
    };
    assert_eq!(kept(&[1, 0]), "offer.kv_dtypes[1]");
    assert_eq!(kept(&[9]), "offer.kv_dtypes[0]");
    assert_eq!(kept(&[2, 3, 2]), "offer.kv_dtypes[2]", "twice the same");
    assert_eq!(kept(&[1, 2, 3, 1]), "offer.kv_dtypes", "more than there are");
    let pulse = v1::WorkerPulse { waiting_for: Some(u32::MAX), ..Default::default() };
    assert_eq!(reply_refused(Reply::Pulse(pulse)), "pulse.waiting_for");
    let sample = v1::Sample { logprob: Some(f32::NAN), ..Default::default() };
    let output = Some(v1::StepOutput { step: 1, samples: vec![sample] });
    assert_eq!(
        reply_refused(Reply::Done(v1::Done { output, ..Default::default() })),
        "done.output.samples[0].logprob"
    );
    let layers = vec![v1::LayerLoads { rows: vec![1] }, v1::LayerLoads::default()];
    assert_eq!(
        reply_refused(Reply::Loads(v1::Loads { epoch: 1, layers, ..Default::default() })),
        "loads.layers"
    );
    let lost = v1::Lost { reason: "x".repeat(5000), ..Default::default() };
    assert_eq!(reply_refused(Reply::Lost(lost)), "lost.reason");
    assert_eq!(FromWorker::try_from(v1::WorkerMessage::default()).unwrap_err().field, "said");
}

#[test]
fn long_reasons_are_cut_before_they_travel() {
    let said = ToWorker::Turned { reason: "é".repeat(4000), may_retry: false };
    let arrived = ToWorker::try_from(v1::CoordinatorMessage::from(said)).unwrap();
    assert_eq!(arrived, ToWorker::Turned { reason: "é".repeat(2048), may_retry: false });
}
