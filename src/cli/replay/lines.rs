//! Reads logs line by line, plain or gzip, in bounded memory. Knows nothing of what stands in a line.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufReader, Cursor, Read};
use std::path::Path;
use std::rc::Rc;

use flate2::bufread::MultiGzDecoder;

/// The longest line. Ours are below 16 KiB, because each value is cut.
pub(super) const LINE_BYTES_MAX: usize = 64 * 1024;
/// What is left out of one line at most; more is no log but a file without lines, or `/dev/zero`.
const SKIPPED_BYTES_MAX: u64 = 4 << 30;
/// Bytes read at once: at least two of the longest lines.
const BUFFER_BYTES: usize = 1 << 18;

/// What a log can be compressed with, as its first bytes say. The last of these is understood.
const MAGICS: [(&[u8], &str); 4] = [
    (b"\x28\xb5\x2f\xfd", "zstd -dc"),
    (b"\xfd7zXZ\0", "xz -dc"),
    (b"BZh", "bzip2 -dc"),
    (GZIP, "gzip -dc"),
];
const GZIP: &[u8] = b"\x1f\x8b";
/// As long as the longest of [`MAGICS`].
const MAGIC_BYTES: usize = 6;

/// What stands before the text in files that some editors wrote.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// One line.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'b> {
    /// Its text, without what ends it.
    Text(&'b [u8]),
    /// It is longer than [`LINE_BYTES_MAX`], and was left out.
    TooLong,
}

/// The lines of one log.
pub(super) struct Lines {
    from: Box<dyn Read>,
    /// Bytes of the file that were read: fewer than were given out where it is compressed.
    read: Rc<Cell<u64>>,
    size: Option<u64>,
    buffer: Vec<u8>,
    /// What of the buffer was read and not given out yet.
    start: usize,
    end: usize,
    number: u64,
}

