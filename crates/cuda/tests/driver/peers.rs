//! Memory that GPUs share.

use crate::fake::{refuse, take_log};
use crate::scenarios::{additions, options, run};
use chorale_cuda::{Driver, Gpu, Kernel, Offer, Reached};

const ADD: Kernel = Kernel { name: "add", threads: 128 };

fn offer(gpu: &Driver) -> Offer {
    let address = gpu.alloc(4096).unwrap();
    Offer::new(gpu.expose(address).unwrap(), address, 4096).unwrap()
}

fn reach(gpu: &Driver, offer: &Offer) -> Result<Box<dyn Reached>, String> {
    // SAFETY: the memory is never freed.
    unsafe { gpu.reach(offer) }.map_err(|error| error.to_string())
}

pub(crate) fn reaches_memory_of_other_gpus() {
    let [gpu, other] = [0, 1].map(|ordinal| Driver::open(ordinal, &options()).unwrap());
    let near = offer(&other);
    assert!(near.is_own() && near.device[0] == 0xf1);
    let _ = take_log();
    // Twice: access that is allowed already is as good.
    for log in ["peer access\n", ""] {
        assert_eq!(reach(&gpu, &near).unwrap().address(), near.address);
        assert!(take_log().starts_with(log));
    }
    // Its own memory takes no access at all.
    let own = offer(&gpu);
    assert_eq!(reach(&gpu, &own).unwrap().address(), own.address);
    assert_eq!(take_log(), "");

    let far = Offer { process: [7; 16], ..near };
    let opened = reach(&gpu, &far).unwrap();
    assert_eq!((opened.address(), take_log().as_str()), (near.address, "opened\n"));
    run(&gpu, &additions(own.address, 1, ADD)).unwrap();
    let _ = take_log();
    gpu.drop_later(Box::new(opened));
    assert_eq!(take_log(), "");
    gpu.wait().unwrap();
    assert_eq!(take_log(), "let go\n");

    let hidden = reach(&gpu, &Offer { device: [1; 16], ..far }).err().unwrap();
    assert!(hidden.contains("this process does not see it, look at CUDA_VISIBLE_DEVICES"), "{hidden}");
    refuse("cuIpcOpenMemHandle_v2", 201, 0);
    let refused = reach(&gpu, &far).err().unwrap();
    assert!(refused.contains("cuIpcOpenMemHandle_v2 says error (201)"), "{refused}");
    // A system without handles still has GPUs of one process.
    refuse("cuIpcGetMemHandle", 801, 0);
    let near = offer(&other);
    assert_eq!(near.ipc, None);
    assert!(reach(&gpu, &near).is_ok());
    let refused = reach(&gpu, &Offer { process: [7; 16], ..near }).err().unwrap();
    assert!(refused.contains("CUDA gives other processes no handle for it"), "{refused}");
    run(&gpu, &additions(own.address, 1, ADD)).unwrap();
}

pub(crate) fn says_that_there_is_no_way() {
    let [gpu, other] = [0, 1].map(|ordinal| Driver::open(ordinal, &options()).unwrap());
    let near = offer(&other);
    for offer in [near, Offer { process: [7; 16], ..near }] {
        let refused = reach(&gpu, &offer).err().unwrap();
        assert!(refused.contains("CUDA says that there is no peer access between the two"), "{refused}");
    }
    // Who shares a GPU needs no peers.
    assert!(reach(&gpu, &Offer { process: [7; 16], ..offer(&gpu) }).is_ok());
}
