//! The audit trail: one JSON line for each change that somebody made, with a checksum, only ever added
//! to. Bounded: at [`FILE_BYTES_MAX`] the file becomes `audit.log.1`, and so on up to
//! [`OLD_FILES_MAX`].

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// The file, under the state folder.
const FILE: &str = "audit.log";

/// When a new file is begun.
const FILE_BYTES_MAX: u64 = 8 << 20;

/// How many old ones are kept.
const OLD_FILES_MAX: usize = 4;

/// The most bytes at the end of the file that are read to show its last lines.
const SHOWN_BYTES_MAX: u64 = 1 << 20;

/// The audit trail.
#[derive(Debug)]
pub struct AuditFile {
    path: PathBuf,
    /// Whether the last write failed, so that its beginning may be there.
    is_torn: bool,
    /// Whether the name is on the disk, too. A new file's is only once its folder is.
    is_named: bool,
    sync_folder: fn(&Path) -> io::Result<()>,
}

impl AuditFile {
    /// Names the file under the state folder. A last line that was cut off, by a crash or a full disk,
    /// is cut away: nobody was told that it was written.
    pub fn new(folder: &Path) -> Self {
        let path = folder.join(FILE);
        match cut_last(&path) {
            Ok(0) => {}
            Ok(bytes) => tracing::warn!(
                path = %path.display(),
                bytes,
                "the last line of the audit trail was not whole and is cut away"
            ),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => tracing::error!(
                path = %path.display(),
                %error,
                "the audit trail cannot be read; check who may read it"
            ),
        }
        Self {
            path,
            is_torn: false,
            is_named: false,
            sync_folder: |folder| File::open(folder)?.sync_all(),
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Adds lines: JSON, without their ends. When this has returned without an error they are on the
    /// disk; otherwise none is.
    ///
    /// # Errors
    ///
    /// The disk is full, or the folder may not be written.
    pub fn append<'l>(&mut self, lines: impl IntoIterator<Item = &'l str>) -> io::Result<()> {
        if self.is_torn {
            cut_last(&self.path)?;
            self.is_torn = false;
        }
        self.rotate()?;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .open(&self.path)?;
        let before = file.metadata()?.len();
        let text: String = lines.into_iter().map(with_checksum).collect();
        let written = file
            .write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .and_then(|()| self.keep_name());
        if let Err(error) = written {
            // A part of a line must not become the beginning of the next one.
            self.is_torn = file.set_len(before).is_err();
            return Err(error);
        }
        Ok(())
    }

    fn keep_name(&mut self) -> io::Result<()> {
        if !self.is_named {
            (self.sync_folder)(self.path.parent().unwrap_or_else(|| Path::new(".")))?;
        }
        self.is_named = true;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.len() >= FILE_BYTES_MAX => {}
            _ => return Ok(()),
        }
        self.is_named = false;
        let old = |number: usize| self.path.with_extension(format!("log.{number}"));
        for number in (1..OLD_FILES_MAX).rev() {
            match fs::rename(old(number), old(number + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(&self.path, old(1))
    }
}

/// Returns the last lines of the audit trail under the state folder, oldest first: of the file that is
/// written, and of the one before. Lines that are damaged are left out and counted.
///
/// # Errors
///
/// A file cannot be read.
pub fn last_lines(folder: &Path, most: usize) -> io::Result<(Vec<serde_json::Value>, usize)> {
    let open = |path: PathBuf| match File::open(path) {
        Ok(file) => Ok(Some((file.metadata()?, file))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    };
    let path = folder.join(FILE);
    let current = open(path.clone())?;
    let mut before = open(path.with_extension("log.1"))?;
    // A new file was begun between the two: they are one and the same.
    if let (Some((one, _)), Some((other, _))) = (&current, &before)
        && (one.dev(), one.ino()) == (other.dev(), other.ino())
    {
        before = None;
    }
    let mut bytes_left = SHOWN_BYTES_MAX;
    let mut damaged = 0;
    let mut lines: VecDeque<serde_json::Value> = VecDeque::new();
    for (metadata, file) in [current, before].into_iter().flatten() {
        let text = tail(file, metadata.len(), bytes_left)?;
        bytes_left -= text.len() as u64;
        for line in text.lines().rev() {
            if lines.len() >= most {
                return Ok((lines.into(), damaged));
            }
            match checked(line).and_then(|line| serde_json::from_str(&line).ok()) {
                Some(line) => lines.push_front(line),
                None => damaged += 1,
            }
        }
    }
    Ok((lines.into(), damaged))
}

/// Returns the end of a file, so many bytes at most, from the beginning of a line on.
fn tail(mut file: File, length: u64, bytes_max: u64) -> io::Result<String> {
    let begin = length.saturating_sub(bytes_max);
    // One byte more tells whether a line begins there.
    file.seek(SeekFrom::Start(begin.saturating_sub(1)))?;
    let mut bytes = Vec::new();
    file.take(length - begin + u64::from(begin > 0))
        .read_to_end(&mut bytes)?;
    let first = if begin == 0 {
        0
    } else {
        memchr::memchr(b'\n', &bytes).map_or(bytes.len(), |end| end + 1)
    };
    let whole = bytes.get(first..).unwrap_or_default();
    Ok(String::from_utf8_lossy(whole).into_owned())
}

/// What stands before the checksum, which is the last member of a line, and what behind.
const CHECKSUM_BEGIN: &str = ",\"crc32\":\"";
const CHECKSUM_END: &str = "\"}";

/// Returns the line with its checksum as last member.
fn with_checksum(line: &str) -> String {
    let members = line.strip_suffix('}').unwrap_or(line);
    let checksum = crc32fast::hash(members.as_bytes());
    format!("{members}{CHECKSUM_BEGIN}{checksum:08x}{CHECKSUM_END}\n")
}

/// Returns the line without its checksum, if that is right.
fn checked(line: &str) -> Option<String> {
    let (members, checksum) = line.rsplit_once(CHECKSUM_BEGIN)?;
    let wanted = u32::from_str_radix(checksum.strip_suffix(CHECKSUM_END)?, 16).ok()?;
    (crc32fast::hash(members.as_bytes()) == wanted).then(|| format!("{members}}}"))
}

/// Cuts away what follows the last end of a line. Returns how many bytes.
fn cut_last(path: &Path) -> io::Result<u64> {
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let length = file.metadata()?.len();
    let begin = length.saturating_sub(SHOWN_BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    (&mut file).take(SHOWN_BYTES_MAX).read_to_end(&mut bytes)?;
    let whole = memchr::memrchr(b'\n', &bytes).map_or(0, |at| at + 1);
    let cut = (bytes.len() - whole) as u64;
    if cut > 0 {
        file.set_len(length - cut)?;
    }
    Ok(cut)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::folder;

    #[test]
    fn lines_are_added_and_shown() {
        let folder = folder("audit-lines");
        let mut audit = AuditFile::new(&folder);
        for number in 0..5 {
            audit
                .append([format!("{{\"n\":{number}}}").as_str()])
                .unwrap();
        }
        let (lines, damaged) = last_lines(&folder, 2).unwrap();
        let numbers: Vec<_> = lines.iter().map(|line| line["n"].as_u64()).collect();
        assert_eq!((numbers, damaged), (vec![Some(3), Some(4)], 0));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_line_that_was_cut_off_is_cut_away_and_a_damaged_one_is_left_out() {
        let folder = folder("audit-cut");
        let mut audit = AuditFile::new(&folder);
        audit.append(["{\"n\":1}"]).unwrap();
        audit.append(["{\"n\":2}"]).unwrap();
        let mut bytes = fs::read(audit.path()).unwrap();
        bytes[12] ^= 1;
        bytes.extend_from_slice(b"01234567 {\"n\":");
        fs::write(audit.path(), &bytes).unwrap();
        let mut audit = AuditFile::new(&folder);
        audit.append(["{\"n\":3}"]).unwrap();
        let (lines, damaged) = last_lines(&folder, 10).unwrap();
        let numbers: Vec<_> = lines.iter().map(|line| line["n"].as_u64()).collect();
        assert_eq!((numbers, damaged), (vec![Some(2), Some(3)], 1));
        fs::remove_dir_all(&folder).unwrap();
    }

    /// A new file whose folder is not on the disk is gone after a power cut, with all its lines.
    #[test]
    fn a_line_is_not_said_to_be_kept_before_the_name_of_its_file_is() {
        let folder = folder("audit-name");
        let mut audit = AuditFile::new(&folder);
        let works = std::mem::replace(&mut audit.sync_folder, |_| Err(io::Error::other("broken")));
        let long = format!("{{\"n\":\"{}\"}}", "x".repeat(FILE_BYTES_MAX as usize));
        for _ in 0..2 {
            assert!(audit.append(["{\"n\":1}"]).is_err());
        }
        audit.sync_folder = works;
        audit.append([long.as_str()]).unwrap();
        // The next one begins a new file.
        audit.sync_folder = |_| Err(io::Error::other("broken"));
        for _ in 0..2 {
            assert!(audit.append(["{\"n\":2}"]).is_err());
        }
        audit.sync_folder = works;
        audit.append(["{\"n\":3}"]).unwrap();
        audit.sync_folder = |_| panic!("the name is there already");
        audit.append(["{\"n\":4}"]).unwrap();
        let (lines, damaged) = last_lines(&folder, 10).unwrap();
        let numbers: Vec<_> = lines.iter().map(|line| line["n"].as_u64()).collect();
        assert_eq!((numbers, damaged), (vec![Some(3), Some(4)], 0));
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Used to show a line or two just after a new file was begun.
    #[test]
    fn the_last_lines_are_shown_though_a_new_file_was_just_begun() {
        let folder = folder("audit-before");
        let mut audit = AuditFile::new(&folder);
        let numbers = |most| {
            let (lines, damaged) = last_lines(&folder, most).unwrap();
            assert_eq!(damaged, 0);
            let number = |line: &serde_json::Value| line["n"].as_u64().unwrap();
            lines.iter().map(number).collect::<Vec<_>>()
        };
        let mut last = 0;
        let old = folder.join("audit.log.1");
        while !old.exists() {
            last += 1;
            let line = format!("{{\"n\":{last},\"x\":\"{}\"}}", "x".repeat(64 << 10));
            audit.append([line.as_str()]).unwrap();
        }
        assert_eq!(numbers(3), [last - 2, last - 1, last]);
        // As many as fit into what is read: a MiB.
        let all: Vec<u64> = (last - 14..=last).collect();
        assert_eq!(numbers(1000), all);
        fs::remove_file(audit.path()).unwrap();
        assert_eq!(numbers(1), [last - 1], "there is only the one before");
        fs::hard_link(old, audit.path()).unwrap();
        assert_eq!(numbers(2), [last - 2, last - 1], "it was moved meanwhile");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_end_of_a_file_begins_with_a_whole_line() {
        let folder = folder("audit-tail");
        let path = folder.join("text");
        let text = "one\ntwo\nthree\n";
        fs::write(&path, text).unwrap();
        let length = text.len() as u64;
        for bytes in 0..=length + 1 {
            let obvious = ["", "three\n", "two\nthree\n", text];
            let fits = |end: &&&str| end.len() as u64 <= bytes;
            let longest = obvious.iter().rev().find(fits).unwrap();
            let tail = tail(File::open(&path).unwrap(), length, bytes).unwrap();
            assert_eq!(tail, **longest, "{bytes}");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn the_trail_does_not_grow_without_end() {
        let folder = folder("audit-rotate");
        let mut audit = AuditFile::new(&folder);
        let line = format!("{{\"n\":\"{}\"}}", "x".repeat(1 << 20));
        for _ in 0..60 {
            audit.append([line.as_str()]).unwrap();
        }
        let files = fs::read_dir(&folder).unwrap().count();
        assert_eq!(files, 1 + OLD_FILES_MAX);
        fs::remove_dir_all(&folder).unwrap();
    }
}
