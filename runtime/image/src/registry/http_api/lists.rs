//! The lists of repositories and tags, in pages.

use std::collections::HashMap;
use std::sync::Arc;

use http::{Response, StatusCode, header};

use super::super::reply::{self, Refusal};
use super::super::{Body, Inner};
use super::{Answer, blocking};

pub(super) async fn catalog(inner: Arc<Inner>, query: &HashMap<String, String>) -> Answer {
    let repos =
        blocking(move || inner.disk.catalog().map_err(Refusal::disk("list the repositories"))).await?;
    let (page, link) = page(repos, query, "/v2/_catalog")?;
    Ok(linked(reply::json(StatusCode::OK, &serde_json::json!({ "repositories": page })), link))
}

pub(super) async fn tags(inner: Arc<Inner>, repo: String, query: &HashMap<String, String>) -> Answer {
    let name = repo.clone();
    let tags = blocking(move || {
        let disk = || Refusal::disk("list the tags");
        let tags = inner.disk.tags(&repo).map_err(disk())?;
        if tags.is_empty() && inner.disk.entries(&repo).map_err(disk())?.is_empty() {
            return Err(Refusal::new(
                StatusCode::NOT_FOUND,
                "NAME_UNKNOWN",
                format!("repository name not known to registry: {repo}"),
            ));
        }
        Ok(tags)
    })
    .await?;
    let (page, link) = page(tags, query, &format!("/v2/{name}/tags/list"))?;
    Ok(linked(reply::json(StatusCode::OK, &serde_json::json!({ "name": name, "tags": page })), link))
}

/// One page of a sorted list, with the link to the next one.
fn page(
    all: Vec<String>,
    query: &HashMap<String, String>,
    path: &str,
) -> Result<(Vec<String>, Option<String>), Refusal> {
    let count = match query.get("n") {
        Some(n) => n.parse::<usize>().map_err(|_| {
            Refusal::new(
                StatusCode::BAD_REQUEST,
                "PAGINATION_NUMBER_INVALID",
                format!("n={n:?} is no number"),
            )
        })?,
        None => usize::MAX,
    };
    let after = query.get("last").map(String::as_str).unwrap_or_default();
    let mut rest = all.into_iter().filter(|name| name.as_str() > after);
    let page: Vec<String> = rest.by_ref().take(count).collect();
    let link = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => Some(format!("<{path}?n={count}&last={last}>; rel=\"next\"")),
        _ => None,
    };
    Ok((page, link))
}

fn linked(response: Response<Body>, link: Option<String>) -> Response<Body> {
    match link {
        Some(link) => reply::with(response, header::LINK, &link),
        None => response,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_follow_each_other_to_the_end() {
        let all: Vec<String> = ["a", "b", "c"].map(String::from).into();
        let mut query = HashMap::from([("n".to_owned(), "2".to_owned())]);
        let (first, link) = page(all.clone(), &query, "/p").unwrap();
        assert_eq!(
            (first, link.as_deref()),
            (vec!["a".into(), "b".into()], Some("</p?n=2&last=b>; rel=\"next\""))
        );
        query.insert("last".into(), "b".into());
        assert_eq!(page(all, &query, "/p").unwrap(), (vec!["c".into()], None));
    }
}
