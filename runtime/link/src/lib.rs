//! The one message protocol between shim, wasm hosts, zygote and monitors.
//!
//! A message is a JSON body of at most [`MAX_BODY`] bytes with at most [`MAX_FDS`] descriptors beside it, over a
//! unix stream socket. Three layers, each usable alone:
//!
//! - [`blocking::Socket`] and [`blocking::Listener`]: no runtime, no threads, little memory; what a forked monitor
//!   uses inside its own `poll` loop (set them non-blocking there);
//! - [`Socket`] and [`Listener`]: the same over tokio. Every future here is cancel-safe: a message is received
//!   whole by a later call, or sent whole before the next one;
//! - [`Peer`] calls and [`Calls`] answers: requests with correlation ids, many in flight, answered in any order, and
//!   events the other way. Both speak [`Wire`], so one end may be a [`blocking::Socket`] that handles `Wire` itself.
//!
//! Descriptors arrive close-on-exec and owned: those that nobody takes are closed. The other end is checked at
//! connect and accept: it must be root or this process's own user. What it sends is still not trusted: a frame that
//! breaks the format is an [`Error`] after which the connection is of no use, and never more memory than one frame.
//!
//! # Frame
//! `length: u32 LE | descriptors: u16 LE | magic: u16 LE | length bytes of JSON`. Descriptors travel with the first byte.

mod address;
pub mod blocking;
mod error;
mod frame;
mod peer;
mod socket;

pub use error::Error;
pub use frame::{MAX_BODY, MAX_FDS};
pub use peer::{Answer, Call, Calls, EVENT_BACKLOG, Emitter, Events, Peer, Wire, WireReply, serve};
pub use socket::{Listener, Reader, Socket, Writer};

use std::os::fd::OwnedFd;

/// What one frame carries.
#[derive(Debug)]
pub struct Message<T> {
    pub body: T,
    /// In the order of sending; close-on-exec; closed on drop.
    pub fds: Vec<OwnedFd>,
}

impl<T> Message<T> {
    /// A message without descriptors.
    pub fn new(body: T) -> Self {
        Self { body, fds: Vec::new() }
    }

    pub fn with_fds(body: T, fds: Vec<OwnedFd>) -> Self {
        Self { body, fds }
    }
}
