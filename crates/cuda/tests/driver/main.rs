//! The driver backend against a libcuda without a GPU, and without any.
//!
//! The library is found by the loader, so each test runs itself once more in a
//! process whose LD_LIBRARY_PATH leads to what the test wants.

#![expect(clippy::unwrap_used, reason = "a test stops at its first surprise")]
#![expect(unsafe_code, reason = "the driver trusts its callers with addresses")]

mod aside;
mod fake;
mod peers;
mod scenarios;
mod sources;

use fake::run_inside;

/// Names each test, and what its process gets.
macro_rules! tests {
    ($($module:ident::$name:ident in $machine:ident($($variable:literal: $value:literal),*);)*) => {
        $(
            #[test]
            fn $name() {
                run_inside(stringify!($name), fake::Machine::$machine, &[$(($variable, $value)),*]);
            }
        )*

        /// What the other processes run; nothing in the first.
        #[test]
        fn inside() {
            let scenario = std::env::var_os(fake::SCENARIO);
            match scenario.as_ref().map(|name| name.to_str().unwrap()) {
                None => {}
                $(Some(stringify!($name)) => $module::$name(),)*
                Some(name) => panic!("no scenario {name}"),
            }
        }
    };
}

tests! {
    scenarios::says_that_there_is_no_driver in Nothing();
    scenarios::says_that_the_driver_is_too_old in OldDriver("FAKE_VERSION": "12080");
    scenarios::says_that_the_library_is_not_whole in OldDriver("FAKE_VERSION": "13000");
    scenarios::says_that_there_is_no_gpu in Driver("FAKE_INIT": "100");
    scenarios::says_which_gpus_there_are in Driver("FAKE_DEVICES": "2");
    scenarios::says_that_the_gpu_is_too_old in Driver("FAKE_CAPABILITY": "75");
    scenarios::loads_what_the_gpu_can_run in Driver("FAKE_CAPABILITY": "89");
    scenarios::bytes_come_back in Driver();
    scenarios::answers_arrive_in_any_order in Driver();
    scenarios::memory_is_given_back_when_the_stream_is_past in Driver();
    scenarios::steps_neither_take_nor_give_back_memory in Driver();
    scenarios::much_that_is_given_up_makes_room_for_what_is_taken in Driver("FAKE_BYTES": "1073741824");
    scenarios::pinned_memory_that_cannot_be_had_is_no_failure in Driver();
    scenarios::a_list_that_comes_again_is_a_graph in Driver();
    scenarios::a_graph_that_there_is_no_memory_to_launch_is_given_up in Driver();
    scenarios::a_list_that_cuda_makes_no_graph_of_runs in Driver();
    scenarios::a_launch_that_the_kernel_does_not_take_is_refused in Driver();
    scenarios::what_fails_once_fails_for_good in Driver();
    scenarios::describes_a_matrix in Driver();
    scenarios::measures_time in Driver();
    peers::reaches_memory_of_other_gpus in Driver("FAKE_DEVICES": "2");
    peers::says_that_there_is_no_way in Driver("FAKE_DEVICES": "2", "FAKE_PEERS": "0");
    aside::copies_run_beside_the_stream in Driver();
    aside::points_are_past_in_order in Driver();
    aside::host_memory_that_cannot_be_had_is_no_failure in Driver();
    aside::host_memory_outlives_the_copies_that_use_it in Driver();
    aside::a_copy_that_fails_fails_for_good in Driver();
    aside::a_wait_that_fails_fails_for_good in Driver();
    aside::a_question_that_fails_fails_for_good in Driver();
    sources::says_that_there_is_no_compiler in Driver();
    sources::compiles_at_the_first_start in DriverAndCompiler();
    sources::says_what_the_compiler_says in DriverAndCompiler();
}
