//! What is pulled and run.

use rand::Rng as _;
use serde_json::json;
use wharf_tests::LocalRegistry;

/// A shell with its tools.
pub const SHELL: &str = "bench.test/shell:latest";
/// The same, as containerd wants one for what holds a pod's namespaces.
pub const PAUSE: &str = "bench.test/pause:latest";
/// 200 MB in 8 layers, as a registry has them.
pub const LARGE: &str = "bench.test/large:latest";

const LAYERS: usize = 8;
/// Files of 1 MiB in each.
const FILES: usize = 31;

pub async fn fill(registry: &LocalRegistry) -> anyhow::Result<()> {
    registry.put_shell("shell", &["/bin/sh"]).await?;
    registry.put_shell("pause", &["/bin/sleep", "2000000"]).await?;
    let mut layers = Vec::new();
    for nth in 0..LAYERS {
        layers.push(layer(nth)?);
    }
    registry.put_image("large", json!({}), layers).await
}

/// A layer that packs to some four fifths, as programs do.
fn layer(nth: usize) -> anyhow::Result<Vec<u8>> {
    const BLOCK: usize = 5 * 1024;
    let mut archive = tar::Builder::new(Vec::new());
    let mut random = rand::rng();
    for file in 0..FILES {
        let mut content = vec![b'w'; 1 << 20];
        content.chunks_mut(BLOCK).for_each(|block| {
            let share = block.len() * 4 / 5;
            random.fill_bytes(&mut block[..share]);
        });
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        archive.append_data(&mut header, format!("layer-{nth}/file-{file}"), content.as_slice())?;
    }
    Ok(archive.into_inner()?)
}
