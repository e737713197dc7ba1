//! What the driver backend does, and what it says where it cannot.

use crate::fake::{memory_calls, refuse, take_log};
use bytemuck::{Pod, Zeroable};
use chorale_cuda::{
    Absence, Cuda, Driver, Gpu, GpuError, Kernel, Kernels, Launches, Options, TensorMap, probe,
};
use chorale_device::Device as _;
use std::sync::Arc;

/// What every kernel of the fake driver takes.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AddArgs {
    address: u64,
    count: u32,
    addend: u32,
}

const ADD: Kernel = Kernel { name: "add", threads: 128 };
/// Compiled for an older generation, so it waits for the kernel before it.
const PLAIN: Kernel = Kernel { name: "plain", threads: 64 };

const FATBINS: &[(&str, &[u8])] = &[
    ("generic", b"fatbin\nkernel add 16 1024 90 256\nkernel plain 16 0 80 256\n"),
    ("copy_sm90", b"fatbin\nkernel bulk 16 0 90 384\n"),
];
const KERNELS: Kernels<'static> = Kernels { fatbins: FATBINS, sources: &[], headers: &[] };

pub(crate) fn options() -> Options<'static> {
    Options { kernels: KERNELS, ..Options::default() }
}

pub(crate) fn open() -> Arc<Driver> {
    Driver::open(0, &options()).unwrap()
}

fn refusal() -> String {
    Driver::open(0, &options()).err().unwrap().to_string()
}

pub(crate) fn upload(gpu: &Driver, bytes: &[u8]) -> u64 {
    let address = gpu.alloc(bytes.len()).unwrap();
    // SAFETY: that much was allocated.
    unsafe { gpu.upload(bytes, address) }.unwrap();
    address
}

pub(crate) fn download(gpu: &Driver, from: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    // SAFETY: callers allocated that much.
    unsafe { gpu.download(from, &mut bytes) }.unwrap();
    bytes
}

