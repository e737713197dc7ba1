//! kbench's measurements, run through with a small geometry: nothing that they
//! say about time means anything here, but no GPU's time is lost to a mistake
//! in them.

use chorale_cuda::Gpu;
use chorale_emulator::{Emulator, Options};
use chorale_kbench::bench::{self, Extent, Geometry, Machine, Report};
use std::sync::Arc;
use std::time::Duration;

const GEOMETRY: Geometry =
    Geometry { hidden: 128, heads: 8, kv_heads: 1, experts: 8, top_k: 2, vocab: 515, window: 32, layers: 3 };

#[test]
fn every_measurement_runs_through() {
    for capability in [(8, 0), (9, 0)] {
        let gpu = Emulator::new(Options { capability, ..Options::default() }).unwrap();
        let extent = Extent {
            decodes: vec![1, 5],
            operation_prefills: vec![130],
            step_prefills: vec![130],
            context: 256,
            fill_rows: 128,
            steps: 3,
            rotated_bytes: 1 << 19,
            product: 128,
            rounds: 1,
            spare_bytes: 64 << 20,
            ..Extent::full()
        };
        let mut report = Report::new(gpu.facts(), 0, Duration::ZERO);
        let machine = Machine::emulated(Arc::clone(&gpu) as Arc<dyn Gpu>);
        bench::run(&machine, &GEOMETRY, &extent, &mut report);
        report.print();
        assert!(report.is_well());
        let folder = tempfile::tempdir().unwrap();
        report.write(folder.path()).unwrap();
        let text = std::fs::read_to_string(folder.path().join("measurements.json")).unwrap();
        for what in [
            "limit: copying memory",
            "attention",
            "experts",
            "head",
            "decode step",
            "decode step, launched one by one",
            "decode step, batch-invariant",
            "prompt",
            "prompt, batch-invariant",
            "load",
        ] {
            assert!(text.contains(&format!("\"what\": \"{what}\"")), "{what} was not measured");
        }
    }
}
