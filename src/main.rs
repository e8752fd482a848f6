//! `tidegate`: see `tidegate --help`.

use std::process::ExitCode;

/// Frees and takes the many small pieces of a request faster than the system's allocator, and gives
/// memory back after a flood.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    tidegate::cli::main()
}
