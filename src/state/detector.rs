//! Keeps what the detector has learnt: read at the start, written each minute and at the end, by a
//! thread of its own. A file that cannot be used is set aside, and the detector learns anew.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tidegate_engine::detect::{Detector, SNAPSHOT_BYTES_MAX};
use tidegate_engine::request::HashKey;

use super::write_whole;

/// The file, under the state folder. It holds keyed hashes and counts; readable by its owner only.
const FILE: &str = "detector.state";

/// What the identity key makes of this tells whether the hashes in the file are of the same key.
const KEY_CHECK: &[u8] = b"tidegate detector.state";

/// The file of what the detector has learnt.
#[derive(Clone, Debug)]
pub struct DetectorFile {
    path: PathBuf,
    check: [u8; 8],
}

impl DetectorFile {
    /// Names the file under the state folder, for hashes of this key.
    pub fn new(folder: &Path, key: &HashKey) -> Self {
        Self {
            path: folder.join(FILE),
            check: key.hash(KEY_CHECK).to_le_bytes(),
        }
    }

    /// Gives the detector what was kept. What cannot be used is set aside under another name, and said.
    pub fn restore(&self, detector: &mut Detector) {
        let why = match self.read() {
            Ok(None) => return,
            Ok(Some(snapshot)) => match detector.restore(&snapshot) {
                Ok(()) => {
                    tracing::info!(
                        trained_seconds = detector.trained().as_secs(),
                        "the detector goes on with what it had learnt"
                    );
                    return;
                }
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        let aside = self.path.with_extension("state.unusable");
        let moved = fs::rename(&self.path, &aside);
        tracing::warn!(
            path = %self.path.display(),
            moved_to = %aside.display(),
            moved = moved.is_ok(),
            why,
            "what the detector had learnt cannot be used; it learns anew, and blocks nothing until \
             `detection.warmup` is over"
        );
    }

    fn read(&self) -> io::Result<Option<Vec<u8>>> {
        let length = match fs::metadata(&self.path) {
            Ok(metadata) => metadata.len(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if length > (SNAPSHOT_BYTES_MAX + self.check.len()) as u64 {
            let text = format!("{length} bytes are more than it ever has");
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        }
        let bytes = fs::read(&self.path)?;
        match bytes.strip_prefix(&self.check) {
            Some(snapshot) => Ok(Some(snapshot.to_vec())),
            None => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "written with another identity key",
            )),
        }
    }

    fn write(&self, snapshot: &[u8]) -> io::Result<()> {
        write_whole(&self.path, &[&self.check, snapshot])
    }
}

/// Writes snapshots on a thread of its own: a slow disk delays no tick.
#[derive(Debug)]
pub struct DetectorWriter {
    snapshots: SyncSender<Vec<u8>>,
    thread: JoinHandle<()>,
}

impl DetectorWriter {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// The system has no thread to give.
    pub fn start(file: DetectorFile) -> io::Result<Self> {
        let (snapshots, waiting) = sync_channel(0);
        let thread = std::thread::Builder::new()
            .name("state".into())
            .spawn(move || write_all(&file, &waiting))?;
        Ok(Self { snapshots, thread })
    }

    /// Hands a snapshot over, of which there is one at a time; it is left out when the disk is not done with the last one.
    pub fn write(&self, snapshot: Vec<u8>) {
        if self.snapshots.try_send(snapshot).is_err() {
            tracing::debug!("the last snapshot of the detector is still being written");
        }
    }

    /// Writes a last snapshot and waits until it is on the disk.
    pub fn finish(self, snapshot: Vec<u8>) {
        let sent = self.snapshots.send(snapshot);
        drop(self.snapshots);
        if sent.is_err() || self.thread.join().is_err() {
            tracing::error!("the last snapshot of the detector was not written");
        }
    }
}

fn write_all(file: &DetectorFile, waiting: &Receiver<Vec<u8>>) {
    for snapshot in waiting {
        if let Err(error) = file.write(&snapshot) {
            tracing::warn!(
                path = %file.path.display(),
                %error,
                "what the detector has learnt was not kept; it is tried again in a minute"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;
    use std::sync::Arc;

    use tidegate_engine::attribute::Schema;
    use tidegate_engine::detect::DetectionSpec;

    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder =
            std::env::temp_dir().join(format!("tidegate-learnt-{}-{name}", std::process::id()));
        drop(fs::remove_dir_all(&folder));
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    fn detector() -> Detector {
        Detector::new(Arc::new(Schema::built_in()), DetectionSpec::default(), 1)
    }

    #[test]
    fn what_was_written_is_restored_and_only_its_owner_may_read_it() {
        let folder = folder("same");
        let file = DetectorFile::new(&folder, &HashKey::from_seed(1));
        let writer = DetectorWriter::start(file.clone()).unwrap();
        let snapshot = detector().snapshot();
        writer.finish(snapshot.clone());
        assert_eq!(file.read().unwrap(), Some(snapshot));
        let mode = fs::metadata(&file.path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        file.restore(&mut detector());
        assert!(file.path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_damaged_file_and_one_of_another_key_are_set_aside() {
        let folder = folder("aside");
        let file = DetectorFile::new(&folder, &HashKey::from_seed(1));
        let mut damaged = detector().snapshot();
        *damaged.last_mut().unwrap() ^= 1;
        file.write(&damaged).unwrap();
        file.restore(&mut detector());
        assert!(!file.path.exists());
        assert!(folder.join("detector.state.unusable").exists());

        file.write(&detector().snapshot()).unwrap();
        let other = DetectorFile::new(&folder, &HashKey::from_seed(2));
        other.restore(&mut detector());
        assert!(!file.path.exists());
        fs::remove_dir_all(&folder).unwrap();
    }
}
