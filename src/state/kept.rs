//! Files that are there whole or not at all: a first line with kind, version, length and checksum, then
//! the content. What is damaged is set aside under another name, and said.

use std::io;
use std::path::Path;

use super::place::Place;

/// The longest first line, in bytes.
const HEAD_BYTES_MAX: usize = 128;

/// The most bytes that are read: what is larger was never written here. Operators' rules take half of it
/// at most, and 128 incidents a few hundred KiB.
const CONTENT_BYTES_MAX: u64 = 64 << 20;

/// One file under `state`.
#[derive(Clone, Debug)]
pub struct KeptFile {
    place: Place,
    kind: &'static str,
    version: u32,
}

/// What was found at the start.
#[derive(Debug, PartialEq)]
pub enum Found {
    /// There is no file.
    Nothing,
    /// The content that was written last.
    Content(Vec<u8>),
    /// A file that cannot be used, and why. It was moved away, if that was possible.
    Unusable(String),
    /// A file that cannot be read, and why. It is still there; what is written next sets it aside.
    Unreadable(String),
}

impl KeptFile {
    /// Names a file under the state folder.
    pub fn new(folder: &Path, name: &str, kind: &'static str, version: u32) -> Self {
        Self {
            place: Place::new(folder, name),
            kind,
            version,
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        self.place.path()
    }

    /// Returns its place.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Reads the file; one that is damaged is set aside.
    pub fn read(&self) -> Found {
        match self.content() {
            Ok(None) => Found::Nothing,
            Ok(Some(content)) => Found::Content(content),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Found::Unusable(self.set_aside(&error.to_string()))
            }
            Err(error) => Found::Unreadable(error.to_string()),
        }
    }

    /// Moves the file away because of `why`, and says so. Returns `why` with where it is now.
    pub fn set_aside(&self, why: &str) -> String {
        self.place.set_aside(why)
    }

    fn content(&self) -> io::Result<Option<Vec<u8>>> {
        let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
        let Some(bytes) = self.place.read(CONTENT_BYTES_MAX)? else {
            return Ok(None);
        };
        let head_end = bytes
            .iter()
            .take(HEAD_BYTES_MAX)
            .position(|byte| *byte == b'\n');
        let (head, content) = head_end
            .and_then(|end| Some((bytes.get(..end)?, bytes.get(end + 1..)?)))
            .ok_or_else(|| invalid("it has no first line".to_owned()))?;
        let head = String::from_utf8_lossy(head);
        let begin = format!("tidegate {} ", self.kind);
        let rest = head
            .strip_prefix(&begin)
            .ok_or_else(|| invalid(format!("its first line does not begin with `{begin}`")))?;
        let version = rest.split(' ').next().unwrap_or_default();
        if version != self.version.to_string() {
            return Err(invalid(format!(
                "it is of version {version}, and this program reads {}",
                self.version
            )));
        }
        if *head != self.head(content) {
            return Err(invalid(
                "length or checksum are not those of its content".to_owned(),
            ));
        }
        Ok(Some(content.to_vec()))
    }

    fn head(&self, content: &[u8]) -> String {
        format!(
            "tidegate {} {} {} {:08x}",
            self.kind,
            self.version,
            content.len(),
            crc32fast::hash(content)
        )
    }

    /// Returns what stands in the file for this content, in parts.
    pub fn parts(&self, content: &[u8]) -> Vec<Vec<u8>> {
        let mut head = self.head(content);
        head.push('\n');
        vec![head.into_bytes(), content.to_vec()]
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::state::tests::folder;

    fn write(file: &KeptFile, content: &[u8]) {
        let parts = file.parts(content);
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        file.place.write(&parts).unwrap();
    }

    fn file(folder: &Path) -> KeptFile {
        KeptFile::new(folder, "rules.kept", "rules", 1)
    }

    #[test]
    fn what_was_written_is_read_again() {
        let folder = folder("kept-same");
        let file = file(&folder);
        assert_eq!(file.read(), Found::Nothing);
        for content in [&b"one"[..], b"", b"two\nlines\n"] {
            write(&file, content);
            assert_eq!(file.read(), Found::Content(content.to_vec()));
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    /// Each byte changed, and each shorter file, is noticed.
    #[test]
    fn damage_is_noticed_wherever_it_is_and_the_file_is_set_aside() {
        let folder = folder("kept-damage");
        let file = file(&folder);
        write(&file, b"content");
        let whole = fs::read(file.path()).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            for damaged in [damaged, whole[..at].to_vec()] {
                fs::write(file.path(), &damaged).unwrap();
                assert!(matches!(file.read(), Found::Unusable(_)), "{at}");
                assert!(!file.path().exists());
                let aside = folder.join("rules.kept.unusable");
                assert_eq!(fs::read(aside).unwrap(), damaged);
            }
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_of_another_kind_or_version_is_not_read() {
        let folder = folder("kept-version");
        write(&KeptFile::new(&folder, "rules.kept", "rules", 2), b"x");
        let Found::Unusable(why) = file(&folder).read() else {
            panic!("another version was read");
        };
        assert!(
            why.contains("of version 2, and this program reads 1"),
            "{why}"
        );
        write(&KeptFile::new(&folder, "rules.kept", "audit", 1), b"x");
        assert!(matches!(file(&folder).read(), Found::Unusable(_)));
        fs::remove_dir_all(&folder).unwrap();
    }
}
