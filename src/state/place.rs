//! The place of a file under `state`. It is written whole or not at all, and what stood there is not lost
//! unread: what cannot be used is set aside under another name, and what cannot be read is left as it is
//! until something else is written there; then it is set aside first.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::write_whole;
use crate::bounded_file;

/// How many files are kept that were set aside: `*.unusable` is the newest, then `*.unusable.1` and so on.
const ASIDE_MAX: usize = 5;

/// Where a file is. Clones are the same place.
#[derive(Clone, Debug)]
pub struct Place {
    path: PathBuf,
    /// Whether something may stand there that nobody has read.
    is_unread: Arc<AtomicBool>,
}

impl Place {
    /// Names a file under the state folder.
    pub fn new(folder: &Path, name: &str) -> Self {
        Self {
            path: folder.join(name),
            is_unread: Arc::default(),
        }
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the file; `None` where there is none.
    ///
    /// # Errors
    ///
    /// It is larger than `bytes_max` (of kind [`io::ErrorKind::InvalidData`], as whatever is wrong with a
    /// content), or it cannot be read. In that case it is left as it is, and that is said.
    pub fn read(&self, bytes_max: u64) -> io::Result<Option<Vec<u8>>> {
        match bounded_file::read(&self.path, bytes_max) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound => Ok(None),
                io::ErrorKind::FileTooLarge => {
                    let text = format!("{error}, which it never is");
                    Err(io::Error::new(io::ErrorKind::InvalidData, text))
                }
                _ => Err(self.leave(error)),
            },
        }
    }

    /// Says that the file cannot be read. It may be as good as ever for who has the right, or tomorrow.
    fn leave(&self, error: io::Error) -> io::Error {
        self.is_unread.store(true, Ordering::Release);
        tracing::error!(
            path = %self.path.display(),
            %error,
            "a file of the state folder cannot be read, and what it says is not in force; it is left as it \
             is until something is to be kept there, then it becomes `*.unusable`; check who may read it, \
             and restart"
        );
        // Nothing of this kind comes from the system for a file that is there.
        match error.kind() {
            io::ErrorKind::InvalidData => io::Error::other(error),
            _ => error,
        }
    }

    /// Moves the file away because of `why`, and says so. Returns `why` with where it is now.
    pub fn set_aside(&self, why: &str) -> String {
        let moved = match self.move_aside() {
            Ok(aside) => format!("it is kept as {}", aside.display()),
            Err(error) => {
                self.is_unread.store(true, Ordering::Release);
                format!("it cannot be moved away: {error}")
            }
        };
        tracing::error!(
            path = %self.path.display(),
            why,
            moved,
            "a file of the state folder cannot be used; the rest is"
        );
        format!("{}: {why}; {moved}", self.path.display())
    }

    /// Moves the file away, behind those that were moved before.
    fn move_aside(&self) -> io::Result<PathBuf> {
        for number in (1..ASIDE_MAX).rev() {
            match fs::rename(self.aside(number - 1), self.aside(number)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let aside = self.aside(0);
        fs::rename(&self.path, &aside)?;
        Ok(aside)
    }

    fn aside(&self, number: usize) -> PathBuf {
        let mut aside = self.path.as_os_str().to_owned();
        aside.push(".unusable");
        if number > 0 {
            aside.push(format!(".{number}"));
        }
        aside.into()
    }

    /// Writes the file, whole. What nobody could read is set aside first.
    ///
    /// # Errors
    ///
    /// The disk is full, or the folder may not be written. What stood there still does.
    pub fn write(&self, parts: &[&[u8]]) -> io::Result<()> {
        if self.is_unread.load(Ordering::Acquire) {
            match self.move_aside() {
                Ok(aside) => tracing::warn!(
                    path = %self.path.display(),
                    moved_to = %aside.display(),
                    "a file that could not be read has made way for what is to be kept now"
                ),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            self.is_unread.store(false, Ordering::Release);
        }
        write_whole(&self.path, parts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::tests::folder;

    /// It used to be moved away, and so lost its rules at the next start, too. A folder in its place stands
    /// for a file that may not be read: the superuser may read all files.
    #[test]
    fn what_cannot_be_read_is_left_and_makes_way_for_what_is_written() {
        let folder = folder("place-unreadable");
        let place = Place::new(&folder, "rules.kept");
        fs::create_dir(place.path()).unwrap();
        for _ in 0..2 {
            let error = place.read(1 << 20).unwrap_err();
            assert_ne!(error.kind(), io::ErrorKind::InvalidData, "{error}");
            assert!(place.path().is_dir(), "it is left");
        }
        place.clone().write(&[b"new"]).unwrap();
        assert_eq!(place.read(1 << 20).unwrap(), Some(b"new".to_vec()));
        assert!(folder.join("rules.kept.unusable").is_dir());
        place.write(&[b"newer"]).unwrap();
        assert!(!folder.join("rules.kept.unusable.1").exists(), "only once");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_cannot_make_way_is_not_written_over() {
        let folder = folder("place-in-the-way");
        let place = Place::new(&folder, "rules.kept");
        // Reading says that a link leads to itself; those set aside before cannot be moved on.
        std::os::unix::fs::symlink("rules.kept", place.path()).unwrap();
        fs::create_dir(folder.join("rules.kept.unusable.3")).unwrap();
        fs::create_dir_all(folder.join("rules.kept.unusable.4/x")).unwrap();
        assert!(place.read(1 << 20).is_err());
        assert!(place.write(&[b"new"]).is_err());
        assert!(place.path().is_symlink());
        fs::remove_dir_all(folder.join("rules.kept.unusable.4")).unwrap();
        place.write(&[b"new"]).unwrap();
        assert_eq!(place.read(1 << 20).unwrap(), Some(b"new".to_vec()));
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_is_set_aside_leaves_the_last_ones_as_they_are() {
        let folder = folder("place-aside");
        let place = Place::new(&folder, "rules.kept");
        for number in 0..8 {
            fs::write(place.path(), number.to_string()).unwrap();
            place.set_aside("damaged");
        }
        let names = ["", ".1", ".2", ".3", ".4"];
        let read = |end| fs::read_to_string(folder.join(format!("rules.kept.unusable{end}")));
        assert_eq!(
            names.map(|end| read(end).unwrap()),
            ["7", "6", "5", "4", "3"]
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), ASIDE_MAX);
        fs::remove_dir_all(&folder).unwrap();
    }
}
