//! What the tests re-execute: the zygote and nothing else.

fn main() -> std::process::ExitCode {
    wharf_oci::zygote::main()
}
