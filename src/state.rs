//! What is kept under `state`: the key under which secrets and attribute values are hashed ([`identity_key`]),
//! what the detector has learnt ([`detector`]), its rules and the incidents ([`detected`]), operators' rules
//! and the audit trail ([`audit`]). Files are whole or not at all ([`kept`], [`place`]); what waits to be written
//! ([`orders`]) is written by one thread ([`writer`]).

mod audit;
mod detected;
mod detector;
mod kept;
mod orders;
mod place;
mod writer;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use tidegate_engine::request::HashKey;

use crate::bounded_file;

pub use audit::{AuditFile, last_lines};
pub use detected::DetectedFile;
pub use detector::DetectorFile;
pub use kept::{Found, KeptFile};
pub use orders::Done;
pub use writer::StateWriter;

/// The file of the key, under the state folder. Readable by its owner only.
const KEY_FILE: &str = "identity.key";
const KEY_BYTES: usize = 32;
/// What is larger is no key for certain.
const KEY_FILE_BYTES_MAX: u64 = 4096;

/// Draws random bytes from the system.
///
/// # Errors
///
/// The system has no randomness to give.
pub fn random_bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// Draws a random number from the system.
///
/// # Errors
///
/// The system has no randomness to give.
pub fn random_u64() -> io::Result<u64> {
    Ok(u64::from_le_bytes(random_bytes()?))
}

/// Reads the identity key under the state folder, or makes folder and key at the first start.
///
/// The key stays the same across restarts, so that what was learnt about an instance stays true. Who
/// has it can test guesses about secrets; it is never shown or logged.
///
/// # Errors
///
/// The folder or the file cannot be made or read, or the file is not a key.
pub fn identity_key(folder: &Path) -> io::Result<HashKey> {
    fs::create_dir_all(folder)?;
    let path = folder.join(KEY_FILE);
    let bytes = match bounded_file::read(&path, KEY_FILE_BYTES_MAX) {
        Ok(bytes) => <[u8; KEY_BYTES]>::try_from(bytes).map_err(|bytes| {
            let text = format!(
                "{} has {} bytes and not {KEY_BYTES}; delete it to have a new one made (devices \
                 will count as new once)",
                path.display(),
                bytes.len(),
            );
            io::Error::new(io::ErrorKind::InvalidData, text)
        })?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(&path)?,
        Err(error) => return Err(error),
    };
    Ok(HashKey::from_key(&bytes))
}

fn make_key(path: &Path) -> io::Result<[u8; KEY_BYTES]> {
    let bytes = random_bytes::<KEY_BYTES>()?;
    write_whole(path, &[&bytes])?;
    Ok(bytes)
}

/// Writes a file whole or not at all, for its owner only: to another name first, then in place. When
/// this has returned, file and name are on the disk.
fn write_whole(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let draft = draft_of(path, std::process::id());
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    let written = parts
        .iter()
        .try_for_each(|part| file.write_all(part))
        .and_then(|()| file.sync_all())
        .and_then(|()| fs::rename(&draft, path));
    if let Err(error) = written {
        // A full disk is not made emptier by half a file.
        drop(fs::remove_file(&draft));
        return Err(error);
    }
    match path.parent() {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

fn draft_of(path: &Path, process: u32) -> PathBuf {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".draft-{process}"));
    draft.into()
}

/// Removes the drafts that processes left which were killed while they wrote.
///
/// # Errors
///
/// The folder cannot be read.
pub fn remove_drafts(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let process = name
            .rsplit_once(".draft-")
            .and_then(|(_, process)| process.parse::<u32>().ok());
        // That of a process that runs may be under way: one that drains writes, too.
        let is_left =
            process.is_some_and(|process| !Path::new(&format!("/proc/{process}")).exists());
        if is_left {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// Makes an empty folder.
    pub(crate) fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("tidegate-state-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn the_key_stays_the_same_and_only_its_owner_may_read_it() {
        let folder = folder("same");
        let first = identity_key(&folder).unwrap();
        let second = identity_key(&folder).unwrap();
        assert_eq!(first.hash(b"token"), second.hash(b"token"));
        let mode = fs::metadata(folder.join(KEY_FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn two_installations_hash_differently() {
        let (one, other) = (folder("one"), folder("other"));
        let hashes = [
            identity_key(&one).unwrap().hash(b"x"),
            identity_key(&other).unwrap().hash(b"x"),
        ];
        assert_ne!(hashes[0], hashes[1]);
        fs::remove_dir_all(&one).unwrap();
        fs::remove_dir_all(&other).unwrap();
    }

    #[test]
    fn a_damaged_key_is_an_error_that_says_what_to_do() {
        let folder = folder("damaged");
        fs::write(folder.join(KEY_FILE), b"short").unwrap();
        let error = identity_key(&folder).unwrap_err().to_string();
        assert!(error.contains("5 bytes and not 32; delete it"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn drafts_of_processes_that_are_gone_are_removed() {
        let folder = folder("drafts");
        let path = folder.join("rules.kept");
        let (left, own) = (
            draft_of(&path, u32::MAX),
            draft_of(&path, std::process::id()),
        );
        for draft in [&left, &own, &path] {
            fs::write(draft, "x").unwrap();
        }
        remove_drafts(&folder).unwrap();
        assert!(!left.exists() && own.exists() && path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_file_that_cannot_be_written_leaves_the_old_one_and_no_draft() {
        let folder = folder("no-draft");
        let path = folder.join("a-folder");
        fs::create_dir_all(path.join("in-the-way")).unwrap();
        assert!(write_whole(&path, &[b"x"]).is_err());
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
