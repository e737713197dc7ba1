//! Models that no fixture is: made from one, by changing what its weights mean.

use safetensors::SafeTensors;
use safetensors::tensor::{TensorView, serialize_to_file};
use serde_json::Value;
use std::path::Path;

/// Writes a checkpoint with each head of another cut into `by`: the same weights,
/// but more and narrower heads. Each takes the sink of the head that it was part of.
pub fn cut_heads(source: &Path, target: &Path, by: usize) {
    for entry in std::fs::read_dir(source).expect("the model is there") {
        let path = entry.expect("the directory can be read").path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let to = target.join(name);
        let bytes = std::fs::read(&path).expect("a model's files can be read");
        match name {
            "config.json" => {
                let mut config: Value = serde_json::from_slice(&bytes).expect("a configuration is JSON");
                for key in ["num_attention_heads", "num_key_value_heads"] {
                    config[key] = (number(&config, key) * by).into();
                }
                config["head_dim"] = (number(&config, "head_dim") / by).into();
                std::fs::write(&to, config.to_string()).expect("the model can be written");
            }
            _ if name.ends_with(".safetensors") => cut_sinks(&bytes, &to, by),
            _ => std::fs::write(&to, bytes).expect("the model can be written"),
        }
    }
}

fn number(config: &Value, key: &str) -> usize {
    config[key].as_u64().expect("a size is a number") as usize
}

fn cut_sinks(bytes: &[u8], to: &Path, by: usize) {
    let tensors = SafeTensors::deserialize(bytes).expect("a checkpoint is in the safetensors format");
    let changed: Vec<_> = tensors
        .iter()
        .map(|(name, view)| {
            let (mut shape, mut data) = (view.shape().to_vec(), view.data().to_vec());
            if name.ends_with(".sinks") {
                shape[0] *= by;
                data = data.chunks_exact(2).flat_map(|sink| sink.repeat(by)).collect();
            }
            (name.to_owned(), view.dtype(), shape, data)
        })
        .collect();
    let views = changed.iter().map(|(name, dtype, shape, data)| {
        (name, TensorView::new(*dtype, shape.clone(), data).expect("a tensor has its own size"))
    });
    serialize_to_file(views, None, to).expect("the model can be written");
}
