//! What the tour may leave out: a file of lines `COMMAND # REASON`, each a command of the tour word for word.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};

pub struct Skips(BTreeMap<String, String>);

impl Skips {
    pub fn read(file: &Path) -> anyhow::Result<Self> {
        let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
        Self::parse(&text).with_context(|| file.display().to_string())
    }

    /// Of a tour that leaves nothing out.
    pub fn none() -> Self {
        Self(BTreeMap::new())
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let mut skips = BTreeMap::new();
        for line in text.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            match line.split_once(" # ") {
                Some((command, reason)) if !reason.trim().is_empty() => {
                    skips.insert(command.trim().to_owned(), reason.trim().to_owned());
                }
                _ => bail!("{line:?} gives no reason; write COMMAND # REASON"),
            }
        }
        Ok(Self(skips))
    }

    pub fn reason(&self, command: &str) -> Option<&str> {
        self.0.get(command.trim()).map(String::as_str)
    }

    /// A skip of a command that the tour does not have hides a mistake.
    pub fn fit(&self, mut commands: impl Iterator<Item = &'static str>) -> anyhow::Result<()> {
        let known: std::collections::BTreeSet<&str> = commands.by_ref().map(str::trim).collect();
        match self.0.keys().find(|command| !known.contains(command.as_str())) {
            Some(unknown) => bail!("the tour has no command `{unknown}` to skip"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_skip_has_a_reason_and_its_command_exists() {
        let skips = Skips::parse("# why\n\ntop node # needs a meter\n").expect("well-formed");
        assert_eq!((skips.reason("top node"), skips.reason("top")), (Some("needs a meter"), None));
        assert!(skips.fit(["top node", "get pods"].into_iter()).is_ok());
        assert!(skips.fit(["get pods"].into_iter()).is_err());
        assert!(Skips::parse("top node").is_err() && Skips::parse("top node # ").is_err());
    }
}
