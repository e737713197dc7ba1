//! What was logged: kept as it is written, for the tests of both doors.

use serde_json::Value;
use std::io::{self, Write};
use std::sync::{Arc, Mutex};
use tracing_subscriber::fmt::MakeWriter;

#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<Mutex<Vec<u8>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Lines {
    pub(crate) fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// What stands in the lines of requests, with their levels.
    pub(crate) fn requests(&self) -> Vec<Value> {
        let parse = |line| serde_json::from_str::<Value>(line).unwrap();
        let lines: Vec<Value> = self.text().lines().map(parse).collect();
        let fields = |line: &Value| {
            let mut fields = line["fields"].clone();
            fields["level"] = line["level"].clone();
            fields
        };
        lines.iter().map(fields).filter(|fields| fields["message"] == "request").collect()
    }
}
