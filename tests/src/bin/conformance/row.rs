//! One command of the tour and what has to come of it.

/// Made by [`run`], then told what to expect; without that the command is to succeed.
///
/// `{dir}` in words, input and environment is the tour's folder, `{NAME}` what [`Row::kept_as`] kept.
pub struct Row {
    /// The words after `kubectl`, as in a shell; `'…'` keeps one together.
    pub line: &'static str,
    pub stdin: &'static str,
    pub environment: Option<(&'static str, &'static str)>,
    /// The exit status.
    pub code: i32,
    /// Patterns that its outputs have, squeezed.
    pub says: Vec<&'static str>,
    /// Patterns that they do not have.
    pub hides: Vec<&'static str>,
    /// A file of the tour's folder, and what it has to hold then.
    pub leaves: Option<(&'static str, &'static str)>,
    /// The name under which later rows find what it printed.
    pub keep: Option<&'static str>,
    pub way: Way,
}

/// How a command is run.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// To its end.
    Once,
    /// Again and again until it is as expected: for what comes by itself and no `kubectl wait` waits for.
    Repeated,
    /// Until it has said what is expected, and it still runs then; then it is ended.
    Endless,
    /// As endless, but once it forwards, a GET of this path has to be answered so.
    Forward { path: &'static str, answer: &'static str },
}

pub fn run(line: &'static str) -> Row {
    Row {
        line,
        stdin: "",
        environment: None,
        code: 0,
        says: Vec::new(),
        hides: Vec::new(),
        leaves: None,
        keep: None,
        way: Way::Once,
    }
}

impl Row {
    pub fn reads(self, stdin: &'static str) -> Self {
        Self { stdin, ..self }
    }

    pub fn with(self, name: &'static str, value: &'static str) -> Self {
        Self { environment: Some((name, value)), ..self }
    }

    pub fn fails(self) -> Self {
        self.ends_with(1)
    }

    pub fn ends_with(self, code: i32) -> Self {
        Self { code, ..self }
    }

    pub fn says(mut self, patterns: &[&'static str]) -> Self {
        self.says.extend(patterns);
        self
    }

    pub fn hides(mut self, patterns: &[&'static str]) -> Self {
        self.hides.extend(patterns);
        self
    }

    pub fn leaves(self, file: &'static str, content: &'static str) -> Self {
        Self { leaves: Some((file, content)), ..self }
    }

    pub fn kept_as(self, name: &'static str) -> Self {
        Self { keep: Some(name), ..self }
    }

    pub fn at_last(self) -> Self {
        Self { way: Way::Repeated, ..self }
    }

    pub fn goes_on(self) -> Self {
        Self { way: Way::Endless, ..self }
    }

    pub fn answers(self, path: &'static str, answer: &'static str) -> Self {
        Self { way: Way::Forward { path, answer }, ..self }
    }
}

/// The words of a line.
pub fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), None::<String>, false);
    for letter in line.chars() {
        match letter {
            '\'' => {
                quoted = !quoted;
                word.get_or_insert_default();
            }
            ' ' if !quoted => words.extend(word.take()),
            _ => word.get_or_insert_default().push(letter),
        }
    }
    assert!(!quoted, "a quote is open in: {line}");
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_keep_words_together() {
        assert_eq!(
            words("get cm  -o 'jsonpath={.a} {.b}' --x='' ''"),
            ["get", "cm", "-o", "jsonpath={.a} {.b}", "--x=", ""]
        );
    }
}
