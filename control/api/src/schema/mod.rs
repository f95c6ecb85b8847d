//! What the API's types look like, and everything that follows from it: strict decoding, defaulting,
//! server-side apply with managed fields, and patches.
//!
//! All of it is pure: functions over [`serde_json::Value`] and bytes, without I/O, clock or randomness.
//! The facts come from `control/api/schema/types.txt` (made by `generate.py` beside it) and from the
//! hand-written `defaults.txt`; they are parsed once, at the first [`Schema::get`].
//!
//! The way of a request through this module:
//!
//! | request | calls, in this order |
//! |---|---|
//! | create, update | [`decode`], [`default`], then [`track_update`] before admission |
//! | JSON and merge patch | [`patch::json_patch`] or [`patch::merge_patch`] on a copy of the live object, [`decode_value`], [`default`], [`track_update`] |
//! | strategic merge patch | [`patch::strategic_merge`], [`decode_value`], [`default`], [`track_update`] |
//! | server-side apply | [`decode_applied`], [`apply`], [`default`]; equal to the live object means: write nothing |
//!
//! ```text
//! let ty = Schema::get().kind("apps", "v1", "Deployment")?;          // Type is Copy, 'static
//! let (mut object, warnings) = decode(body, Format::Json, ty, Validation::Strict)?;
//! default(&mut object, ty);
//! track_update(live.as_ref(), &mut object, ty, &Actor { manager, subresource: None, now });
//! let merged = apply(live.as_ref(), &config, ty, &actor, force)?;    // Err(ApplyError::Conflicts(_)) is a 409
//! ```

mod apply;
mod decode;
mod default;
mod fieldset;
mod managed;
mod merge;
mod model;
pub mod patch;
mod scalar;
mod trail;

pub use apply::{Actor, ApplyError, Conflict, apply, track_update};
pub use decode::{DecodeError, Format, MAX_BYTES, Validation, decode, decode_applied, decode_value};
pub use default::default;
pub use fieldset::{Element, Error as FieldSetError, FieldSet};
pub use model::{Field, Gvk, ListType, PatchStrategy, Schema, Shape, Type};

#[cfg(test)]
mod tests;
