//! What is kept under `state`: the key under which secrets and attribute values are hashed, and what the
//! detector has learnt.

mod detector;

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use tidegate_engine::request::HashKey;

pub use detector::{DetectorFile, DetectorWriter};

/// The file of the key, under the state folder. Readable by its owner only.
const KEY_FILE: &str = "identity.key";
const KEY_BYTES: usize = 32;

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
    let bytes = match fs::read(&path) {
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

/// Writes a file whole or not at all, for its owner only: to another name first, then in place.
fn write_whole(path: &Path, parts: &[&[u8]]) -> io::Result<()> {
    let mut draft = path.as_os_str().to_owned();
    draft.push(format!(".{}", std::process::id()));
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&draft)?;
    for part in parts {
        file.write_all(part)?;
    }
    file.sync_all()?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn folder(name: &str) -> std::path::PathBuf {
        let folder =
            std::env::temp_dir().join(format!("tidegate-state-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
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
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join(KEY_FILE), b"short").unwrap();
        let error = identity_key(&folder).unwrap_err().to_string();
        assert!(error.contains("5 bytes and not 32; delete it"), "{error}");
        fs::remove_dir_all(&folder).unwrap();
    }
}
