//! Benchmarks, each beside this file under the name of what it measures. This
//! library is empty: it makes the folder a package.
