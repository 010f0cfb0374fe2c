//! `cargo sim`: see `--help`.

fn main() -> std::process::ExitCode {
    simulator::main()
}
