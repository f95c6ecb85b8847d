//! The API server as its clients see it: a real server over TLS on 127.0.0.1, redb in a temporary folder, and the
//! `kube` crate as a stock client.

#![expect(clippy::unwrap_used, reason = "in helpers of tests as in tests")]

mod access;
mod harness;
mod input;
mod kinds;
mod limits;
mod lists;
mod objects;
mod openapi;
mod patches;
mod pods;
mod protobuf;
mod quotas;
mod recordings;
mod reviews;
mod service_accounts;
mod strangers;
mod tokens;
mod two_servers;
mod usage;
mod watches;
mod workloads;
