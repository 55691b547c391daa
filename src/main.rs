//! The `storageos` binary: command line and daemon in one.

fn main() -> std::process::ExitCode {
    storageos::cli::main()
}
