//! What holds for any bytes and any geometry: nothing panics, and whatever is
//! accepted can be read to its last byte.

use crate::opens::contents;
use crate::shards::check_parts_make_the_whole;
use crate::support::{Copy, INDEX, fixture, split_header, with_header};
use crate::writer::Geometry;
use chorale_model::checkpoint::{CheckpointError, Header, Index};
use chorale_model::config::ModelConfig;
use chorale_model::shard::ShardSpec;
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use safetensors::SafeTensors;
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

/// Accepted headers are sound, and the format's own crate accepts them, too.
fn check_header(content: &[u8]) {
    let parsed = Header::parse(Path::new("x.safetensors"), content);
    let reference = SafeTensors::read_metadata(content);
    match &parsed {
        Ok(header) => {
            assert!(reference.is_ok(), "{:?}", reference.err());
            let mut end = None;
            for tensor in &header.tensors {
                assert!(content.get(tensor.bytes.clone()).is_some());
                assert!(end.is_none_or(|end| end == tensor.bytes.start));
                end = Some(tensor.bytes.end);
            }
        }
        Err(CheckpointError::LfsPointer { .. }) => {}
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("x.safetensors"), "{message}");
            let is_duplicate = message.contains("twice");
            assert!(reference.is_err() || is_duplicate, "only we refuse: {message}");
        }
    }
}

fn geometry() -> impl Strategy<Value = Geometry> {
    let attention = (1usize..5, 1usize..4, (1usize..6).prop_map(|half| half * 2));
    let experts = (1usize..8).prop_flat_map(|experts| (Just(experts), 1..=experts));
    let rest = (1usize..4, 1usize..4, 5usize..40, 1usize..4, 1usize..300, 1usize..4);
    (attention, experts, rest).prop_map(
        |((kv_heads, heads_each, head_dim), (experts, top_k), (h, i, vocab, layers, window, files))| {
            Geometry {
                hidden: h * 32,
                intermediate: i * 32,
                kv_heads,
                heads_each,
                head_dim,
                experts,
                top_k,
                vocab,
                layers,
                window,
                files,
            }
        },
    )
}

fn json_value() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0u64..200).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        proptest::collection::vec(0u64..9, 0..5).prop_map(Value::from),
        Just(json!({"rope_type": "yarn", "factor": 2})),
    ]
}

/// The same cases in every run; `tests/fuzz` looks for new ones.
fn cases(cases: u32) -> ProptestConfig {
    let rng_seed = RngSeed::Fixed(1);
    ProptestConfig { cases, rng_seed, failure_persistence: None, ..ProptestConfig::default() }
}

/// A place in some bytes and what to put there.
fn mutations() -> impl Strategy<Value = Vec<(prop::sample::Index, u8)>> {
    proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4)
}

