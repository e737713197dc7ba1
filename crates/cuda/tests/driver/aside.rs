//! Copies beside the stream, and memory of the host that the GPU reads.

use crate::fake::{refuse, take_log};
use crate::scenarios::{download, noise, open, upload};
use chorale_cuda::{Driver, Gpu, GpuError, Point, Transfer};

/// Bytes of a copy here.
const LEN: usize = 10_000;

/// Asks until it is past; that it was not at first was a question in vain.
fn ask_until_past(gpu: &Driver, point: Point) -> usize {
    (0..100).find(|_| gpu.is_past(point).unwrap()).unwrap()
}

fn copy_aside(gpu: &Driver, after: Point, from: u64, to: u64) -> Result<Point, GpuError> {
    // SAFETY: callers allocated that much, and keep to what it asks.
    unsafe { gpu.copy_aside(after, &[Transfer { from, to, len: LEN }]) }
}

fn copy(gpu: &Driver, from: u64, to: u64) {
    // SAFETY: callers allocated that much.
    unsafe { gpu.copy(from, to, LEN) }.unwrap();
}

/// Memory of the host that holds this, by way of the GPU.
fn host_memory(gpu: &Driver, bytes: &[u8]) -> u64 {
    let (on_gpu, host) = (upload(gpu, bytes), gpu.alloc_host(LEN).unwrap());
    copy(gpu, on_gpu, host);
    // SAFETY: it was allocated, and is not used any more.
    unsafe { gpu.free(on_gpu, bytes.len()) };
    host
}

pub(crate) fn copies_run_beside_the_stream() {
    let gpu = open();
    let host = host_memory(&gpu, &noise(LEN));
    let (first, second) = (gpu.alloc(LEN).unwrap(), gpu.alloc(LEN).unwrap());
    // Behind what fills the host's memory; the stream waits for it in turn.
    let done = copy_aside(&gpu, gpu.point().unwrap(), host, first).unwrap();
    gpu.follow(done).unwrap();
    copy(&gpu, first, second);
    assert!(download(&gpu, second, LEN) == noise(LEN));
    // And back, another way round.
    let mut other = noise(LEN);
    other.reverse();
    let changed = upload(&gpu, &other);
    let done = copy_aside(&gpu, gpu.point().unwrap(), changed, host).unwrap();
    gpu.follow(done).unwrap();
    copy(&gpu, host, second);
    assert!(download(&gpu, second, LEN) == other);
}

pub(crate) fn points_are_past_in_order() {
    let gpu = open();
    let host = host_memory(&gpu, &noise(LEN));
    let to = gpu.alloc(2 * LEN).unwrap();
    let before = gpu.point().unwrap();
    let first = copy_aside(&gpu, before, host, to).unwrap();
    let second = copy_aside(&gpu, before, host, to + LEN as u64).unwrap();
    assert!(before < first && first < second);
    assert!(ask_until_past(&gpu, second) > 0);
    assert!(gpu.is_past(first).unwrap() && gpu.is_past(before).unwrap());
    // More than events are kept for, each waited for in its turn or never.
    let points: Vec<Point> = (0..200).map(|_| copy_aside(&gpu, before, host, to).unwrap()).collect();
    gpu.follow(points[150]).unwrap();
    gpu.follow(points[0]).unwrap();
    ask_until_past(&gpu, points[100]);
    gpu.wait().unwrap();
    assert!(points.iter().all(|&point| gpu.is_past(point).unwrap()));
}

pub(crate) fn host_memory_that_cannot_be_had_is_no_failure() {
    let gpu = open();
    refuse("cuMemHostAlloc", 2, 0);
    // It is asked for once more when all that was given back is free.
    let address = gpu.alloc_host(LEN).unwrap();
    // SAFETY: it was allocated, and is not used.
    unsafe { gpu.free_host(address, LEN) };
    refuse("cuMemHostAlloc", 801, 0);
    let refused = gpu.alloc_host(LEN).unwrap_err();
    assert!(matches!(refused, GpuError::Driver { call: "cuMemHostAlloc", .. }), "{refused}");
}

pub(crate) fn host_memory_outlives_the_copies_that_use_it() {
    let gpu = open();
    let host = host_memory(&gpu, &noise(LEN));
    let to = gpu.alloc(LEN).unwrap();
    copy_aside(&gpu, gpu.point().unwrap(), host, to).unwrap();
    // SAFETY: both were allocated, and nothing that is enqueued later uses them.
    unsafe {
        gpu.free_host(host, LEN);
        gpu.free(to, LEN);
    }
    copy_aside(&gpu, gpu.point().unwrap(), host_memory(&gpu, &noise(LEN)), gpu.alloc(LEN).unwrap()).unwrap();
    gpu.wait().unwrap();
    take_log();
    let late = gpu.alloc_host(LEN).unwrap();
    // SAFETY: it was allocated, and is not used.
    unsafe { gpu.free_host(late, LEN) };
    drop(gpu);
    // Two that the test has not given back.
    assert_eq!(take_log(), "closed with 2 memories\n");
}

pub(crate) fn a_copy_that_fails_fails_for_good() {
    fails_for_good("cuMemcpyAsync");
}

pub(crate) fn a_wait_that_fails_fails_for_good() {
    fails_for_good("cuStreamWaitEvent");
}

pub(crate) fn a_question_that_fails_fails_for_good() {
    fails_for_good("cuEventQuery");
}

fn fails_for_good(call: &str) {
    let gpu = open();
    let host = host_memory(&gpu, &noise(LEN));
    let to = gpu.alloc(LEN).unwrap();
    let before = gpu.point().unwrap();
    refuse(call, 700, 0);
    let failed = copy_aside(&gpu, before, host, to).and_then(|done| gpu.is_past(done)).unwrap_err();
    assert!(matches!(&failed, GpuError::Driver { call: found, .. } if *found == call), "{failed}");
    assert_eq!(gpu.point(), Err(failed.clone()));
    assert_eq!(gpu.wait(), Err(failed));
}
