//! Tables of a C library's functions, found at run time.
//!
//! cudarc knows the functions' types, which the compiler holds each table to.
//! Its own functions are not called: they panic where a library lacks one, and
//! make an enum of codes that a newer library may not have agreed on.

/// A call that CUDA refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) call: &'static str,
    pub(super) code: u32,
}

/// Declares functions: a table of them, a method for each that gives CUDA's
/// code as a `Result`, and a check of each against cudarc's types. What stands
/// behind a `+` is a field of the table and has no method.
macro_rules! functions {
    ($table:ident, $sys:path, $code:ty:
        $($name:ident($($argument:ident: $type:ty),* $(,)?);)*
        $(+ $bare:ident($($bare_type:ty),* $(,)?);)*
    ) => {
        /// The library's functions.
        #[derive(Clone, Copy)]
        pub(super) struct $table {
            $($name: unsafe extern "C" fn($($type),*) -> u32,)*
            $(pub(super) $bare: unsafe extern "C" fn($($bare_type),*) -> u32,)*
        }

        impl $table {
            /// Looks up all functions, or names the first that is not there.
            ///
            /// # Safety
            /// The library is CUDA's, and is never closed.
            unsafe fn find(library: &libloading::Library) -> Result<Self, &'static str> {
                Ok(Self {
                    // SAFETY: the types are those of cudarc, see `declared`.
                    $($name: *unsafe { library.get(stringify!($name)) }.map_err(|_| stringify!($name))?,)*
                    // SAFETY: as above.
                    $($bare: *unsafe { library.get(stringify!($bare)) }.map_err(|_| stringify!($bare))?,)*
                })
            }

            $(
                /// # Safety
                /// As CUDA documents it.
                pub(super) unsafe fn $name(
                    &self,
                    $($argument: $type),*
                ) -> Result<(), $crate::driver::functions::Refused> {
                    // SAFETY: the caller's.
                    match unsafe { (self.$name)($($argument),*) } {
                        0 => Ok(()),
                        code => Err($crate::driver::functions::Refused { call: stringify!($name), code }),
                    }
                }
            )*
        }

        #[expect(dead_code, non_upper_case_globals, reason = "only the compiler looks at it")]
        mod declared {
            use super::*;
            use $sys as theirs;
            $(const $name: unsafe fn($($type),*) -> $code = theirs::$name;)*
            $(const $bare: unsafe fn($($bare_type),*) -> $code = theirs::$bare;)*
        }
    };
}
pub(super) use functions;
