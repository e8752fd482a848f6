//! What is wrong in a file that an operator wrote, where, and the way out.

use std::fmt;
use std::sync::Arc;

/// A place in a file. Lines and columns are counted from 1, columns in characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    /// The file, as the operator named it.
    pub path: Arc<str>,
    /// The line.
    pub line: u32,
    /// The column.
    pub column: u32,
}

impl Place {
    /// Makes a place.
    pub fn new(path: &str, line: u32, column: u32) -> Self {
        Self {
            path: Arc::from(path),
            line,
            column,
        }
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.path, self.line, self.column)
    }
}

/// One thing that is wrong: `path:line:column: what is wrong; how to write it`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[error("{place}: {text}")]
pub struct Problem {
    /// Where.
    pub place: Place,
    /// What is wrong, and how to write it: one line.
    pub text: String,
}

impl Problem {
    /// Makes a problem. Control characters of the text (an operator's file may hold any) are
    /// escaped, so that a problem is always one line and a terminal shows what is there.
    pub fn new(place: Place, text: &str) -> Self {
        let mut line = String::with_capacity(text.len());
        for letter in text.chars() {
            if letter.is_control() {
                line.extend(letter.escape_default());
            } else {
                line.push(letter);
            }
        }
        Self { place, text: line }
    }
}

/// The most problems that are kept; of more, those that come last in order of place are left out. 10,000
/// × about 200 B = 2 MiB, where a folder of nothing but mistakes has millions.
const PROBLEMS_MAX: usize = 10_000;

/// Everything that is wrong, in order of place, each thing once; at most 10,000 things. Never empty as an
/// error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

impl Problems {
    /// Sorts by place and drops repetitions.
    pub fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        problems.truncate(PROBLEMS_MAX);
        Self(problems)
    }

    /// Returns whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns how many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Walks the problems in order of place.
    pub fn iter(&self) -> impl Iterator<Item = &Problem> {
        self.0.iter()
    }

    /// Adds those of another file, in order of place.
    pub fn extend(&mut self, more: Self) {
        self.0.extend(more.0);
        self.0.sort();
        self.0.dedup();
        self.0.truncate(PROBLEMS_MAX);
    }

    /// Returns `value` where nothing is wrong.
    pub fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    /// One problem a line, without a newline at the end.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, problem) in self.0.iter().enumerate() {
            let newline = if at == 0 { "" } else { "\n" };
            write!(f, "{newline}{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: u32, text: &str) -> Problem {
        Problem::new(Place::new("a.yaml", line, 1), text)
    }

    #[test]
    fn problems_stand_in_order_of_place_and_once() {
        let problems = Problems::new(vec![at(10, "b"), at(9, "a"), at(10, "b")]);
        assert_eq!(problems.to_string(), "a.yaml:9:1: a\na.yaml:10:1: b");
    }

    #[test]
    fn no_more_problems_are_kept_than_anybody_reads() {
        let many = |from: u32| (from..from + 9_000).map(|line| at(line, "a")).collect();
        let mut problems = Problems::new(many(5_000));
        problems.extend(Problems::new(many(1)));
        assert_eq!(problems.len(), PROBLEMS_MAX);
        assert_eq!(problems.iter().next().unwrap().place.line, 1);
        let more = (1..=20_000).map(|line| at(line, "a")).collect();
        assert_eq!(Problems::new(more).len(), PROBLEMS_MAX);
    }

    #[test]
    fn a_problem_is_one_line_whatever_the_file_holds() {
        assert_eq!(at(1, "a\u{1b}[31m\nb").text, "a\\u{1b}[31m\\nb");
    }
}
