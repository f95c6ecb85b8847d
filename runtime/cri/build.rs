//! Generates the CRI client, server and messages from our own `.proto` file.

fn main() -> std::io::Result<()> {
    tonic_prost_build::configure()
        // A registry password must not reach a log through `{:?}`.
        .skip_debug(["runtime.v1.AuthConfig"])
        // What a verbose status tells is JSON.
        .message_attribute(".runtime.v1", "#[derive(serde::Serialize)]")
        .compile_protos(&["proto/runtime/v1/api.proto"], &["proto"])
}
