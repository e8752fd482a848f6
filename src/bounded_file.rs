//! Reads whole files that others may have put there, and never waits for what is no file.

use std::fs;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::OFlags;

/// Reads a file of at most `bytes_max` bytes.
///
/// # Errors
///
/// It cannot be read; it is larger, of kind [`io::ErrorKind::FileTooLarge`]; or it is neither file nor
/// folder (a pipe, a device), of kind [`io::ErrorKind::InvalidInput`]. Those say so, but not which file it
/// is.
pub(crate) fn read(path: &Path, bytes_max: u64) -> io::Result<Vec<u8>> {
    // Opening alone may wake a device.
    check(&fs::metadata(path)?, bytes_max)?;
    let file = fs::OpenOptions::new()
        .read(true)
        .custom_flags(OFlags::NONBLOCK.bits() as i32)
        .open(path)?;
    // It may be another by now.
    check(&file.metadata()?, bytes_max)?;
    let mut bytes = Vec::new();
    // One byte more than allowed, to see that it has grown.
    file.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(bytes)
}

fn check(file: &fs::Metadata, bytes_max: u64) -> io::Result<()> {
    if !file.is_file() {
        let (kind, text) = if file.is_dir() {
            (io::ErrorKind::IsADirectory, "it is a folder")
        } else {
            (io::ErrorKind::InvalidInput, "it is a pipe or a device")
        };
        return Err(io::Error::new(kind, text));
    }
    if file.len() > bytes_max {
        return Err(too_large(bytes_max));
    }
    Ok(())
}

fn too_large(bytes_max: u64) -> io::Error {
    let text = format!("it is larger than {bytes_max} bytes");
    io::Error::new(io::ErrorKind::FileTooLarge, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_and_what_is_none_or_too_large_is_refused_at_once() {
        let folder = std::env::temp_dir().join(format!("tidegate-bounded-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let (file, pipe) = (folder.join("file"), folder.join("pipe"));
        fs::write(&file, "12345").unwrap();
        assert_eq!(read(&file, 5).unwrap(), b"12345");
        let kind = |path: &Path| read(path, 4).unwrap_err().kind();
        assert_eq!(kind(&file), io::ErrorKind::FileTooLarge);
        assert_eq!(kind(&folder), io::ErrorKind::IsADirectory);
        assert_eq!(kind(&folder.join("nothing")), io::ErrorKind::NotFound);
        let made = std::process::Command::new("mkfifo").arg(&pipe).status();
        assert!(made.unwrap().success());
        assert_eq!(kind(&pipe), io::ErrorKind::InvalidInput);
        fs::remove_dir_all(&folder).unwrap();
    }
}
