//! x
use clap::Parser;
#[derive(Parser)]
struct A {
    #[command(subcommand)]
    v: V,
}
#[derive(clap::Subcommand)]
enum V {
    /// demo
    Demo(tools::demo::DemoArgs),
}
fn main() -> std::process::ExitCode {
    let V::Demo(a) = A::parse().v;
    tools::demo::run(a)
}
