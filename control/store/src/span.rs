//! The history that a store has.

use crate::{Error, Revision};

/// From the oldest revision that can be read to the newest.
#[derive(Clone, Copy)]
pub(crate) struct Span {
    pub(crate) oldest: Revision,
    pub(crate) newest: Revision,
}

impl Span {
    /// # Errors
    /// [`Error::Compacted`] and [`Error::Future`] if `asked` is not in it.
    pub(crate) fn check(self, asked: Revision) -> Result<(), Error> {
        let Self { oldest, newest } = self;
        if asked < oldest {
            Err(Error::Compacted { asked, oldest })
        } else if asked > newest {
            Err(Error::Future { asked, newest })
        } else {
            Ok(())
        }
    }
}
