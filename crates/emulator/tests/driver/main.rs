//! The CUDA device over the driver's own code, on a libcuda that holds it to CUDA's
//! rules and runs the kernels as the emulator does: what is between the device and
//! NVIDIA's library has run before a GPU is at hand.
//!
//! The library is found by the loader, so each test runs itself once more in a
//! process whose LD_LIBRARY_PATH leads to it.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]

mod libcuda;
mod scenarios;
#[path = "../world/mod.rs"]
mod world;

use libcuda::run_inside;

/// Names each test, and what its machine is.
macro_rules! tests {
    ($($name:ident on $capability:literal with $sms:literal;)*) => {
        $(
            #[test]
            fn $name() {
                if cfg!(all(target_os = "linux", target_arch = "x86_64")) {
                    run_inside(stringify!($name), $capability, $sms);
                }
            }
        )*

        /// What the other processes run; nothing in the first.
        #[test]
        fn inside() {
            let scenario = std::env::var_os(libcuda::SCENARIO);
            match scenario.as_ref().map(|name| name.to_str().unwrap()) {
                None => {}
                $(Some(stringify!($name)) => scenarios::$name(),)*
                Some(name) => panic!("no scenario {name}"),
            }
        }
    };
}

tests! {
    primitives_of_ampere on "80" with "4";
    primitives_of_hopper on "90" with "132";
    operations on "90" with "132";
    whole_models on "90" with "132";
    steps_ahead_of_their_answers on "90" with "132";
    experts_that_lie_with_the_host on "90" with "132";
}
