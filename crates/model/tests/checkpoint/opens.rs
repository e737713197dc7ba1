//! Valid checkpoints: what they hold, in either layout.

use crate::support::{Copy, fixture};
use crate::writer::Geometry;
use bytes::Bytes;
use chorale_device::YarnParams;
use chorale_model::checkpoint::{Checkpoint, Layout, dense_views, expert_views};
use chorale_model::shard::ShardSpec;
use safetensors::SafeTensors;
use std::collections::BTreeMap;
use std::fs;

/// Every byte that a rank holds, by what it is.
pub(crate) fn contents(checkpoint: &Checkpoint, spec: &ShardSpec) -> Vec<(String, Vec<u8>)> {
    let mut all = Vec::new();
    let mut add = |name: String, bytes: &[u8]| all.push((name, bytes.to_vec()));
    if spec.attention {
        for (name, bytes) in dense_views("embedding", "", &checkpoint.embedding().unwrap()) {
            add(name.to_owned(), bytes);
        }
        add("final_norm".to_owned(), &checkpoint.final_norm().unwrap());
        for (name, bytes) in dense_views("head", "", &checkpoint.head(spec).unwrap()) {
            add(name.to_owned(), bytes);
        }
    }
    for layer in 0..checkpoint.config().num_layers() {
        if spec.attention {
            for (name, bytes) in checkpoint.layer(layer, spec).unwrap().views() {
                add(format!("{layer}.{name}"), bytes);
            }
        } else {
            for (name, bytes) in expert_views(&checkpoint.experts(layer, &spec.experts[layer]).unwrap()) {
                add(format!("{layer}.{name}"), bytes);
            }
        }
    }
    all
}

fn whole(checkpoint: &Checkpoint) -> Vec<(String, Vec<u8>)> {
    contents(checkpoint, &ShardSpec::whole(checkpoint.config()))
}

/// The tensors that are asked for are those of a file, and what is given for
/// them is what is read.
#[test]
fn a_checkpoint_that_lies_in_no_file_holds_what_it_was_given() {
    let fixture = fixture("b-awkward");
    let opened = Checkpoint::open(&fixture).unwrap();
    let mut tensors = BTreeMap::new();
    for entry in fs::read_dir(&fixture).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            let file = fs::read(path).unwrap();
            for (name, tensor) in SafeTensors::deserialize(&file).unwrap().iter() {
                tensors.insert(name.to_owned(), Bytes::copy_from_slice(tensor.data()));
            }
        }
    }
    let made = Checkpoint::made(opened.config().clone(), |name, _| tensors[name].clone());
    assert!(whole(&made) == whole(&opened));
    assert_eq!(made.config(), opened.config());
}

#[test]
fn the_fixtures_open_with_their_geometry() {
    for (name, hidden, intermediate, layers, experts, top_k, heads, vocab) in [
        ("a-small", 64, 96, 4, 8, 4, (4, 2), 512),
        ("b-awkward", 96, 160, 3, 5, 2, (6, 3), 777),
        ("c-ratio", 96, 96, 6, 32, 4, (16, 2), 1024),
    ] {
        let checkpoint = Checkpoint::open(&fixture(name)).unwrap();
        let config = checkpoint.config();
        assert_eq!(checkpoint.layout(), Layout::HuggingFace);
        assert_eq!((config.hidden_size, config.intermediate_size), (hidden, intermediate), "{name}");
        assert_eq!((config.num_layers(), config.vocab_size), (layers, vocab), "{name}");
        assert_eq!((config.num_experts, config.experts_per_token), (experts, top_k), "{name}");
        assert_eq!((config.num_attention_heads, config.num_key_value_heads), heads, "{name}");
        assert_eq!(config.windows[..3], [Some(128), None, Some(128)], "{name}");
        let eos: Vec<u32> = (vocab as u32 - 3..vocab as u32).collect();
        assert_eq!(config.eos_token_ids, eos, "{name}");
        assert_eq!(config.rms_norm_eps, 1e-5);
        assert_eq!(config.swiglu_limit, 7.0);
        assert_eq!(config.max_position_embeddings, 131072);
        assert!(config.attention_bias && !config.tie_word_embeddings);
        assert_eq!(config.rope.theta, 150000.0);
        assert_eq!(
            config.rope.yarn,
            Some(YarnParams {
                factor: 32.0,
                beta_fast: 32.0,
                beta_slow: 1.0,
                original_context: 4096.0,
                truncate: false,
                attention_factor: 1.3465735902799727,
            })
        );
    }
}

#[test]
fn both_layouts_give_the_same_bytes() {
    let hugging_face = Checkpoint::open(&fixture("a-small")).unwrap();
    let original = Checkpoint::open(&fixture("a-small/original")).unwrap();
    assert_eq!(original.layout(), Layout::Original);
    assert!(whole(&hugging_face) == whole(&original));

    let mut config = original.config().clone();
    assert_eq!(config.eos_token_ids, [0u32; 0], "the layout's config.json names none");
    config.eos_token_ids = hugging_face.config().eos_token_ids.clone();
    assert_eq!(&config, hugging_face.config());
}

