//! Reads a table. Every problem has its place and the way out.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use csv::{ByteRecord, ReaderBuilder};
use tidegate_engine::diagnose::{COUNT_MAX, Table, TableBuilder, TableError};
use tidegate_engine::problem::{Place, Problem};
use tidegate_engine::reader::shortened;

use crate::cli::progress::Progress;

/// The columns of numbers.
const OBSERVED: &str = "real";
const EXPECTED: &str = "predict";

/// Rows between two looks at the clock.
const ROWS_BETWEEN: usize = 1 << 16;

/// Bytes read at once.
const BUFFER_BYTES: usize = 1 << 18;

/// The longest row. A file without line ends must not fill the memory.
const ROW_BYTES_MAX: u64 = 1 << 20;

/// Reads a table from a file.
pub(super) fn table(path: &Path, progress: &mut Progress) -> Result<Table, Problem> {
    let file = Text {
        name: path.display().to_string(),
    };
    let opened = File::open(path).and_then(|opened| {
        let metadata = opened.metadata()?;
        Ok((opened, metadata))
    });
    let (opened, metadata) = match opened {
        Ok(opened) => opened,
        Err(error) => return Err(file.problem(1, 1, &format!("cannot be read: {error}"))),
    };
    if metadata.is_dir() {
        return Err(file.problem(1, 1, "is a folder; name the tables in it"));
    }
    progress.reading(metadata.len());
    file.read(opened, progress)
}

/// Where the columns are.
struct Columns {
    count: usize,
    observed: usize,
    expected: usize,
}

struct Text {
    name: String,
}

impl Text {
    fn problem(&self, line: u64, column: usize, text: &str) -> Problem {
        let line = u32::try_from(line).unwrap_or(u32::MAX);
        let column = u32::try_from(column).unwrap_or(u32::MAX);
        Problem::new(Place::new(&self.name, line, column), text)
    }

    /// Tells what is wrong with one field of a row.
    fn problem_at(&self, record: &ByteRecord, field: usize, text: &str) -> Problem {
        let before = record.iter().take(field);
        let column = 1 + before
            .map(|field| String::from_utf8_lossy(field).chars().count() + 1)
            .sum::<usize>();
        self.problem(line_of(record), column, text)
    }

    fn read(&self, from: impl Read, progress: &mut Progress) -> Result<Table, Problem> {
        let mut reader = ReaderBuilder::new()
            .has_headers(false)
            .flexible(true)
            .buffer_capacity(BUFFER_BYTES)
            .from_reader(Bounded {
                from,
                since_line: 0,
            });
        let mut record = ByteRecord::new();
        let read = |error: &csv::Error, line: u64| {
            self.problem(line + 1, 1, &format!("cannot be read: {error}"))
        };
        if !reader
            .read_byte_record(&mut record)
            .map_err(|error| read(&error, 0))?
        {
            let text = "the table is empty; its first row names the columns, \
                        for example `real,predict,app,sdk`";
            return Err(self.problem(1, 1, text));
        }
        let (columns, mut builder) = self.header(&record)?;
        let mut rows = 0;
        let mut line = line_of(&record);
        while reader
            .read_byte_record(&mut record)
            .map_err(|error| read(&error, line))?
        {
            line = line_of(&record);
            self.row(&record, &columns, &mut builder)?;
            rows += 1;
            if rows % ROWS_BETWEEN == 0 {
                progress.read(reader.position().byte());
            }
        }
        if rows == 0 {
            let text = "there is no row below the names of the columns; add one row for each \
                        combination";
            return Err(self.problem(2, 1, text));
        }
        Ok(builder.finish())
    }

    fn header(&self, record: &ByteRecord) -> Result<(Columns, TableBuilder), Problem> {
        let mut names: Vec<&str> = Vec::with_capacity(record.len());
        for (at, field) in record.iter().enumerate() {
            let Ok(name) = std::str::from_utf8(field) else {
                return Err(self.problem_at(record, at, "the name is not UTF-8; save it as UTF-8"));
            };
            let name = name.trim();
            if name.is_empty() {
                let text = "the column has no name; the first row names the columns";
                return Err(self.problem_at(record, at, text));
            }
            if names.contains(&name) {
                let text = format!("there are two columns `{name}`; rename one");
                return Err(self.problem_at(record, at, &text));
            }
            names.push(name);
        }
        let place =
            |wanted: &str| {
                names.iter().position(|name| *name == wanted).ok_or_else(|| {
                let text = format!(
                    "there is no column `{wanted}`; a table has `{OBSERVED}` (observed) and \
                     `{EXPECTED}` (expected), and one column per attribute"
                );
                self.problem(line_of(record), 1, &text)
            })
            };
        let (observed, expected) = (place(OBSERVED)?, place(EXPECTED)?);
        let attributes = names
            .iter()
            .enumerate()
            .filter(|(at, _)| *at != observed && *at != expected)
            .map(|(_, name)| *name);
        let builder = TableBuilder::new(attributes)
            .map_err(|error| self.problem(line_of(record), 1, &error.to_string()))?;
        let columns = Columns {
            count: names.len(),
            observed,
            expected,
        };
        Ok((columns, builder))
    }

    fn row(
        &self,
        record: &ByteRecord,
        columns: &Columns,
        builder: &mut TableBuilder,
    ) -> Result<(), Problem> {
        let (found, wanted) = (record.len(), columns.count);
        if found != wanted {
            let text = format!(
                "the row has {found} fields where the first row names {wanted}; \
                 put a value that has a comma into quotes"
            );
            return Err(self.problem_at(record, found.min(wanted), &text));
        }
        let Ok(text) = std::str::from_utf8(record.as_slice()) else {
            return Err(self.problem(line_of(record), 1, "the row is not UTF-8; save it as UTF-8"));
        };
        let field = |at: usize| {
            record
                .range(at)
                .and_then(|range| text.get(range))
                .unwrap_or_default()
        };
        let count = |at: usize| {
            let written = field(at).trim();
            match written.parse::<f64>() {
                Ok(count) if (0.0..=COUNT_MAX).contains(&count) => Ok(count),
                _ => {
                    let text = format!(
                        "`{}` is not a count; write a number from 0 to {COUNT_MAX:e}, for example `12.5`",
                        shortened(written)
                    );
                    Err(self.problem_at(record, at, &text))
                }
            }
        };
        let (observed, expected) = (count(columns.observed)?, count(columns.expected)?);
        let values = (0..found)
            .filter(|at| *at != columns.observed && *at != columns.expected)
            .map(field);
        match builder.add(values, observed, expected) {
            Ok(()) => Ok(()),
            Err(error @ TableError::TooManyRows) => {
                Err(self.problem(line_of(record), 1, &error.to_string()))
            }
            Err(error) => Err(self.problem_at(record, 0, &error.to_string())),
        }
    }
}

fn line_of(record: &ByteRecord) -> u64 {
    record.position().map_or(1, csv::Position::line)
}

/// Fails where a row does not end: a quote that is not closed would make the rest of the file a field.
struct Bounded<R> {
    from: R,
    since_line: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let count = self.from.read(buffer)?;
        let read = buffer.get(..count).unwrap_or_default();
        match memchr::memrchr(b'\n', read) {
            Some(at) => self.since_line = (count - at) as u64,
            None => self.since_line += count as u64,
        }
        if self.since_line > ROW_BYTES_MAX {
            let text = format!("a row is longer than {ROW_BYTES_MAX} bytes; is this a CSV table?");
            return Err(std::io::Error::other(text));
        }
        Ok(count)
    }
}
