//! OCI distribution, the pushing half: blobs that are missing, then manifests, the tag last.

use anyhow::{Context as _, bail};
use http::{Method, header};
use kube::client::Body;
use tokio::io::AsyncReadExt as _;

use super::{Blob, Content, Image, Name};
use crate::api::{Api, is_missing};

/// Pushes an image. What the registry has already is not sent again.
pub async fn push(api: &Api, image: &Image, name: &Name, mut tell: impl FnMut(&str)) -> anyhow::Result<()> {
    let base = format!("/v2/{}", name.repository);
    for (nth, blob) in image.blobs.iter().enumerate() {
        tell(&format!(
            "pushing blob {} of {} ({} KiB)",
            nth + 1,
            image.blobs.len(),
            blob.size.div_ceil(1024)
        ));
        push_blob(api, &base, blob).await.with_context(|| format!("cannot push {}", blob.digest))?;
    }
    let last = image.documents.len().saturating_sub(1);
    for (nth, document) in image.documents.iter().enumerate() {
        let reference = if nth == last { &name.tag } else { &document.digest };
        let headers = [("content-type", document.media_type.as_str())];
        let path = format!("{base}/manifests/{reference}");
        let sent = api.send(Method::PUT, &path, &headers, Body::from(document.bytes.clone())).await;
        sent.with_context(|| format!("cannot push the manifest of {name}"))?;
    }
    Ok(())
}

async fn push_blob(api: &Api, base: &str, blob: &Blob) -> anyhow::Result<()> {
    match api.send(Method::HEAD, &format!("{base}/blobs/{}", blob.digest), &[], Body::empty()).await {
        Ok(_) => return Ok(()),
        Err(error) if is_missing(&error) => {}
        Err(error) => return Err(error),
    }
    let (started, _) = api.send(Method::POST, &format!("{base}/blobs/uploads/"), &[], Body::empty()).await?;
    let mut place = location(&started)?;
    let rest = match &blob.content {
        Content::Memory(bytes) => bytes.clone(),
        Content::File(path) => {
            let mut file = tokio::fs::File::open(path).await?;
            let mut sent = 0;
            loop {
                let chunk = read_chunk(&mut file).await?;
                if chunk.len() < CHUNK {
                    break chunk; // goes with the last request
                }
                let range = format!("{sent}-{}", sent + chunk.len() - 1);
                sent += chunk.len();
                let headers = [("content-type", OCTETS), ("content-range", range.as_str())];
                let (taken, _) = api.send(Method::PATCH, &place, &headers, Body::from(chunk)).await?;
                place = location(&taken)?;
            }
        }
    };
    let join = if place.contains('?') { '&' } else { '?' };
    let path = format!("{place}{join}digest={}", blob.digest);
    api.send(Method::PUT, &path, &[("content-type", OCTETS)], Body::from(rest)).await?;
    Ok(())
}

/// Bytes in memory at once; a blob longer than that goes in several requests.
const CHUNK: usize = 8 << 20;
const OCTETS: &str = "application/octet-stream";

async fn read_chunk(file: &mut tokio::fs::File) -> std::io::Result<Vec<u8>> {
    let mut chunk = Vec::new();
    file.take(CHUNK as u64).read_to_end(&mut chunk).await?;
    Ok(chunk)
}

/// Where the upload goes on, without the host: the API client knows that.
fn location(answer: &http::response::Parts) -> anyhow::Result<String> {
    let location = answer.headers.get(header::LOCATION).and_then(|value| value.to_str().ok());
    let Some(location) = location else { bail!("the registry named no place to upload to") };
    let uri: http::Uri = location.parse().context("the registry named a malformed place to upload to")?;
    Ok(uri.path_and_query().map(ToString::to_string).unwrap_or_default())
}
