//! Writes a new file into the rules folder, whole or not at all, and over no other.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};
use rustix::io::Errno;

/// A file that was written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Written {
    /// Where it is.
    pub path: PathBuf,
    /// Whether its name is on the disk, too, and outlives a power cut.
    pub is_kept: bool,
}

/// Writes a new file into the rules folder. When this has returned without an error the file is there,
/// whole, under its name.
///
/// # Errors
///
/// There is a file of this name, or the folder cannot be written. Then nothing is left behind.
pub(super) fn write(folder: &Path, name: &str, text: &str) -> io::Result<Written> {
    let path = folder.join(format!("{name}.yaml"));
    // Hidden: until it has its name it is no rule file.
    let draft = folder.join(format!(".{name}.yaml.draft"));
    match fs::remove_file(&draft) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        // One that was left behind is not written over: it could have a second name.
        _ => {}
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o644)
        .open(&draft)?;
    let written = file
        .write_all(text.as_bytes())
        .and_then(|()| file.sync_all())
        .and_then(|()| rename_new(&draft, &path));
    if let Err(error) = written {
        drop(fs::remove_file(&draft));
        if error.kind() == io::ErrorKind::AlreadyExists {
            let text = format!("{} is there already; choose another name", path.display());
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, text));
        }
        return Err(error);
    }
    let kept = fs::File::open(folder).and_then(|folder| folder.sync_all());
    if let Err(error) = &kept {
        tracing::warn!(
            path = %path.display(),
            %error,
            "a rule file was written, but its folder cannot be kept: a power cut may undo it"
        );
    }
    Ok(Written {
        path,
        is_kept: kept.is_ok(),
    })
}

/// Renames a file to a name that nobody has.
fn rename_new(draft: &Path, path: &Path) -> io::Result<()> {
    match renameat_with(CWD, draft, CWD, path, RenameFlags::NOREPLACE) {
        // Some file systems (NFS, for one) cannot do that, but all of those can link.
        Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => link_new(draft, path),
        renamed => renamed.map_err(io::Error::from),
    }
}

fn link_new(draft: &Path, path: &Path) -> io::Result<()> {
    fs::hard_link(draft, path)?;
    // Only the name is gone; should it stay, it is no rule file, and is not written through.
    drop(fs::remove_file(draft));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string();
        entries.map(|entry| name(entry).unwrap()).collect()
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let folder = crate::state::tests::folder("promote");
        let written = write(&folder, "loop-3", "rules: []\n").unwrap();
        assert!(written.is_kept);
        let error = write(&folder, "loop-3", "x").unwrap_err();
        assert!(error.to_string().contains("is there already"), "{error}");
        assert_eq!(fs::read_to_string(&written.path).unwrap(), "rules: []\n");
        assert_eq!(names(&folder), ["loop-3.yaml"], "no draft");
        fs::remove_dir_all(&folder).unwrap();
    }

    /// `exists()` and then `rename()` replaced what came between the two.
    #[test]
    fn neither_way_to_rename_replaces_what_is_there() {
        let folder = crate::state::tests::folder("promote-rename");
        for (rename, name) in [
            (rename_new as fn(&Path, &Path) -> io::Result<()>, "renamed"),
            (link_new, "linked"),
        ] {
            let (draft, path) = (folder.join("draft"), folder.join(name));
            fs::write(&draft, "new").unwrap();
            rename(&draft, &path).unwrap();
            assert!(!draft.exists());
            fs::write(&draft, "newer").unwrap();
            let refused = rename(&draft, &path).unwrap_err();
            assert_eq!(refused.kind(), io::ErrorKind::AlreadyExists, "{name}");
            assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        }
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_draft_that_was_left_behind_is_not_written_through() {
        let folder = crate::state::tests::folder("promote-draft");
        let (draft, other) = (folder.join(".loop-3.yaml.draft"), folder.join("other.yaml"));
        fs::write(&other, "rules: []\n").unwrap();
        fs::hard_link(&other, &draft).unwrap();
        write(&folder, "loop-3", "x").unwrap();
        assert_eq!(fs::read_to_string(&other).unwrap(), "rules: []\n");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_folder_that_is_not_there_is_an_error() {
        let folder = crate::state::tests::folder("promote-none");
        assert!(write(&folder.join("none"), "loop-3", "x").is_err());
        fs::remove_dir_all(&folder).unwrap();
    }
}
