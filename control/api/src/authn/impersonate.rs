//! Acting as somebody else: the `Impersonate-*` headers, for who may `impersonate` all that they name.

use std::collections::BTreeMap;
use std::sync::Arc;

use http::{HeaderMap, HeaderName};
use percent_encoding::percent_decode_str;

use super::service_account;
use crate::UserInfo;
use crate::authz::{self, Action, Attributes, Authorizer};
use crate::status::{Result, Status};
use crate::user::{AUTHENTICATED, UNAUTHENTICATED};

const USER: &str = "impersonate-user";
const GROUP: &str = "impersonate-group";
const UID: &str = "impersonate-uid";
const EXTRA: &str = "impersonate-extra-";
/// The group of the resources `uids` and `userextras`, which exist for authorization alone.
const API_GROUP: &str = "authentication.k8s.io";

/// Takes the headers out of the request and gives the user they ask for; `user` itself if there are none.
///
/// # Errors
/// 403 if `user` may not; 400 if there are such headers and none names a user.
pub fn impersonated(
    user: Arc<UserInfo>,
    headers: &mut HeaderMap,
    authorizers: &[Arc<dyn Authorizer>],
) -> Result<Arc<UserInfo>> {
    let names: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    if names.is_empty() {
        return Ok(user);
    }
    let mut wanted =
        UserInfo { name: String::new(), groups: Vec::new(), uid: String::new(), extra: BTreeMap::new() };
    for name in names {
        let values = headers.get_all(&name).iter().map(|value| value.to_str().map(str::to_owned));
        let values: Vec<String> = values
            .collect::<Result<_, _>>()
            .map_err(|_| Status::bad_request(format!("the header {name} is no text")))?;
        headers.remove(&name);
        let first = || values.first().cloned().unwrap_or_default();
        match name.as_str() {
            USER => wanted.name = first(),
            UID => wanted.uid = first(),
            GROUP => wanted.groups.extend(values),
            other => {
                let Some(key) = other.strip_prefix(EXTRA) else { continue };
                // A key that is no header name comes percent-encoded; what does not decode is taken as it is.
                let key =
                    percent_decode_str(key).decode_utf8().map_or(key.to_owned(), |key| key.into_owned());
                wanted.extra.entry(key).or_default().extend(values);
            }
        }
    }
    if wanted.name.is_empty() {
        return Err(Status::bad_request("impersonation headers without Impersonate-User"));
    }
    let may = |group: &str, resource: &str, subresource: &str, namespace: &str, name: &str| {
        let action = Action::Resource { group, resource, subresource, namespace, name, fields: &[] };
        authz::check(authorizers, &Attributes { user: &user, verb: "impersonate", action })
    };
    for group in &wanted.groups {
        may("", "groups", "", "", group)?;
    }
    match service_account::split_user_name(&wanted.name) {
        Some((namespace, name)) => {
            may("", "serviceaccounts", "", namespace, name)?;
            if wanted.groups.is_empty() {
                // These come with being the account, and need no permission of their own.
                wanted.groups = service_account::groups(namespace).into();
            }
        }
        None => may("", "users", "", "", &wanted.name)?,
    }
    for (key, values) in &wanted.extra {
        for value in values {
            may(API_GROUP, "userextras", key, "", value)?;
        }
    }
    if !wanted.uid.is_empty() {
        may(API_GROUP, "uids", "", "", &wanted.uid)?;
    }
    let everybody = if wanted.is_anonymous() { UNAUTHENTICATED } else { AUTHENTICATED };
    if !wanted.in_group(AUTHENTICATED) && !wanted.in_group(UNAUTHENTICATED) {
        wanted.groups.push(everybody.to_owned());
    }
    Ok(Arc::new(wanted))
}
