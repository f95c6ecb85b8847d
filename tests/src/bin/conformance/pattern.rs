//! What an output has to contain. Columns are as wide as their widest cell, so any white space within a line is one
//! space; a `*` stands for anything within a line.

/// Lines with single spaces and no space at their ends.
pub fn squeezed(text: &str) -> String {
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
    lines.collect::<Vec<_>>().join("\n")
}

/// Whether a line of the squeezed text has what the pattern says; a pattern of several lines needs such lines in a row.
pub fn has(text: &str, pattern: &str) -> bool {
    let lines: Vec<&str> = text.lines().collect();
    let wanted: Vec<&str> = pattern.lines().collect();
    lines
        .windows(wanted.len())
        .any(|lines| lines.iter().zip(&wanted).all(|(line, want)| line_has(line, want)))
}

fn line_has(line: &str, pattern: &str) -> bool {
    let mut rest = line;
    pattern.split('*').all(|part| match rest.find(part) {
        Some(at) => {
            rest = &rest[at + part.len()..];
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_matched_by_their_words_and_stars_stay_in_a_line() {
        let text = squeezed("NAME    READY   STATUS\nweb-1   1/1     Running  \nweb-2   0/1     Pending\n");
        for pattern in ["NAME READY STATUS", "web-1 1/1 Running", "web-*Pending", "web-1*\nweb-2 0/1", "Pend"]
        {
            assert!(has(&text, pattern), "{pattern}");
        }
        for pattern in ["web-1*Pending", "web-3", "Running*web", "web-2*\nweb-1"] {
            assert!(!has(&text, pattern), "{pattern}");
        }
    }
}