fn mutate(bytes: &mut [u8], mutations: &[(prop::sample::Index, u8)]) {
    for (place, byte) in mutations {
        bytes[place.index(bytes.len())] = *byte;
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_geometry_reads_alike_from_both_layouts(geometry in geometry(), count in 1usize..4) {
        let (_first, hugging_face) = geometry.hugging_face();
        let (_second, original) = geometry.original();
        let whole = ShardSpec::whole(hugging_face.config());
        prop_assert!(contents(&hugging_face, &whole) == contents(&original, &whole));
        let count = count.min(geometry.kv_heads);
        check_parts_make_the_whole(&hugging_face, count);
        check_parts_make_the_whole(&original, count);
    }
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn any_bytes_are_a_header_or_an_error(content in proptest::collection::vec(any::<u8>(), 0..200)) {
        check_header(&content);
    }

    #[test]
    fn any_text_is_a_header_or_an_error(text in "[\\[\\]{}\":,0-9a-zA-Z_ -]{0,80}", data in 0usize..9) {
        check_header(&with_header(text.as_bytes(), &vec![0; data]));
    }

    #[test]
    fn a_header_with_some_other_numbers(
        field in prop::sample::select(vec!["dtype", "shape", "data_offsets"]),
        value in json_value(),
        which in any::<prop::sample::Index>(),
    ) {
        let content = fs::read(fixture("a-small/model-00001-of-00002.safetensors")).unwrap();
        let (header, data) = split_header(&content);
        let mut header: Value = serde_json::from_slice(header).unwrap();
        let tensors = header.as_object_mut().unwrap();
        let name = tensors.keys().nth(which.index(tensors.len())).unwrap().clone();
        tensors[&name][field] = value;
        check_header(&with_header(&serde_json::to_vec(&header).unwrap(), data));
    }

    #[test]
    fn a_header_with_some_other_bytes(mutations in mutations()) {
        let mut content = fs::read(fixture("a-small/model-00001-of-00002.safetensors")).unwrap();
        let end = 8 + split_header(&content).0.len();
        mutate(&mut content[..end], &mutations);
        check_header(&content);
    }

    #[test]
    fn an_index_with_some_other_bytes(mutations in mutations()) {
        let mut content = fs::read(fixture("a-small").join(INDEX)).unwrap();
        mutate(&mut content, &mutations);
        if let Ok(index) = Index::parse(Path::new("i"), &String::from_utf8_lossy(&content)) {
            prop_assert!(index.files.values().all(|path| !path.contains("..") || !path.contains('/')));
        }
    }

    #[test]
    fn a_config_with_some_other_bytes(mutations in mutations()) {
        for name in ["a-small/config.json", "a-small/original/config.json"] {
            let mut content = fs::read(fixture(name)).unwrap();
            mutate(&mut content, &mutations);
            let text = String::from_utf8_lossy(&content);
            check_config(ModelConfig::from_hugging_face(&text, Some(&text)));
            check_config(ModelConfig::from_original(&text, Some(&text)));
        }
    }

    #[test]
    fn a_config_with_some_other_values(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), json_value()), 1..3),
    ) {
        for name in ["a-small/config.json", "a-small/original/config.json"] {
            let mut config: Value = serde_json::from_slice(&fs::read(fixture(name)).unwrap()).unwrap();
            for (which, value) in &changes {
                let fields = config.as_object_mut().unwrap();
                let field = fields.keys().nth(which.index(fields.len())).unwrap().clone();
                fields[&field] = value.clone();
            }
            let text = config.to_string();
            check_config(ModelConfig::from_hugging_face(&text, None));
            check_config(ModelConfig::from_original(&text, None));
        }
    }
}

/// Whatever is accepted can be computed with.
fn check_config(config: Result<ModelConfig, CheckpointError>) {
    let Ok(config) = config else { return };
    assert!(config.hidden_size % 32 == 0 && config.intermediate_size % 32 == 0);
    assert!(config.head_dim % 2 == 0 && config.num_attention_heads % config.num_key_value_heads == 0);
    assert!((1..=config.num_experts).contains(&config.experts_per_token));
    assert!(config.num_layers() > 0 && config.vocab_size > 0 && config.max_position_embeddings > 0);
    assert!(config.rms_norm_eps > 0.0 && config.swiglu_limit > 0.0 && config.rope.theta > 1.0);
    assert!(config.windows.iter().flatten().all(|&window| window > 0));
    if let Some(yarn) = config.rope.yarn {
        assert!(yarn.factor >= 1.0 && yarn.attention_factor > 0.0 && yarn.attention_factor.is_finite());
        assert!(yarn.beta_fast > yarn.beta_slow && yarn.beta_slow > 0.0 && yarn.original_context > 0.0);
    }
}

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn a_checkpoint_with_some_other_bytes_reads_or_is_refused(
        file in prop::sample::select(vec!["config.json", "model.safetensors"]),
        mutations in mutations(),
    ) {
        let copy = Copy::empty();
        Geometry::SMALL.write_hugging_face(copy.path());
        let mut content = copy.read(file);
        // Mostly the header: weights are all alike.
        let end = content.len().min(9000);
        mutate(&mut content[..end], &mutations);
        copy.write(file, content);
        if let Ok(checkpoint) = copy.open() {
            let spec = ShardSpec::whole(checkpoint.config());
            checkpoint.shard_size(&spec).unwrap();
            for layer in 0..checkpoint.config().num_layers() {
                let _ = checkpoint.layer(layer, &spec);
            }
        }
    }
}