#[test]
fn a_folder_with_only_original_inside_is_opened() {
    let outer = Copy::empty();
    let inner = Copy::of("a-small/original");
    fs::create_dir(outer.path().join("original")).unwrap();
    for entry in fs::read_dir(inner.path()).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), outer.path().join("original").join(entry.file_name())).unwrap();
    }
    let checkpoint = outer.open().unwrap();
    assert_eq!(checkpoint.layout(), Layout::Original);
    assert!(checkpoint.config().eos_token_ids.is_empty());

    outer.write("generation_config.json", br#"{"eos_token_id": [509, 511, 509]}"#);
    assert_eq!(outer.open().unwrap().config().eos_token_ids, [509, 511]);

    fs::copy(fixture("a-small/config.json"), outer.path().join("config.json")).unwrap();
    assert_eq!(outer.open().unwrap().layout(), Layout::Original, "without weights beside it");
}

#[test]
fn views_are_the_files_bytes_where_they_lie() {
    let dir = tempfile::tempdir().unwrap();
    Geometry::SMALL.write_hugging_face(dir.path());
    let file = fs::read(dir.path().join("model.safetensors")).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let embedding = checkpoint.embedding().unwrap().parts[0].weight.clone();
    assert_eq!((embedding.len(), checkpoint.embedding().unwrap().rows()), (17 * 32 * 2, 17));
    assert!(file.windows(embedding.len()).any(|window| window == &embedding[..]));
    drop(checkpoint);
    assert_eq!(embedding.len(), 17 * 32 * 2, "a view keeps the mapping alive");
}

#[test]
fn an_index_is_followed_not_counted() {
    let one = Geometry::SMALL.hugging_face();
    let many = Geometry { files: 3, ..Geometry::SMALL }.hugging_face();
    assert!(whole(&one.1) == whole(&many.1));
    assert_eq!(one.1.fingerprint(), many.1.fingerprint(), "sharding is no part of the model");
}

#[test]
fn files_that_the_index_does_not_name_are_left_alone() {
    let copy = Copy::of("a-small");
    copy.write("consolidated.safetensors", "not even one");
    copy.write("model.safetensors", "nor this");
    copy.open().unwrap();
}

#[test]
fn a_symbolic_link_is_followed_as_in_the_hubs_cache() {
    let blobs = Copy::of("a-small");
    let snapshot = Copy::empty();
    for entry in fs::read_dir(blobs.path()).unwrap() {
        let entry = entry.unwrap();
        std::os::unix::fs::symlink(entry.path(), snapshot.path().join(entry.file_name())).unwrap();
    }
    snapshot.open().unwrap();
}

#[test]
fn a_tied_head_is_the_embedding_even_if_a_head_is_there() {
    let copy = Copy::of("a-small");
    copy.edit_json("config.json", |config| config["tie_word_embeddings"] = true.into());
    let checkpoint = copy.open().unwrap();
    let head = checkpoint.head(&ShardSpec::whole(checkpoint.config())).unwrap();
    assert_eq!(head.parts[0].weight, checkpoint.embedding().unwrap().parts[0].weight);

    let second = "model-00002-of-00002.safetensors";
    copy.rename_tensor(second, "lm_head.weight", "model.rotary_emb.inv_freq");
    copy.open().unwrap();
}

#[test]
fn without_attention_bias_there_are_no_biases() {
    let copy = Copy::empty();
    Geometry::SMALL.write_hugging_face(copy.path());
    copy.edit_json("config.json", |config| config["attention_bias"] = false.into());
    // The biases' bytes get a name that is known to be harmless.
    copy.edit_header("model.safetensors", |header| {
        let map = header.as_object_mut().unwrap();
        let biases: Vec<String> = map
            .keys()
            .filter(|name| name.contains("self_attn") && name.ends_with(".bias"))
            .cloned()
            .collect();
        assert_eq!(biases.len(), 8);
        for (i, name) in biases.iter().enumerate() {
            let entry = map.remove(name).unwrap();
            map.insert(format!("model.layers.{i}.self_attn.rotary_emb.inv_freq"), entry);
        }
    });
    let checkpoint = copy.open().unwrap();
    let layer = checkpoint.layer(0, &ShardSpec::whole(checkpoint.config())).unwrap();
    assert!(layer.qkv.parts.iter().chain(&layer.output.parts).all(|part| part.bias.is_none()));
}

#[test]
fn fingerprints_tell_weights_apart() {
    let copy = Copy::of("a-small");
    let before = copy.open().unwrap().fingerprint();
    copy.edit_tensor("model-00001-of-00002.safetensors", "model.layers.0.self_attn.o_proj.weight", |bytes| {
        let last = bytes.len() - 1;
        bytes[last] ^= 1;
    });
    assert_ne!(before, copy.open().unwrap().fingerprint());
}

#[test]
fn fingerprints_tell_geometry_and_configuration_apart() {
    let small = Geometry::SMALL.hugging_face().1.fingerprint();
    assert_eq!(small, Geometry::SMALL.hugging_face().1.fingerprint());
    assert_eq!(small.to_string().len(), 64);
    let copy = Copy::empty();
    for (key, value) in [("sliding_window", 4.into()), ("swiglu_limit", serde_json::json!(6.5))] {
        Geometry::SMALL.write_hugging_face(copy.path());
        copy.edit_json("config.json", |config| config[key] = value);
        assert_ne!(small, copy.open().unwrap().fingerprint(), "{key}");
    }
    assert_ne!(small, Geometry { vocab: 18, ..Geometry::SMALL }.hugging_face().1.fingerprint());
}