impl Lines {
    /// Opens a log; `-` is standard input.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        if path.as_os_str() == "-" {
            return Self::of(io::stdin().lock(), None);
        }
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        if metadata.is_dir() {
            return Err(io::Error::other("is a folder; name the logs in it"));
        }
        let size = metadata.is_file().then_some(metadata.len());
        Self::of(file, size)
    }

    /// Reads from something whose first bytes say whether it is compressed.
    pub(super) fn of(mut from: impl Read + 'static, size: Option<u64>) -> io::Result<Self> {
        let mut head = Vec::with_capacity(MAGIC_BYTES);
        // A pipe may give one byte at a time.
        from.by_ref()
            .take(MAGIC_BYTES as u64)
            .read_to_end(&mut head)?;
        let magic = MAGICS.iter().find(|(magic, _)| head.starts_with(magic));
        let read = Rc::new(Cell::new(0));
        let raw = Counted {
            from: Cursor::new(head).chain(from),
            read: Rc::clone(&read),
        };
        let from: Box<dyn Read> = match magic {
            None => Box::new(raw),
            Some((magic, _)) if *magic == GZIP => {
                let raw = BufReader::with_capacity(BUFFER_BYTES, raw);
                Box::new(MultiGzDecoder::new(raw))
            }
            Some((_, command)) => {
                return Err(io::Error::other(format!(
                    "is compressed in a way that is not understood here; write \
                     `{command} FILE | tidegate replay ... -`"
                )));
            }
        };
        Ok(Self {
            from,
            read,
            size,
            buffer: vec![0; BUFFER_BYTES],
            start: 0,
            end: 0,
            number: 0,
        })
    }

    /// Returns how long the file is, if that is known.
    pub(super) fn size(&self) -> Option<u64> {
        self.size
    }

    /// Returns how many bytes of the file were read.
    pub(super) fn bytes_read(&self) -> u64 {
        self.read.get()
    }

    /// Returns the number of the line that was given out last; 0 before the first.
    pub(super) fn number(&self) -> u64 {
        self.number
    }

    /// Returns the next line that is not empty, or `None` at the end. What follows an error is not
    /// worth reading.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        loop {
            let Some((from, to)) = self.next_span()? else {
                return Ok(None);
            };
            self.number += 1;
            if to - from > LINE_BYTES_MAX {
                self.skip_rest(from, to)?;
                return Ok(Some(Line::TooLong));
            }
            let line = self.buffer.get(from..to).unwrap_or_default();
            let is_first = self.number == 1;
            let marked = line.strip_prefix(BYTE_ORDER_MARK).filter(|_| is_first);
            let length = marked.unwrap_or(line).trim_ascii_end().len();
            let from = from + (line.len() - marked.unwrap_or(line).len());
            if length > 0 {
                let line = self.buffer.get(from..from + length).unwrap_or_default();
                return Ok(Some(Line::Text(line)));
            }
        }
    }

    /// Finds where the next line is in the buffer, and takes it out. One that is longer than
    /// [`LINE_BYTES_MAX`] may not be all there.
    fn next_span(&mut self) -> io::Result<Option<(usize, usize)>> {
        let mut looked_at = 0;
        loop {
            let waiting = self.buffer.get(self.start..self.end).unwrap_or_default();
            let unseen = waiting.get(looked_at..).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', unseen) {
                let (from, to) = (self.start, self.start + looked_at + at);
                self.start = to + 1;
                return Ok(Some((from, to)));
            }
            looked_at = waiting.len();
            if looked_at > LINE_BYTES_MAX {
                return Ok(Some((self.start, self.end)));
            }
            if self.fill()? == 0 {
                let span = (self.start, self.end);
                self.start = self.end;
                return Ok((span.0 < span.1).then_some(span));
            }
        }
    }

    /// Leaves out what is left of a line that is too long.
    fn skip_rest(&mut self, from: usize, to: usize) -> io::Result<()> {
        // It ended in the buffer.
        if self.start > to {
            return Ok(());
        }
        let mut skipped = (to - from) as u64;
        loop {
            (self.start, self.end) = (0, 0);
            if self.fill()? == 0 {
                return Ok(());
            }
            let read = self.buffer.get(..self.end).unwrap_or_default();
            if let Some(at) = memchr::memchr(b'\n', read) {
                self.start = at + 1;
                return Ok(());
            }
            skipped += read.len() as u64;
            if skipped > SKIPPED_BYTES_MAX {
                return Err(io::Error::other(
                    "a line does not end within 4 GiB; is this a log?",
                ));
            }
        }
    }

    /// Reads more behind what waits. Returns 0 at the end.
    fn fill(&mut self) -> io::Result<usize> {
        self.buffer.copy_within(self.start..self.end, 0);
        (self.start, self.end) = (0, self.end - self.start);
        let room = self.buffer.get_mut(self.end..).unwrap_or_default();
        loop {
            match self.from.read(room) {
                Ok(count) => {
                    self.end += count;
                    return Ok(count);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Counts what is read.
struct Counted<R> {
    from: R,
    read: Rc<Cell<u64>>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.from.read(buffer)?;
        self.read.set(self.read.get() + count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::Compression;
    use flate2::write::GzEncoder;

    use super::*;

    /// Gives one byte at a time, like the slowest pipe.
    struct Slow(Cursor<Vec<u8>>);

    impl Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            let one = buffer.len().min(1);
            self.0.read(&mut buffer[..one])
        }
    }

    fn read_all(mut lines: Lines) -> (Vec<(u64, String)>, Option<io::Error>) {
        let mut found = Vec::new();
        loop {
            let text = match lines.next() {
                Ok(None) => return (found, None),
                Err(error) => return (found, Some(error)),
                Ok(Some(Line::TooLong)) => "(too long)".to_owned(),
                Ok(Some(Line::Text(text))) => String::from_utf8_lossy(text).into_owned(),
            };
            found.push((lines.number(), text));
        }
    }

    #[track_caller]
    fn check(bytes: &[u8], expected: &[(u64, &str)]) {
        let expected: Vec<_> = expected.iter().map(|(n, s)| (*n, (*s).into())).collect();
        let plain = Lines::of(Cursor::new(bytes.to_vec()), None).unwrap();
        assert_eq!(read_all(plain).0, expected);
        if bytes.len() < 1000 {
            let slow = Lines::of(Slow(Cursor::new(bytes.to_vec())), None).unwrap();
            assert_eq!(read_all(slow).0, expected);
        }
        let packed = Lines::of(Cursor::new(gzip(bytes)), None).unwrap();
        assert_eq!(read_all(packed).0, expected);
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(bytes).unwrap();
        packed.finish().unwrap()
    }

    #[test]
    fn lines_end_in_every_way_that_they_can() {
        check(b"", &[]);
        check(b"\n\n", &[]);
        check(b"a", &[(1, "a")]);
        check(b"a\n", &[(1, "a")]);
        check(b"a\r\n\r\nb", &[(1, "a"), (3, "b")]);
        check(
            b"\xef\xbb\xbfa\n\xef\xbb\xbfb\n",
            &[(1, "a"), (2, "\u{feff}b")],
        );
    }

    #[test]
    fn a_line_that_is_too_long_is_left_out_and_the_next_one_is_read() {
        for length in [LINE_BYTES_MAX, LINE_BYTES_MAX + 1, BUFFER_BYTES, 3 << 20] {
            let mut bytes = b"a\n".to_vec();
            bytes.resize(bytes.len() + length, b'x');
            bytes.extend_from_slice(b"\nb\n");
            let whole = "x".repeat(length);
            let long = if length <= LINE_BYTES_MAX {
                &*whole
            } else {
                "(too long)"
            };
            check(&bytes, &[(1, "a"), (2, long), (3, "b")]);
        }
    }

    #[test]
    fn several_gzip_members_are_one_log() {
        let mut bytes = gzip(b"a\nb");
        bytes.extend(gzip(b"c\nd\n"));
        let lines = Lines::of(Cursor::new(bytes), None).unwrap();
        let expected = [(1, "a".into()), (2, "bc".into()), (3, "d".into())];
        assert_eq!(read_all(lines).0, expected);
    }

    #[test]
    fn a_gzip_that_is_cut_off_gives_its_lines_and_an_error() {
        let text = "a line of some length\n".repeat(20_000);
        let mut bytes = gzip(text.as_bytes());
        bytes.truncate(bytes.len() - 12);
        let (found, error) = read_all(Lines::of(Cursor::new(bytes), None).unwrap());
        assert!(found.len() > 1000, "{}", found.len());
        let kind = error.map(|error| error.kind());
        assert_eq!(kind, Some(io::ErrorKind::UnexpectedEof));
    }

    #[test]
    fn another_compression_is_named() {
        let opened = Lines::of(Cursor::new(b"\x28\xb5\x2f\xfd....".to_vec()), None);
        let error = opened.err().map(|error| error.to_string());
        assert!(error.is_some_and(|text| text.contains("`zstd -dc FILE | ")));
    }
}
