//! Any bytes are a safetensors file or an error, and the format's own crate
//! agrees, but for names that are there twice: it keeps one of the two.
//! Seeds: the fixtures' shards.

#![no_main]

use chorale_model::checkpoint::Header;
use libfuzzer_sys::fuzz_target;
use safetensors::SafeTensors;
use std::path::Path;

fuzz_target!(|content: &[u8]| {
    let reference = SafeTensors::read_metadata(content);
    match Header::parse(Path::new("x.safetensors"), content) {
        Ok(header) => {
            assert!(reference.is_ok(), "only we accept");
            let mut end = header.tensors.first().map_or(0, |tensor| tensor.bytes.start);
            for tensor in &header.tensors {
                assert!(content.get(tensor.bytes.clone()).is_some());
                assert_eq!(tensor.bytes.start, end);
                end = tensor.bytes.end;
            }
        }
        Err(error) => {
            let message = error.to_string();
            assert!(message.contains("x.safetensors"));
            assert!(reference.is_err() || message.contains("twice"), "only we refuse: {message}");
        }
    }
});
