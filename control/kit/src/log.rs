//! How errors get into log lines.

use std::error::Error;
use std::fmt;

use tracing::field::DisplayValue;

/// Shows `error` and all its causes on one line, `text: cause: cause`, each text once.
///
/// A cause whose text the outer error repeats already (as several crates do) is not shown again.
///
/// ```
/// let error = std::io::Error::other("disk is full");
/// assert_eq!(wharf_kit::chain(&error).to_string(), "disk is full");
/// ```
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> DisplayValue<Chain<'a>> {
    tracing::field::display(Chain(error))
}

/// What [`chain`] wraps, so that it is a field as it is: `warn!(error = chain(&error), "…")`.
#[derive(Clone, Copy)]
pub struct Chain<'a>(&'a (dyn Error + 'static));

impl fmt::Display for Chain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.0.to_string();
        write!(out, "{shown}")?;
        let mut cause = self.0.source();
        while let Some(error) = cause {
            let text = error.to_string();
            if !text.is_empty() && !shown.contains(&text) {
                write!(out, ": {text}")?;
                shown = text;
            }
            cause = error.source();
        }
        Ok(())
    }
}

impl fmt::Debug for Chain<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Failure {
        #[error("could not start")]
        Plain(#[source] std::io::Error),
        #[error("could not start: {0}")]
        Repeating(#[source] std::io::Error),
    }

    #[test]
    fn each_cause_is_shown_once() {
        let cause = || std::io::Error::other("port is taken");
        for error in [Failure::Plain(cause()), Failure::Repeating(cause())] {
            assert_eq!(chain(&error).to_string(), "could not start: port is taken");
        }
    }
}
