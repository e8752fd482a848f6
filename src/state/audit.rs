//! The audit trail: one JSON line for each change that somebody made, with a checksum, only ever added
//! to. Bounded: at [`FILE_BYTES_MAX`] the file becomes `audit.log.1`, and so on up to
//! [`OLD_FILES_MAX`].

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
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
        let written = file.write_all(text.as_bytes());
        if let Err(error) = written.and_then(|()| file.sync_all()) {
            // A part of a line must not become the beginning of the next one.
            self.is_torn = file.set_len(before).is_err();
            return Err(error);
        }
        Ok(())
    }

    fn rotate(&self) -> io::Result<()> {
        match fs::metadata(&self.path) {
            Ok(metadata) if metadata.len() >= FILE_BYTES_MAX => {}
            _ => return Ok(()),
        }
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

/// Returns the last lines of the audit trail under the state folder, oldest first. Lines that are
/// damaged are left out and counted.
///
/// # Errors
///
/// The file cannot be read.
pub fn last_lines(folder: &Path, most: usize) -> io::Result<(Vec<serde_json::Value>, usize)> {
    let mut file = match File::open(folder.join(FILE)) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), 0)),
        Err(error) => return Err(error),
    };
    let length = file.metadata()?.len();
    let begin = length.saturating_sub(SHOWN_BYTES_MAX);
    file.seek(SeekFrom::Start(begin))?;
    let mut bytes = Vec::new();
    file.take(SHOWN_BYTES_MAX).read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    // The first one may be cut where reading began.
    let skipped = usize::from(begin > 0);
    let mut damaged = 0;
    let mut lines: VecDeque<serde_json::Value> = VecDeque::new();
    for line in text.lines().skip(skipped) {
        match checked(line).and_then(|line| serde_json::from_str(&line).ok()) {
            Some(line) => lines.push_back(line),
            None => damaged += 1,
        }
        if lines.len() > most {
            lines.pop_front();
        }
    }
    Ok((lines.into(), damaged))
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