/// Numbers that do not repeat after a chunk.
pub(crate) fn noise(len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (i.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}

/// A list that adds 1 to a number as often as it has launches.
pub(crate) fn additions(address: u64, launches: usize, kernel: Kernel) -> Launches {
    let mut list = Launches::default();
    for _ in 0..launches {
        list.push(kernel, [2, 1, 1], 4096, &AddArgs { address, count: 1, addend: 1 });
    }
    list
}

pub(crate) fn run(gpu: &Driver, list: &Launches) -> Result<(), GpuError> {
    // SAFETY: the kernels get what they take.
    unsafe { gpu.run(list) }
}

fn number(gpu: &Driver, address: u64) -> u32 {
    u32::from_le_bytes(download(gpu, address, 4).try_into().unwrap())
}

pub(crate) fn says_that_there_is_no_driver() {
    match probe() {
        Err(Absence::NoLibrary) => {
            assert_eq!(
                refusal(),
                "no CUDA device: libcuda.so.1, which comes with NVIDIA's driver, is not found. Install driver 580 or \
                 newer; in a container, start it with the NVIDIA container toolkit (`--gpus all`). `--device cpu` \
                 needs none of it"
            );
        }
        found => eprintln!("skipped: this machine has a driver: {found:?}"),
    }
}

pub(crate) fn says_that_the_driver_is_too_old() {
    assert_eq!(probe(), Err(Absence::TooOld { version: 12080 }));
    assert!(refusal().contains("the driver is of CUDA 12.8, the kernels need CUDA 13.0: install driver 580"));
}

pub(crate) fn says_that_the_library_is_not_whole() {
    assert_eq!(probe(), Err(Absence::Incomplete { function: "cuInit" }));
    assert!(refusal().contains("libcuda.so.1 lacks cuInit"));
}

pub(crate) fn says_that_there_is_no_gpu() {
    assert_eq!(
        refusal(),
        "no CUDA device: the driver does not start: CUDA_ERROR_NO_DEVICE (100): no CUDA-capable device is detected. \
         The driver sees no GPU: look at `nvidia-smi -L`, CUDA_VISIBLE_DEVICES and, in a container, `--gpus all`. \
         `--device cpu` needs none"
    );
}

pub(crate) fn says_which_gpus_there_are() {
    let found = probe().unwrap();
    let seen: Vec<_> = found.iter().map(|gpu| (gpu.facts.name.as_str(), gpu.bus.as_str())).collect();
    assert_eq!(seen, [("Fake 0", "0000:17:00.0"), ("Fake 1", "0000:18:00.0")]);
    assert_eq!(found[0].uuid, "GPU-f0f1f2f3-f4f5-f6f7-f8f9-fafbfcfdfeff");
    let facts = &found[0].facts;
    assert_eq!((facts.capability, facts.num_sms, facts.shared_bytes_max), ((9, 0), 132, 232_448));
    assert_eq!((facts.driver, facts.memory_bytes), (13_000, 256 << 20));
    let refused = Driver::open(2, &options()).err().unwrap().to_string();
    assert!(refused.contains("device 2 is asked for and the driver shows 2"), "{refused}");
    assert_eq!(Driver::open(1, &options()).unwrap().facts().name, "Fake 1");
}

pub(crate) fn says_that_the_gpu_is_too_old() {
    let refused = refusal();
    assert!(refused.contains("Fake 0 has compute capability 7.5, the kernels need 8.0"), "{refused}");
}

pub(crate) fn loads_what_the_gpu_can_run() {
    assert_eq!(open().kernels(), ["add", "plain"]);
    let nothing = Kernels { fatbins: &[("a", b"fatbin of another GPU")], ..KERNELS };
    let refused = Driver::open(0, &Options { kernels: nothing, ..options() }).err().unwrap();
    assert!(refused.to_string().starts_with("no kernels for this GPU: a for Fake 0 (8.9): "), "{refused}");
}

pub(crate) fn bytes_come_back() {
    let gpu = open();
    assert_eq!(gpu.kernels(), ["add", "bulk", "plain"]);
    // Around what small copies are cut into, and around chunks of large ones.
    for len in [1, 100, 32 << 10, (32 << 10) + 1, 512 << 10, (512 << 10) + 1, 4 << 20, (37 << 20) + 5] {
        let mut bytes = noise(len);
        let address = upload(&gpu, &bytes);
        // They may change at once.
        bytes.fill(0);
        let copy = gpu.alloc(len).unwrap();
        // SAFETY: both have that much.
        unsafe { gpu.copy(address, copy, len) }.unwrap();
        assert!(download(&gpu, copy, len) == noise(len), "{len} bytes");
        for address in [address, copy] {
            // SAFETY: it was allocated, and is not used any more.
            unsafe { gpu.free(address, len) };
        }
    }
    // More small copies than the ring has pieces, of which none has left yet.
    let address = gpu.alloc(100 * 1000).unwrap();
    for (turn, bytes) in noise(100 * 1000).chunks(1000).enumerate() {
        // SAFETY: that much was allocated.
        unsafe { gpu.upload(bytes, address + 1000 * turn as u64) }.unwrap();
    }
    assert!(download(&gpu, address, 100 * 1000) == noise(100 * 1000));
}

pub(crate) fn answers_arrive_in_any_order() {
    let gpu = open();
    let address = upload(&gpu, &noise(1 << 20));
    // SAFETY: that much was allocated.
    let begin = |from: usize, len| unsafe { gpu.begin_download(address + from as u64, len) }.unwrap();
    let mut waiting: Vec<_> = (0..40).map(|i| (i, begin(i * 1000, 1000))).collect();
    let large = begin(0, 1 << 20);
    drop(begin(5, 100));
    waiting.reverse();
    let arrived = std::thread::spawn(move || {
        for (i, answer) in waiting {
            assert!(answer().unwrap() == noise(1 << 20)[i * 1000..][..1000]);
        }
        large().unwrap()
    });
    assert!(arrived.join().unwrap() == noise(1 << 20));
    // One that outlives the GPU's other parts.
    let late = begin(0, 10);
    drop(gpu);
    assert_eq!(late().unwrap(), noise(10));
}

pub(crate) fn memory_is_given_back_when_the_stream_is_past() {
    let gpu = open();
    let all = 256 << 20;
    assert_eq!(gpu.free_bytes().unwrap(), all);
    let half = gpu.alloc(all / 2).unwrap();
    let more = gpu.alloc(all / 4).unwrap();
    assert_eq!(gpu.alloc(all / 2), Err(GpuError::OutOfMemory { bytes: all / 2, free: all / 4 }));
    // SAFETY: it was allocated; what is enqueued with it comes before.
    unsafe {
        gpu.upload(&noise(1000), half).unwrap();
        gpu.copy(half, more, 1000).unwrap();
        gpu.free(half, all / 2);
    }
    let again = gpu.alloc(all / 2).unwrap();
    assert_eq!(gpu.free_bytes().unwrap(), all / 4);
    assert!(download(&gpu, more, 1000) == noise(1000));
    // SAFETY: as above.
    unsafe {
        gpu.free(again, all / 2);
        gpu.free(more, all / 4);
    }
    take_log();
    drop(gpu);
    assert_eq!(take_log(), "closed with 0 memories\n");
}

/// CUDA waits for kernels of all GPUs of the process then, which may wait for this
/// one's next.
pub(crate) fn steps_neither_take_nor_give_back_memory() {
    let gpu = open();
    let address = upload(&gpu, &[0; 4]);
    let list = additions(address, 8, ADD);
    let given_up = gpu.alloc(1000).unwrap();
    // SAFETY: it was allocated, and is not used.
    unsafe { gpu.free(given_up, 1000) };
    let before = memory_calls();
    let mut waiting = Vec::new();
    for step in 0..20_u32 {
        // SAFETY: that much was allocated.
        unsafe {
            gpu.upload(&step.to_le_bytes(), address).unwrap();
            run(&gpu, &list).unwrap();
            waiting.push(gpu.begin_download(address, 4).unwrap());
        }
        let after = gpu.point().unwrap();
        gpu.follow(after).unwrap();
        if waiting.len() == 3 {
            let answer = waiting.remove(0)().unwrap();
            assert_eq!(u32::from_le_bytes(answer.try_into().unwrap()), step - 2 + 8);
        }
    }
    assert_eq!((number(&gpu, address), memory_calls()), (27, before));
    drop(waiting);
    gpu.wait().unwrap();
    assert_eq!(memory_calls(), before + 1, "what was given up goes when somebody waits");
}

pub(crate) fn much_that_is_given_up_makes_room_for_what_is_taken() {
    let gpu = open();
    let len = 90 << 20;
    let give_up = |address| {
        // SAFETY: it was allocated, and is not used.
        unsafe { gpu.free(address, len) }
    };
    let addresses = [(); 3].map(|()| gpu.alloc(len).unwrap());
    addresses.into_iter().for_each(give_up);
    let before = memory_calls();
    give_up(gpu.alloc(len).unwrap());
    assert_eq!(memory_calls(), before + 4, "three were freed, and one taken");
}

pub(crate) fn pinned_memory_that_cannot_be_had_is_no_failure() {
    let gpu = open();
    let address = upload(&gpu, &[7; 100_000]);
    refuse("cuMemHostAlloc", 2, 0);
    // SAFETY: that much was allocated.
    let refused = unsafe { gpu.download(address, &mut [0; 100_000]) }.unwrap_err();
    assert_eq!(refused, GpuError::OutOfHostMemory { bytes: 128 << 10 });
    assert!(!Cuda::new(Arc::clone(&gpu) as Arc<dyn Gpu>).is_lost());
    assert_eq!(download(&gpu, address, 100_000), [7; 100_000]);
}

pub(crate) fn a_graph_that_there_is_no_memory_to_launch_is_given_up() {
    // When it is made, and later.
    for (turns_before, made, replayed) in [(1, 0, 0), (3, 1, 1)] {
        let gpu = open();
        let address = upload(&gpu, &[0; 4]);
        let list = additions(address, 8, ADD);
        (0..turns_before).for_each(|_| run(&gpu, &list).unwrap());
        refuse("cuGraphLaunch", 2, 0);
        (0..3).for_each(|_| run(&gpu, &list).unwrap());
        assert_eq!(number(&gpu, address), 8 * (turns_before + 3));
        let counters = gpu.counters();
        let found = (counters.graphs_made, counters.graphs_replayed, counters.graphs_refused);
        assert_eq!((found, counters.eager_launches), ((made, replayed, 1), 32));
    }
}

pub(crate) fn a_list_that_comes_again_is_a_graph() {
    let gpu = open();
    let address = upload(&gpu, &[0; 4]);
    let list = additions(address, 8, ADD);
    take_log();
    for turn in 1..=4 {
        run(&gpu, &list).unwrap();
        assert_eq!(number(&gpu, address), 8 * turn);
    }
    let line = "add 2,1,1 x 128 shared 4096 dependent\n";
    let launches = [format!("launch {line}").repeat(8), format!("capture {line}").repeat(8)].concat();
    assert_eq!(take_log(), format!("{launches}graph of 8\nreplay 8\nreplay 8\nreplay 8\n"));

    // Too short to be one.
    for _ in 0..3 {
        run(&gpu, &additions(address, 2, PLAIN)).unwrap();
    }
    assert_eq!(take_log(), "launch plain 2,1,1 x 64 shared 4096\n".repeat(6));
    let counters = gpu.counters();
    assert_eq!((counters.graphs_made, counters.graphs_replayed, counters.graphs_refused), (1, 2, 0));
    assert_eq!(counters.eager_launches, 14);

    // It may be told to do without, and begins anew when it is told otherwise.
    gpu.use_graphs(false);
    run(&gpu, &list).unwrap();
    gpu.use_graphs(true);
    for _ in 0..3 {
        run(&gpu, &list).unwrap();
    }
    let counters = gpu.counters();
    assert_eq!((counters.graphs_made, counters.graphs_replayed, counters.eager_launches), (2, 3, 30));

    drop(gpu);
    let plain = Driver::open(0, &Options { with_graphs: false, ..options() }).unwrap();
    let address = upload(&plain, &[0; 4]);
    let list = additions(address, 8, ADD);
    for _ in 0..3 {
        run(&plain, &list).unwrap();
    }
    assert_eq!((number(&plain, address), plain.counters().eager_launches), (24, 24));
}

pub(crate) fn a_list_that_cuda_makes_no_graph_of_runs() {
    for (call, code) in [
        ("cuStreamBeginCapture_v2", 900),
        ("cuStreamEndCapture", 901),
        ("cuGraphInstantiateWithFlags", 2),
        ("cuGraphUpload", 2),
    ] {
        let gpu = open();
        let address = upload(&gpu, &[0; 4]);
        let list = additions(address, 8, ADD);
        run(&gpu, &list).unwrap();
        refuse(call, code, 0);
        for _ in 0..3 {
            run(&gpu, &list).unwrap();
        }
        assert_eq!(number(&gpu, address), 32, "{call}");
        assert_eq!((gpu.counters().graphs_refused, gpu.counters().eager_launches), (1, 32), "{call}");
    }
}

pub(crate) fn a_launch_that_the_kernel_does_not_take_is_refused() {
    let gpu = open();
    let address = upload(&gpu, &[0; 4]);
    let args = AddArgs { address, count: 1, addend: 1 };
    let refused = |kernel: Kernel, grid: [u32; 3], shared: u32, long: bool| {
        let mut list = additions(address, 1, ADD);
        if long {
            list.push(kernel, grid, shared, &[args; 2])
        } else {
            list.push(kernel, grid, shared, &args)
        }
        run(&gpu, &list).unwrap_err().to_string()
    };
    let unknown = Kernel { name: "unknown", threads: 32 };
    let wide = Kernel { name: "add", threads: 512 };
    assert_eq!(refused(unknown, [1; 3], 0, false), "launch failed: kernel unknown is not among this GPU's");
    assert_eq!(refused(ADD, [1; 3], 0, true), "launch failed: kernel add takes 16 bytes, not 32");
    assert_eq!(refused(wide, [1; 3], 0, false), "launch failed: kernel add has at most 256 threads, not 512");
    assert_eq!(
        refused(ADD, [1; 3], 232_000, false),
        "launch failed: kernel add has at most 231424 bytes of dynamic shared memory here, not 232000"
    );
    assert_eq!(
        refused(ADD, [1, 65_536, 1], 0, false),
        "launch failed: kernel add has more blocks than a grid: [1, 65536, 1]"
    );
    // Nothing of those lists ran, and nothing is lost.
    assert_eq!(number(&gpu, address), 0);
}

pub(crate) fn what_fails_once_fails_for_good() {
    let gpu = open();
    let address = upload(&gpu, &[0; 4]);
    // SAFETY: that much was allocated.
    let begun = unsafe { gpu.begin_download(address, 4) }.unwrap();
    let device = Cuda::new(Arc::clone(&gpu) as Arc<dyn Gpu>);
    assert!(!device.is_lost());
    refuse("cuLaunchKernelEx", 700, 2);
    let text = "cuLaunchKernelEx failed: CUDA_ERROR_ILLEGAL_ADDRESS (700): an illegal memory access was encountered, \
                at kernel add or before";
    let failed = |result: Result<(), GpuError>| assert_eq!(result.unwrap_err().to_string(), text);
    failed(run(&gpu, &additions(address, 3, ADD)));
    failed(run(&gpu, &additions(address, 3, ADD)));
    failed(gpu.wait());
    failed(gpu.bind());
    failed(gpu.alloc(1).map(|_| ()));
    failed(gpu.free_bytes().map(|_| ()));
    failed(gpu.mark().map(|_| ()));
    failed(begun().map(|_| ()));
    assert!(device.is_lost());
    // SAFETY: it was allocated.
    unsafe {
        failed(gpu.upload(&[0; 4], address));
        failed(gpu.upload(&noise(20 << 20), address));
        failed(gpu.download(address, &mut [0; 4]));
        failed(gpu.begin_download(address, 4).map(|_| ()));
        gpu.free(address, 4);
    }
    // Giving back what is lost is no reason to panic.
    drop(device);
    drop(gpu);
}

pub(crate) fn describes_a_matrix() {
    let gpu = open();
    let map = TensorMap { address: 4096, rows: 100, cols: 96, row_bytes: 256, box_rows: 32, box_cols: 64 };
    let made = gpu.tensor_map(&map).unwrap();
    // The address, columns, rows, from row to row, a box, and 256 bytes for L2.
    assert_eq!(made[..4], [4096, 96, 100, 256]);
    assert_eq!(made[4..7], [64, 32, 3]);
}

pub(crate) fn measures_time() {
    let gpu = open();
    let start = gpu.mark().unwrap();
    let address = upload(&gpu, &[0; 4]);
    let end = gpu.mark().unwrap();
    assert!((gpu.milliseconds_between(&start, &end).unwrap() - 1.5).abs() < 1e-6);
    assert_eq!(number(&gpu, address), 0);
}
