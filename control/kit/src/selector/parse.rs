//! Reads the string form of a label selector, and refuses it in the words of Kubernetes' parser.

use std::collections::BTreeSet;

use super::label::{LabelSelector, Operator, Requirement, validate_key};
use super::{Error, error};

/// `a=b,c in (x,y),!d,e!=f`
pub(super) fn selector(text: &str) -> Result<LabelSelector, Error> {
    Parser { rest: text }.selector()
}

/// A word, or one of the marks; the end is the empty mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Word(&'a str),
    Mark(&'static str),
}

impl<'a> Token<'a> {
    fn text(self) -> &'a str {
        match self {
            Self::Word(text) => text,
            Self::Mark(text) => text,
        }
    }
}

const END: Token<'_> = Token::Mark("");
const COMMA: Token<'_> = Token::Mark(",");
const OPEN: Token<'_> = Token::Mark("(");
const CLOSE: Token<'_> = Token::Mark(")");
/// Longer before shorter where one starts the other.
const MARKS: [&str; 9] = ["==", "!=", "=", "!", "(", ")", ",", ">", "<"];
const OPERATORS: &str = "in, notin, =, ==, !=, gt, lt";

struct Parser<'a> {
    rest: &'a str,
}

impl<'a> Parser<'a> {
    fn next(&mut self) -> Token<'a> {
        let (token, rest) = self.scan();
        self.rest = rest;
        token
    }

    fn peek(&self) -> Token<'a> {
        self.scan().0
    }

    fn scan(&self) -> (Token<'a>, &'a str) {
        let rest = self.rest.trim_start_matches([' ', '\t', '\r', '\n']);
        if rest.is_empty() {
            return (END, rest);
        }
        for mark in MARKS {
            if let Some(rest) = rest.strip_prefix(mark) {
                return (Token::Mark(mark), rest);
            }
        }
        let end = rest.find(|c| "=!(),>< \t\r\n".contains(c)).unwrap_or(rest.len());
        let (word, rest) = rest.split_at(end);
        (Token::Word(word), rest)
    }

    fn selector(mut self) -> Result<LabelSelector, Error> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Word(_) | Token::Mark("!") => {
                    let one =
                        self.requirement().map_err(|e| Error(format!("unable to parse requirement: {e}")))?;
                    requirements.push(one);
                    match self.next() {
                        END => break,
                        COMMA => match self.peek() {
                            Token::Word(_) | Token::Mark("!") => {}
                            other => {
                                return error(format!(
                                    "found '{}', expected: identifier after ','",
                                    other.text()
                                ));
                            }
                        },
                        other => {
                            return error(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.text()
                            ));
                        }
                    }
                }
                END => break,
                other => {
                    return error(format!(
                        "found '{}', expected: !, identifier, or 'end of string'",
                        other.text()
                    ));
                }
            }
        }
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(LabelSelector::new(requirements))
    }

    fn requirement(&mut self) -> Result<Requirement, Error> {
        let absent = self.peek() == Token::Mark("!");
        if absent {
            self.next();
        }
        let key = match self.next() {
            Token::Word(key) => key,
            other => return error(format!("found '{}', expected: identifier", other.text())),
        };
        validate_key(key)?;
        if absent {
            return Requirement::new(key, Operator::DoesNotExist, vec![]);
        }
        if matches!(self.peek(), END | COMMA) {
            return Requirement::new(key, Operator::Exists, vec![]);
        }
        let (operator, values) = match self.next() {
            Token::Word("in") => (Operator::In, self.values()?),
            Token::Word("notin") => (Operator::NotIn, self.values()?),
            Token::Mark("=" | "==") => (Operator::In, vec![self.value()?]),
            Token::Mark("!=") => (Operator::NotIn, vec![self.value()?]),
            Token::Mark(">") => (Operator::Gt, vec![self.value()?]),
            Token::Mark("<") => (Operator::Lt, vec![self.value()?]),
            other => return error(format!("found '{}', expected: {OPERATORS}", other.text())),
        };
        Requirement::new(key, operator, values)
    }

    fn value(&mut self) -> Result<String, Error> {
        if matches!(self.peek(), END | COMMA) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Word(value) => Ok(value.to_owned()),
            other => error(format!("found '{}', expected: identifier", other.text())),
        }
    }

    /// `(a,b)`; an empty place between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, Error> {
        match self.next() {
            OPEN => {}
            other => return error(format!("found '{}' expected: '('", other.text())),
        }
        let mut values = BTreeSet::new();
        match self.peek() {
            CLOSE => {
                self.next();
                return Ok(Vec::new());
            }
            Token::Word(_) | COMMA => {}
            other => return error(format!("found '{}', expected: ',', ')' or identifier", other.text())),
        }
        loop {
            match self.peek() {
                Token::Word(value) => {
                    self.next();
                    values.insert(value.to_owned());
                }
                COMMA | CLOSE => {
                    values.insert(String::new());
                }
                other => return error(format!("found '{}', expected: ',', or identifier", other.text())),
            }
            match self.next() {
                COMMA => {}
                CLOSE => return Ok(values.into_iter().collect()),
                other => return error(format!("found '{}', expected: ',' or ')'", other.text())),
            }
        }
    }
}
